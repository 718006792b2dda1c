"""What is handed in is whole, runs by itself, and is refused with every reason otherwise."""

import json
import shutil
import subprocess
import sys
import zipfile

import nbformat
import pandas as pd
import pytest
import yaml

from covid_lab import phantoms
from covid_lab.__main__ import main
from covid_lab.handin import Refused, needed_modules, notebook_faults, submit, write_archive
from covid_lab.report import build
from covid_lab.runs.settings import NOTEBOOKS
from covid_project.settings import PROJECT


@pytest.fixture
def results(small_run, tmp_path):
    """A finished run whose report is said to be built; LaTeX is not needed for that."""
    folder = tmp_path / "results"
    shutil.copytree(small_run[0] / "made", folder)
    build.write_evidence(folder)
    (folder / "report" / "Report.pdf").write_bytes(b"%PDF-1.5 stands for the report")
    made_from = build._fingerprints(folder, build.SOURCE)
    record = {"pages": 13, "unresolved": [], "made_from": made_from}
    (folder / "report" / build.RECORD).write_text(json.dumps(record))
    return folder


def refusal(results, tmp_path, **how):
    with pytest.raises(Refused) as refused:
        submit(results, 21, tmp_path / "submission", **how)
    assert not (tmp_path / "submission").exists()
    return refused.value.reasons


def test_a_draft_is_written_with_the_sheets_names(results, tmp_path, capsys):
    arguments = ["--results", str(results), "--group", "21", "--to", str(tmp_path / "submission")]
    assert main(["submission", *arguments, "--draft"]) == 0
    names = sorted(path.name for path in (tmp_path / "submission").iterdir())
    assert names == ["Report_group21.pdf", "covid_project_group21.zip"]
    assert "warning: to be written by the team: names" in capsys.readouterr().out


def test_places_that_the_team_must_fill_are_refused_without_draft(results, tmp_path):
    reasons = refusal(results, tmp_path)
    assert len(reasons) == 3
    assert all(reason.startswith("to be written by the team") for reason in reasons)


def test_every_reason_is_named_at_once(results, tmp_path, capsys):
    ledger = pd.read_csv(results / "test_ledger.csv")
    ledger = pd.concat([ledger, ledger.tail(1).assign(look=2, model="another")])
    ledger.to_csv(results / "test_ledger.csv", index=False)
    record = json.loads((results / "report" / build.RECORD).read_text())
    record |= {"pages": 16, "unresolved": ["LaTeX: fig:x is undefined"]}
    (results / "report" / build.RECORD).write_text(json.dumps(record))
    (results / "notebooks" / "gradcam.ipynb").unlink()
    (results / "figures" / "phantom_images_mean.pdf").unlink()
    arguments = ["--results", str(results), "--group", "21", "--to", str(tmp_path / "submission")]
    assert main(["submission", *arguments]) == 1
    error = capsys.readouterr().err
    for reason in (
        "read 2 times for the stage fine_tuned",
        "16 pages; allowed: 10 to 15",
        "fig:x is undefined",
        "gradcam.ipynb is missing",
        "images_mean.pdf is missing",
        "values.tex is stale",
        "Report.pdf is stale",
        "to be written by the team",
    ):
        assert reason in error
    assert not (tmp_path / "submission").exists()


def edited(results, name, edit):
    path = results / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    edit([cell for cell in notebook.cells if cell.cell_type == "code"])
    nbformat.write(notebook, path)
    return notebook_faults(results)


def test_notebooks_of_a_run_have_no_fault(results):
    assert notebook_faults(results) == []


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda cells: cells[2].update(execution_count=9), "not executed from top to bottom"),
        (lambda cells: cells[1].update(source="1 / 0"), "changed after it was executed"),
        (
            lambda cells: cells[1].outputs.append(
                nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])
            ),
            "holds an error: ValueError",
        ),
        (
            lambda cells: [
                cell.metadata["execution"].update({"iopub.execute_input": "2000-01-01T00:00:00Z"})
                for cell in cells
            ],
            "executed before the notebook that precedes it",
        ),
    ],
)
def test_faults_of_notebooks_are_found(results, edit, message):
    (fault,) = edited(results, "transfer_learning", edit)
    assert message in fault
    assert fault.startswith("transfer_learning.ipynb")


def test_nothing_outside_the_sheet_is_handed_in(results, tmp_path):
    write_archive(tmp_path / "hand_in.zip", results, 21)
    with zipfile.ZipFile(tmp_path / "hand_in.zip") as archive:
        names = archive.namelist()
        readme = archive.read("README.md").decode()
    assert {f"{name}.ipynb" for name in NOTEBOOKS} <= set(names)
    assert {"requirements.txt", "profiles/course.yaml", "results/tuning_baseline.csv"} <= set(names)
    assert "covid_project/explain/gradcam.py" in names
    for part in ("phantoms", "studies", "audit", "benchmarks", "report/", "tests/", "figures/",
                 ".keras", ".pdf", ".npy"):  # fmt: skip
        assert not [name for name in names if part in name], part
    assert "group 21" in readme


def test_needed_modules_are_what_the_notebooks_import_and_all_of_it():
    names = {path.relative_to(PROJECT).as_posix() for path in needed_modules()}
    assert "covid_project/evaluation.py" in names
    assert "covid_project/storage.py" in names
    assert "covid_project/phantoms.py" not in names


def test_the_hand_in_runs_its_notebooks_by_itself_in_an_empty_folder(small_run, results, tmp_path):
    write_archive(tmp_path / "hand_in.zip", results, 21)
    empty = tmp_path / "empty"
    with zipfile.ZipFile(tmp_path / "hand_in.zip") as archive:
        archive.extractall(empty)
    counts = {"train": 24, "val": 12, "test": 12}
    drawn = phantoms.write_dataset(tmp_path / "drawn", counts, 48, 5)
    profile = yaml.safe_load((small_run[0] / "profiles" / "small.yaml").read_text())
    profile |= {"phantoms": None, "seeds": 1}
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(profile))
    command = [sys.executable, "-m", "covid_lab", "run", "--data", str(drawn)]
    command += ["--profile", str(tmp_path / "quick.yaml"), "--results", "again"]
    done = subprocess.run(command, cwd=empty, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (empty / "again" / "metrics.csv").is_file()
    alone = [sys.executable, "-m", "covid_lab", "run"]
    done = subprocess.run(alone, cwd=empty, capture_output=True, text=True)
    assert done.returncode == 2
    assert "with data named" in done.stderr
    report = subprocess.run([*alone[:-1], "report"], cwd=empty, capture_output=True, text=True)
    assert report.returncode == 1
    assert "not in it" in report.stderr
