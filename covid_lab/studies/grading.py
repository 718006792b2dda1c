"""Graded answers: heads on cached features, and metrics that know the grades are ordered.

Two heads, a perceptron and a support-vector machine, both for any number of classes K. The
perceptron ends in K logits ("softmax") or, since malignancy is ordered, in K − 1 ("coral": Cao,
Mirjalili & Raschka 2020), each saying whether the grade exceeds one more step.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import layers
from scipy.special import softmax
from scipy.stats import t
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from covid_lab.studies.imbalance import Balanced
from covid_project.evaluation import LEVEL, percentile_interval
from covid_project.pipeline import untuned

HEADS = ("softmax", "coral", "svm")
METRICS = (
    "accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_F1", "AUC",
    "kappa", "MAE",
)  # fmt: skip
RESAMPLES = 500
UNITS = (128, 64, 32)  # the three dense layers of the report
L1, WEIGHT_DECAY = 1e-5, 1e-4
PATIENCE, PLATEAU, PLATEAU_FACTOR = 10, 5, 0.3
STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # C
WIDTHS = (0.1, 0.3, 1.0, 3.0)  # gamma, as multiples of one over the number of features
FOLDS = 3


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What a head says of N inputs."""

    scores: np.ndarray  # (N, K), larger where the class is likelier; probabilities but for an SVM
    predicted: np.ndarray  # int (N,)


Predict = Callable[[np.ndarray], Verdicts]


# ---- metrics ------------------------------------------------------------------------------------


def graded_metrics(labels: np.ndarray, verdicts: Verdicts) -> dict[str, float]:
    """All `METRICS` of labels int (N,) from 0 to K − 1.

    ``AUC`` is the mean over the classes of one against the rest; ``kappa`` is Cohen's (1968) with
    quadratic weights, 1 for perfect and 0 for chance; ``MAE`` is the mean absolute error in grades.
    Precision, recall and F1 are means over classes, a class that nobody is said to be having F1 0
    and precision 0. Classes without any label count in none.
    """
    labels, count = np.asarray(labels, int), verdicts.scores.shape[1]
    if labels.shape != verdicts.predicted.shape or not len(labels):
        raise ValueError(f"{labels.shape} labels for verdicts {verdicts.predicted.shape}")
    if labels.min() < 0 or labels.max() >= count:
        raise ValueError(f"labels lie in {labels.min()}…{labels.max()}; there are {count} classes")
    counts = confusion_counts(labels, verdicts.predicted, count)
    return {**_from_counts(counts), "AUC": _one_against_rest(labels, verdicts.scores)}


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, count: int) -> np.ndarray:
    """Counts int (K, K), rows the label, columns the prediction."""
    return np.bincount(count * np.asarray(labels) + predicted, minlength=count**2).reshape(
        count, count
    )


def metrics_table(labels: np.ndarray, verdicts: Verdicts, seed: int = 0) -> pd.DataFrame:
    """One row per metric: metric, value, low, high, n.

    95 % percentile intervals of a bootstrap over images, each class resampled by itself.
    """
    labels = np.asarray(labels, int)
    rng = np.random.default_rng(seed)
    values = graded_metrics(labels, verdicts)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    drawn = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([rng.choice(group, len(group)) for group in groups])
        again = Verdicts(verdicts.scores[rows], verdicts.predicted[rows])
        drawn.append(graded_metrics(labels[rows], again))
    intervals = {name: percentile_interval([one[name] for one in drawn]) for name in METRICS}
    rows = [(name, values[name], *intervals[name], len(labels)) for name in METRICS]
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n"])


