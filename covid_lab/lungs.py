"""Where the lungs lie in a frontal chest radiograph, found without a trained network.

Lungs hold air and are darker than what surrounds them, but no single threshold parts them from
the air around the patient, and an opaque lung is hardly darker than the heart. So many thresholds
are tried, on the image and on the image with its slow changes of brightness taken away, and of all
connected dark regions the two are kept that best fill the places where lungs are expected.

Measured (`tests/test_lungs.py` measures again): Dice 0.84, IoU 0.72 on the ten adults of
`shenzhen_masks.zip` (0.78 to 0.88; mostly too large below the heart's left border), whose images
were also looked at while this was written; 0.94 on phantoms in health, 0.89 and 0.82 with patchy
lesions in one lung and in both, 0.76 with extensive ones, whose opaque parts are left out. That
serves for a region common to all images and for the share of a heatmap inside the lungs; it is not
enough to measure lungs.
"""

import numpy as np
from scipy import ndimage

from covid_project.data import resize

LEAST_AREA, MOST_AREA = 0.06, 0.6  # of the image, both lungs together
LEAST_BALANCE = 0.25  # area of the smaller lung as a share of the larger

_SIDE = 60  # pixels at which the regions are sought
_QUANTILES = np.linspace(0.15, 0.65, 12)  # of the grey values, one threshold each
_SHIFTS = (-0.1, -0.05, 0.0, 0.05, 0.1)  # of the patient to the side, as a share of the width
_IN_PLANE = np.array([np.zeros((3, 3)), ndimage.generate_binary_structure(2, 1), np.zeros((3, 3))])


def segment_lungs(images: np.ndarray) -> np.ndarray:
    """Find the lung fields of upright, frontal chest radiographs.

    Parameters
    ----------
    images
        uint8 (N, S, S), bright where dense.

    Returns
    -------
    bool (N, S, S). Where nothing fits, a lung or both are missing: ask `implausible`.

    Raises
    ------
    ValueError
        Another dtype or shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(
            f"images are {images.dtype} {images.shape}; the lungs are sought in uint8 (N, S, S)"
        )
    side = images.shape[1:]
    masks = np.empty(images.shape, bool)
    for mask, image in zip(masks, images, strict=True):
        lungs = _segment(resize(image, (_SIDE, _SIDE)).astype(np.float32))
        mask[...] = resize(np.uint8(255) * lungs, side) >= 128
    return masks


def implausible(masks: np.ndarray) -> np.ndarray:
    """Say which masks bool (N, S, S) cannot be two lungs, and why: (N,) str, "" where they can.

    Too little or too much of the image, or one side of the mask much smaller than the other. A
    patient with a lung that is opaque from top to bottom is named as well.
    """
    reasons = []
    for mask in np.asarray(masks):
        share = mask.mean()
        columns = np.flatnonzero(mask.any(axis=0))
        middle = (columns[0] + columns[-1] + 1) // 2 if len(columns) else 0
        smaller, larger = sorted((mask[:, :middle].sum(), mask[:, middle:].sum()))
        if not LEAST_AREA <= share <= MOST_AREA:
            reasons.append(f"{share:.0%} of the image")
        elif smaller < LEAST_BALANCE * larger:
            reasons.append("one lung only")
        else:
            reasons.append("")
    return np.array(reasons, dtype="U32")


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
    filled[..., 0] = 0  # not a region but all that is bright; stands for "none"
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
