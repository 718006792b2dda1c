import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from covid_lab import phantoms, storage
from covid_lab.datasets import open_dataset
from covid_lab.runs.experiment import begin
from covid_lab.runs.settings import CACHE
from covid_project.data import DataError
from covid_project.files import read_csv, write_csv
from covid_project.results import MissingInput
from covid_project.settings import load_settings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Caches go to the test's own folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def settings(tiny_profile):
    return load_settings(tiny_profile)


@pytest.fixture
def experiment(settings):
    return begin(settings)


def test_arrays_of_splits_follow_the_table(experiment):
    table = experiment.dataset.table
    images, labels = experiment.arrays("train", "val", image_size=32)
    assert images.shape == (24, 32, 32, 1)
    assert images.dtype == np.uint8
    rows = table["split"].isin(["train", "val"])
    np.testing.assert_array_equal(labels, table["label"][rows])
    np.testing.assert_array_equal(images, experiment.images(32)[rows.to_numpy()])
    # The training rows come first: cached features of both splits rely on it.
    train = experiment.arrays("train", image_size=32)[0]
    np.testing.assert_array_equal(images[: len(train)], train)


def test_arrays_that_are_too_large_for_memory_are_the_same_on_disk(experiment, monkeypatch):
    held, labels = experiment.arrays("train", "val", image_size=32)
    monkeypatch.setattr("covid_project.experiment.IN_MEMORY", held.nbytes - 1)
    for _ in range(2):
        mapped, same = experiment.arrays("train", "val", image_size=32)
        assert isinstance(mapped, np.memmap)
        np.testing.assert_array_equal(mapped, held)
        np.testing.assert_array_equal(same, labels)
    other, _ = experiment.arrays("val", image_size=32)
    np.testing.assert_array_equal(other, held[-len(other) :])


def test_a_second_start_uses_the_phantoms_and_arrays_of_the_first(experiment, settings):
    experiment.images(32)
    before = {path: path.stat().st_mtime_ns for path in CACHE.rglob("*.p*")}
    again = begin(settings)
    again.images(32)
    assert {path: path.stat().st_mtime_ns for path in CACHE.rglob("*.p*")} == before
    assert again.dataset.fingerprint == experiment.dataset.fingerprint


def test_a_results_folder_of_other_data_is_refused_and_left_alone(experiment, tiny_profile):
    record = (experiment.results / "run.json").read_text()
    with pytest.raises(DataError, match="results of other data"):
        begin(load_settings(tiny_profile, changes={"phantoms.train": 9}))
    assert (experiment.results / "run.json").read_text() == record


@pytest.mark.parametrize("record", ["", "{", "[]", "{}", "null"])
def test_a_record_that_says_nothing_of_its_data_is_refused(experiment, settings, record):
    (experiment.results / "run.json").write_text(record)
    with pytest.raises(DataError, match=r"run\.json does not say what data"):
        begin(settings)


def test_identity_changes_with_the_settings_it_depends_on(experiment, tiny_profile):
    other = begin(load_settings(tiny_profile, changes={"normalization": "fixed"}))
    assert other.identity()["settings"] != experiment.identity()["settings"]
    assert experiment.identity(1)["settings"] != experiment.identity(2)["settings"]
    assert experiment.identity() == experiment.identity()


def test_rows_made_from_phantoms_say_so(experiment):
    assert experiment.identity()["data"].startswith("phantoms-")


def test_the_record_of_a_run_names_no_path_of_the_machine(experiment, tmp_path):
    for path in experiment.results.glob("*.*"):
        assert str(tmp_path) not in path.read_text(), path
    assert json.loads((experiment.results / "run.json").read_text())["source"] == "phantoms"


def test_missing_input_names_the_notebook(experiment):
    with pytest.raises(MissingInput, match=r"run baseline\.ipynb first"):
        experiment.table("metrics.csv", "baseline.ipynb")


def test_metrics_are_derived_from_the_saved_scores_and_replace_their_own(experiment, rng):
    labels = experiment.arrays("test", image_size=32)[1]
    scores = rng.normal(size=len(labels))
    source = {"backbone": "none", "weights": "from scratch"}
    experiment.evaluate_on_test("baseline", "m1", scores, source)
    experiment.record_metrics("baseline", "val", scores, source)
    experiment.evaluate_on_test("baseline", "m1", scores, source)
    metrics = read_csv(experiment.results / "metrics.csv")
    assert metrics.groupby(["stage", "split"]).size().tolist() == [7, 7]
    columns = {"stage", "split", "metric", "value", "low", "high", "n", "backbone", "weights",
               "data", "seed", "versions"}  # fmt: skip
    assert columns <= set(metrics)
    saved = read_csv(experiment.results / "scores_baseline_test.csv")
    np.testing.assert_array_equal(saved["score"], scores)
    accuracy = ((saved["score"] > 0) == saved["label"]).mean()
    row = metrics[(metrics["split"] == "test") & (metrics["metric"] == "accuracy")]
    assert row["value"].item() == accuracy


def test_figures_of_phantoms_say_so_in_name_and_title(experiment):
    plt = pytest.importorskip("matplotlib.pyplot")
    figure = plt.figure()
    experiment.save_figure(figure, "curve", "RANDOM weights")
    assert (experiment.results / "figures" / "phantom_curve.pdf").is_file()
    words = figure.texts[0].get_text()
    assert "phantoms" in words
    assert "RANDOM" in words


def test_the_same_figure_is_the_same_file(experiment):
    plt = pytest.importorskip("matplotlib.pyplot")
    path = experiment.results / "figures" / "phantom_curve.pdf"
    contents = []
    for _ in range(2):
        figure, axis = plt.subplots()
        axis.plot([1, 2])
        experiment.save_figure(figure, "curve")
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_phantoms_given_as_data_need_no_profile_that_draws(settings, tmp_path):
    # The record of the run was once refused: it named no data and could not draw any.
    drawn = phantoms.write_dataset(tmp_path / "drawn", {"train": 4, "val": 2, "test": 2}, 32, 3)
    given = dataclasses.replace(
        settings, data=str(drawn), phantoms=None, results=str(tmp_path / "given")
    )
    assert begin(given).dataset.is_phantom
    assert "data: drawn" in (tmp_path / "given" / "settings.yaml").read_text()


def test_a_figure_says_what_it_was_made_from(experiment):
    write_csv(experiment.results / "table.csv", pd.DataFrame({"a": [1]}))
    experiment.save_figure(plt.figure(), "drawing", made_from=["table.csv"])
    content = (experiment.results / "figures" / "phantom_drawing.pdf").read_bytes()
    fingerprint = storage.fingerprint((experiment.results / "table.csv").read_bytes())
    assert f"; table.csv={fingerprint}".encode() in content
    assert f"data={experiment.identity()['data']}".encode() in content


def test_a_replayed_stage_keeps_its_place_in_the_metrics(experiment, rng):
    labels = experiment.arrays("test", image_size=32)[1]
    scores = rng.normal(size=len(labels))
    for stage in ("baseline", "transfer", "baseline"):
        experiment.record_metrics(stage, "test", scores, {})
    stages = pd.read_csv(experiment.results / "metrics.csv")["stage"]
    assert list(dict.fromkeys(stages)) == ["baseline", "transfer"]


def test_a_study_opens_its_data_in_its_own_way(settings):
    opened = []

    def open_data(source, given):
        opened.append(given)
        return open_dataset(source)

    experiment = begin(settings, open_data)
    assert opened == [settings]
    assert experiment.dataset.is_phantom
