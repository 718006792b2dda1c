"""CT slices prepared step by step: grey values, contrast, size, noise, lungs.

Every step is a pure function. Images are float arrays (H, W), in Hounsfield units (HU) or, once
scaled, in [0, 1]; bright is dense.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import ndimage
from skimage.exposure import adjust_gamma, equalize_adapthist
from skimage.filters import sobel
from skimage.segmentation import watershed
from skimage.transform import resize

from covid_lab.masks import dice  # noqa: F401  (the notebook takes it from here)

GREY_LEVELS = 256  # of CLAHE's histograms
PERCENTILES = (99, 98, 97, 96, 95, 94, 93, 92, 91, 90)  # of the published table

# ---- grey values --------------------------------------------------------------------------------


def to_unit(hounsfield: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Clip Hounsfield units to an interval and scale it to [0, 1].

    Parameters
    ----------
    hounsfield : np.ndarray, int or float (H, W)
        Hounsfield units.
    bounds : tuple of float, (low, high)
        Interval in HU, low below high.

    Returns
    -------
    np.ndarray, float32 (H, W), 0–1
        Grey values.

    Examples
    --------
    >>> to_unit(np.array([[-3000, -300, 400]]), (-1000, 400)).tolist()
    [[0.0, 0.5, 1.0]]
    """
    low, high = bounds
    clipped = np.clip(np.asarray(hounsfield, np.float32), low, high)
    return (clipped - low) / np.float32(high - low)


def gamma_corrected(image: np.ndarray, gamma: float) -> np.ndarray:
    """Raise each value to the power of gamma, which darkens middle greys if above 1.

    Parameters
    ----------
    image : np.ndarray, float32 (H, W), 0–1
        Grey values.
    gamma : float, above 0
        Exponent.

    Returns
    -------
    np.ndarray, float32 (H, W), 0–1
        Corrected values.

    Raises
    ------
    ValueError
        The image has values outside [0, 1].
    """
    return adjust_gamma(_in_unit(image), gamma)


