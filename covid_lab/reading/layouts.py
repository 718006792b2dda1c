"""Class, split and patient of images from the folders that they are in."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePosixPath

import pandas as pd

from covid_lab.reading.roots import printable
from covid_project.data import CLASSES, SPLIT_FOLDERS, DataError, listed, same_name

MASKS = re.compile(r"(\w+[ _-])?(masks?|segmentations?|annotations?)([ _-]?\w{0,8})?")
CONTAINERS = re.compile(
    r"(images?|imgs?|pictures?|png|jpe?g|dicom|dcm|data|files)([ _-]?\d+)?|study\d+|series\d+"
)
MOST_CLASSES = 20  # most folder names on one level that are taken for classes


@dataclass(frozen=True)
class Placed:
    """Place of an image among the folders.

    Attributes
    ----------
    name : str
        Path under the root.
    outer : str
        Folders around the data set; "" for none.
    label : str
        Class folder, in its own spelling.
    split : str
        One of `covid_project.data.SPLITS`; "" for none.
    inner : str
        Folder that is neither class, split nor container: perhaps the patient; "" for none.
    """

    name: str
    outer: str
    label: str
    split: str
    inner: str


def masks_among(names: Sequence[str]) -> set[str]:
    """Find masks: images in a folder for masks inside the data, or named ``…_mask``.

    Parameters
    ----------
    names : sequence of str
        Paths of images.

    Returns
    -------
    set of str
        Paths of the masks. Empty where all images are masks: then they are the data.

    Examples
    --------
    >>> sorted(masks_among(["COVID/images/1.png", "COVID/masks/1.png", "COVID/images/2_mask.png"]))
    ['COVID/images/2_mask.png', 'COVID/masks/1.png']
    """
    folders = [name.split("/")[:-1] for name in names]
    levels = takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    around = len(list(levels))  # folders around all images carry no information
    masks = {
        name
        for name, parts in zip(names, folders, strict=True)
        if PurePosixPath(name).stem.casefold().endswith("_mask")
        or any(MASKS.fullmatch(part.casefold()) for part in parts[around:])
    }
    return masks if len(masks) < len(names) else set()


def place(names: Sequence[str], classes: Sequence[str] | None) -> tuple[list[Placed], list[str]]:
    """Find the class folder of each image.

    Parameters
    ----------
    names : sequence of str
        Paths of images under a root, without masks.
    classes : sequence of str, optional
        Class folders; None finds them, see `find_classes`.

    Returns
    -------
    placed : list of Placed
        The images that are in a class folder.
    classes : list of str
        The class folders, given or found.

    Raises
    ------
    DataError
        No classes are given, and the folders are ambiguous.

    Examples
    --------
    >>> placed, classes = place(["COVID/1.png", "NORMAL/2.png"], None)
    >>> [one.name for one in placed]
    ['COVID/1.png', 'NORMAL/2.png']
    """
    folders = {name: name.split("/")[:-1] for name in names}
    found = classes is None
    if found:
        classes = find_classes(folders.values())
    wanted = {same_name(name) for name in classes}
    placed = []
    for name, parts in folders.items():
        at = [k for k, part in enumerate(parts) if same_name(part) in wanted]
        if not at:
            continue
        number = at[-1]
        splits = [k for k, part in enumerate(parts) if _split(part) and k != number]
        start = min([number, *splits[-1:]])
        inner = [
            part
            for k, part in enumerate(parts)
            if k > start
            and k != number
            and k not in splits
            and not CONTAINERS.fullmatch(part.casefold())
        ]
        placed.append(
            Placed(
                name,
                "/".join(parts[:start]),
                parts[number],
                _split(parts[splits[-1]]) if splits else "",
                inner[0] if inner else "",
            )
        )
    if found:  # a folder around a second copy is on the level of the classes, but is not a class
        used = {same_name(image.label) for image in placed}
        classes = [name for name in classes if same_name(name) in used]
    return placed, list(classes)


def _split(folder: str) -> str:
    return SPLIT_FOLDERS.get(folder.casefold(), "")


def find_classes(folders: Sequence[Sequence[str]]) -> list[str]:
    """Find the class folders among the folders of images.

    They are the course's classes where both are there. Otherwise they are the folders directly
    inside the splits. Where these contain classes themselves, or there are no splits, they are the
    level of folders with the fewest different names, at least two.

    Parameters
    ----------
    folders : sequence of sequence of str
        For each image the folders that it is in, from the outermost.

    Returns
    -------
    list of str
        Names in alphabetical order; empty where there is no folder.

    Raises
    ------
    DataError
        Two levels of folders have equally many names.

    Examples
    --------
    >>> find_classes([["train", "cat"], ["train", "dog"], ["test", "dog"]])
    ['cat', 'dog']
    """
    folders = [list(parts) for parts in folders]
    spelled = {same_name(part): part for parts in folders for part in parts}
    if all(same_name(name) in spelled for name in CLASSES):
        return list(CLASSES)
    plain = [
        [p for p in parts if not _split(p) and not CONTAINERS.fullmatch(p.casefold())]
        for parts in folders
    ]
    plain = [parts for parts in plain if parts]
    if not plain:
        return []
    depth = max(len(parts) for parts in plain)
    levels = [{parts[k] for parts in plain if len(parts) > k} for k in range(depth)]
    # A level that only a few images have is not considered.
    covered = [sum(len(parts) > k for parts in plain) / len(plain) for k in range(depth)]
    counts = {
        k: len(names)
        for k, names in enumerate(levels)
        if 2 <= len(names) <= MOST_CLASSES and covered[k] > 0.5
    }
    if not counts:
        names = levels[0] if len(levels[0]) == 1 else set()
        return sorted(names)
    fewest = min(counts.values())
    best = [k for k, count in counts.items() if count == fewest]
    if len(best) > 1 and _crossed(plain, best[0], best[1]):
        choices = " or ".join(f"({listed(sorted(levels[k]), limit=5)})" for k in best)
        raise DataError(f"the classes may be the folders {choices}: name them with --classes A,B")
    return sorted(levels[best[0]])


def _crossed(plain: list[list[str]], first: int, second: int) -> bool:
    """Tell whether names of one level are found under several names of the other."""
    pairs = {(parts[first], parts[second]) for parts in plain if len(parts) > second}
    under = Counter(inner for _, inner in pairs)
    return max(under.values(), default=0) > 1


def in_words(names: Sequence[str]) -> str:
    """Count images by folder, in words.

    Parameters
    ----------
    names : sequence of str
        Paths of images.

    Returns
    -------
    str
        Such as "test/COVID (100), test/NORMAL (100)".

    Examples
    --------
    >>> in_words(["COVID/1.png", "COVID/2.png", "NORMAL/1.png"])
    'COVID (2), NORMAL (1)'
    """
    tally = Counter(str(PurePosixPath(name).parent) for name in names)
    found = listed([f"{printable(folder)} ({n})" for folder, n in sorted(tally.items())])
    return found or "no images at all"


def one_place(
    table: pd.DataFrame, explained: str
) -> tuple[str, pd.DataFrame, pd.DataFrame, pd.Series | None]:
    """Choose one data set among the places where class folders are.

    Parameters
    ----------
    table : pd.DataFrame, N rows
        Columns of `Placed`.
    explained : str
        What was found, for messages.

    Returns
    -------
    outer : str
        Folders around the data set.
    table : pd.DataFrame
        The rows that belong to it.
    copies : pd.DataFrame
        Rows of a second copy further inside, which some archives have.
    patients : pd.Series of str, or None
        Patient of each row, where each place is a patient with the classes inside.

    Raises
    ------
    DataError
        There are several data sets side by side.
    """
    none = table.iloc[:0]
    places = sorted(table["outer"].unique())
    if len(places) == 1:
        return places[0], table, none, None
    depth = {outer: len(outer.split("/")) if outer else 0 for outer in places}
    shallowest = [outer for outer in places if depth[outer] == min(depth.values())]
    if len(shallowest) == 1:
        outer = shallowest[0]
        ours, others = table[table["outer"] == outer], table[table["outer"] != outer]
        inside = set(_relative(ours, "outer"))
        copied = pd.Series(_relative(others, "outer"), index=others.index).isin(inside)
        return outer, ours, others[copied], None
    labels = table.groupby("outer")["label"].agg(lambda names: len({same_name(n) for n in names}))
    if len(set(depth.values())) == 1 and (len(places) >= 5 or (labels == 1).all()):
        common = PurePosixPath(places[0]).parent
        if all(PurePosixPath(outer).parent == common for outer in places):
            outer = "" if str(common) == "." else str(common)
            return outer, table, none, table["outer"].map(lambda o: PurePosixPath(o).name)
    raise DataError(f"several data sets side by side: {listed(places)}; give one. {explained}")


def _relative(table: pd.DataFrame, column: str) -> list[str]:
    pairs = zip(table["name"], table[column], strict=True)
    return [name[len(outer) + 1 :] if outer else name for name, outer in pairs]
