"""Losses that are not finite, and sets so small or so equal that a metric means nothing."""

import math

import keras
import numpy as np
import pytest

from covid_lab.calibration import calibration, reliability
from covid_lab.statistics import class_metrics
from covid_lab.training import fit
from covid_project.evaluation import (
    METRICS,
    accuracy_difference,
    auc_difference,
    metrics_table,
    point_metrics,
)
from covid_project.pipeline import evaluation_batches
from covid_project.training import set_seed

SEED = 25


def naive(labels, scores) -> dict[str, float]:
    """Every metric by its definition, NaN where it divides by zero."""
    pairs = list(zip(labels, scores, strict=True))
    tp = sum(1 for y, s in pairs if y and s > 0)
    fp = sum(1 for y, s in pairs if not y and s > 0)
    fn = sum(1 for y, s in pairs if y and not s > 0)
    tn = len(pairs) - tp - fp - fn

    def share(over, under):
        return over / under if under else math.nan

    wins = [
        (s > t) + 0.5 * (s == t) for y, s in pairs if y for label, t in pairs if not label
    ]  # every pair of a positive and a negative
    return {
        "accuracy": share(tp + tn, len(pairs)),
        "sensitivity": share(tp, tp + fn),
        "specificity": share(tn, tn + fp),
        "precision": share(tp, tp + fp),
        "F1": share(2 * tp, 2 * tp + fp + fn),
        "AUC": share(sum(wins), len(wins)),
        "MCC": share(
            tp * tn - fp * fn, math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        ),
    }  # fmt: skip


SMALL = {
    "one positive image": ([1], [0.3]),
    "one negative image": ([0], [0.3]),
    "one image, score 0": ([1], [0.0]),
    "one of each class": ([0, 1], [-1.0, 2.0]),
    "one of each class, reversed": ([0, 1], [2.0, -1.0]),
    "all scores equal": ([0, 1, 0, 1, 1], [0.7] * 5),
    "all scores 0": ([0, 1, 0, 1, 1], [0.0] * 5),
    "one class alone": ([1, 1, 1], [-1.0, 0.5, 2.0]),
    "a class with one image": ([0, 0, 0, 0, 1], [-1.0, 0.5, 2.0, 0.1, 0.3]),
    "nothing predicted positive": ([0, 1, 1], [-1.0, -2.0, -3.0]),
    "enormous scores": ([0, 1, 1, 0], [-1e300, 1e300, 1e-300, -1e-300]),
}


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.filterwarnings("error")
def test_metrics_of_small_sets_are_right_or_undefined(case, record):
    labels, scores = map(np.array, SMALL[case])
    expected = naive(labels, scores)
    found = point_metrics(labels, scores)
    table = metrics_table(labels, scores).set_index("metric")
    for name in METRICS:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)
        np.testing.assert_allclose(table["value"][name], expected[name], rtol=1e-12)
        low, high = table["low"][name], table["high"][name]
        if math.isnan(expected[name]):
            assert math.isnan(low)
            assert math.isnan(high)
        else:
            assert math.isnan(low) or low <= expected[name] <= high
        undefined = "undefined (NaN)" if math.isnan(expected[name]) else "right"
        record("numbers", f"{case}: {name}", undefined, SEED)
    assert len(class_metrics(labels, scores, ("a", "b"))) == 6
    assert reliability(labels, scores)["n"].sum() == len(labels)
    assert 0 <= calibration(labels, scores)["ece"] <= 1
    same = accuracy_difference(labels, scores, scores)
    assert (same.difference, same.p_value) == (0, 1)
    auc = auc_difference(labels, scores, scores)
    few = min((labels == 0).sum(), (labels == 1).sum()) < 2
    assert math.isnan(auc.p_value) if few else auc.p_value == 1
    record("numbers", f"{case}: comparisons and calibration", "right or undefined (NaN)", SEED)


def network(scale: float = 1.0) -> keras.Model:
    set_seed(0)
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Rescaling(scale)(inputs)
    return keras.Model(inputs, keras.layers.Dense(1, name="logit")(keras.layers.Flatten()(x)))


def batches(labels, seed: int = 0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (len(labels), 4, 4, 1), dtype=np.uint8)
    return images, evaluation_batches(images, np.asarray(labels), 4)


def test_a_model_that_the_last_step_ruined_is_not_returned(record):
    # The loss of the last batch is finite, what it does to the weights is not.
    model = network()
    with pytest.raises(FloatingPointError, match="a weight is not finite"):
        fit(
            model, batches([0, 1, 0, 1])[1], learning_rate=1.0, epochs=1,
            optimizer=lambda learning_rate: keras.optimizers.SGD(1e38),
        )  # fmt: skip
    record("numbers", "weights that overflow in the last step", "the training fails", SEED)


def test_a_validation_loss_that_is_never_finite_fails_the_training(record):
    labels = [0, 1, 0, 1]
    images = np.full((4, 4, 4, 1), np.nan, np.float32)
    validation = evaluation_batches(images, np.array(labels))
    with pytest.raises(FloatingPointError, match="validation loss is not finite"):
        fit(
            network(1 / 255), batches(labels)[1], learning_rate=0.01, epochs=2,
            validation=validation, patience=2,
        )  # fmt: skip
    record("numbers", "a validation loss that is never finite", "the training fails", SEED)
