"""Occlusion sensitivity: cover a part of the image, and measure how far the class score falls.

The map shows directly what the model does, without gradients, at the cost of one forward pass per
patch. The signature starts like that of `gradcam.grad_cam`.

References
----------
Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2.
"""

from itertools import product

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from covid_lab.explain.class_score import (
    by_batches,
    checked,
    image_variant_pairs,
    keep_compiled,
    score_change,
)
from covid_lab.explain.heatmaps import PIXELS, Heatmaps
from covid_lab.explain.incremental import covered_scores_functions
from covid_lab.explain.network import flatten
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
    model, images : as for `grad_cam`
    target : int, array_like of int (N,), or "predicted"
        As for `grad_cam`. The predicted class is that of the uncovered image.
    patch : int, 1 to the image's smaller side
        Side of the square in pixels.
    stride : int, 1 to `patch`
        Pixels from one patch to the next. The last patch in a row or column ends at the image's
        edge, whatever the stride, so that every pixel is covered.
    fill : float, 0..255, optional
        Grey value under the patch; by default the mean of each image's colour channel.
    batch_size : int
        Covered images per forward pass. Apart from the maps, memory does not grow with N.

    Returns
    -------
    Heatmaps
        `raw` at the pixels (N, H, W) is the mean of S(image) − S(image with a patch) over the
        patches that cover the pixel, in units of the score: positive where the image is evidence
        for the class. Where no patch changes the score, the map is blank, "no change".

    Raises
    ------
    ValueError
        The input is invalid (see `grad_cam`), the patch does not fit into the image, the stride
        leaves pixels uncovered, or the fill is out of range.

    Notes
    -----
    The first call compiles the model, which takes seconds for a large backbone. The compiled
    function is cached for the next call.

    Examples
    --------
    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((4, 4, 1)),
    ...         keras.layers.Flatten(),
    ...         keras.layers.Dense(1, kernel_initializer="ones"),
    ...     ]
    ... )
    >>> images = np.zeros((1, 4, 4, 1), np.uint8)
    >>> images[0, :2, :2] = 50
    >>> occlusion(model, images, target=1, patch=2, stride=2, fill=0).raw[0]
    array([[200., 200.,   0.,   0.],
           [200., 200.,   0.,   0.],
           [  0.,   0.,   0.,   0.],
           [  0.,   0.,   0.,   0.]], dtype=float32)
    """
    model = remove_final_activation(model)
    images, target = checked(model, images, target)
    height, width = images.shape[1:3]
    if not (1 <= patch <= min(height, width) and 1 <= stride <= patch):
        raise ValueError(
            f"patch is {patch}, stride {stride}; expected 1 ≤ stride ≤ patch ≤ "
            f"{min(height, width)}, the image's smaller side."
        )
    if fill is not None and not 0 <= fill <= 255:
        raise ValueError(f"fill is {fill}; expected 0..255, or None for the image's mean.")
    corners, look, covered_scores = _compiled(model, height, width, patch, stride)
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


@keep_compiled
def _compiled(model: keras.Model, height: int, width: int, patch: int, stride: int) -> tuple:
    """Corners of the patches, and the functions of `covered_scores_functions`, for one size."""
    corners = list(product(_starts(height, patch, stride), _starts(width, patch, stride)))
    shape = model.inputs[0].shape[1:]
    sized = flatten(model, (height, width, shape[2])) if None in shape else model
    return corners, *covered_scores_functions(sized, corners, patch)


def _starts(length: int, patch: int, stride: int) -> list[int]:
    """First pixels of the patches along one side; the last patch ends at the edge."""
    return sorted({*range(0, length - patch, stride), length - patch})
