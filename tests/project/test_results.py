import json
import re

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import write_images

from covid_project.data import DataError
from covid_project.files import fingerprint, read_csv, write_csv, write_text
from covid_project.images import decode, resize
from covid_project.models import baseline_cnn, logits, model_fingerprint
from covid_project.normalization import normalization_layer
from covid_project.results import MissingInput, open_run
from covid_project.settings import load_settings


@pytest.fixture
def settings(image_folder, tmp_path):
    return load_settings(data=image_folder, results=tmp_path / "results")


@pytest.fixture
def run(settings):
    return open_run(settings)


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return baseline_cnn(32, normalization_layer("fixed", None), filters=2, dropout=0.1)


def test_arrays_of_splits_follow_the_table(run, image_folder):
    table = run.dataset.table
    images, labels = run.arrays("train", "val", image_size=16)
    assert images.shape == (36, 16, 16, 1)
    assert images.dtype == np.uint8
    rows = table["split"].isin(["train", "val"])
    np.testing.assert_array_equal(labels, table["label"][rows])
    path = table["path"][rows].iloc[30]
    expected = resize(decode((image_folder / path).read_bytes(), path), (16, 16))
    np.testing.assert_array_equal(images[30, ..., 0], expected)
    # The training rows come first: cached features of both splits rely on it.
    np.testing.assert_array_equal(images[:24], run.arrays("train", image_size=16)[0])


# ---- the test split -----------------------------------------------------------------------------


def test_test_images_come_only_after_an_entry_in_the_ledger(run, model):
    for read in (
        lambda: run.arrays("test", image_size=16),
        lambda: run.arrays("train", "test", image_size=16),
        lambda: run.files("test", 16),
    ):
        with pytest.raises(DataError, match=r"run\.test_split"):
            read()
    assert not (run.folder / "test_ledger.csv").exists()
    images, labels = run.test_split("baseline", model, 16)
    assert images.shape == (12, 16, 16, 1)
    assert labels.tolist() == [0] * 6 + [1] * 6
    ledger = read_csv(run.folder / "test_ledger.csv")
    assert ledger[["stage", "look", "model"]].to_numpy().tolist() == [
        ["baseline", 1, model_fingerprint(model)]
    ]


def test_the_ledger_is_written_before_the_images_are_read(run, model, image_folder):
    for path in image_folder.glob("test/*/*"):
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot be read"):
        run.test_split("baseline", model, 16)
    assert len(read_csv(run.folder / "test_ledger.csv")) == 1


def test_a_repetition_adds_no_row_and_another_model_does(run, model, capsys):
    run.test_split("exploration", None, 16)
    for _ in range(2):
        run.test_split("baseline", model, 16)
    assert "WARNING" not in capsys.readouterr().out
    model.get_layer("logit").bias.assign([1.0])
    run.test_split("baseline", model, 16)
    assert "WARNING: test evaluation number 2 of the stage baseline" in capsys.readouterr().out
    ledger = read_csv(run.folder / "test_ledger.csv")
    assert ledger["stage"].tolist() == ["exploration", "baseline", "baseline"]
    assert ledger["look"].tolist() == [1, 1, 2]


def test_test_metrics_need_an_entry_in_the_ledger(run):
    with pytest.raises(RuntimeError, match=r"call run\.test_split before"):
        run.record_metrics("baseline", "test", np.zeros(12))


# ---- tables -------------------------------------------------------------------------------------


def test_metrics_follow_from_the_saved_scores_and_replace_their_own(run, model, rng):
    scores = rng.normal(size=12)
    run.test_split("baseline", model, 16)
    run.test_split("fine_tuned", None, 16)
    for stage, split in (("baseline", "val"), ("baseline", "test"), ("fine_tuned", "test"),
                         ("baseline", "test")):  # fmt: skip
        run.record_metrics(stage, split, scores, backbone="none")
    metrics = read_csv(run.folder / "metrics.csv")
    groups = metrics.groupby(["stage", "split"], sort=False).size()
    assert groups.to_dict() == {
        ("baseline", "val"): 7, ("baseline", "test"): 7, ("fine_tuned", "test"): 7,
    }  # fmt: skip
    assert {"metric", "value", "low", "high", "n", "backbone", "data", "seed", "versions"} <= set(
        metrics
    )
    saved = read_csv(run.folder / "scores_baseline_test.csv")
    np.testing.assert_array_equal(saved["score"], scores)
    np.testing.assert_array_equal(run.scores("baseline", "test", "x"), scores)
    accuracy = ((saved["score"] > 0) == saved["label"]).mean()
    row = metrics[(metrics["split"] == "test") & (metrics["metric"] == "accuracy")].iloc[0]
    assert row["value"] == accuracy


def test_the_identity_changes_with_what_it_depends_on_and_nothing_else(run, settings, tmp_path):
    augmentation = settings.augmentation
    assert run.identity(1)["settings"] != run.identity(2)["settings"]
    assert run.identity(augmentation) == run.identity(augmentation)
    other = load_settings(
        data=settings.data, results=settings.results, changes={"normalization": "fixed"}
    )
    # Another normalisation belongs to the baseline; the search of task 3 stays valid.
    assert open_run(other).identity(augmentation) == run.identity(augmentation)


def test_missing_input_names_the_notebook(run):
    with pytest.raises(MissingInput, match=r"metrics\.csv is missing: run baseline\.ipynb first"):
        run.table("metrics", "baseline.ipynb")
    with pytest.raises(MissingInput, match=r"baseline\.keras is missing: run baseline\.ipynb"):
        run.load_model("baseline", "baseline.ipynb")


