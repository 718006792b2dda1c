"""Is the heat where the finding is? Maps compared with masks or boxes.

Each function takes maps (N, h, w) in [0, 1], resized bilinearly to the masks' size where needed,
and masks (N, H, W) bool. It returns one number per image, (N,) float64 in [0, 1], and NaN where a
map is blank or a mask is empty.

References
----------
Wang et al., "Score-CAM", CVPR Workshops 2020 (the energy-based pointing game). Zhang et al.,
"Top-down Neural Attention by Excitation Backprop", International Journal of Computer Vision 2018
(the pointing game). Otsu, "A Threshold Selection Method from Gray-Level Histograms", IEEE
Transactions on Systems, Man, and Cybernetics 1979. Saporta et al., "Benchmarking saliency methods
for chest X-ray interpretation", Nature Machine Intelligence 2022, segment maps with Otsu's
threshold and measure the IoU.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import distance_transform_edt
from skimage.filters import threshold_otsu

from covid_project.gradcam import resize_heatmaps


def energy_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Fraction of a map's heat inside the mask (Wang et al. 2020).

    A uniform map has the mask's fraction of the area.

    Parameters
    ----------
    maps : np.ndarray, (N, h, w), float, [0, 1]
        Maps.
    masks : np.ndarray, (N, H, W), bool
        Masks of the finding.

    Returns
    -------
    np.ndarray, (N,), float64, [0, 1]
        Fractions; NaN where a map is blank or a mask is empty.

    Raises
    ------
    ValueError
        Maps and masks do not fit.
    """
    maps, defined = _on_masks(maps, masks)
    inside = (maps * masks).sum(axis=(1, 2), dtype=np.float64)
    total = maps.sum(axis=(1, 2), dtype=np.float64)
    return np.divide(inside, total, out=np.full(len(maps), np.nan), where=defined)


def pointing_game(maps: np.ndarray, masks: np.ndarray, tolerance: float = 0) -> np.ndarray:
    """Pointing game: whether the hottest place is inside the mask or close to it.

    Parameters
    ----------
    maps : np.ndarray, (N, h, w), float, [0, 1]
        Maps.
    masks : np.ndarray, (N, H, W), bool
        Masks of the finding.
    tolerance : float, 0 or more
        Largest distance from the mask in pixels; Zhang et al. 2018 allow 15.

    Returns
    -------
    np.ndarray, (N,), float64, [0, 1]
        1 for a hit and 0 for a miss. Where several places are hottest, the fraction of them that
        hit: the expectation for one of them chosen at random. NaN where a map is blank or a mask is
        empty.

    Raises
    ------
    ValueError
        Maps and masks do not fit.

    Examples
    --------
    >>> maps = np.array([[[1.0, 0.5], [0.5, 0.0]]])
    >>> masks = np.array([[[False, True], [False, False]]])
    >>> pointing_game(maps, masks), pointing_game(maps, masks, tolerance=1)
    (array([0.]), array([1.]))
    """
    maps, defined = _on_masks(maps, masks)
    hits = np.full(len(maps), np.nan)
    for i in np.flatnonzero(defined):
        hottest = maps[i] == maps[i].max()
        hits[i] = (distance_transform_edt(~masks[i])[hottest] <= tolerance).mean()
    return hits


def iou_at_otsu(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Intersection over union of the mask and the part of the map above Otsu's threshold.

    Parameters
    ----------
    maps : np.ndarray, (N, h, w), float, [0, 1]
        Maps.
    masks : np.ndarray, (N, H, W), bool
        Masks of the finding.

    Returns
    -------
    np.ndarray, (N,), float64, [0, 1]
        Intersection over union. NaN where a map is blank or uniform, which leaves no threshold, or
        a mask is empty.

    Raises
    ------
    ValueError
        Maps and masks do not fit.
    """
    maps, defined = _on_masks(maps, masks)
    overlap = np.full(len(maps), np.nan)
    for i in np.flatnonzero(defined & (np.ptp(maps, axis=(1, 2)) > 0)):
        hot = maps[i] > threshold_otsu(maps[i])
        overlap[i] = (hot & masks[i]).sum() / (hot | masks[i]).sum()
    return overlap


def box_masks(boxes: Sequence[ArrayLike], size: tuple[int, int]) -> np.ndarray:
    """Masks of the boxes in each image.

    Parameters
    ----------
    boxes : sequence of array_like, (K, 4), 0..1
        For each image the left, top, right and bottom of its boxes, as fractions of width and
        height. K may be 0.
    size : tuple of int, (H, W)
        Size of the masks in pixels.

    Returns
    -------
    np.ndarray, (N, H, W), bool
        True for the pixels whose centres a box covers, and for the pixel at the centre of the box,
        so that no box is lost on a coarse grid.

    Raises
    ------
    ValueError
        A box extends beyond the image or is empty.

    Examples
    --------
    >>> box_masks([[[0, 0, 0.5, 1]]], (2, 2))[0]
    array([[ True, False],
           [ True, False]])
    """
    height, width = size
    masks = np.zeros((len(boxes), height, width), bool)
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    for mask, found in zip(masks, boxes, strict=True):
        for left, top, right, bottom in np.reshape(found, (-1, 4)):
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise ValueError(
                    f"Box {[float(side) for side in (left, top, right, bottom)]} is not inside "
                    "the image; expected 0 ≤ left < right ≤ 1 and 0 ≤ top < bottom ≤ 1."
                )
            mask |= ((y >= top) & (y <= bottom))[:, None] & (x >= left) & (x <= right)
            mask[int((top + bottom) / 2 * height), int((left + right) / 2 * width)] = True
    return masks


def _on_masks(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps (N, H, W) at the masks' size, and (N,) whether both map and mask are non-zero."""
    if masks.dtype != bool or masks.ndim != 3 or maps.ndim != 3 or len(masks) != len(maps):
        raise ValueError(
            f"Maps {maps.shape} and masks {masks.shape} of type {masks.dtype} do not fit: expected "
            "(N, h, w) and (N, H, W) of type bool."
        )
    if maps.shape[1:] != masks.shape[1:]:
        maps = resize_heatmaps(maps, masks.shape[1:])
    return maps, maps.any(axis=(1, 2)) & masks.any(axis=(1, 2))
