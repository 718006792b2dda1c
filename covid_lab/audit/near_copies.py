"""Near copies of radiographs: the same picture, changed in one of the usual ways.

A copy may be resized, re-encoded, cropped by up to 10 % per side, rotated by up to 10°, mirrored,
inverted, framed, blurred or noisy, brighter or darker. It is found in four steps:

1. Uniform borders are trimmed. An image that has some is seen twice, with them and without.
2. A short descriptor is computed for every view. Chest radiographs look alike, so the directions
   that tell them apart are learned from the images themselves. Some images are cropped, rotated
   and changed in their grey values at random. Linear discriminant analysis (Fisher 1936) keeps
   the directions in which images differ most, relative to such copies of one image.
3. Every view is also rotated, enlarged and mirrored in a few poses. For each view, the few other
   views are found whose descriptors are nearest to one of the poses or to its negative (an
   inverted image has the negative descriptor). Only these pairs are compared.
4. The two views of a pair are aligned from coarse to fine by an affine motion that starts from the
   pose (second-order Gauss-Newton steps: Malis 2004). The similarity is the correlation of the
   finest details, which differ between patients even where body, ribs and exposure agree.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from scipy.linalg import eigh
from scipy.ndimage import gaussian_filter
from threadpoolctl import threadpool_limits  # comes with scikit-learn

from covid_lab.audit.alignment import Candidates, similarities, warped
from covid_lab.audit.blocks import blocks
from covid_lab.audit.views import Views, views_of

NEIGHBOURS = 8  # candidates per view
ROTATIONS = (-7, 0, 7)  # of the poses, in degrees
ZOOMS = (1, 0.9, 0.8)  # of the poses: the fraction of a side that is seen

_FORM = 12  # side in pixels of the thumbnail that becomes the descriptor
_DIRECTIONS = 24  # length of a descriptor
_PLANTED = 2000  # copies from which the directions are learned
_CROP = 0.06  # of a side; the poses cover larger crops
_ANGLE = 3.5  # degrees; the poses cover larger angles
_REACH = 1.5  # largest distance of a candidate, relative to that of the farthest planted copy
_DISTANCES = 2**20  # in memory at once


def near_copies(
    images: np.ndarray,
    rows: np.ndarray,
    threshold: float,
    seed: int,
    progress: Callable[[int, int], None],
) -> pd.DataFrame:
    """Find pairs of images that show the same picture.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, S, S)
        Grey values.
    rows : np.ndarray, int (M,)
        Images to search, each with some contrast.
    threshold : float, -1 to 1
        Least similarity of a pair.
    seed : int
        Of the copies from which the descriptor is learned.
    progress : callable
        Called with (pairs compared, pairs in all).

    Returns
    -------
    pd.DataFrame
        Sorted by first and second: first, second (of ``rows``, first below second), kind ("near"
        or "mirrored"), similarity (float).
    """
    views = views_of(images, rows)
    candidates = _find_candidates(views, np.random.default_rng(seed))
    similarity = similarities(views, candidates, lambda done: progress(done, len(candidates)))
    near = similarity >= threshold
    ends = np.sort(views.rows[np.stack([candidates.first, candidates.second])], axis=0)[:, near]
    turned = np.linalg.det(candidates.motions[near][:, :, :2].astype(float)) < 0
    pairs = pd.DataFrame(
        {
            "first": ends[0].astype(int),
            "second": ends[1].astype(int),
            "kind": np.where(turned, "mirrored", "near").astype(object),
            "similarity": similarity[near].astype(float),
        }
    )
    return pairs.sort_values(["first", "second"]).reset_index(drop=True)


# ---- candidates ---------------------------------------------------------------------------------


def _find_candidates(views: Views, rng: np.random.Generator) -> Candidates:
    """Find the nearest few views of other images for each view, and keep each pair of images once.

    The number of candidates grows linearly with the number of views, the time quadratically.
    """
    directions, radius = _directions(views, rng)
    described = np.empty((len(views), directions.shape[1]), np.float32)
    for block in blocks(len(views), (2 * _FORM) ** 2):
        thumbnails = views.resized(np.arange(block.start, block.stop), 2 * _FORM)
        described[block] = _features(thumbnails) @ directions
    poses = _poses()
    # One thread per block, as in the alignment.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = pool.map(
            lambda block: _nearest(views, block, poses, directions, described),
            blocks(len(views), len(poses) * len(views), _DISTANCES),
        )
        columns = [np.concatenate(part) for part in zip(*found, strict=True)]
    first, second, pose, sign, distance = columns
    ends = np.sort(views.rows[np.stack([first, second])], axis=0)
    table = pd.DataFrame({"a": ends[0], "b": ends[1], "distance": distance})
    table = table[distance <= radius**2 / 2].sort_values("distance", kind="stable")
    kept = table.drop_duplicates(["a", "b"]).index.to_numpy()
    return Candidates(first[kept], second[kept], poses[pose[kept]], sign[kept])


def _nearest(
    views: Views, block: slice, poses: np.ndarray, directions: np.ndarray, described: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Find the nearest few views of each query in a block.

    Returns found view, query, pose, sign (-1 if the negative descriptor is nearer) and half the
    squared distance.
    """
    queries = np.arange(block.start, block.stop)
    thumbnails = np.repeat(views.resized(queries, 2 * _FORM), len(poses), axis=0)
    posed = _features(warped(thumbnails, np.tile(poses, (len(queries), 1, 1)))) @ directions
    # Half the squared distance to each view or its negative, whichever is nearer.
    distances = posed @ described.T
    np.abs(distances, out=distances)
    np.subtract((posed**2).sum(1)[:, None] / 2, distances, out=distances)
    distances = distances.reshape(len(queries), len(poses), -1)
    distance = distances.min(1) + (described**2).sum(1) / 2
    distance[views.rows[queries, None] == views.rows] = np.inf
    count = min(NEIGHBOURS, len(views) - 1)
    view = np.argpartition(distance, count - 1, axis=1)[:, :count].reshape(-1)
    query = np.repeat(np.arange(len(queries)), count)
    pose = distances[query, :, view].argmin(1)
    products = (posed.reshape(*distances.shape[:2], -1)[query, pose] * described[view]).sum(1)
    sign = np.where(products < 0, -1, 1).astype(np.float32)
    return view, queries[query], pose, sign, distance[query, view]


