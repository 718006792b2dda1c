"""From a path that the user gives to one table and uint8 arrays.

A folder or a zip archive goes in. The archive is read where it lies and never unpacked, so that
nothing can escape from it and nothing can be half unpacked. Out come a `Dataset` (one row per
image: path, label, split, source, group, mask) and the images as grey uint8 arrays. What cannot
be used is refused with one clear `DataError`; what can be read is converted, never guessed.
"""

import hashlib
import io
import os
import re
import stat
import threading
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from PIL import Image, ImageChops, ImageOps

from covid_project.storage import fingerprint, write_csv

CLASSES = ("NORMAL", "COVID")  # a label is the index here: COVID = 1 is the positive class
SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = dict(zip(SPLITS, SPLITS, strict=True)) | {"valid": "val", "validation": "val"}

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")  # of the content, whatever the suffix
MAX_PIXELS = 64_000_000  # of one image; a chest radiograph has at most about 16 million
MAX_FILE_BYTES = 256 * 2**20  # 64 million pixels in 16-bit grey need half of it
PIECE = 2**20  # bytes read at a time
BAND = 256  # rows converted at a time: copies of a whole large image add up
LARGE = 8_000_000  # pixels of an image from which no other such one is decoded beside it

# Pillow asks for memory in pieces of up to 16 MiB, which glibc keeps for the thread that had them,
# half a gigabyte after a few large images; pieces of more than 32 MiB go back to the system.
Image.core.set_block_size(64 * 2**20)

MAX_MEMBERS = 500_000
MAX_UNPACKED_BYTES = 20 * 10**9  # of a whole archive, by its own declaration
MAX_RATIO, RATIO_MATTERS_ABOVE = 200, 50 * 10**6  # of one member; its unpacked bytes

# What some public sets' file names hold of the patient.
NAME_PATTERNS = {
    # Kermany's paediatric pneumonia: person1000_virus_1681.jpeg. Bacteria and viruses are numbered
    # separately: of the 170 numbers in training and test alike, none has one kind in both.
    "person": r"(?i)(person\d+(?:_(?:bacteria|virus))?)_",
    "nih": r"(\d{8})_\d{3}\.",  # NIH ChestX-ray14: 00000013_005.png
}

MIN_DEALT = 10  # images (or patients) of a class from which every split gets one
LISTED = 50  # names in a message

Root = Path | zipfile.Path

_one_large_image = threading.Lock()


class DataError(ValueError):
    """The data cannot be used; the message says what was found, what is allowed, what to do."""


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
        return f"{len(lines)} image(s) cannot be read; replace them or take them out:\n{named}"


