"""Data sets as audits, explanations and studies need them, on top of `covid_project.data`.

`open_dataset` adds columns (source, group, mask) to the course's table, and opens data in whatever
form they are found (`covid_lab.reading`). The functions below it read all images of a data set in
threads, and name every one that cannot be read.
"""

import io
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from PIL import Image

from covid_lab.reading.collection import collect, in_words
from covid_lab.reading.patients import group_of
from covid_lab.reading.roots import open_root, printable
from covid_project import data
from covid_project.data import (
    CLASSES,
    SPLITS,
    DataError,
    Dataset,
    Root,
    file_hashes,
    listed,
    read_bytes,
    table_fingerprint,
)
from covid_project.files import write_csv
from covid_project.images import IMAGE_SUFFIXES, decode, open_image, resize

NAMED = 0.95  # least fraction of a class whose images the tables of their sources must name


class UnreadableImage(DataError):
    """One image cannot be read; ``name`` and ``reason`` say which and why."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{printable(self.name)}: {self.reason}"


class UnreadableImages(DataError):
    """All images that cannot be read: ``unreadable`` holds every (name, reason)."""

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
    """A data set, opened as it is found.

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

    With ``as_found``, everything that `covid_lab.reading` knows; otherwise the layouts, splits and
    checks of `covid_project.data.open_dataset`. The fingerprint is the same.

    Parameters
    ----------
    path : str or Path
        The folder or the archive.
    classes : sequence of str, optional
        Classes wanted, in the order of their labels. None: `CLASSES` where the data have both, or
        else all that are found, in the order of their names.
    splits_file, seed, allow_shared_files
        As in `covid_project.data.open_dataset`.
    as_found : bool
        Accept whatever splits there are: the same file in two, a missing split or class in a split,
        none at all. No split is made then: images without a split have "", except where
        ``splits_file`` exists.
    table, columns, finding
        Labels from a table, see `covid_lab.reading.collection.collect`.

    Returns
    -------
    FoundDataset
        Its table has three further columns: ``source`` (where the
        image came from, as far as known; else the name of its class folder), ``group`` (images of
        one patient share it), ``mask`` (path of a lung mask, or ""); of DICOM files also those of
        `covid_lab.reading.dicom.COVARIATES`.

    Raises
    ------
    DataError
        As `covid_project.data.open_dataset` and `covid_lab.reading.collection.collect`.
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
    folders = table["path"].map(_class_folder)
    source, said = _sources(dataset.root, table["path"], folders)
    return replace(
        dataset,
        notes=(*dataset.notes, *said),
        table=table.assign(
            source=source,
            group=patients.where(patients != "", table["path"].map(group_of)),
            mask=[_mask_of(dataset.root, name) for name in table["path"]],
        ),
    )


def _as_found(
    path: Path,
    classes: Sequence[str] | None,
    table: str | Path | None,
    columns: Mapping[str, str] | None,
    finding: str | None,
) -> tuple[FoundDataset, pd.Series]:
    """Return the data whatever their splits are, and the patient of each row ("" if unknown)."""
    found = collect(
        path,
        classes=classes,
        table=None if table is None else Path(table),
        columns=columns,
        finding=finding,
    )
    rows = found.table
    identity = table_fingerprint(rows, file_hashes(found.root, rows["path"]))
    order = rows["split"].map([*SPLITS, ""].index)
    rows = rows.iloc[np.lexsort((rows["path"], rows["label"], order))].reset_index(drop=True)
    images = sum(
        PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
        for names in found.left_out.values()
        for name in names
    )
    dataset = FoundDataset(
        rows.drop(columns="patient"),
        found.root,
        found.classes,
        identity,
        images,
        found.left_out,
        found.notes,
    )
    return dataset, rows["patient"]


