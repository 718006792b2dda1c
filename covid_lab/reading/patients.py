"""Patients of images, from the names of files and folders or from a table."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from covid_lab.reading.manifests import columns_of, match_images
from covid_project.data import DataError, Dataset, listed

# How some public sets name the patient in the names of files.
NAME_PATTERNS = {
    # Kermany's paediatric pneumonia: person1000_virus_1681.jpeg. Bacteria and viruses are numbered
    # separately: of the 170 numbers in both training and test, none has one kind in both.
    "person": r"(?i)(person\d+(?:_(?:bacteria|virus))?)_",
    # NIH ChestX-ray14: 00000013_005.png, at most 00030805. Dates begin with 19 or 20.
    "nih": r"(000[0-3]\d{4})_\d{3}\.",
}
FEWEST_FOLDERS = 3  # fewest folders inside the classes that may be patients
MATCHED = 0.95  # least fraction of the images whose patient a table must name
LARGEST = 30  # largest median number of images in folders that may be patients


def group_of(path: str) -> str:
    """Return the patient at the beginning of a file's name, or else the path itself.

    The names are those of `NAME_PATTERNS`. An unknown patient is the path and not the bare name, as
    ``COVID/1.png`` and ``NORMAL/1.png`` are two patients.

    Parameters
    ----------
    path : str
        POSIX path.

    Returns
    -------
    str
        Patient in lower case, or the path.

    Examples
    --------
    >>> group_of("train/PNEUMONIA/person1000_virus_1681.jpeg"), group_of("COVID/1.png")
    ('person1000_virus', 'COVID/1.png')
    """
    name = PurePosixPath(path).name
    matches = (re.match(pattern, name) for pattern in NAME_PATTERNS.values())
    return next((match.group(1).lower() for match in matches if match), path)


def groups_from_names(paths: Iterable[str], pattern: str | None = None) -> np.ndarray:
    r"""Return the patient of each image from its path.

    Parameters
    ----------
    paths : iterable of str, (N,)
        POSIX paths.
    pattern : str, optional
        Regular expression, searched in the path. The patient is the text of its groups
        (parentheses), or the whole match where it has none, in lower case. An image without a match
        is a patient of its own. None: `group_of`.

    Returns
    -------
    np.ndarray, str (N,)
        The path of an image whose patient is unknown.

    Raises
    ------
    DataError
        The pattern is not a regular expression, matches no path, finds one patient for all images
        or a different one for each, or finds dates.

    Examples
    --------
    >>> paths = ["COVID/p7_1.png", "COVID/p7_2.png", "NORMAL/p8_1.png"]
    >>> groups_from_names(paths, r"/(p\d+)_").tolist()
    ['p7', 'p7', 'p8']
    """
    paths = list(paths)
    if pattern is None:
        return np.array([group_of(path) for path in paths], dtype=object)
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise DataError(f"{pattern!r} is not a regular expression: {error}") from None

    def patient(path: str) -> str:
        match = search(path)
        if match is None:
            return path
        return "|".join(part or "" for part in match.groups() or (match.group(),)).lower()

    groups = np.array([patient(path) for path in paths], dtype=object)
    found = [group for group, path in zip(groups, paths, strict=True) if group != path]
    doubt = _implausible(found, len(paths))
    if doubt:
        raise DataError(
            f"the pattern {pattern!r} {doubt}, of {len(paths):,} images such as "
            f"{listed(paths, limit=3)}: its parentheses must hold the patient and nothing else"
        )
    return groups


def _implausible(found: Sequence[str], images: int) -> str:
    """Say why the matches of a pattern cannot be the patients; "" if they can."""
    patients = set(found)
    if not found:
        return "matches none"
    if len(patients) == 1 and images > 1:
        return f"finds one patient for all: {found[0]!r}"
    if len(patients) == images > 1:
        return f"finds a patient of its own for each: {listed(sorted(patients), limit=3)}"
    dates = [patient for patient in patients if _is_date(patient)]
    if len(dates) > 0.9 * len(patients):
        return f"finds dates: {listed(sorted(dates), limit=3)}"
    return ""


def _is_date(text: str) -> bool:
    """Tell whether a text is a day from 1900 to 2099."""
    found = re.fullmatch(r"((?:19|20)\d\d)[-_. |]?(\d\d)[-_. |]?(\d\d)", text)
    return bool(found) and 1 <= int(found[2]) <= 12 and 1 <= int(found[3]) <= 31


def groups_from_folders(folders: pd.Series, labels: pd.Series) -> tuple[pd.Series | None, str]:
    """Judge whether the folders inside, or around, the classes are patients.

    Parameters
    ----------
    folders : pd.Series of str, (N,)
        Folder of each image that is neither class, split nor container; "" for none.
    labels : pd.Series, (N,)
        Class of each image.

    Returns
    -------
    groups : pd.Series of str, (N,), or None
        Patient of each image; None where the folders are not taken for patients.
    said : str
        What was decided, in words; "" where there are no such folders.
    """
    named = folders != ""
    if not named.any():
        return None, ""
    # Short names such as 1, 2, 3 in several classes are counted separately in each class.
    short = folders.str.fullmatch(r"\D*\d{0,3}")
    shared = labels.groupby(folders).transform("nunique") > 1
    groups = folders.where(~(short & shared), labels.astype(str) + "/" + folders)[named]
    counts = groups.value_counts()
    example = listed(sorted(set(folders[named])), limit=3)
    if len(counts) < FEWEST_FOLDERS or counts.median() > LARGEST:
        return None, (
            f"{len(counts)} folders ({example}) are not taken for patients: "
            f"{counts.median():g} images in each"
        )
    return groups.reindex(folders.index), (
        f"patients: {len(counts):,}, from the folders ({example}), of {named.sum():,} images"
    )


def groups_from_table(paths: Iterable[str], table: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Return the patient of each image from a table.

    Parameters
    ----------
    paths : iterable of str, (N,)
        POSIX paths.
    table : pd.DataFrame of str
        One row per image, see `manifests.read_table`; rows of other images are ignored.

    Returns
    -------
    groups : np.ndarray, str (N,)
        The path of an image whose patient is not named.
    said : str
        How many images and patients were matched, in words.

    Raises
    ------
    DataError
        A column is missing, an image has two patients, fewer than 95 % of the images are matched,
        or all images have one patient.
    """
    paths = list(paths)
    roles = columns_of(table, "the metadata", None, ("path", "patient"))
    known = table[[roles["path"], roles["patient"]]].set_axis(["path", "patient"], axis=1)
    known = known.assign(name=match_images(known["path"], paths))
    known = known[known["name"].notna() & (known["patient"] != "")]
    pairs = known[["name", "patient"]].drop_duplicates()
    twice = pairs.loc[pairs["name"].duplicated(), "name"]
    if len(twice):
        raise DataError(f"the metadata name two patients of {listed(twice.unique(), limit=5)}")
    if len(pairs) < MATCHED * len(paths):
        lost = sorted(set(paths) - set(pairs["name"]))
        raise DataError(
            f"the metadata name a patient of only {len(pairs):,} of {len(paths):,} images, not of "
            f"{listed(lost, limit=5)}. Entries of the column {roles['path']} must be paths or file "
            f"names that fit one image each; found {listed(table[roles['path']], limit=3)}"
        )
    patients = pairs["patient"].nunique()
    if patients == 1 and len(paths) > 1:
        raise DataError(
            f"the metadata name one patient for all images, in the column {roles['patient']}: "
            "rename the right one to patient"
        )
    of_image = dict(pairs.itertuples(index=False))
    groups = np.array([of_image.get(path, path) for path in paths], dtype=object)
    return groups, f"patients: {patients:,}, from a table, of {len(pairs):,} images"


