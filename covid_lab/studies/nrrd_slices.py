"""CT slices in NRRD files and the table of their labels: read, checked, joined by name.

A folder holds two views of each slice, with the same file name, and one label table:

    full/<name>.nrrd    nodule/<name>.nrrd    labels.csv (or .xlsx): name, malignancy, patient
    masks/full/<name>.nrrd    masks/nodule/<name>.nrrd    (where there are any: the nodule's)

Every file that does not fit is refused and named: the label of a slice is never guessed, and pixels
in other units than Hounsfield's are never accepted.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nrrd
import numpy as np
import pandas as pd

from covid_lab.progress import tracked
from covid_lab.reading.manifests import read_table
from covid_project.data import DataError, Dataset, listed
from covid_project.files import fingerprint
from covid_project.images import MAX_PIXELS

SUFFIXES = (".nrrd", ".nhdr")  # header and pixels in one file; a header that names the other file
TABLES = (".csv", ".xlsx")
VIEWS = ("full", "nodule")
HOUNSFIELD = (-8192.0, 32767.0)  # what a scanner may store: padding below, extended metal above
LUNG_BELOW = -300.0  # HU; a slice or a nodule's surroundings without any lung or air is none
UNITS = {"", "hu", "hounsfield", "hounsfield unit", "hounsfield units"}
# Heads of the label table's columns, in small letters and without spaces or underscores.
COLUMNS = {
    "name": ("name", "file", "filename", "image", "slice", "id"),
    "malignancy": ("malignancy", "malignancyscore", "label", "class", "tumorclass", "score"),
    "patient": ("patient", "patientid", "subject", "subjectid", "case"),
}


@dataclass(frozen=True)
class Image:
    """A two-dimensional image with the size of its pixels.

    Attributes
    ----------
    values : np.ndarray, (H, W)
        Rows from front to back, in the file's own type.
    spacing : tuple of float, or None
        Millimetres from row to row and from column to column.
    unit : str
        Unit of the values, where the file states one.
    """

    values: np.ndarray
    spacing: tuple[float, float] | None
    unit: str = ""


# ---- one file -----------------------------------------------------------------------------------


def read_nrrd(path: Path) -> Image:
    """Read a 2-D image, or a 3-D image of a single slice, of any number type.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Image
        In the machine's byte order. NRRD's fastest axis is the column; of a 3-D image, the axis
        with one element is removed.

    Raises
    ------
    DataError
        Names the file: no NRRD, damaged or cut off, a type that holds no numbers, not one slice,
        too large, or pixels in another folder.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            header = nrrd.read_header(file)
            _check_header(header, path)
            values = nrrd.read_data(header, file, str(path), index_order="C")
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: {error.filename or path} is missing") from None
    except StopIteration:
        raise DataError(f"{path} is empty: copy it again or take it out") from None
    # pynrrd raises its own error, NumPy's and zlib's, and those of a header's odd numbers.
    except (
        nrrd.NRRDError,
        ValueError,
        LookupError,
        TypeError,
        OSError,
        EOFError,
        zlib.error,
    ) as error:
        raise DataError(
            f"{path} cannot be read: {_reason(error)}. The file is damaged, cut off or no NRRD "
            "image: copy it again or take it out"
        ) from None
    axes = list(range(values.ndim))
    if values.ndim == 3:
        axes.remove(values.shape.index(1))
    spacings = _spacings(header, values.ndim)
    return Image(
        values.reshape([values.shape[axis] for axis in axes]).astype(
            values.dtype.newbyteorder("="), copy=False
        ),
        tuple(spacings[axis] for axis in axes) if spacings else None,
        str(header.get("sample units", header.get("sampleunits", ""))).strip('" '),
    )


def read_hounsfield(path: Path) -> Image:
    """Read a CT image in Hounsfield units (air −1000, water 0).

    Parameters
    ----------
    path : Path

    Returns
    -------
    Image
        Values are float32.

    Raises
    ------
    DataError
        As `read_nrrd`; pixels that are NaN or infinite; values that cannot be HU (another stated
        unit, outside `HOUNSFIELD`, or nothing as dark as a lung, such as grey values 0–255 or
        stored values to which the rescale intercept was not applied).
    """
    image = read_nrrd(path)
    values = image.values
    finite = np.isfinite(values)
    if not finite.all():
        raise DataError(
            f"{path}: {int((~finite).sum())} of {values.size} pixels are NaN or infinite"
        )
    low, high = float(values.min()), float(values.max())
    expected = (
        "expected Hounsfield units (air −1000, lung about −850, water 0): write the slices with "
        "the scanner's rescale slope and intercept applied"
    )
    if image.unit.lower().strip() not in UNITS:
        raise DataError(f"{path}: its unit is {image.unit!r}; {expected}")
    if low < HOUNSFIELD[0] or high > HOUNSFIELD[1]:
        raise DataError(f"{path}: values lie in {low:g}…{high:g}; {expected}")
    if low > LUNG_BELOW:
        raise DataError(
            f"{path}: values lie in {low:g}…{high:g}, none as dark as a lung; {expected}"
        )
    return Image(values.astype(np.float32), image.spacing, "HU")