def described(dataset: FoundDataset, name: str) -> str:
    """Say on one line what is used of some data and what is not.

    Parameters
    ----------
    dataset : FoundDataset
    name : str
        Of the data.

    Returns
    -------
    str
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
    """Return the same data set except some images; the fingerprint stays that of the whole."""
    kept = dataset.table[~dataset.table["path"].isin(set(paths))]
    return replace(dataset, table=kept.reset_index(drop=True))


def write_splits(path: str | Path, dataset: Dataset, splits: np.ndarray) -> None:
    """Write a split (N,) of a data set's images as a splits file, see `open_dataset`.

    Data that come without a split can be opened with it.
    """
    table = dataset.table.assign(split=splits).sort_values("path").reset_index(drop=True)
    identity = table_fingerprint(table, file_hashes(dataset.root, table["path"]))
    write_csv(path, table[["path", "label", "split"]].assign(fingerprint=identity))


def _class_folder(path: str) -> str:
    *_, outer, folder, _ = ["", *path.split("/")]
    return outer if folder.casefold() == "images" and outer else folder


def _mask_of(root: Root, path: str) -> str:
    """Path of an image's lung mask: Kaggle's ``masks`` beside ``images``, or the phantoms'."""
    *outer, folder, file = path.split("/")
    beside = ["/".join([*outer, "masks", file])] if folder.casefold() == "images" else []
    masks = [*beside, f"masks/lungs/{path}"]
    return next((mask for mask in masks if root.joinpath(mask).is_file()), "")


def _sources(root: Root, paths: pd.Series, folders: pd.Series) -> tuple[pd.Series, list[str]]:
    """Origin of each image: the URL in Kaggle's ``<class>.metadata``, or the class folder.

    The metadata are ``.csv``, or ``.xlsx`` where openpyxl is installed. Where they name fewer than
    `NAMED` of the images of a class, nothing is known; what was found is said.
    """
    readers = {"csv": pd.read_csv}
    if find_spec("openpyxl"):
        readers["xlsx"] = pd.read_excel
    stems = paths.map(lambda path: PurePosixPath(path).stem.casefold())
    wanted = {
        f"{folder}.metadata.{kind}".casefold(): (folder, read)
        for folder in folders.unique()
        for kind, read in readers.items()
    }
    urls = pd.Series(index=paths.index, dtype=object)
    said = []
    for name in sorted(entry.name for entry in root.iterdir()):
        if name.casefold() in wanted:
            folder, read = wanted[name.casefold()]
            here = folders == folder
            urls[here] = stems[here].map(_urls(root, name, read))
            said.append(f"{name} names {urls[here].notna().sum():,} of {here.sum():,} images")
    named = urls.notna().groupby(folders).mean()
    if (named < NAMED).any():
        reason = f"sources are unknown where a class has fewer than {NAMED:.0%} named"
        return folders, [f"{', '.join(said)}: {reason}"] if said else []
    return urls.fillna(folders), [f"sources: {', '.join(said)}"]


def _urls(root: Root, name: str, read: Callable) -> dict[str, str]:
    """URL by file name, in lower case and without suffix, as one metadata table states it."""
    try:
        rows = read(io.BytesIO(read_bytes(root, name)), dtype=str)
        rows = rows.dropna(subset=["FILE NAME", "URL"])
    except Exception as error:
        raise DataError(
            f"{name} cannot be read as a table with the columns FILE NAME and URL ({error}): "
            "mend or remove it"
        ) from None
    return dict(zip(rows["FILE NAME"].str.casefold(), rows["URL"], strict=True))


# ---- reading images -----------------------------------------------------------------------------


