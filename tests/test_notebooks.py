"""Outputs that are kept in the project's notebooks: all of a run's but what is not ours to give."""

import shutil

import nbformat
import pytest

from covid_lab import handin
from covid_lab.notebooks import (
    NOT_SHOWN,
    OutputsRefused,
    code_cells,
    keep_outputs,
    without_chatter,
)
from covid_lab.runs.settings import NOTEBOOKS
from covid_project.settings import PROJECT


@pytest.fixture
def results(small_run, tmp_path):
    ignored = shutil.ignore_patterns("cache", "models", "figures")
    return shutil.copytree(small_run[0] / "made", tmp_path / "results", ignore=ignored)


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    for name in NOTEBOOKS:
        shutil.copy(PROJECT / f"{name}.ipynb", folder)
    return folder


def pictures(path):
    return {
        cell.source
        for cell in code_cells(path)
        if any("image/png" in output.get("data", {}) for output in cell.outputs)
    }


def test_curves_are_kept_and_images_of_the_data_set_are_not(results, project):
    keep_outputs(results, project)
    for name in NOTEBOOKS:
        executed, kept = results / "notebooks" / f"{name}.ipynb", project / f"{name}.ipynb"
        shown = {source for source in pictures(executed) if "images_" in source}
        assert shown
        assert pictures(kept) == pictures(executed) - shown
        for cell in code_cells(kept):
            said = [output.text for output in cell.outputs if output.get("text")]
            assert (NOT_SHOWN in said) == (cell.source in shown)
        counts = [cell.execution_count for cell in code_cells(kept)]
        assert counts == list(range(1, len(counts) + 1))


def test_what_tensorflow_says_is_no_output():
    cell = nbformat.v4.new_code_cell("x")
    for name, text in (
        ("stdout", "trial 1\nWARNING:tensorflow:5 out of 6 calls\ntrial 2\n"),
        ("stdout", "WARNING:tensorflow:6 out of 7 calls\n"),
        ("stderr", "no cuda"),
    ):
        cell.outputs.append(nbformat.v4.new_output("stream", name=name, text=text))
    assert [output.text for output in without_chatter(cell)] == ["trial 1\ntrial 2\n"]


def test_text_may_have_changed_since_the_run_but_not_code(results, project):
    path = project / "gradcam.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_markdown_cell("The heat is on the left lung."))
    nbformat.write(notebook, path)
    keep_outputs(results, project)
    assert nbformat.read(path, as_version=4).cells[-1].source == "The heat is on the left lung."

    before = (project / "baseline.ipynb").read_bytes()
    notebook = nbformat.read(path, as_version=4)
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    last.source += "\nprint('more')"
    nbformat.write(notebook, path)
    with pytest.raises(OutputsRefused, match=r"gradcam\.ipynb changed after it was executed"):
        keep_outputs(results, project)
    (results / "notebooks" / "baseline.ipynb").unlink()
    with pytest.raises(OutputsRefused, match=r"baseline\.ipynb is missing"):
        keep_outputs(results, project)
    assert (project / "baseline.ipynb").read_bytes() == before


def test_kept_outputs_are_not_handed_in_as_a_run_of_ones_own(results, project, monkeypatch):
    monkeypatch.setattr(handin, "PROJECT", project)
    keep_outputs(results, project)
    shutil.rmtree(results / "notebooks")
    faults = handin.notebook_faults(results)
    assert faults == [
        f"{name}.ipynb holds the outputs of the project's own run: run it" for name in NOTEBOOKS
    ]