def interval_over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of a metric over trainings from several seeds, and Student's 95 % interval of it.

    It holds the chance of the training only: not that of the test images. NaN for a single seed.
    """
    values = np.asarray(values, float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = t.ppf(0.5 + LEVEL / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return mean, mean - float(half), mean + float(half)


def _from_counts(counts: np.ndarray) -> dict[str, float]:
    counts = counts.astype(float)
    total, hits = counts.sum(), np.diag(counts)
    here = counts.sum(axis=1) > 0
    said, are = counts.sum(axis=0)[here], counts.sum(axis=1)[here]
    precision = np.divide(hits[here], said, out=np.zeros(here.sum()), where=said > 0)
    recall = hits[here] / are
    steps = np.abs(np.subtract.outer(np.arange(len(counts)), np.arange(len(counts))))
    by_chance = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / total
    disagreement = (steps**2 * by_chance).sum()
    return {
        "accuracy": hits.sum() / total,
        "balanced_accuracy": recall.mean(),
        "macro_precision": precision.mean(),
        "macro_recall": recall.mean(),
        "macro_F1": (2 * hits[here] / (said + are)).mean(),
        "kappa": 1 - (steps**2 * counts).sum() / disagreement if disagreement else math.nan,
        "MAE": (steps * counts).sum() / total,
    }


def _one_against_rest(labels: np.ndarray, scores: np.ndarray) -> float:
    found = [
        roc_auc_score(labels == label, scores[:, label])
        for label in range(scores.shape[1])
        if 0 < (labels == label).sum() < len(labels)
    ]
    return float(np.mean(found)) if found else math.nan


# ---- perceptron ---------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="covid_project")
class RankLogits(layers.Layer):
    """One score with K − 1 offsets: (N, D) → (N, K − 1), the logits of "above grade k".

    A single weight vector for all steps and its own offset for each make the answers consistent:
    at the least loss the offsets fall from step to step (Cao et al. 2020, theorem 1).
    """

    def __init__(self, steps: int, **options):
        super().__init__(**options)
        self.steps = steps

    def build(self, shape):
        """Make the weight vector and the offsets."""
        self.kernel = self.add_weight(shape=(shape[-1], 1), initializer="glorot_uniform")
        self.offsets = self.add_weight(shape=(self.steps,), initializer="zeros")

    def call(self, inputs):
        """Apply the layer."""
        return keras.ops.matmul(inputs, self.kernel) + self.offsets

    def get_config(self):
        """Say how the layer was made."""
        return {**super().get_config(), "steps": self.steps}


def dense_layers(features, *, units: Sequence[int] = UNITS, dropout: float):
    """Dropout, dense layers with ReLU and L1 1e-5, and Dropout again: (N, D) → (N, units[-1])."""
    x = layers.Dropout(dropout, name="dropout1")(features)
    for number, width in enumerate(units, start=1):
        x = layers.Dense(
            int(width),
            activation="relu",
            kernel_regularizer=keras.regularizers.L1(L1),
            name=f"dense{number}",
        )(x)
    return layers.Dropout(dropout, name="dropout2")(x)


def perceptron(
    features: int, classes: int, *, ordinal: bool, units: Sequence[int] = UNITS, dropout: float
) -> keras.Model:
    """Head on cached features (N, ``features``), ending in K logits, or K − 1 where ordinal."""
    pooled = keras.Input((features,), name="pooled_features")
    x = dense_layers(pooled, units=units, dropout=dropout)
    if ordinal:
        logits = RankLogits(classes - 1, name="ranks")(x)
    else:
        logits = layers.Dense(classes, name="logits")(x)
    return keras.Model(pooled, logits, name="perceptron")


def rank_targets(labels: np.ndarray, classes: int) -> np.ndarray:
    """Whether each label exceeds each step: int (N,) → float32 (N, K − 1) of ones, then zeros."""
    return (np.asarray(labels)[:, None] > np.arange(classes - 1)).astype(np.float32)


def rank_probabilities(logits: np.ndarray) -> np.ndarray:
    """Probability of each class, (N, K), from the logits of "above grade k", (N, K − 1).

    P(k) = P(above k − 1) − P(above k); where the answers contradict each other, the differences
    below 0 count as 0 and the rest is made to add up to 1.
    """
    above = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    edges = np.pad(above, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))
    parts = np.maximum(-np.diff(edges, axis=1), 0)
    return parts / parts.sum(axis=1, keepdims=True)


def predictor(model: keras.Model, *, ordinal: bool) -> Predict:
    """What the perceptron says of inputs (N, ...); an ordinal one counts the steps exceeded."""

    def predict(inputs: np.ndarray) -> Verdicts:
        logits = keras.ops.convert_to_numpy(model(np.asarray(inputs, np.float32), training=False))
        if ordinal:
            return Verdicts(rank_probabilities(logits), (logits > 0).sum(axis=1))
        return Verdicts(softmax(logits, axis=1), logits.argmax(axis=1))

    return predict


def train(
    model: keras.Model,
    data: Balanced,
    validation: tuple[np.ndarray, np.ndarray],
    *,
    ordinal: bool,
    learning_rate: float,
    batch_size: int,
    epochs: int,
    seed: int,
    progress: str | None = None,
) -> pd.DataFrame:
    """Train a perceptron as the report says, with weight decay 1e-4.

    Early stopping after 10 epochs without a lower validation loss, the best weights restored; the
    learning rate times 0.3 after 5.

    Returns
    -------
    One row per epoch: epoch (from 1), loss, val_loss, accuracy, val_accuracy, learning_rate,
    seconds.
    """
    targets, wanted = data.labels, np.asarray(validation[1])
    if ordinal:
        classes = model.output_shape[-1] + 1
        targets, wanted = (rank_targets(labels, classes) for labels in (targets, wanted))
    twin = _compiled(model.to_json(), ordinal)
    for variable in twin.optimizer.variables:
        variable.assign(keras.ops.zeros_like(variable))
    twin.optimizer.learning_rate = learning_rate
    _copy(model, twin)
    # Keras' own shuffle of arrays repeats its first order where operations are deterministic.
    rows = tf.data.Dataset.from_tensor_slices(
        (np.asarray(data.inputs, np.float32), targets, data.sample_weights)
    )
    begun = time.perf_counter()
    run = twin.fit(
        untuned(rows.shuffle(len(targets), seed=seed).batch(batch_size)),
        shuffle=False,  # it is already
        epochs=epochs,
        validation_data=(np.asarray(validation[0], np.float32), wanted),
        callbacks=[
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.EarlyStopping("val_loss", patience=PATIENCE, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau(
                "val_loss", factor=PLATEAU_FACTOR, patience=PLATEAU, min_delta=0
            ),
        ],
        verbose=0,
    )
    _copy(twin, model)
    history = pd.DataFrame(run.history).rename(
        columns=lambda name: name.replace("_rank_accuracy", "accuracy")
    )
    history.insert(0, "epoch", np.arange(1, len(history) + 1))
    history["seconds"] = (time.perf_counter() - begun) / len(history)
    if progress:
        print(
            f"{progress}: {len(history)} epochs in {time.perf_counter() - begun:.0f} s, best "
            f"validation loss {history['val_loss'].min():.3f}",
            flush=True,
        )
    return history


@lru_cache(maxsize=16)
def _compiled(architecture: str, ordinal: bool) -> keras.Model:
    """A network of the architecture, compiled once: tracing costs more than a short training does.

    Its variables are set anew for each training, dropout's random state and Adam's moments too.
    """
    twin = keras.models.model_from_json(architecture)
    if ordinal:
        loss, accuracy = keras.losses.BinaryCrossentropy(from_logits=True), _rank_accuracy
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    optimizer = keras.optimizers.AdamW(weight_decay=WEIGHT_DECAY)
    optimizer.build(twin.trainable_variables)
    twin.compile(optimizer=optimizer, loss=loss, metrics=[accuracy], jit_compile=False)
    return twin


def _copy(source: keras.Model, target: keras.Model) -> None:
    for layer, other in zip(source.layers, target.layers, strict=True):
        for variable, twin in zip(layer.variables, other.variables, strict=True):
            twin.assign(variable)


def _rank_accuracy(targets, logits):
    """Share of inputs all of whose steps add up to the right grade."""
    counted = keras.ops.sum(keras.ops.cast(logits > 0, "float32"), axis=-1)
    return keras.ops.cast(counted == keras.ops.sum(targets, axis=-1), "float32")


# ---- support-vector machine ---------------------------------------------------------------------


def choose_svm(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int
) -> dict[str, float]:
    """C and gamma of the RBF kernel by cross-validation within the training data.

    Before any balancing, whose copies would lie in two folds at once; patients are not parted.

    Returns
    -------
    C, gamma (for standardised features), and score: the balanced accuracy of the best, as a mean
    over folds.
    """
    search = GridSearchCV(
        _svm(1.0, 1.0, "balanced"),
        {
            "svc__C": list(STRENGTHS),
            "svc__gamma": [width / features.shape[1] for width in WIDTHS],
        },
        scoring="balanced_accuracy",
        cv=StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed),
    )
    search.fit(features, labels, groups=groups)
    best = search.best_params_
    return {"C": best["svc__C"], "gamma": best["svc__gamma"], "score": float(search.best_score_)}


def fit_svm(data: Balanced, *, strength: float, gamma: float) -> Predict:
    """Support-vector machine with RBF kernel on standardised features; ``strength`` is C."""
    model = _svm(strength, gamma, None)
    model.fit(data.inputs, data.labels, svc__sample_weight=data.sample_weights)

    def predict(inputs: np.ndarray) -> Verdicts:
        scores = model.decision_function(inputs)
        if scores.ndim == 1:  # two classes
            scores = np.stack([-scores, scores], axis=1)
        return Verdicts(scores, scores.argmax(axis=1))

    return predict


def _svm(strength: float, gamma: float, class_weight) -> Pipeline:
    classifier = SVC(C=strength, gamma=gamma, class_weight=class_weight)
    return make_pipeline(StandardScaler(), classifier)
