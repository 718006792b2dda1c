"""Augmentation of the lung nodules: rotation, shear, zoom and both flips, in one interpolation.

The same function works ahead of time (`distorted_copies`) and during training
(`distorted_batches`).
"""

import math

import numpy as np
import tensorflow as tf

from covid_project.augmentation import transformed
from covid_project.pipeline import untuned

ROTATION, SHEAR, ZOOM = 30.0, 0.2, 0.2  # degrees; shift per pixel of height; fraction


def distorted(
    images: tf.Tensor,
    seed: tf.Tensor,
    *,
    rotation: float = ROTATION,
    shear: float = SHEAR,
    zoom: float = ZOOM,
    flips: bool = True,
) -> tf.Tensor:
    """Distort each image at random about its centre, with one interpolation.

    Parameters
    ----------
    images : tf.Tensor, uint8 or float32 (N, H, W, 1), 0–255
        Grey values.
    seed : tf.Tensor, int32 or int64 (2,)
        Seed; the same one gives the same images.
    rotation : float, from 0
        Largest rotation to either side, in degrees.
    shear : float, from 0
        Largest shear to either side: pixels sideways per pixel down.
    zoom : float, from 0
        Largest zoom in or out, as a fraction of the size.
    flips : bool
        Whether to mirror each image horizontally and vertically, each with probability one half.

    Returns
    -------
    tf.Tensor, float32 (N, H, W, 1), 0–255
        Distorted images. Pixels from outside the frame mirror those inside.
    """
    images = tf.cast(images, tf.float32)
    count = tf.shape(images)[0]
    seeds = iter(tf.unstack(tf.random.experimental.stateless_split(seed, 5)))

    def uniform(limit: float) -> tf.Tensor:  # (N,)
        return tf.random.stateless_uniform([count], next(seeds), -limit, limit)

    angle, lean = uniform(math.radians(rotation)), uniform(shear)
    scale = tf.exp(uniform(math.log1p(zoom)))
    across, down = (tf.where(uniform(1.0) < 0, -1.0, 1.0) for _ in range(2))
    if not flips:
        across, down = tf.ones([count]), tf.ones([count])
    cosine, sine = tf.cos(angle) / scale, tf.sin(angle) / scale
    # From a pixel of the result to its place in the source: flip, shear, then rotate and scale.
    a, b = cosine * across, (cosine * lean - sine) * down
    c, d = sine * across, (sine * lean + cosine) * down
    height, width = tf.unstack(tf.cast(tf.shape(images)[1:3], tf.float32))
    x, y = (width - 1) / 2, (height - 1) / 2
    zero = tf.zeros([count])
    matrices = [a, b, x - a * x - b * y, c, d, y - c * x - d * y, zero, zero]
    return transformed(images, tf.stack(matrices, axis=1))


def distorted_copies(images: np.ndarray, copies: int, seed: int) -> np.ndarray:
    """Distort images ahead of time.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, H, W, 1)
        Grey values.
    copies : int, from 0
        Copies of each image.
    seed : int
        Seed of the distortions.

    Returns
    -------
    np.ndarray, uint8 (copies · N, H, W, 1)
        All images once per copy.
    """
    made = [
        np.rint(distorted(images, tf.constant([seed, number], tf.int64))).astype(np.uint8)
        for number in range(copies)
    ]
    return np.concatenate(made) if made else images[:0]


def distorted_batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int, seed: int
) -> tf.data.Dataset:
    """Distort images during training: a new order and new distortions in each epoch.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, H, W, 1)
        Grey values.
    labels : np.ndarray, (N,)
        Labels.
    batch_size : int, from 1
        Images per batch (B).
    seed : int
        Seed of order and distortions.

    Returns
    -------
    tf.data.Dataset
        Finite data set of (float32 (B, H, W, 1) in 0–255, float32 (B, 1)).
    """
    targets = np.asarray(labels, np.float32)[:, None]
    rows = tf.data.Dataset.from_tensor_slices((images, targets)).shuffle(len(images), seed=seed)
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
    batches = tf.data.Dataset.zip(rows.batch(batch_size), seeds)
    batches = batches.map(
        lambda batch, number: (distorted(batch[0], number), batch[1]), num_parallel_calls=2
    )
    return untuned(batches.prefetch(2))
