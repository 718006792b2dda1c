"""Heads and metrics for graded answers, against scikit-learn, closed forms and naive sums."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import t
from sklearn import metrics as peer
from sklearn.svm import SVC

from covid_lab.studies.graded_metrics import (
    METRICS,
    Verdicts,
    graded_metrics,
    interval_over_seeds,
    metrics_table,
    resamples,
)
from covid_lab.studies.grading import (
    RankLogits,
    choose_svm,
    convolutional_head,
    fit_svm,
    log_odds_of_ranks,
    perceptron,
    predictor,
    rank_probabilities,
    rank_targets,
    train,
)
from covid_lab.studies.imbalance import Balanced, balance
from covid_project.training import set_seed


@pytest.fixture
def verdicts(rng):
    labels = rng.integers(0, 5, 200)
    scores = rng.dirichlet(np.ones(5), 200)
    scores[np.arange(200), labels] += 0.2
    scores /= scores.sum(axis=1, keepdims=True)
    return labels, Verdicts(scores, scores.argmax(axis=1))


def test_metrics_are_scikit_learn_s(verdicts):
    labels, said = verdicts
    found = graded_metrics(labels, said)
    assert set(found) == set(METRICS)
    wanted = {
        "accuracy": peer.accuracy_score(labels, said.predicted),
        "balanced_accuracy": peer.balanced_accuracy_score(labels, said.predicted),
        "macro_precision": peer.precision_score(labels, said.predicted, average="macro"),
        "macro_recall": peer.recall_score(labels, said.predicted, average="macro"),
        "macro_F1": peer.f1_score(labels, said.predicted, average="macro"),
        "AUC": peer.roc_auc_score(labels, said.scores, multi_class="ovr"),
        "kappa": peer.cohen_kappa_score(labels, said.predicted, weights="quadratic"),
        "MAE": peer.mean_absolute_error(labels, said.predicted),
    }
    assert found == pytest.approx(wanted)


def test_a_missing_class_counts_in_none_and_one_that_nobody_is_said_to_be_counts_zero():
    labels = np.array([0, 0, 1, 1, 3])
    said = Verdicts(np.eye(5)[[0, 0, 0, 0, 3]], np.array([0, 0, 0, 0, 3]))
    found = graded_metrics(labels, said)
    assert found["macro_F1"] == pytest.approx((2 * 2 / 6 + 0 + 1) / 3)
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)
    assert np.isfinite(found["AUC"])
    with pytest.raises(ValueError, match="there are 5 classes"):
        graded_metrics(np.array([5]), Verdicts(np.eye(5)[:1], np.array([0])))


def test_kappa_and_mae_know_the_distance(verdicts):
    labels = np.repeat(np.arange(5), 4)
    near, far = np.clip(labels + 1, 0, 4), 4 - labels
    found = [graded_metrics(labels, Verdicts(np.eye(5)[p], p)) for p in (labels, near, far)]
    assert found[0]["kappa"] == 1
    assert found[0]["kappa"] > found[1]["kappa"] > 0 > found[2]["kappa"]
    assert [one["MAE"] for one in found] == pytest.approx([0, 0.8, 2.4])


def test_intervals_hold_the_value_and_the_seeds_interval_is_student_s(verdicts):
    table = metrics_table(*verdicts).set_index("metric")
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    wilson_like = 1.96 * np.sqrt(0.25 / 200)
    width = table.loc["accuracy", "high"] - table.loc["accuracy", "low"]
    assert 0.5 * wilson_like < width < 2.2 * wilson_like
    values = [0.5, 0.6, 0.55]
    low, high = t.interval(0.95, 2, loc=np.mean(values), scale=np.std(values, ddof=1) / 3**0.5)
    assert interval_over_seeds(values) == pytest.approx((0.55, low, high))
    assert np.isnan(interval_over_seeds([0.5])[1])


def test_rank_targets_and_probabilities_by_hand():
    np.testing.assert_array_equal(
        rank_targets([0, 2, 4], 5), [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    )
    logit = np.log([[4.0, 1.0, 0.25]])  # above: 0.8, 0.5, 0.2
    np.testing.assert_allclose(rank_probabilities(logit), [[0.2, 0.3, 0.3, 0.2]])
    contradictory = rank_probabilities(np.array([[-1.0, 1.0, 0.0]]))
    assert (contradictory >= 0).all()
    assert contradictory.sum() == pytest.approx(1)


def test_rank_logits_are_one_score_with_offsets(rng, tmp_path):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, RankLogits(4)(inputs))
    kernel, offsets = rng.normal(size=(6, 1)), np.array([2.0, 1, -1, -3])
    model.set_weights([kernel, offsets])
    x = rng.normal(size=(3, 6)).astype(np.float32)
    np.testing.assert_allclose(model(x), x @ kernel + offsets, rtol=1e-5)
    model.save(tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras", safe_mode=True)
    np.testing.assert_allclose(again(x), model(x))


def graded_set(rng, count=400):
    """Features whose first value rises with the grade."""
    labels = rng.choice(5, count, p=[0.1, 0.2, 0.4, 0.2, 0.1])
    features = rng.normal(size=(count, 8)).astype(np.float32)
    features[:, 0] = labels + 0.35 * features[:, 0]
    return features, labels


@pytest.mark.parametrize("ordinal", [False, True])
def test_the_perceptron_learns_grades_and_its_offsets_fall(ordinal, rng):
    set_seed(1)
    features, labels = graded_set(rng)
    unseen, truth = graded_set(rng, 200)
    model = perceptron(8, 5, ordinal=ordinal, units=(16, 16, 16), dropout=0.0)
    data = balance("class_weights", features, labels, ["train"] * 400, seed=0)
    how = {"learning_rate": 0.01, "batch_size": 64, "epochs": 40, "seed": 0}
    history = train(model, data, (unseen, truth), ordinal=ordinal, **how)
    found = graded_metrics(truth, predictor(model, ordinal=ordinal)(unseen))
    assert found["kappa"] > 0.85
    assert found["AUC"] > 0.9
    columns = {"epoch", "loss", "val_loss", "accuracy", "val_accuracy", "learning_rate", "seconds"}
    assert set(history.columns) == columns
    best = history.loc[history["val_loss"].idxmin(), "val_accuracy"]
    assert best == pytest.approx(found["accuracy"], abs=1e-6)  # its own count, its own weights
    if ordinal:
        assert (np.diff(model.get_layer("ranks").offsets.numpy()) < 0).all()


def test_a_training_does_not_depend_on_those_before_it(rng):
    """Although one compiled network serves all: against a network compiled for itself."""
    features, labels = graded_set(rng, 100)
    data = balance("class_weights", features, labels, ["train"] * 100, seed=0)
    how = {"learning_rate": 0.01, "batch_size": 32, "epochs": 3, "seed": 0, "ordinal": False}

    def fresh():
        set_seed(7)
        return perceptron(8, 5, ordinal=False, units=(16, 16, 16), dropout=0.3)

    first = fresh()
    train(first, data, (features, labels), **how)
    train(perceptron(8, 5, ordinal=False, units=(16, 16, 16), dropout=0.3), data,
          (features, labels), **how)  # fmt: skip
    again = fresh()
    history = train(again, data, (features, labels), **how)
    for one, other in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    own = fresh()
    own.compile(keras.optimizers.AdamW(0.01, weight_decay=1e-4), jit_compile=False,
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))  # fmt: skip
    rows = tf.data.Dataset.from_tensor_slices((features, labels, data.sample_weights))
    run = own.fit(rows.shuffle(100, seed=0).batch(32), shuffle=False, epochs=3, verbose=0)
    np.testing.assert_allclose(history["loss"], run.history["loss"], rtol=1e-5)


def test_the_perceptron_sees_its_inputs_in_another_order_in_every_epoch(rng, monkeypatch):
    """Also where operations are deterministic: Keras' own shuffle then repeats its first order."""
    set_seed(0)
    features, labels = np.arange(50, dtype=np.float32)[:, None], np.arange(50) % 5
    data = balance("class_weights", features, labels, ["train"] * 50, seed=0)
    seen, fit = [], keras.Model.fit

    def watched(model, rows, **how):
        for _ in range(3):
            batches = [[part.numpy() for part in batch] for batch in rows]
            inputs, targets, weights = (np.concatenate(part) for part in zip(*batches, strict=True))
            np.testing.assert_array_equal(targets, inputs[:, 0] % 5)
            np.testing.assert_array_equal(weights, data.sample_weights[inputs[:, 0].astype(int)])
            np.testing.assert_array_equal(np.sort(inputs[:, 0]), np.arange(50))
            seen.append(tuple(inputs[:, 0]))
        return fit(model, rows, **how)

    monkeypatch.setattr(keras.Model, "fit", watched)
    model = perceptron(1, 5, ordinal=False, units=(4, 4, 4), dropout=0.0)
    train(model, data, (features, labels), ordinal=False, learning_rate=0.01, batch_size=16,
          epochs=1, seed=0)  # fmt: skip
    assert len(set(seen)) == 3


