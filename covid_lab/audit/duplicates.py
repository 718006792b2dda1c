"""Copies of images: exact ones have equal pixels, near ones show the same picture.

Exact copies are found by a hash of the decoded pixels. `covid_lab.audit.near_copies` describes how
near copies are found. `NEAR` and the other constants were chosen on images of the COVID-19
Radiography Database and of SIIM-FISABIO-RSNA; `benchmarks/near_copies.py` measures recall and
precision on other images.
"""

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from covid_lab.audit.near_copies import near_copies
from covid_project.data import DataError

NEAR = 0.75  # similarity from which two images count as copies
PAIR_COLUMNS = ["first", "second", "kind", "similarity"]

Progress = Callable[[int, int], None]


def _hashes(images: Iterable[np.ndarray]) -> np.ndarray:
    """Compute `pixel_hash` of each image, str (N,)."""
    return np.array([pixel_hash(np.asarray(image)) for image in images], dtype="U64")


def pixel_hash(image: np.ndarray) -> str:
    """Hash the decoded pixels of one image (SHA-256).

    Two hashes are equal if the shape and all pixels are equal, whatever the format of the files.

    Parameters
    ----------
    image : np.ndarray, uint8 (H, W) or (H, W, 1)
        Grey values.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    DataError
        An image that is not uint8.
    """
    if image.dtype != np.uint8:
        raise DataError(f"images must be uint8, not {image.dtype}")
    pixels = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels))
    return digest.hexdigest()


def _exact_pairs(contents: np.ndarray) -> pd.DataFrame:
    """Pair each image with the first that has the same content.

    For m equal images these are m - 1 pairs instead of all m (m - 1) / 2, so that thousands of
    blank images cannot fill the memory. The pairs still connect all m images. If any two of the m
    differ in split or label, the images of at least one listed pair do.
    """
    codes, _ = pd.factorize(np.asarray(contents))
    _, firsts = np.unique(codes, return_index=True)
    first = firsts[codes]
    second = np.arange(len(codes))
    later = first < second
    return _pair_table(first[later], second[later], "exact", 1.0)


def near_pairs(images: np.ndarray) -> pd.DataFrame:
    """Find images that show the same picture although their pixels differ.

    Equal images count as near copies as well. An image without contrast has no near copy.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, S, S) or (N, S, S, 1)
        Grey values. S = 128 is enough; the benchmark uses it.

    Returns
    -------
    pd.DataFrame
        One row per pair, sorted by first and second: first, second (row numbers, first below
        second), kind ("near", or "mirrored" if one is the mirror image of the other), similarity
        (float from `NEAR`, correlation of the aligned details).

    Raises
    ------
    DataError
        Images of another dtype or shape.

    Examples
    --------
    >>> from covid_lab.phantoms import draw_radiograph
    >>> rng = np.random.default_rng(0)
    >>> images = np.stack([draw_radiograph(rng, 128).image for _ in range(4)])
    >>> near_pairs(np.concatenate([images, images[:1, :, ::-1]]))
       first  second      kind  similarity
    0      0       4  mirrored         1.0
    """
    images = _checked(images)
    return _near_pairs(images, np.arange(len(images)))


def _near_pairs(
    images: np.ndarray, rows: np.ndarray, seed: int = 0, progress: Progress = lambda *_: None
) -> pd.DataFrame:
    """Find `near_pairs` among the images in some rows, without copying these."""
    contrast = images.max((1, 2), initial=0) > images.min((1, 2), initial=255)
    rows = rows[contrast[rows]]
    if len(rows) < 2:
        return _pair_table([], [], [], [])
    return near_copies(images, rows, NEAR, seed, progress)


def duplicate_pairs(
    images: np.ndarray,
    table: pd.DataFrame,
    *,
    contents: np.ndarray | None = None,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> pd.DataFrame:
    """Find exact and near copies, with their splits and whether their labels agree.

    Near copies are sought only between different contents: the first of several equal images
    represents all of them.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, S, S) or (N, S, S, 1)
        See `near_pairs`.
    table : pd.DataFrame, N rows
        Columns split and label.
    contents : np.ndarray, (N,), optional
        `pixel_hash` of the images in their own size. None: of ``images``, which resizing may have
        made equal.
    seed : int
        Of the copies from which the descriptor is learned.
    progress : callable
        Called with (pairs compared, pairs in all).

    Returns
    -------
    pd.DataFrame
        One row per pair, sorted by first and second: first, second (row numbers, first below
        second), kind ("exact", "near" or "mirrored"), similarity (1 if exact), split_first,
        split_second, label_conflict (bool).

    Raises
    ------
    DataError
        Images of another dtype or shape, another number of rows, or a missing column.
    """
    images = _checked(images)
    contents = _hashes(images) if contents is None else np.asarray(contents)
    require_columns(table, ("split", "label"))
    if not len(images) == len(table) == len(contents):
        raise DataError(
            f"{len(images)} images, {len(table)} rows and {len(contents)} contents: "
            "there must be one row and one content per image"
        )
    exact = _exact_pairs(contents)
    distinct = np.setdiff1d(np.arange(len(images)), exact["second"])
    near = _near_pairs(images, distinct, seed, progress)
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


def require_columns(table: pd.DataFrame, columns: Iterable[str]) -> None:
    """Refuse a table that lacks a column.

    Parameters
    ----------
    table : pd.DataFrame
        Any table.
    columns : iterable of str
        Names of the columns that it must have.

    Raises
    ------
    DataError
        Names the missing columns.
    """
    missing = [column for column in columns if column not in table]
    if missing:
        raise DataError(f"the table lacks the column(s) {', '.join(missing)}")
