"""The images of a folder or a zip archive: one table of path, label and split, and the pixels.

An archive is read where it is and never unpacked. Images are decoded to 8-bit grey and resized in
one way for everything. What cannot be used is refused with one clear `DataError`.
"""

import hashlib
import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from covid_project.files import fingerprint, listed, same_name, write_csv
from covid_project.images import IMAGE_SUFFIXES, DataError, decode, open_image, resize

CLASSES = ("NORMAL", "COVID")  # a label is the index here: COVID = 1 is the positive class
SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MAX_FILE_BYTES = 256 * 2**20
HELD_OUT = 0.1  # fraction of data without a split for validation, and as much for the test
FEWEST = 10  # different images of a class without which no split is made
PHANTOM_MARK = "phantoms.json"  # a file of this name says that the images are drawn

Root = Path | zipfile.Path


@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set, opened.

    Attributes
    ----------
    table : pd.DataFrame
        One row per image, sorted by split (in the order of `SPLITS`), label and path. Columns:
        ``path`` (relative to the root, with "/"), ``label`` (index in ``classes``), ``split``.
    root : Path or zipfile.Path
        Folder, or place in an archive, to which the paths are relative.
    classes : tuple of str
        Names of the labels.
    fingerprint : str
        16 hexadecimal digits over every path, label, split and content: the same for a folder
        and for its archive.
    left_out : int
        Image files that belong to none of the classes, such as lung masks.
    """

    table: pd.DataFrame
    root: Root
    classes: tuple[str, ...]
    fingerprint: str
    left_out: int = 0

    @property
    def is_phantom(self) -> bool:
        """Whether the images are drawn, not of patients.

        Returns
        -------
        bool
        """
        return self.root.joinpath(PHANTOM_MARK).is_file()

    def rows(self, *splits: str) -> np.ndarray:
        """Find the rows of some splits in the table.

        Parameters
        ----------
        *splits : str
            Any of `SPLITS`.

        Returns
        -------
        np.ndarray, int64 (N,)
            Row numbers, rising.

        Raises
        ------
        DataError
            Another name than those of `SPLITS`.
        """
        unknown = [split for split in splits if split not in SPLITS]
        if unknown:
            raise DataError(f"no split {', '.join(unknown)}: there are {', '.join(SPLITS)}")
        return np.flatnonzero(self.table["split"].isin(splits))


def open_dataset(
    path: str | Path,
    *,
    classes: Sequence[str] = CLASSES,
    splits_file: str | Path | None = None,
    seed: int = 0,
    allow_shared_files: bool = False,
) -> Dataset:
    """Open a folder or a zip archive of images in one of the known `LAYOUTS`.

    Parameters
    ----------
    path : str or Path
        ``covid_xray.zip``, its unpacked folder, or Kaggle's ``COVID-19_Radiography_Dataset``,
        inside any number of outer folders. The case of letters does not matter.
    classes : sequence of str
        Names of the class folders, in the order of their labels.
    splits_file : str or Path, optional
        CSV file (path, label, split, fingerprint) for data that come without a split. It is written
        where it is missing and used where it exists, so that data are split only once.
    seed : int
        Seed of this split, 80 : 10 : 10 in each class.
    allow_shared_files : bool
        Accept the same file in two splits.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        No such path or archive; a class, a split, or a class in a split without images; the same
        file in two splits; a splits file of other data.

    Examples
    --------
    >>> open_dataset("covid_xray.zip").table.columns.tolist()
    ['path', 'label', 'split']
    """
    path = Path(path).expanduser()
    root, names = open_root(path)
    images = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    outer, table = _find_layout(images, tuple(classes), path)
    root = root.joinpath(outer) if outer else root
    hashes = file_hashes(root, table["path"])
    if (table["split"] == "").all():
        table["split"] = _split_once(table, hashes, splits_file, seed)
    elif not allow_shared_files:
        _refuse_shared_files(table, hashes)
    identity = table_fingerprint(table, hashes)
    order = table["split"].map(SPLITS.index)
    table = table.iloc[np.lexsort((table["path"], table["label"], order))].reset_index(drop=True)
    return Dataset(table, root, tuple(classes), identity, len(images) - len(table))


# ---- layouts ------------------------------------------------------------------------------------
# A layout takes the folders of an image and returns the outer ones, the class folder and the split
# ("" for none), or None where it does not fit. A further layout is one more function here.


def _split_folders(folders: list[str]) -> tuple[list[str], str, str] | None:
    """The course's layout: ``train|val|test / COVID|NORMAL / image``."""
    if len(folders) < 2 or folders[-2].casefold() not in SPLIT_FOLDERS:
        return None
    return folders[:-2], folders[-1], SPLIT_FOLDERS[folders[-2].casefold()]


