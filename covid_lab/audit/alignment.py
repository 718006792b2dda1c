"""Similarity of two radiographs after one of them is aligned with the other.

A motion is affine: it shifts, scales, rotates and shears. Coordinates run from -1 to 1 across an
image (half-widths). A motion (2, 3) maps a position (y, x, 1) in the first image to the position in
the second image that shows the same point. Pairs are aligned from coarse to fine. Pairs with a low
correlation are left out after each level, so that few pairs reach the finest level, which is slow.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from threadpoolctl import threadpool_limits  # comes with scikit-learn

from covid_lab.audit.blocks import blocks
from covid_lab.audit.views import Views

FARTHEST = 0.25  # largest change of each number of a motion from its start
MARGIN = 0.08  # in half-widths; near the edge of a crop, details differ from the original

_BATCH = 2**16  # pixels aligned at once in each thread; each takes about 30 numbers
_KEPT = 2**23  # pixels whose details are in memory, as an image is compared with many others


@dataclass(frozen=True, eq=False)
class Candidates:
    """Pairs of views that may show the same picture.

    Attributes
    ----------
    first, second : np.ndarray, int (M,)
        The two views of each pair.
    motions : np.ndarray, float32 (M, 2, 3)
        Start of the alignment of the second view with the first.
    signs : np.ndarray, float32 (M,)
        -1 where the grey values of one view are inverted, else 1.
    """

    first: np.ndarray
    second: np.ndarray
    motions: np.ndarray
    signs: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class _Level:
    """One level from coarse to fine: how pairs are aligned, and which of them continue."""

    side: int
    fine: float
    coarse: float
    around: float
    steps: int
    least: float


LEVELS = (
    _Level(32, 1, 4, 4, 6, 0.5),
    _Level(32, 0, 1.5, 3, 2, 0.8),
    _Level(64, 1.5, 4, 6, 3, 0.75),
    _Level(64, 0.7, 2, 5, 3, 0.78),
    _Level(128, 0.7, 2, 8, 3, -1.0),
)


def similarities(
    views: Views, candidates: Candidates, progress: Callable[[int], None] = lambda done: None
) -> np.ndarray:
    """Align each pair and compute the correlation of its details.

    Parameters
    ----------
    views : Views
        Parts of images.
    candidates : Candidates
        M pairs of views.
    progress : callable
        Called with the number of pairs that have passed through the first, coarsest level.

    Returns
    -------
    np.ndarray, float32 (M,), -1 to 1
        -1 for a pair that was left out before the last level.
    """
    similarity = np.full(len(candidates), -1, np.float32)
    motions = candidates.motions.astype(np.float32)
    kept = np.arange(len(candidates))
    # One thread per batch: on small matrices BLAS's own threads wait for each other, which takes
    # ten times as long.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for number, level in enumerate(LEVELS):
            found = np.empty(len(kept), np.float32)
            for block in blocks(len(kept), 2 * level.side**2, _KEPT):
                found[block] = _compared(views, candidates, kept[block], motions, level, pool)
                if number == 0:
                    progress(block.stop)
            similarity[kept] = -1
            kept, found = kept[found >= level.least], found[found >= level.least]
            similarity[kept] = found
    return similarity


def warped(images: np.ndarray, motions: np.ndarray) -> np.ndarray:
    """Apply motions to images, by bilinear interpolation.

    Parameters
    ----------
    images : np.ndarray, float32 (M, S, S)
        Grey values or details.
    motions : np.ndarray, float32 (M, 2, 3)
        See the module's description.

    Returns
    -------
    np.ndarray, float32 (M, S, S)
        Outside, an image continues with the values of its edge.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.array([[[0, 1, 2], [0, 1, 2], [0, 1, 2]]], np.float32)
    >>> shift = np.float32([[[1, 0, 0], [0, 1, 0.5]]])
    >>> warped(image, shift)[0, 0].round(2).tolist()
    [0.5, 1.5, 2.0]
    """
    count, side, _ = images.shape
    half = (side - 1) / 2
    y, x = (
        np.clip((where + 1) * half, 0, side - 1.001).astype(np.float32)
        for where in _positions(motions, side)
    )
    row, column = y.astype(np.int32), x.astype(np.int32)
    y -= row
    x -= column
    place = row * side + column
    place += (np.arange(count, dtype=np.int32) * side**2)[:, None, None]
    pixels = np.ascontiguousarray(images).reshape(-1)
    upper, upper_right = pixels.take(place), pixels.take(place + 1)
    lower, lower_right = pixels.take(place + side), pixels.take(place + side + 1)
    upper += (upper_right - upper) * x
    lower += (lower_right - lower) * x
    upper += (lower - upper) * y
    return upper


def _details(images: np.ndarray, level: _Level) -> np.ndarray:
    """Extract the structures between two scales, divided by their strength around each pixel.

    The edges of the body, of letters and of black frames, which many images share, then weigh no
    more than the faint structures inside.
    """
    fine, coarse = (
        gaussian_filter(images, (0, scale, scale)) for scale in (level.fine, level.coarse)
    )
    band = fine - coarse
    floor = 0.3 * band.std((1, 2), keepdims=True) + 1e-3
    strength = gaussian_filter(band * band, (0, level.around, level.around))
    return band / np.sqrt(strength + floor**2)


def _aligned(
    first: np.ndarray,
    second: np.ndarray,
    contents: tuple[np.ndarray, np.ndarray],
    start: np.ndarray,
    steps: int,
) -> np.ndarray:
    """Align the second images with the first ones.

    Efficient second-order minimisation (Malis 2004): Gauss-Newton steps on the squared difference,
    with the mean of both images' gradients. Each step is applied before the motion found so far.
    """
    side = first.shape[1]
    axis = _axis(side)
    half = (side - 1) / 2  # gradients per half-width, the unit of motions
    first_slopes = np.gradient(first, axis=(1, 2))
    motions = start
    effects = np.empty((len(first), 6, side, side), np.float32)
    flat = effects.reshape(len(first), 6, -1)
    for _ in range(steps):
        seen, inside = warped(second, motions), _overlap(contents, motions, side)
        slopes = np.gradient(seen, axis=(1, 2))
        for along, (a, b) in enumerate(zip(first_slopes, slopes, strict=True)):
            slope = (a + b) * (half / 2) * inside
            effects[:, 3 * along] = slope * axis[:, None]
            effects[:, 3 * along + 1] = slope * axis
            effects[:, 3 * along + 2] = slope
        normal = flat @ flat.transpose(0, 2, 1)
        damping = 1e-3 * np.trace(normal, axis1=1, axis2=2) / 6 + 1e-6
        normal += damping[:, None, None] * np.eye(6, dtype=np.float32)
        missed = ((seen - first) * inside).reshape(len(first), -1, 1)
        step = -np.linalg.solve(normal, flat @ missed).reshape(-1, 2, 3)
        motions = _joined(motions, _identity(len(first)) + np.clip(step, -FARTHEST, FARTHEST))
        motions = start + np.clip(motions - start, -FARTHEST, FARTHEST)
    return motions


def _identity(count: int) -> np.ndarray:
    """Give motions that change nothing."""
    return np.tile(np.eye(2, 3, dtype=np.float32), (count, 1, 1))


def _joined(last: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Join motions that follow one another."""
    product = last[:, :, :2] @ before
    product[:, :, 2] += last[:, :, 2]
    return product


