"""Paired tests against closed forms, naive loops and each other."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from covid_project.comparison import (
    accuracy_difference,
    auc_difference,
    compare,
    holm,
    verdict,
)
from covid_project.evaluation import point_metrics


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


def test_delongs_interval_is_about_that_of_a_paired_bootstrap(rng):
    labels, first, second = draw(rng, 300)
    second = 0.7 * first + 0.5 * second  # correlated, as two models of one data set are
    found = auc_difference(labels, first, second)
    drawn = []
    for _ in range(400):
        rows = np.concatenate([rng.choice(np.flatnonzero(labels == k), 150) for k in (0, 1)])
        aucs = [point_metrics(labels[rows], s[rows])["AUC"] for s in (first, second)]
        drawn.append(aucs[1] - aucs[0])
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.15)


def test_under_the_null_hypothesis_p_is_small_as_rarely_as_it_says(rng):
    p_values = [auc_difference(*draw(rng)).p_value for _ in range(400)]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09


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


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_nor_changes_their_order(p_values):
    adjusted = holm(p_values)
    assert (adjusted >= np.array(p_values)).all()
    assert (adjusted <= 1).all()
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


@pytest.mark.parametrize(
    ("difference", "p", "word"),
    [(0.1, 0.01, "better"), (-0.1, 0.01, "worse"), (0.1, 0.05, "no difference"),
     (0.1, np.nan, "no difference")],
)  # fmt: skip
def test_the_word_follows_from_the_test(difference, p, word):
    assert verdict(difference, p) == word


def test_compare_holds_all_pairs_or_those_with_a_reference(rng):
    labels, a, b = draw(rng)
    scores = {"a": a, "b": b, "c": a + b}
    table = compare(labels, scores)
    assert len(table) == 6
    pairs = {tuple(row) for row in table[["first", "second"]].to_numpy()}
    assert pairs == {("a", "b"), ("a", "c"), ("b", "c")}
    row = table[(table["metric"] == "AUC") & (table["second"] == "b")].iloc[0]
    assert row["p_value"] == auc_difference(labels, a, b).p_value
    against = compare(labels, scores, reference="b")
    assert set(against["first"]) == {"b"}
    assert len(against) == 4


def test_scores_of_other_images_are_refused(rng):
    labels, first, second = draw(rng)
    with pytest.raises(ValueError, match="same shape"):
        auc_difference(labels, first, second[:-1])
