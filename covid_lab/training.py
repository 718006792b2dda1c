"""Training of the studies' networks: compile, fit, and weights of unequal classes."""

from collections.abc import Callable, Mapping

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
) -> None:
    """Compile with Adam and binary cross-entropy; ``learning_rate`` is a number or a schedule."""
    model.compile(
        optimizer=optimizer(learning_rate),
        loss=loss(from_logits=True),
        metrics=classification_metrics(),
    )


def class_weights(labels: np.ndarray) -> dict[int, float]:
    """Return the weight of each label of (N,) with which all classes count the same.

    N / (K n) for n of N samples and K classes (King & Zeng 2001). The mean weight of the samples is
    1, so that the learning rate keeps its meaning.
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
    """Train a model on batches of (images or features, labels).

    Parameters
    ----------
    model : keras.Model
        Ends in one logit.
    batches : tf.data.Dataset
        Shuffled.
    learning_rate : float
        The largest value of the schedule.
    epochs : int
        To be trained at most.
    schedule_epochs : int, optional
        Length of the learning-rate schedule, at least ``epochs``. A final fit gives the length that
        the early-stopped training had, so that its steps are the same.
    validation : tf.data.Dataset, optional
    patience : int, optional
        Training stops when the validation loss has not fallen for so many epochs, and the model
        keeps its weights of the best epoch.
    plateau : int, optional
        Instead of the schedule: a constant learning rate, multiplied by ``PLATEAU_FACTOR`` whenever
        the validation loss has not fallen for so many epochs.
    class_weight : mapping, optional
        Weight of the images of each label in the training loss, as from `class_weights`.
    progress : str, optional
        What is being trained, for a line now and then; None is silent.
    **compilation
        ``optimizer`` and ``loss`` of `compile_classifier`, where not the default ones.

    Returns
    -------
    pd.DataFrame
        As ``TrainingLog.history``.

    Raises
    ------
    FloatingPointError
        The loss, the validation loss in every epoch, or a weight is not finite.
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