def _overlap(contents: tuple[np.ndarray, np.ndarray], motions: np.ndarray, side: int) -> np.ndarray:
    """Mark where the first images and the moved second ones both show their content."""
    axis = np.broadcast_to(_axis(side), (len(motions), side))
    shown = _shows(contents[0], axis[:, :, None], axis[:, None, :])
    return shown & _shows(contents[1], *_positions(motions, side))


def _correlation(
    first: np.ndarray,
    second: np.ndarray,
    contents: tuple[np.ndarray, np.ndarray],
    motions: np.ndarray,
) -> np.ndarray:
    """Compute Pearson's correlation of the images in each pair, where both show their content."""
    inside = _overlap(contents, motions, first.shape[1])
    n = np.maximum(inside.sum((1, 2)), 1)[:, None, None]
    a, b = (
        (image - (image * inside).sum((1, 2), keepdims=True) / n) * inside
        for image in (first, warped(second, motions))
    )
    spread = np.sqrt((a * a).sum((1, 2)) * (b * b).sum((1, 2)))
    return (a * b).sum((1, 2)) / np.maximum(spread, 1e-6)


def _compared(
    views: Views,
    candidates: Candidates,
    which: np.ndarray,
    motions: np.ndarray,
    level: _Level,
    pool: ThreadPoolExecutor,
) -> np.ndarray:
    """Align some candidates at one level, in place, and return their correlations."""
    pairs = np.stack([candidates.first[which], candidates.second[which]])
    used, places = np.unique(pairs, return_inverse=True)
    places = places.reshape(pairs.shape)
    shown = np.empty((len(used), level.side, level.side), np.float32)

    def fill(batch: slice) -> None:
        shown[batch] = _details(views.resized(used[batch], level.side), level)

    def compare(batch: slice) -> np.ndarray:
        first, second = (shown[side] for side in places[:, batch])
        second *= candidates.signs[which[batch], None, None]
        contents = tuple(views.contents[side] for side in pairs[:, batch])
        motion = _aligned(first, second, contents, motions[which[batch]], level.steps)
        motions[which[batch]] = motion
        return _correlation(first, second, contents, motion)

    list(pool.map(fill, blocks(len(used), level.side**2, _BATCH)))
    return np.concatenate(list(pool.map(compare, blocks(len(which), level.side**2, _BATCH))))


def _positions(motions: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the second image of the first image's pixels: y and x, each (M, S, S)."""
    axis = _axis(side)
    y, x = (
        numbers[:, 0, None, None] * axis[:, None]
        + (numbers[:, 1, None, None] * axis + numbers[:, 2, None, None])
        for numbers in (motions[:, 0], motions[:, 1])
    )
    return y, x


def _shows(content: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Whether positions are inside the content of their view by at least the margin."""
    first_y, last_y, first_x, last_x = content.T[:, :, None, None]
    return (
        (y >= first_y + MARGIN) & (y <= last_y - MARGIN)
        & (x >= first_x + MARGIN) & (x <= last_x - MARGIN)
    )  # fmt: skip


def _axis(side: int) -> np.ndarray:
    return np.linspace(-1, 1, side, dtype=np.float32)