def _poses() -> np.ndarray:
    """Motions that are applied to every query, float32 (P, 2, 3)."""
    poses = []
    for turn in (1, -1):
        for angle in np.deg2rad(ROTATIONS):
            for zoom in ZOOMS:
                rotation = zoom * np.array(
                    [[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0]]
                )
                poses.append(rotation * [[1], [turn]])
    return np.array(poses, np.float32)


def _directions(views: Views, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Directions (F, D) that separate images but not their copies, and a copy's largest distance.

    Generalised eigenvectors of the scatter between images against the scatter of planted copies
    around their originals, scaled so that the copies spread by one along each.
    """
    # Every view in turn, or a random part of them where there are more than planted copies.
    sources = np.resize(rng.permutation(len(views)), _PLANTED)
    thumbnails = views.resized(sources[: len(views)], 2 * _FORM)
    features = _features(thumbnails)
    order = np.resize(np.arange(len(features)), _PLANTED)
    gaps = _features(_planted(thumbnails[order], rng)) - features[order]
    within = gaps.T @ gaps / len(gaps)
    # Regularised: with few copies or flat thumbnails, some directions have no variance.
    within += (1e-3 * np.trace(within) / len(within) + 1e-9) * np.eye(len(within))
    _, vectors = eigh(np.cov(features, rowvar=False), within)
    directions = vectors[:, ::-1][:, :_DIRECTIONS].astype(np.float32)
    return directions, _REACH * float(np.linalg.norm(gaps @ directions, axis=1).max())


def _planted(thumbnails: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Copies that are rotated, cropped by 0 or `_CROP` on each side, and changed in grey values."""
    n = len(thumbnails)
    low, high = _CROP * rng.integers(0, 2, (2, n, 2))  # before, after; along y and x
    angle = np.deg2rad(rng.uniform(-_ANGLE, _ANGLE, n))
    motions = np.empty((n, 2, 3), np.float32)
    motions[:, 0, 0] = motions[:, 1, 1] = np.cos(angle)
    motions[:, 0, 1], motions[:, 1, 0] = np.sin(angle), -np.sin(angle)
    motions[:, :, :2] *= (1 - (low + high))[:, :, None]
    motions[:, :, 2] = low - high
    gamma, gain = 2 ** rng.uniform(-0.7, 0.7, (n, 1, 1)), rng.uniform(0.8, 1.2, (n, 1, 1))
    copies = 255 * (warped(thumbnails, motions) / 255) ** gamma * gain
    copies += rng.uniform(-30, 30, (n, 1, 1)) + rng.normal(0, 3, copies.shape)
    return np.clip(copies, 0, 255).astype(np.float32)


def _features(thumbnails: np.ndarray) -> np.ndarray:
    """Coarse form without its slow shading, of mean 0 and spread 1: float32 (N, F)."""
    n, side, _ = thumbnails.shape
    step = side // _FORM
    small = thumbnails.reshape(n, _FORM, step, _FORM, step).mean((2, 4))
    small = small - gaussian_filter(small, (0, 4, 4))
    small -= small.mean((1, 2), keepdims=True)
    small /= small.std((1, 2), keepdims=True) + 1e-3
    return np.clip(small, -3, 3).reshape(n, -1)
