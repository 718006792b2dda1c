"""Occlusion sensitivity: cover a part of the image, and see how far the class score falls.

The manner of calling is that of `gradcam`. No gradient is needed, and what is shown is what the
model does, at the price of one forward pass per patch.

Reference
---------
Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2.
"""

from collections.abc import Callable
from functools import cache
from itertools import product

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from covid_lab.explain.class_score import (
    by_batches,
    checked_images,
    checked_target,
    image_variant_pairs,
    score_change,
)
from covid_lab.explain.heatmaps import PIXELS, Heatmaps
from covid_lab.explain.incremental import covered_scores_functions
from covid_lab.explain.outputs import remove_final_activation


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

    Notes
    -----
    Compiles the model for this one call, which takes seconds for a large backbone. For many calls
    keep the function that `occlusion_function` returns.
    """
    return occlusion_function(model, patch, stride, fill)(images, target, batch_size)


def occlusion_function(
    model: keras.Model, patch: int = 20, stride: int = 10, fill: float | None = None
) -> Callable[..., Heatmaps]:
    """Return `heatmaps(images, target, batch_size=32)`; arguments and errors as for `occlusion`.

    The model is compiled at the first call for each size of images.
    """
    model = remove_final_activation(model)

    @cache
    def compiled(height: int, width: int):
        corners = list(product(_starts(height, patch, stride), _starts(width, patch, stride)))
        functions = covered_scores_functions(_of_size(model, height, width), corners, patch)
        return corners, *functions

    def heatmaps(images: ArrayLike, target: ArrayLike, batch_size: int = 32) -> Heatmaps:
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
        corners, look, covered_scores = compiled(height, width)
        squares = [(slice(top, top + patch), slice(left, left + patch)) for top, left in corners]
        coverage = np.zeros((height, width), np.float32)
        for square in squares:
            coverage[square] += 1

        def explain_batch(images, target):
            scores, target, maps = look(images, target)
            fills = images.mean(axis=(1, 2))
            if fill is not None:
                fills = np.full_like(fills, fill)
            falls = np.empty((len(images), len(squares)), np.float32)
            for image, place in image_variant_pairs(*falls.shape, batch_size):
                covered = covered_scores(maps, fills, target, image, place)
                falls[image, place] = score_change(tf.gather(scores, image), covered)
            raw = np.zeros(images.shape[:3], np.float32)
            for place, square in enumerate(squares):
                raw[:, *square] += falls[:, place, None, None]
            return raw / coverage, scores, target, {"no change": ~falls.any(axis=1)}

        # A batch of patches is filled from as few images as it takes: their maps stay in memory.
        at_once = max(1, batch_size // len(squares))
        return Heatmaps.from_raw(PIXELS, *by_batches(explain_batch, images, target, at_once))

    return heatmaps


def _starts(length: int, patch: int, stride: int) -> list[int]:
    """First pixels of the patches along a side; the last patch ends at the edge."""
    return sorted({*range(0, length - patch, stride), length - patch})


def _of_size(model: keras.Model, height: int, width: int) -> keras.Model:
    """The model for images of one size, where it takes any."""
    if None not in model.inputs[0].shape[1:]:
        return model
    images = keras.Input((height, width, model.inputs[0].shape[-1]))
    return keras.Model(images, model(images))
