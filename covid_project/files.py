"""Files that are whole or absent: each is written under a temporary name, then renamed."""

import csv
import hashlib
import json
import os
import platform
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd

PART = ".part-"  # how the names of temporary files begin
# Floats are read back exactly: by default from pandas 3 on, which warns of the old option.
EXACT = {"float_precision": "round_trip"} if pd.__version__.startswith("2.") else {}


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that takes the name ``path`` once the block ends without an error.

    Parameters
    ----------
    path : str or Path
        File to write; its folder is made. After an error an earlier file is unchanged.

    Yields
    ------
    Path

    Examples
    --------
    >>> with whole_file("results/note.txt") as part:
    ...     _ = part.write_text("written whole or not at all")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=PART, suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "r+b") as written:  # Windows refuses to flush a file opened for reading
            os.fsync(written.fileno())
        os.chmod(name, 0o644)  # a temporary file can only be read by its owner
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8.

    Parameters
    ----------
    path : str or Path
    text : str
    """
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table without its index.

    Parameters
    ----------
    path : str or Path
    table : pd.DataFrame
    """
    text = table.to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # a file name may hold a carriage return, which unquoted would end the row
        text = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    write_text(path, text)


def read_csv(path: str | Path) -> pd.DataFrame:
    """Read a table.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    pd.DataFrame
        Empty where there is no such file.

    Raises
    ------
    ValueError
        The file is not a CSV table; the message names it.
    """
    if not Path(path).is_file():
        return pd.DataFrame()
    try:
        return pd.read_csv(path, **EXACT)
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{path} cannot be read as a table ({error}): restore the file or delete it"
        ) from None


def append_rows(path: str | Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Add rows to a CSV file, which is made where it is missing.

    Parameters
    ----------
    path : str or Path
    rows : pd.DataFrame

    Returns
    -------
    pd.DataFrame
        The whole table.
    """
    write_csv(path, pd.concat([read_csv(path), rows], ignore_index=True))
    return read_csv(path)


def cached_array(path: str | Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Read an array from a ``.npy`` file, which is computed and written where it is missing.

    Parameters
    ----------
    path : str or Path
    compute : callable
        Takes nothing and returns the array.

    Returns
    -------
    np.ndarray
        Read-only and mapped into memory, so that it may be larger than memory.

    Raises
    ------
    ValueError
        The file is damaged; the message names it.
    """
    if not Path(path).is_file():
        array = compute()
        with whole_file(path) as part, open(part, "wb") as file:
            np.save(file, array, allow_pickle=False)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and run again") from None


def fingerprint(*parts: str | bytes | np.ndarray | Mapping) -> str:
    """Compute a short hash (SHA-256) that changes with any of the parts.

    Parameters
    ----------
    *parts : str, bytes, np.ndarray or mapping
        Arrays count with type and shape, mappings as JSON with sorted keys.

    Returns
    -------
    str
        16 hexadecimal digits.

    Examples
    --------
    >>> fingerprint("a", "b") == fingerprint("ab")
    False
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            part = np.ascontiguousarray(part).tobytes()
        elif isinstance(part, Mapping):
            part = json.dumps(part, sort_keys=True, default=str)
        part = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(part)}:".encode() + part)
    return digest.hexdigest()[:16]


def figure_stamp(folder: Path, data: str, tables: Iterable[str]) -> str:
    """Describe where a figure comes from, for its file's metadata.

    Parameters
    ----------
    folder : Path
        The results folder.
    data : str
        Fingerprint of the data.
    tables : iterable of str
        File names of the tables that the figure shows.

    Returns
    -------
    str
        ``data=…; <table>=…``, with the fingerprint of each table.
    """
    parts = [f"{name}={fingerprint((Path(folder) / name).read_bytes())}" for name in tables]
    return "; ".join([f"data={data}", *parts])


def versions() -> str:
    """List the versions of Python and of the packages that the numbers depend on.

    Returns
    -------
    str
        Such as "python 3.12.3; tensorflow 2.21.0; …".
    """
    found = [f"python {platform.python_version()}"]
    for name in ("tensorflow", "keras", "numpy", "scikit-learn"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:  # such as tensorflow-cpu
            found.append(f"{name} unknown")
    return "; ".join(found)


def same_name(name: str) -> str:
    """Bring a name into the form in which names are compared: one case, one Unicode form.

    Parameters
    ----------
    name : str

    Returns
    -------
    str
    """
    return unicodedata.normalize("NFC", name).casefold()


def listed(items: Iterable[object], separator: str = ", ", limit: int = 20) -> str:
    """Join items for a message: the first ones by name, the others counted.

    Parameters
    ----------
    items : iterable
    separator : str
    limit : int
        Largest number of items that are named.

    Returns
    -------
    str
    """
    items = [str(item) for item in items]
    more = [f"… and {len(items) - limit:,} more"] if len(items) > limit else []
    return separator.join([*items[:limit], *more])
