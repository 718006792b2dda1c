"""What users add is added in one place: docs/architecture.md, "Where to add what"."""

import subprocess

import keras
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import SMALL, copy_project, write_images
from sklearn.metrics import balanced_accuracy_score

from covid_lab.audit.protocol import audit_protocol
from covid_project import data, figures
from covid_project.data import open_dataset
from covid_project.evaluation import METRICS, Metric, metrics_table
from covid_project.models import BACKBONES, Backbone, build_backbone, split_at
from covid_project.results import open_run
from covid_project.settings import PROJECT, SettingsError, load_settings
from covid_project.tuning import search


def test_a_backbone(monkeypatch, image_folder, tmp_path):
    def tiny_net(include_top, weights, input_tensor):
        x = keras.layers.Conv2D(4, 3, strides=4, activation="relu", name="first")(input_tensor)
        x = keras.layers.Conv2D(6, 3, activation="relu", name="second")(x)
        return keras.Model(keras.utils.get_source_inputs(input_tensor), x)

    changes = {"transfer.backbone": "TinyNet"}
    with pytest.raises(SettingsError, match=r"transfer.backbone is 'TinyNet'; allowed: ResNet50V2"):
        load_settings(data=image_folder, changes=changes)
    monkeypatch.setitem(BACKBONES, "TinyNet", Backbone(tiny_net, "first"))
    settings = load_settings(data=image_folder, changes=changes)
    backbone = build_backbone(settings.transfer.backbone, 32, weights="random")
    assert backbone.output_shape == (None, 6)
    lower, upper = split_at(backbone, BACKBONES["TinyNet"].frozen_up_to)
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 1)).astype(np.float32)
    np.testing.assert_allclose(upper(lower(images)), backbone(images), rtol=1e-5)


def test_a_metric(monkeypatch, image_folder, tmp_path, rng):
    def balanced(tn, fp, fn, tp):
        return (tp / (tp + fn) + tn / (tn + fp)) / 2

    monkeypatch.setitem(METRICS, "balanced accuracy", Metric(from_counts=balanced))
    labels = np.arange(60) % 2
    scores = rng.normal(size=60) + labels
    row = metrics_table(labels, scores).set_index("metric").loc["balanced accuracy"]
    assert row["value"] == pytest.approx(balanced_accuracy_score(labels, scores > 0))
    assert row["low"] < row["value"] < row["high"]
    run = open_run(load_settings(data=image_folder, results=tmp_path / "results"))
    run.enter_test("baseline", "m")
    table = run.record_metrics("baseline", "test", rng.normal(size=12), backbone="none",
                               weights="from scratch")  # fmt: skip
    assert "balanced accuracy" in figures.intervals(table).axes[0].get_yticklabels()[-1].get_text()
    findings = {finding.check: finding.verdict for finding in audit_protocol(run.folder)}
    assert findings["metrics follow from the saved scores"] == "pass"


def test_a_hyperparameter(image_folder, tmp_path):
    """The number of dense units is searched by naming it in the settings, nothing else."""
    one_value = {"plus": 1, "low": 4, "high": 4, "values": [4]}
    baseline = {
        "start": {"learning_rate": 0.004, "dropout": 0.4, "filters": 4, "batch_size": 8,
                  "dense_units": 4},
        "search": {**SMALL["baseline"]["search"],
                   "batch_size": {"values": [8], "times": 2, "low": 8, "high": 8},
                   "dense_units": {**one_value, "values": [4, 6], "plus": 2, "high": 6}},
    }  # fmt: skip
    changes = {f"baseline.{key}": value for key, value in baseline.items()}
    settings = load_settings(data=image_folder, results=tmp_path / "results", changes=changes)
    run = open_run(settings)
    images, labels = run.arrays("train", image_size=32)
    code = "\n".join(
        cell.source
        for cell in nbformat.read(PROJECT / "baseline.ipynb", as_version=4).cells
        if cell.cell_type == "code" and cell.source.startswith("def new_model")
    )
    names = {"settings": settings}
    exec("from covid_project.training import set_seed\n"
         "from covid_project.normalization import normalization_layer\n"
         "from covid_project.models import baseline_cnn\n" + code, names)  # fmt: skip
    units = []

    def run_trial(hyperparameters):
        model = names["new_model"](hyperparameters, images)
        units.append(model.get_layer("dense").units)
        history = pd.DataFrame({"epoch": [1], "loss": [1.0]})
        history.attrs["initial_model"] = "f"
        return model, history

    axes = settings.baseline.search
    trials = search(run, "baseline", axes, settings.baseline.start, run_trial, (images, labels),
                    strategy="one at a time", identity={})  # fmt: skip
    assert {4, 6} <= set(units)
    assert set(trials["dense_units"]) == {4, 6}
    assert len(figures.tuning(trials, axes).axes) == 5


def test_a_data_layout(monkeypatch, tmp_path):
    """Files that lie in folders named ``train-COVID`` and so on."""
    write_images(tmp_path / "images", {"train": 3, "val": 3, "test": 3})
    for folder in list((tmp_path / "images").glob("*/*")):
        folder.rename(tmp_path / "images" / f"{folder.parent.name}-{folder.name}")
    with pytest.raises(data.DataError, match="no class folder"):
        open_dataset(tmp_path / "images")

    def joined_folders(folders):
        split, dash, name = folders[-1].partition("-") if folders else ("", "", "")
        return (folders[:-1], name, split) if dash else None

    monkeypatch.setattr(data, "LAYOUTS", [*data.LAYOUTS, joined_folders])
    dataset = open_dataset(tmp_path / "images")
    assert dataset.table.groupby(["split", "label"]).size().tolist() == [3] * 6


STUDY = '''"""A study of how bright the images are."""

from dataclasses import dataclass
from functools import partial

from covid_lab.datasets import open_dataset
from covid_lab.runs import experiment
from covid_lab.runs.settings import RunSettings, load_study


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Nothing beyond what every study has."""


load_settings = partial(load_study, Settings, "brightness")


def begin(settings):
    """Open the data and the results folder."""
    return experiment.begin(settings, lambda source, settings: open_dataset(source))
'''


def test_a_study(tmp_path, python):
    """A module, a notebook and a file of settings, all of the same name."""
    project = copy_project(tmp_path / "project")
    (project / "covid_lab" / "studies" / "brightness.py").write_text(STUDY)
    small = {"size": 32, "train": 2, "val": 2, "test": 2}
    profile = {"data": None, "results": "made", "seed": 1, "expected_seconds": {},
               "phantoms": None, "demo": {"phantoms": small}}  # fmt: skip
    (project / "profiles" / "brightness.yaml").write_text(yaml.safe_dump(profile))
    first = nbformat.read(project / "baseline.ipynb", as_version=4).cells
    setup = [cell for cell in first if cell.cell_type == "code"][:3]
    code = (
        "from covid_lab.studies.brightness import begin, load_settings\n"
        "run = begin(load_settings(SETTINGS, data=DATA, results=RESULTS))\n"
        "print('mean', run.arrays('train', image_size=8)[0].mean())"
    )
    cells = [*setup, nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), project / "studies" / "brightness.ipynb")
    command = [python, "-m", "covid_lab", "run", "--study", "brightness"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mean" in done.stdout
    assert (project / "made" / "notebooks" / "brightness.ipynb").is_file()
