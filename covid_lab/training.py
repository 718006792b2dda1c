"""Seed, compile, fit, refit, fine-tune. Every fit returns its history as a table."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tensorflow.python.framework import ops

from covid_project.augmentation import augment
from covid_project.settings import Augmentation
from covid_project.storage import cached_array

# Every trial is a new model and traced anew: TensorFlow's advice against that does not apply.
tf.get_logger().setLevel("ERROR")

BATCH = 64  # images per call wherever nothing is learned
PLATEAU_FACTOR = 0.3  # of the learning rate where the validation loss no longer falls
WARM_UP = 0.05  # share of the steps in which the learning rate rises to its value


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and TensorFlow, and make TensorFlow's operations deterministic.

    Seeds alone do not make two runs equal: parallel reductions would differ. From then on the
    shuffle that Keras' ``fit`` does of arrays repeats its first order in every epoch: batches must
    come shuffled (see ``pipeline``), with ``shuffle=False``.
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def compile_classifier(
    model: keras.Model,
    learning_rate,
    optimizer: Callable[..., keras.optimizers.Optimizer] = keras.optimizers.Adam,
    loss: Callable[..., keras.losses.Loss] = keras.losses.BinaryCrossentropy,
) -> None:
    """Adam and binary cross-entropy on the logit; ``learning_rate`` a number or a schedule."""
    model.compile(
        optimizer=optimizer(learning_rate),
        loss=loss(from_logits=True),
        metrics=[
            keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0),  # of a logit
            keras.metrics.AUC(name="auc", from_logits=True),
        ],
    )


def cosine_schedule(learning_rate: float, steps: int) -> keras.optimizers.schedules.CosineDecay:
    """Learning rate that rises in the first steps and then falls to 0 along a cosine.

    Loshchilov & Hutter 2017 (SGDR), eq. 5, without restarts.
    """
    warm_up = max(1, round(WARM_UP * steps))
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / 10,
        max(1, steps - warm_up),
        warmup_target=learning_rate,
        warmup_steps=warm_up,
    )


def class_weights(labels: np.ndarray) -> dict[int, float]:
    """`balanced_weights` of labels (N,) 0 and 1; ``ValueError`` where these are not both there."""
    counts = np.bincount(np.asarray(labels, int), minlength=2)
    if len(counts) != 2 or not counts.all():
        raise ValueError(f"labels must hold both 0 and 1 and nothing else, found counts {counts}")
    return balanced_weights(labels)


def balanced_weights(labels: np.ndarray) -> dict[int, float]:
    """Weight of each label, N / (K n) for n of its N samples, by which K classes count alike.

    King & Zeng 2001; scikit-learn's "balanced". The mean weight of the samples is 1, so the
    learning rate keeps its meaning.
    """
    classes, counts = np.unique(np.asarray(labels, int), return_counts=True)
    weights = len(labels) / (len(classes) * counts)
    return dict(zip(classes.tolist(), weights.tolist(), strict=True))


def fit(
    model: keras.Model,
    batches: tf.data.Dataset,
    *,
    learning_rate: float,
    epochs: int,
    schedule_epochs: int | None = None,
    validation: tf.data.Dataset | None = None,
    patience: int | None = None,
    plateau: int | None = None,
    class_weight: Mapping[int, float] | None = None,
    least_accuracy: float = 0.0,
    progress: str | None = None,
    **compilation,
) -> pd.DataFrame:
    """Train a model on batches of (images or features, labels).

    Parameters
    ----------
    epochs
        To be trained at most.
    schedule_epochs
        Length of the learning-rate schedule, at least ``epochs``. A refit gives the length that
        the early-stopped training had, so that its steps are the same.
    validation, patience
        With both, training stops when the validation loss has not fallen for ``patience`` epochs,
        and the model keeps its weights of the best epoch.
    plateau
        Instead of the schedule: a constant learning rate, multiplied by ``PLATEAU_FACTOR`` whenever
        the validation loss has not fallen for so many epochs.
    class_weight
        Weight of the images of each label in the training loss, as from ``class_weights``.
    least_accuracy
        Training accuracy below which an epoch counts as a sudden drop.
    progress
        What is being trained, for a line per epoch; None is silent.
    compilation
        ``optimizer`` and ``loss`` of ``compile_classifier``, where not the default ones.

    Returns
    -------
    One row per epoch: epoch (from 1), loss, accuracy, auc, the same with val_, learning_rate,
    seconds.

    Raises
    ------
    FloatingPointError
        The loss, the validation loss in every epoch, or a weight is not finite.
    SuddenDrop
        The training accuracy fell below ``least_accuracy``.
    """
    steps = len(batches) * (schedule_epochs or epochs)
    rate = learning_rate if plateau else cosine_schedule(learning_rate, steps)
    compile_classifier(model, rate, **compilation)
    clock = _Clock(progress, epochs)
    callbacks = [keras.callbacks.TerminateOnNaN(), clock, _Watch(least_accuracy)]
    if patience is not None:
        callbacks.append(
            keras.callbacks.EarlyStopping(
                monitor="val_loss", patience=patience, restore_best_weights=True
            )
        )
    if plateau is not None:
        callbacks.append(
            keras.callbacks.ReduceLROnPlateau(
                monitor="val_loss", factor=PLATEAU_FACTOR, patience=plateau, min_delta=0
            )
        )
    with _graphs_let_go():
        run = model.fit(
            batches,
            epochs=epochs,
            validation_data=validation,
            class_weight=class_weight and dict(class_weight),
            callbacks=callbacks,
            verbose=0,
            shuffle=False,
        )
    reason = _not_finite(model, run.history)
    if reason:
        raise FloatingPointError(
            f"{reason} no longer finite in epoch {len(run.history['loss'])} at learning rate "
            f"{learning_rate:g}; try a smaller one"
        )
    history = pd.DataFrame(run.history)
    history.insert(0, "epoch", np.arange(1, len(history) + 1))
    history["learning_rate"] = clock.learning_rates
    history["seconds"] = clock.seconds
    return history


@contextmanager
def _graphs_let_go() -> Iterator[None]:
    """Train inside it, and what TensorFlow traced goes when the model goes, not with the process.

    TensorFlow keeps every custom gradient for good (its issue 97697), and with it the graph that it
    was traced in. The steps of Keras's optimizers have one, though nobody takes their gradient: a
    network of a few thousand weights leaves 26 MiB behind per training.
    """
    # There is no public way to them. A release that keeps them elsewhere is left alone.
    kept = getattr(getattr(ops, "gradient_registry", None), "_registry", {})
    before = set(kept)
    try:
        yield
    finally:
        for name in kept.keys() - before:
            if name.startswith("CustomGradient-"):
                del kept[name]


def _not_finite(model: keras.Model, history: Mapping[str, list[float]]) -> str:
    """What is not finite, with its verb; "" where all is well.

    A loss is computed before the step that may ruin the weights: of the last step it tells nothing.
    """
    if not np.isfinite(history["loss"]).all():
        return "the loss is"
    if not np.isfinite(history.get("val_loss", [0.0])).any():
        return "the validation loss is"
    finite = all(np.isfinite(weight).all() for weight in model.get_weights())
    return "" if finite else "the weights are"


class SuddenDrop(FloatingPointError):
    """Training accuracy fell so far that what the model knew is lost: the steps are too long."""


class _Watch(keras.callbacks.Callback):
    """Stops a training whose accuracy drops below a floor."""

    def __init__(self, least_accuracy: float):
        super().__init__()
        self.least_accuracy = least_accuracy

    def on_epoch_end(self, epoch, logs=None):
        if logs["accuracy"] < self.least_accuracy:
            raise SuddenDrop(
                f"training accuracy {logs['accuracy']:.3f} in epoch {epoch + 1} is below "
                f"{self.least_accuracy:.3f}"
            )


class _Clock(keras.callbacks.Callback):
    """Seconds and learning rate of each epoch, and a line on how it goes."""

    def __init__(self, progress: str | None, epochs: int):
        super().__init__()
        self.progress, self.epochs = progress, epochs
        self.seconds, self.learning_rates = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.start)
        self.learning_rates.append(float(self.model.optimizer.learning_rate))
        if self.progress:
            left = np.mean(self.seconds) * (self.epochs - epoch - 1)
            numbers = "  ".join(f"{name} {value:.3f}" for name, value in (logs or {}).items())
            print(
                f"{self.progress}: epoch {epoch + 1} of {self.epochs}  {numbers}  "
                f"at most {left:.0f} s left",
                flush=True,
            )


def fine_tune(
    model: keras.Model,
    batches: tf.data.Dataset,
    *,
    learning_rate: float,
    epochs: int,
    sudden_drop: float,
    shrink: float,
    attempts: int,
    progress: str | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train a model that already works, with the task sheet's rule of the sudden drop.

    When the training accuracy of an epoch lies more than ``sudden_drop`` below what it was before,
    the model's weights are restored and it starts again with the learning rate times ``shrink``.

    Returns
    -------
    The history of the last attempt, and one row per attempt: attempt, learning_rate,
    accuracy_before, outcome ("kept" or why it was given up). When no attempt was kept, the model
    is as it was and the history is empty.
    """
    before = model.get_weights()
    accuracy = _accuracy_in_training(model, batches)
    model.set_weights(before)
    log = []
    for attempt in range(1, attempts + 1):
        row = {"attempt": attempt, "learning_rate": learning_rate, "accuracy_before": accuracy}
        try:
            history = fit(
                model,
                batches,
                learning_rate=learning_rate,
                epochs=epochs,
                least_accuracy=accuracy - sudden_drop,
                progress=progress,
            )
            return history, pd.DataFrame([*log, {**row, "outcome": "kept"}])
        except FloatingPointError as error:
            print(f"{progress or 'fine-tuning'}: attempt {attempt} given up: {error}", flush=True)
            log.append({**row, "outcome": str(error)})
            model.set_weights(before)
            learning_rate *= shrink
    return pd.DataFrame(columns=["epoch", "loss", "accuracy"]), pd.DataFrame(log)


