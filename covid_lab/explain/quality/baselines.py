"""Maps that are independent of the model: what an explanation has to beat.

A centred Gaussian shows where chest radiographs are usually of interest, and an edge detector shows
what an image contains. Neither uses the model. Adebayo et al., "Sanity Checks for Saliency Maps",
NeurIPS 2018, compare with an edge detector.
"""

from collections.abc import Callable

import keras
import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import sobel

from covid_lab.explain.class_score import checked_images, checked_target
from covid_lab.explain.heatmaps import PIXELS, Heatmaps
from covid_lab.explain.quality_terms import BASELINES
from covid_project.gradcam import normalize_heatmaps

SPREAD = 0.25  # standard deviation of the Gaussian, as a fraction of each side

# A method under test, like all methods of `explain`: (model, images, target) → Heatmaps.
Method = Callable[[keras.Model, ArrayLike, ArrayLike], Heatmaps]


def baseline_maps(images: np.ndarray, kind: str, seed: int = 0) -> np.ndarray:
    """Maps that are independent of a model.

    Parameters
    ----------
    images : np.ndarray, (N, H, W, C), uint8 or float, 0..255
        Images.
    kind : str
        One of `BASELINES`:

        - "random": every pixel uniform and independent, different for every image;
        - "centred Gaussian": the same for all images, largest in the middle;
        - "edges": magnitude of the Sobel gradient of the mean over the channels; blank where the
          image is constant.
    seed : int
        Seed of the random maps. The map of an image does not depend on how many images follow.

    Returns
    -------
    np.ndarray, (N, H, W), float32, [0, 1]
        Maps, each with 1 as its maximum.

    Raises
    ------
    ValueError
        The kind is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.zeros((1, 2, 4, 1))
    >>> images[:, :, 2:] = 9
    >>> baseline_maps(images, "edges")[0]
    array([[0., 1., 1., 0.],
           [0., 1., 1., 0.]], dtype=float32)
    """
    count, height, width = images.shape[:3]
    if kind == "random":
        maps = np.random.default_rng(seed).random((count, height, width), np.float32)
    elif kind == "centred Gaussian":
        y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
        bell = np.exp(-(y[:, None] ** 2 + x**2) / (2 * SPREAD**2))
        maps = np.repeat(bell[None], count, axis=0)
    elif kind == "edges":
        grey = np.asarray(images, np.float32).mean(axis=-1)
        maps = np.empty_like(grey)
        for shown, image in zip(maps, grey, strict=True):
            shown[:] = np.hypot(sobel(image, axis=0), sobel(image, axis=1))
    else:
        raise ValueError(f"Unknown baseline '{kind}'; the baselines are {list(BASELINES)}.")
    return normalize_heatmaps(maps.astype(np.float32))


def baseline(kind: str, seed: int = 0) -> Method:
    """`baseline_maps` as a method.

    Parameters
    ----------
    kind : str
        One of `BASELINES`.
    seed : int
        Seed of the random maps.

    Returns
    -------
    Method
        (model, images, target) → Heatmaps. The model is not run: its scores are NaN.
    """

    def method(model: keras.Model, images: ArrayLike, target: ArrayLike) -> Heatmaps:
        images = checked_images(model, images)
        target = checked_target(model, target, len(images))
        maps = baseline_maps(images, kind, seed)
        scores = np.full(len(images), np.nan, np.float32)
        return Heatmaps.from_raw(PIXELS, maps, scores, target, {})

    return method