def _class_folders(folders: list[str]) -> tuple[list[str], str, str] | None:
    """Kaggle's layout: ``COVID|Normal / images / image``, or without the folder ``images``."""
    folders = folders[:-1] if folders and folders[-1].casefold() == "images" else folders
    return (folders[:-1], folders[-1], "") if folders else None


LAYOUTS = [_split_folders, _class_folders]


def _find_layout(
    images: list[str], classes: tuple[str, ...], path: Path
) -> tuple[str, pd.DataFrame]:
    """Return the outer folder and a table of path, label and split ("" for none).

    The first layout that fits any image is taken. Of several places that fit, the shallowest
    counts: archives often hold a second copy of themselves further inside.
    """
    tally = Counter(str(PurePosixPath(name).parent) for name in images)
    found = listed(f"{folder} ({count})" for folder, count in sorted(tally.items()))
    explained = (
        f"Found in {path}, with their numbers of images: {found or 'no images at all'}. Allowed: "
        f"train|val|test / {'|'.join(classes)} / image, or {'|'.join(classes)} / images / image"
    )
    for layout in LAYOUTS:
        table = _arranged(images, classes, layout)
        if len(table):
            break
    else:
        raise DataError(f"no class folder {' or '.join(classes)} with images. {explained}")
    depth = table["outer"].map(lambda outer: len(outer.split("/")) if outer else 0)
    table = table[depth == depth.min()]
    outer = sorted(table["outer"].unique())
    if len(outer) > 1:
        raise DataError(f"several data sets side by side: {listed(outer)}; give one. {explained}")
    _refuse_gaps(table, classes, explained)
    start = len(outer[0]) + 1 if outer[0] else 0
    table = table.sort_values("path").reset_index(drop=True)
    return outer[0], table.assign(path=table["path"].str[start:]).drop(columns="outer")


def _arranged(images: list[str], classes: tuple[str, ...], layout: Callable) -> pd.DataFrame:
    labels = {same_name(name): label for label, name in enumerate(classes)}
    rows = []
    for name in images:
        place = layout(name.split("/")[:-1])
        if place and same_name(place[1]) in labels:
            outer, folder, split = place
            rows.append(("/".join(outer), name, labels[same_name(folder)], split))
    return pd.DataFrame(rows, columns=["outer", "path", "label", "split"])


def _refuse_gaps(table: pd.DataFrame, classes: tuple[str, ...], explained: str) -> None:
    """Refuse missing classes, missing splits, and classes that are missing in a split."""
    splits = SPLITS if table["split"].any() else ("",)
    for split in splits:
        here = table.loc[table["split"] == split, "label"]
        missing = [name for label, name in enumerate(classes) if label not in set(here)]
        if missing:
            where = f"split {split}: " if split else ""
            raise DataError(f"{where}no images of {' or '.join(missing)}. {explained}")


# ---- files --------------------------------------------------------------------------------------


