"""A folder or an archive of images as one table, with a count of the unused files by reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pandas as pd

from covid_lab.reading import layouts, manifests
from covid_lab.reading.dicom import COVARIATES, SUFFIXES, DicomRoot, header, is_dicom
from covid_lab.reading.patients import groups_from_folders
from covid_lab.reading.roots import open_root, printable
from covid_project.data import DataError, Root, is_hidden, listed, read_bytes, same_name
from covid_project.images import IMAGE_SUFFIXES

DOCUMENTS = {
    *(".csv", ".tsv", ".txt", ".xlsx", ".xls", ".json", ".md", ".pdf", ".html", ".xml", ".yaml"),
    *(".yml", ".rst", ".py", ".ipynb", ".doc", ".docx", ".odt", ".ini", ".toml", ".log", ".db"),
}
NO_SUFFIX = {"license", "readme", "copying", "dicomdir", "md5sums", "sha256sums"}
UNEXPLAINED = 0.05  # fraction of files that may be left out for a reason that the user did not give

UNKNOWN = "of an unknown kind"

# Reasons for which a file may be left out in any number.
EXPECTED = ("hidden", "lung masks", "documents", "in a second copy")


@dataclass(frozen=True, eq=False)
class Collection:
    """Images with their labels.

    Attributes
    ----------
    root : Path, zipfile.Path or DicomRoot
        Folder or archive of the images.
    table : pd.DataFrame, N rows
        One row per image, sorted by path: path (under the root), label (number), split and patient
        ("" where unknown), and the covariates of DICOM where there are such files.
    classes : tuple of str
        Names of the labels.
    passed_over : dict of str to list of str
        Reason → files that are not used.
    notes : tuple of str
        What else was found or decided, in words.
    """

    root: Root
    table: pd.DataFrame
    classes: tuple[str, ...]
    passed_over: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def collect(
    path: Path,
    *,
    classes: Sequence[str] | None = None,
    table: Path | None = None,
    columns: Mapping[str, str] | None = None,
    finding: str | None = None,
) -> Collection:
    """Find the images of a folder or an archive, their classes, splits and patients.

    Parameters
    ----------
    path : Path
        Folder or archive, see `roots.open_root`.
    classes : sequence of str, optional
        Class folders or labels wanted, in the order of their numbers; None: see
        `layouts.find_classes` and `manifests.read_manifest`.
    table : Path, optional
        Table of labels; None: the folders, unless a table of NIH or CheXpert is among the files.
    columns : mapping of str to str, optional
        Columns of the table, see `manifests.read_manifest`.
    finding : str, optional
        Finding in the table, see `manifests.read_manifest`.

    Returns
    -------
    Collection
        The images with their labels, and the files that are not used.

    Raises
    ------
    DataError
        There are no images, no classes or several data sets, or more than 5 % of the files are left
        out for a reason that the user did not ask for.

    Examples
    --------
    >>> collect(Path("covid_xray")).classes
    ('NORMAL', 'COVID')
    """
    root, names = open_root(path, hidden=True)
    images, passed_over, dicoms = sort_files(root, names)
    if dicoms:
        root = DicomRoot(root)
    explained = f"Found in {path}, with their numbers of images: {layouts.in_words(images)}"
    if not images:
        raise DataError(f"{path}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}, DICOM)")
    tables = manifests.content_of(table) if table else {}
    if not tables:
        visible = [name for name in names if not is_hidden(name)]
        inside = manifests.find_tables(root, visible)
        tables = {name: read_bytes(root, name) for name in inside}
    if tables:
        found = manifests.read_manifest(
            tables,
            images,
            classes=classes,
            columns=columns,
            finding=finding,
            tests=_nih_tests(root, names),
        )
        passed_over |= found.passed_over
        placed = _Labelled("", found.table, found.classes, found.notes)
        rest = "without a row in the table"
        expected = [*EXPECTED, *found.passed_over, *([rest] if table else [])]
    elif columns or finding:
        raise DataError("--columns and --finding need a table: name it with --table")
    else:
        placed, copies = _by_folders(images, classes, explained)
        if copies:
            passed_over["in a second copy of the data further inside"] = copies
        others = _other_classes(images, placed.rows, passed_over)
        passed_over |= others
        rest = "outside the class folders"
        expected = [*EXPECTED, *others]
    known = {name for left in passed_over.values() for name in left} | set(placed.rows["name"])
    strays = [name for name in images if name not in known]
    if strays:
        passed_over[rest] = strays
    refuse_unexplained(path, len(placed.rows), passed_over, expected, explained)
    rows = _numbered(placed, explained)
    notes = placed.notes
    if dicoms:
        rows, said = _with_headers(root.place, rows, dicoms)
        notes = [*notes, *said]
    start = len(placed.outer) + 1 if placed.outer else 0
    rows = rows.assign(path=rows["name"].str[start:]).sort_values("path").reset_index(drop=True)
    rows = rows[["path", "label", "split", "patient", *[c for c in COVARIATES if c in rows]]]
    root = root.joinpath(placed.outer) if placed.outer else root
    return Collection(root, rows, tuple(placed.classes), passed_over, tuple(notes))


@dataclass(frozen=True, eq=False)
class _Labelled:
    """Images with the names of their classes; columns name, label, split, patient."""

    outer: str  # folders around the data set
    rows: pd.DataFrame
    classes: Sequence[str]
    notes: list[str]


def _by_folders(
    images: list[str], classes: Sequence[str] | None, explained: str
) -> tuple[_Labelled, list[str]]:
    """Label images by their folders; also return the images in a second copy of the data."""
    placed, kinds = layouts.place(images, classes)
    if not placed:
        wanted = f"no class folder {' or '.join(kinds)}" if kinds else "no class folders"
        raise DataError(f"{wanted} with images. {explained}")
    frame = pd.DataFrame([vars(image) for image in placed])
    outer, frame, copies, around = layouts.one_place(frame, explained)
    # Folders around the classes are of one patient, whatever the class.
    folders = frame["inner"] if around is None else around
    label = frame["label"].map(same_name) if around is None else folders
    patients, said = groups_from_folders(folders, label)
    rows = frame.assign(patient="" if patients is None else patients.fillna(""))
    return _Labelled(outer, rows, kinds, [said] if said else []), list(copies["name"])


def _numbered(placed: _Labelled, explained: str) -> pd.DataFrame:
    """Return the rows with numbers for the class names; refuse classes without images."""
    number = {same_name(name): label for label, name in enumerate(placed.classes)}
    labels = placed.rows["label"].map(lambda name: number[same_name(name)])
    missing = [name for label, name in enumerate(placed.classes) if label not in set(labels)]
    if missing:
        raise DataError(f"no class folder {' or '.join(missing)} with images. {explained}")
    return placed.rows.assign(label=labels)


def _with_headers(
    root: Root, rows: pd.DataFrame, dicoms: set[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Add the covariates of DICOM headers and, where no patient is known, the patient."""

    def read(name: str) -> dict[str, str]:
        try:
            return header(read_bytes(root, name), name) if name in dicoms else {}
        except DataError:  # the error is reported when the image is read
            return {}

    facts = pd.DataFrame([read(name) for name in rows["name"]], index=rows.index)
    facts = facts.reindex(columns=["patient", *COVARIATES]).fillna("")
    rows = rows.assign(**{name: facts[name] for name in COVARIATES if facts[name].any()})
    several = (facts["patient"] != facts["patient"].iloc[0]).any()
    if not several or (rows["patient"] != "").any():
        return rows, []
    known = (facts["patient"] != "").sum()
    said = f"patients: DICOM's PatientID, in {known:,} of {len(rows):,} images"
    return rows.assign(patient=facts["patient"]), [said]


