"""Data sets as audits, explanations and studies need them, on top of `covid_project.data`.

`open_dataset` adds columns (source, group, mask) to the course's table, opens data as they are
found, and examines archives more strictly. The functions below it read all images of a data set in
threads, and name every one that cannot be read.
"""

import io
import os
import re
import stat
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from PIL import Image

from covid_project import data
from covid_project.data import (
    CLASSES,
    IMAGE_SUFFIXES,
    LAYOUTS,
    SPLIT_FOLDERS,
    SPLITS,
    DataError,
    Dataset,
    Root,
    decode,
    file_hashes,
    listed,
    open_image,
    read_bytes,
    resize,
    table_fingerprint,
)
from covid_project.files import write_csv

MAX_MEMBERS = 500_000
MAX_UNPACKED_BYTES = 20 * 10**9  # of a whole archive, as it declares
MAX_RATIO, RATIO_MATTERS_ABOVE = 200, 50 * 10**6  # of one member; its unpacked bytes

# How some public sets name the patient in the names of files.
NAME_PATTERNS = {
    # Kermany's paediatric pneumonia: person1000_virus_1681.jpeg. Bacteria and viruses are numbered
    # separately: of the 170 numbers in training and test alike, none has one kind in both.
    "person": r"(?i)(person\d+(?:_(?:bacteria|virus))?)_",
    "nih": r"(\d{8})_\d{3}\.",  # NIH ChestX-ray14: 00000013_005.png
}


