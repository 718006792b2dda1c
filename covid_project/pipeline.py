"""From images to batches: shuffled and augmented for training, neither for everything else.

The images stay 8-bit grey until a batch is formed. Normalisation is not here: it is a layer of each
model.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from covid_project.augmentation import augment
from covid_project.data import ImageFiles
from covid_project.settings import Augmentation


def training_batches(
    images: np.ndarray | ImageFiles,
    labels: np.ndarray,
    batch_size: int,
    amounts: Augmentation,
    seed: int,
) -> tf.data.Dataset:
    """Form batches for training: a new order and new augmentations in each epoch.

    Parameters
    ----------
    images : np.ndarray or ImageFiles, uint8 (N, H, W, 1), grey values 0–255
    labels : np.ndarray, (N,), 0 or 1
    batch_size : int
        The last batch of an epoch may be smaller.
    amounts : Augmentation
        Range of each random transformation.
    seed : int
        Determines orders and augmentations.

    Returns
    -------
    tf.data.Dataset
        Finite, of (float32 (B, H, W, 1) in 0–255, float32 (B, 1)).

    Examples
    --------
    >>> batches = training_batches(images, labels, 8, settings.augmentation, seed=0)
    >>> next(iter(batches))[0].shape
    TensorShape([8, 32, 32, 1])
    """
    rows = tf.data.Dataset.range(len(labels)).shuffle(len(labels), seed=seed).batch(batch_size)
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
    read, labels = _reader(images), _column(labels)

    def form(chosen, batch_seed):
        return augment(read(chosen), amounts, batch_seed), tf.gather(labels, chosen)

    batches = tf.data.Dataset.zip(rows, seeds).map(form, num_parallel_calls=2)
    return untuned(batches.prefetch(2))


def evaluation_batches(
    images: np.ndarray | ImageFiles, labels: np.ndarray, batch_size: int = 64
) -> tf.data.Dataset:
    """Form batches in the given order, without any change.

    Parameters
    ----------
    images : np.ndarray or ImageFiles, (N, ...)
        Images or features.
    labels : np.ndarray, (N,), 0 or 1
    batch_size : int
        The last batch may be smaller.

    Returns
    -------
    tf.data.Dataset
        Finite, of (float32 (B, ...), float32 (B, 1)).

    Examples
    --------
    >>> len(evaluation_batches(images[:20], labels[:20], batch_size=8))
    3
    """
    rows = tf.data.Dataset.range(len(labels)).batch(batch_size)
    read, labels = _reader(images), _column(labels)

    def form(chosen):
        return tf.cast(read(chosen), tf.float32), tf.gather(labels, chosen)

    return untuned(rows.map(form).prefetch(2))


def feature_batches(
    copies: Sequence[np.ndarray], labels: np.ndarray, batch_size: int, seed: int
) -> tf.data.Dataset:
    """Form batches of cached features for training: one copy of each image, drawn at random.

    Parameters
    ----------
    copies : sequence of np.ndarray, each (N, ...)
        Features of the images and of their augmented copies (`models.feature_copies`).
    labels : np.ndarray, (N,), 0 or 1
    batch_size, seed : int
        As for `training_batches`.

    Returns
    -------
    tf.data.Dataset
        Finite, of (float32 (B, ...), float32 (B, 1)); an epoch holds every image once.

    Examples
    --------
    >>> copies = [np.zeros((4, 7)), np.ones((4, 7))]
    >>> next(iter(feature_batches(copies, np.array([0, 1, 0, 1]), 2, seed=0)))[0].shape
    TensorShape([2, 7])
    """
    rows = tf.data.Dataset.range(len(labels)).shuffle(len(labels), seed=seed)
    numbers = tf.data.Dataset.random(seed=seed + 1, rerandomize_each_iteration=True)
    labels = _column(labels)

    def gather(chosen, drawn):
        pairs = zip(chosen, drawn, strict=True)
        return np.stack([copies[k % len(copies)][row] for row, k in pairs]).astype(np.float32)

    read = _numpy_function(gather, tf.float32, (None, *copies[0].shape[1:]))

    def form(chosen, drawn):
        return read(chosen, drawn), tf.gather(labels, chosen)

    batches = tf.data.Dataset.zip(rows, numbers).batch(batch_size)
    return untuned(batches.map(form).prefetch(2))


def untuned(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Switch off the automatic tuning of a dataset; the batches stay the same.

    Its thread wakes up after 0.01, 0.02, 0.04, … seconds to choose buffer sizes, and an epoch may
    have to wait at its end until it wakes again: for nearly as long as the epoch took.

    Parameters
    ----------
    batches : tf.data.Dataset

    Returns
    -------
    tf.data.Dataset
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)


def _reader(images: np.ndarray | ImageFiles) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function that reads the images of some rows, without a copy of all images."""
    return _numpy_function(lambda rows: images[rows], images.dtype, (None, *images.shape[1:]))


def _numpy_function(function: Callable, kind, shape: tuple) -> Callable[..., tf.Tensor]:
    def call(*tensors: tf.Tensor) -> tf.Tensor:
        # Declared stateless: with deterministic operations others run one at a time.
        return tf.ensure_shape(tf.numpy_function(function, tensors, kind, stateful=False), shape)

    return call


def _column(labels: np.ndarray) -> tf.Tensor:
    return tf.constant(np.asarray(labels, np.float32)[:, None])