def _check_header(header: Mapping, path: Path) -> None:
    """Refuse a wrong size or place before any pixel is read."""
    for field in ("type", "dimension", "sizes", "encoding"):
        if field not in header:
            raise DataError(f"{path}: its header has no field {field!r}: it is cut off or damaged")
    sizes = [int(size) for size in header["sizes"]]
    if header["type"] == "block":
        raise DataError(f"{path}: its type is 'block', which holds no numbers")
    if len(sizes) not in (2, 3) or (len(sizes) == 3 and 1 not in sizes):
        shape = " × ".join(map(str, sizes))
        raise DataError(f"{path} is {shape} (fastest axis first); allowed: a single slice")
    if min(sizes) < 1 or int(np.prod(sizes, dtype=object)) > MAX_PIXELS:
        raise DataError(f"{path} has {sizes} pixels; allowed: 1 to {MAX_PIXELS:,} in all")
    pixels = header.get("data file", header.get("datafile"))
    if pixels is not None and Path(str(pixels)).name != str(pixels).removeprefix("./"):
        raise DataError(f"{path}: its pixels are said to lie at {pixels}; allowed: beside it")


def _spacings(header: Mapping, dimensions: int) -> list[float] | None:
    """Return millimetres along each axis, in the array's order; None where they are not stated."""
    if "space directions" in header:
        directions = np.atleast_2d(np.asarray(header["space directions"], float))
        lengths = np.linalg.norm(directions, axis=1)
    elif "spacings" in header:
        lengths = np.abs(np.asarray(header["spacings"], float))
    else:
        return None
    known = len(lengths) == dimensions
    return [float(length) for length in lengths[::-1]] if known else None


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):  # pynrrd looks the type up
        return f"NRRD has no type {error}"
    return str(error).strip().rstrip(".") or type(error).__name__


# ---- the label table ----------------------------------------------------------------------------


def read_labels(path: Path) -> pd.DataFrame:
    """Read a label table.

    Parameters
    ----------
    path : Path
        CSV file or Excel workbook.

    Returns
    -------
    pd.DataFrame
        One row per slice: name (without suffix), malignancy (1 to 5) and patient. Without a column
        of patients, each slice counts as a patient of its own, and a message says so.

    Raises
    ------
    DataError
        Another kind of file, a column missing, a name twice or empty, a malignancy that is no
        whole number from 1 to 5.
    """
    path = Path(path)
    if path.suffix.lower() not in TABLES:
        raise DataError(f"{path} is no label table: allowed are {' and '.join(TABLES)}")
    table = read_table(path.read_bytes(), str(path))
    return checked_labels(table, path)


def checked_labels(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Check a label table and find its columns name, malignancy and patient.

    Parameters
    ----------
    table : pd.DataFrame
        From `read_table`.
    path : Path
        For messages.

    Returns
    -------
    pd.DataFrame
        As `read_labels`, which also lists the errors.
    """
    found = {}
    for wanted, heads in COLUMNS.items():
        fits = [head for head in table if _plain(head) in heads]
        if len(fits) > 1 or (not fits and wanted != "patient"):
            raise DataError(
                f"{path} needs one column for the {wanted} ({', '.join(heads)}), found "
                f"{', '.join(fits) or 'none'} among: {', '.join(map(str, table))}"
            )
        found[wanted] = fits[0] if fits else None
    names = table[found["name"]].map(_stem)
    labels = pd.DataFrame({"name": names})
    labels["malignancy"] = _grades(table[found["malignancy"]], names, path)
    if found["patient"] is None:
        print(f"{path.name} has no column of patients: each slice counts as a patient of its own.")
        labels["patient"] = names
    else:
        labels["patient"] = table[found["patient"]]
    for column in ("name", "patient"):
        empty = labels.index[labels[column] == ""]
        if len(empty):
            raise DataError(f"{path}: no {column} in row(s) {listed(empty + 2)}")
    twice = labels["name"][labels["name"].duplicated()].unique()
    if len(twice):
        raise DataError(f"{path}: more than one row for {listed(twice)}")
    return labels


def _grades(column: pd.Series, names: pd.Series, path: Path) -> np.ndarray:
    numbers = pd.to_numeric(column.str.replace(",", "."), errors="coerce")  # 3,0 in some languages
    wrong = ~numbers.isin([1, 2, 3, 4, 5])
    if wrong.any():
        said = (names + ": " + column.map(repr))[wrong]
        raise DataError(f"{path}: malignancy must be 1, 2, 3, 4 or 5, found {listed(said)}")
    return numbers.to_numpy().astype(int)


def _plain(head: object) -> str:
    return str(head).lower().replace("_", "").replace(" ", "").replace("-", "")


def _stem(name: str) -> str:
    """Return a name without folders and NRRD suffix; the table may give either."""
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    return next((name[: -len(end)] for end in SUFFIXES if name.lower().endswith(end)), name)


# ---- the folder ---------------------------------------------------------------------------------


def open_slices(folder: Path) -> Dataset:
    """Open a folder of both views and its label table, joined by name, without reading pixels.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    Dataset
        Its table has the path of the full view, the malignancy minus 1 as label, the patient as
        group, "" as split (see `splits.dealt_once`), and one column for each of `VIEWS` with the
        path of that view.

    Raises
    ------
    DataError
        No such folder, not exactly one label table, or names that do not match: every slice
        without a label, label without a slice and slice without its other view is listed.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: give one with {' and '.join(VIEWS)} views in it")
    tables = sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in TABLES and not file.name.startswith((".", "~"))
    )
    if len(tables) != 1:
        names = listed(file.name for file in tables) or "none"
        raise DataError(f"{folder} must hold one label table (.csv or .xlsx), found {names}")
    labels = read_labels(tables[0])
    views = {view: _files(folder, view) for view in VIEWS}
    _refuse_mismatches(folder, labels["name"], views)
    table = labels.sort_values("name", ignore_index=True)
    for view, files in views.items():
        table[view] = table["name"].map(files)
    table = table.assign(
        path=table["full"],
        label=table["malignancy"] - 1,
        split="",
        source="",
        group=table["patient"],
        mask="",
    )
    contents = [(folder / path).read_bytes() for view in VIEWS for path in table[view]]
    digests = [fingerprint(content) for content in contents]
    identity = fingerprint(
        *table["name"], *map(str, table["malignancy"]), *table["patient"], *digests
    )
    columns = ["path", "label", "split", "source", "group", "mask", "name", *VIEWS]
    return Dataset(table[columns], folder, tuple("12345"), identity)


