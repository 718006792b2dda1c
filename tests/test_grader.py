"""As a grader does: the zip unpacked, a fresh environment of the sheet's packages, "Run all"."""

import os
import shutil
import subprocess
import sys
import zipfile

import nbformat
import pytest
from conftest import HOUSE, SHARED
from filelock import FileLock

from covid_lab.handin import write_archive
from covid_lab.runs.settings import NOTEBOOKS
from covid_project.files import fingerprint, read_csv

JUPYTER = ("ipykernel", "nbclient")  # what runs the cells of a notebook
RUN_ALL = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


@pytest.fixture(scope="module")
def environment():
    """Python of an environment that has only the eight pins and what runs a notebook."""
    requirements = (HOUSE / "requirements.txt").read_bytes()
    folder = HOUSE / ".cache" / f"grader-{fingerprint(requirements, sys.version)}"
    bin_folder = folder / ("Scripts" if os.name == "nt" else "bin")
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # several processes share the tests
        if not (folder / "ready").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            # Python compiles what it imports; compiling everything takes a minute.
            pip = [bin_folder / "python", "-m", "pip", "install", "--quiet", "--no-compile"]
            subprocess.run([*pip, "-r", HOUSE / "requirements.txt", *JUPYTER], check=True)
            (folder / "ready").touch()
    return bin_folder / "python"


@pytest.fixture(scope="module")
def handed_in(small_run, tmp_path_factory):
    """The zip, unpacked in an empty folder whose path has a space, with data beside it."""
    folder = tmp_path_factory.mktemp("handed in") / "group 21"
    archive = folder.parent / "a.zip"
    write_archive(archive, small_run[0] / "made", 21)
    with zipfile.ZipFile(archive) as unpacked:
        unpacked.extractall(folder)
    course = SHARED / "data" / "covid_xray.zip"
    if course.is_file():
        take_some(course, folder / "covid_xray.zip")
    else:  # drawn images
        drawn = next((small_run[0] / ".cache").glob("phantoms-*"))
        shutil.copytree(drawn, folder / "covid_xray")
    return folder


def take_some(source, target):
    """Write a small archive of real images; its test split is made of validation images."""
    counts = {"train": 24, "val": 12}
    seen = {}
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(target, "w") as small:
        for name in sorted(whole.namelist()):
            parts = name.split("/")
            if not name.endswith(".png") or parts[-3] not in counts:
                continue
            place = tuple(parts[-3:-1])
            seen[place] = seen.get(place, 0) + 1
            if seen[place] <= counts[parts[-3]]:
                small.writestr(name, whole.read(name))
            elif parts[-3] == "val" and seen[place] <= 24:
                small.writestr(name.replace("/val/", "/test/"), whole.read(name))


def bare():
    """Environment without the variables of those who test."""
    kept = ("PATH", "HOME", "SYSTEMROOT", "LANG", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ}


def run_all(python, notebook):
    """Execute a notebook in its place: no environment variable, no make, no command line."""
    output = notebook.with_name(f"{notebook.stem}_executed.ipynb")
    command = [python, "-c", RUN_ALL, notebook.name, output.name]
    return subprocess.run(command, cwd=notebook.parent, env=bare(), capture_output=True, text=True)


@pytest.mark.xdist_group("small_run")
def test_the_package_imports_where_only_the_sheets_packages_are(environment, handed_in):
    names = [path.stem for path in (handed_in / "covid_project").glob("*.py")]
    code = "; ".join(f"import covid_project.{name}" for name in names if name != "__init__")
    subprocess.run([environment, "-c", code], check=True, cwd=handed_in, env=bare())


@pytest.mark.xdist_group("small_run")
def test_the_last_notebook_first_says_which_one_to_run(environment, handed_in):
    done = run_all(environment, handed_in / "gradcam.ipynb")
    assert done.returncode != 0
    assert "MissingInput" in done.stderr
    assert "run baseline.ipynb and transfer_learning.ipynb first" in done.stderr


@pytest.mark.xdist_group("small_run")
def test_run_all_in_order(environment, handed_in):
    before = {path.name: path.read_bytes() for path in (handed_in / "results").iterdir()}
    for name in NOTEBOOKS:
        done = run_all(environment, handed_in / f"{name}.ipynb")
        assert done.returncode == 0, done.stderr[-3000:]
        cells = nbformat.read(handed_in / f"{name}_executed.ipynb", as_version=4).cells
        code = [cell for cell in cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code)
    # What was handed in is as it was; the grader's run has its own folder.
    after = {path.name: path.read_bytes() for path in (handed_in / "results").iterdir()}
    assert after == before
    ledger = read_csv(handed_in / "results_rerun" / "test_ledger.csv")
    assert ledger["stage"].tolist() == ["exploration", "baseline", "fine_tuned"]
    assert (ledger["look"] == 1).all()
    metrics = read_csv(handed_in / "results_rerun" / "metrics.csv")
    assert metrics.loc[metrics["split"] == "test", "stage"].unique().tolist() == [
        "baseline", "fine_tuned",
    ]  # fmt: skip
