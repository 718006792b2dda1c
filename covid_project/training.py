"""What every training needs: the seed, the learning rate, the history and two watchers."""

import time

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from covid_project.files import fingerprint

WARM_UP = 0.05  # fraction of the steps in which the learning rate rises to its value


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and TensorFlow, and make TensorFlow's operations deterministic.

    With deterministic operations Keras' ``fit`` would shuffle arrays into the same order in every
    epoch; the batches of `pipeline` have a new order in each.
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def classification_metrics() -> list[keras.metrics.Metric]:
    """Return accuracy and AUC for a model that ends in one logit."""
    return [
        keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0),  # logit 0: probability 0.5
        keras.metrics.AUC(name="auc", from_logits=True),
    ]


def cosine_schedule(learning_rate: float, steps: int) -> keras.optimizers.schedules.CosineDecay:
    """Return a learning rate that rises in the first steps and then falls to 0 along a cosine.

    Loshchilov & Hutter 2017 (SGDR), eq. 5, without restarts.

    Parameters
    ----------
    learning_rate : float
        Its largest value.
    steps : int
        Batches of the whole schedule.
    """
    warm_up = max(1, round(WARM_UP * steps))
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / 10,
        max(1, steps - warm_up),
        warmup_target=learning_rate,
        warmup_steps=warm_up,
    )


class TrainingLog(keras.callbacks.Callback):
    """Collect the history of a training and print a line on its progress now and then.

    Attributes
    ----------
    history : pd.DataFrame
        One row per epoch: epoch (from 1), loss, accuracy, auc, the same with ``val_``,
        learning_rate, seconds. ``history.attrs["initial_model"]`` is the fingerprint of the weights
        before the first step.

    Raises
    ------
    FloatingPointError
        At the end of an epoch whose loss, or of a training whose weights are no longer finite.
    """

    def __init__(self, title: str | None = None, every: float = 10.0):
        super().__init__()
        self.title, self.every = title, every
        self.rows, self.shown = [], time.perf_counter()

    @property
    def history(self) -> pd.DataFrame:
        """The table of all epochs so far."""
        history = pd.DataFrame(self.rows)
        history.attrs["initial_model"] = self.initial_model
        return history

    def on_train_begin(self, logs=None):
        """Remember the weights that the training begins with."""
        self.initial_model = fingerprint(*self.model.get_weights())

    def on_epoch_begin(self, epoch, logs=None):
        """Start the clock."""
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Add a row, and print a line where the last one is some seconds old."""
        now = time.perf_counter()
        rate = float(self.model.optimizer.learning_rate)
        self.rows.append(
            {"epoch": epoch + 1, **logs, "learning_rate": rate, "seconds": now - self.start}
        )
        if not np.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"the loss is {logs['loss']} in epoch {epoch + 1} at learning rate {rate:g}; "
                "try a smaller one"
            )
        if self.title and now - self.shown > self.every:
            self.shown = now
            numbers = [f"{name} {logs[name]:.3f}" for name in ("loss", "val_loss") if name in logs]
            print(f"{self.title}: epoch {epoch + 1}, {', '.join(numbers)}", flush=True)

    def on_train_end(self, logs=None):
        """Check the weights: the last step may have ruined them after the loss was computed."""
        if not all(np.isfinite(weights).all() for weights in self.model.get_weights()):
            raise FloatingPointError("a weight is not finite; try a smaller learning rate")


class SuddenDrop(keras.callbacks.Callback):
    """Stop a training whose training accuracy falls suddenly.

    Attributes
    ----------
    message : str
        What happened; "" while nothing did.
    """

    def __init__(self, least_accuracy: float):
        super().__init__()
        self.least_accuracy, self.message = least_accuracy, ""

    def on_epoch_end(self, epoch, logs=None):
        """Compare the accuracy of the epoch with the smallest one allowed."""
        if logs["accuracy"] < self.least_accuracy:
            self.message = (
                f"training accuracy {logs['accuracy']:.3f} in epoch {epoch + 1} is below "
                f"{self.least_accuracy:.3f}"
            )
            self.model.stop_training = True


def training_accuracy(model: keras.Model, batches: tf.data.Dataset) -> float:
    """Return the accuracy that an epoch would report if it learned nothing: dropout at work."""
    weights = model.get_weights()  # BatchNormalization may move its statistics
    metric = keras.metrics.BinaryAccuracy(threshold=0.0)
    for inputs, labels in batches:
        metric.update_state(labels, model(inputs, training=True))
    model.set_weights(weights)
    return float(metric.result())


def best_epoch(history: pd.DataFrame) -> int:
    """Return the epoch (from 1) with the lowest validation loss: how long the final fit trains."""
    return int(history["epoch"][history["val_loss"].idxmin()])
