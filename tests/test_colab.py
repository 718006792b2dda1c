import subprocess
import sys
import types

import pytest

from covid_project import colab


@pytest.fixture
def on_colab(monkeypatch, tmp_path):
    """Pretend to be on Colab; returns the commands that would have been run."""
    commands = []
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.chdir(tmp_path)
    return commands


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("ran a command"))
    assert colab.prepare() is None


def test_another_python_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    with pytest.raises(RuntimeError, match=r"Python 3\.12 is needed.*runtime"):
        colab.prepare()


def test_on_colab_the_requirements_are_installed_and_the_archive_is_found(on_colab, tmp_path):
    (tmp_path / "covid_xray.zip").touch()
    assert colab.prepare() == "covid_xray.zip"
    assert on_colab[0][-2:] == ["-r", "requirements.txt"]


def test_without_data_it_says_where_to_upload_them(on_colab, capsys):
    assert colab.prepare() is None
    assert "upload covid_xray.zip" in capsys.readouterr().out


def test_kagglehub_is_used_where_it_is_present(on_colab, monkeypatch):
    hub = types.ModuleType("kagglehub")
    hub.dataset_download = lambda name: f"/downloaded/{name}"
    hub.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "kagglehub", hub)
    assert colab.prepare() == "/downloaded/tawsifurrahman/covid19-radiography-database"


def test_a_study_without_a_set_on_kaggle_downloads_nothing_and_finds_its_folder(
    on_colab, monkeypatch, tmp_path
):
    hub = types.ModuleType("kagglehub")
    hub.dataset_download = lambda name: pytest.fail("downloaded something")
    hub.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "kagglehub", hub)
    assert colab.prepare("lung_nodules", kaggle=None) is None
    (tmp_path / "lung_nodules").mkdir()
    assert colab.prepare("lung_nodules", kaggle=None) == "lung_nodules"
