"""Classifiers of ordered grades on cached features.

A perceptron and a support-vector machine, both for any number of classes K. The perceptron ends in
K logits ("softmax") or, since malignancy is ordered, in K − 1 logits ("coral": Cao, Mirjalili &
Raschka 2020), one for each question whether the grade exceeds k.
"""

import time
from collections.abc import Callable
from functools import lru_cache

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import layers
from scipy.special import softmax
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from covid_lab.studies.graded_metrics import Verdicts
from covid_lab.studies.imbalance import Balanced
from covid_project.pipeline import untuned

UNITS = (128, 64, 32)  # the three dense layers of the report
FILTERS = 64  # of its convolution
L1, WEIGHT_DECAY = 1e-5, 1e-4
PATIENCE, PLATEAU, PLATEAU_FACTOR = 10, 5, 0.3
STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # C
WIDTHS = (0.1, 0.3, 1.0, 3.0)  # gamma, as multiples of one over the number of features
FOLDS = 3


Predict = Callable[[np.ndarray], Verdicts]


# ---- perceptron ---------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="covid_project")
class RankLogits(layers.Layer):
    """One score with K − 1 offsets: (N, D) → (N, K − 1), the logits of "above grade k".

    All steps share one weight vector, and each has an offset of its own. This makes the predictions
    consistent: at the smallest loss the offsets fall with each step (Cao et al. 2020, theorem 1).

    Parameters
    ----------
    steps : int
        K − 1.
    **options
        For `keras.layers.Layer`.
    """

    def __init__(self, steps: int, **options):
        super().__init__(**options)
        self.steps = steps

    def build(self, shape):
        """Create the weight vector and the offsets.

        Parameters
        ----------
        shape : tuple
            Of the inputs.
        """
        self.kernel = self.add_weight(shape=(shape[-1], 1), initializer="glorot_uniform")
        self.offsets = self.add_weight(shape=(self.steps,), initializer="zeros")

    def call(self, inputs):
        """Apply the layer."""
        return keras.ops.matmul(inputs, self.kernel) + self.offsets

    def get_config(self):
        """Describe the layer, so that Keras can build it again.

        Returns
        -------
        dict
        """
        return {**super().get_config(), "steps": self.steps}


def _dense_layers(features, *, dropout: float):
    """Apply dropout, dense layers with ReLU and L1 regularisation, and dropout again."""
    x = layers.Dropout(dropout, name="dropout1")(features)
    for number, width in enumerate(UNITS, start=1):
        x = layers.Dense(
            width,
            activation="relu",
            kernel_regularizer=keras.regularizers.L1(L1),
            name=f"dense{number}",
        )(x)
    return layers.Dropout(dropout, name="dropout2")(x)


def perceptron(features: int, classes: int, *, ordinal: bool, dropout: float) -> keras.Model:
    """Build a perceptron on cached features.

    Parameters
    ----------
    features : int
        Features of an input.
    classes : int
        K, number of classes.
    ordinal : bool
        Whether it ends in `RankLogits`.
    dropout : float, in [0, 1)
        Fraction of values left out in training.

    Returns
    -------
    keras.Model
        From (N, features) to logits (N, K), or (N, K − 1) where ordinal.
    """
    pooled = keras.Input((features,), name="pooled_features")
    x = _dense_layers(pooled, dropout=dropout)
    if ordinal:
        logits = RankLogits(classes - 1, name="ranks")(x)
    else:
        logits = layers.Dense(classes, name="logits")(x)
    return keras.Model(pooled, logits, name="perceptron")


def convolutional_head(shape: tuple[int, int, int], classes: int, *, dropout: float) -> keras.Model:
    """Build the report's head: convolution, max pooling, dropout, three dense layers, dropout.

    Parameters
    ----------
    shape : tuple of int
        Height, width and channels of a backbone's last feature maps.
    classes : int
        Number of logits.
    dropout : float
        Fraction of values left out in training.

    Returns
    -------
    keras.Model
        From feature maps (N, H, W, C) to logits (N, classes).
    """
    maps = keras.Input(shape, name="feature_maps")
    x = layers.Conv2D(
        FILTERS, 3, padding="same", activation="relu",
        kernel_regularizer=keras.regularizers.L1(L1), name="head_convolution",
    )(maps)  # fmt: skip
    x = layers.MaxPooling2D(padding="same", name="head_pool")(x)
    x = _dense_layers(layers.Flatten(name="flat")(x), dropout=dropout)
    return keras.Model(maps, layers.Dense(classes, name="logits")(x), name="convolutional_head")


def _rank_targets(labels: np.ndarray, classes: int) -> np.ndarray:
    """Encode labels (N,) as targets (N, K − 1): 1 where a label exceeds k = 0, 1, …, else 0."""
    return (np.asarray(labels)[:, None] > np.arange(classes - 1)).astype(np.float32)


def _log_odds_of_ranks(labels: np.ndarray, weights: np.ndarray, classes: int) -> np.ndarray:
    """Return the weighted log odds of "above grade k" (K − 1,), of 0.01 to 0.99 at most."""
    # Adam moves a weight by about the learning rate per step: with the report's rate of 1e-4,
    # offsets that start at 0 are still nearly equal after 600 steps, and only the lowest and the
    # highest grade are predicted.
    above = np.average(_rank_targets(labels, classes), axis=0, weights=weights).clip(0.01, 0.99)
    return np.log(above / (1 - above))


