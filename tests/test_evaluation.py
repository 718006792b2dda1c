import tracemalloc

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as sk

from covid_project.evaluation import (
    DRAWN,
    METRICS,
    bootstrap,
    bootstrap_auc,
    class_metrics,
    confusion,
    cross_entropy,
    drawn_rows,
    equal_error_threshold,
    metrics_table,
    percentile_interval,
    point_metrics,
    record_test_look,
    wilson_interval,
)
from covid_project.storage import read_csv


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
    assert tuple(ours) == METRICS
    assert ours == pytest.approx(sklearn_metrics(*scored))
    np.testing.assert_array_equal(confusion(*scored), sk.confusion_matrix(scored[0], scored[1] > 0))


@given(n=st.integers(1, 500), data=st.data())
def test_wilson_equals_scipys(n, data):
    successes = data.draw(st.integers(0, n))
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    low, high = wilson_interval(successes, n)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert low <= successes / n <= high


@pytest.mark.parametrize("held", [DRAWN, 7 * 120, 1])
def test_bootstrap_equals_a_naive_loop_over_the_same_draws(scored, held, monkeypatch):
    monkeypatch.setattr("covid_project.evaluation.DRAWN", held)
    labels, scores = scored
    ours = bootstrap(labels, scores, resamples=20, seed=4)
    rng = np.random.default_rng(4)
    negative = np.flatnonzero(labels == 0)[rng.integers(0, 70, (20, 70))]
    positive = np.flatnonzero(labels == 1)[rng.integers(0, 50, (20, 50))]
    for number in range(20):
        rows = np.concatenate([negative[number], positive[number]])
        expected = sklearn_metrics(labels[rows], scores[rows])
        assert {name: ours[name][number] for name in METRICS} == pytest.approx(expected)


@pytest.mark.parametrize("block", [None, 1, 7, 100])
@pytest.mark.parametrize("size", [0, 1, 13])
def test_rows_drawn_in_blocks_are_those_drawn_at_once(size, block):
    blocks = list(drawn_rows(np.random.default_rng(3), size, 20, block))
    at_once = np.random.default_rng(3).integers(0, max(size, 1), (20, size))
    np.testing.assert_array_equal(np.concatenate(blocks), at_once)
    assert len(blocks) == (-(-20 // block) if block else 1)


def test_the_memory_of_a_bootstrap_does_not_grow_with_the_images(rng):
    def held(images):
        labels, scores = np.arange(images) % 2, rng.normal(size=images)
        tracemalloc.start()
        bootstrap(labels, scores, resamples=300)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert held(56_000) < 1.5 * held(14_000)


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
    assert tuple(table.index) == METRICS
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


def test_without_positive_predictions_precision_and_mcc_are_nan():
    values = point_metrics(np.array([0, 1]), np.array([-1.0, -2.0]))
    assert np.isnan(values["precision"])
    assert np.isnan(values["MCC"])


def test_one_image_and_equal_scores_work():
    assert metrics_table(np.array([1]), np.array([2.0]))["value"][0] == 1
    assert point_metrics(np.array([0, 1, 1]), np.zeros(3))["AUC"] == 0.5


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


def test_the_ledger_knows_replays_from_further_looks(tmp_path, capsys):
    path = tmp_path / "test_ledger.csv"
    first = {"model": "m1", "data": "d1", "seed": 1}
    assert record_test_look(path, "baseline", first) == 1
    assert record_test_look(path, "baseline", first) == 1  # a replay
    assert record_test_look(path, "transfer", {**first, "model": "m2"}) == 1  # another stage
    assert "WARNING" not in capsys.readouterr().out
    assert record_test_look(path, "baseline", {**first, "model": "m3"}) == 2
    assert "look 2" in capsys.readouterr().out
    assert record_test_look(path, "baseline", first) == 1
    assert len(read_csv(path)) == 3


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


def test_metrics_of_each_class_are_those_of_scikit_learn(scored):
    labels, scores = scored
    table = class_metrics(labels, scores, ("NORMAL", "PNEUMONIA"))
    precision, recall, f1, _ = sk.precision_recall_fscore_support(labels, (scores > 0).astype(int))
    for label, name in enumerate(("NORMAL", "PNEUMONIA")):
        own = table[table["class"] == name].set_index("metric")
        assert own["value"].to_dict() == pytest.approx(
            {"recall": recall[label], "precision": precision[label], "F1": f1[label]}
        )
        assert (own["low"] < own["value"]).all()
        assert (own["value"] < own["high"]).all()


def test_a_score_of_zero_is_the_negative_class_for_both_classes():
    table = class_metrics([0, 0, 1, 1], [0.0, -1.0, 0.0, 1.0], ("a", "b")).set_index(
        ["class", "metric"]
    )["value"]
    assert table["a", "recall"] == 1
    assert table["b", "recall"] == 0.5


def test_the_threshold_of_equal_errors_is_the_best_of_all(scored):
    labels, scores = scored

    def gap(threshold):
        predicted = scores > threshold
        return abs(predicted[labels == 1].mean() - (~predicted)[labels == 0].mean())

    threshold = equal_error_threshold(labels, scores)
    assert gap(threshold) == min(gap(t) for t in np.linspace(scores.min(), scores.max(), 1001))
    # The mix of the classes plays no part.
    more = np.concatenate([labels, np.ones(500, int)[: 10 * 50]])
    repeated = np.concatenate([scores, np.tile(scores[labels == 1], 10)])
    assert equal_error_threshold(more, repeated) == threshold


def test_the_threshold_of_separate_classes_lies_midway():
    assert equal_error_threshold([0, 0, 1, 1], [-3.0, -1.0, 2.0, 5.0]) == 0.5
    with pytest.raises(ValueError, match="both classes"):
        equal_error_threshold([1, 1], [0.0, 1.0])
