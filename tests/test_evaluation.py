"""Metrics and paired tests against scikit-learn, closed forms and naive loops."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn import metrics as sk

from covid_project.evaluation import (
    METRICS,
    Metric,
    accuracy_difference,
    auc_difference,
    bootstrap,
    bootstrap_auc,
    compare_models,
    confusion,
    cross_entropy,
    drawn_rows,
    holm,
    metrics_table,
    percentile_interval,
    point_metrics,
    wilson_interval,
)


@pytest.fixture
def scored(rng):
    labels = np.repeat([0, 1], [70, 50])
    scores = np.round(rng.normal(labels * 1.5 - 0.7, 1.0), 1)  # rounded: there are ties
    return labels, scores


def sklearn_metrics(labels, scores):
    predicted = (scores > 0).astype(int)
    return {
        "accuracy": sk.accuracy_score(labels, predicted),
        "sensitivity": sk.recall_score(labels, predicted),
        "specificity": sk.recall_score(labels, predicted, pos_label=0),
        "precision": sk.precision_score(labels, predicted),
        "F1": sk.f1_score(labels, predicted),
        "AUC": sk.roc_auc_score(labels, scores),
        "MCC": sk.matthews_corrcoef(labels, predicted),
    }


def test_metrics_equal_scikit_learns(scored):
    ours = point_metrics(*scored)
    assert list(ours) == list(METRICS)
    assert ours == pytest.approx(sklearn_metrics(*scored))
    np.testing.assert_array_equal(confusion(*scored), sk.confusion_matrix(scored[0], scored[1] > 0))


@given(n=st.integers(1, 500), data=st.data())
def test_wilson_equals_scipys(n, data):
    successes = data.draw(st.integers(0, n))
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    low, high = wilson_interval(successes, n)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert low <= successes / n <= high


@pytest.mark.parametrize("block", [20, 7, 1])
def test_bootstrap_equals_a_naive_loop_over_the_same_draws(scored, block, monkeypatch):
    monkeypatch.setattr("covid_project.evaluation.HELD", block * 120)
    labels, scores = scored
    ours = bootstrap(labels, scores, resamples=20, seed=4)
    rng = np.random.default_rng(4)
    rows = []
    for first in range(0, 20, block):
        count = min(block, 20 - first)
        groups = [np.flatnonzero(labels == label) for label in (0, 1)]
        drawn = [group[rng.integers(0, len(group), (count, len(group)))] for group in groups]
        rows += list(np.concatenate(drawn, axis=1))
    for number, chosen in enumerate(rows):
        expected = sklearn_metrics(labels[chosen], scores[chosen])
        assert {name: ours[name][number] for name in METRICS} == pytest.approx(expected)


@pytest.mark.parametrize("block", [1, 7, 100])
@pytest.mark.parametrize("size", [0, 1, 13])
def test_rows_drawn_in_blocks_are_those_drawn_at_once(size, block, monkeypatch):
    monkeypatch.setattr("covid_project.evaluation.HELD", block * max(size, 1))
    blocks = list(drawn_rows(np.random.default_rng(3), size, 20))
    at_once = np.random.default_rng(3).integers(0, max(size, 1), (20, size))
    np.testing.assert_array_equal(np.concatenate(blocks), at_once)
    assert len(blocks) == -(-20 // block)


def test_a_further_metric_is_one_entry(scored, monkeypatch):
    balanced = Metric(from_counts=lambda tn, fp, fn, tp: (tp / (tp + fn) + tn / (tn + fp)) / 2)
    monkeypatch.setitem(METRICS, "balanced accuracy", balanced)
    row = metrics_table(*scored).set_index("metric").loc["balanced accuracy"]
    assert row["value"] == pytest.approx(sk.balanced_accuracy_score(scored[0], scored[1] > 0))
    assert row["low"] < row["value"] < row["high"]


def test_bootstrap_interval_of_the_auc_has_the_width_of_hanley_and_mcneil(rng):
    # Hanley & McNeil 1982, eq. 2: the standard error of the AUC for two exponential distributions.
    n = 400
    labels = np.repeat([0, 1], n)
    scores = np.concatenate([rng.exponential(1, n), rng.exponential(4, n)])
    auc = point_metrics(labels, scores)["AUC"]
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (n - 1) * (q1 - auc**2) + (n - 1) * (q2 - auc**2)) / n**2
    low, high = percentile_interval(bootstrap(labels, scores)["AUC"])
    assert (high - low) / (2 * 1.96) == pytest.approx(np.sqrt(variance), rel=0.1)


def test_the_table_holds_every_metric_with_an_interval_around_it(scored):
    table = metrics_table(*scored).set_index("metric")
    assert list(table.index) == list(METRICS)
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    assert table.loc["sensitivity", "n"] == 50
    assert table.loc["specificity", "n"] == 70
    assert table.equals(metrics_table(*scored).set_index("metric"))  # seeded


@pytest.mark.parametrize("label", [0, 1])
def test_with_one_class_alone_what_is_undefined_is_nan(label):
    labels, scores = np.full(6, label), np.linspace(-1, 1, 6)
    values = point_metrics(labels, scores)
    assert values["accuracy"] == 0.5
    assert np.isnan(values["AUC"])
    assert np.isnan(values["sensitivity" if label == 0 else "specificity"])
    table = metrics_table(labels, scores).set_index("metric")
    assert table.loc["AUC", ["value", "low", "high"]].isna().all()


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0.1], "same shape"),
        ([], [], "N > 0"),
        ([0, 2], [0.1, 0.2], "must be 0 or 1"),
        ([0, 1], [0.1, np.nan], "1 of 2 scores are not finite"),
    ],
)
def test_bad_input_is_refused(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        point_metrics(np.array(labels), np.array(scores))


def test_cross_entropy_equals_keras_and_does_not_overflow(rng):
    labels, scores = rng.integers(0, 2, 50), rng.normal(0, 3, 50)
    expected = keras.losses.BinaryCrossentropy(from_logits=True)(
        labels.astype("float32"), scores.astype("float32")
    )
    assert cross_entropy(labels, scores) == pytest.approx(float(expected), rel=1e-5)
    assert cross_entropy(np.array([0, 1]), np.array([-1e4, 1e4])) == 0
    assert cross_entropy(np.array([0, 1]), np.array([1e4, 1e4])) == 5000


def test_the_auc_of_any_number_has_the_interval_of_the_metrics_table(rng):
    labels, scores = rng.integers(0, 2, 80), rng.normal(size=80)
    row = metrics_table(labels, scores, seed=3).set_index("metric").loc["AUC"]
    assert bootstrap_auc(labels, scores, seed=3) == (row["value"], row["low"], row["high"])


# ---- two models on the same images


def draw(rng, n=120, gap=1.0):
    labels = np.repeat([0, 1], n // 2)
    return labels, rng.normal(gap * labels - gap / 2, 1), rng.normal(gap * labels - gap / 2, 1)


def test_mcnemar_is_the_two_sided_binomial_of_the_images_that_one_model_alone_gets_right():
    labels = np.array([1] * 12 + [0] * 8)
    right = np.where(labels == 1, 1.0, -1.0)
    first, second = right.copy(), right.copy()
    first[:9] *= -1  # nine that the second alone gets right
    second[9:11] *= -1  # two that the first alone gets right
    found = accuracy_difference(labels, first, second)
    tail = sum(math.comb(11, k) for k in (0, 1, 2)) / 2**11
    assert found.p_value == pytest.approx(2 * tail)
    assert found.difference == pytest.approx(7 / 20)


def test_models_that_agree_on_every_image_do_not_differ(rng):
    labels, first, _ = draw(rng)
    found = accuracy_difference(labels, first, 3 * first)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    found = auc_difference(labels, first, 3 * first)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def delong_by_loops(labels, first, second):
    """DeLong's equations as they stand in the paper, pair by pair."""
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    m, n = len(positives), len(negatives)

    def psi(x, y):
        return 1.0 if y < x else 0.5 if y == x else 0.0

    v10, v01, aucs = [], [], []
    for s in (first, second):
        table = np.array([[psi(s[i], s[j]) for j in negatives] for i in positives])
        v10.append(table.mean(axis=1))
        v01.append(table.mean(axis=0))
        aucs.append(table.mean())

    def covariance(a, b):
        return sum((x - a.mean()) * (y - b.mean()) for x, y in zip(a, b, strict=True)) / (
            len(a) - 1
        )

    s10 = [[covariance(a, b) for b in v10] for a in v10]
    s01 = [[covariance(a, b) for b in v01] for a in v01]
    s = [[s10[i][j] / m + s01[i][j] / n for j in (0, 1)] for i in (0, 1)]
    variance = s[0][0] + s[1][1] - 2 * s[0][1]
    difference = aucs[1] - aucs[0]
    return (
        difference,
        1.959963984540054 * variance**0.5,
        2 * norm.sf(abs(difference) / variance**0.5),
    )