def sort_files(root: Root, names: list[str]) -> tuple[list[str], dict[str, list[str]], set[str]]:
    """Sort files into images and others.

    Parameters
    ----------
    root : Path or zipfile.Path
        Folder or archive of the files.
    names : list of str
        Paths under the root.

    Returns
    -------
    images : list of str
        Paths of the images.
    passed_over : dict of str to list of str
        Reason → files that are not images, or are masks.
    dicoms : set of str
        Images that are DICOM.
    """
    images, dicoms = [], set()
    passed_over: dict[str, list[str]] = {}
    for name in names:
        if is_hidden(name):
            passed_over.setdefault("hidden", []).append(name)
            continue
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in SUFFIXES or (not suffix.isascii() or not suffix[1:].isalpha()):
            bare = PurePosixPath(name).name.casefold()
            if suffix in SUFFIXES or (bare not in NO_SUFFIX and _begins_as_dicom(root, name)):
                images.append(name)
                dicoms.add(name)
                continue
        if suffix in IMAGE_SUFFIXES:
            images.append(name)
        elif suffix in DOCUMENTS or PurePosixPath(name).name.casefold() in NO_SUFFIX:
            passed_over.setdefault("documents", []).append(name)
        else:
            passed_over.setdefault(UNKNOWN, []).append(name)
    masks = layouts.masks_among(images)
    if masks:
        passed_over["lung masks"] = sorted(masks)
        images = [name for name in images if name not in masks]
    return images, _with_sidecars(passed_over, images), dicoms


