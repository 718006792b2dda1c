import numpy as np
import pytest
from sklearn import metrics as sk

from covid_lab.statistics import class_metrics, equal_error_threshold, mean_interval


@pytest.fixture
def scored(rng):
    labels = np.repeat([0, 1], [70, 50])
    scores = np.round(rng.normal(labels * 1.5 - 0.7, 1.0), 1)  # rounded: ties, and scores of 0
    return labels, scores


def test_metrics_of_each_class_are_those_of_scikit_learn(scored):
    labels, scores = scored
    assert (scores == 0).any()  # the negative class for both
    table = class_metrics(labels, scores, ("NORMAL", "PNEUMONIA"))
    peer = sk.precision_recall_fscore_support(labels, (scores > 0).astype(int))
    for label, name in enumerate(("NORMAL", "PNEUMONIA")):
        own = table[table["class"] == name].set_index("metric")
        values = [part[label] for part in peer[:3]]
        wanted = dict(zip(("precision", "recall", "F1"), values, strict=True))
        assert own["value"].to_dict() == pytest.approx(wanted)
        assert (own["low"] < own["value"]).all()
        assert (own["value"] < own["high"]).all()


def test_the_threshold_of_equal_errors_is_the_best_of_all(scored):
    labels, scores = scored

    def gap(threshold):
        predicted = scores > threshold
        return abs(predicted[labels == 1].mean() - (~predicted)[labels == 0].mean())

    threshold = equal_error_threshold(labels, scores)
    assert gap(threshold) == min(gap(t) for t in np.linspace(scores.min(), scores.max(), 1001))
    # The mix of the classes plays no part.
    more = np.concatenate([labels, np.ones(500, int)])
    repeated = np.concatenate([scores, np.tile(scores[labels == 1], 10)])
    assert equal_error_threshold(more, repeated) == threshold
    with pytest.raises(ValueError, match="both classes"):
        equal_error_threshold([1, 1], [0.0, 1.0])


def test_mean_interval_of_normal_values_is_that_of_the_normal_law(rng):
    values = rng.normal(3, 2, 400)
    mean, low, high, n = mean_interval(np.append(values, [np.nan, np.nan]))
    assert n == 400
    assert mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.03)


@pytest.mark.parametrize(("values", "mean", "n"), [([], np.nan, 0), ([1, np.nan], 1, 1)])
def test_fewer_than_two_values_have_no_interval(values, mean, n):
    found = mean_interval(np.array(values, float))
    np.testing.assert_equal(found, (mean, np.nan, np.nan, n))