def open_root(path: Path, *, hidden: bool = False) -> tuple[Root, list[str]]:
    """Open a folder or a zip archive, and list all files under it.

    Parameters
    ----------
    path : Path
    hidden : bool
        List hidden files too, also those that macOS adds.

    Returns
    -------
    root : Path or zipfile.Path
    names : list of str
        Relative to the root, with "/", sorted.

    Raises
    ------
    DataError
        No such path; a folder that cannot be listed; a damaged or encrypted archive.
    """
    if not os.path.exists(path):
        raise DataError(f"no such path: {path}; give a folder of images or a zip archive of one")
    if path.is_dir():
        root, names = path, [file.relative_to(path).as_posix() for file in _files_under(path)]
    else:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise DataError(
                f"{path} cannot be read as a zip archive ({error}). Give a folder or a zip "
                "archive; if it is one, it is damaged: download or copy it again"
            ) from None
        members = [member for member in archive.infolist() if not member.is_dir()]
        if any(member.flag_bits & 0x1 for member in members):
            raise DataError(f"{path} is encrypted: unpack it and give the folder")
        root, names = zipfile.Path(archive), [member.filename for member in members]
    return root, sorted(name for name in names if hidden or not is_hidden(name))


def is_hidden(name: str) -> bool:
    """Tell whether a path, or a folder in it, is hidden.

    Parameters
    ----------
    name : str
        Relative, with "/".

    Returns
    -------
    bool
    """
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _files_under(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError):
        raise DataError(f"folder {error.filename} cannot be listed: {error.strerror}")

    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        # A link to a folder around itself would never end.
        here = os.path.realpath(place)
        for name in [name for name in folders if os.path.islink(os.path.join(place, name))]:
            if f"{here}/".startswith(f"{os.path.realpath(os.path.join(place, name))}/"):
                folders.remove(name)
        yield from (Path(place, file) for file in files)


def read_bytes(root: Root, name: str) -> bytes:
    """Read a file under the root.

    Parameters
    ----------
    root : Path or zipfile.Path
    name : str
        Relative to the root.

    Returns
    -------
    bytes

    Raises
    ------
    DataError
        The file cannot be read, or is larger than 256 MiB.
    """
    file = root.joinpath(name)
    if not file.is_file():
        raise DataError(f"{name}: no regular file (a broken link or a device)")
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except Exception as error:  # a damaged archive raises errors of many kinds
        raise DataError(f"{name}: cannot be read ({error})") from None
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"{name}: larger than {MAX_FILE_BYTES // 2**20} MiB")
    return content


def file_hashes(root: Root, paths: Iterable[str]) -> pd.Series:
    """Compute the SHA-256 of each file.

    Parameters
    ----------
    root : Path or zipfile.Path
    paths : iterable of str
        Relative to the root.

    Returns
    -------
    pd.Series, (N,) of str
        For an empty or unreadable file its path: loading the images names all of them at once.
    """

    def digest(path: str) -> str:
        try:
            content = read_bytes(root, path)
        except DataError:
            content = b""
        return hashlib.sha256(content).hexdigest() if content else path

    return pd.Series([digest(path) for path in paths], dtype=str)


