"""What lies on disk is whole or absent: every file is written beside its name, then renamed."""

import csv
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

PART = ".part-"  # how the names of temporary files begin
IN_MEMORY = 2**29  # bytes of images up to which they are held in memory; above, they stay on disk


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path`` that takes its name when all went well.

    The folder is made where it is missing. On an error the temporary file is removed and what
    lay at ``path`` before stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=PART, suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb") as written:
            os.fsync(written.fileno())  # on disk before the name points to it
        os.chmod(name, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left half written under a folder, once it is an hour old.

    A younger one may still be at work on it.
    """
    for part in list(Path(folder).rglob(f"{PART}*")):
        if time.time() - part.stat().st_mtime > 3600:
            shutil.rmtree(part) if part.is_dir() else part.unlink()


def bound_cache(folder: Path, limit: float, keep: Sequence[Path] = ()) -> list[Path]:
    """Delete what was used longest ago, until a cache holds at most ``limit`` bytes.

    What lies in ``folder`` or in one of its folders ``data-…`` goes as a whole or stays; what holds
    one of the paths ``keep``, or lies in one, stays. Returns what was deleted.
    """
    entries = []
    for path in Path(folder).glob("*"):
        entries += list(path.glob("*")) if path.name.startswith("data-") else [path]
    used = {}
    for entry in entries:
        files = [file.lstat() for file in (entry, *entry.rglob("*"))]
        used[entry] = max(file.st_mtime for file in files), sum(file.st_size for file in files)
    total, deleted = sum(size for _, size in used.values()), []
    for entry, (_, size) in sorted(used.items(), key=lambda item: item[1][0]):
        if total <= limit:
            break
        if any(entry.is_relative_to(path) or Path(path).is_relative_to(entry) for path in keep):
            continue
        gone = entry.with_name(f"{PART}{entry.name}")  # a leftover, should this be cut off
        os.replace(entry, gone)
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        total -= size
        deleted.append(entry)
    return deleted


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index."""
    text = table.to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # unquoted it would end a row: file names may hold it
        text = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def append_rows(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Add rows at the end of a CSV, which is made where it is missing; return the whole table.

    The file is written anew and renamed, so that it never ends in half a row.
    """
    table = pd.concat([read_csv(path), rows], ignore_index=True)
    write_csv(path, table)
    return read_csv(path)


def read_csv(path: Path) -> pd.DataFrame:
    """Return the table at ``path``; empty where there is no such file.

    Raises
    ------
    ValueError
        The file is no table; names it.
    """
    if not Path(path).is_file():
        return pd.DataFrame()
    try:
        return pd.read_csv(path, float_precision="round_trip")
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{path} cannot be read as a table ({error}): restore it or take it away"
        ) from None


def cached_array(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array at ``path`` (``.npy``), read-only and mapped into memory.

    It is computed and written where the file is missing; another file is refused (``ValueError``).
    """
    if not Path(path).is_file():
        array = compute()
        with whole_file(path) as part, open(part, "wb") as file:
            np.save(file, array, allow_pickle=False)
    return _mapped(path)


def filled_array(
    path: Path, shape: Sequence[int], fill: Callable[[np.ndarray], object]
) -> np.ndarray:
    """`cached_array` of uint8 that never lies in memory as a whole: ``fill(array)`` writes it."""
    if not Path(path).is_file():
        with whole_file(path) as part:
            array = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=tuple(shape))
            fill(array)
            array.flush()
    return _mapped(path)


def _mapped(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        os.utime(path)  # when it was used last, for `bound_cache`
        return array
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} holds no array of ours ({error}): delete it") from None


def fingerprint(*parts: str | bytes | np.ndarray | Mapping) -> str:
    """Sixteen hexadecimal digits that change with any of the parts (SHA-256).

    Arrays count with dtype and shape; mappings as JSON with sorted keys.
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


def origin(results: Path, data: str, tables: Sequence[str]) -> str:
    """What a figure's file says of its origin: ``data=…; <table>=…; …``, fingerprints all.

    ``tables`` are names of files in the results folder.
    """
    parts = [f"{name}={fingerprint((Path(results) / name).read_bytes())}" for name in tables]
    return "; ".join([f"data={data}", *parts])