def _accuracy_in_training(model: keras.Model, batches: tf.data.Dataset) -> float:
    """Accuracy as the first epoch would report it if it learned nothing: with dropout at work."""
    metric = keras.metrics.BinaryAccuracy(threshold=0.0)  # of a logit
    for inputs, labels in batches:
        metric.update_state(labels, model(inputs, training=True))
    return float(metric.result())


def best_epoch(history: pd.DataFrame) -> int:
    """Epoch (from 1) with the lowest validation loss: how long a refit trains."""
    return int(history["epoch"][history["val_loss"].idxmin()])


def logits(model: keras.Model, inputs: np.ndarray) -> np.ndarray:
    """Outputs float32 (N,) of a one-logit model for images (N, H, W, 1) or features (N, ...)."""
    return outputs(model, inputs)[:, 0]


def outputs(
    model: keras.Model,
    inputs: np.ndarray,
    *,
    change: Callable[[tf.Tensor, int], tf.Tensor] | None = None,
    progress: str | None = None,
) -> np.ndarray:
    """Outputs float32 (N, ...) in inference mode, batch by batch.

    One compiled call per batch: ``predict`` costs twice as much. Inputs (N, ...) of any number type
    may be mapped from disk; ``change(batch, first)`` may alter a batch, given the row it starts at.
    """
    parts, start, shown = [], time.perf_counter(), time.perf_counter()
    for first in range(0, len(inputs), BATCH):
        batch = tf.constant(inputs[first : first + BATCH].astype(np.float32))
        found = model.predict_on_batch(change(batch, first) if change else batch)
        parts.append(found[: len(batch)])  # of several devices each gives the whole batch
        now = time.perf_counter()
        if progress and now - shown > 5:
            done, shown = first + len(batch), now
            left = (now - start) / done * (len(inputs) - done)
            print(f"{progress}: {done} of {len(inputs)}, {left:.0f} s left", flush=True)
    return np.concatenate(parts)


