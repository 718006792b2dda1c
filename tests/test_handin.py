"""What is handed in is whole, runs by itself, and is refused with every reason otherwise."""

import json
import re
import shutil
import zipfile

import nbformat
import pandas as pd
import pytest
import yaml

from covid_lab import handin
from covid_lab.__main__ import main
from covid_lab.handin import Refused, code_faults, submit, unfilled_places, write_archive
from covid_lab.report.build import Report
from covid_lab.runs.settings import NOTEBOOKS
from covid_project.settings import PROJECT


@pytest.fixture
def results(small_run, tmp_path):
    """The finished run, said to be on real images."""
    folder = tmp_path / "results"
    ignored = shutil.ignore_patterns("cache", "models", "figures")
    shutil.copytree(small_run[0] / "made", folder, ignore=ignored)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"phantoms": False}))
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of the notebooks and the package, which tests may change."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in NOTEBOOKS:
        shutil.copy(PROJECT / f"{name}.ipynb", folder)
    shutil.copy(PROJECT / "requirements.txt", folder)
    shutil.copytree(PROJECT / "covid_project", folder / "covid_project")
    monkeypatch.setattr(handin, "PROJECT", folder)
    return folder


def change(path, edit):
    notebook = nbformat.read(path, as_version=4)
    edit(notebook)
    nbformat.write(notebook, path)


def last_code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"][-1]


def test_the_zip_holds_the_package_the_notebooks_the_tables_and_nothing_else(results, tmp_path):
    write_archive(tmp_path / "a.zip", results, 21)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = set(archive.namelist())
        texts = [archive.read(name).decode() for name in names]
        requirements = archive.read("requirements.txt").decode()
        settings = yaml.safe_load(archive.read("covid_project/course.yaml"))
        readme = archive.read("README.md").decode()
    modules = {f"covid_project/{path.name}" for path in (PROJECT / "covid_project").glob("*.py")}
    tables = {f"results/{path.name}" for path in results.glob("*.csv")}
    assert len(tables) > 15
    others = {"covid_project/course.yaml", "requirements.txt", "README.md"}
    assert names == modules | tables | others | {f"{name}.ipynb" for name in NOTEBOOKS}
    assert len(requirements.split()) == 8
    assert "group 21" in readme
    # "Run all" repeats this run: its settings are the package's.
    written = yaml.safe_load((results / "settings.yaml").read_text())
    assert settings == {k: v for k, v in written.items() if k not in ("data", "results")}
    assert not [text for text in texts if str(tmp_path.parent) in text]


def test_the_notebooks_keep_their_outputs_but_no_path_and_no_chatter(results, tmp_path):
    path = results / "notebooks" / "gradcam.ipynb"
    noise = nbformat.v4.new_output("stream", name="stderr", text="could not find cuda")

    def edit(notebook):
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        code[0].outputs.append(noise)
        code[2].source = 'DATA = "my-folder/covid_xray.zip"'

    change(path, edit)
    write_archive(tmp_path / "a.zip", results, 21)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        text = archive.read("gradcam.ipynb").decode()
        cells = nbformat.reads(text, as_version=4).cells
    assert "my-folder" not in text
    assert noise.text not in text  # the word alone may occur in a picture's base64
    assert any("heatmap" in str(cell.get("outputs")) for cell in cells)
    assert re.search(r"^DATA = None", next(c.source for c in cells if "DATA" in c.source))


def test_notebooks_without_outputs_were_not_executed(results, project):
    (results / "notebooks" / "gradcam.ipynb").unlink()

    def clear(notebook):
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None

    change(project / "gradcam.ipynb", clear)
    (fault,) = code_faults(results)
    assert fault == "gradcam.ipynb was not executed: run it from top to bottom and save it"


def test_drawn_images_are_refused(small_run):
    assert any("drawn images" in fault for fault in code_faults(small_run[0] / "made"))