class UnreadableImage(DataError):
    """One image cannot be read; ``name`` and ``reason`` say which and why."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{_printable(self.name)}: {self.reason}"


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


def open_dataset(
    path: str | Path,
    *,
    classes: Sequence[str] | None = CLASSES,
    splits_file: str | Path | None = None,
    seed: int = 0,
    allow_shared_files: bool = False,
    as_found: bool = False,
) -> Dataset:
    """Open a folder or a zip archive of images.

    The layouts, the splits and the fingerprint are those of `covid_project.data.open_dataset`.

    Parameters
    ----------
    path : str or Path
        The folder or the archive.
    classes : sequence of str, optional
        Class folders wanted, in the order of their labels. None, for audits: `CLASSES` where the
        data have both, or else every folder of images, in the order of their names.
    splits_file, seed, allow_shared_files
        As in `covid_project.data.open_dataset`.
    as_found : bool
        Accept, for audits, whatever splits there are: the same file in two, a missing split or
        class in a split, none at all. No split is made then: images without a split have "", except
        where ``splits_file`` exists.

    Returns
    -------
    Dataset
        Its table has three further columns: ``source`` (where the image came from, as far as known;
        else the name of its class folder), ``group`` (images of one patient share it), ``mask``
        (path of a lung mask, or "").

    Raises
    ------
    DataError
        As `covid_project.data.open_dataset`; also an archive that is unsafe.
    """
    path = Path(path).expanduser()
    root, names = open_root(path)
    if classes is None:
        classes = _found_classes(names) or CLASSES
    if as_found and not (splits_file and Path(splits_file).is_file()):
        dataset = _as_found(root, names, tuple(classes), path)
    else:
        dataset = data.open_dataset(
            path,
            classes=tuple(classes),
            splits_file=splits_file,
            seed=seed,
            allow_shared_files=allow_shared_files or as_found,
        )
    table = dataset.table
    folders = table["path"].map(_class_folder)
    return replace(
        dataset,
        table=table.assign(
            source=_sources(dataset.root, table["path"], folders),
            group=table["path"].map(group_of),
            mask=[_mask_of(dataset.root, name) for name in table["path"]],
        ),
    )


def open_root(path: str | Path) -> tuple[Root, list[str]]:
    """Open a folder or an archive as `covid_project.data.open_root`, but refuse unsafe ones.

    Raises
    ------
    DataError
        As there; also devices, pipes, a file name that is not valid UTF-8, or an archive with
        members that are encrypted, links, outside its folder, of the same name, or packed like a
        bomb.
    """
    path = Path(path)
    if os.path.exists(path) and not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path} is neither a folder nor a file; give a folder or an archive")
        _refuse_unsafe(path)
    root, names = data.open_root(path)
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"file name {name!r} is not valid UTF-8: rename it") from None
    if path.is_dir():  # reading a device or a pipe might never end
        special = [n for n in names if (path / n).exists() and not (path / n).is_file()]
        if special:
            raise DataError(f"devices or pipes among the files: {listed(special)}; remove them")
    return root, names


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


def group_of(path: str) -> str:
    """Return the patient that a file's name begins with, or else the path itself.

    See `NAME_PATTERNS`. Not the bare name: ``COVID/1.png`` and ``NORMAL/1.png`` are two patients.
    """
    name = PurePosixPath(path).name
    matches = (re.match(pattern, name) for pattern in NAME_PATTERNS.values())
    return next((match.group(1).lower() for match in matches if match), path)


def _refuse_unsafe(path: Path) -> None:
    """Refuse an archive whose list of members holds anything suspicious."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # damaged lists raise more than BadZipFile
        raise DataError(
            f"{path} cannot be read as a zip archive ({error}). Give a folder or a zip archive; if "
            "it is one, it is damaged: download or copy it again"
        ) from None
    unpacked = sum(member.file_size for member in members)
    spellings = Counter(member.filename.casefold() for member in members if not member.is_dir())
    faults = {
        "encrypted members": [m for m in members if m.flag_bits & 0x1],
        "members that are neither stored nor deflated": [
            m for m in members if m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        ],
        "members that are not plain relative paths": [m for m in members if _escapes(m)],
        "links or devices": [
            m
            for m in members
            if stat.S_IFMT(m.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR)
        ],
        f"members packed more than {MAX_RATIO} : 1, as a bomb is": [
            m
            for m in members
            if m.file_size > max(RATIO_MATTERS_ABOVE, MAX_RATIO * m.compress_size)
        ],
        "members of the same name (apart from letter case)": [
            m for m in members if spellings[m.filename.casefold()] > 1
        ],
    }
    found = [
        f"{fault}: {listed([_printable(m.orig_filename) for m in some], limit=5)}"
        for fault, some in faults.items()
        if some
    ]
    if len(members) > MAX_MEMBERS:
        found.append(f"{len(members):,} members, more than {MAX_MEMBERS:,}")
    if unpacked > MAX_UNPACKED_BYTES:
        found.append(f"{unpacked:,} bytes unpacked, more than {MAX_UNPACKED_BYTES:,}")
    if found:
        raise DataError(
            f"{path} is refused, nothing was unpacked; it holds {'; '.join(found)}. Give an "
            "archive of plain files, or unpack it yourself and give the folder"
        )


def _escapes(member: zipfile.ZipInfo) -> bool:
    """Absolute, with a drive letter or a backslash, or with empty, ``.`` and ``..`` parts."""
    name = member.orig_filename  # before zipfile cuts and mends it
    strange = re.match(r"[A-Za-z]:", name) or "\\" in name or "\0" in name
    return bool(strange) or not {"", ".", ".."}.isdisjoint(name.removesuffix("/").split("/"))


