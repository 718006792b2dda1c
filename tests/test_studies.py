"""What all studies have in common: how their notebooks begin, and their backbones."""

import nbformat
import pytest

from covid_lab.runs.settings import STUDIES
from covid_lab.studies import ct_lesions, pneumonia
from covid_project.models import BACKBONES
from covid_project.settings import PROJECT, SettingsError


def code_cells(path):
    cells = nbformat.read(PROJECT / path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def test_there_are_four_studies():
    assert STUDIES == ("ct_lesions", "lung_nodules", "pneumonia", "robustness")


@pytest.mark.parametrize("study", STUDIES)
def test_a_notebook_begins_as_those_of_the_course_do(study):
    """It finds the packages from any folder, then names data, results and settings in one cell."""
    cells, course = code_cells(f"studies/{study}.ipynb"), code_cells("baseline.ipynb")
    assert [cell.source for cell in cells[:2]] == [cell.source for cell in course[:2]]
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", ())]
    assert tagged == [cells[2]]
    values = {}
    exec(cells[2].source, values)
    assert [values[name] for name in ("DATA", "RESULTS", "SETTINGS")] == [None] * 3
    text = "\n".join(cell.source for cell in cells[3:])
    assert "load_settings(SETTINGS, data=DATA, results=RESULTS)" in text
    assert "os.environ" not in text


@pytest.mark.parametrize("study", STUDIES)
def test_a_stored_notebook_has_short_cells_and_all_outputs_or_none(study):
    cells = code_cells(f"studies/{study}.ipynb")
    counts = [cell.execution_count for cell in cells]
    assert counts in ([None] * len(cells), list(range(1, len(cells) + 1)))
    assert counts[0] or not any(cell.outputs for cell in cells)
    assert max(cell.source.count("\n") + 1 for cell in cells) <= 20


@pytest.mark.parametrize(("study", "group"), [(ct_lesions, "model_c"), (pneumonia, "transfer")])
def test_any_backbone_of_the_course_can_be_chosen(study, group):
    for name in BACKBONES:
        settings = study.load_settings(changes={f"{group}.backbone": name})
        assert getattr(settings, group).backbone == name
    with pytest.raises(SettingsError, match="allowed: ResNet50V2, MobileNetV2"):
        study.load_settings(changes={f"{group}.backbone": "AlexNet"})
