import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from covid_lab.calibration import calibration, expected_calibration_error, reliability


@pytest.fixture
def scored(rng):
    scores = rng.normal(0, 2, 400)
    return (rng.random(400) < expit(scores)).astype(int), scores


def test_reliability_equals_scikit_learns_curve(scored):
    labels, scores = scored
    observed, predicted = calibration_curve(labels, expit(scores), n_bins=10)
    table = reliability(labels, scores)
    np.testing.assert_allclose(table["observed"], observed)
    np.testing.assert_allclose(table["predicted"], predicted)
    assert table["n"].sum() == len(labels)
    assert ((table["low"] <= table["observed"]) & (table["observed"] <= table["high"])).all()


def test_the_calibration_error_equals_a_loop_over_the_bins(scored):
    labels, scores = scored
    probability = expit(scores)
    total = 0.0
    for k in range(10):
        inside = (probability >= k / 10) & (probability < (k + 1) / 10)
        if inside.any():
            total += abs(labels[inside].mean() - probability[inside].mean()) * inside.sum()
    assert expected_calibration_error(labels, probability) == pytest.approx(total / 400)


def test_the_error_of_a_model_that_always_says_the_same_is_its_distance():
    labels = np.array([1, 0, 0, 0])
    found = calibration(labels, np.full(4, logit(0.65)))
    assert found["ece"] == pytest.approx(0.65 - 0.25)


def test_brier_equals_scikit_learns(scored):
    labels, scores = scored
    found = calibration(labels, scores)
    assert found["brier"] == pytest.approx(brier_score_loss(labels, expit(scores)))
    assert found["brier_low"] < found["brier"] < found["brier_high"]


def test_a_calibrated_model_is_found_so_and_an_overconfident_one_is_not(scored):
    labels, scores = scored
    assert calibration(labels, scores)["p_value"] > 0.05
    worse = calibration(labels, 4 * scores)
    assert worse["p_value"] < 0.01
    assert worse["ece"] > worse["expected"]


def test_p_values_of_calibrated_models_are_small_as_rarely_as_they_say(rng):
    small = 0
    for seed in range(60):
        scores = rng.normal(0, 2, 100)
        labels = (rng.random(100) < expit(scores)).astype(int)
        small += calibration(labels, scores, seed=seed)["p_value"] < 0.1
    assert small <= 14  # 6 expected, standard deviation 2.3


def test_certain_predictions_fall_into_the_outer_bins():
    table = reliability(np.array([0, 1]), np.array([-1000.0, 1000.0]))
    assert table["bin"].tolist() == [0, 9]
    assert calibration(np.array([0, 1]), np.array([-1000.0, 1000.0]))["ece"] == 0
