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


def run(code, folder):
    command = [sys.executable, "-I", "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def run_on_colab(content):
    """Run the first cells where ``content`` stands for /content."""
    stand_in = "import sys, types; sys.modules['google.colab'] = types.ModuleType('colab')\n"
    return run(stand_in + "\n".join(FIRST).replace('"/content', f'"{content}') + SAY, content)


def upload(path, inside=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in (HOUSE / "covid_project").glob("*.*"):
            archive.write(file, f"{inside}covid_project/{file.name}")


@pytest.mark.parametrize(("folder", "inside"), [("", ""), ("drive/MyDrive", "covid_project-main/")])
def test_on_colab_the_uploaded_zip_is_found_and_unpacked(tmp_path, folder, inside):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    upload(tmp_path / folder / "covid_project_group21 (1).zip", inside)
    for _ in range(2):  # the next notebook finds it unpacked
        done = run_on_colab(tmp_path)
        assert done.returncode == 0, done.stderr
        project = Path(json.loads(done.stdout)[0])
        assert project == tmp_path / "covid_project_files" / inside.rstrip("/")


def test_without_the_zip_one_line_says_what_to_do(tmp_path):
    done = run_on_colab(tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "upload the project's zip to /content or to your Drive" in line


def test_a_notebook_is_run_from_a_folder_below_the_project(tmp_path):
    (tmp_path / "studies" / "deep").mkdir(parents=True)
    upload(tmp_path / "x.zip")
    zipfile.ZipFile(tmp_path / "x.zip").extractall(tmp_path)
    done = run("\n".join(FIRST) + SAY, tmp_path / "studies" / "deep")
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
    drive = tmp_path / "content" / "drive" / "MyDrive"
    for folder in (tmp_path / "project", drive):
        folder.mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"covid_xray\.zip was not found in .*DATA = ") as error:
        find_data()
    assert "\n" not in str(error.value)
    (drive / "covid_xray.zip").touch()
    assert find_data() == drive / "covid_xray.zip"
    (tmp_path / "project" / "covid_xray").mkdir()  # unpacked, beside the notebooks
    assert find_data() == tmp_path / "project" / "covid_xray"
    (tmp_path / "project" / "covid_xray.zip").touch()
    assert find_data() == tmp_path / "project" / "covid_xray.zip"