@pytest.mark.parametrize("digits", [8, 0])  # 0: rounded to many ties
def test_delong_equals_the_papers_equations(rng, digits):
    labels, first, second = draw(rng, 60)
    first, second = first.round(digits), second.round(digits)
    difference, half, p_value = delong_by_loops(labels, first, second)
    found = auc_difference(labels, first, second)
    assert found.difference == pytest.approx(difference)
    assert found.high - found.difference == pytest.approx(half)
    assert found.p_value == pytest.approx(p_value)


def test_perfect_rankings_differ_by_nothing_and_a_class_too_small_gives_nan():
    labels = np.array([0, 0, 1, 1])
    perfect = np.array([-2.0, -1.0, 1.0, 2.0])
    assert auc_difference(labels, perfect, perfect[[1, 0, 3, 2]]).p_value == 1
    assert math.isnan(auc_difference(np.array([0, 0, 1]), perfect[:3], perfect[:3]).p_value)


def test_the_accuracy_interval_holds_the_true_difference_as_often_as_it_says(rng):
    labels = np.repeat([0, 1], 50)
    sign = np.where(labels == 1, 1, -1)
    inside = []
    for _ in range(200):
        first = np.where(rng.random(100) < 0.8, sign, -sign)
        second = np.where(rng.random(100) < 0.9, sign, -sign)
        found = accuracy_difference(labels, first.astype(float), second.astype(float))
        inside.append(found.low <= 0.1 <= found.high)
    assert np.mean(inside) > 0.9


def test_holm_equals_the_worked_steps():
    # Smallest times 4, next times 3, and so on; never below the one before.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, np.nan, 0.9]), [1.0, np.nan, 1.0])


def test_two_models_are_compared_by_accuracy_and_auc(rng):
    labels, first, second = draw(rng)
    table = compare_models(labels, first, second, seed=3).set_index("metric")
    expected = accuracy_difference(labels, first, second, 3), auc_difference(labels, first, second)
    for name, difference in zip(("accuracy", "AUC"), expected, strict=True):
        row = table.loc[name]
        assert (row["difference"], row["low"], row["high"]) == (
            difference.difference,
            difference.low,
            difference.high,
        )
    p_values = [one.p_value for one in expected]
    np.testing.assert_array_equal(table["p_adjusted"], holm(p_values))
