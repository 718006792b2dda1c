"""The same picture twice, the same patient in two splits, and splits that keep both together.

Equal pictures are found by a hash of their decoded pixels. Near copies (resized, re-encoded,
cropped by up to 5 % per side, brighter or darker, mirrored) are found in three steps:

1. Every image becomes a short descriptor. Chest radiographs look alike, so the directions that
   tell them apart are learned from the images themselves: some are cropped and brightened at
   random, and linear discriminant analysis (Fisher 1936) keeps the directions in which images
   differ most compared with such copies of one image.
2. A k-d tree finds for each image, and for its mirror image, the few others that are as near as
   copies are. Only these are compared.
3. The two are aligned (shift and scale along each axis, by second-order Gauss-Newton steps:
   Malis 2004), from coarse to fine. The similarity is the correlation of the finest details, which
   different patients do not share even where body, ribs and exposure agree.

`NEAR` and the other constants were chosen on 1,100 images of the COVID-19 Radiography Database. On
other images of it, `tests/test_audit_duplicates.py` measures how many of 300 copies of each kind
are found.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image
from scipy.linalg import eigh
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.stats import chi2_contingency, chisquare
from threadpoolctl import threadpool_limits  # comes with scikit-learn

from covid_lab.audit.blocks import blocks
from covid_lab.datasets import group_of
from covid_project.data import DataError

NEAR = 0.85  # similarity from which two images count as copies
NEIGHBOURS = 10  # candidates per image, and as many per mirror image
CROP = 0.05  # share of each side that a copy may lack

PAIR_COLUMNS = ["first", "second", "kind", "similarity"]
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}

_FORM = 12  # pixels along a side of what the descriptor sees
_DIRECTIONS = 24  # length of a descriptor
_PLANTED = 2000  # copies from which the directions are learned
_REACH = 1.5  # how much farther than the farthest planted copy a candidate may lie
_BATCH = 2**16  # pixels aligned at once in each thread, twenty numbers for each
_KEPT = 2**23  # pixels whose details are kept, as an image is compared with many others
_MARGIN = 0.08  # in half-widths
_FARTHEST = 0.15  # largest scale and shift, in half-widths; a crop by 5 % needs 0.11


# ---- pairs of images ----------------------------------------------------------------------------


def hashes(images: Iterable[np.ndarray]) -> np.ndarray:
    """SHA-256 of each image's decoded pixels, as str (N,).

    Two are equal where shape and every pixel are, however the files were packed.

    Parameters
    ----------
    images
        uint8, all of one shape (N, S, S[, 1]) or each of its own, as `data.decode` gives them;
        a generator spares the memory.

    Raises
    ------
    DataError
        An image that is not uint8.
    """
    return np.array([pixel_hash(np.asarray(image)) for image in images], dtype="U64")


def pixel_hash(image: np.ndarray) -> str:
    """SHA-256 of one image's decoded pixels, uint8 (H, W) or (H, W, 1); see `hashes`."""
    if image.dtype != np.uint8:
        raise DataError(f"images must be uint8, not {image.dtype}")
    pixels = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels))
    return digest.hexdigest()


def exact_pairs(contents: np.ndarray) -> pd.DataFrame:
    """Pair each image with the first that has the same content.

    Of m equal images these are m - 1 pairs, not all m (m - 1) / 2, so that thousands of blank
    images cannot fill the memory; they still connect all m, and if any two of these lie in
    different splits or have different labels, so do the two of some listed pair.

    Parameters
    ----------
    contents
        (N,), what stands for an image's content, as from `hashes`.

    Returns
    -------
    Table as from `near_pairs`; kind is "exact" and similarity 1.
    """
    codes, _ = pd.factorize(np.asarray(contents))
    _, firsts = np.unique(codes, return_index=True)
    first = firsts[codes]
    second = np.arange(len(codes))
    later = first < second
    return _pair_table(first[later], second[later], "exact", 1.0)


