"""Benchmarks of training: waiting for batches, and a sweep against the usual way to do it.

The images are drawn; the time of a step does not depend on their content.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from benchmarks.runner import Benchmark
from covid_lab.phantoms import draw_radiograph
from covid_lab.training import compile_classifier, fit
from covid_project.augmentation import augment
from covid_project.models import (
    BATCH,
    baseline_cnn,
    build_backbone,
    feature_copies,
    transfer_head,
)
from covid_project.normalization import normalization_layer
from covid_project.pipeline import feature_batches, training_batches
from covid_project.settings import Augmentation
from covid_project.training import set_seed

AUGMENTATION = Augmentation(flip=True, rotation=10, zoom=0.1, shift=0, brightness=0, contrast=0)
SAME_LOSS = 1e-4


@dataclass(frozen=True)
class Scale:
    """Scale of the benchmarks: the promised one by default, or tiny to test them."""

    images: int = 512
    image_size: int = 128
    batch: int = 64
    trials: int = 27
    trial_epochs: int = 30
    features: int = 128  # images of the sweep
    transfer_size: int = 128
    repeats: int = 7
    long_repeats: int = 3


def benchmarks(scale: Scale | None = None) -> Iterator[Benchmark]:
    """Measure all parts of training, one at a time.

    Each part starts when the one before is finished, so that no two networks share the memory.

    Parameters
    ----------
    scale : Scale, optional
        Scale of the benchmarks; None: as promised.

    Yields
    ------
    Benchmark
        One comparison.
    """
    scale = scale or Scale()
    for part in (_waiting, _sweep):
        yield from part(scale)
        keras.backend.clear_session()


def _waiting(scale: Scale) -> Iterator[Benchmark]:
    """Measure the fraction of an epoch of the baseline that is not spent waiting for batches."""
    images, labels = _radiographs(scale.images, scale.image_size)
    model = baseline_cnn(
        scale.image_size, normalization_layer("fixed", images), filters=16, dropout=0.3
    )
    compile_classifier(model, 1e-3)
    data = training_batches(images, labels, scale.batch, AUGMENTATION, seed=0)

    def busy_fraction() -> float:
        waited, start, source = 0.0, time.perf_counter(), iter(data)
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            waited += time.perf_counter() - asked
            if batch is None:
                return 1 - waited / (time.perf_counter() - start)
            model.train_on_batch(*batch)

    busy_fraction()
    yield Benchmark(
        name=f"training epoch of the baseline, {scale.image_size} px: time not spent waiting",
        against="the whole epoch",
        ours=lambda: 1.0,
        peer=busy_fraction,
        promised=0.95,
        repeats=scale.repeats,
        unit="share of the time",
    )


def _sweep(scale: Scale) -> Iterator[Benchmark]:
    """Measure all trials of a head on features on disk, against epochs through the backbone."""
    images, labels = _radiographs(scale.features, scale.transfer_size)
    held, copies = scale.features // 4, 2
    backbone = build_backbone("MobileNetV2", scale.transfer_size, weights="random")
    backbone.trainable = False
    rates = np.geomspace(1e-3, 1e-1, scale.trials)
    pictures = [images.astype(np.float32)]
    pictures += [_copy(images, number) for number in range(1, copies + 1)]

    def first_loss(model: keras.Model, inputs: list, rate: float, epochs: int) -> float:
        # Returns the validation loss after the first epoch.
        history = fit(
            model,
            feature_batches([copy[held:] for copy in inputs], labels[held:], scale.batch, 0),
            validation=feature_batches([inputs[0][:held]], labels[:held], scale.batch, 0),
            learning_rate=rate,
            epochs=epochs,
            schedule_epochs=scale.trial_epochs,
        )
        return history["val_loss"][0]

    def new_head() -> keras.Model:
        set_seed(0)
        return transfer_head(backbone.output.shape[1], dropout=0)

    def from_features() -> float:
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
            features = feature_copies(
                Path(folder),
                backbone,
                images,
                copies=copies,
                amounts=AUGMENTATION,
                seed=0,
            )
            losses = [first_loss(new_head(), features, rate, scale.trial_epochs) for rate in rates]
        return losses[0]

    def epoch_through_backbone() -> float:
        model = keras.Model(backbone.input, new_head()(backbone.output))
        return first_loss(model, pictures, rates[0], 1)

    yield Benchmark(
        name=f"sweep of {scale.trials} trials × {scale.trial_epochs} epochs, MobileNetV2, "
        f"{scale.transfer_size} px, {scale.features} images",
        against=f"one epoch through the frozen backbone, × {scale.trials * scale.trial_epochs}",
        ours=from_features,
        peer=epoch_through_backbone,
        peer_counts=scale.trials * scale.trial_epochs,
        promised=25,
        agreement=lambda found, expected: abs(found - expected),
        tolerance=SAME_LOSS,
        repeats=scale.long_repeats,
    )


def _radiographs(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw images, uint8 (count, size, size, 1), with alternating labels 0 and 1."""
    labels = np.arange(count) % 2
    drawn = [
        draw_radiograph(np.random.default_rng(number), size, "moderate" if label else None)
        for number, label in enumerate(labels)
    ]
    return np.stack([np.asarray(one.image)[..., None] for one in drawn]), labels


def _copy(images: np.ndarray, number: int) -> np.ndarray:
    """Return an augmented copy, drawn like those of `feature_copies`."""
    return np.concatenate(
        [
            augment(
                images[first : first + BATCH], AUGMENTATION, tf.constant([number, first], tf.int64)
            )
            for first in range(0, len(images), BATCH)
        ]
    )
