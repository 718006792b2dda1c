"""The robustness study: its settings and its training, and its notebook on a few drawn images."""

import shutil
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers
from study_runs import run_study, small_profile

from covid_lab.runs import settings as lab_settings
from covid_lab.studies import drift_tables, robustness
from covid_lab.studies.perturbations import SEVERITIES
from covid_lab.studies.robustness import Recipe, auc, begin, load_settings, partly_perturbed, train
from covid_project.data import DataError
from covid_project.files import read_csv
from covid_project.settings import SettingsError


@pytest.fixture(scope="module")
def finished(tmp_path_factory, python):
    """Results folder of the notebook on a drawn colour file of five classes."""
    folder = tmp_path_factory.mktemp("study")
    values = small_profile("robustness")
    values["recipes"]["thesis"] |= {"epochs": 1, "batch_size": 16}
    del values["recipes"]["medmnist"]
    values |= {"resamples": 100, "shown": 1}
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 20), ("val", 10), ("test", 10)):
        labels = np.arange(n) % 5
        images = rng.integers(0, 120, (n, 20, 20, 3)) + 25 * labels[:, None, None, None]
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels[:, None]}
    np.savez(folder / "retinamnist.npz", **arrays)
    return run_study(python, folder, "robustness", values, "retinamnist.npz")


TABLES = ("performance", "auc_losses", "balanced_errors", "correlations", "detection", "flags",
          "constant_networks")  # fmt: skip


def test_the_notebook_writes_every_table_and_figure(finished):
    for name in (*TABLES, "counts", "history_thesis_plain_21", "history_thesis_augmented_21"):
        assert (finished / f"{name}.csv").is_file(), name
    names = ["summary", "drift_and_loss_plain", "detection_augmented", "drift_boxes_plain"]
    names += ["images_maps_wrong_1"] + [f"drift_plain_severity{one}" for one in SEVERITIES]
    for name in names:
        assert (finished / "figures" / f"{name}.pdf").is_file(), name
    assert (finished / "notebooks" / "robustness.html").is_file()
    # Recipes are of networks beside the run; the test set is read once for each final network.
    recipes = pd.read_csv(finished / "recipes.csv")
    assert recipes[["recipe", "network", "seed"]].to_numpy().tolist() == [["thesis", 21, 21]]
    ledger = pd.read_csv(finished / "test_ledger.csv")
    assert ledger["stage"].tolist() == ["thesis_plain_21", "thesis_augmented_21"]
    assert (ledger["look"] == 1).all()


def test_the_tables_hold_what_the_scores_say(finished):
    drifts = pd.read_csv(finished / "drift_thesis_plain_21_test.csv.gz")
    keys = ["image", "perturbation", "severity", "layer"]
    assert len(drifts) == len(drifts[keys].drop_duplicates()) == 10 * 25 * 8
    scores = pd.read_csv(finished / "scores_thesis_plain_21_test.csv.gz")
    clean = scores[scores["perturbation"] == "none"].filter(like="logit_").to_numpy()
    expected = auc(np.arange(10) % 5, clean)
    performance = pd.read_csv(finished / "performance.csv", dtype={"network": str})
    found = performance.set_index(["training", "network", "metric"])["value"]
    assert found["plain", "21", "AUC"] == found["plain", "mean", "AUC"] == pytest.approx(expected)
    losses = pd.read_csv(finished / "auc_losses.csv")
    assert (losses.groupby("training").size() == 25).all()
    assert losses["auc"][0] + losses["delta"][0] == pytest.approx(expected)


