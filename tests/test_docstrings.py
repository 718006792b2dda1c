"""The examples in docstrings run, and every function that the four notebooks call has one.

Examples of the course package may use ``run``, ``settings``, ``images``, ``labels`` and ``model``
as the notebooks have them. In the working directory are ``covid_xray.zip``, its folder and
``model.keras``.
"""

import ast
import doctest
import importlib
import inspect
import shutil

import keras
import matplotlib.pyplot as plt
import nbformat
import pytest
from conftest import HOUSE, write_images

from covid_project.models import baseline_cnn
from covid_project.results import open_run
from covid_project.settings import load_settings

MODULES = [
    ".".join(path.relative_to(HOUSE).with_suffix("").parts)
    for package in ("covid_project", "covid_lab")
    for path in sorted((HOUSE / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    write_images(folder / "covid_xray", {"train": 12, "val": 6, "test": 6}, size=32)
    shutil.make_archive(folder / "covid_xray", "zip", folder, "covid_xray")
    new_model().save(folder / "model.keras")
    return folder


def new_model():
    layer = keras.layers.Rescaling(1 / 127.5, offset=-1)
    return baseline_cnn(32, layer, filters=4, dropout=0.4)


@pytest.fixture
def course(folder, tmp_path):
    run = open_run(load_settings(data=folder / "covid_xray.zip", results=tmp_path / "results"))
    images, labels = run.arrays("train", image_size=32)
    given = {"run": run, "settings": run.settings, "images": images, "labels": labels}
    return given | {"model": new_model()}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, folder, request, monkeypatch, capsys):
    given = request.getfixturevalue("course") if name.startswith("covid_project.") else {}
    capsys.readouterr()
    monkeypatch.chdir(folder)
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs=given, optionflags=doctest.ELLIPSIS)
    plt.close("all")
    assert result.attempted > 0, "all examples are skipped"
    assert result.failed == 0, capsys.readouterr().out


def called_by_notebooks():
    """Yield what the four notebooks import of the course package."""
    for path in HOUSE.glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        tree = ast.parse("\n".join(cell.source for cell in cells if cell.cell_type == "code"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("covid_project."):
                module = importlib.import_module(node.module)
                yield from (getattr(module, alias.name) for alias in node.names)
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "figures":
                yield getattr(importlib.import_module("covid_project.figures"), node.attr)


def test_what_the_notebooks_call_has_an_example():
    found = set(filter(callable, called_by_notebooks()))
    found = {item for item in found if not (inspect.isclass(item) and issubclass(item, Exception))}
    assert len(found) > 30
    assert not [item.__qualname__ for item in found if ">>> " not in (item.__doc__ or "")]
