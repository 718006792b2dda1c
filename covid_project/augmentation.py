"""Random augmentations of radiographs: seeded, whole batches at a time.

Flip, rotation, zoom and shift are one geometric transform, so that an image is interpolated only
once; brightness and contrast are one linear map of the grey values.
"""

import dataclasses
import math

import tensorflow as tf

from covid_project.settings import Augmentation

NONE = Augmentation(flip=False, rotation=0, zoom=0, shift=0, brightness=0, contrast=0)


def only(amounts: Augmentation, *names: str) -> Augmentation:
    """Return the same amounts with every transformation switched off except the named ones."""
    return dataclasses.replace(NONE, **{name: getattr(amounts, name) for name in names})


def augment(images: tf.Tensor, amounts: Augmentation, seed: tf.Tensor) -> tf.Tensor:
    """Transform each image at random, by at most the given amounts.

    Parameters
    ----------
    images : tf.Tensor, uint8 or float32 (N, H, W, 1)
        Grey values 0–255.
    amounts : Augmentation
        Largest amount of each transformation.
    seed : tf.Tensor, int32 or int64 (2,)
        The same seed gives the same images.

    Returns
    -------
    tf.Tensor, float32 (N, H, W, 1)
        Grey values 0–255. What comes in from outside the frame mirrors what is inside: black
        corners would be a pattern that no radiograph has.
    """
    images = tf.cast(images, tf.float32)
    seeds = iter(tf.unstack(tf.random.experimental.stateless_split(seed, 7)))
    count = tf.shape(images)[0]

    def uniform(limit: float) -> tf.Tensor:  # (N,), between -limit and limit
        return tf.random.stateless_uniform([count], next(seeds), -limit, limit)

    height, width = tf.unstack(tf.cast(tf.shape(images)[1:3], tf.float32))
    mirrored = tf.where(uniform(1.0) < 0, -1.0, 1.0) if amounts.flip else tf.ones([count])
    matrices = affine(
        angle=uniform(math.radians(amounts.rotation)),
        scale=tf.exp(uniform(math.log1p(amounts.zoom))),
        mirrored=mirrored,
        shift_x=uniform(amounts.shift) * width,
        shift_y=uniform(amounts.shift) * height,
        height=height,
        width=width,
    )
    return recolour(
        transformed(images, matrices),
        contrast=1 + uniform(amounts.contrast),
        brightness=uniform(amounts.brightness) * 255,
    )


def transformed(images: tf.Tensor, matrices: tf.Tensor) -> tf.Tensor:
    """Apply matrices (N, 8) such as `affine` returns to images float32 (N, H, W, C).

    Interpolated bilinearly; what comes in from outside the frame mirrors what is inside.
    """
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=matrices,
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        fill_mode="REFLECT",
        interpolation="BILINEAR",
    )


def affine(*, angle, scale, mirrored, shift_x, shift_y, height, width) -> tf.Tensor:
    """Return matrices that map a pixel (x, y) of the result to its place in the source image.

    Rotation by ``angle`` (radians), magnification by ``scale`` and mirroring (−1 or 1) about the
    image's centre, then a shift in pixels; each float32 (N,). ``height`` and ``width`` in pixels.

    Returns
    -------
    tf.Tensor, float32 (N, 8)
        The first eight entries of each 3×3 projective matrix, row by row.
    """
    cosine, sine = tf.cos(angle) / scale, tf.sin(angle) / scale
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    zero = tf.zeros_like(angle)
    a, b = cosine * mirrored, -sine * mirrored
    c, d = sine, cosine
    x_offset = centre_x - a * (centre_x + shift_x) - b * (centre_y + shift_y)
    y_offset = centre_y - c * (centre_x + shift_x) - d * (centre_y + shift_y)
    return tf.stack([a, b, x_offset, c, d, y_offset, zero, zero], axis=1)


def recolour(images: tf.Tensor, contrast: tf.Tensor, brightness: tf.Tensor) -> tf.Tensor:
    """Spread grey values about the middle grey by ``contrast`` and add ``brightness``.

    Both float32 (N,), one value per image, brightness in grey levels; clipped to 0–255.
    """
    contrast, brightness = contrast[:, None, None, None], brightness[:, None, None, None]
    return tf.clip_by_value((images - 127.5) * contrast + 127.5 + brightness, 0.0, 255.0)
