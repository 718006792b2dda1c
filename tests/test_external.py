"""Final models on another collection: two drawn hospitals whose images differ in known ways."""

import json
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import HOUSE, SHARED
from image_files import as_folder, encoded
from keras import layers
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from covid_lab.audit.controls import draw_phantoms, plant_border, write_phantoms
from covid_lab.datasets import open_dataset
from covid_lab.external import adapted, command, figures
from covid_lab.external.figures import worst_errors
from covid_lab.external.models import (
    LEDGER,
    FinalModel,
    channels,
    enter,
    load_models,
    score_images,
)
from covid_lab.external.score import (
    BALANCED,
    called_positive,
    external_metrics,
    halves_control,
    score_quantiles,
)
from covid_lab.external.use import heat_on_lesions, marked_by_boxes, marked_by_masks, read_boxes
from covid_project.data import PHANTOM_MARK, DataError
from covid_project.files import read_csv, write_csv
from covid_project.models import WeightsUnavailable

SIDE = 48


def drawn_scores(rng, shift=0.0, n=200):
    labels = np.arange(n) % 2
    return labels, rng.normal(size=n) + 2 * labels - 1 + shift


def own_scores(rng, n):
    return pd.DataFrame(dict(zip(("label", "score"), drawn_scores(rng, n=n), strict=True)))


def one_logit(weights, bias, threshold=0.0):
    """A model whose logit is a weighted sum of what is brighter than a threshold."""
    images = keras.Input((SIDE, SIDE, 1), name="images")
    maps = layers.Conv2D(1, 3, padding="same", activation="relu", name="features")(images)
    model = keras.Model(images, layers.Dense(1, name="logit")(layers.Flatten()(maps)))
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, 1] = 1
    model.get_layer("features").set_weights([kernel, np.array([-threshold])])
    model.get_layer("logit").set_weights([weights.reshape(-1, 1), np.array([bias])])
    return model


def border_model():
    """How bright the left edge is. A model that knows nothing but a shortcut."""
    weights = np.zeros((SIDE, SIDE), np.float32)
    weights[:, 0] = 0.2 / SIDE
    return one_logit(weights, -0.2 * 60)


def loaded(model):
    return FinalModel("drawn", model, "fingerprint")


# ---- scores -------------------------------------------------------------------------------------


def test_grey_images_get_the_channels_of_a_colour_model(rng):
    colour = keras.Sequential([keras.Input((SIDE, SIDE, 3)), layers.Flatten(), layers.Dense(1)])
    images = rng.uniform(0, 255, (2, SIDE, SIDE, 1))
    found = channels(FinalModel("colour", colour, "f"), images)
    assert found.shape == (2, SIDE, SIDE, 3)
    assert (found == images).all()


def test_metrics_and_drop_agree_with_scikit_learn(rng):
    own = own_scores(rng, 200)
    labels, scores = drawn_scores(rng, shift=1.5)
    assert "drop" not in external_metrics(labels, scores)
    table = external_metrics(labels, scores, own).set_index("metric")
    expected = balanced_accuracy_score(labels, scores > 0)
    assert table.loc[BALANCED, "value"] == pytest.approx(expected)
    here, there = roc_auc_score(own["label"], own["score"]), roc_auc_score(labels, scores)
    assert table.loc["AUC", "drop"] == pytest.approx(here - there)
    assert (table["drop_low"] <= table["drop"]).all()
    assert (table["drop"] <= table["drop_high"]).all()
    assert table.loc["specificity", "drop_low"] > 0  # what a shift of all scores costs
    assert table.loc["AUC", "drop_low"] < 0 < table.loc["AUC", "drop_high"]  # and does not cost


def test_interval_of_a_drop_is_as_wide_as_of_two_independent_proportions(rng):
    own = own_scores(rng, 400)
    labels, scores = drawn_scores(rng, n=600)
    row = external_metrics(labels, scores, own).set_index("metric").loc["sensitivity"]
    p, q = row["own_value"], row["value"]
    expected = 2 * norm.ppf(0.975) * np.sqrt(p * (1 - p) / 200 + q * (1 - q) / 300)
    assert row["drop_high"] - row["drop_low"] == pytest.approx(expected, rel=0.1)


def test_two_halves_of_one_test_set_show_no_drop(rng):
    found = halves_control(own_scores(rng, 200))
    assert abs(found["drop"]) < 0.02
    assert found["flagged"] <= 0.1