def near_pairs(
    images: np.ndarray,
    *,
    threshold: float = NEAR,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """Find images that show the same picture although their pixels differ.

    See the module's description for how. Equal images are near as well. An image without any
    contrast is near to none.

    Parameters
    ----------
    images
        uint8 (N, S, S) or (N, S, S, 1); S = 128 is enough, and what was measured.
    threshold
        Least similarity of a pair, -1 to 1.
    seed
        Of the copies from which the descriptor is learned.
    progress
        Called with (pairs compared, pairs in all) now and then.

    Returns
    -------
    Table, one row per pair, sorted by first and second: first, second (row numbers, first below
    second), kind ("near", or "mirrored" where the mirror image is the more similar one),
    similarity (float, correlation of the aligned details).

    Raises
    ------
    DataError
        Images of another dtype or shape.
    """
    images = _checked(images)
    return _near_pairs(images, np.arange(len(images)), threshold, seed, progress)


def _near_pairs(
    images: np.ndarray,
    rows: np.ndarray,
    threshold: float,
    seed: int,
    progress: Callable[[int, int], None],
) -> pd.DataFrame:
    """`near_pairs` of the images in some rows, without a copy of these."""
    contrast = images.max((1, 2), initial=0) > images.min((1, 2), initial=255)
    rows = rows[contrast[rows]]
    if len(rows) < 2:
        return _pair_table([], [], [], [])
    found = []
    upright, mirrored = _candidates(images, rows, np.random.default_rng(seed))
    total = len(upright) + len(mirrored)
    for kind, candidates, before in (("near", upright, 0), ("mirrored", mirrored, len(upright))):
        similarity = _similarities(
            images,
            rows[candidates],
            kind == "mirrored",
            lambda done, before=before: progress(before + done, total),
        )
        near = similarity >= threshold
        first, second = rows[candidates[near]].T
        found.append(_pair_table(first, second, kind, similarity[near]))
    pairs = pd.concat(found).sort_values("similarity", ascending=False, kind="stable")
    pairs = pairs.drop_duplicates(["first", "second"])
    return pairs.sort_values(["first", "second"]).reset_index(drop=True)


def duplicate_pairs(
    images: np.ndarray,
    table: pd.DataFrame,
    *,
    contents: np.ndarray | None = None,
    threshold: float = NEAR,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """Exact and near copies, with the splits in which they lie and whether their labels agree.

    Near copies are sought between different contents only: of equal images, the first stands for
    all (see `exact_pairs`).

    Parameters
    ----------
    images
        uint8 (N, S, S) or (N, S, S, 1), see `near_pairs`.
    table
        N rows with the columns split and label.
    contents
        (N,), `hashes` of the images in their own size; None: of ``images``, which may have
        become equal by resizing.
    threshold, seed, progress
        See `near_pairs`.

    Returns
    -------
    Table, one row per pair, sorted by first and second: first, second (row numbers, first below
    second), kind ("exact", "near" or "mirrored"), similarity (1 where exact), split_first,
    split_second, label_conflict (bool).

    Raises
    ------
    DataError
        Images of another dtype or shape, another number of rows, or a missing column.
    """
    images = _checked(images)
    contents = hashes(images) if contents is None else np.asarray(contents)
    _require(table, ("split", "label"))
    if not len(images) == len(table) == len(contents):
        raise DataError(
            f"{len(images)} images, {len(table)} rows and {len(contents)} contents: "
            "there must be one row and one content per image"
        )
    exact = exact_pairs(contents)
    distinct = np.setdiff1d(np.arange(len(images)), exact["second"])
    near = _near_pairs(images, distinct, threshold, seed, progress)
    pairs = pd.concat([exact, near]).sort_values(["first", "second"]).reset_index(drop=True)
    splits, labels = table["split"].to_numpy(), table["label"].to_numpy()
    return pairs.assign(
        split_first=splits[pairs["first"]],
        split_second=splits[pairs["second"]],
        label_conflict=(labels[pairs["first"]] != labels[pairs["second"]]).astype(bool),
    )


def _pair_table(first, second, kind, similarity) -> pd.DataFrame:
    pairs = pd.DataFrame(dict(zip(PAIR_COLUMNS, (first, second, kind, similarity), strict=True)))
    return pairs.astype({"first": int, "second": int, "kind": object, "similarity": float})


def _checked(images: np.ndarray) -> np.ndarray:
    """Images as uint8 (N, S, S)."""
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.dtype != np.uint8 or images.ndim != 3 or 0 in images.shape[1:]:
        raise DataError(
            f"images must be uint8 (N, S, S) or (N, S, S, 1), not {images.dtype} {images.shape}"
        )
    return images


def _require(table: pd.DataFrame, columns: Iterable[str]) -> None:
    missing = [column for column in columns if column not in table]
    if missing:
        raise DataError(f"the table lacks the column(s) {', '.join(missing)}")


# ---- candidates ---------------------------------------------------------------------------------


def _candidates(
    images: np.ndarray, rows: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of the rows worth comparing, upright and with the second mirrored: two int64 (M, 2)."""
    features, turned = np.empty((2, len(rows), _FORM**2), np.float32)
    for block in blocks(len(rows), images[0].size):
        thumbnails = _resized(images[rows[block]], 2 * _FORM)
        features[block] = _features(thumbnails)
        turned[block] = _features(thumbnails[:, :, ::-1])
    directions, radius = _directions(images, rows, features, rng)
    described = features @ directions
    tree = cKDTree(described)
    # One more than wanted, as the nearest to an upright image is itself.
    nearest = {"k": min(NEIGHBOURS + 1, len(features)), "distance_upper_bound": radius}
    pairs = []
    for queries in (described, turned @ directions):
        _, found = tree.query(queries, **nearest)
        first, columns = np.nonzero(found < len(features))
        both = np.sort(np.stack([first, found[first, columns]], axis=1), axis=1)
        pairs.append(np.unique(both[both[:, 0] < both[:, 1]], axis=0))
    return pairs[0], pairs[1]


def _directions(
    images: np.ndarray, rows: np.ndarray, features: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Directions (F, D) that tell images apart and not their copies, and how far copies lie.

    Generalised eigenvectors of the scatter between images against the scatter of planted copies
    around their originals, scaled so that the copies spread by one along each.
    """
    # Every image in turn; where there are more, as many of them as copies are planted.
    sources = np.resize(rng.permutation(len(rows)), _PLANTED)
    thumbnails = np.concatenate(
        [
            _resized(images[rows[sources[block]]], 2 * _FORM)
            for block in blocks(len(sources), images[0].size)
        ]
    )
    gaps = _features(_planted(thumbnails, rng)) - features[sources]
    within = gaps.T @ gaps / len(gaps)
    # A little in all directions, as few copies or flat thumbnails leave some of them empty.
    within += (1e-3 * np.trace(within) / len(within) + 1e-9) * np.eye(len(within))
    _, vectors = eigh(np.cov(features, rowvar=False), within)
    directions = vectors[:, ::-1][:, :_DIRECTIONS].astype(np.float32)
    return directions, _REACH * float(np.linalg.norm(gaps @ directions, axis=1).max())


def _planted(thumbnails: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Copies with each side cropped by nothing or `CROP`, other contrast and brightness.

    Nothing or all of it, as the farthest copies say how far to look.
    """
    low, high = CROP * rng.integers(0, 2, (2, len(thumbnails), 2))  # before, after; along y and x
    crops = np.stack([-(low + high), low - high], axis=2).reshape(-1, 4).astype(np.float32)
    gain = rng.uniform(0.8, 1.2, (len(thumbnails), 1, 1))
    offset = rng.uniform(-30, 30, (len(thumbnails), 1, 1))
    copies = _warped(thumbnails, crops) * gain + offset
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


def _resized(images: np.ndarray, side: int) -> np.ndarray:
    """Images as float32 (N, side, side), averaged where reduced."""
    resized = np.empty((len(images), side, side), np.float32)
    for row, image in enumerate(images):
        resized[row] = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
    return resized


# ---- alignment ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Level:
    """One step from coarse to fine: on what two images are aligned, and who goes on."""

    side: int  # pixels
    fine: float  # the structures lie between these two scales, σ in pixels
    coarse: float
    around: float  # σ in pixels of the region by whose strength they are divided
    steps: int  # of the alignment
    least: float  # correlation from which a pair is worth the next level


_LEVELS = (
    _Level(32, 1, 4, 4, 6, 0.5),
    _Level(32, 0, 1.5, 3, 2, 0.78),
    _Level(64, 1.5, 4, 6, 3, 0.7),
    _Level(64, 0.7, 2, 5, 3, 0.75),
    _Level(128, 0.7, 2, 8, 3, -1.0),
)


def _similarities(
    images: np.ndarray,
    pairs: np.ndarray,
    mirrored: bool,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Correlation of the aligned details of each pair, float32 (M,); -1 where it is hopeless.

    ``progress`` is called with the number of pairs that are through the first, coarsest level,
    where most of the time goes.
    """
    similarities = np.full(len(pairs), -1, np.float32)
    moved = np.zeros((len(pairs), 4), np.float32)
    going_on = np.arange(len(pairs))
    # One thread per batch: BLAS's own threads would wait for each other over small matrices, which
    # takes ten times as long.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for number, level in enumerate(_LEVELS):
            found = np.empty(len(going_on), np.float32)
            for block in blocks(len(going_on), 2 * level.side**2, _KEPT):
                rows = going_on[block]
                found[block], moved[rows] = _compared(
                    images, pairs[rows], moved[rows], level, mirrored, pool
                )
                if number == 0:
                    progress(block.stop)
            similarities[going_on] = -1
            going_on, found = going_on[found >= level.least], found[found >= level.least]
            similarities[going_on] = found
    return similarities


def _compared(
    images: np.ndarray,
    pairs: np.ndarray,
    moved: np.ndarray,
    level: _Level,
    mirrored: bool,
    pool: ThreadPoolExecutor,
) -> tuple[np.ndarray, np.ndarray]:
    """Correlations (M,) and motions (M, 4) of pairs after one level, batch by batch."""
    used, places = np.unique(pairs, return_inverse=True)
    places = places.reshape(pairs.shape)
    details = np.empty((len(used), level.side, level.side), np.float32)

    def fill(batch: slice) -> None:
        details[batch] = _details(_resized(images[used[batch]], level.side), level)

    list(pool.map(fill, blocks(len(used), level.side**2, _BATCH)))

    def aligned(batch: slice) -> tuple[np.ndarray, np.ndarray]:
        first, second = (details[side] for side in places[batch].T)
        if mirrored:
            second = second[:, :, ::-1]
        motion = _aligned(first, second, moved[batch], level.steps)
        return _correlation(first, second, motion), motion

    correlations, motions = zip(
        *pool.map(aligned, blocks(len(pairs), level.side**2, _BATCH)), strict=True
    )
    return np.concatenate(correlations), np.concatenate(motions)


def _details(images: np.ndarray, level: _Level) -> np.ndarray:
    """Structures between two scales, divided by their own strength around a pixel.

    So that the edges of the body, of letters and of black frames, which many images share, weigh
    no more than the faint structures inside.
    """
    blurred = (gaussian_filter(images, (0, scale, scale)) for scale in (level.fine, level.coarse))
    band = next(blurred) - next(blurred)
    floor = 0.3 * band.std((1, 2), keepdims=True) + 1e-3
    strength = gaussian_filter(band * band, (0, level.around, level.around))
    return band / np.sqrt(strength + floor**2)


def _aligned(first: np.ndarray, second: np.ndarray, moved: np.ndarray, steps: int) -> np.ndarray:
    """Motion (M, 4) of the second images after some steps towards the first: see `_warped`.

    Efficient second-order minimisation (Malis 2004): Gauss-Newton on the squared difference, with
    the mean of both images' gradients.
    """
    side = first.shape[1]
    axis = _axis(side)
    half = (side - 1) / 2  # gradients per half-width, as the motion is
    first_slopes = np.gradient(first, axis=(1, 2))
    for _ in range(steps):
        warped, inside = _warped(second, moved), _inside(moved, side)
        slopes = np.gradient(warped, axis=(1, 2))
        down, across = (
            (a + b) * (half / 2) * inside for a, b in zip(first_slopes, slopes, strict=True)
        )
        effects = np.stack([down * axis[:, None], down, across * axis, across], axis=1)
        effects = effects.reshape(len(first), 4, -1)
        normal = effects @ effects.transpose(0, 2, 1)
        damping = 1e-3 * np.trace(normal, axis1=1, axis2=2) / 4 + 1e-6
        normal += damping[:, None, None] * np.eye(4, dtype=np.float32)
        missed = ((warped - first) * inside).reshape(len(first), -1, 1)
        moved = moved - np.linalg.solve(normal, effects @ missed)[..., 0]
        moved = np.clip(moved, -_FARTHEST, _FARTHEST)
    return moved


def _warped(images: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Images (M, S, S) seen through (1 + scale) · position + shift; 0 outside.

    ``moved`` (M, 4): scale and shift along y, scale and shift along x, in half-widths. A motion
    along the axes is a matrix product from either side.
    """
    side = images.shape[1]
    rows = _interpolation(_positions(moved[:, :2], side), side)
    columns = _interpolation(_positions(moved[:, 2:], side), side)
    return rows @ images @ columns.transpose(0, 2, 1)


def _inside(moved: np.ndarray, side: int) -> np.ndarray:
    """Where both the first images and the moved second ones are seen, bool (M, S, S).

    Without a margin: what a crop took away changes the details beside it.
    """
    near = np.abs(_axis(side)) <= 1 - _MARGIN
    rows = near & (np.abs(_positions(moved[:, :2], side)) <= 1 - _MARGIN)
    columns = near & (np.abs(_positions(moved[:, 2:], side)) <= 1 - _MARGIN)
    return rows[:, :, None] & columns[:, None, :]


def _positions(moved: np.ndarray, side: int) -> np.ndarray:
    """Where each pixel's centre comes to lie along one axis, (M, S) from -1 to 1 inside."""
    return (1 + moved[:, :1]) * _axis(side) + moved[:, 1:]


def _interpolation(positions: np.ndarray, side: int) -> np.ndarray:
    """Weights (M, S, S) of linear interpolation along one axis."""
    pixels = (positions + 1) * ((side - 1) / 2)
    distance = np.abs(pixels[:, :, None] - np.arange(side, dtype=np.float32))
    return np.maximum(0, 1 - distance).astype(np.float32)


def _axis(side: int) -> np.ndarray:
    return np.linspace(-1, 1, side, dtype=np.float32)


def _correlation(first: np.ndarray, second: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each two images where both are seen; 0 without contrast."""
    inside = _inside(moved, first.shape[1])
    n = inside.sum((1, 2))[:, None, None]
    a, b = (
        (image - (image * inside).sum((1, 2), keepdims=True) / n) * inside
        for image in (first, _warped(second, moved))
    )
    spread = np.sqrt((a * a).sum((1, 2)) * (b * b).sum((1, 2)))
    return (a * b).sum((1, 2)) / np.maximum(spread, 1e-6)


# ---- groups: what must not be parted ------------------------------------------------------------


def clusters(n: int, pairs: pd.DataFrame) -> np.ndarray:
    """Cluster of each of n images, int64 (n,), numbered from 0 in the order of appearance.

    Images connected by pairs, also through others, share one; the others have one each.

    Raises
    ------
    DataError
        A pair names an image that is not there.
    """
    first, second = pairs["first"].to_numpy(), pairs["second"].to_numpy()
    if len(pairs) and not 0 <= min(first.min(), second.min()) <= max(first.max(), second.max()) < n:
        raise DataError(f"the pairs name images beyond the {n} that there are")
    return _connected(n, first, second)


def joined_groups(*groupings: Iterable) -> np.ndarray:
    """Join groupings of the same images, such as patients and clusters: int64 (N,).

    Numbered as `clusters`; images that share a group in any of them share one here, also through
    others.

    Raises
    ------
    DataError
        No groupings, of different lengths, or with missing values.
    """
    codes = [pd.factorize(pd.Series(list(grouping)))[0] for grouping in groupings]
    if len({len(code) for code in codes}) != 1:
        raise DataError("give at least one grouping, and each of them for the same images")
    if any((code < 0).any() for code in codes):
        raise DataError("a group is missing (None or NaN); give such images a group of their own")
    n = len(codes[0])
    # Every image is connected with the first one of its group.
    firsts = [np.unique(code, return_index=True)[1][code] for code in codes]
    return _connected(n, np.tile(np.arange(n), len(codes)), np.concatenate(firsts))


def _connected(n: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    edges = coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    _, components = connected_components(edges, directed=False)
    return pd.factorize(components)[0].astype(np.int64)


def groups_from_names(paths: Iterable[str], pattern: str | None = None) -> np.ndarray:
    """Patient of each image from its path: str (N,).

    Parameters
    ----------
    paths
        POSIX paths (N,).
    pattern
        Regular expression, searched in the path; what its groups (parentheses) hold, or the whole
        match where it has none, is the patient, in lower case. An image without a match has its
        path, so that it is a patient of its own. None: `data.group_of`.

    Raises
    ------
    DataError
        The pattern is no regular expression.
    """
    if pattern is None:
        return np.array([group_of(path) for path in paths], dtype=object)
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise DataError(f"{pattern!r} is no regular expression: {error}") from None

    def patient(path: str) -> str:
        match = search(path)
        if match is None:
            return path
        return "|".join(part or "" for part in match.groups() or (match.group(),)).lower()

    return np.array([patient(path) for path in paths], dtype=object)


def groups_from_metadata(
    paths: Iterable[str], metadata: pd.DataFrame, *, image: str, patient: str
) -> np.ndarray:
    """Patient of each image from a metadata table: str (N,).

    Parameters
    ----------
    paths
        POSIX paths (N,).
    metadata
        One row per image; rows of other images are passed over.
    image, patient
        Its columns: the image's path or file name, and the patient.

    Raises
    ------
    DataError
        A column is missing, an image has no row or no patient, or rows that contradict each
        other (as where two folders hold files of one name and the table states names alone).
    """
    _require(metadata, (image, patient))
    known = metadata[[image, patient]].dropna().astype(str).drop_duplicates()
    if known[image].duplicated().any():
        names = known.loc[known[image].duplicated(), image]
        raise DataError(f"the metadata name two patients of {_some(names)}")
    patients = dict(zip(known[image], known[patient], strict=True))
    paths = list(paths)
    names = [path if path in patients else path.rsplit("/", 1)[-1] for path in paths]
    unknown = [path for path, name in zip(paths, names, strict=True) if name not in patients]
    if unknown:
        raise DataError(f"the metadata name no patient of {_some(unknown)}")
    shared = pd.Series(paths)[pd.Series(names).duplicated(keep=False)]
    if len(shared):
        raise DataError(
            f"the metadata state file names alone, and one fits several: {_some(shared)}"
        )
    return np.array([patients[name] for name in names], dtype=object)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def groups_across_splits(table: pd.DataFrame) -> pd.DataFrame:
    """Groups (patients, or clusters of copies) whose images lie in more than one split.

    Parameters
    ----------
    table
        One row per image with the columns group and split, as `data.Dataset.table`.

    Returns
    -------
    Table, one row per such group, sorted by group: group, images (how many in all), splits
    ("test, train"), and one column per split with the number of the group's images in it.

    Raises
    ------
    DataError
        A missing column.
    """
    _require(table, ("group", "split"))
    counts = pd.crosstab(table["group"], table["split"])
    counts = counts[(counts > 0).sum(axis=1) > 1]
    names = np.array(counts.columns, dtype=object)
    splits = [", ".join(names[row]) for row in counts.to_numpy() > 0]
    summary = {"group": counts.index, "images": counts.sum(axis=1).to_numpy(int), "splits": splits}
    found = pd.DataFrame(summary)
    return found.assign(**{name: counts[name].to_numpy(int) for name in names})


def grouped_split(
    labels: np.ndarray,
    groups: Iterable,
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Deal a split that is stratified by label and never parts a group.

    Large groups are dealt first, in random order among those of a size; each goes to the split
    that its images bring nearest to its share of every class. The same arguments always give the
    same split.

    Parameters
    ----------
    labels
        (N,), of any number of classes.
    groups
        (N,), see `joined_groups`: patients, clusters of near copies, or both.
    shares
        Share of the images by the name of the split, adding up to 1; None: `SHARES`.
    seed
        Of the random order.

    Returns
    -------
    Name of each image's split, str (N,).

    Raises
    ------
    DataError
        Arguments of different lengths, shares that do not add up to 1 or are not positive, or
        groups too few or too large for every split to get some of every class.
    """
    shares = dict(SHARES if shares is None else shares)
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise DataError(f"shares must be positive and add up to 1, not {shares}")
    classes, of_label = np.unique(np.asarray(labels), return_inverse=True)
    groups = joined_groups(groups)
    if len(of_label) != len(groups) or not len(groups):
        raise DataError(
            f"{len(of_label)} labels and {len(groups)} groups: give one of each per image"
        )
    # Shares of the classes, so that a rare class weighs as much as a frequent one.
    counts = np.zeros((groups.max() + 1, len(classes)))
    np.add.at(counts, (groups, of_label), 1)
    portions = counts / counts.sum(axis=0)
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    missing = np.repeat(np.array(list(shares.values()))[:, None], len(classes), axis=1)
    split_of = np.empty(len(counts), int)
    for group in order:
        # The squared distance from all shares shrinks most where most is missing.
        chosen = split_of[group] = np.argmax(missing @ portions[group])
        missing[chosen] -= portions[group]
    dealt = split_of[groups]
    gaps = [
        f"{name} no image of class {label}"
        for row, name in enumerate(shares)
        for column, label in enumerate(classes)
        if not ((dealt == row) & (of_label == column)).any()
    ]
    if gaps:
        raise DataError(f"too few groups, or too large ones, for this split: {'; '.join(gaps)}")
    return np.array(list(shares), dtype=object)[dealt]


# ---- is a split, or a class, out of balance? ----------------------------------------------------


@dataclass(frozen=True)
class ChiSquare:
    """Pearson's (1900) χ² test: statistic, degrees of freedom, p-value, and Cramér's V.

    V (Cramér 1946, p. 282) runs from 0 (balance) to 1, whatever the number of images; for one
    column of counts it is √(χ² / (n (k - 1))), 1 where one of k classes holds all n images.
    """

    statistic: float
    degrees: int
    p_value: float
    cramers_v: float


def split_balance(table: pd.DataFrame, column: str = "label") -> ChiSquare:
    """Does a column's distribution differ between the splits? χ² of independence, uncorrected.

    Not testable with one split or one value: statistic 0, 0 degrees of freedom, p-value 1.

    Parameters
    ----------
    table
        One row per image with the columns split and ``column`` (label, source, …).

    Raises
    ------
    DataError
        A missing column, or no rows.
    """
    _require(table, ("split", column))
    counts = pd.crosstab(table["split"], table[column]).to_numpy()
    if not counts.size:
        raise DataError("no images: there is nothing to test")
    smaller = min(counts.shape) - 1
    if not smaller:
        return ChiSquare(0.0, 0, 1.0, 0.0)
    found = chi2_contingency(counts, correction=False)
    strength = np.sqrt(found.statistic / (counts.sum() * smaller))
    return ChiSquare(float(found.statistic), int(found.dof), float(found.pvalue), float(strength))


def class_balance(labels: Iterable) -> ChiSquare:
    """Are all classes equally frequent? χ² of goodness of fit; one class: as `split_balance`.

    Raises
    ------
    DataError
        No labels.
    """
    counts = pd.Series(list(labels)).value_counts().to_numpy()
    if not len(counts):
        raise DataError("no images: there is nothing to test")
    degrees = len(counts) - 1
    if not degrees:
        return ChiSquare(0.0, 0, 1.0, 0.0)
    found = chisquare(counts)
    strength = np.sqrt(found.statistic / (counts.sum() * degrees))
    return ChiSquare(float(found.statistic), degrees, float(found.pvalue), float(strength))
