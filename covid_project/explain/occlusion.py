"""Occlusion sensitivity: cover a part of the image, and see how far the class score falls.

The manner of calling is that of `gradcam`. No gradient is needed, and what is shown is what the
model does, at the price of one forward pass per patch.

Reference
---------
Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2.
"""

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from covid_project.explain.class_score import (
    by_batches,
    checked_images,
    checked_target,
    image_variant_pairs,
    score_change,
    score_function,
)
from covid_project.explain.gradcam import remove_final_activation
from covid_project.explain.heatmaps import PIXELS, Heatmaps


def occlusion(
    model: keras.Model,
    images: ArrayLike,
    target: ArrayLike,
    patch: int = 20,
    stride: int = 10,
    fill: float | None = None,
    batch_size: int = 32,
) -> Heatmaps:
    """How far the class score falls when a square patch covers each part of the image.

    Parameters
    ----------
    model, images, target : as for `grad_cam`. The predicted class is that of the whole image.
    patch : side of the square in pixels, at most the image's.
    stride : pixels from one patch to the next, at most `patch`. The last patch in a row or column
        ends at the image's edge, whatever the stride, so that every pixel is covered.
    fill : grey value 0..255 under the patch; by default each image's own mean, by colour channel.
    batch_size : covered images computed at once; memory does not grow with N beyond the maps.

    Returns
    -------
    Heatmaps
        `raw` at the pixels (N, H, W) is the mean of S(image) − S(image with a patch) over the
        patches that cover the pixel, in units of the score: positive where the image speaks for
        the class. A map whose score no patch changes is blank, "no change".

    Raises
    ------
    ValueError : for bad input, as `grad_cam`; for a patch that does not fit into the image, a
        stride that leaves pixels uncovered, or a fill out of range.
    """
    model = remove_final_activation(model)
    images = checked_images(model, images)
    target = checked_target(model, target, len(images))
    height, width = images.shape[1:3]
    if not (1 <= patch <= min(height, width) and 1 <= stride <= patch):
        raise ValueError(
            f"patch is {patch}, stride {stride}; expected 1 ≤ stride ≤ patch ≤ "
            f"{min(height, width)}, the image's smaller side."
        )
    if fill is not None and not 0 <= fill <= 255:
        raise ValueError(f"fill is {fill}; expected 0..255, or None for the image's mean.")
    patches = [
        (slice(top, top + patch), slice(left, left + patch))
        for top in _starts(height, patch, stride)
        for left in _starts(width, patch, stride)
    ]
    coverage = np.zeros((height, width), np.float32)
    for place in patches:
        coverage[place] += 1
    score = score_function(model)

    def explain_batch(images, target):
        scores, target = score(images, target)
        fills = images.mean(axis=(1, 2)) if fill is None else np.full(len(images), fill)
        raw = np.zeros(images.shape[:3], np.float32)
        for image, index in image_variant_pairs(len(images), len(patches), batch_size):
            covered = images[image]  # a copy
            for picture, i, p in zip(covered, image, index, strict=True):
                picture[patches[p]] = fills[i]
            falls = score_change(
                tf.gather(scores, image), score(covered, tf.gather(target, image))[0]
            )
            for fall, i, p in zip(falls, image, index, strict=True):
                raw[i][patches[p]] += fall
        return raw / coverage, scores, target, {"no change": ~raw.any(axis=(1, 2))}

    return Heatmaps.from_raw(PIXELS, *by_batches(explain_batch, images, target, batch_size))


def _starts(length: int, patch: int, stride: int) -> list[int]:
    """First pixels of the patches along a side; the last patch ends at the edge."""
    return sorted({*range(0, length - patch, stride), length - patch})