def _rank_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the probability of each class (N, K) from the logits (N, K − 1) of "above grade k"."""
    above = 1 / (1 + np.exp(-logits.astype(np.float64)))
    edges = np.pad(above, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))
    # Where the logits contradict each other, differences below 0 count as 0.
    parts = np.maximum(-np.diff(edges, axis=1), 0)
    return parts / parts.sum(axis=1, keepdims=True)


def predictor(model: keras.Model, *, ordinal: bool) -> Predict:
    """Return a function that predicts with a trained network.

    Parameters
    ----------
    model : keras.Model
        From `perceptron` or `convolutional_head`.
    ordinal : bool
        Whether the model ends in `RankLogits`: the predicted grade is the number of positive
        logits.

    Returns
    -------
    callable
        From inputs (N, ...) to `Verdicts`.
    """

    def predict(inputs: np.ndarray) -> Verdicts:
        logits = keras.ops.convert_to_numpy(model(np.asarray(inputs, np.float32), training=False))
        if ordinal:
            return Verdicts(_rank_probabilities(logits), (logits > 0).sum(axis=1))
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
    start_at_log_odds: bool = True,
) -> pd.DataFrame:
    """Train a head as the report does: AdamW with weight decay 1e-4.

    The learning rate is multiplied by 0.3 after 5 epochs without a lower validation loss. After 10
    such epochs, training stops and the best weights are restored.

    Parameters
    ----------
    model : keras.Model
        From `perceptron` or `convolutional_head`; trained in place.
    data : Balanced
        Training data; each epoch takes one of its variants for each sample, where it has any.
    validation : tuple of np.ndarray
        Inputs (M, ...) and labels int (M,).
    ordinal : bool
        Whether the model ends in `RankLogits`.
    learning_rate : float
    batch_size, epochs : int
    seed : int
        Determines the order of the samples.
    progress : str, optional
        Title of a line that is printed at the end.
    start_at_log_odds : bool
        Whether the offsets of an ordinal model start at the log odds of the ranks, or at 0.

    Returns
    -------
    pd.DataFrame
        One row per epoch: epoch (from 1), loss, val_loss, accuracy, val_accuracy, learning_rate,
        seconds.
    """
    targets, wanted, variants = data.labels, np.asarray(validation[1]), data.variants
    if ordinal:
        classes = model.output_shape[-1] + 1
        if start_at_log_odds:
            odds = _log_odds_of_ranks(data.labels, data.sample_weights, classes)
            model.get_layer("ranks").offsets.assign(odds)
        targets, wanted = (_rank_targets(labels, classes) for labels in (targets, wanted))
    twin = _compiled(model.to_json(), ordinal)
    for variable in twin.optimizer.variables:
        variable.assign(keras.ops.zeros_like(variable))
    twin.optimizer.learning_rate = learning_rate
    _copy(model, twin)
    inputs = data.inputs if variants is None else np.arange(len(targets))
    inputs = np.asarray(inputs, np.float32 if variants is None else np.int64)
    rows = tf.data.Dataset.from_tensor_slices((inputs, targets, data.sample_weights))
    # Keras' own shuffle of arrays repeats its first order where operations are deterministic.
    rows = rows.shuffle(len(targets), seed=seed)
    if variants is not None:
        rows = _one_of(variants, rows, seed)
    begun = time.perf_counter()
    run = twin.fit(
        untuned(rows.batch(batch_size)),
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


def _one_of(variants: np.ndarray, rows: tf.data.Dataset, seed: int) -> tf.data.Dataset:
    """Replace each sample's number by one of its variants, another one in each epoch."""
    pool = tf.constant(np.asarray(variants, np.float32))
    numbers = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)

    def pick(row, number):
        sample, *others = row
        return pool[number % len(variants), sample], *others

    return tf.data.Dataset.zip(rows, numbers).map(pick)


@lru_cache(maxsize=16)
def _compiled(architecture: str, ordinal: bool) -> keras.Model:
    """Build and compile a network once: tracing takes longer than a short training.

    Its variables are set again for each training, also dropout's random state and Adam's moments.
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
    """Compute the fraction of inputs whose number of positive logits is the right grade."""
    counted = keras.ops.sum(keras.ops.cast(logits > 0, "float32"), axis=-1)
    return keras.ops.cast(counted == keras.ops.sum(targets, axis=-1), "float32")


# ---- support-vector machine ---------------------------------------------------------------------


def choose_svm(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int
) -> dict[str, float]:
    """Choose C and gamma of the RBF kernel by cross-validation within the training data.

    This comes before any balancing, because copies of a sample would be in two folds at once. The
    samples of a patient stay together.

    Parameters
    ----------
    features : np.ndarray, (N, D)
    labels : np.ndarray, int (N,)
    groups : np.ndarray, (N,)
        Patients.
    seed : int
        Seed of the folds.

    Returns
    -------
    dict of str to float
        C, gamma (for standardised features), and score: the best balanced accuracy, as a mean over
        folds.
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
    """Train a support-vector machine with RBF kernel on standardised features.

    Parameters
    ----------
    data : Balanced
        Training features (N, D).
    strength : float
        C.
    gamma : float

    Returns
    -------
    callable
        From features (N, D) to `Verdicts`.
    """
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
