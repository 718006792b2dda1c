"""Labels, splits and patients of images from a table: CSV, TSV or a spreadsheet.

Tables of NIH ChestX-ray14 and CheXpert are recognised by their columns.
"""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pandas as pd

from covid_lab.reading.layouts import MOST_CLASSES
from covid_project.data import (
    CLASSES,
    SPLIT_FOLDERS,
    DataError,
    Root,
    listed,
    read_bytes,
    same_name,
)

SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx")
ROLES = ("path", "label", "patient", "split")

# Usual names of the columns, without letter case, blanks, "_" and "-"; the likeliest first.
NAMES = {
    "path": (
        *("path", "filepath", "imagepath", "imageindex", "filename", "file", "imagename"),
        *("imagefile", "image", "imageid", "dicomid", "img", "name", "id"),
    ),
    "label": (
        *("label", "class", "findinglabels", "diagnosis", "finding", "category", "target"),
        *("classname", "labels", "y"),
    ),
    "patient": ("patient", "patientid", "subject", "subjectid", "person", "case", "caseid"),
    "split": ("split", "set", "subset", "partition", "fold"),
}
CHEXPERT = ("Path", "Frontal/Lateral")
NIH = ("Image Index", "Finding Labels")
UNCERTAIN = "-1"  # in CheXpert's tables
YES, NO = ("1", "true", "yes"), ("", "0", "false", "no")


@dataclass(frozen=True, eq=False)
class Manifest:
    """Images with the labels of a table.

    Attributes
    ----------
    table : pd.DataFrame, N rows
        One row per image that is used: name (path under the root), label (name of a class), split
        and patient ("" where the table has none).
    classes : tuple of str
        Names of the classes, in the order of their labels.
    passed_over : dict of str to list of str
        Reason → images that are in the table and not used.
    notes : list of str
        What was read, in words.
    """

    table: pd.DataFrame
    classes: tuple[str, ...]
    passed_over: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_table(content: bytes, name: str) -> pd.DataFrame:
    r"""Read a table as text, whatever program wrote it.

    Columns are separated by comma, semicolon, tab or "|". The encoding is UTF-8, UTF-16 or
    Windows-1252, with or without a byte order mark. Blanks around names and values, empty rows and
    empty columns are dropped.

    Parameters
    ----------
    content : bytes
        The whole file.
    name : str
        Name of the file, for messages.

    Returns
    -------
    pd.DataFrame of str
        "" where a cell is empty.

    Raises
    ------
    DataError
        The content is not a table with at least one row.

    Examples
    --------
    >>> read_table(b"path; label\n1.png; COVID\n", "labels.csv").to_dict("list")
    {'path': ['1.png'], 'label': ['COVID']}
    """
    try:
        if content.startswith(b"PK") or name.lower().endswith(".xlsx"):
            table = pd.read_excel(io.BytesIO(content), dtype=str)
        else:
            text = _text(content)
            separator = _separator(text)
            table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, skipinitialspace=True)
    except ImportError:
        raise DataError(
            f"{name} is a spreadsheet: pip install openpyxl, or save it as CSV"
        ) from None
    except Exception as error:  # pandas' parsers raise errors of many kinds
        raise DataError(f"{name} cannot be read as a table ({error})") from None
    table = table.rename(columns=lambda column: str(column).strip())
    table = table.loc[:, ~table.columns.str.fullmatch(r"Unnamed: \d+|") | table.notna().any()]
    table = table.fillna("").apply(lambda column: column.str.strip())
    table = table[(table != "").any(axis=1)].reset_index(drop=True)
    if not len(table):
        raise DataError(f"{name} is a table without rows")
    return table


