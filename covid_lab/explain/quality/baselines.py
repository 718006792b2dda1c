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

from covid_lab.explain.class_score import checked
from covid_lab.explain.heatmaps import PIXELS, Heatmaps
from covid_project.gradcam import normalize_heatmaps

SPREAD = 0.25  # standard deviation of the Gaussian, as a fraction of each side

# A method under test, like all methods of `explain`: (model, images, target) → Heatmaps.
Method = Callable[[keras.Model, ArrayLike, ArrayLike], Heatmaps]


def baseline(kind: str, seed: int = 0) -> Method:
    """A method whose maps are independent of the model.

    Parameters
    ----------
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
    Method
        (model, images, target) → Heatmaps of the images' size. The model is not run: its scores are
        NaN.
    """

    def method(model: keras.Model, images: ArrayLike, target: ArrayLike) -> Heatmaps:
        images, target = checked(model, images, target)
        maps = _maps(images, kind, seed).astype(np.float32)
        scores = np.full(len(images), np.nan, np.float32)
        return Heatmaps.from_raw(PIXELS, normalize_heatmaps(maps), scores, target, {})

    return method


def _maps(images: np.ndarray, kind: str, seed: int) -> np.ndarray:
    count, height, width = images.shape[:3]
    if kind == "random":
        return np.random.default_rng(seed).random((count, height, width), np.float32)
    if kind == "centred Gaussian":
        y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
        bell = np.exp(-(y[:, None] ** 2 + x**2) / (2 * SPREAD**2))
        return np.repeat(bell[None], count, axis=0)
    grey = np.asarray(images, np.float32).mean(axis=-1)
    edges = [np.hypot(sobel(image, axis=0), sobel(image, axis=1)) for image in grey]
    return np.reshape(edges, grey.shape)
