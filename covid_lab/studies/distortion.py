"""The augmentations of the lung nodules: rotation, shear, zoom and both flips, fused into one.

Ahead of time (`distorted_copies`) or on the fly (`distorted_batches`), by the same function.
"""

import math

import numpy as np
import tensorflow as tf

from covid_project.augmentation import transformed
from covid_project.pipeline import untuned

ROTATION, SHEAR, ZOOM = 30.0, 0.2, 0.2  # degrees; shift per pixel of height; share


def distorted(
    images: tf.Tensor,
    seed: tf.Tensor,
    *,
    rotation: float = ROTATION,
    shear: float = SHEAR,
    zoom: float = ZOOM,
    flips: bool = True,
) -> tf.Tensor:
    """Each image distorted at random about its centre, interpolated once.

    Parameters
    ----------
    images
        (N, H, W, 1), grey values 0–255, uint8 or float32.
    seed
        int32 or int64 (2,). The same seed gives the same images.
    rotation, shear, zoom
        Largest amounts, either way: degrees, pixels sideways per pixel down, and share of the size.
    flips
        Whether each image is mirrored across and down, each with probability one half.

    Returns
    -------
    float32 (N, H, W, 1), 0–255. What comes in from outside the frame mirrors what is inside.
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
    # From a pixel of the result to its place in the source: flip, shear, then turn and shrink.
    a, b = cosine * across, (cosine * lean - sine) * down
    c, d = sine * across, (sine * lean + cosine) * down
    height, width = tf.unstack(tf.cast(tf.shape(images)[1:3], tf.float32))
    x, y = (width - 1) / 2, (height - 1) / 2
    zero = tf.zeros([count])
    matrices = [a, b, x - a * x - b * y, c, d, y - c * x - d * y, zero, zero]
    return transformed(images, tf.stack(matrices, axis=1))


def distorted_copies(images: np.ndarray, copies: int, seed: int) -> np.ndarray:
    """Ahead of time: so many distorted copies of all images, uint8 (copies · N, H, W, 1)."""
    made = [
        np.rint(distorted(images, tf.constant([seed, number], tf.int64))).astype(np.uint8)
        for number in range(copies)
    ]
    return np.concatenate(made) if made else images[:0]


def distorted_batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int, seed: int
) -> tf.data.Dataset:
    """On the fly: batches in a new order and newly distorted in each epoch, all from the seed.

    Finite dataset of (float32 (B, H, W, 1) in 0–255, float32 (B, 1)).
    """
    targets = np.asarray(labels, np.float32)[:, None]
    rows = tf.data.Dataset.from_tensor_slices((images, targets)).shuffle(len(images), seed=seed)
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
    batches = tf.data.Dataset.zip(rows.batch(batch_size), seeds)
    batches = batches.map(
        lambda batch, number: (distorted(batch[0], number), batch[1]), num_parallel_calls=2
    )
    return untuned(batches.prefetch(2))