def test_softmax_scores_are_probabilities(rng):
    model = perceptron(8, 5, ordinal=False, units=(4, 4, 4), dropout=0.5)
    said = predictor(model, ordinal=False)(100 * rng.normal(size=(9, 8)))
    np.testing.assert_allclose(said.scores.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(said.predicted, said.scores.argmax(axis=1))


def test_the_svm_is_chosen_within_training_and_is_scikit_learn_s(rng):
    features, labels = graded_set(rng, 150)
    unseen, truth = graded_set(rng, 100)
    groups = np.arange(150) // 2
    best = choose_svm(features, labels, groups, seed=0)
    assert best["score"] > 0.4
    data = balance("class_weights", features, labels, ["train"] * 150, seed=0)
    said = fit_svm(data, strength=best["C"], gamma=best["gamma"])(unseen)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    own = SVC(C=best["C"], gamma=best["gamma"], class_weight="balanced")
    own.fit((features - mean) / deviation, labels)
    scores = own.decision_function((unseen - mean) / deviation)
    np.testing.assert_allclose(said.scores, scores, atol=1e-3)
    assert graded_metrics(truth, said)["kappa"] > 0.7


def test_the_svm_of_two_classes_has_two_columns(rng):
    features, labels = graded_set(rng, 100)
    data = balance("none", features, labels >= 3, ["train"] * 100, seed=0)
    said = fit_svm(data, strength=1.0, gamma=0.1)(features)
    assert said.scores.shape == (100, 2)
    assert graded_metrics(labels >= 3, said)["accuracy"] > 0.9


def test_whole_patients_are_resampled(verdicts):
    labels, said = verdicts
    groups = np.repeat(np.arange(40), 5)
    for rows in list(resamples(groups, 0, whole=True))[:3]:
        assert len(rows) == 200
        times = np.bincount(rows, minlength=200).reshape(40, 5)
        assert (times == times[:, :1]).all()
    same = np.repeat(said.predicted[::5], 5)  # one answer per patient: less is known than it seems
    alike = Verdicts(np.eye(5)[same], same)
    truth = np.repeat(labels[::5], 5)
    wide, narrow = (metrics_table(truth, alike, 0, of).set_index("metric") for of in (groups, None))
    widths = [(t.loc["accuracy", "high"] - t.loc["accuracy", "low"]) for t in (wide, narrow)]
    assert widths[0] > 1.5 * widths[1]


def test_ordinal_offsets_start_at_the_log_odds_and_then_grades_in_between_are_predicted(rng):
    labels = np.repeat(np.arange(5), [10, 20, 40, 20, 10])
    odds = log_odds_of_ranks(labels, np.ones(100), 5)
    np.testing.assert_allclose(odds, np.log([9, 7 / 3, 3 / 7, 1 / 9]))
    features, labels = graded_set(rng)
    data = balance("class_weights", features, labels, ["train"] * 400, seed=0)
    between = {}
    for start in (True, False):
        set_seed(1)
        model = perceptron(8, 5, ordinal=True, units=(16, 16, 16), dropout=0.0)
        train(model, data, (features, labels), ordinal=True, learning_rate=1e-4, batch_size=64,
              epochs=5, seed=0, start_at_log_odds=start)  # fmt: skip
        predicted = predictor(model, ordinal=True)(features).predicted
        between[start] = np.isin(predicted, [1, 2, 3]).mean()
    assert between[True] > 0.5
    assert between[False] < 0.05


def test_the_convolutional_head_is_the_reports_and_learns(rng):
    set_seed(0)
    labels = rng.integers(0, 2, 120)
    maps = rng.normal(size=(120, 4, 4, 3)).astype(np.float32)
    maps[:, 1, 1, 0] += 4 * labels
    model = convolutional_head((4, 4, 3), 2, units=(16, 8, 8), dropout=0.1)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == ["InputLayer", "Conv2D", "MaxPooling2D", "Flatten", "Dropout", *["Dense"] * 3,
                     "Dropout", "Dense"]  # fmt: skip
    data = balance("none", maps, labels, ["train"] * 120, seed=0)
    train(model, data, (maps, labels), ordinal=False, learning_rate=0.01, batch_size=32, epochs=15,
          seed=0)  # fmt: skip
    assert graded_metrics(labels, predictor(model, ordinal=False)(maps))["AUC"] > 0.9


def test_each_epoch_takes_one_variant_of_each_sample(rng, monkeypatch):
    seen, fit = [], keras.Model.fit

    def watched(model, rows, **how):
        for _ in range(6):
            batches = [[part.numpy() for part in batch] for batch in rows]
            inputs, targets, _ = (np.concatenate(part) for part in zip(*batches, strict=True))
            np.testing.assert_array_equal(inputs[:, 0] % 100 % 3, targets)
            np.testing.assert_array_equal(np.sort(inputs[:, 0] % 100), np.arange(30))
            seen.append(set((inputs[:, 0] // 100).astype(int).tolist()))
        return fit(model, rows, **how)

    monkeypatch.setattr(keras.Model, "fit", watched)
    numbers, labels = np.arange(30, dtype=np.float32)[:, None], np.arange(30) % 3
    variants = np.stack([numbers, numbers + 100, numbers + 200])
    data = Balanced(numbers, labels, {0: 1.0, 1: 1.0, 2: 1.0}, np.zeros(30, bool), variants)
    model = perceptron(1, 3, ordinal=False, units=(4,), dropout=0.0)
    train(model, data, (numbers, labels), ordinal=False, learning_rate=0.01, batch_size=8, epochs=1,
          seed=0)  # fmt: skip
    assert set.union(*seen) == {0, 1, 2}
