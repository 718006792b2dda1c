"""Data sets for audits, explanations and studies, on top of `covid_project.data`.

`open_dataset` adds columns (source, group, mask) to the course's table, and opens data in any form
that `covid_lab.reading` knows. The functions below it read all images of a data set in threads and
name every image that cannot be read.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from PIL import Image

from covid_lab.masks import marked_pixels, resized_mask
from covid_lab.reading.collection import collect, in_words
from covid_lab.reading.origins import class_folder, mask_of, sources
from covid_lab.reading.patients import group_of
from covid_lab.reading.roots import open_root, printable
from covid_project import data
from covid_project.data import (
    CLASSES,
    SPLITS,
    DataError,
    Dataset,
    file_hashes,
    listed,
    read_bytes,
    table_fingerprint,
)
from covid_project.files import write_csv
from covid_project.images import IMAGE_SUFFIXES, decode, open_image, resize


class UnreadableImage(DataError):
    """One image that cannot be read.

    Parameters
    ----------
    name : str
        Path of the image under the root of the data.
    reason : str
        Why it cannot be read.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{printable(self.name)}: {self.reason}"


class UnreadableImages(DataError):
    """All images of a data set that cannot be read, each with its reason.

    Parameters
    ----------
    unreadable : list of (str, str)
        Name and reason of each image.
    """

    def __init__(self, unreadable: list[tuple[str, str]]):
        super().__init__(unreadable)
        self.unreadable = unreadable

    def __str__(self) -> str:
        lines = [str(UnreadableImage(name, reason)) for name, reason in self.unreadable]
        named = listed(lines, "\n")
        return f"{len(lines)} image(s) cannot be read; replace or remove them:\n{named}"


# ---- opening ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FoundDataset(Dataset):
    """A data set and what was found beside it.

    Attributes
    ----------
    passed_over : dict of str to list of str
        Reason → files that are not used.
    notes : tuple of str
        What else was found or decided, in words.
    """

    passed_over: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def open_dataset(
    path: str | Path,
    *,
    classes: Sequence[str] | None = CLASSES,
    splits_file: str | Path | None = None,
    seed: int = 0,
    allow_shared_files: bool = False,
    as_found: bool = False,
    table: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    finding: str | None = None,
) -> FoundDataset:
    """Open a folder or an archive of images.

    With ``as_found``, data in any form that `covid_lab.reading` knows are opened. Otherwise the
    layouts, splits and checks are those of `covid_project.data.open_dataset`. The fingerprint is
    the same.

    Parameters
    ----------
    path : str or Path
        The folder or the archive.
    classes : sequence of str, optional
        Classes wanted, in the order of their labels. None: `CLASSES` where the data have both, or
        else all that are found, in the order of their names.
    splits_file : str or Path, optional
        CSV of a split, see `covid_project.data.open_dataset`.
    seed : int, from 0
        Seed of a split, see `covid_project.data.open_dataset`.
    allow_shared_files : bool
        Whether two splits may share files, see `covid_project.data.open_dataset`.
    as_found : bool
        Whether to accept the splits as they are: the same file in two splits, a missing split, a
        class that is missing in a split, or no splits. No split is made then. Images without a
        split have "", unless ``splits_file`` exists.
    table : str or Path, optional
        Table of labels, see `covid_lab.reading.collection.collect`.
    columns : mapping of str to str, optional
        Columns of the table, see `covid_lab.reading.manifests.read_manifest`.
    finding : str, optional
        Finding in the table, see `covid_lab.reading.manifests.read_manifest`.

    Returns
    -------
    FoundDataset
        Its table has three further columns: ``source`` (origin of the image, or the name of its
        class folder where that is unknown), ``group`` (images of one patient share it) and ``mask``
        (path of a lung mask, or ""). With DICOM files it also has
        `covid_lab.reading.dicom.COVARIATES`.

    Raises
    ------
    DataError
        For the reasons of `covid_project.data.open_dataset` and
        `covid_lab.reading.collection.collect`.

    Examples
    --------
    >>> dataset = open_dataset("covid_xray.zip", as_found=True)
    >>> dataset.table.columns.tolist()
    ['path', 'label', 'split', 'source', 'group', 'mask']
    """
    path = Path(path).expanduser()
    if as_found and not (splits_file and Path(splits_file).is_file()):
        dataset, patients = _as_found(path, classes, table, columns, finding)
    else:
        open_root(path)  # refuses what is unsafe
        course = data.open_dataset(
            path,
            classes=tuple(classes or CLASSES),
            splits_file=splits_file,
            seed=seed,
            allow_shared_files=allow_shared_files or as_found,
        )
        dataset = FoundDataset(**vars(course))
        patients = pd.Series("", index=dataset.table.index)
    table = dataset.table
    folders = table["path"].map(class_folder)
    source, said = sources(dataset.root, table["path"], folders)
    return replace(
        dataset,
        notes=(*dataset.notes, *said),
        table=table.assign(
            source=source,
            group=patients.where(patients != "", table["path"].map(group_of)),
            mask=[mask_of(dataset.root, name) for name in table["path"]],
        ),
    )