def test_called_positive_and_quantiles(rng):
    found = called_positive({"others": np.array([-1.0, 2.0, 3.0, -0.5])})
    assert found.loc[0, ["value", "n"]].tolist() == [0.5, 4]
    labels, scores = drawn_scores(rng)
    table = score_quantiles(labels, scores).set_index("label")
    assert table.loc[1, "logit_50"] == pytest.approx(np.median(scores[labels == 1]))


def test_worst_errors_are_the_most_confident_of_each_kind():
    labels = np.array([0, 0, 0, 1, 1, 1])
    scores = np.array([1.0, 5.0, -1.0, -0.5, -3.0, 2.0])
    assert worst_errors(labels, scores).tolist() == [1, 0, 4, 3]
    assert len(worst_errors(np.tile(labels, 4), np.tile(scores, 4))) == 2 * figures.WORST


# ---- marked opacities ---------------------------------------------------------------------------


def test_heat_of_a_model_that_sees_the_opacity_and_of_one_that_sees_the_border():
    rng = np.random.default_rng(5)
    images, boxes = [], []
    for _ in range(12):
        image = np.full((SIDE, SIDE), 60, np.uint8)
        top, left = rng.integers(12, 30, 2)
        image[top : top + 8, left : left + 8] = 220
        image[:, :4] = 90
        images.append(image)
        boxes.append(np.array([[left, top, left + 8, top + 8]]) / SIDE)
    marked = marked_by_boxes("drawn", np.stack(images)[..., None], boxes)
    area = 64 / SIDE**2
    bright = one_logit(np.ones((SIDE, SIDE)) / SIDE**2, -0.5, threshold=180)
    seeing = heat_on_lesions(loaded(bright), marked)
    blind = heat_on_lesions(loaded(border_model()), marked)
    assert seeing["area"] == pytest.approx(area, rel=0.3)
    assert seeing["gain_low"] > 0.1
    assert blind["gain_high"] < seeing["gain_low"]


def test_boxes_and_masks_are_read_from_archives(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[16:32, 16:32] = 1
    files = {
        name: encoded(np.full((64, 64), 90, np.uint8)) for name in ("images/a.png", "images/b.png")
    }
    files["masks_opacity/a.png"] = encoded(mask)  # b has no mask: it is left out
    folder = as_folder(files, tmp_path / "lesions")
    marked = marked_by_masks(folder, 32)
    assert marked.images.shape == (1, 32, 32, 1)
    assert marked.lesions[0, 9:15, 9:15].all()
    assert marked.lesions.mean() == pytest.approx(1 / 16)
    two = [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.7, 0.9]]
    table = pd.DataFrame({"img": ["a", "b"], "boxes_fraction": [json.dumps(two), None]})
    table.to_csv(folder / "labels.csv", index=False)
    boxes = {name: places.tolist() for name, places in read_boxes(folder).items()}
    assert boxes == {"a": two}
    with pytest.raises(DataError, match="masks_opacity"):
        marked_by_masks(folder / "images", 32)


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    """Two drawn hospitals: only in the first does the border differ between the classes."""
    phantoms = draw_phantoms(60, SIDE, seed=3)
    images = plant_border(phantoms, 90, np.random.default_rng(0))
    files = {PHANTOM_MARK: b"{}"}
    for number, (image, label) in enumerate(zip(images, phantoms.labels, strict=True)):
        split = "val" if number % 60 >= 40 else "train"
        files[f"{split}/{('NORMAL', 'COVID')[label]}/{number}.png"] = encoded(image)
    first = as_folder(files, tmp_path_factory.mktemp("first"))
    others = draw_phantoms(40, SIDE, seed=4)
    second = tmp_path_factory.mktemp("second")
    write_phantoms(second, list(others.images), others)
    (second / PHANTOM_MARK).write_text("{}")
    return first, second


