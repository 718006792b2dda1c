"""What every training needs: seed, metrics, learning rate, history, a stop at a sudden drop."""

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

    Parameters
    ----------
    seed : int

    Examples
    --------
    >>> set_seed(1)
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def classification_metrics() -> list[keras.metrics.Metric]:
    """Build the metrics accuracy and AUC for a model that ends in one logit.

    Returns
    -------
    list of keras.metrics.Metric

    Examples
    --------
    >>> [metric.name for metric in classification_metrics()]
    ['accuracy', 'auc']
    """
    return [
        keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0),  # logit 0: probability 0.5
        keras.metrics.AUC(name="auc", from_logits=True),
    ]


def cosine_schedule(learning_rate: float, steps: int) -> keras.optimizers.schedules.CosineDecay:
    """Build a learning rate that rises in the first steps and then falls to 0 along a cosine.

    Loshchilov & Hutter 2017 (SGDR), eq. 5, without restarts.

    Parameters
    ----------
    learning_rate : float
        Its largest value.
    steps : int
        Batches of the whole schedule.

    Returns
    -------
    keras.optimizers.schedules.CosineDecay

    Examples
    --------
    >>> schedule = cosine_schedule(0.01, steps=100)
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 100)]
    [0.001, 0.01, 0.0]
    """
    warm_up = max(1, round(WARM_UP * steps))
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / 10,
        max(1, steps - warm_up),
        warmup_target=learning_rate,
        warmup_steps=warm_up,
    )


class TrainingLog(keras.callbacks.Callback):
    """Collect the history of a training, and print a line on its progress now and then.

    Parameters
    ----------
    title : str, optional
        Beginning of the printed lines; by default nothing is printed.
    every : float
        Seconds between two lines.

    Attributes
    ----------
    history : pd.DataFrame
        One row per epoch: epoch (from 1), loss, accuracy, auc, the same with ``val_``,
        learning_rate, seconds. ``history.attrs["initial_model"]`` is the fingerprint of the weights
        before the first step.

    Raises
    ------
    FloatingPointError
        The loss is not finite at the end of an epoch, or a weight at the end of the training.

    Examples
    --------
    >>> log = TrainingLog()
    >>> model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    >>> _ = model.fit(images, labels, callbacks=[log], verbose=0)
    >>> log.history.columns.tolist()
    ['epoch', 'loss', 'learning_rate', 'seconds']
    """

    def __init__(self, title: str | None = None, every: float = 10.0):
        super().__init__()
        self.title, self.every = title, every
        self.rows, self.shown = [], time.perf_counter()

    @property
    def history(self) -> pd.DataFrame:
        """Table of all epochs so far.

        Returns
        -------
        pd.DataFrame
        """
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
        """Check that the weights are finite: the last step comes after the last loss."""
        if not all(np.isfinite(weights).all() for weights in self.model.get_weights()):
            raise FloatingPointError("a weight is not finite; try a smaller learning rate")


class SuddenDrop(keras.callbacks.Callback):
    """Stop a training whose training accuracy falls suddenly.

    Parameters
    ----------
    least_accuracy : float
        Smallest training accuracy allowed at the end of an epoch.

    Attributes
    ----------
    message : str
        What happened; "" while nothing did.

    Examples
    --------
    >>> SuddenDrop(least_accuracy=0.7).message
    ''
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
    """Compute the accuracy that an epoch would report if it learned nothing, with dropout active.

    Parameters
    ----------
    model : keras.Model
        Ends in one logit; its weights are unchanged afterwards.
    batches : tf.data.Dataset
        Of inputs and labels.

    Returns
    -------
    float

    Examples
    --------
    >>> batches = tf.data.Dataset.from_tensors((images, labels[:, None]))
    >>> 0 <= training_accuracy(model, batches) <= 1
    True
    """
    weights = model.get_weights()  # BatchNormalization may move its statistics
    metric = keras.metrics.BinaryAccuracy(threshold=0.0)
    for inputs, labels in batches:
        metric.update_state(labels, model(inputs, training=True))
    model.set_weights(weights)
    return float(metric.result())


def best_epoch(history: pd.DataFrame) -> int:
    """Find the epoch with the lowest validation loss: how long the final fit trains.

    Parameters
    ----------
    history : pd.DataFrame
        From `TrainingLog`.

    Returns
    -------
    int
        From 1.

    Examples
    --------
    >>> best_epoch(pd.DataFrame({"epoch": [1, 2, 3], "val_loss": [0.6, 0.4, 0.5]}))
    2
    """
    return int(history["epoch"][history["val_loss"].idxmin()])