def with_patients(
    dataset: Dataset, pattern: str | None = None, metadata: pd.DataFrame | None = None
) -> tuple[Dataset, str]:
    """Return the data with the column ``group`` from a pattern or a table.

    Without either, the groups stay as they are.

    Parameters
    ----------
    dataset : Dataset
        The data.
    pattern : str, optional
        Regular expression, see `groups_from_names`.
    metadata : pd.DataFrame of str, optional
        Table, see `groups_from_table`.

    Returns
    -------
    dataset : Dataset
        The data with the groups.
    said : str
        How many patients were found, in words.

    Raises
    ------
    DataError
        See `groups_from_names` and `groups_from_table`.
    """
    paths = dataset.table["path"]
    if metadata is not None:
        groups, said = groups_from_table(paths, metadata)
    elif pattern is not None:
        groups = groups_from_names(paths, pattern)
        found = [group for group, path in zip(groups, paths, strict=True) if group != path]
        said = f"patients: {len(set(found)):,}, from the pattern, of {len(found):,} images"
    else:
        groups = dataset.table["group"].to_numpy()
        alone = (groups == paths.to_numpy()).sum()
        named = len(paths) - alone
        said = f"patients: {len(set(groups)) - alone:,} of {named:,} images" if named else ""
    return replace(dataset, table=dataset.table.assign(group=groups)), said