def _placed(names: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """Outer folders, name, class folder and split ("" if none) of each image in a folder."""
    for name in names:
        if PurePosixPath(name).suffix.lower() not in IMAGE_SUFFIXES:
            continue
        places = (layout(name.split("/")[:-1]) for layout in LAYOUTS)
        place = next((place for place in places if place), None)
        if place:
            outer, folder, split = place
            yield "/".join(outer), name, folder, split


def _found_classes(names: list[str]) -> tuple[str, ...]:
    """Names of the class folders, as far as they are no deeper than the shallowest of them."""
    no_class = {"masks", *SPLIT_FOLDERS}
    found = [(o, folder) for o, _, folder, _ in _placed(names) if folder.casefold() not in no_class]
    shallowest = min((_depth(outer) for outer, _ in found), default=0)
    spelled = {folder.casefold(): folder for outer, folder in found if _depth(outer) == shallowest}
    if all(name.casefold() in spelled for name in CLASSES):
        return CLASSES
    return tuple(spelled[name] for name in sorted(spelled))


def _depth(outer: str) -> int:
    return len(outer.split("/")) if outer else 0


def _as_found(root: Root, names: list[str], classes: tuple[str, ...], path: Path) -> Dataset:
    """Open data whatever their splits are.

    Of several places that fit, the shallowest counts: archives often hold a second copy of
    themselves further inside, and lung masks are in the same folders under ``masks/``.
    """
    labels = {name.casefold(): label for label, name in enumerate(classes)}
    found = [
        (outer, name, labels[folder.casefold()], split)
        for outer, name, folder, split in _placed(names)
        if folder.casefold() in labels
    ]
    table = pd.DataFrame(found, columns=["outer", "path", "label", "split"])
    depth = table["outer"].map(_depth)
    table = table[depth == depth.min()].sort_values("path")
    images = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    tally = Counter(str(PurePosixPath(name).parent) for name in images)
    here = listed([f"{_printable(folder)} ({n})" for folder, n in tally.items()])
    explained = f"Found in {path}, with their numbers of images: {here or 'no images at all'}"
    outer = sorted(table["outer"].unique())
    if len(outer) > 1:
        raise DataError(f"several data sets side by side: {listed(outer)}; give one. {explained}")
    missing = [name for label, name in enumerate(classes) if label not in set(table["label"])]
    if missing:
        raise DataError(f"no class folder {' or '.join(missing)} with images. {explained}")
    if outer[0]:
        root = root.joinpath(outer[0])
        table["path"] = table["path"].str.removeprefix(f"{outer[0]}/")
    table = table.drop(columns="outer").reset_index(drop=True)
    identity = table_fingerprint(table, file_hashes(root, table["path"]))
    order = table["split"].map([*SPLITS, ""].index)
    table = table.iloc[np.lexsort((table["path"], table["label"], order))].reset_index(drop=True)
    return Dataset(table, root, classes, identity, len(images) - len(table))


def _class_folder(path: str) -> str:
    *_, outer, folder, _ = ["", *path.split("/")]
    return outer if folder.casefold() == "images" and outer else folder


def _mask_of(root: Root, path: str) -> str:
    """Path of an image's lung mask: Kaggle's ``masks`` beside ``images``, or the phantoms'."""
    *outer, folder, file = path.split("/")
    beside = ["/".join([*outer, "masks", file])] if folder.casefold() == "images" else []
    masks = [*beside, f"masks/lungs/{path}"]
    return next((mask for mask in masks if root.joinpath(mask).is_file()), "")


def _sources(root: Root, paths: pd.Series, folders: pd.Series) -> pd.Series:
    """Origin of each image: the URL in Kaggle's ``<class>.metadata``, or the class folder.

    The metadata are ``.csv``, or ``.xlsx`` where openpyxl is installed.
    """
    readers = {"csv": pd.read_csv}
    if find_spec("openpyxl"):
        readers["xlsx"] = pd.read_excel
    sources = folders.copy()
    stems = paths.map(lambda path: PurePosixPath(path).stem.casefold())
    wanted = {
        f"{folder}.metadata.{kind}".casefold(): (folder, read)
        for folder in folders.unique()
        for kind, read in readers.items()
    }
    for name in sorted(entry.name for entry in root.iterdir()):
        if name.casefold() in wanted:
            folder, read = wanted[name.casefold()]
            here = folders == folder
            sources[here] = stems[here].map(_urls(root, name, read)).fillna(folder)
    return sources


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


def decode_file(path: Path) -> np.ndarray:
    """Decode an image file that is in no data set: uint8 (height, width).

    Raises
    ------
    UnreadableImage
        It is not a regular file, or `covid_project.data.decode` refuses it.
    """
    name = str(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's: each leads to an error or does not matter
            return decode(_read(Path(), name), name)
    except DataError as error:
        raise _unreadable(name, error) from None


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


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)
