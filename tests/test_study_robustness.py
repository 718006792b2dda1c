"""The robustness study: its settings and its training, and its notebook on a few drawn images."""

import shutil
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
from study_runs import run_study, small_profile

from covid_lab.runs import settings as lab_settings
from covid_lab.studies import drift_tables, robustness
from covid_lab.studies.perturbations import PERTURBATIONS, SEVERITIES
from covid_lab.studies.robustness import Recipe, auc, begin, load_settings, partly_perturbed, train
from covid_project.data import DataError
from covid_project.files import read_csv
from covid_project.settings import SettingsError

RECIPE = Recipe(
    loss="softmax", batch_size=8, learning_rate=1e-3, epochs=2, patience=2, stepped=True
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results folder of the notebook on a drawn colour file of five classes."""
    folder = tmp_path_factory.mktemp("study")
    values = small_profile("robustness")
    for recipe in values["recipes"].values():
        recipe |= {"epochs": 1, "batch_size": 16}
    del values["recipes"]["medmnist"]
    values |= {"resamples": 100, "shown": 1}
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 20), ("val", 15), ("test", 15)):
        labels = np.arange(n) % 5
        images = rng.integers(0, 120, (n, 20, 20, 3)) + 25 * labels[:, None, None, None]
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels[:, None]}
    np.savez(folder / "retinamnist.npz", **arrays)
    return run_study(folder, "robustness", values, "retinamnist.npz")


def test_the_notebook_writes_every_table_and_figure(finished):
    for name in ("counts", "recipes", "performance", "auc_losses", "balanced_errors",
                 "correlations", "detection", "flags", "constant_networks", "test_ledger",
                 "history_thesis_plain_21", "history_thesis_augmented_21"):  # fmt: skip
        assert (finished / f"{name}.csv").is_file(), name
    names = [
        "summary",
        "drift_and_loss_plain",
        "detection_augmented",
        "drift_boxes_plain",
        "images_maps_wrong_1",
    ]
    names += [f"drift_plain_severity{severity}" for severity in SEVERITIES]
    for name in names:
        assert (finished / "figures" / f"{name}.pdf").is_file(), name
    assert (finished / "notebooks" / "robustness.html").is_file()


def test_the_table_of_recipes_names_networks_beside_the_run(finished):
    recipes = pd.read_csv(finished / "recipes.csv")
    assert recipes[["recipe", "network", "seed"]].to_numpy().tolist() == [["thesis", 21, 21]]


def test_each_final_network_saw_the_test_set_once(finished):
    ledger = pd.read_csv(finished / "test_ledger.csv")
    assert ledger["stage"].tolist() == ["thesis_plain_21", "thesis_augmented_21"]
    assert (ledger["look"] == 1).all()


def test_the_grid_has_one_row_per_image_perturbation_severity_and_layer(finished):
    drifts = pd.read_csv(finished / "drift_thesis_plain_21_test.csv.gz")
    keys = ["image", "perturbation", "severity", "layer"]
    assert len(drifts) == 15 * 25 * 8
    assert not drifts.duplicated(keys).any()


def test_the_tables_hold_what_the_scores_say(finished):
    scores = pd.read_csv(finished / "scores_thesis_plain_21_test.csv.gz")
    clean = scores[scores["perturbation"] == "none"].filter(like="logit_").to_numpy()
    labels = np.arange(15) % 5
    performance = pd.read_csv(finished / "performance.csv", dtype={"network": str})
    found = performance.set_index(["training", "network", "metric"])["value"]
    assert found["plain", "21", "AUC"] == pytest.approx(auc(labels, clean))
    assert found["plain", "mean", "AUC"] == found["plain", "21", "AUC"]
    losses = pd.read_csv(finished / "auc_losses.csv")
    assert (losses.groupby("training").size() == 25).all()
    row = losses.iloc[0]
    assert row["auc"] + row["delta"] == pytest.approx(auc(labels, clean))


def test_all_tables_and_figures_follow_from_the_tables_per_image(finished, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    names = [path.name for path in finished.glob("*.csv*")]
    made = ("performance", "auc_losses", "balanced_errors", "correlations", "detection", "flags",
            "constant_networks")  # fmt: skip
    for name in (*(f"{name}.csv" for name in made), "drift_by_layer.csv.gz"):
        assert name in names
        (again / name).unlink()
    (again / "figures" / "summary.pdf").unlink()
    drift_tables.recompute(again, finished.parent / "retinamnist.npz")
    for name in names:
        first, second = (pd.read_csv(folder / name) for folder in (finished, again))
        pd.testing.assert_frame_equal(first, second, rtol=1e-9, obj=name)
    assert (again / "figures" / "summary.pdf").is_file()


def test_a_share_of_the_images_is_perturbed(rng):
    images = rng.integers(0, 256, (400, 20, 20, 1), np.uint8)
    np.testing.assert_array_equal(partly_perturbed(images, 0.0, rng), images)
    changed = (partly_perturbed(images, 0.5, rng) != images).any(axis=(1, 2, 3))
    assert changed.mean() == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / 400))
    assert len(PERTURBATIONS) * len(SEVERITIES) == 25


@pytest.fixture(scope="module")
def trained():
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 2
    images = (rng.integers(0, 100, (24, 20, 20, 1)) + 120 * labels[:, None, None, None]).astype(
        np.uint8
    )
    return images, labels, train(
        (images, labels), (images, labels), RECIPE, classes=2, normalization="fixed", seed=1
    )  # fmt: skip


def test_the_kept_model_is_that_of_the_best_epoch(trained):
    images, labels, (model, history) = trained
    logits = model(images.astype(np.float32), training=False).numpy()
    assert auc(labels, logits) == pytest.approx(history["val_auc"].max())
    # Half and three quarters of two epochs both lie before the second.
    np.testing.assert_allclose(history["learning_rate"], [1e-3, 1e-5])


def test_training_is_repeatable_with_the_other_loss_and_perturbed_images(trained):
    images, labels, _ = trained
    recipe = replace(RECIPE, loss="sigmoid per class", epochs=1, stepped=False)
    found = [
        train((images, labels), (images, labels), recipe, classes=2, normalization="fixed",
              perturbed_share=0.5)[1]
        for _ in range(2)
    ]  # fmt: skip
    pd.testing.assert_frame_equal(*(one.drop(columns="seconds") for one in found))


def test_every_epoch_takes_the_images_in_another_order(trained, monkeypatch):
    """Keras' own shuffle, where operations are deterministic, repeats its first order."""
    images, labels, _ = trained
    numbered = images.copy()
    numbered[:, 0, 0, 0] = np.arange(len(images))
    orders, fit = [], keras.Model.fit

    def watched(model, x, y, **how):
        assert how["shuffle"] is False
        orders.append(x[:, 0, 0, 0].astype(int))
        np.testing.assert_array_equal(y.argmax(axis=1), labels[orders[-1]])
        return fit(model, x, y, **how)

    monkeypatch.setattr(keras.Model, "fit", watched)
    recipe = replace(RECIPE, epochs=3)
    train((numbered, labels), (images, labels), recipe, classes=2, normalization="fixed")
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(len(images)))
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("cut", [1, 3])
def test_a_training_that_was_cut_off_goes_on_to_the_same_result(
    cut, trained, tmp_path, monkeypatch
):
    images, labels, _ = trained
    monkeypatch.setattr(robustness, "KEEP_EVERY", 0)
    recipe = replace(RECIPE, epochs=4, patience=3)

    def trained_to_the_end(**how):
        return train((images, labels), (images, labels), recipe, classes=2,
                     normalization="fixed", perturbed_share=0.5, seed=5, **how)  # fmt: skip

    whole, history = trained_to_the_end()
    under_way, measured = tmp_path / "training.npz", iter(range(cut))

    def killed(*scores):
        next(measured)  # StopIteration: the process is gone
        return auc(*scores)

    monkeypatch.setattr(robustness, "auc", killed)
    with pytest.raises(StopIteration):
        trained_to_the_end(under_way=under_way)
    monkeypatch.setattr(robustness, "auc", auc)
    fits, fit = [], keras.Model.fit
    monkeypatch.setattr(keras.Model, "fit", lambda *all, **how: fits.append(1) or fit(*all, **how))
    again, rest = trained_to_the_end(under_way=under_way)
    assert len(fits) == len(history) - cut
    pd.testing.assert_frame_equal(*(one.drop(columns="seconds") for one in (history, rest)))
    for one, other in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


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
