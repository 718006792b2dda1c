"""How similar two explanations are, of the same image or of different images.

All maps are first resized to 64 by 64, with weighted means where they shrink. A method that works
at 7 by 7 and one that works at the pixels are thus measured on the same scale.

References
----------
Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE
Transactions on Image Processing 2004 (SSIM). Adebayo et al., "Sanity Checks for Saliency Maps",
NeurIPS 2018 (rank correlation of the magnitudes, and with signs).
"""

import numpy as np
import tensorflow as tf
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata

from covid_lab.explain.heatmaps import Heatmaps
from covid_project.gradcam import normalize_heatmaps

SIDE = 64
PAIRS = 50
MEASURES = ("SSIM", "rank correlation", "signed rank correlation")


def similarity(first: Heatmaps, second: Heatmaps) -> dict[str, np.ndarray]:
    """Similarity of two sets of maps, image by image.

    Parameters
    ----------
    first : Heatmaps
        Maps of N images.
    second : Heatmaps
        Maps of N images.

    Returns
    -------
    dict of str to np.ndarray, (N,), float64, -1..1
        One entry for each of `MEASURES`:

        - "SSIM" of `maps`, which are shown; 1 for equal maps, NaN where either is blank;
        - "rank correlation" (Spearman) of the magnitudes of `raw`; NaN where either is constant;
        - "signed rank correlation" of `raw`; -1 where all evidence has reversed its sign.
    """
    return {
        "SSIM": ssim(first.maps, second.maps),
        "rank correlation": rank_correlation(np.abs(first.raw), np.abs(second.raw)),
        "signed rank correlation": rank_correlation(first.raw, second.raw),
    }


def similarity_of_pairs(heatmaps: Heatmaps, seed: int = 0) -> dict[str, float]:
    """Mean similarity of the maps of different images: the similarity expected by chance.

    Parameters
    ----------
    heatmaps : Heatmaps
        Maps of N images.
    seed : int
        Seed of the pairs.

    Returns
    -------
    dict of str to float, -1..1
        One entry for each of `MEASURES`; NaN where no pair has two maps to compare.
    """
    left, right = np.triu_indices(len(heatmaps.maps), k=1)
    drawn = np.random.default_rng(seed).permutation(len(left))[:PAIRS]
    found = similarity(heatmaps.take(left[drawn]), heatmaps.take(right[drawn]))
    return {
        name: float(np.nanmean(values)) if np.isfinite(values).any() else np.nan
        for name, values in found.items()
    }


def ssim(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Structural similarity of maps, image by image.

    Wang et al. 2004, equation 13, with their Gaussian window (11 by 11, σ = 1.5) and constants.

    Parameters
    ----------
    first : np.ndarray, (N, h, w), float32, [0, 1]
        Maps.
    second : np.ndarray, (N, h, w), float32, [0, 1]
        Maps; their size may differ from the first.

    Returns
    -------
    np.ndarray, (N,), float64, -1..1
        1 for equal maps; NaN where either is blank.
    """
    defined = first.any(axis=(1, 2)) & second.any(axis=(1, 2))
    first, second = (normalize_heatmaps(_resized(maps)) for maps in (first, second))
    means = first * second, first**2 + second**2, first, second
    # Only windows inside the map. `tf.image.ssim` gives the same values but is far slower.
    product, squares, one, other = (
        gaussian_filter(mean, (0, 1.5, 1.5), radius=(0, 5, 5))[:, 5:-5, 5:-5] for mean in means
    )
    luminance = (2 * one * other + 0.01**2) / (one**2 + other**2 + 0.01**2)
    structure = (2 * (product - one * other) + 0.03**2) / (squares - one**2 - other**2 + 0.03**2)
    found = (luminance * structure).mean(axis=(1, 2), dtype=np.float64)
    return np.where(defined, found, np.nan)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of maps, image by image.

    Parameters
    ----------
    first : np.ndarray, (N, h, w), float
        Maps.
    second : np.ndarray, (N, h, w), float
        Maps; their size may differ from the first.

    Returns
    -------
    np.ndarray, (N,), float64, -1..1
        Correlations; NaN where a map is constant.
    """
    ranks = [
        rankdata(_resized(maps).reshape(len(maps), SIDE**2), axis=1) for maps in (first, second)
    ]
    centred = [rank - (SIDE**2 + 1) / 2 for rank in ranks]
    product = (centred[0] * centred[1]).sum(axis=1)
    norm = np.sqrt(np.prod([(rank**2).sum(axis=1) for rank in centred], axis=0))
    return np.divide(product, norm, out=np.full(len(first), np.nan), where=norm > 0)


def _resized(maps: np.ndarray) -> np.ndarray:
    """Maps (N, 64, 64) float32: bilinear where they grow, weighted means where they shrink."""
    if maps.shape[1:] == (SIDE, SIDE):
        return maps
    return tf.image.resize(maps[..., None], (SIDE, SIDE), antialias=True).numpy()[..., 0]