@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set, opened.

    Attributes
    ----------
    table
        One row per image, sorted by split (in the order of `SPLITS`), label and path:
        ``path`` (POSIX, relative to the root), ``label`` (index in ``classes``), ``split``,
        ``source`` (where the image came from, as far as known; else its class folder's name),
        ``group`` (images of one patient share it), ``mask`` (path of a lung mask, or "").
    root
        Folder, or place in a zip archive, in which the paths count.
    classes
        Names of the labels.
    fingerprint
        16 hexadecimal digits over every path, label, split and content: the same for a folder
        and for its archive.
    """

    table: pd.DataFrame
    root: Root
    classes: tuple[str, ...]
    fingerprint: str

    @property
    def is_phantom(self) -> bool:
        """Whether the images are drawn (see ``phantoms``) and not of patients."""
        return self.root.joinpath("phantoms.json").is_file()

    def rows(self, split: str) -> np.ndarray:
        """Row numbers (int64, rising) of one split, in the table and in the loaded arrays."""
        if split not in SPLITS:
            raise DataError(f"no split {split!r}: there are {', '.join(SPLITS)}")
        return np.flatnonzero(self.table["split"] == split)

    def without(self, paths: Iterable[str]) -> "Dataset":
        """Return the same data set but for some images; the fingerprint stays that of the whole."""
        kept = self.table[~self.table["path"].isin(set(paths))]
        return replace(self, table=kept.reset_index(drop=True))


# ---- opening ------------------------------------------------------------------------------------


def open_dataset(
    path: str | Path,
    *,
    classes: tuple[str, ...] | None = CLASSES,
    splits_file: Path | None = None,
    seed: int = 0,
    allow_shared_files: bool = False,
    as_found: bool = False,
) -> Dataset:
    """Open a folder or a zip archive of images.

    Two layouts are known, both in any letter case and inside any number of outer folders:
    ``train|val|test / class / image`` (the course's) and ``class / images / image`` beside
    ``class / masks`` (Kaggle's COVID-19_Radiography_Dataset; an older form lacks the folder
    ``images``). Folders of other classes, hidden files and whatever has no image's suffix are
    passed over.

    Parameters
    ----------
    path
        The folder or the archive.
    classes
        Class folders wanted, in the order of their labels. None, for audits: `CLASSES` where the
        data have both, or else every folder of images, in the order of their names.
    splits_file
        CSV (path, label, split, fingerprint) of a split dealt here: written where it is
        missing, used where it is there, so that a split is never dealt a second time. Only for
        data that come without a split.
    seed
        Of the split, 80 : 10 : 10 in each class, that is dealt where the data come without one.
    allow_shared_files
        Accept the same file in two splits.
    as_found
        Accept, for audits, whatever splits there are: the same file in two, a missing split or
        class in a split, none at all. No split is dealt then: it is "" where there is none, apart
        from what ``splits_file`` says where that file is there.

    Raises
    ------
    DataError
        No such path; no zip archive, or one that is damaged, encrypted or unsafe; a class, a
        split or a class in a split without images; the same file in two splits; a splits file
        of other data.
    """
    path = Path(os.path.expanduser(path))
    root, names = open_root(path)
    if classes is None:
        classes = _found_classes(names) or CLASSES
    prefix, table = _arrange(names, classes, path, as_found)
    if prefix:
        root = root.joinpath(prefix)
        names = [name.removeprefix(f"{prefix}/") for name in names if name.startswith(f"{prefix}/")]
    names = set(names)
    table["source"] = _sources(root, names, table)
    table["group"] = table["path"].map(group_of)
    table["mask"] = [_mask_of(name, names) for name in table["path"]]
    contents = _contents(root, table["path"])
    dealt = splits_file is not None and Path(splits_file).is_file()
    if (table["split"] == "").all() and (dealt or not as_found):
        table["split"] = _dealt_once(table, contents, splits_file, seed)
    elif not (allow_shared_files or as_found):
        _refuse_shared(table["path"], table["split"], contents)
    identity = _identity(table, contents)
    order = {split: position for position, split in enumerate([*SPLITS, ""])}
    table = table.iloc[np.lexsort((table["path"], table["label"], table["split"].map(order)))]
    columns = ["path", "label", "split", "source", "group", "mask"]
    return Dataset(table[columns].reset_index(drop=True), root, tuple(classes), identity)


def group_of(path: str) -> str:
    """Return the patient that a file's name begins with, or else the path itself.

    See `NAME_PATTERNS`. Not the bare name: ``COVID/1.png`` and ``NORMAL/1.png`` are two patients.
    """
    name = PurePosixPath(path).name
    matches = (re.match(pattern, name) for pattern in NAME_PATTERNS.values())
    return next((match.group(1).lower() for match in matches if match), path)


def open_root(path: Path) -> tuple[Root, list[str]]:
    """Root of a folder or a zip archive, and the relative POSIX paths of all files under it.

    Sorted, without hidden ones. What macOS adds to archives is hidden too: its names start with
    ``._``.

    Raises
    ------
    DataError
        No such path; a folder or a name that cannot be read; no zip archive, or an unsafe one.
    """
    if not os.path.exists(path):  # Path.exists raises on names that are too long
        raise DataError(f"no such path: {path}; give a folder of images or a zip archive of one")
    if path.is_dir():
        root, names = path, list(_files_under(path))
    elif path.is_file():
        archive = _open_archive(path)
        names = [name for name in archive.namelist() if not name.endswith("/")]
        root = zipfile.Path(archive)
    else:
        raise DataError(f"{path} is neither a folder nor a file; give a folder or a zip archive")
    return root, sorted(name for name in names if not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _files_under(folder: Path) -> Iterator[str]:
    """Everything that is not a folder; links to folders are not followed, so no loop can catch."""

    def refuse(error: OSError):
        raise DataError(f"folder {error.filename} cannot be listed: {error.strerror}")

    for place, _, files in os.walk(folder, onerror=refuse, followlinks=False):
        for file in files:
            name = Path(place, file).relative_to(folder).as_posix()
            try:
                name.encode()
            except UnicodeEncodeError:
                raise DataError(f"file name {name!r} is not valid UTF-8: rename it") from None
            yield name


def _open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip archive whose list of members holds nothing suspicious."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # damaged lists raise more than BadZipFile
        raise DataError(
            f"{path} cannot be read as a zip archive ({error}). Give a folder or a zip archive; if "
            "it is one, it is damaged or cut off: download or copy it again"
        ) from None
    members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    spellings = Counter(name.casefold() for name in archive.namelist() if not name.endswith("/"))
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
        archive.close()
        raise DataError(
            f"{path} is refused, nothing was unpacked; it holds {'; '.join(found)}. Give an "
            "archive of plain files, or unpack it yourself and give the folder"
        )
    return archive


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
        *folders, _ = name.split("/")
        if folders and folders[-1].casefold() == "images":  # class/images, as Kaggle has it
            folders.pop()
        if folders:
            folder = folders.pop()
            split = SPLIT_FOLDERS.get(folders[-1].casefold(), "") if folders else ""
            yield "/".join(folders[:-1] if split else folders), name, folder, split


def _found_classes(names: list[str]) -> tuple[str, ...]:
    """Names of the class folders, as far as they lie no deeper than the shallowest of them."""
    no_class = {"masks", *SPLIT_FOLDERS}
    found = [(o, folder) for o, _, folder, _ in _placed(names) if folder.casefold() not in no_class]
    shallowest = min((_depth(outer) for outer, _ in found), default=0)
    spelled = {folder.casefold(): folder for outer, folder in found if _depth(outer) == shallowest}
    if all(name.casefold() in spelled for name in CLASSES):
        return CLASSES
    return tuple(spelled[name] for name in sorted(spelled))


def _depth(outer: str) -> int:
    return len(outer.split("/")) if outer else 0


def _arrange(
    names: list[str], classes: tuple[str, ...], path: Path, as_found: bool
) -> tuple[str, pd.DataFrame]:
    """Find the layout: the outer folders, and a table of path, label, split ("" if none), folder.

    Of several places that fit, the shallowest counts: archives often hold a second copy of
    themselves further inside, and lung masks lie in the same folders under ``masks/``.
    """
    labels = {name.casefold(): label for label, name in enumerate(classes)}
    found = [
        (outer, name, labels[folder.casefold()], split, folder)
        for outer, name, folder, split in _placed(names)
        if folder.casefold() in labels
    ]
    table = pd.DataFrame(found, columns=["outer", "path", "label", "split", "folder"])
    depth = table["outer"].map(_depth)
    table = table[depth == depth.min()]

    images = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    tally = Counter(str(PurePosixPath(name).parent) for name in images)
    here = listed([f"{_printable(folder)} ({n})" for folder, n in tally.items()], limit=12)
    explained = (
        f"Found in {path}, with their numbers of images: {here or 'no images at all'}. Allowed: "
        f"train|val|test / {'|'.join(classes)} / image, or {'|'.join(classes)} / images / image"
    )
    outer = sorted(table["outer"].unique())
    if len(outer) > 1:
        raise DataError(f"several data sets side by side: {listed(outer)}; give one. {explained}")
    missing = [name for label, name in enumerate(classes) if label not in set(table["label"])]
    if missing:
        raise DataError(f"no class folder {' or '.join(missing)} with images. {explained}")
    if table["split"].any() and not as_found:
        _refuse_gaps(table, classes, explained)
    prefix = outer[0]
    table = table.drop(columns="outer").reset_index(drop=True)
    return prefix, table.assign(path=table["path"].str.removeprefix(f"{prefix}/"))


def _refuse_gaps(table: pd.DataFrame, classes: tuple[str, ...], explained: str) -> None:
    """Refuse missing splits, classes missing in a split, and images beside the split folders."""
    if (table["split"] == "").any():
        raise DataError(f"some images lie in split folders and some do not. {explained}")
    counts = pd.crosstab(table["split"], table["label"]).reindex(
        index=list(SPLITS), columns=range(len(classes)), fill_value=0
    )
    missing = [split for split in SPLITS if not counts.loc[split].any()]
    if missing:
        raise DataError(f"no split {' or '.join(missing)}. {explained}")
    empty = [
        f"{split}/{name}"
        for split in SPLITS
        for label, name in enumerate(classes)
        if counts.loc[split, label] == 0
    ]
    if empty:
        raise DataError(f"no images in {', '.join(empty)}. {explained}")


def _mask_of(path: str, names: set[str]) -> str:
    """Path of an image's lung mask: Kaggle's ``masks`` beside ``images``, or the phantoms'."""
    *outer, folder, file = path.split("/")
    beside = "/".join([*outer, "masks", file]) if folder.casefold() == "images" else ""
    return next((mask for mask in (beside, f"masks/lungs/{path}") if mask in names), "")


def _sources(root: Root, names: set[str], table: pd.DataFrame) -> pd.Series:
    """Origin of each image: the URL in Kaggle's ``<class>.metadata``, or the class folder.

    The metadata are ``.csv``, or ``.xlsx`` where openpyxl is installed.
    """
    readers = {"csv": pd.read_csv}
    if find_spec("openpyxl"):
        readers["xlsx"] = pd.read_excel
    sources = table["folder"].copy()
    stems = table["path"].map(lambda path: PurePosixPath(path).stem.casefold())
    wanted = {
        f"{folder}.metadata.{kind}".casefold(): (folder, read)
        for folder in table["folder"].unique()
        for kind, read in readers.items()
    }
    for name in sorted(names):
        if name.casefold() in wanted:
            folder, read = wanted[name.casefold()]
            here = table["folder"] == folder
            sources[here] = stems[here].map(_urls(root, name, read)).fillna(folder)
    return sources


def _urls(root: Root, name: str, read: Callable) -> dict[str, str]:
    """URL by file name, in lower case and without suffix, as one metadata table states it."""
    try:
        rows = read(io.BytesIO(_read(root, name)), dtype=str).dropna(subset=["FILE NAME", "URL"])
    except Exception as error:
        raise DataError(
            f"{name} cannot be read as a table with the columns FILE NAME and URL ({error}): "
            "mend it or take it out"
        ) from None
    return dict(zip(rows["FILE NAME"].str.casefold(), rows["URL"], strict=True))


def _contents(root: Root, paths: Iterable[str]) -> pd.Series:
    """SHA-256 of each file; of an empty or unreadable one its path, as it equals no other.

    Such files are not refused here: loading names all of them at once.
    """

    def digest(path: str) -> str:
        try:
            content = _read(root, path)
        except UnreadableImage:
            content = b""
        return hashlib.sha256(content).hexdigest() if content else path

    return pd.Series(_for_each(paths, digest))


def _identity(table: pd.DataFrame, contents: pd.Series) -> str:
    """Fingerprint of the data set, whose rows are still sorted by path."""
    rows = zip(table["path"], table["label"], table["split"], contents, strict=True)
    return fingerprint(*(str(value) for row in rows for value in row))


def _refuse_shared(paths: pd.Series, splits: pd.Series, contents: pd.Series) -> None:
    files = pd.DataFrame({"path": paths, "split": splits, "content": contents})
    per_content = files.groupby("content")["split"].transform("nunique")
    shared = files[per_content > 1].sort_values("path").groupby("content", sort=False)["path"]
    if len(shared):
        same = [" = ".join(_printable(path) for path in some) for _, some in shared]
        raise DataError(
            f"{len(same)} file(s) lie in more than one split, which lets the test see what was "
            "learned by heart; take them out of all but one, or allow them with "
            f"allow_shared_files:\n{listed(same, '\n')}"
        )


def _dealt_once(
    table: pd.DataFrame, contents: pd.Series, splits_file: Path | None, seed: int
) -> pd.Series:
    """Split of each image, from the splits file where there is one."""
    if splits_file is None or not Path(splits_file).is_file():
        splits = _deal(table, contents, seed)
        if splits_file is not None:
            _write_splits(splits_file, table.assign(split=splits), contents)
        return splits
    try:
        written = pd.read_csv(splits_file, dtype=str, keep_default_na=False)
        splits = table["path"].map(dict(zip(written["path"], written["split"], strict=True)))
        expected = [_identity(table.assign(split=splits), contents)]
        fits = not splits.isna().any() and list(written["fingerprint"].unique()) == expected
    except (ValueError, KeyError):  # not a CSV, or another one
        fits = False
    if not fits:
        raise other_split(splits_file)
    return splits


def other_split(splits_file: Path) -> DataError:
    """What to say of a splits file that does not fit the data."""
    return DataError(
        f"{splits_file} is the split of other data, or was changed: give the data that it was "
        "dealt for, another results folder, or take it away to have a new split dealt"
    )


def write_splits(path: Path, dataset: Dataset, splits: np.ndarray) -> None:
    """Write a split (N,) of a data set's images as a splits file, see `open_dataset`.

    Where the data come without a split, they can be opened with it.
    """
    table = dataset.table.assign(split=splits).sort_values("path").reset_index(drop=True)
    _write_splits(path, table, _contents(dataset.root, table["path"]))


def _write_splits(path: Path, table: pd.DataFrame, contents: pd.Series) -> None:
    written = table[["path", "label", "split"]].assign(fingerprint=_identity(table, contents))
    write_csv(Path(path), written)


def _deal(table: pd.DataFrame, contents: pd.Series, seed: int) -> pd.Series:
    """Deal 80 : 10 : 10 within each class; what shares a group or its content stays together."""
    # Imported here: these take longer to import than the rest of the module together.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from sklearn.model_selection import train_test_split

    # Images and groups and contents are nodes; what hangs together is dealt as one.
    n = len(table)
    groups, contents = pd.factorize(table["group"])[0], pd.factorize(contents)[0]
    nodes = np.concatenate([n + groups, 2 * n + contents])
    edges = (np.ones(2 * n), (np.tile(np.arange(n), 2), nodes))
    units = connected_components(coo_array(edges, shape=(3 * n, 3 * n)), directed=False)[1][:n]
    labels = table["label"].groupby(units).max()
    smallest = labels.value_counts().min()
    if smallest < MIN_DEALT or labels.nunique() < table["label"].nunique():
        raise DataError(
            f"the data come without a split, and a class holds only {smallest} image(s) or "
            f"patient(s) that can be dealt; at least {MIN_DEALT} are needed, or folders "
            f"{', '.join(SPLITS)}"
        )
    _, rest = train_test_split(labels, test_size=0.2, stratify=labels, random_state=seed)
    val, test = train_test_split(rest, test_size=0.5, stratify=rest, random_state=seed)
    split = dict.fromkeys(val.index, "val") | dict.fromkeys(test.index, "test")
    return pd.Series([split.get(unit, "train") for unit in units])


# ---- reading images -----------------------------------------------------------------------------


def decode(content: bytes, name: str) -> np.ndarray:
    """Decode an image file to grey values: uint8 (height, width), 0 (black) to 255 (white).

    The content decides, not the suffix. 8-bit grey stays as it is; 1-bit becomes 0 and 255;
    palette, RGB and CMYK go through their colours to luminance (ITU-R 601-2, as Pillow has it;
    16-bit colours by their upper byte, embedded colour profiles are not applied); transparency
    shows black; 16-bit grey is scaled from its full range, value / 257 rounded, and a TIFF's
    12-bit grey from its own; an EXIF orientation is applied.

    Raises
    ------
    UnreadableImage
        No bytes, not an image, damaged or cut off, more than one frame, no pixels or more than
        `MAX_PIXELS`, or 32-bit or float values, whose range is unknown.
    """
    with _quiet(), _grey(content, name) as grey:
        return grey


def decode_file(path: Path) -> np.ndarray:
    """Decode an image file that is in no data set: uint8 (height, width), see `decode`.

    Raises
    ------
    UnreadableImage
        As for `decode`, and what is no regular file, cannot be read or is too large.
    """
    return decode(_read(Path(), str(path)), str(path))


def load_images(
    dataset: Dataset,
    size: int,
    progress: Callable[[int, int], None] | None = None,
    into: np.ndarray | None = None,
) -> np.ndarray:
    """Load all images, resized: uint8 (N, size, size, 1), in the order of the table.

    Resized with Pillow's bilinear filter, which widens with the reduction: it averages over all
    pixels (no aliasing), never leaves the range of the values as Lanczos and cubic filters do,
    and serves enlarging as well, which a box does not. An image that is not square is squashed.

    Parameters
    ----------
    dataset
        The opened data set.
    size
        Pixels along each side.
    progress
        Called with (images done, images in all) after each image.
    into
        Array of that shape that takes the images, as one on disk may; None makes one.

    Raises
    ------
    UnreadableImages
        Names every image that cannot be read, with its reason.
    """

    def load(path: str) -> np.ndarray:
        with _grey(_read(dataset.root, path), path) as grey:
            resized = Image.fromarray(grey).resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(resized)

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
    """Decode each image once and work on it; go on past those that cannot be read.

    Parameters
    ----------
    dataset
        The opened data set.
    work
        Called in threads with the grey values of one image, uint8 (height, width), see `decode`.
    progress
        Called with (images done, images in all) after each image.
    take
        Takes what ``work`` returned for each readable image, in the order of the table, which is
        then not kept; None keeps it in a list.

    Returns
    -------
    What ``work`` returned for each readable image, in the order of the table, and the reason for
    each path that cannot be read.
    """

    def decoded(path: str):
        with _grey(_read(dataset.root, path), path) as grey:
            return work(grey)

    results = []
    take = take or results.append
    unreadable = _attempt_each(
        dataset.table["path"], decoded, lambda _, result: take(result), progress
    )
    return results, dict(unreadable)


def load_masks(dataset: Dataset, size: int) -> np.ndarray:
    """Load the lung masks: bool (N, size, size); all False in the rows without a mask.

    Inside is what exceeds half of the mask's own maximum (0/1 as well as 0/255), and, once
    resized as the images are, every pixel covered by half or more.

    Raises
    ------
    UnreadableImages
        Names every mask that cannot be read, with its reason.
    """

    def load(path: str) -> np.ndarray:
        with _grey(_read(dataset.root, path), path) as grey:
            inside = Image.fromarray(np.uint8(255) * (grey > grey.max() / 2))
        return np.asarray(inside.resize((size, size), Image.Resampling.BILINEAR)) >= 128

    masks = np.zeros((len(dataset.table), size, size), bool)
    rows = np.flatnonzero(dataset.table["mask"] != "")
    for row, mask in zip(rows, _for_each(dataset.table["mask"].iloc[rows], load), strict=True):
        masks[row] = mask
    return masks


def image_sizes(dataset: Dataset) -> pd.DataFrame:
    """Table of each image as it is stored: width, height (pixels), mode (Pillow's) and bytes.

    In the order of the data set's table; from the headers only, without decoding.

    Raises
    ------
    UnreadableImages
        Names every image whose header cannot be read, with its reason.
    """

    def measure(image: Image.Image, content: bytes, path: str) -> tuple[int, int, str, int]:
        return image.width, image.height, image.mode, len(content)

    return pd.DataFrame(each_header(dataset, measure), columns=["width", "height", "mode", "bytes"])


def each_header(dataset: Dataset, work: Callable[[Image.Image, bytes, str], object]) -> list:
    """Open each image file without decoding its pixels; what ``work`` returned for each.

    In the order of the data set's table.

    Parameters
    ----------
    work
        Called in threads with the image as Pillow opened it, all bytes of its file, and its path.

    Raises
    ------
    UnreadableImages
        Names every image whose header cannot be read, with its reason.
    """

    def opened(path: str):
        content = _read(dataset.root, path)
        return work(_header(content, path), content, path)

    return _for_each(dataset.table["path"], opened)


def _read(root: Root, name: str) -> bytes:
    """All bytes of a file under the root, at most `MAX_FILE_BYTES`."""
    file = root.joinpath(name)
    if not file.is_file():
        raise UnreadableImage(name, "no regular file (a broken link or a device)")
    try:
        with file.open("rb") as stream:
            # The limit holds for what comes out, whatever an archive declares; in pieces, as
            # zipfile unpacks all that is asked for before it looks at what the member declared.
            content = bytearray()
            while len(content) <= MAX_FILE_BYTES and (piece := stream.read(PIECE)):
                content += piece
    except Exception as error:  # zipfile raises many kinds on damaged members
        raise UnreadableImage(name, f"cannot be read ({_reason(error)})") from None
    if len(content) > MAX_FILE_BYTES:
        raise UnreadableImage(name, f"larger than {MAX_FILE_BYTES // 2**20} MiB")
    return bytes(content)


def _header(content: bytes, name: str) -> Image.Image:
    """Image of one frame and a sane size, not yet decoded."""
    if not content:
        raise UnreadableImage(name, "empty file (zero bytes)")
    giant = UnreadableImage(name, f"more than {MAX_PIXELS // 10**6} million pixels")
    try:
        image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise giant
        frames = getattr(image, "n_frames", 1)
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError:
        kinds = ", ".join(IMAGE_FORMATS)
        reason = f"not an image of the kinds {kinds}, or its header is damaged or states no pixels"
        raise UnreadableImage(name, reason) from None
    except Image.DecompressionBombError:
        raise giant from None
    except Exception as error:  # Pillow's parsers raise whatever damaged bytes lead them to
        raise UnreadableImage(name, f"damaged or cut off ({_reason(error)})") from None
    if frames != 1:
        raise UnreadableImage(name, f"animated or of many pages: {frames} frames, one is allowed")
    return image


@contextmanager
def _grey(content: bytes, name: str) -> Iterator[np.ndarray]:
    """Grey values, see `decode`; of large images one at a time, until the work on them is done.

    64 million pixels take a third of a gigabyte while they are converted.
    """
    image = _header(content, name)
    with _one_large_image if image.width * image.height > LARGE else nullcontext():
        grey = _converted(image, name)
        del image  # what it takes is free for the work
        yield grey


def _converted(image: Image.Image, name: str) -> np.ndarray:
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # a copy would lose a TIFF's tags
        if image.mode not in ("I", "F"):
            grey = np.empty((image.height, image.width), np.uint8)
            levels = _levels_of_16_bits(image) if image.mode.startswith("I;16") else None
            for top in range(0, image.height, BAND):
                rows = image.crop((0, top, image.width, min(top + BAND, image.height)))
                grey[top : top + BAND] = (
                    _luminance(rows) if levels is None else levels[np.asarray(rows, np.uint16)]
                )
            return grey
    except Exception as error:  # as in _header
        raise UnreadableImage(name, f"damaged or cut off ({_reason(error)})") from None
    raise UnreadableImage(name, "32-bit or float grey values, whose range is unknown")


def _luminance(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("L")
    colours = image if image.mode == "RGBA" else image.convert("RGBA")
    # Over black, a pixel's luminance is its own times its opacity.
    return ImageChops.multiply(colours.convert("L"), colours.getchannel("A"))


def _levels_of_16_bits(image: Image.Image) -> np.ndarray:
    """Grey level of each 16-bit value, uint8 (65536,)."""
    tags = getattr(image, "tag_v2", {})  # only a TIFF has them
    highest = 2 ** tags.get(258, (16,))[0] - 1  # BitsPerSample: 16, or 12 in 16
    values = np.minimum(np.arange(2**16), highest)
    if tags.get(262) == 0:  # PhotometricInterpretation: white is zero, which Pillow leaves so
        values = highest - values
    levels = ((values * 255 + highest // 2) // highest).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None:
        levels[transparent] = 0
    return levels


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings back: each leads to a refusal of ours or does not matter.

    The filter is the process's, so it is set around a pool of threads, never inside one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
    """Give (row, result) of each name, computed in threads; return (name, reason) of the others.

    Decoding and unpacking leave Python's lock.
    """

    def attempt(name: str):
        try:
            return work(name)
        except UnreadableImage as error:
            return error

    names = list(names)
    unreadable = []
    with _quiet(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for row, result in enumerate(pool.map(attempt, names)):
            if isinstance(result, UnreadableImage):
                unreadable.append((result.name, result.reason))
            else:
                take(row, result)
            if progress is not None:
                progress(row + 1, len(names))
    return unreadable


# ---- words for messages -------------------------------------------------------------------------


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)


def listed(items: Iterable[object], separator: str = ", ", limit: int = LISTED) -> str:
    """Items for a message, the first few of them by name and the others counted."""
    items = [str(item) for item in items]
    more = [f"… and {len(items) - limit:,} more"] if len(items) > limit else []
    return separator.join([*items[:limit], *more])