def _with_sidecars(passed_over: dict[str, list[str]], images: list[str]) -> dict[str, list[str]]:
    """Count files of an unknown kind with the name of an image as documents."""
    unknown = passed_over.pop(UNKNOWN, [])
    stems = {name.rpartition(".")[0] for name in images}
    beside = [name for name in unknown if name.rpartition(".")[0] in stems]
    rest = sorted(set(unknown) - set(beside))
    parts = {"documents": passed_over.get("documents", []) + beside, UNKNOWN: rest}
    return {**passed_over, **{reason: names for reason, names in parts.items() if names}}


def _begins_as_dicom(root: Root, name: str) -> bool:
    try:
        with root.joinpath(name).open("rb") as stream:
            return is_dicom(stream.read(132))
    except Exception:  # a damaged archive raises errors of many kinds
        return False


def _nih_tests(root: Root, names: list[str]) -> list[str]:
    """Return the file names in NIH's list of the test split, if it is among the files."""
    listing = next((n for n in names if PurePosixPath(n).name == "test_list.txt"), None)
    return [] if listing is None else read_bytes(root, listing).decode(errors="replace").split()


def _other_classes(
    images: list[str], rows: pd.DataFrame, passed_over: dict[str, list[str]]
) -> dict[str, list[str]]:
    """Return the images in folders beside the class folders, by folder."""
    known = {name for names in passed_over.values() for name in names} | set(rows["name"])
    ours = rows[["name", "label"]].itertuples(index=False)
    beside = {tuple(name.split("/")[: _at(name, label)]) for name, label in ours}
    found: dict[str, list[str]] = {}
    for name in images:
        parts = tuple(name.split("/")[:-1])
        at = next((k for k in range(len(parts)) if parts[:k] in beside), None)
        if name not in known and at is not None:
            found.setdefault(f"of another class, {parts[at]}", []).append(name)
    return found


def _at(name: str, label: str) -> int:
    """Return the position of the class folder among the parts of a path."""
    return [k for k, part in enumerate(name.split("/")[:-1]) if part == label][-1]


def refuse_unexplained(
    path: Path,
    used: int,
    passed_over: Mapping[str, Sequence[str]],
    expected: Sequence[str],
    explained: str,
) -> None:
    """Refuse data if more than 5 % of the files are left out for no good reason.

    Parameters
    ----------
    path : Path
        Folder or archive of the data.
    used : int, from 0
        Number of files that are used.
    passed_over : mapping of str to sequence of str
        Reason → files.
    expected : sequence of str
        Beginnings of the reasons that are good for any number of files.
    explained : str
        What was found, for the message.

    Raises
    ------
    DataError
        More files are left out.
    """
    rest = {r: n for r, n in passed_over.items() if not r.startswith(tuple(expected))}
    number = sum(map(len, rest.values()))
    if number > UNEXPLAINED * (number + used):
        raise DataError(
            f"{number:,} of {number + used:,} files in {path} would be left out: {in_words(rest)}. "
            f"Move them away, or name the classes (--classes) or a table (--table). {explained}"
        )


def in_words(passed_over: Mapping[str, Sequence[str]]) -> str:
    """Count the files that are left out by reason, with examples.

    Parameters
    ----------
    passed_over : mapping of str to sequence of str
        Reason → files.

    Returns
    -------
    str
        Such as "documents: 2 (licence.txt, readme.md)"; "" where nothing is left out.

    Examples
    --------
    >>> in_words({"documents": ["licence.txt", "readme.md"]})
    'documents: 2 (licence.txt, readme.md)'
    """
    return "; ".join(
        f"{reason}: {len(names):,} ({listed([printable(n) for n in names], limit=2)})"
        for reason, names in passed_over.items()
    )