def _text(content: bytes) -> str:
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
    encoding = next((e for mark, e in marks.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _separator(text: str) -> str:
    """Return the separator of the columns: the sign that is most frequent in the header."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    row = next(csv.reader([header], delimiter="\0"), [""])[0]
    return max(",;\t|", key=row.count)


def columns_of(
    table: pd.DataFrame, name: str, chosen: Mapping[str, str] | None, needed: Sequence[str]
) -> dict[str, str]:
    """Find the columns of a table by their roles.

    Parameters
    ----------
    table : pd.DataFrame of str
        The table, see `read_table`.
    name : str
        Name of the table, for messages.
    chosen : mapping of str to str, or None
        Role → column, where the user names it; None: the user cannot.
    needed : sequence of str
        Roles that must be found.

    Returns
    -------
    dict of str to str
        Role → column, for the roles that are found.

    Raises
    ------
    DataError
        A chosen column is missing, a role is unknown, or a needed role has no column.

    Examples
    --------
    >>> table = pd.DataFrame({"path": ["1.png"], "label": ["COVID"]})
    >>> columns_of(table, "labels.csv", {}, ["label"])
    {'path': 'path', 'label': 'label'}
    """
    plain = {re.sub(r"[\s_-]", "", column.casefold()): column for column in reversed(table.columns)}
    found = {}
    for role, column in (chosen or {}).items():
        if role not in ROLES:
            raise DataError(f"columns: {role!r} is none of {', '.join(ROLES)}")
        if column not in table:
            raise DataError(f"{name} has no column {column!r}. Found: {listed(table.columns)}")
        found[role] = column
    for role in ROLES:
        names = (plain[usual] for usual in NAMES[role] if usual in plain)
        taken = set(found.values())
        column = next((name for name in names if name not in taken), None)
        if role not in found and column:
            found[role] = column
    missing = [role for role in needed if role not in found]
    if missing:
        raise DataError(
            f"{name}: which column is the {' and the '.join(missing)}? Found: "
            f"{listed(table.columns)}. "
            + ("Rename it" if chosen is None else f"Name it: --columns {missing[0]}=COLUMN")
        )
    return found


# ---- joining with the images --------------------------------------------------------------------


def match_images(values: Sequence[str], names: Sequence[str]) -> list[str | None]:
    """Find the image that each entry of a table names.

    An entry may be a whole path, the end of a path, a file name, or a name without suffix, with
    slashes of either kind. It is matched where exactly one image fits.

    Parameters
    ----------
    values : sequence of str, (N,)
        Entries of the table.
    names : sequence of str
        Paths of the images.

    Returns
    -------
    list of str or None, (N,)
        Path of the image; None where none or several fit.

    Examples
    --------
    >>> match_images(["1", "COVID/1.png", "3.png"], ["COVID/1.png", "COVID/2.png"])
    ['COVID/1.png', 'COVID/1.png', None]
    """
    whole: dict[str, set[str]] = defaultdict(set)
    bare: dict[str, set[str]] = defaultdict(set)  # without suffix
    for name in names:
        parts = same_name(name).split("/")
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            whole[tail].add(name)
            bare[_without_suffix(tail)].add(name)
    found = []
    for value in values:
        parts = [p for p in same_name(value).replace("\\", "/").split("/") if p not in ("", ".")]
        hit = None
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            fits = whole.get(tail) or bare.get(tail) or bare.get(_without_suffix(tail)) or ()
            if len(fits) == 1:
                (hit,) = fits
            if fits:
                break
        found.append(hit)
    return found


def _without_suffix(name: str) -> str:
    path = PurePosixPath(name)
    return name[: -len(path.suffix)] if path.suffix else name


def find_tables(root: Root, names: Sequence[str]) -> list[str]:
    """Find tables of NIH ChestX-ray14 or CheXpert among the files, by their headers.

    Parameters
    ----------
    root : Path or zipfile.Path
        Folder or archive of the files.
    names : sequence of str
        Paths of all files.

    Returns
    -------
    list of str
        Paths of the tables.
    """
    known = []
    for name in names:
        if not name.lower().endswith((".csv", ".tsv")) or name.count("/") > 3:
            continue
        try:
            lines = read_bytes(root, name).splitlines()[:2]  # a table has at least one row
            columns = set(read_table(b"\n".join(lines), name))
        except DataError:
            continue
        if set(NIH) <= columns or set(CHEXPERT) <= columns:
            known.append(name)
    return known


def read_manifest(
    tables: Mapping[str, bytes],
    names: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    finding: str | None = None,
    tests: Sequence[str] = (),
) -> Manifest:
    """Read labels of images from one table, or from several with the same columns.

    Parameters
    ----------
    tables : mapping of str to bytes
        Name → content.
    names : sequence of str
        Paths of the images.
    classes : sequence of str, optional
        Values of the label column, in the order of their labels; None: all, or the course's.
    columns : mapping of str to str, optional
        Role (`ROLES`) → column, where its name is unusual.
    finding : str, optional
        For several findings per image: the positive class, against all other images. The name of a
        column of 0 and 1, or one of the values that the label column separates by "|".
    tests : sequence of str
        File names of the test split, as in NIH's list.

    Returns
    -------
    Manifest
        The images with their labels.

    Raises
    ------
    DataError
        Columns or findings are missing or ambiguous, entries fit no image, or labels contradict
        each other.

    Examples
    --------
    >>> table = pd.DataFrame({"path": ["1.png", "2.png"], "label": ["A", "B"]})
    >>> content = table.to_csv(index=False).encode()
    >>> read_manifest({"labels.csv": content}, ["1.png", "2.png"]).classes
    ('A', 'B')
    """
    name = listed(tables, limit=3)
    table = pd.concat([read_table(content, n) for n, content in tables.items()], ignore_index=True)
    table = table.fillna("")
    is_chexpert = set(CHEXPERT) <= set(table)
    by_column = finding in table if finding else False
    needed = ("path",) if by_column or is_chexpert else ("path", "label")
    roles = columns_of(table, name, columns or {}, needed)
    table = table.assign(name=match_images(table[roles["path"]], names))
    notes = [_matched(table, names, name, roles["path"])]
    table = table[table["name"].notna()].reset_index(drop=True)
    if finding or is_chexpert:
        labels, reasons, kinds = _one_finding(table, name, roles, finding)
    else:
        labels, reasons, kinds = _classes(table, name, roles, classes)
    table = table.assign(label=labels, reason=reasons)
    table = table.assign(
        split=_splits(table, roles, set(tests)), patient=_patients(table, roles, is_chexpert)
    )
    rows = table[["name", "label", "reason", "split", "patient"]].drop_duplicates()
    twice = rows.loc[rows["name"].duplicated(), "name"]
    if len(twice):
        raise DataError(f"{name} contradicts itself on {listed(twice.unique(), limit=5)}")
    passed_over: dict[str, list[str]] = defaultdict(list)
    for reason, image in rows.loc[rows["label"] == "", ["reason", "name"]].itertuples(index=False):
        passed_over[reason].append(image)
    rows = rows[rows["label"] != ""].drop(columns="reason").reset_index(drop=True)
    return Manifest(rows, kinds, dict(passed_over), notes)


def _matched(table: pd.DataFrame, names: Sequence[str], name: str, column: str) -> str:
    """Count the rows and images that match, in words; refuse where hardly any do."""
    rows, images = table["name"].notna(), table["name"].nunique()
    said = (
        f"{name}: {rows.sum():,} of {len(table):,} rows name an image, and {images:,} of "
        f"{len(names):,} images have a row"
    )
    if rows.mean() < 0.95 and images < 0.95 * len(names):
        lost = listed(table.loc[~rows, column], limit=3)
        unnamed = listed(sorted(set(names) - set(table["name"].dropna())), limit=3)
        raise DataError(
            f"{said}. Rows without an image: {lost}; images without a row: {unnamed}. Entries must "
            "be paths, ends of paths or file names of the images"
        )
    return said


def _one_finding(
    table: pd.DataFrame, name: str, roles: Mapping[str, str], finding: str | None
) -> tuple[list[str], list[str], tuple[str, ...]]:
    """Label each row by one finding against the rest."""
    uncertain = pd.Series(False, index=table.index)
    if finding in table:
        values = table[finding].map(_plain).str.casefold()
        positive, uncertain = values.isin(YES), values == UNCERTAIN
        strange = values[~values.isin([*YES, *NO, UNCERTAIN])]
        if len(strange):
            raise DataError(
                f"{name}, column {finding}: found {listed(strange.unique(), limit=5)}; allowed: 0 "
                "and 1, -1 for uncertain, or empty"
            )
    else:
        column = roles.get("label")
        every = table[column].map(_findings) if column else pd.Series([[]] * len(table))
        known = every.explode().value_counts()
        if finding not in known.index:
            marked = [c for c in table if set(table[c].map(_plain)) <= {*YES, *NO, UNCERTAIN}]
            counts = [f"{value} ({count:,})" for value, count in known.items()]
            raise DataError(
                f"{name} has several findings for an image: choose one against the rest with "
                f"--finding. Found: {listed(counts or marked)}"
                + (f"; not {finding!r}" if finding else "")
            )
        positive = every.map(lambda found: finding in found)
    # Some tables have a row for each finding of an image.
    positive = positive.groupby(table["name"]).transform("any")
    uncertain = uncertain.groupby(table["name"]).transform("any") & ~positive
    rest = f"no {finding}"
    labels = [
        "" if unsure else finding if yes else rest
        for yes, unsure in zip(positive, uncertain, strict=True)
    ]
    reasons = [f"{finding} uncertain" if unsure else "" for unsure in uncertain]
    return labels, reasons, (rest, finding)


def _findings(value: str) -> list[str]:
    return [part.strip() for part in value.split("|") if part.strip()]


def _classes(
    table: pd.DataFrame, name: str, roles: Mapping[str, str], classes: Sequence[str] | None
) -> tuple[list[str], list[str], tuple[str, ...]]:
    """Label each row by the value of the label column."""
    values = table[roles["label"]].map(_plain)
    several = values.str.contains("|", regex=False)
    if classes is None:
        if several.any():
            _one_finding(table, name, roles, None)
        found = {same_name(value): value for value in values if value}
        if all(same_name(c) in found for c in CLASSES):
            classes = CLASSES
        elif len(found) > MOST_CLASSES:
            raise DataError(
                f"{name}, column {roles['label']}: {len(found):,} different values, such as "
                f"{listed(sorted(found.values()), limit=3)}: more than {MOST_CLASSES} classes. "
                "Name the column with --columns label=COLUMN, or the classes with --classes A,B"
            )
        else:
            classes = sorted(found.values())
    spelled = {same_name(_plain(c)): c for c in classes}
    labels, reasons = [], []
    for value in values:
        parts = [spelled[same_name(p)] for p in _findings(value) if same_name(p) in spelled]
        labels.append(parts[0] if len(parts) == 1 else "")
        other = f"of other classes: {value}" if value else "without a label"
        reasons.append("of several of the classes" if len(parts) > 1 else "" if parts else other)
    absent = sorted(set(classes) - set(labels))
    if absent:
        raise DataError(
            f"{name}, column {roles['label']}: no image of {listed(absent)}. Found: "
            f"{listed(sorted(set(values)))}"
        )
    return labels, reasons, tuple(classes)


def _plain(value: str) -> str:
    """Return a whole number that a spreadsheet wrote, "1.0" or "1,0", without its fraction."""
    return re.sub(r"^(-?\d+)[.,]0+$", r"\1", value)


def _splits(table: pd.DataFrame, roles: Mapping[str, str], tests: set[str]) -> list[str]:
    if tests:
        return ["test" if PurePosixPath(n).name in tests else "train" for n in table["name"]]
    if "split" in roles:
        values = table[roles["split"]]
        splits = [SPLIT_FOLDERS.get(value.casefold(), "") for value in values]
        unknown = {v for v, split in zip(values, splits, strict=True) if v and not split}
        if unknown:
            raise DataError(
                f"column {roles['split']}: found {listed(sorted(unknown), limit=5)}; allowed: "
                f"{', '.join(SPLIT_FOLDERS)}"
            )
        return splits
    folders = (n.casefold().split("/")[:-1] for n in table["name"])
    return [next((SPLIT_FOLDERS[f] for f in parts if f in SPLIT_FOLDERS), "") for parts in folders]


def _patients(table: pd.DataFrame, roles: Mapping[str, str], is_chexpert: bool) -> list[str]:
    if "patient" in roles:
        return [_plain(value) for value in table[roles["patient"]]]
    if is_chexpert:
        found = (re.search(r"(patient\d+)/", name) for name in table["name"])
        return [match[1] if match else "" for match in found]
    return [""] * len(table)


def content_of(path: Path) -> dict[str, bytes]:
    """Read a table's file for `read_manifest`.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict of str to bytes
        Name → content.

    Raises
    ------
    DataError
        There is no such file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"no such table: {path}; give a file ({', '.join(SUFFIXES)})")
    return {path.name: path.read_bytes()}