def load_images(
    dataset: Dataset,
    size: int,
    progress: Callable[[int, int], None] | None = None,
    into: np.ndarray | None = None,
) -> np.ndarray:
    """Load all images, resized: uint8 (N, size, size, 1), in the order of the table.

    Parameters
    ----------
    dataset : Dataset
    size : int
        Pixels along each side; an image that is not square is squashed.
    progress : callable, optional
        Called with (images done, images in all) after each image.
    into : np.ndarray, optional
        Array of that shape that takes the images, such as one on disk; None makes one.

    Raises
    ------
    UnreadableImages
        Names every image that cannot be read, with its reason.
    """

    def load(path: str) -> np.ndarray:
        return resize(decode(_read(dataset.root, path), path), (size, size))

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
    """Decode each image once and work on it; continue after those that cannot be read.

    Parameters
    ----------
    dataset : Dataset
    work : callable
        Called in threads with the grey values of one image, uint8 (height, width).
    progress : callable, optional
        Called with (images done, images in all) after each image.
    take : callable, optional
        Takes what ``work`` returned for each readable image, in the order of the table, which is
        then not kept; None keeps it in a list.

    Returns
    -------
    results : list
        What ``work`` returned for each readable image, in the order of the table.
    unreadable : dict
        Path → reason.
    """
    results = []
    take = take or results.append
    unreadable = _attempt_each(
        dataset.table["path"],
        lambda path: work(decode(_read(dataset.root, path), path)),
        lambda _, result: take(result),
        progress,
    )
    return results, dict(unreadable)


def load_masks(dataset: Dataset, size: int) -> np.ndarray:
    """Load the lung masks: bool (N, size, size); all False in the rows without a mask.

    A mask's pixel is inside where it exceeds half of the mask's own maximum (0/1 as well as 0/255).
    After resizing, a pixel is inside where half of it or more was.

    Raises
    ------
    UnreadableImages
        Names every mask that cannot be read, with its reason.
    """

    def load(path: str) -> np.ndarray:
        grey = decode(_read(dataset.root, path), path)
        return resize(np.uint8(255) * (grey > grey.max() / 2), (size, size)) >= 128

    masks = np.zeros((len(dataset.table), size, size), bool)
    rows = np.flatnonzero(dataset.table["mask"] != "")
    for row, mask in zip(rows, _for_each(dataset.table["mask"].iloc[rows], load), strict=True):
        masks[row] = mask
    return masks


def image_sizes(dataset: Dataset) -> pd.DataFrame:
    """Return width and height (pixels), mode (Pillow's) and bytes of each image as it is stored.

    In the order of the data set's table, from the files' headers.

    Raises
    ------
    UnreadableImages
        Names every image whose header cannot be read, with its reason.
    """

    def measure(image: Image.Image, content: bytes, path: str) -> tuple[int, int, str, int]:
        return image.width, image.height, image.mode, len(content)

    return pd.DataFrame(each_header(dataset, measure), columns=["width", "height", "mode", "bytes"])


def each_header(dataset: Dataset, work: Callable[[Image.Image, bytes, str], object]) -> list:
    """Open each image file without decoding its pixels; return what ``work`` gives for each.

    Parameters
    ----------
    dataset : Dataset
    work : callable
        Called in threads with the image as Pillow opened it, all bytes of its file, and its path.

    Raises
    ------
    UnreadableImages
        Names every image whose header cannot be read, with its reason.
    """

    def opened(path: str):
        content = _read(dataset.root, path)
        return work(open_image(content, path), content, path)

    return _for_each(dataset.table["path"], opened)


def _read(root: Root, name: str) -> bytes:
    if not root.joinpath(name).is_file():  # reading a device or a pipe might never end
        raise UnreadableImage(name, "not a regular file (a broken link or a device)")
    return read_bytes(root, name)


def _unreadable(name: str, error: DataError) -> UnreadableImage:
    if isinstance(error, UnreadableImage):
        return error
    return UnreadableImage(name, str(error).removeprefix(f"{name}: "))


def _for_each(
    names: Iterable[str],
    work: Callable[[str], object],
    into: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list | np.ndarray:
    """Results of ``work`` on each name, in their order; ``UnreadableImages`` names all at once."""
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
    """Give (row, result) of each name, computed in threads; return (name, reason) of the others."""

    def attempt(name: str):
        try:
            return work(name)
        except DataError as error:
            return _unreadable(name, error)

    names = list(names)
    unreadable = []
    with warnings.catch_warnings(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # the filter is the process's: set around the pool
        for row, result in enumerate(pool.map(attempt, names)):
            if isinstance(result, UnreadableImage):
                unreadable.append((result.name, result.reason))
            else:
                take(row, result)
            if progress is not None:
                progress(row + 1, len(names))
    return unreadable
