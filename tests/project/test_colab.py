"""The first cells of the notebooks: they find the package, or say in one line what to do."""

import json
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import nbformat
import pytest

from covid_project import settings
from covid_project.settings import SettingsError, find_data, load_settings

HOUSE = Path(__file__).resolve().parent.parent.parent
FIRST = [
    cell.source
    for cell in nbformat.read(HOUSE / "baseline.ipynb", as_version=4).cells
    if cell.cell_type == "code"
][:2]
SAY = (
    "\nimport json, covid_project.settings as s"
    "\nprint(json.dumps([str(s.PROJECT), str(s.default_results())]))"
)


@pytest.fixture
def colab(tmp_path):
    """Folder that stands for /content, and a function that runs the first cells there."""
    content = tmp_path / "content"
    (content / "drive" / "MyDrive").mkdir(parents=True)

    def run(code="", on_colab=True):
        cells = "\n".join(FIRST).replace('"/content', f'"{content}')
        stand_in = "import sys, types; sys.modules['google.colab'] = types.ModuleType('colab')\n"
        whole = (stand_in if on_colab else "") + cells + code
        command = [sys.executable, "-I", "-c", whole]
        return subprocess.run(command, cwd=content, capture_output=True, text=True)

    return content, run


def upload(path, inside=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in (HOUSE / "covid_project").glob("*.*"):
            archive.write(file, f"{inside}covid_project/{file.name}")


@pytest.mark.parametrize("folder", ["", "drive/MyDrive"])
@pytest.mark.parametrize("inside", ["", "covid_project-main/"])
def test_on_colab_the_uploaded_zip_is_found_and_unpacked(colab, folder, inside):
    content, run = colab
    upload(content / folder / "covid_project_group21 (1).zip", inside)
    done = run(SAY)
    assert done.returncode == 0, done.stderr
    project = Path(json.loads(done.stdout)[0])
    assert project == content / "covid_project_files" / inside.rstrip("/")
    assert run(SAY).returncode == 0  # the next notebook: it is there already


def test_without_the_zip_one_line_says_what_to_do(colab):
    _, run = colab
    done = run(SAY)
    assert done.returncode == 1
    assert "ModuleNotFoundError" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "upload the project's zip to /content or to your Drive" in done.stderr


def test_a_notebook_is_run_from_a_folder_below_the_project(tmp_path):
    (tmp_path / "studies" / "deep").mkdir(parents=True)
    upload(tmp_path / "x.zip")
    zipfile.ZipFile(tmp_path / "x.zip").extractall(tmp_path)
    command = [sys.executable, "-I", "-c", "\n".join(FIRST) + SAY]
    done = subprocess.run(
        command, cwd=tmp_path / "studies" / "deep", capture_output=True, text=True
    )
    assert json.loads(done.stdout) == [str(tmp_path), str(tmp_path / "results")], done.stderr


def test_results_go_to_the_drive_where_it_is_mounted(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "COLAB", tmp_path)
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("colab"))
    assert settings.default_results() == settings.PROJECT / "results"
    (tmp_path / "drive" / "MyDrive").mkdir(parents=True)
    found = load_settings(data="x.zip")
    assert found.results == str(tmp_path / "drive" / "MyDrive" / "covid_project_results")
    monkeypatch.delitem(sys.modules, "google.colab")
    assert settings.default_results() == settings.PROJECT / "results"


def test_data_are_found_where_users_put_them(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "PROJECT", tmp_path / "project")
    monkeypatch.setattr(settings, "COLAB", tmp_path / "content")
    monkeypatch.chdir(tmp_path)
    for folder in ("project", "content/drive/MyDrive"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(SettingsError, match="was not found in") as error:
        find_data()
    assert "\n" not in str(error.value)
    drive = tmp_path / "content" / "drive" / "MyDrive" / "covid_xray.zip"
    drive.touch()
    assert find_data() == drive
    (tmp_path / "project" / "covid_xray").mkdir()  # unpacked, beside the notebooks
    assert find_data() == tmp_path / "project" / "covid_xray"
    (tmp_path / "project" / "covid_xray.zip").touch()
    assert find_data() == tmp_path / "project" / "covid_xray.zip"
