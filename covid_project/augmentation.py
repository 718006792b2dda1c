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
    """Switch every transformation off except the named ones.

    Parameters
    ----------
    amounts : Augmentation
    *names : str
        Fields of `Augmentation` that keep their ranges.

    Returns
    -------
    Augmentation

    Examples
    --------
    >>> only(settings.augmentation, "zoom")
    Augmentation(flip=False, rotation=0, zoom=0.12, shift=0, brightness=0, contrast=0)
    """
    return dataclasses.replace(NONE, **{name: getattr(amounts, name) for name in names})


def augment(images: tf.Tensor, amounts: Augmentation, seed: tf.Tensor) -> tf.Tensor:
    """Transform each image at random, within the given ranges.

    Parameters
    ----------
    images : tf.Tensor, uint8 or float32 (N, H, W, 1), grey values 0–255
    amounts : Augmentation
        Range of each transformation.
    seed : tf.Tensor, int32 or int64 (2,)
        The same seed gives the same images.

    Returns
    -------
    tf.Tensor, float32 (N, H, W, 1), grey values 0–255
        What comes in from outside the frame mirrors what is inside: black corners would be a
        pattern that no radiograph has.

    Examples
    --------
    >>> augment(tf.fill([1, 8, 8, 1], 100.0), NONE, [0, 1])[0, 0, 0].numpy()
    array([100.], dtype=float32)
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
    """Move the pixels of images, with bilinear interpolation and mirrored borders.

    Parameters
    ----------
    images : tf.Tensor, float32 (N, H, W, C)
    matrices : tf.Tensor, float32 (N, 8), from `affine`

    Returns
    -------
    tf.Tensor, float32 (N, H, W, C)
    """
    options = {"fill_value": 0.0, "fill_mode": "REFLECT", "interpolation": "BILINEAR"}
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images, transforms=matrices, output_shape=tf.shape(images)[1:3], **options
    )


def affine(*, angle, scale, mirrored, shift_x, shift_y, height, width) -> tf.Tensor:
    """Return matrices that map a pixel (x, y) of the result to its place in the source image.

    Parameters
    ----------
    angle, scale, mirrored : tf.Tensor, float32 (N,)
        Rotation in radians, magnification, and −1 or 1, all about the image's centre.
    shift_x, shift_y : tf.Tensor, float32 (N,)
        Shift in pixels, after these.
    height, width : float
        Size of the image in pixels.

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
    """Change the contrast about the middle grey, then the brightness; clip to 0–255.

    Parameters
    ----------
    images : tf.Tensor, float32 (N, H, W, 1), grey values 0–255
    contrast : tf.Tensor, float32 (N,)
        Factor of each image; 1 changes nothing.
    brightness : tf.Tensor, float32 (N,)
        Grey levels added to each image.

    Returns
    -------
    tf.Tensor, float32 (N, H, W, 1), grey values 0–255
    """
    contrast, brightness = contrast[:, None, None, None], brightness[:, None, None, None]
    return tf.clip_by_value((images - 127.5) * contrast + 127.5 + brightness, 0.0, 255.0)
