"""Changes of the image that hide from a network which collection the image comes from."""

from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.exposure import equalize_adapthist

from covid_lab.masks import border
from covid_project.images import resize

MARGIN = 0.06  # around the lungs, as a fraction of their height and width
LEAST_LUNGS = 0.05  # of the image: with less, it is not cropped
GREY = 128  # of what is blanked


def _crop_to_lungs(image: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Crop to the box around the lungs with a margin, at the former size; no crop without lungs."""
    side = len(image)
    if lungs.mean() < LEAST_LUNGS:
        return image
    box = []
    for axis in (0, 1):  # left and right, then top and bottom
        inside = np.flatnonzero(lungs.any(axis=axis))
        first, last = inside[0], inside[-1] + 1
        margin = MARGIN * (last - first)
        box.append((max(0, first - margin), min(side, last + margin)))
    (left, right), (top, bottom) = box
    cropped = Image.fromarray(image).resize(
        (side, side), Image.Resampling.BILINEAR, box=(left, top, right, bottom)
    )
    return np.asarray(cropped)


def _mask_lungs(image: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Blank everything outside the lungs, except for a rim of a sixtieth of the side."""
    rim = ndimage.binary_dilation(lungs, iterations=max(1, len(image) // 60))
    return np.where(rim, image, 0).astype(np.uint8)


def _blank_border(image: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Blank the outer tenth of the image."""
    return np.where(border(len(image)), np.uint8(GREY), image)


def _equalize_lungs(image: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Replace grey values by their rank among the pixels of the lungs, or of the image without."""
    inside = image[lungs] if lungs.mean() >= LEAST_LUNGS else image.ravel()
    counts = np.bincount(inside, minlength=256)
    ranks = (np.cumsum(counts) - counts / 2) / counts.sum()
    return np.uint8(np.rint(255 * ranks))[image]


def _equalize_locally(image: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Apply contrast-limited adaptive histogram equalisation."""
    equalized = equalize_adapthist(image, kernel_size=len(image) // 8, clip_limit=0.02)
    return np.uint8(np.rint(255 * equalized))


def _local_contrast(image: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Subtract the local mean and divide by the local standard deviation (Gaussian windows)."""
    grey, width = image.astype(np.float32), 0.08 * len(image)
    detail = grey - ndimage.gaussian_filter(grey, width)
    spread = np.sqrt(ndimage.gaussian_filter(detail**2, width))
    return np.uint8(np.clip(GREY + 45 * detail / (spread + 6), 0, 255))


def _remove_low_frequencies(image: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Subtract what changes over more than about an eighth of the side; equalise the spread."""
    grey = image.astype(np.float32)
    detail = grey - ndimage.gaussian_filter(grey, 0.12 * len(image))
    return np.uint8(np.clip(GREY + 40 * detail / (detail.std() + 4), 0, 255))


def _lower_resolution(image: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Reduce to a third of the side and enlarge again, so that all images are equally sharp."""
    side = len(image)
    return resize(resize(image, (side // 3, side // 3)), (side, side))


# Name in tables → function of image uint8 (S, S) and lungs bool (S, S) → uint8 (S, S).
INPUTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "as it is": lambda image, lungs: image,
    "lung crop": _crop_to_lungs,
    "lung mask": _mask_lungs,
    "border blanked": _blank_border,
    "rank inside the lungs": _equalize_lungs,
    "CLAHE": _equalize_locally,
    "local contrast": _local_contrast,
    "without low frequencies": _remove_low_frequencies,
    "lower resolution": _lower_resolution,
}
