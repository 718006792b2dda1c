"""Views of images for comparison: whole, and without uniform borders."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

_UNIFORM = 12  # grey values that a border may span
_LEAST = 0.3  # fraction of a side that remains of a trimmed image


@dataclass(frozen=True, eq=False)
class Views:
    """Parts of images, each seen as a square.

    Attributes
    ----------
    images : np.ndarray, uint8 (N, H, W)
        Grey values.
    rows : np.ndarray, int (V,)
        Image of each view.
    frames : np.ndarray, int (V, 4)
        Left, upper, right and lower edge of what is seen, in pixels.
    contents : np.ndarray, float32 (V, 4), -1 to 1
        First and last y, first and last x between which a view shows more than a uniform border, in
        half-widths.
    """

    images: np.ndarray
    rows: np.ndarray
    frames: np.ndarray
    contents: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def resized(self, which: np.ndarray, side: int) -> np.ndarray:
        """Resize some views, averaging over pixels where the size is reduced.

        Parameters
        ----------
        which : np.ndarray, int (M,)
            Views.
        side : int, from 1
            Pixels along a side of the result.

        Returns
        -------
        np.ndarray, float32 (M, side, side), 0–255
            Bilinear interpolation (Pillow's).
        """
        resized = np.empty((len(which), side, side), np.float32)
        for place, view in enumerate(which):
            image = Image.fromarray(self.images[self.rows[view]])
            box = tuple(self.frames[view].tolist())
            resized[place] = image.resize((side, side), Image.Resampling.BILINEAR, box)
        return resized


def views_of(images: np.ndarray, rows: np.ndarray) -> Views:
    """Make a view of each whole image, and a second one of each image with a uniform border.

    The second view leaves the border out, if at least `_LEAST` of both sides remains.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, H, W)
        Grey values.
    rows : np.ndarray, int (M,)
        Images that are seen, each with some contrast.

    Returns
    -------
    Views
        The first M show whole images, in the order of ``rows``.
    """
    height, width = images.shape[1:]
    whole = np.array([0, 0, width, height])
    inner = np.array([_content_box(images[row]) for row in rows])
    sides = (inner[:, 2:] - inner[:, :2]) / (width, height)
    trimmed = (inner != whole).any(axis=1) & (sides >= _LEAST).all(axis=1)
    contents = np.tile(np.array([-1, 1, -1, 1], np.float32), (len(rows) + trimmed.sum(), 1))
    edges = inner[trimmed][:, [1, 3, 0, 2]] / np.array([height, height, width, width]) * 2 - 1
    contents[np.flatnonzero(trimmed)] = edges
    return Views(
        images,
        np.concatenate([rows, rows[trimmed]]),
        np.concatenate([np.tile(whole, (len(rows), 1)), inner[trimmed]]),
        contents,
    )


def _content_box(image: np.ndarray) -> tuple[int, int, int, int]:
    """Find the part of an image inside uniform rows and columns at its edges.

    A border may surround another one, such as a white frame around a radiograph with black sides.
    Lines are therefore removed until no line at an edge is uniform.
    """
    top, left = 0, 0
    bottom, right = image.shape
    while True:
        before = left, top, right, bottom
        part = image[top:bottom, left:right]
        low, high = _uniform_ends(np.ptp(part, axis=1))
        top, bottom = top + low, bottom - high
        part = image[top:bottom, left:right]
        low, high = _uniform_ends(np.ptp(part, axis=0)) if len(part) else (0, 0)
        left, right = left + low, right - high
        if before == (left, top, right, bottom) or left >= right or top >= bottom:
            return before


def _uniform_ends(spans: np.ndarray) -> tuple[int, int]:
    """Count the uniform lines at both ends; if all are uniform, all count for the beginning."""
    varied = np.flatnonzero(spans > _UNIFORM)
    return (varied[0], len(spans) - 1 - varied[-1]) if len(varied) else (len(spans), 0)