def test_a_second_test_evaluation_is_refused(results):
    ledger = pd.read_csv(results / "test_ledger.csv")
    assert ledger["stage"].tolist() == ["exploration", "baseline", "fine_tuned"]
    again = ledger.tail(1).assign(look=2, model="another")
    pd.concat([ledger, again]).to_csv(results / "test_ledger.csv", index=False)
    (fault,) = code_faults(results)
    assert "read 2 times at the stage fine_tuned" in fault


def test_notebooks_changed_since_they_ran_are_refused(results, project):
    def edit(notebook):
        last_code(notebook).source += "\nprint('another line')"

    change(project / "baseline.ipynb", edit)
    assert code_faults(results) == ["baseline.ipynb changed after it was executed: run it again"]

    # The settings cell is every user's own.
    def rename(notebook):
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = "DATA = 'mine.zip'"

    change(project / "gradcam.ipynb", rename)
    assert len(code_faults(results)) == 1


def test_notebooks_that_were_not_run_from_top_to_bottom_are_refused(results):
    folder = results / "notebooks"
    (folder / "data_exploration.ipynb").unlink()

    def skip(notebook):
        last_code(notebook).execution_count = 99

    def fail(notebook):
        error = nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])
        last_code(notebook).outputs = [error]

    change(folder / "baseline.ipynb", skip)
    change(folder / "gradcam.ipynb", fail)
    assert code_faults(results) == [
        "data_exploration.ipynb holds the outputs of the project's own run: run it",
        "baseline.ipynb was not executed from top to bottom: choose Run all",
        "gradcam.ipynb holds an error: ValueError",
    ]


def test_notebooks_saved_in_jupyter_are_taken_from_their_place(results, project, tmp_path):
    for name in NOTEBOOKS:
        (results / "notebooks" / f"{name}.ipynb").replace(project / f"{name}.ipynb")

    def rename(notebook):
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = 'DATA = "my-folder/covid_xray.zip"  # ours\nRESULTS = None'

    change(project / "baseline.ipynb", rename)
    assert code_faults(results) == []
    write_archive(tmp_path / "a.zip", results, 21)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert "my-folder" not in archive.read("baseline.ipynb").decode()


def test_places_that_the_team_must_fill_are_found(results):
    def edit(notebook):
        notebook.cells.append(nbformat.v4.new_markdown_cell("✎ What do the curves show?"))

    before = unfilled_places(results)
    assert all("to be written by the team" in place for place in before)
    change(results / "notebooks" / "baseline.ipynb", edit)
    assert [place for place in unfilled_places(results) if place not in before] == [
        "baseline.ipynb, to be written by the team: What do the curves show?"
    ]

    def fill(notebook):
        for cell in notebook.cells:
            cell.source = cell.source.replace("✎", "")

    for name in NOTEBOOKS:
        change(results / "notebooks" / f"{name}.ipynb", fill)
    assert unfilled_places(results) == []


def test_every_reason_is_named_at_once_and_nothing_is_written(results, tmp_path, monkeypatch):
    monkeypatch.setattr(Report, "faults", lambda report: ["the report has 16 pages"])
    (results / "notebooks" / "gradcam.ipynb").unlink()
    with pytest.raises(Refused) as refused:
        submit(results, 21, tmp_path / "out")
    assert "gradcam.ipynb holds the outputs of the project's own run" in refused.value.reasons[0]
    assert "the report has 16 pages" in refused.value.reasons
    assert any("to be written by the team" in reason for reason in refused.value.reasons)
    assert not (tmp_path / "out").exists()


def test_a_draft_is_written_with_the_sheets_names(results, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Report, "faults", lambda report: [])
    (results / "report").mkdir(exist_ok=True)
    (results / "report" / "Report.pdf").write_bytes(b"%PDF")
    arguments = ["--results", str(results), "--group", "21", "--to", str(tmp_path / "out")]
    assert main(["handin", *arguments, "--draft"]) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["Report_group21.pdf", "covid_project_group21.zip"]
    assert "warning: to be written by the team" in capsys.readouterr().out


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path):
    (fault,) = code_faults(tmp_path)
    assert "holds no run" in fault