def test_the_record_names_no_path_of_the_machine(run, tmp_path):
    for path in run.folder.glob("*.*"):
        assert str(tmp_path) not in path.read_text(), path
    record = json.loads((run.folder / "run.json").read_text())
    assert record["source"] == "covid_xray"
    assert record["phantoms"] is False


# ---- the folder ---------------------------------------------------------------------------------


def test_a_folder_of_other_data_is_refused_and_left_alone(run, settings, image_folder):
    record = (run.folder / "run.json").read_text()
    next(image_folder.glob("train/COVID/*")).unlink()
    with pytest.raises(DataError, match="results of other data"):
        open_run(settings)
    assert (run.folder / "run.json").read_text() == record


@pytest.mark.parametrize("record", ["", "{", "[]", "{}", "null"])
def test_a_record_that_says_nothing_of_its_data_is_refused(run, settings, record):
    (run.folder / "run.json").write_text(record)
    with pytest.raises(DataError, match=r"run\.json does not say which data"):
        open_run(settings)


@pytest.mark.parametrize("kept", [(), ("baseline.keras", "fine_tuned_top.keras")])
def test_handed_in_tables_are_not_overwritten(settings, image_folder, tmp_path, monkeypatch, kept):
    handed_in = tmp_path / "project" / "results"
    write_csv(handed_in / "metrics.csv", pd.DataFrame({"stage": ["baseline"]}))
    for name in kept:
        write_text(handed_in / "models" / name, "a model")
    monkeypatch.setattr("covid_project.settings.PROJECT", handed_in.parent)
    first = open_run(load_settings(data=image_folder))
    assert first.folder == handed_in.with_name("results_rerun")
    assert open_run(load_settings(data=image_folder)).folder == first.folder
    assert {path.name for path in handed_in.iterdir()} <= {"metrics.csv", "models"}


def test_a_run_of_ones_own_continues_in_its_folder(image_folder, tmp_path, monkeypatch, model):
    monkeypatch.setattr("covid_project.settings.PROJECT", tmp_path)
    run = open_run(load_settings(data=image_folder))
    run.save_model("baseline_tuned", model, pd.DataFrame({"epoch": [1]}), {})
    write_csv(run.folder / "metrics.csv", pd.DataFrame({"stage": ["baseline"]}))
    assert open_run(load_settings(data=image_folder)).folder == run.folder == tmp_path / "results"


# ---- models -------------------------------------------------------------------------------------


def test_a_model_comes_back_as_it_was_saved(run, model, rng):
    images = rng.integers(0, 256, (4, 32, 32, 1), dtype=np.uint8)
    history, recipe = pd.DataFrame({"epoch": [1, 2], "loss": [0.5, 0.4]}), {"rate": 0.1}
    model.compile("adam", "mse")
    run.save_model("baseline", model, history, recipe)
    again = run.load_model("baseline", "baseline.ipynb")
    np.testing.assert_array_equal(logits(again, images), logits(model, images))
    pd.testing.assert_frame_equal(run.load_history("baseline"), history)
    assert model_fingerprint(again) == model_fingerprint(model)


def test_a_finished_model_is_known_by_its_recipe(run, model):
    recipe = {"rate": 0.1, "versions": "tensorflow 2.20"}
    assert not run.has_model("baseline")
    run.save_model("baseline", model, pd.DataFrame({"epoch": [1]}), recipe)
    assert run.has_model("baseline")
    assert run.has_model("baseline", recipe)
    assert run.has_model("baseline", {**recipe, "versions": "tensorflow 2.21"})
    assert not run.has_model("baseline", {**recipe, "rate": 0.2})


def test_a_model_whose_saving_was_cut_off_is_not_finished(run, model, monkeypatch):
    run.save_model("baseline", model, pd.DataFrame({"epoch": [1]}), {"rate": 0.1})

    def cut_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("covid_project.results.write_csv", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run.save_model("baseline", model, pd.DataFrame({"epoch": [1]}), {"rate": 0.2})
    assert not run.has_model("baseline")


# ---- figures ------------------------------------------------------------------------------------


def test_a_figure_says_what_it_was_made_from_and_is_the_same_file_each_time(run):
    write_csv(run.folder / "table.csv", pd.DataFrame({"a": [1]}))
    contents = []
    for _ in range(2):
        figure, axis = plt.subplots()
        axis.plot([1, 2])
        run.save_figure(figure, "curve", "table.csv", note="RANDOM weights")
        contents.append((run.folder / "figures" / "curve.pdf").read_bytes())
    assert contents[0] == contents[1]
    stamp = re.search(rb"/Keywords \(([^)]*)\)", contents[0]).group(1).decode()
    table = fingerprint((run.folder / "table.csv").read_bytes())
    assert stamp == f"data={run.dataset.fingerprint}; table.csv={table}"
    assert figure.texts[0].get_text() == "RANDOM weights"


def test_figures_of_drawn_images_say_so(tmp_path):
    folder = write_images(tmp_path / "drawn", {"train": 2, "val": 2, "test": 2})
    (folder / "phantoms.json").write_text("{}")
    run = open_run(load_settings(data=folder, results=tmp_path / "results"))
    figure = plt.figure()
    run.save_figure(figure, "curve")
    assert "drawn images" in figure.texts[0].get_text()
    assert json.loads((run.folder / "run.json").read_text())["phantoms"] is True
