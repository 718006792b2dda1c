import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from covid_lab.calibration import calibration, reliability


@pytest.fixture
def scored(rng):
    scores = rng.normal(0, 2, 400)
    return (rng.random(400) < expit(scores)).astype(int), scores


def test_reliability_and_brier_score_are_those_of_scikit_learn(scored):
    labels, scores = scored
    observed, predicted = calibration_curve(labels, expit(scores), n_bins=10)
    table, found = reliability(labels, scores), calibration(labels, scores)
    np.testing.assert_allclose(table[["observed", "predicted"]].T, [observed, predicted])
    assert table["n"].sum() == 400
    assert (table["low"] <= observed).all()
    assert (observed <= table["high"]).all()
    gaps = np.abs(observed - predicted)
    assert found["ece"] == pytest.approx(np.average(gaps, weights=table["n"]))
    assert found["brier"] == pytest.approx(brier_score_loss(labels, expit(scores)))
    assert found["brier_low"] < found["brier"] < found["brier_high"]


def test_a_calibrated_model_is_found_so_and_an_overconfident_one_is_not(scored):
    labels, scores = scored
    assert calibration(labels, scores)["p_value"] > 0.05
    worse = calibration(labels, 4 * scores)
    assert worse["p_value"] < 0.01
    assert worse["ece"] > worse["expected"]
    same = calibration(np.array([1, 0, 0, 0]), np.full(4, logit(0.65)))
    assert same["ece"] == pytest.approx(0.65 - 0.25)


def test_p_values_of_calibrated_models_are_small_as_rarely_as_they_say(rng):
    small = 0
    for seed in range(40):
        scores = rng.normal(0, 2, 100)
        labels = (rng.random(100) < expit(scores)).astype(int)
        small += calibration(labels, scores, seed=seed)["p_value"] < 0.1
    assert small <= 10  # 4 expected, standard deviation 1.9


def test_certain_predictions_fall_into_the_outer_bins():
    labels, scores = np.array([0, 1]), np.array([-1000.0, 1000.0])
    assert reliability(labels, scores)["bin"].tolist() == [0, 9]
    assert calibration(labels, scores)["ece"] == 0