def _as_found(
    path: Path,
    classes: Sequence[str] | None,
    table: str | Path | None,
    columns: Mapping[str, str] | None,
    finding: str | None,
) -> tuple[FoundDataset, pd.Series]:
    """Return the data with their splits as they are, and the patients ("" if unknown)."""
    labels = None if table is None else Path(table)
    found = collect(path, classes=classes, table=labels, columns=columns, finding=finding)
    rows = found.table
    identity = table_fingerprint(rows, file_hashes(found.root, rows["path"]))
    order = rows["split"].map([*SPLITS, ""].index)
    rows = rows.iloc[np.lexsort((rows["path"], rows["label"], order))].reset_index(drop=True)
    images = sum(
        PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
        for names in found.passed_over.values()
        for name in names
    )
    kept = rows.drop(columns="patient")
    dataset = FoundDataset(
        kept, found.root, found.classes, identity, images, found.passed_over, found.notes
    )
    return dataset, rows["patient"]


def described(dataset: FoundDataset, name: str) -> str:
    """Say on one line what is used of some data and what is not.

    Parameters
    ----------
    dataset : FoundDataset
        The data.
    name : str
        Name of the data.

    Returns
    -------
    str
        Numbers of images by class and split, files that are not used, and notes.
    """
    counts = dataset.table["label"].value_counts()
    labels = ", ".join(f"{counts.get(k, 0):,} {c} ({k})" for k, c in enumerate(dataset.classes))
    parts = [f"data: {name}, {len(dataset.table):,} images: {labels}"]
    splits = dataset.table["split"].value_counts()
    if set(splits.index) != {""}:
        named = (f"{splits[s]:,} {s or 'without a split'}" for s in (*SPLITS, "") if s in splits)
        parts.append(f"splits: {', '.join(named)}")
    left_out = f"{dataset.left_out:,} image files" if dataset.left_out else "nothing"
    parts += [f"not used: {in_words(dataset.passed_over) or left_out}", *dataset.notes]
    if len(dataset.classes) == 1:
        parts.append("one class only: name the classes with --classes, or a table with --table")
    return "; ".join(parts)


def without(dataset: Dataset, paths: Iterable[str]) -> Dataset:
    """Return a data set without some of its images.

    Parameters
    ----------
    dataset : Dataset
    paths : iterable of str
        Paths of the images to leave out.

    Returns
    -------
    Dataset
        The other images; the fingerprint is still that of the whole.

    Examples
    --------
    >>> dataset = open_dataset("covid_xray.zip", as_found=True)
    >>> len(without(dataset, dataset.table["path"][:3]).table)
    45
    """
    kept = dataset.table[~dataset.table["path"].isin(set(paths))]
    return replace(dataset, table=kept.reset_index(drop=True))


def write_splits(path: str | Path, dataset: Dataset, splits: np.ndarray) -> None:
    """Write a splits file for a data set, with which `open_dataset` can open it.

    Parameters
    ----------
    path : str or Path
        CSV to write, with the columns path, label, split and fingerprint.
    dataset : Dataset
    splits : np.ndarray, str (N,)
        Split of each image, in the order of the data set's table.
    """
    table = dataset.table.assign(split=splits).sort_values("path").reset_index(drop=True)
    identity = table_fingerprint(table, file_hashes(dataset.root, table["path"]))
    write_csv(path, table[["path", "label", "split"]].assign(fingerprint=identity))


# ---- reading images -----------------------------------------------------------------------------


def load_images(
    dataset: Dataset,
    size: int,
    progress: Callable[[int, int], None] | None = None,
    into: np.ndarray | None = None,
) -> np.ndarray:
    """Load all images at one size.

    Parameters
    ----------
    dataset : Dataset
    size : int, from 1
        Pixels along each side; an image that is not square is squashed.
    progress : callable, optional
        Called with (images done, images in all) after each image.
    into : np.ndarray, uint8 (N, size, size, 1), optional
        Array to fill, such as one on disk; None makes a new one.

    Returns
    -------
    np.ndarray, uint8 (N, size, size, 1), 0–255
        Grey values, in the order of the table.

    Raises
    ------
    UnreadableImages

    Examples
    --------
    >>> load_images(open_dataset("covid_xray.zip", as_found=True), 16).shape
    (48, 16, 16, 1)
    """

    def load(path: str) -> np.ndarray:
        return resize(decode(read_bytes(dataset.root, path), path), (size, size))

    shape = (len(dataset.table), size, size, 1)
    images = np.empty(shape, np.uint8) if into is None else into
    _for_each(dataset.table["path"], load, into=images[..., 0], progress=progress)
    return images


