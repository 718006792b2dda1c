"""Heads and metrics for graded answers, against scikit-learn, closed forms and naive sums."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import t
from sklearn import metrics as peer
from sklearn.svm import SVC

from covid_lab.studies.graded_metrics import (
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
    perceptron,
    predictor,
    train,
)
from covid_lab.studies.imbalance import Balanced, balance
from covid_project.training import set_seed

# ---- metrics ------------------------------------------------------------------------------------


@pytest.fixture
def verdicts(rng):
    labels = rng.integers(0, 5, 200)
    scores = rng.dirichlet(np.ones(5), 200)
    scores[np.arange(200), labels] += 0.2
    scores /= scores.sum(axis=1, keepdims=True)
    return labels, Verdicts(scores, scores.argmax(axis=1))


def test_metrics_are_scikit_learn_s(verdicts):
    labels, said = verdicts
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
    assert graded_metrics(*verdicts) == pytest.approx(wanted)


def test_a_missing_class_counts_in_none_and_one_that_nobody_is_said_to_be_counts_zero():
    labels, predicted = np.array([0, 0, 1, 1, 3]), np.array([0, 0, 0, 0, 3])
    found = graded_metrics(labels, Verdicts(np.eye(5)[predicted], predicted))
    assert found["macro_F1"] == pytest.approx((2 * 2 / 6 + 0 + 1) / 3)
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)
    assert np.isfinite(found["AUC"])
    for wrong, said in (([5], "there are 5 classes"), ([0, 1], "labels for verdicts")):
        with pytest.raises(ValueError, match=said):
            graded_metrics(np.array(wrong), Verdicts(np.eye(5)[:1], np.array([0])))


def test_intervals_hold_the_value_and_the_seeds_interval_is_student_s(verdicts):
    table = metrics_table(*verdicts).set_index("metric")
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    width = table.loc["accuracy", "high"] - table.loc["accuracy", "low"]
    assert 0.5 < width / (1.96 * np.sqrt(0.25 / 200)) < 2.2
    values = [0.5, 0.6, 0.55]
    low, high = t.interval(0.95, 2, loc=np.mean(values), scale=np.std(values, ddof=1) / 3**0.5)
    assert interval_over_seeds(values) == pytest.approx((0.55, low, high))
    assert np.isnan(interval_over_seeds([0.5])[1])


def test_whole_patients_are_resampled(verdicts):
    labels, said = verdicts
    groups = np.repeat(np.arange(40), 5)
    times = np.bincount(next(resamples(groups, 0, whole=True)), minlength=200).reshape(40, 5)
    assert times.sum() == 200
    assert (times == times[:, :1]).all()
    same = np.repeat(said.predicted[::5], 5)  # one answer per patient: less is known than it seems
    alike, truth = Verdicts(np.eye(5)[same], same), np.repeat(labels[::5], 5)
    tables = [metrics_table(truth, alike, 0, of).set_index("metric") for of in (groups, None)]
    wide, narrow = (one.loc["accuracy", "high"] - one.loc["accuracy", "low"] for one in tables)
    assert wide > 1.5 * narrow


# ---- perceptron ---------------------------------------------------------------------------------

HOW = {"learning_rate": 0.01, "batch_size": 64, "epochs": 20, "seed": 0}


def graded_set(rng, count=400):
    """Features whose first value rises with the grade, and the labels."""
    labels = rng.choice(5, count, p=[0.1, 0.2, 0.4, 0.2, 0.1])
    features = rng.normal(size=(count, 8)).astype(np.float32)
    features[:, 0] = labels + 0.35 * features[:, 0]
    return features, labels


def weighted(features, labels):
    return balance("class_weights", features, labels, ["train"] * len(labels), seed=0)


def new(ordinal=False, seed=1):
    """One architecture for all tests, since it is compiled only once."""
    set_seed(seed)
    return perceptron(8, 5, ordinal=ordinal, dropout=0.1)


def test_rank_logits_are_one_score_with_offsets_that_give_probabilities(rng, tmp_path):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, RankLogits(3)(inputs))
    kernel, offsets = rng.normal(size=(6, 1)), np.array([2.0, 1, -1])
    model.set_weights([kernel, offsets])
    x = rng.normal(size=(3, 6)).astype(np.float32)
    np.testing.assert_allclose(model(x), x @ kernel + offsets, rtol=1e-5)
    model.save(tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras", safe_mode=True)
    np.testing.assert_allclose(again(x), model(x))
    model.set_weights([kernel, np.log([4.0, 1.0, 0.25])])  # above: 0.8, 0.5, 0.2
    said = predictor(model, ordinal=True)(np.zeros((1, 6)))
    np.testing.assert_allclose(said.scores, [[0.2, 0.3, 0.3, 0.2]], rtol=1e-6)
    assert said.predicted == [1]
    model.set_weights([kernel, np.array([-1.0, 1.0, 0.0])])  # contradictory
    scores = predictor(model, ordinal=True)(np.zeros((1, 6))).scores
    assert (scores >= 0).all()
    assert scores.sum() == pytest.approx(1)


@pytest.mark.parametrize("ordinal", [False, True])
def test_the_perceptron_learns_grades_and_its_offsets_fall(ordinal, rng):
    known, (unseen, truth) = graded_set(rng), graded_set(rng, 200)
    model = new(ordinal)
    history = train(model, weighted(*known), (unseen, truth), ordinal=ordinal, **HOW)
    said = predictor(model, ordinal=ordinal)(unseen)
    np.testing.assert_allclose(said.scores.sum(axis=1), 1, rtol=1e-6)
    found = graded_metrics(truth, said)
    assert found["kappa"] > 0.8
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
    data, how = weighted(features, labels), {**HOW, "epochs": 2, "ordinal": False}
    models = [new(seed=7), new(seed=8), new(seed=7), new(seed=7)]
    for model in models[:3]:
        set_seed(7)
        history = train(model, data, (features, labels), **how)
    first, _, again, own = models
    for one, other in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    own.compile(keras.optimizers.AdamW(0.01, weight_decay=1e-4), jit_compile=False,
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))  # fmt: skip
    rows = tf.data.Dataset.from_tensor_slices((features, labels, data.sample_weights))
    run = own.fit(rows.shuffle(100, seed=0).batch(64), shuffle=False, epochs=2, verbose=0)
    np.testing.assert_allclose(history["loss"], run.history["loss"], rtol=1e-5)


def test_ordinal_offsets_start_at_the_log_odds_and_then_grades_in_between_are_predicted(rng):
    features, labels = graded_set(rng)
    how = {**HOW, "learning_rate": 1e-4, "epochs": 1, "ordinal": True}
    offsets, predicted = [], []
    for start in (True, False):
        model = new(ordinal=True)
        train(model, weighted(features, labels), (features, labels), start_at_log_odds=start, **how)
        offsets.append(model.get_layer("ranks").offsets.numpy())
        predicted.append(predictor(model, ordinal=True)(features).predicted)
    np.testing.assert_allclose(offsets[0], np.log([4, 3 / 2, 2 / 3, 1 / 4]), atol=1e-2)
    between = [np.isin(one, [1, 2, 3]).mean() for one in predicted]
    assert between[0] > 0.5
    assert between[1] < 0.05


def epochs_seen(monkeypatch, data, validation, count):
    """The samples of some epochs, in the order in which a training would take them."""
    seen = []

    def watched(model, rows, **how):
        for _ in range(count):
            batches = [[part.numpy() for part in batch] for batch in rows]
            seen.append([np.concatenate(part) for part in zip(*batches, strict=True)])
        return SimpleNamespace(history={"loss": [0.0], "val_loss": [0.0]})

    monkeypatch.setattr(keras.Model, "fit", watched)
    model = perceptron(1, 5, ordinal=False, dropout=0.0)
    train(model, data, validation, ordinal=False, **HOW)
    return seen


def test_samples_come_in_another_order_in_every_epoch(rng, monkeypatch):
    """Also where operations are deterministic: Keras' own shuffle then repeats its first order."""
    numbers, labels = np.arange(50, dtype=np.float32)[:, None], np.arange(50) % 5
    data = weighted(numbers, labels)
    seen = epochs_seen(monkeypatch, data, (numbers, labels), 3)
    for inputs, targets, weights in seen:
        np.testing.assert_array_equal(targets, inputs[:, 0] % 5)
        np.testing.assert_array_equal(weights, data.sample_weights[inputs[:, 0].astype(int)])
        np.testing.assert_array_equal(np.sort(inputs[:, 0]), np.arange(50))
    assert len({tuple(inputs[:, 0]) for inputs, *_ in seen}) == 3


