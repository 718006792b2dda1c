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

BOUNDS = (-1000.0, 400.0)  # HU: air, and just above the soft tissues
GAMMA = 1.35
CLIP_LIMIT, TILES = 2.5, (8, 8)  # of CLAHE, in OpenCV's terms
GREY_LEVELS = 256  # of CLAHE's histograms
PERCENTILES = (99, 98, 97, 96, 95, 94, 93, 92, 91, 90)  # of the published table

# ---- grey values --------------------------------------------------------------------------------


def to_unit(hounsfield: np.ndarray, bounds: tuple[float, float] = BOUNDS) -> np.ndarray:
    """Clip to ``bounds`` (HU) and scale these to [0, 1]: (H, W) in HU → float32 (H, W)."""
    low, high = bounds
    if not low < high:
        raise ValueError(f"bounds are {bounds}; the lower must be below the upper (HU)")
    clipped = np.clip(np.asarray(hounsfield, np.float32), low, high)
    return (clipped - low) / np.float32(high - low)


def gamma_corrected(image: np.ndarray, gamma: float = GAMMA) -> np.ndarray:
    """Each value to the power of ``gamma``: [0, 1] → [0, 1]; above 1 darkens the middle greys."""
    return adjust_gamma(_in_unit(image), gamma)


def clahe(
    image: np.ndarray, clip_limit: float = CLIP_LIMIT, tiles: tuple[int, int] = TILES
) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994): [0, 1] → [0, 1].

    Parameters
    ----------
    clip_limit
        Height at which the histogram of a tile is cut, as a multiple of an even histogram's: the
        contrast grows by no more than about this factor. OpenCV counts so, and so does the
        published 2.5; scikit-image counts in shares of the tile's pixels, which is 1 / 256 of it.
    tiles
        Tiles down and across.

    Notes
    -----
    scikit-image first stretches the image from its own least to its own greatest value. Every
    slice with air and bone in it fills the bounds anyway; a constant image stays as it is.
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
        raise ValueError(f"values lie in {low:g}…{high:g}; allowed: 0 to 1 (see to_unit)")
    return image


# ---- size ---------------------------------------------------------------------------------------


