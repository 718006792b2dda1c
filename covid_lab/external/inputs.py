"""Changes of the image that hide from a network which collection the image comes from."""

from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.exposure import equalize_adapthist

from covid_project.images import resize

MARGIN = 0.06  # around the lungs, as a fraction of their height and width
LEAST_LUNGS = 0.05  # of the image: with less, it is not cropped
GREY = 128  # of what is blanked


def crop_to_lungs(image: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Crop an image to the box around its lungs, with a margin, and enlarge it to its former size.

    Parameters
    ----------
    image : np.ndarray, uint8 (S, S), 0–255
        Grey values.
    lungs : np.ndarray, bool (S, S)
        Pixels of the lungs.

    Returns
    -------
    np.ndarray, uint8 (S, S), 0–255
        The crop. The image itself where the lungs cover less than 5 % of it.
    """
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


def mask_lungs(image: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Blank everything outside the lungs, except for a rim of a sixtieth of the side.

    Parameters
    ----------
    image : np.ndarray, uint8 (S, S), 0–255
        Grey values.
    lungs : np.ndarray, bool (S, S)
        Pixels of the lungs.

    Returns
    -------
    np.ndarray, uint8 (S, S), 0–255
        The image with 0 outside the lungs and their rim.
    """
    rim = ndimage.binary_dilation(lungs, iterations=max(1, len(image) // 60))
    return np.where(rim, image, 0).astype(np.uint8)


def blank_border(image: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Blank the outer tenth of the image.

    Parameters
    ----------
    image : np.ndarray, uint8 (S, S), 0–255
        Grey values.
    lungs : np.ndarray, bool (S, S)
        Not used.

    Returns
    -------
    np.ndarray, uint8 (S, S), 0–255
        The image with a border of grey value 128.
    """
    width = len(image) // 10
    blanked = np.full_like(image, GREY)
    inner = slice(width, -width)
    blanked[inner, inner] = image[inner, inner]
    return blanked


def equalize_lungs(image: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Replace grey values by their rank among the pixels of the lungs.

    Parameters
    ----------
    image : np.ndarray, uint8 (S, S), 0–255
        Grey values.
    lungs : np.ndarray, bool (S, S)
        Pixels of the lungs. Ranks refer to all pixels where the lungs cover less than 5 % of the
        image.

    Returns
    -------
    np.ndarray, uint8 (S, S), 0–255
        255 times the mid-rank, as a fraction.
    """
    inside = image[lungs] if lungs.mean() >= LEAST_LUNGS else image.ravel()
    counts = np.bincount(inside, minlength=256)
    ranks = (np.cumsum(counts) - counts / 2) / counts.sum()
    return np.uint8(np.rint(255 * ranks))[image]


def equalize_locally(image: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Apply contrast-limited adaptive histogram equalisation.

    CLAHE (Zuiderveld 1994, Graphics Gems IV), with tiles of an eighth of the side.

    Parameters
    ----------
    image : np.ndarray, uint8 (S, S), 0–255
        Grey values.
    lungs : np.ndarray, bool (S, S)
        Not used.

    Returns
    -------
    np.ndarray, uint8 (S, S), 0–255
        Equalised grey values.
    """
    equalized = equalize_adapthist(image, kernel_size=len(image) // 8, clip_limit=0.02)
    return np.uint8(np.rint(255 * equalized))


def local_contrast(image: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Subtract the local mean and divide by the local standard deviation.

    Both come from a Gaussian window with a standard deviation of 8 % of the side.

    Parameters
    ----------
    image : np.ndarray, uint8 (S, S), 0–255
        Grey values.
    lungs : np.ndarray, bool (S, S)
        Not used.

    Returns
    -------
    np.ndarray, uint8 (S, S), 0–255
        128 + 45 · (grey − mean) / (standard deviation + 6).
    """
    grey, width = image.astype(np.float32), 0.08 * len(image)
    detail = grey - ndimage.gaussian_filter(grey, width)
    spread = np.sqrt(ndimage.gaussian_filter(detail**2, width))
    return np.uint8(np.clip(GREY + 45 * detail / (spread + 6), 0, 255))


def remove_low_frequencies(image: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Subtract what changes over more than about an eighth of the side, and equalise the spread.

    Parameters
    ----------
    image : np.ndarray, uint8 (S, S), 0–255
        Grey values.
    lungs : np.ndarray, bool (S, S)
        Not used.

    Returns
    -------
    np.ndarray, uint8 (S, S), 0–255
        128 + 40 · detail / (standard deviation of the detail + 4), where the detail is the
        difference from a Gaussian mean with a standard deviation of 12 % of the side.
    """
    grey = image.astype(np.float32)
    detail = grey - ndimage.gaussian_filter(grey, 0.12 * len(image))
    return np.uint8(np.clip(GREY + 40 * detail / (detail.std() + 4), 0, 255))


def lower_resolution(image: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Reduce the image to a third of its side and enlarge it again, so that all are equally sharp.

    Parameters
    ----------
    image : np.ndarray, uint8 (S, S), 0–255
        Grey values.
    lungs : np.ndarray, bool (S, S)
        Not used.

    Returns
    -------
    np.ndarray, uint8 (S, S), 0–255
        The image at the lower resolution.
    """
    side = len(image)
    return resize(resize(image, (side // 3, side // 3)), (side, side))


# Name in tables → function of image uint8 (S, S) and lungs bool (S, S) → uint8 (S, S).
INPUTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "as it is": lambda image, lungs: image,
    "lung crop": crop_to_lungs,
    "lung mask": mask_lungs,
    "border blanked": blank_border,
    "rank inside the lungs": equalize_lungs,
    "CLAHE": equalize_locally,
    "local contrast": local_contrast,
    "without low frequencies": remove_low_frequencies,
    "lower resolution": lower_resolution,
}