def each_image(
    dataset: Dataset,
    work: Callable[[np.ndarray], object],
    progress: Callable[[int, int], None] | None = None,
    take: Callable[[object], None] | None = None,
) -> tuple[list, dict[str, str]]:
    """Decode each image once and apply a function; continue after unreadable images.

    Parameters
    ----------
    dataset : Dataset
    work : callable
        Called in threads with the grey values of one image, uint8 (height, width).
    progress : callable, optional
        Called with (images done, images in all) after each image.
    take : callable, optional
        Called with the result of ``work`` for each readable image, in the order of the table; the
        results are then not kept. None keeps them in a list.

    Returns
    -------
    results : list
        Result of ``work`` for each readable image, in the order of the table.
    unreadable : dict of str to str
        Path → reason.
    """
    results = []
    take = take or results.append
    unreadable = _attempt_each(
        dataset.table["path"],
        lambda path: work(decode(read_bytes(dataset.root, path), path)),
        lambda _, result: take(result),
        progress,
    )
    return results, dict(unreadable)


def load_masks(dataset: Dataset, size: int) -> np.ndarray:
    """Load the lung masks at one size.

    A pixel of a mask is inside where it exceeds half of the mask's own maximum, so that masks of 0
    and 1 work like masks of 0 and 255. After resizing, a pixel is inside where at least half of it
    was.

    Parameters
    ----------
    dataset : Dataset
        The data, opened by `open_dataset`.
    size : int, from 1
        Pixels along each side.

    Returns
    -------
    np.ndarray, bool (N, size, size)
        In the order of the table; all False for an image without a mask.

    Raises
    ------
    UnreadableImages
    """

    def load(path: str) -> np.ndarray:
        grey = decode(read_bytes(dataset.root, path), path)
        return resized_mask(marked_pixels(grey), (size, size))

    masks = np.zeros((len(dataset.table), size, size), bool)
    rows = np.flatnonzero(dataset.table["mask"] != "")
    for row, mask in zip(rows, _for_each(dataset.table["mask"].iloc[rows], load), strict=True):
        masks[row] = mask
    return masks


def image_sizes(dataset: Dataset) -> pd.DataFrame:
    """Read the size of each image file from its header.

    Parameters
    ----------
    dataset : Dataset

    Returns
    -------
    pd.DataFrame, N rows
        Columns width and height (pixels), mode (Pillow's) and bytes, in the order of the data set's
        table.

    Raises
    ------
    UnreadableImages

    Examples
    --------
    >>> image_sizes(open_dataset("covid_xray.zip", as_found=True)).columns.tolist()
    ['width', 'height', 'mode', 'bytes']
    """

    def measure(image: Image.Image, content: bytes, path: str) -> tuple[int, int, str, int]:
        return image.width, image.height, image.mode, len(content)

    return pd.DataFrame(each_header(dataset, measure), columns=["width", "height", "mode", "bytes"])


def each_header(dataset: Dataset, work: Callable[[Image.Image, bytes, str], object]) -> list:
    """Open each image file without decoding its pixels, and apply a function.

    Parameters
    ----------
    dataset : Dataset
    work : callable
        Called in threads with the image that Pillow opened, all bytes of its file, and its path.

    Returns
    -------
    list
        Result of ``work`` for each image, in the order of the table.

    Raises
    ------
    UnreadableImages
    """

    def opened(path: str):
        content = read_bytes(dataset.root, path)
        return work(open_image(content, path), content, path)

    return _for_each(dataset.table["path"], opened)


def _for_each(
    names: Iterable[str],
    work: Callable[[str], object],
    into: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list | np.ndarray:
    """Return results of ``work`` on each name; ``UnreadableImages`` names all faults at once."""
    names = list(names)
    results = [None] * len(names) if into is None else into
    unreadable = _attempt_each(names, work, results.__setitem__, progress)
    if unreadable:
        raise UnreadableImages(unreadable)
    return results


def _attempt_each(
    names: Iterable[str],
    work: Callable[[str], object],
    take: Callable[[int, object], None],
    progress: Callable[[int, int], None] | None,
) -> list[tuple[str, str]]:
    """Pass (row, result) of each name to ``take``; return (name, reason) of the others."""

    def attempt(name: str):
        try:
            return work(name)
        except DataError as error:
            return UnreadableImage(name, str(error).removeprefix(f"{name}: "))

    names = list(names)
    unreadable = []
    with warnings.catch_warnings(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # the filter is global: it is set around the pool
        for row, result in enumerate(pool.map(attempt, names)):
            if isinstance(result, UnreadableImage):
                unreadable.append((result.name, result.reason))
            else:
                take(row, result)
            if progress is not None:
                progress(row + 1, len(names))
    return unreadable