def table_fingerprint(table: pd.DataFrame, hashes: pd.Series) -> str:
    """Compute the fingerprint of a data set.

    Parameters
    ----------
    table : pd.DataFrame
        Columns path, label and split, sorted by path.
    hashes : pd.Series, (N,) of str
        Content of each file, from `file_hashes`.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    rows = zip(table["path"], table["label"], table["split"], hashes, strict=True)
    return fingerprint(*(str(value) for row in rows for value in row))


def _refuse_shared_files(table: pd.DataFrame, hashes: pd.Series) -> None:
    splits = table["split"].groupby(hashes).transform("nunique")
    shared = table[splits > 1]
    if len(shared):
        same = [" = ".join(files) for _, files in shared["path"].groupby(hashes[shared.index])]
        raise DataError(
            f"{len(same)} file(s) are in more than one split, so that the test would contain what "
            "was learned by heart. Take them out of all splits but one, or allow them with the "
            f"setting allow_shared_files:\n{listed(same, chr(10))}"
        )


# ---- splits -------------------------------------------------------------------------------------


def _split_once(
    table: pd.DataFrame, hashes: pd.Series, splits_file: str | Path | None, seed: int
) -> pd.Series:
    """Return the split of each image, from the splits file where there is one."""
    if splits_file is None or not Path(splits_file).is_file():
        table = table.assign(split=_stratified_split(table["label"], hashes, seed))
        if splits_file is not None:
            identity = table_fingerprint(table, hashes)
            write_csv(splits_file, table.assign(fingerprint=identity))
        return table["split"]
    try:
        written = pd.read_csv(splits_file, dtype=str, keep_default_na=False)
        splits = table["path"].map(dict(zip(written["path"], written["split"], strict=True)))
        identity = table_fingerprint(table.assign(split=splits), hashes)
        fits = not splits.isna().any() and set(written["fingerprint"]) == {identity}
    except (ValueError, KeyError):  # not a table, or another one
        fits = False
    if not fits:
        raise DataError(
            f"{splits_file} is the split of other data, or was changed. Give the data that it was "
            "made for, choose another results folder, or delete it to have a new split made"
        )
    return splits


def _stratified_split(labels: pd.Series, contents: pd.Series, seed: int) -> np.ndarray:
    """Split images 80 : 10 : 10 within each class; copies (equal contents) stay together."""
    from sklearn.model_selection import train_test_split  # slow to import, and seldom needed

    unique = labels.groupby(contents).max()  # one label for each different file
    fewest = unique.value_counts().min()
    if fewest < FEWEST or unique.nunique() < labels.nunique():
        raise DataError(
            f"the data come without a split, and a class has only {fewest} different image(s); at "
            f"least {FEWEST} are needed, or folders {', '.join(SPLITS)}"
        )
    _, rest = train_test_split(unique, test_size=2 * HELD_OUT, stratify=unique, random_state=seed)
    val, test = train_test_split(rest, test_size=0.5, stratify=rest, random_state=seed)
    split = dict.fromkeys(val.index, "val") | dict.fromkeys(test.index, "test")
    return np.array([split.get(content, "train") for content in contents])


class ImageFiles:
    """Image files as an array uint8 (N, size, size, 1) whose rows are decoded when asked for.

    Parameters
    ----------
    dataset : Dataset
    rows : np.ndarray, int64 (N,)
        Row numbers in the data set's table.
    size : int
        Pixels along each side.

    Examples
    --------
    >>> files = ImageFiles(run.dataset, run.dataset.rows("train"), 128)
    >>> files[[0, 5]].shape
    (2, 128, 128, 1)
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, dataset: Dataset, rows: np.ndarray, size: int):
        self.root, self.paths = dataset.root, dataset.table["path"].to_numpy()[rows]
        self.shape = (len(self.paths), size, size, 1)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice | Sequence[int]) -> np.ndarray:
        """Decode and resize some images; one `DataError` names all that cannot be read."""
        shape = self.shape[1:3]

        def load(path: str) -> np.ndarray | DataError:
            try:
                return resize(decode(read_bytes(self.root, path), path), shape)
            except DataError as error:
                return error

        with warnings.catch_warnings(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            warnings.simplefilter("ignore")  # each leads to an error of ours or does not matter
            images = list(pool.map(load, self.paths[rows]))
        errors = [str(image) for image in images if isinstance(image, DataError)]
        if errors:
            raise DataError(
                f"{len(errors)} image(s) cannot be read; replace or remove them:\n"
                + listed(errors, "\n")
            )
        return np.array(images, np.uint8).reshape(-1, *self.shape[1:])


def image_sizes(dataset: Dataset) -> pd.DataFrame:
    """Read the size of each image as it is stored, from the files' headers.

    Parameters
    ----------
    dataset : Dataset

    Returns
    -------
    pd.DataFrame
        Columns width and height (pixels) and mode (Pillow's), in the order of the data set's table.

    Examples
    --------
    >>> image_sizes(run.dataset)["mode"].unique().tolist()
    ['L']
    """
    rows = []
    for path in dataset.table["path"]:
        image = open_image(read_bytes(dataset.root, path), path)
        rows.append((image.width, image.height, image.mode))
    return pd.DataFrame(rows, columns=["width", "height", "mode"])