def clahe(image: np.ndarray, clip_limit: float, tiles: tuple[int, int]) -> np.ndarray:
    """Equalise the histogram adaptively with limited contrast (CLAHE, Zuiderveld 1994).

    Parameters
    ----------
    image : np.ndarray, float32 (H, W), 0–1
        Grey values.
    clip_limit : float, above 0
        Height at which the histogram of a tile is cut, as a multiple of an even histogram's: the
        contrast grows at most by about this factor. This is the unit of OpenCV and of the published
        2.5; scikit-image uses fractions of the tile's pixels, which is 1 / 256 of it.
    tiles : tuple of int, (down, across)
        Number of tiles.

    Returns
    -------
    np.ndarray, float32 (H, W), 0–1
        Equalised values.

    Raises
    ------
    ValueError
        The image has values outside [0, 1].

    Notes
    -----
    scikit-image first stretches the image from its smallest to its largest value. A slice with air
    and bone fills the bounds anyway. A constant image is returned unchanged.
    """
    image = _in_unit(image)
    if np.ptp(image) == 0:
        return image.copy()
    kernel = [-(-side // count) for side, count in zip(image.shape, tiles, strict=True)]
    equalized = equalize_adapthist(
        image, kernel_size=kernel, clip_limit=clip_limit / GREY_LEVELS, nbins=GREY_LEVELS
    )
    return equalized.astype(np.float32)


def _in_unit(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image, np.float32)
    low, high = image.min(), image.max()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"values from {low:g} to {high:g}; allowed: 0 to 1 (see to_unit)")
    return image


# ---- size ---------------------------------------------------------------------------------------


def standard_size(sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Choose one size for many images: the mean of the most frequent sizes.

    The published rule is a mean of the majority's dimensions. Here the most frequent sizes are
    taken until they cover half of the images. Sizes as frequent as the last one
    are included, so that the order of the images does not matter. The result is their mean over
    images, rounded.

    Parameters
    ----------
    sizes : iterable of (int, int)
        Height and width of each image, of the training split only.

    Returns
    -------
    tuple of int, (height, width)
        Pixels.

    Examples
    --------
    >>> standard_size([(50, 60)] * 3 + [(40, 40)])
    (50, 60)
    """
    counts = Counter(tuple(map(int, size)) for size in sizes)
    falling = sorted(counts.values(), reverse=True)
    enough = np.searchsorted(np.cumsum(falling), 0.5 * sum(falling))
    taken = {size: count for size, count in counts.items() if count >= falling[enough]}
    mean = np.average(list(taken), axis=0, weights=list(taken.values()))
    return tuple(int(side) for side in np.rint(mean))


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize linearly, with smoothing first where the image shrinks.

    Parameters
    ----------
    image : np.ndarray, float32 (H, W), 0–1
        Grey values.
    size : tuple of int, (height, width)
        Pixels.

    Returns
    -------
    np.ndarray, float32 (height, width), 0–1
        Resized image.
    """
    if image.shape == tuple(size):
        return np.asarray(image, np.float32)
    shrinks = image.shape[0] > size[0] or image.shape[1] > size[1]
    small = resize(np.asarray(image, np.float32), size, order=1, anti_aliasing=shrinks)
    return np.clip(small, 0, 1).astype(np.float32)


def as_grey(image: np.ndarray) -> np.ndarray:
    """Convert an image to the grey values that the networks take.

    Parameters
    ----------
    image : np.ndarray, float32 (H, W), 0–1
        Grey values.

    Returns
    -------
    np.ndarray, uint8 (H, W, 1), 0–255
        Grey values.

    Raises
    ------
    ValueError
        The image has values outside [0, 1].
    """
    return np.rint(255 * _in_unit(image)).astype(np.uint8)[..., None]


# ---- noise --------------------------------------------------------------------------------------


def laplacian_variance(image: np.ndarray) -> float:
    """Compute the variance of the discrete Laplacian of an image.

    It is large for noise, but also for fine detail. The kernel is [[0, 1, 0], [1, −4, 1], [0, 1,
    0]]. Times 255² it is OpenCV's value for grey values 0–255, except for the treatment of the
    border.

    Parameters
    ----------
    image : np.ndarray, float32 (H, W), 0–1
        Grey values.

    Returns
    -------
    float, from 0
        Variance, in squared grey values.
    """
    return float(ndimage.laplace(np.asarray(image, np.float64), mode="mirror").var())


def noise_table(variances: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """Count the images that each of `PERCENTILES` of the Laplacian variance would remove.

    Parameters
    ----------
    variances : mapping of str to sequence of float, (N,)
        Name of a view → variances of its training images.

    Returns
    -------
    pd.DataFrame
        One row per percentile: percentile, and for each view ``<view>_threshold`` and
        ``<view>_removed``, as in the published Table 1.

    Notes
    -----
    The published text removes "2 %, which equals 71 images". By its own table 2 % of 2363 images
    are 48, and 71 are 3 %.
    """
    table = pd.DataFrame({"percentile": PERCENTILES})
    for view, values in variances.items():
        thresholds = np.percentile(values, PERCENTILES)
        table[f"{view}_threshold"] = thresholds
        table[f"{view}_removed"] = [int((np.asarray(values) > one).sum()) for one in thresholds]
    return table


def too_noisy(
    table: pd.DataFrame, variances: Mapping[str, np.ndarray], percentile: float
) -> pd.DataFrame:
    """Find the training images to remove, by thresholds from the training images.

    Validation and test images always stay, as a model meets noisy slices in use too.

    Parameters
    ----------
    table : pd.DataFrame, N rows
        Table of the data set, with the columns name and split.
    variances : mapping of str to np.ndarray, float (N,)
        View → Laplacian variances of all images, in the order of the table.
    percentile : float, 0–100
        Percentile of the threshold.

    Returns
    -------
    pd.DataFrame
        One row per removed image and view: name, view, variance, threshold.
    """
    train = (table["split"] == "train").to_numpy()
    rows = []
    for view, values in variances.items():
        values = np.asarray(values, float)
        threshold = np.percentile(values[train], percentile)
        for row in np.flatnonzero(train & (values > threshold)):
            rows.append((table["name"].iloc[row], view, values[row], threshold))
    return pd.DataFrame(rows, columns=["name", "view", "variance", "threshold"])


# ---- lungs --------------------------------------------------------------------------------------

AIR_BELOW = -400.0  # HU, between lung and soft tissue
SURE_AIR = -650.0  # HU, certainly lung inside the body
LEAST_LUNG = 0.02  # of the body's area; smaller parts are the trachea or gas in the bowel
CLOSING = 16.0  # mm, radius of the ball that rolls along the lung: narrower bays are lung
NECK = 5.0  # mm, half the width of the widest bridge that is cut between touching lungs
BOTH = 2 / 3  # of the lungs' area; a larger connected part is both lungs


def lung_mask(hounsfield: np.ndarray, spacing: float = 0.7) -> np.ndarray:
    """Segment the lung fields of an axial chest slice by marker-controlled watershed.

    The body is the largest part denser than air that remains after thin bridges are cut, which
    excludes table and arms. Markers are flooded over the gradient of the image (Meyer 1994): air
    inside the body is certainly lung, dense tissue away from it is certainly not. Lungs that touch
    are separated. A ball rolls along each lung, so that a nodule on the pleura and the vessels stay
    inside.

    Parameters
    ----------
    hounsfield : np.ndarray, int or float (H, W)
        Hounsfield units.
    spacing : float, above 0
        Millimetres per pixel.

    Returns
    -------
    np.ndarray, bool (H, W)
        The lungs; all False where there are none (`no_lungs` says so in words).
    """
    smooth = ndimage.gaussian_filter(np.asarray(hounsfield, np.float32), 1.0)
    body = _body(smooth, spacing)
    sure = body & (smooth < SURE_AIR)
    sure = _large_parts(sure, LEAST_LUNG * body.sum())
    if not sure.any():
        return np.zeros(smooth.shape, bool)
    markers = np.zeros(smooth.shape, np.int32)
    markers[_eroded(sure, 1)] = 1
    far = smooth > AIR_BELOW + 250
    markers[_eroded(far, 1) | ~body] = 2
    flooded = watershed(sobel(smooth), markers) == 1
    lungs = [_rolled(lung, CLOSING / spacing) for lung in _parted(flooded, NECK / spacing)]
    return _filled(np.any(lungs, axis=0) & body)


def no_lungs(mask: np.ndarray) -> str:
    """Say what is wrong with a lung mask.

    Parameters
    ----------
    mask : np.ndarray, bool (H, W)
        Lung mask.

    Returns
    -------
    str
        "" where the mask has lungs.
    """
    return "" if np.any(mask) else "no lungs: no large part of the body is filled with air"


def without_background(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Set an image to 0 outside a mask.

    Parameters
    ----------
    image : np.ndarray, float32 (H, W), 0–1
        Grey values.
    mask : np.ndarray, bool (H, W)
        Pixels to keep.

    Returns
    -------
    np.ndarray, float32 (H, W), 0–1
        The image; unchanged where the mask is empty.
    """
    return np.where(mask, image, 0).astype(np.float32) if np.any(mask) else np.asarray(image)


def _body(smooth: np.ndarray, spacing: float) -> np.ndarray:
    dense = _opened(smooth > AIR_BELOW, 3 / spacing)  # 3 mm: cuts the table's bridges
    parts, count = ndimage.label(dense)
    if not count:
        return np.zeros(smooth.shape, bool)
    filled = [_filled(parts == part) for part in _largest(parts, count, 3)]
    return max(filled, key=np.sum)


def _largest(parts: np.ndarray, count: int, wanted: int) -> np.ndarray:
    areas = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    return 1 + np.argsort(-areas)[:wanted]


def _large_parts(mask: np.ndarray, least: float) -> np.ndarray:
    parts, _ = ndimage.label(mask)
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    return (areas >= max(least, 1))[parts]


def _parted(mask: np.ndarray, neck: float) -> list[np.ndarray]:
    """Return each lung separately, with its vessels filled; cut a part that is both at its neck.

    The markers are the large parts of the lungs deeper than ``neck`` (pixels). The flood over the
    distance to the edge meets at the neck.
    """
    parts, count = ndimage.label(_filled(mask))
    lungs = [parts == part for part in range(1, count + 1)]
    whole = max(lungs, key=np.sum)
    if whole.sum() < BOTH * mask.sum():
        return lungs
    depth = ndimage.distance_transform_edt(whole)
    seeds, count = ndimage.label(_large_parts(depth > neck, 0.1 * whole.sum()))
    if count < 2:
        return lungs
    pieces = watershed(-depth, seeds, mask=whole)
    rest = parts.astype(bool) & (pieces == 0)
    return [pieces == piece for piece in range(1, count + 1)] + ([rest] if rest.any() else [])


def _rolled(lung: np.ndarray, radius: float) -> np.ndarray:
    """Close the bays of a lung that a ball of the radius (pixels) does not enter."""
    margin = int(np.ceil(radius)) + 2
    rows, columns = (np.flatnonzero(lung.any(axis=axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    padded = np.pad(lung[box], margin)
    near = ndimage.distance_transform_edt(~padded) <= radius
    closed = ndimage.distance_transform_edt(near) > radius
    result = np.zeros_like(lung)
    result[box] = closed[margin:-margin, margin:-margin] | lung[box]
    return result


def _eroded(mask: np.ndarray, radius: float) -> np.ndarray:
    return ndimage.distance_transform_edt(mask) > radius if not mask.all() else mask


def _opened(mask: np.ndarray, radius: float) -> np.ndarray:
    core = _eroded(mask, radius)
    # The distance transform needs some background.
    return ndimage.distance_transform_edt(~core) <= radius if core.any() else core


def _filled(mask: np.ndarray) -> np.ndarray:
    return ndimage.binary_fill_holes(mask)