def copied_features(
    folder: Path,
    below: keras.Model,
    images: np.ndarray,
    *,
    copies: int,
    amounts: Augmentation,
    seed: int,
    progress: str,
) -> list[np.ndarray]:
    """Features of the images and of their fixed augmented copies, each computed once.

    Parameters
    ----------
    folder
        Where the arrays are kept: one file per copy, so that a run cut off goes on with the next.
        Its name must tell the data, the size and the weights of ``below`` apart.
    below
        The frozen layers: images (N, H, W, 1) → features.
    images
        uint8 (N, H, W, 1).
    copies
        How many augmented copies beside the images themselves.

    Returns
    -------
    1 + ``copies`` arrays (N, ...), mapped from disk: pooled features in single precision, feature
    maps in half, which halves what is read and is far finer than their training noise.
    """
    kind = np.float16 if len(below.output.shape) == 4 else np.float32

    def compute(number: int) -> np.ndarray:
        def change(batch, first):
            return augment(batch, amounts, tf.constant([seed + number, first], tf.int64))

        title = f"{progress}, copy {number} of {copies}"
        return outputs(below, images, change=change if number else None, progress=title).astype(
            kind
        )

    return [
        cached_array(folder / f"copy{number}.npy", lambda number=number: compute(number))
        for number in range(copies + 1)
    ]
