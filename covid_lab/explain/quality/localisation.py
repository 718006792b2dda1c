"""Does the heat lie where the finding is? Maps against masks or boxes.

Each function takes maps (N, h, w) in [0, 1], resized bilinearly to the masks' size where needed,
and masks (N, H, W) bool, and gives one number per image, (N,) float64 in [0, 1]: NaN where a map
is blank or a mask is empty, since nothing can then be said.

References
----------
Wang et al., "Score-CAM", CVPR Workshops 2020 (the energy-based pointing game). Zhang
et al., "Top-down Neural Attention by Excitation Backprop", International Journal of Computer Vision
2018 (the pointing game). Otsu, "A Threshold Selection Method from Gray-Level
Histograms", 1979; as in Saporta et al., "Benchmarking saliency methods for chest X-ray
interpretation", Nature Machine Intelligence 2022, who segment with it and take the IoU.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import distance_transform_edt

from covid_project.gradcam import resize_heatmaps


def energy_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of a map's heat that lies inside the mask; Wang et al. 2020.

    A map that says nothing (the same everywhere) has the mask's share of the area.
    """
    maps, defined = _on_masks(maps, masks)
    inside = (maps * masks).sum(axis=(1, 2), dtype=np.float64)
    total = maps.sum(axis=(1, 2), dtype=np.float64)
    return np.divide(inside, total, out=np.full(len(maps), np.nan), where=defined)


def pointing_game(maps: np.ndarray, masks: np.ndarray, tolerance: float = 0) -> np.ndarray:
    """Whether the hottest place lies in the mask or at most `tolerance` pixels from it.

    1 for a hit, 0 for a miss; Zhang et al. 2018, who allow 15 pixels. Where several places are
    hottest, the share of them that hit: what a player who picks one of them can expect.
    """
    maps, defined = _on_masks(maps, masks)
    hits = np.full(len(maps), np.nan)
    for i in np.flatnonzero(defined):
        hottest = maps[i] == maps[i].max()
        hits[i] = (distance_transform_edt(~masks[i])[hottest] <= tolerance).mean()
    return hits


def iou_at_otsu(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Intersection over union of the mask and of what in the map exceeds Otsu's threshold.

    NaN also for a map that is the same everywhere, which has no threshold.
    """
    maps, defined = _on_masks(maps, masks)
    overlap = np.full(len(maps), np.nan)
    for i in np.flatnonzero(defined & (np.ptp(maps, axis=(1, 2)) > 0)):
        hot = maps[i] > _otsu_threshold(maps[i])
        overlap[i] = (hot & masks[i]).sum() / (hot | masks[i]).sum()
    return overlap


def box_masks(boxes: Sequence[ArrayLike], size: tuple[int, int]) -> np.ndarray:
    """Masks (N, H, W) bool of the boxes in each image.

    Parameters
    ----------
    boxes : for each image an array (K, 4) of left, top, right, bottom, as fractions of width and
        height; K may be 0.
    size : (H, W) in pixels. Inside are the pixels whose centres a box covers, and the pixel that
        holds the box's own centre, so that no box is lost on a coarse grid.

    Raises
    ------
    ValueError : for boxes that leave the image or have no extent.
    """
    height, width = size
    masks = np.zeros((len(boxes), height, width), bool)
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    for mask, found in zip(masks, boxes, strict=True):
        for left, top, right, bottom in np.reshape(found, (-1, 4)):
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise ValueError(
                    f"Box {[float(side) for side in (left, top, right, bottom)]} does not lie in "
                    "the image; expected 0 ≤ left < right ≤ 1 and 0 ≤ top < bottom ≤ 1."
                )
            mask |= ((y >= top) & (y <= bottom))[:, None] & (x >= left) & (x <= right)
            mask[int((top + bottom) / 2 * height), int((left + right) / 2 * width)] = True
    return masks


def _otsu_threshold(values: np.ndarray, bins: int = 256) -> float:
    """Centre of the bin after which a cut parts the values best; Otsu 1979, equation 18.

    Best is where the variance between the classes, w₀ w₁ (m₀ − m₁)², is largest.
    """
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts)[:-1], np.cumsum(counts[::-1])[-2::-1]
    sums = np.cumsum(counts * centres)
    difference = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
    return float(centres[np.argmax(below * above * difference**2)])


def _on_masks(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps (N, H, W) at the masks' size, and (N,) whether map and mask hold anything."""
    if masks.dtype != bool or masks.ndim != 3 or maps.ndim != 3 or len(masks) != len(maps):
        raise ValueError(
            f"Maps {maps.shape} and masks {masks.shape} of type {masks.dtype} do not fit: expected "
            "(N, h, w) and (N, H, W) of type bool."
        )
    if maps.shape[1:] != masks.shape[1:]:
        maps = resize_heatmaps(maps, masks.shape[1:])
    return maps, maps.any(axis=(1, 2)) & masks.any(axis=(1, 2))
