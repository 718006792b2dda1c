"""Lung segmentation without a trained network: the fallback of `covid_lab.lungs`.

Lungs hold air and are darker than their surroundings. But no single threshold separates them from
the air around the patient, and an opaque lung is hardly darker than the heart. Many thresholds are
therefore tried, on the image and on the image without its slow changes of brightness. Of all
connected dark regions, the two are kept that best fill the places where lungs are expected.

Dice on ten adults of ``shenzhen_masks.zip``, whose images were also inspected during development:
mean 0.84, from 0.78 to 0.88. Most masks are too large below the heart's left border. On phantoms
the mean is 0.94 in health, 0.89 and 0.82 with patchy lesions in one and in both lungs, and 0.76
with extensive lesions, whose opaque parts are left out. ``tests/test_lungs.py`` measures all this.
The held-out images of the network are in ``covid_lab/lungs/unet.json``, with both methods.
"""

import numpy as np
from scipy import ndimage

from covid_lab.masks import resized_mask
from covid_project.images import resize

_SIDE = 60  # pixels at which the regions are sought
_QUANTILES = np.linspace(0.15, 0.65, 12)  # of the grey values, one threshold each
_SHIFTS = (-0.1, -0.05, 0.0, 0.05, 0.1)  # of the patient to the side, as a fraction of the width
_IN_PLANE = np.array([np.zeros((3, 3)), ndimage.generate_binary_structure(2, 1), np.zeros((3, 3))])


def segment_lungs_classically(images: np.ndarray) -> np.ndarray:
    """Segment the lung fields of upright, frontal chest radiographs by thresholds and shape.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, S, S)
        Grey values, bright where dense.

    Returns
    -------
    np.ndarray, bool (N, S, S)
        Where nothing fits, one lung or both are missing; see `covid_lab.lungs.implausible`.

    Raises
    ------
    ValueError
        Another dtype or shape.
    """
    images = checked_images(images)
    masks = np.empty(images.shape, bool)
    for mask, image in zip(masks, images, strict=True):
        lungs = _segment(resize(image, (_SIDE, _SIDE)).astype(np.float32))
        mask[...] = resized_mask(lungs, image.shape)
    return masks


def checked_images(images: np.ndarray) -> np.ndarray:
    """Return the images as an array, if they are square 8-bit grey images.

    Parameters
    ----------
    images : array_like, uint8 (N, S, S)

    Returns
    -------
    np.ndarray, uint8 (N, S, S)

    Raises
    ------
    ValueError
        Another dtype or shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images are {images.dtype} {images.shape}; allowed: uint8 (N, S, S)")
    return images


def _segment(image: np.ndarray) -> np.ndarray:
    """Lungs, bool (_SIDE, _SIDE), of an image of that size, float32."""
    smooth = ndimage.gaussian_filter(image, _SIDE / 100)
    level = smooth - ndimage.gaussian_filter(smooth, _SIDE / 6)
    pictures = np.stack([smooth, level])  # (2, S, S)
    inner = pictures[:, _SIDE // 8 : -_SIDE // 8, _SIDE // 8 : -_SIDE // 8].reshape(2, -1)
    thresholds = np.quantile(inner, _QUANTILES, axis=1).T  # (2, thresholds)
    dark = (pictures[:, None] < thresholds[..., None, None]).reshape(-1, _SIDE, _SIDE)
    dark = ndimage.binary_opening(dark, _IN_PLANE)  # cuts thin bridges to the air outside
    regions, count = ndimage.label(dark, _IN_PLANE)  # numbered on through all thresholds
    filled = np.array(
        [[np.bincount(regions.ravel(), place, count + 1) for place in pair] for pair in _PLACES]
    )  # (shifts, 2, regions)
    filled[..., 0] = 0  # not a region but everything bright; stands for "none"
    shift = filled.max(axis=-1).sum(axis=-1).argmax()
    lungs = [(regions == region).any(axis=0) & (region > 0) for region in filled[shift].argmax(-1)]
    return np.any([_closed(lung) for lung in lungs], axis=0)


def _expected_places() -> np.ndarray:
    """How well each pixel fits each lung, (shifts, 2, pixels): 1 at its centre, 0 at its edge.

    Two ellipses that lean together at the top; far outside, a pixel counts more against a region
    than the centre counts for it.
    """
    pixels = (np.arange(_SIDE) + 0.5) / _SIDE
    x, y = pixels, pixels[:, None] - 0.45
    places = []
    for shift in _SHIFTS:
        for side in (-1, 1):
            across = (x - 0.5 - shift - side * (0.19 + 0.12 * y)) / 0.165
            places.append(np.clip(1 - across**2 - (y / 0.36) ** 2, -1.5, 1))
    return np.reshape(places, (len(_SHIFTS), 2, _SIDE**2))


_PLACES = np.tile(_expected_places(), 2 * len(_QUANTILES))  # for all thresholds at once


def _closed(lung: np.ndarray) -> np.ndarray:
    """Lung with its notches (ribs, vessels) and holes filled."""
    radius = _SIDE // 16
    steps = np.arange(-radius, radius + 1)
    disk = steps[:, None] ** 2 + steps**2 <= radius**2
    # Without the rim, closing would erode what touches the image's edge.
    closed = ndimage.binary_closing(np.pad(lung, radius), disk)[radius:-radius, radius:-radius]
    return ndimage.binary_fill_holes(closed)