def standard_size(sizes: Iterable[tuple[int, int]], common: float = 0.5) -> tuple[int, int]:
    """One size for images of many: the mean of the most frequent sizes, (height, width) in pixels.

    The published rule, a mean of the majority's dimensions, made definite: sizes are taken by
    falling frequency until they hold a share ``common`` of the images, those as frequent as the
    last one included, so that the order of the images does not matter; of these the mean over
    images, rounded.

    Parameters
    ----------
    sizes
        Height and width of each image, of the training split alone.
    """
    counts = Counter(tuple(map(int, size)) for size in sizes)
    if not counts:
        raise ValueError("no sizes are given")
    falling = sorted(counts.values(), reverse=True)
    enough = np.searchsorted(np.cumsum(falling), common * sum(falling))
    taken = {size: count for size, count in counts.items() if count >= falling[enough]}
    mean = np.average(list(taken), axis=0, weights=list(taken.values()))
    return tuple(int(side) for side in np.rint(mean))


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize linearly, smoothed first where it shrinks: [0, 1] (H, W) → [0, 1] float32 ``size``."""
    if image.shape == tuple(size):
        return np.asarray(image, np.float32)
    shrinks = image.shape[0] > size[0] or image.shape[1] > size[1]
    small = resize(np.asarray(image, np.float32), size, order=1, anti_aliasing=shrinks)
    return np.clip(small, 0, 1).astype(np.float32)


def as_grey(image: np.ndarray) -> np.ndarray:
    """[0, 1] (H, W) → uint8 (H, W, 1) in 0–255, as the networks take them."""
    return np.rint(255 * _in_unit(image)).astype(np.uint8)[..., None]


# ---- noise --------------------------------------------------------------------------------------


def laplacian_variance(image: np.ndarray) -> float:
    """Variance of the discrete Laplacian of an image in [0, 1], in its squared units; ≥ 0.

    Large for noise, but for fine detail too. Kernel [[0, 1, 0], [1, −4, 1], [0, 1, 0]]; times 255²
    it is OpenCV's figure for grey values 0–255, but for the border.
    """
    return float(ndimage.laplace(np.asarray(image, np.float64), mode="mirror").var())


def noise_table(
    variances: Mapping[str, Sequence[float]], percentiles: Sequence[float] = PERCENTILES
) -> pd.DataFrame:
    """How many images would be removed above each percentile of the Laplacian variance.

    Parameters
    ----------
    variances
        Name of a view → variances (N,) of its training images.

    Returns
    -------
    One row per percentile: percentile, and for each view ``<view>_threshold`` and
    ``<view>_removed``, as the published Table 1 counts. (Its text then removes "2 %, which equals
    71 images"; by its own table 2 % of 2363 are 48, and 71 are 3 %.)
    """
    table = pd.DataFrame({"percentile": list(percentiles)})
    for view, values in variances.items():
        thresholds = [noise_threshold(values, percentile) for percentile in percentiles]
        table[f"{view}_threshold"] = thresholds
        table[f"{view}_removed"] = [int((np.asarray(values) > one).sum()) for one in thresholds]
    return table


def noise_threshold(variances: Sequence[float], percentile: float) -> float:
    """Laplacian variance above which a training image is too noisy (NumPy's linear percentile)."""
    return float(np.percentile(np.asarray(variances, float), percentile))


def too_noisy(
    table: pd.DataFrame, variances: Mapping[str, np.ndarray], percentile: float
) -> pd.DataFrame:
    """Training images to be removed, by thresholds of the training images.

    Validation and test images always stay: a model meets noisy slices in use, too.

    Parameters
    ----------
    table
        Of the data set: columns name, split.
    variances
        View → Laplacian variances (N,) of all images, in the order of the table.

    Returns
    -------
    One row per removed image and view: name, view, variance, threshold.
    """
    train = (table["split"] == "train").to_numpy()
    rows = []
    for view, values in variances.items():
        values = np.asarray(values, float)
        threshold = noise_threshold(values[train], percentile)
        for row in np.flatnonzero(train & (values > threshold)):
            rows.append((table["name"].iloc[row], view, values[row], threshold))
    return pd.DataFrame(rows, columns=["name", "view", "variance", "threshold"])


# ---- lungs --------------------------------------------------------------------------------------

AIR_BELOW = -400.0  # HU, between lung and soft tissue
SURE_AIR = -650.0  # HU, certainly lung where it lies inside the body
LEAST_LUNG = 0.02  # of the body's area; what is smaller is the trachea or gas in the bowel
CLOSING = 16.0  # mm, radius of the ball that rolls along the lung: bays narrower than it are lung
NECK = 5.0  # mm, half the width of the widest bridge at which touching lungs are parted
BOTH = 2 / 3  # of the lungs' area; a connected part above it is both lungs, touching


def lung_mask(hounsfield: np.ndarray, spacing: float = 0.7) -> np.ndarray:
    """Lung fields of an axial chest slice, by marker-controlled watershed.

    The body is the largest thing denser than air that remains when thin bridges are cut, so that
    table and arms fall away. Markers are flooded over the gradient of the image (Meyer 1994): the
    air inside the body is surely lung, what is dense and not near to it surely none. Lungs that
    touch are parted, and along each a ball is rolled, so that a nodule on the pleura and the
    vessels in the lung stay inside.

    Parameters
    ----------
    hounsfield
        (H, W) in HU.
    spacing
        Millimetres per pixel.

    Returns
    -------
    bool (H, W); all False where there are no lungs (`no_lungs` says so in words).
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
    """What to say of a lung mask bool (H, W): "" where it has lungs."""
    return "" if np.any(mask) else "no lungs: no large part of the body is filled with air"


def without_background(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Image [0, 1] with 0 outside the mask; as it is where the mask is empty."""
    return np.where(mask, image, 0).astype(np.float32) if np.any(mask) else np.asarray(image)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Dice 1945: twice the common area over the sum of both; 1 for two empty masks."""
    total = np.sum(first) + np.sum(second)
    return float(2 * np.sum(np.logical_and(first, second)) / total) if total else 1.0


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
    """Each lung by itself, its vessels filled; one that is most of both is cut where it is thin.

    The markers are the large parts of what lies deeper than ``neck`` (pixels) in the lungs; the
    flood over the distance to the edge meets at the neck.
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
    """The lung with every bay that a ball of the radius (pixels) does not enter: a closing."""
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
    # A transform without any background measures nothing.
    return ndimage.distance_transform_edt(~core) <= radius if core.any() else core


def _filled(mask: np.ndarray) -> np.ndarray:
    return ndimage.binary_fill_holes(mask)