def _files(folder: Path, view: str) -> dict[str, str]:
    """Return the path of each name's file in a view's folder, relative to ``folder``."""
    place = next(
        (sub for sub in sorted(folder.iterdir()) if sub.is_dir() and sub.name.lower() == view), None
    )
    if place is None:
        raise DataError(f"{folder} has no folder {view!r} with that view of each slice")
    files = sorted(
        file
        for file in place.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    stems = [_stem(file.name) for file in files]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise DataError(f"{place}: more than one file for {listed(twice)}")
    return {stem: f"{place.name}/{file.name}" for stem, file in zip(stems, files, strict=True)}


def _refuse_mismatches(
    folder: Path, names: Sequence[str], views: Mapping[str, Mapping[str, str]]
) -> None:
    named = set(names)
    lines = []
    for view, files in views.items():
        missing, extra = sorted(named - set(files)), sorted(set(files) - named)
        if missing:
            lines.append(f"labels without a file in {view}/ ({len(missing)}): {listed(missing)}")
        if extra:
            lines.append(f"files in {view}/ without a label ({len(extra)}): {listed(extra)}")
    if lines:
        raise DataError(
            f"{folder}: slices and labels do not match; complete them or take them out:\n"
            + "\n".join(lines)
        )


def load_slices[Kind](
    dataset: Dataset,
    view: str,
    change: Callable[[Image], Kind] = lambda image: image,
    *,
    progress: str | None = None,
) -> list[Kind]:
    """Read the slices of a view in Hounsfield units, one after the other.

    Parameters
    ----------
    dataset : Dataset
        From `open_slices`.
    view : str
        One of `VIEWS`.
    change : callable
        Applied to each `Image`; the slices may differ in size.
    progress : str, optional
        Title of the progress; None shows nothing.

    Returns
    -------
    list
        Results of ``change``, in the order of the table.

    Raises
    ------
    DataError
        Names every file that cannot be used, and why.
    """
    made, wrong = [], []
    paths = dataset.table[view]
    for path in tracked(paths, progress) if progress else paths:
        try:
            made.append(change(read_hounsfield(dataset.root / path)))
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        raise DataError(f"{len(wrong)} slice(s) cannot be used:\n{listed(wrong, '\n')}")
    return made


def load_masks(dataset: Dataset, kind: str, rows: Iterable[int] | None = None) -> list[np.ndarray]:
    """Read masks from ``masks/<kind>/<name>.nrrd``.

    Parameters
    ----------
    dataset : Dataset
        From `open_slices`.
    kind : str
        One of `VIEWS`.
    rows : iterable of int, optional
        Rows of the table; by default all.

    Returns
    -------
    list of np.ndarray, bool (H, W)
        Empty where the data have no such folder.

    Raises
    ------
    DataError
        A mask that is missing from the folder or cannot be read.
    """
    folder = dataset.root / "masks" / kind
    if not folder.is_dir():
        return []
    names = dataset.table["name"].iloc[slice(None) if rows is None else list(rows)]
    return [read_nrrd(folder / f"{name}.nrrd").values > 0 for name in names]
