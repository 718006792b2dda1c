"""Benchmarks of training: steps and sweeps, against the usual ways to do the same.

The images are drawn; the time of a step does not depend on their content.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from benchmarks.runner import Benchmark
from covid_lab.phantoms import draw_radiograph
from covid_lab.training import compile_classifier, fit
from covid_project.augmentation import NONE, augment
from covid_project.models import (
    BATCH,
    baseline_cnn,
    build_backbone,
    classification_head,
    feature_copies,
    logits,
    transfer_head,
)
from covid_project.normalization import normalization_layer
from covid_project.pipeline import feature_batches, training_batches
from covid_project.settings import Augmentation
from covid_project.training import set_seed

AUGMENTATION = Augmentation(flip=True, rotation=10, zoom=0.1, shift=0, brightness=0, contrast=0)
SAME_ACCURACY = 0.02
SAME_LOSS = 1e-4


@dataclass(frozen=True)
class Scale:
    """Scale of the benchmarks: the promised one by default, or tiny to test them."""

    images: int = 512
    stored_size: int = 256  # pixels of the files
    image_size: int = 128
    batch: int = 64
    filters: int = 16  # of the course's baseline
    learned: int = 960  # images, of which two thirds are held out
    epochs: int = 25
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
    for part in (waiting, steps, sweep):
        yield from part(scale)
        keras.backend.clear_session()


def waiting(scale: Scale) -> Iterator[Benchmark]:
    """Measure the fraction of an epoch of the baseline that is not spent waiting for batches.

    Parameters
    ----------
    scale : Scale
        Scale of the benchmarks.

    Yields
    ------
    Benchmark
        One comparison.
    """
    images, labels = _radiographs(scale.images, scale.image_size)
    model = _baseline(images, scale)
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


def steps(scale: Scale) -> Iterator[Benchmark]:
    """Measure training steps of the baseline and of plain networks; their accuracies are compared.

    Parameters
    ----------
    scale : Scale
        Scale of the benchmarks.

    Yields
    ------
    Benchmark
        One comparison.
    """
    images, labels = _radiographs(scale.learned, scale.image_size)
    held = scale.learned * 2 // 3
    learning = training_batches(images[held:], labels[held:], 32, NONE, seed=0)
    batch = (images[: scale.batch].astype(np.float32), labels[: scale.batch, None])

    def side(build: Callable[[], keras.Model]) -> Callable[[], float]:
        # Trains at once; the function that is returned takes eight steps.
        set_seed(0)
        model = build()
        fit(model, learning, learning_rate=2e-3, epochs=scale.epochs)
        accuracy = ((logits(model, images[:held]) > 0) == labels[:held]).mean()
        compile_classifier(model, 1e-3)

        def eight_steps() -> float:
            for _ in range(8):
                model.train_on_batch(*batch)
            return accuracy

        return eight_steps

    ours = side(lambda: _baseline(images, scale))
    # With as many feature maps as ours, the plain network is less accurate: nothing is promised.
    equal = {"promised": 3, "tolerance": SAME_ACCURACY}
    widths = {scale.filters: {}, scale.filters * 3 // 2: equal, scale.filters * 2: equal}
    for filters, facts in widths.items():
        yield Benchmark(
            name=f"8 training steps of the baseline, {scale.image_size} px, batch {scale.batch}",
            against=f"plain convolution, BatchNorm, ReLU, pooling, from {filters} feature maps on",
            ours=ours,
            peer=side(lambda filters=filters: plain_cnn(scale.image_size, filters)),
            agreement=lambda found, expected: abs(found - expected),
            repeats=scale.repeats,
            **facts,
        )


def sweep(scale: Scale) -> Iterator[Benchmark]:
    """Measure all trials of a head on features on disk, against epochs through the backbone.

    Both train on the same augmented copies. One epoch of the peer is timed and counted as often as
    the sweep has epochs.

    Parameters
    ----------
    scale : Scale
        Scale of the benchmarks.

    Yields
    ------
    Benchmark
        One comparison.
    """
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


def plain_cnn(image_size: int, filters: int) -> keras.Model:
    """Build a plain network: four times convolution, BatchNorm, ReLU and pooling.

    Parameters
    ----------
    image_size : int, from 16
        Pixels along each side.
    filters : int, from 1
        Feature maps of the first convolution; each further one has twice as many.

    Returns
    -------
    keras.Model
        Model with one logit for grey images (N, image_size, image_size, 1), 0–255.
    """
    images = keras.Input((image_size, image_size, 1))
    x = layers.Rescaling(1 / 127.5, -1)(images)
    for width in (filters, 2 * filters, 4 * filters, 8 * filters):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.95)(x)  # as in ours: there are few steps
        x = layers.MaxPooling2D()(layers.ReLU()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, classification_head(x, dropout=0.3))


def _baseline(images: np.ndarray, scale: Scale) -> keras.Model:
    norm = normalization_layer("fixed", images)
    model = baseline_cnn(scale.image_size, norm, filters=scale.filters, dropout=0.3)
    compile_classifier(model, 1e-3)
    return model


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