def test_each_epoch_takes_one_variant_of_each_sample(monkeypatch):
    numbers, labels = np.arange(30, dtype=np.float32)[:, None], np.arange(30) % 3
    variants = np.stack([numbers, numbers + 100, numbers + 200])
    data = Balanced(numbers, labels, {0: 1.0, 1: 1.0, 2: 1.0}, np.zeros(30, bool), variants)
    drawn = set()
    for inputs, targets, _ in epochs_seen(monkeypatch, data, (numbers, labels), 6):
        np.testing.assert_array_equal(inputs[:, 0] % 100 % 3, targets)
        np.testing.assert_array_equal(np.sort(inputs[:, 0] % 100), np.arange(30))
        drawn |= set((inputs[:, 0] // 100).astype(int).tolist())
    assert drawn == {0, 1, 2}


def test_the_convolutional_head_is_the_reports_and_learns(rng):
    set_seed(0)
    labels = rng.integers(0, 2, 120)
    maps = rng.normal(size=(120, 4, 4, 3)).astype(np.float32)
    maps[:, 1, 1, 0] += 4 * labels
    model = convolutional_head((4, 4, 3), 2, dropout=0.1)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == ["InputLayer", "Conv2D", "MaxPooling2D", "Flatten", "Dropout", *["Dense"] * 3,
                     "Dropout", "Dense"]  # fmt: skip
    data = balance("none", maps, labels, ["train"] * 120, seed=0)
    train(model, data, (maps, labels), ordinal=False, progress="head", **{**HOW, "epochs": 8})
    assert graded_metrics(labels, predictor(model, ordinal=False)(maps))["AUC"] > 0.9


# ---- support-vector machine ---------------------------------------------------------------------


def test_the_svm_is_chosen_within_training_and_is_scikit_learn_s(rng):
    features, labels = graded_set(rng, 150)
    unseen, truth = graded_set(rng, 100)
    best = choose_svm(features, labels, np.arange(150) // 2, seed=0)
    assert best["score"] > 0.4
    said = fit_svm(weighted(features, labels), strength=best["C"], gamma=best["gamma"])(unseen)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    own = SVC(C=best["C"], gamma=best["gamma"], class_weight="balanced")
    own.fit((features - mean) / deviation, labels)
    scores = own.decision_function((unseen - mean) / deviation)
    np.testing.assert_allclose(said.scores, scores, atol=1e-3)
    assert graded_metrics(truth, said)["kappa"] > 0.7
    two = fit_svm(weighted(features, labels >= 3), strength=1.0, gamma=0.1)(features)
    assert two.scores.shape == (150, 2)
    assert graded_metrics(labels >= 3, two)["accuracy"] > 0.9
