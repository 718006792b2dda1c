"""Does the map stay the same when nothing relevant changes? Measure the similarity.

Two changes should not matter: noise that the eye cannot see, and the seed with which the same model
was trained. The map of the same image for the same class is compared (see `similarities`). Arun et
al. 2021 (see `sanity`) call agreement between training runs repeatability.
"""

import keras
import numpy as np

from covid_lab.explain.heatmaps import Heatmaps
from covid_lab.explain.quality.baselines import Method
from covid_lab.explain.quality.similarities import similarity


def noisy(images: np.ndarray, deviation: float, seed: int = 0) -> np.ndarray:
    """Add Gaussian noise to images.

    Parameters
    ----------
    images : np.ndarray, (N, H, W, C), uint8 or float, 0..255
        Images.
    deviation : float, 0 or more
        Standard deviation of the noise in grey levels.
    seed : int
        Seed of the noise.

    Returns
    -------
    np.ndarray, (N, H, W, C), float32, 0..255
        Noisy images.

    Raises
    ------
    ValueError
        `deviation` is negative.
    """
    if deviation < 0:
        raise ValueError(f"deviation is {deviation}; expected 0 or more grey levels.")
    noise = np.random.default_rng(seed).normal(0, deviation, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.float32)


def under_noise(
    method: Method,
    model: keras.Model,
    images: np.ndarray,
    heatmaps: Heatmaps,
    deviation: float,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Similarity of the maps of images with and without noise, for the same class.

    Parameters
    ----------
    method : Method
        Method that made the maps.
    model : keras.Model
        As for `grad_cam`.
    images : np.ndarray, (N, H, W, C), uint8 or float, 0..255
        Images.
    heatmaps : Heatmaps
        Maps of these images; they also give the classes explained.
    deviation : float, 0 or more
        Standard deviation of the noise in grey levels.
    seed : int
        Seed of the noise.

    Returns
    -------
    dict of str to np.ndarray, (N,), float64
        As from `similarity`.
    """
    return similarity(heatmaps, method(model, noisy(images, deviation, seed), heatmaps.target))


def across_seeds(
    method: Method, other: keras.Model, images: np.ndarray, heatmaps: Heatmaps
) -> dict[str, np.ndarray]:
    """Similarity of one model's maps to those of a model trained with another seed.

    Parameters
    ----------
    method : Method
        Method that made the maps.
    other : keras.Model
        The model trained with another seed.
    images : np.ndarray, (N, H, W, C), uint8 or float, 0..255
        Images.
    heatmaps : Heatmaps
        Maps of these images by the first model.

    Returns
    -------
    dict of str to np.ndarray, (N,), float64
        As from `similarity`.
    """
    return similarity(heatmaps, method(other, images, heatmaps.target))