def test_all_tables_and_figures_follow_from_the_tables_per_image(finished, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    names = [path.name for path in finished.glob("*.csv*")]
    for name in (*(f"{name}.csv" for name in TABLES), "drift_by_layer.csv.gz"):
        (again / name).unlink()
    (again / "figures" / "summary.pdf").unlink()
    drift_tables.recompute(again, finished.parent / "retinamnist.npz")
    for name in names:
        first, second = (pd.read_csv(folder / name) for folder in (finished, again))
        pd.testing.assert_frame_equal(first, second, rtol=1e-9, obj=name)
    assert (again / "figures" / "summary.pdf").is_file()


# ---- training -----------------------------------------------------------------------------------

RECIPE = Recipe(
    loss="softmax", batch_size=8, learning_rate=1e-2, epochs=2, patience=2, stepped=True
)


@pytest.fixture
def data(monkeypatch):
    """Images and labels, and a network that is small."""

    def small(size, normalization, *, classes, channels):
        x = images = keras.Input((size, size, channels))
        x = layers.Conv2D(4, 3, strides=2)(normalization(x))
        x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
        return keras.Model(images, layers.Dense(classes)(x))

    monkeypatch.setattr(robustness, "resnet18", small)
    labels = np.arange(24) % 2
    images = np.random.default_rng(0).integers(0, 100, (24, 20, 20, 1))
    return (images + 120 * labels[:, None, None, None]).astype(np.uint8), labels


def trained(data, recipe=RECIPE, **how):
    model, history = train(data, data, recipe, classes=2, normalization="fixed", **how)
    return model, history.drop(columns="seconds")


def test_the_kept_model_is_that_of_the_best_epoch(data):
    model, history = trained(data, seed=1, progress="small")
    logits = model(data[0].astype(np.float32), training=False).numpy()
    assert auc(data[1], logits) == pytest.approx(history["val_auc"].max())
    # Half and three quarters of two epochs both lie before the second.
    np.testing.assert_allclose(history["learning_rate"], [1e-2, 1e-4])
    with pytest.raises(FloatingPointError, match="no longer finite in epoch 1"):
        trained(data, replace(RECIPE, learning_rate=1e30, epochs=1))


def test_some_images_are_perturbed_and_training_is_repeatable(data, rng):
    images = rng.integers(0, 256, (400, 20, 20, 1), np.uint8)
    np.testing.assert_array_equal(partly_perturbed(images, 0.0, rng), images)
    changed = (partly_perturbed(images, 0.5, rng) != images).any(axis=(1, 2, 3))
    assert changed.mean() == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / 400))
    recipe = replace(RECIPE, loss="sigmoid per class", epochs=1, stepped=False)
    first, again = (trained(data, recipe, perturbed_share=0.5)[1] for _ in range(2))
    pd.testing.assert_frame_equal(first, again)


def test_every_epoch_takes_the_images_in_another_order(data, monkeypatch):
    """Keras' own shuffle, where operations are deterministic, repeats its first order."""
    images, labels = data
    images[:, 0, 0, 0] = np.arange(len(images))
    orders, fit = [], keras.Model.fit

    def watched(model, x, y, **how):
        assert how["shuffle"] is False
        orders.append(tuple(x[:, 0, 0, 0].astype(int)))
        np.testing.assert_array_equal(y.argmax(axis=1), labels[list(orders[-1])])
        return fit(model, x, y, **how)

    monkeypatch.setattr(keras.Model, "fit", watched)
    trained(data, replace(RECIPE, epochs=3, patience=3))
    assert all(sorted(order) == list(range(24)) for order in orders)
    assert len(set(orders)) == 3


def test_a_training_that_was_cut_off_goes_on_to_the_same_result(data, tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "KEEP_EVERY", 0)
    how = {"recipe": replace(RECIPE, epochs=3, patience=3), "perturbed_share": 0.5, "seed": 5}
    whole, history = trained(data, **how)
    how["under_way"], measured = tmp_path / "training.npz", iter(range(2))

    def killed(*scores):
        next(measured)  # StopIteration: the process is gone
        return auc(*scores)

    monkeypatch.setattr(robustness, "auc", killed)
    with pytest.raises(StopIteration):
        trained(data, **how)
    monkeypatch.setattr(robustness, "auc", auc)
    fits, fit = [], keras.Model.fit
    monkeypatch.setattr(keras.Model, "fit", lambda *all, **how: fits.append(1) or fit(*all, **how))
    again, rest = trained(data, **how)
    assert len(fits) == len(history) - 2 == 1
    pd.testing.assert_frame_equal(history, rest)
    for one, other in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


# ---- settings and data --------------------------------------------------------------------------


def test_unknown_settings_and_other_data_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="no data"):
        load_settings("robustness")
    with pytest.raises(SettingsError, match=r"recipes\.thesis\.loss"):
        load_settings(changes={"recipes.thesis.loss": "hinge"})
    with pytest.raises(DataError, match=r"no file .*give the path of a MedMNIST"):
        begin(load_settings(data=tmp_path / "breastmnist.npz", results=tmp_path / "made"))


def test_the_ledger_is_written_before_test_images_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lab_settings, "CACHE", tmp_path)
    small = {"phantoms": {"size": 32, "train": 4, "val": 2, "test": 3}}
    run = begin(load_settings(results=tmp_path / "made", changes=small))
    assert robustness.split(run, "val")[0].shape == (4, 28, 28, 1)
    with pytest.raises(DataError, match="test_split"):
        robustness.split(run, "test")
    assert not (run.folder / "test_ledger.csv").exists()
    images, labels = robustness.test_split(run, "plain", "fingerprint of the model")
    assert images.shape == (6, 28, 28, 1)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert read_csv(run.folder / "test_ledger.csv")["stage"].tolist() == ["plain"]
