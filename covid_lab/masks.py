"""Masks: found by name, read from grey values, resized, and compared."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np

from covid_project.images import resize


def match_masks(images: Sequence[str], masks: Sequence[str]) -> dict[str, str]:
    """Find the mask of each image by the end of its path.

    Suffixes and letter case do not count, and ``…_mask`` is allowed. The longest end that an image
    has in common with some mask decides: COVID/1.png and NORMAL/1.png are two images.

    Parameters
    ----------
    images : sequence of str
        Paths of the images.
    masks : sequence of str
        Paths of the masks.

    Returns
    -------
    dict of str to str
        Image → mask. Images that several masks fit are missing, and images whose mask fits another
        image as well or better.

    Examples
    --------
    >>> match_masks(["data/a/1.png", "data/b/1.png"], ["a/1_mask.png", "2.png"])
    {'data/a/1.png': 'a/1_mask.png'}
    """
    with_end: dict[str, set[str]] = {}
    for mask in masks:
        for end in _ends(mask):
            with_end.setdefault(end, set()).add(mask)
    found = {}
    for image in images:
        end = next((end for end in _ends(image) if end in with_end), "")
        if len(with_end.get(end, ())) == 1:
            found[image] = *with_end[end], end
    longest = {mask: end for mask, end in sorted(found.values(), key=lambda pair: len(pair[1]))}
    uses = Counter(found.values())
    return {
        image: mask
        for image, (mask, end) in found.items()
        if end == longest[mask] and uses[mask, end] == 1
    }


def _ends(path: str) -> Iterator[str]:
    """Yield the ends of a path without its suffix, the whole path first."""
    bare = str(PurePosixPath(path).with_suffix("")).casefold().removesuffix("_mask")
    parts = bare.split("/")
    return ("/".join(parts[start:]) for start in range(len(parts)))


def marked_pixels(grey: np.ndarray) -> np.ndarray:
    """Tell which pixels of a drawn mask are marked: those above half of its largest value.

    Parameters
    ----------
    grey : np.ndarray, uint8 (H, W)
        Grey values of the file.

    Returns
    -------
    np.ndarray, bool (H, W)

    Examples
    --------
    >>> marked_pixels(np.array([[0, 100, 200]], np.uint8))
    array([[False, False,  True]])
    """
    return grey > grey.max() / 2


def resized_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize a mask; a pixel is marked where half of it is.

    Parameters
    ----------
    mask : np.ndarray, bool (H, W)
    shape : tuple of int
        Height and width in pixels.

    Returns
    -------
    np.ndarray, bool (height, width)

    Examples
    --------
    >>> int(resized_mask(np.eye(2, dtype=bool), (4, 4)).sum())
    8
    """
    return resize(np.uint8(255) * mask, shape) >= 128


def dice(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Compute the Dice coefficient 2 |A ∩ B| / (|A| + |B|) of masks (Dice 1945).

    Parameters
    ----------
    found : np.ndarray, bool (..., H, W)
        Masks.
    true : np.ndarray, bool (..., H, W)
        Masks to compare with, in the same order.

    Returns
    -------
    np.ndarray, float64 (...), 0–1
        One coefficient per pair; 1 where both masks are empty.

    Examples
    --------
    >>> found, true = np.zeros((2, 4, 4), bool)
    >>> found[:2], true[1:] = True, True
    >>> float(dice(found, true))  # 4 common pixels of 8 and 12
    0.4
    """
    both = (found & true).sum(axis=(-2, -1))
    areas = found.sum(axis=(-2, -1)) + true.sum(axis=(-2, -1))
    return np.where(areas == 0, 1.0, 2 * both / np.maximum(areas, 1))


def border(side: int) -> np.ndarray:
    """Mark the border of a square image: the outer tenth along each side.

    Parameters
    ----------
    side : int, from 10
        Pixels along each side.

    Returns
    -------
    np.ndarray, bool (side, side)
        True in the border.
    """
    width = side // 10
    return np.pad(np.zeros((side - 2 * width,) * 2, bool), width, constant_values=True)
