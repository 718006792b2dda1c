"""Does the map stay when nothing that matters has changed? See how alike it is.

Two things that should not matter: noise that no eye sees, and the seed with which the same model
was trained. What is compared is the map of the same image for the same class (see `similarities`).
Arun et al. 2021 (see `sanity`) call agreement between trainings repeatability.
"""

import keras
import numpy as np

from covid_lab.explain.heatmaps import Heatmaps
from covid_lab.explain.quality.baselines import Method
from covid_lab.explain.quality.similarities import similarity


def noisy(images: np.ndarray, deviation: float, seed: int = 0) -> np.ndarray:
    """Images (N, H, W, C) float32 with Gaussian noise of `deviation` grey levels, in 0..255."""
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
    """Similarity (N,) of the images' `heatmaps` to those of the images with noise.

    The class explained is that of the given heatmaps.
    """
    return similarity(heatmaps, method(model, noisy(images, deviation, seed), heatmaps.target))


def across_seeds(
    method: Method, other: keras.Model, images: np.ndarray, heatmaps: Heatmaps
) -> dict[str, np.ndarray]:
    """Similarity (N,) of one model's `heatmaps` to those of another, trained with another seed."""
    return similarity(heatmaps, method(other, images, heatmaps.target))
