"""Training of the studies' networks: compile, fit, and class weights."""

from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.utils.class_weight import compute_class_weight

from covid_project.training import TrainingLog, classification_metrics, cosine_schedule

PLATEAU_FACTOR = 0.3  # of the learning rate when the validation loss no longer falls


def compile_classifier(
    model: keras.Model,
    learning_rate,
    optimizer: Callable[..., keras.optimizers.Optimizer] = keras.optimizers.Adam,
    loss: Callable[..., keras.losses.Loss] = keras.losses.BinaryCrossentropy,
    metrics: Sequence[keras.metrics.Metric] = (),
) -> None:
    """Compile a classifier with one logit, by default with Adam and binary cross-entropy.

    Parameters
    ----------
    model : keras.Model
        Ends in one logit.
    learning_rate : float, above 0, or keras.optimizers.schedules.LearningRateSchedule
    optimizer : callable
        Given the learning rate, returns an optimizer.
    loss : callable
        Given ``from_logits=True``, returns a loss.
    metrics : sequence of keras.metrics.Metric
        Further metrics than accuracy and AUC.

    Examples
    --------
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> compile_classifier(model, 0.01)
    >>> type(model.optimizer).__name__
    'Adam'
    """
    model.compile(
        optimizer=optimizer(learning_rate),
        loss=loss(from_logits=True),
        metrics=[*classification_metrics(), *metrics],
    )


def class_weights(labels: np.ndarray) -> dict[int, float]:
    """Compute the weights of the labels with which all classes count the same.

    N / (K n) for n of N images and K classes (King & Zeng 2001, Political Analysis). The mean
    weight of the images is 1, so that the learning rate keeps its meaning.

    Parameters
    ----------
    labels : np.ndarray, int (N,)

    Returns
    -------
    dict of int to float
        Label → weight.

    Examples
    --------
    >>> class_weights([0, 0, 0, 1])
    {0: 0.6666666666666666, 1: 2.0}
    """
    labels = np.asarray(labels, int)
    classes = np.unique(labels)
    weights = compute_class_weight("balanced", classes=classes, y=labels)
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
    progress: str | None = None,
    **compilation,
) -> pd.DataFrame:
    """Train a model on batches of images or features with their labels.

    Parameters
    ----------
    model : keras.Model
        Ends in one logit.
    batches : tf.data.Dataset
        Shuffled batches of (inputs, labels).
    learning_rate : float, above 0
        Largest value of the schedule.
    epochs : int, from 1
        Most epochs that are trained.
    schedule_epochs : int, optional
        Length of the learning-rate schedule, at least ``epochs``. A final fit takes the length that
        the early-stopped training had, so that its steps are the same.
    validation : tf.data.Dataset, optional
        Batches of (inputs, labels).
    patience : int, optional
        Early stopping: training ends after this many epochs without a lower validation loss, and
        the model keeps the weights of its best epoch.
    plateau : int, optional
        Instead of the schedule, a constant learning rate, multiplied by `PLATEAU_FACTOR` after this
        many epochs without a lower validation loss.
    class_weight : mapping of int to float, optional
        Weight of each label in the training loss, as from `class_weights`.
    progress : str, optional
        Name of the training in its lines of progress; None is silent.
    **compilation : object
        ``optimizer``, ``loss`` and ``metrics`` of `compile_classifier`, where they differ from its
        defaults.

    Returns
    -------
    pd.DataFrame
        See `covid_project.training.TrainingLog.history`.

    Raises
    ------
    FloatingPointError
        The loss, the validation loss in every epoch, or a weight is not finite.

    Examples
    --------
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> batches = tf.data.Dataset.from_tensors((np.eye(4), np.array([[0], [1], [0], [1]])))
    >>> fit(model, batches, learning_rate=0.01, epochs=2)["epoch"].tolist()
    [1, 2]
    """
    steps = len(batches) * (schedule_epochs or epochs)
    rate = learning_rate if plateau else cosine_schedule(learning_rate, steps)
    compile_classifier(model, rate, **compilation)
    log = TrainingLog(progress)
    callbacks = [log]
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
    model.fit(
        batches,
        epochs=epochs,
        validation_data=validation,
        class_weight=class_weight and dict(class_weight),
        callbacks=callbacks,
        verbose=0,
        shuffle=False,
    )
    history = log.history
    if "val_loss" in history and not np.isfinite(history["val_loss"]).any():
        raise FloatingPointError(
            f"the validation loss is not finite at learning rate {learning_rate:g}; "
            "try a smaller one"
        )
    return history
