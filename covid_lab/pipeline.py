"""One way from arrays to batches: shuffled and augmented for training, neither for all else.

The images stay uint8 until a batch is formed. Normalisation is not here: it lives in the model.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from covid_project.augmentation import augment
from covid_project.devices import replicas
from covid_project.settings import Augmentation


def training_batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int, amounts: Augmentation, seed: int
) -> tf.data.Dataset:
    """Batches for training: a new order and new augmentations in each epoch, all from the seed.

    Parameters
    ----------
    images
        uint8 (N, H, W, 1), grey values 0–255.
    labels
        (N,), 0 or 1.

    Returns
    -------
    Finite dataset of (float32 (B, H, W, 1) in 0–255, float32 (B, 1)); the last batch may be
    smaller, and is left out where several devices share the batches (see ``devices``).
    """
    return changed_batches(
        images, labels, batch_size, lambda batch, number: augment(batch, amounts, number), seed
    )


def changed_batches(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    change: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    seed: int,
) -> tf.data.Dataset:
    """`training_batches` with any random ``change`` of images (B, H, W, 1), given a seed (2,)."""
    read, labels = _reader(images), _column(labels)
    rows = tf.data.Dataset.range(len(images)).shuffle(len(images), seed=seed)
    numbers = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)

    def form(row, number):
        return change(read(row), number), tf.gather(labels, row)

    batches = tf.data.Dataset.zip(_batched(rows, batch_size), numbers)
    return batches.map(form, num_parallel_calls=2).prefetch(2)


def evaluation_batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int = 64
) -> tf.data.Dataset:
    """Batches in the given order, nothing changed: (float32 (B, H, W, 1) in 0–255, (B, 1))."""
    rows = tf.data.Dataset.range(len(images)).batch(batch_size)
    if replicas() > 1:
        edges = _shared_edges(len(images), batch_size, replicas())
        rows = tf.data.Dataset.from_tensor_slices((edges[:-1], edges[1:])).map(tf.range)
    read, labels = _reader(images), _column(labels)
    return rows.map(lambda row: (tf.cast(read(row), tf.float32), tf.gather(labels, row))).prefetch(
        2
    )


def _reader(images: np.ndarray) -> Callable[[tf.Tensor], tf.Tensor]:
    """What gives the images of some rows, from memory or from where they are mapped; no copy."""
    return _numpy(lambda rows: images[rows], images.dtype, (None, *images.shape[1:]))


def _numpy(function: Callable, kind, shape: tuple) -> Callable[..., tf.Tensor]:
    """A NumPy function of tensors as part of a dataset; its result depends on them alone."""

    def call(*tensors: tf.Tensor) -> tf.Tensor:
        # Said to be stateless: of others, TensorFlow's determinism lets one run at a time.
        return tf.ensure_shape(tf.numpy_function(function, tensors, kind, stateful=False), shape)

    return call


def _shared_edges(images: int, batch_size: int, devices: int) -> list[int]:
    """Where the batches begin and end that devices share: none may go away with no image.

    All but the last are a multiple of ``devices``, since Keras asks for like parts in the first;
    the last takes what would not go round.
    """
    size = max(devices, min(batch_size, images // 2) // devices * devices)
    edges = list(range(0, images - devices + 1, size))
    return [*edges, images]


def feature_batches(
    features: Sequence[np.ndarray], labels: np.ndarray, batch_size: int, seed: int
) -> tf.data.Dataset:
    """Batches of cached features for training: of each image one of its copies, drawn anew.

    Parameters
    ----------
    features
        Of each copy of the images an array (N, ...) (see ``training.copied_features``).
    labels
        (N,), 0 or 1.

    Returns
    -------
    Finite dataset of (float32 (B, ...), float32 (B, 1)); an epoch holds every image once.
    """
    labels = _column(labels)
    rows = tf.data.Dataset.range(len(labels)).shuffle(len(labels), seed=seed)
    copies = tf.data.Dataset.random(seed=seed + 1, rerandomize_each_iteration=True)

    def gather(rows, copies):
        # The arrays may be mapped from disk and larger than memory: NumPy reads the rows alone.
        return np.stack(
            [features[copy % len(features)][row] for row, copy in zip(rows, copies, strict=True)]
        ).astype(np.float32)

    read = _numpy(gather, tf.float32, (None, *features[0].shape[1:]))

    def form(row, copy):
        return read(row, copy), tf.gather(labels, row)

    return _batched(tf.data.Dataset.zip(rows, copies), batch_size).map(form).prefetch(2)


def _batched(rows: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    """Batches for training; where several devices share them, an incomplete last one is left out.

    Its parts would be unlike, or of some devices empty, and count as much as the others.
    """
    devices = replicas()
    if devices == 1:
        return rows.batch(batch_size)
    if batch_size % devices:
        raise ValueError(
            f"batch_size is {batch_size}, to be shared by {devices} devices; allowed: multiples "
            f"of {devices}"
        )
    return rows.batch(min(batch_size, len(rows) // devices * devices), drop_remainder=True)


def _column(labels: np.ndarray) -> tf.Tensor:
    return tf.constant(np.asarray(labels, np.float32)[:, None])