def test_a_model_of_the_border_fails_in_the_other_hospital(
    hospitals, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(adapted, "RESAMPLES", 6)
    first, second = hospitals
    border_model().save(tmp_path / "border.keras")
    home = open_dataset(first, as_found=True)
    own = home.table[["path", "label"]].assign(
        score=score_images(loaded(border_model()), home, np.arange(120))
    )
    write_csv(tmp_path / "own_scores" / "border.csv", own)
    out = tmp_path / "external" / "second"
    models = (tmp_path / "border.keras",)
    page = command.run(command.Request(models=models, data=second, own=first, out=out))
    metrics = read_csv(out / "metrics.csv").set_index("metric")
    assert metrics.loc["AUC", "low"] < 0.5 < metrics.loc["AUC", "high"]
    assert metrics.loc["AUC", "own_low"] > 0.8
    scores = read_csv(out / "scores_border.csv")
    auc = roc_auc_score(scores["label"], scores["score"])
    assert metrics.loc["AUC", "value"] == pytest.approx(auc)
    table = read_csv(out / adapted.TABLE)
    assert set(table["method"]) == {"plain", "mixture", "label shift"}
    assert set(table["set"]) == {"external", "own"}
    assert table["source"].unique().tolist() == [adapted.NOW]
    warning = "Warning: this site differs."
    assert f"border: {warning}" in capsys.readouterr().out
    controls = read_csv(out / "controls.csv").set_index("set")
    assert controls.loc["own validation split", "AUC"] > 0.9
    assert controls.loc["external", "low"] < 0.5 < controls.loc["external", "high"]
    text = " ".join(page.read_text("utf-8").split())
    assert "drawn, not of patients" in text
    assert warning in text
    assert "uses the unlabelled images of this hospital" in text
    assert "earlier reading" not in text
    record = json.loads((out / "external.json").read_text("utf-8"))
    assert record["phantoms"]
    assert list(record["models"]) == ["border"]
    ledger = read_csv(tmp_path / "external" / LEDGER)
    assert ledger[["name", "look"]].to_numpy().tolist() == [["border", 1]]


def test_the_same_model_counts_once_and_another_of_its_name_twice(tmp_path, capsys):
    first = loaded(border_model())
    for _ in range(2):
        assert enter(tmp_path, first, "data", "images", "versions") == 1
    other = replace(first, fingerprint="another")
    assert enter(tmp_path, other, "data", "images", "versions") == 2
    assert "evaluation number 2" in capsys.readouterr().out
    assert len(read_csv(tmp_path / LEDGER)) == 2


# ---- refusals -----------------------------------------------------------------------------------


def test_models_that_cannot_be_tested_are_named(tmp_path):
    with pytest.raises(DataError, match="no such model"):
        load_models([tmp_path / "none.keras"])
    images = keras.Input((SIDE, SIDE, 1))
    keras.Model(images, layers.Dense(3)(layers.Flatten()(images))).save(tmp_path / "three.keras")
    with pytest.raises(DataError, match="one logit"):
        load_models([tmp_path / "three.keras"])
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        border_model().save(tmp_path / folder / "same.keras")
    with pytest.raises(DataError, match="another name"):
        load_models([tmp_path / "a" / "same.keras", tmp_path / "b" / "same.keras"])


def test_a_split_that_is_not_there_is_named(hospitals, tmp_path):
    path = tmp_path / "border.keras"
    border_model().save(path)
    with pytest.raises(DataError, match="no split 'val'"):
        command.run(command.Request(models=(path,), data=hospitals[1], split="val", out=tmp_path))


# ---- the committed results ----------------------------------------------------------------------


def test_committed_external_metrics_follow_from_the_committed_scores():
    found = sorted((HOUSE / "results" / "external").glob("*/metrics.csv"))
    if not found:
        pytest.skip("no external test is committed")
    for path in found:
        table = read_csv(path).set_index(["model", "metric"])
        for model in table.index.get_level_values(0).unique():
            scores = read_csv(path.with_name(f"scores_{model}.csv"))
            again = roc_auc_score(scores["label"], scores["score"])
            assert table.loc[(model, "AUC"), "value"] == pytest.approx(again)


def test_committed_models_give_the_committed_scores():
    folder, data = HOUSE / "results" / "external", SHARED / "data" / "external_siim.zip"
    if not data.is_file():
        pytest.skip("the other hospital's images are not at hand (../shared/data)")
    dataset = open_dataset(data, as_found=True)
    for name in ("two_exits_elsewhere", "two_exits_labelled_elsewhere"):
        try:
            (model,) = load_models([folder / "mitigation" / f"{name}.json"])
        except WeightsUnavailable as error:
            pytest.skip(str(error))
        saved = read_csv(folder / "external_siim" / f"scores_{name}.csv").iloc[::243]
        rows = dataset.table.reset_index().set_index("path").loc[saved["path"], "index"]
        again = score_images(model, dataset, rows.to_numpy())
        np.testing.assert_allclose(again, saved["score"], rtol=1e-3, atol=1e-3)
