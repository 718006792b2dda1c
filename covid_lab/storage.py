"""Arrays larger than memory, and a cache of limited size."""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from covid_project.files import PART, whole_file


def remove_leftovers(folder: Path) -> None:
    """Remove files that killed processes left half-written, once they are an hour old.

    Younger ones may still be in progress.

    Parameters
    ----------
    folder : Path
        Searched with everything below it.
    """
    for part in list(Path(folder).rglob(f"{PART}*")):
        if time.time() - part.stat().st_mtime > 3600:
            shutil.rmtree(part) if part.is_dir() else part.unlink()


def bound_cache(folder: Path, limit: float) -> list[Path]:
    """Delete the oldest entries of a cache until it holds at most ``limit`` bytes.

    Parameters
    ----------
    folder : Path
        Each file and folder directly in it is an entry, which is deleted as a whole or not at all.
    limit : float
        Bytes.

    Returns
    -------
    list of Path
        The deleted entries.
    """
    used = {}
    for entry in Path(folder).glob("*"):
        files = [file.lstat() for file in (entry, *entry.rglob("*"))]
        used[entry] = max(file.st_mtime for file in files), sum(file.st_size for file in files)
    total, deleted = sum(size for _, size in used.values()), []
    for entry, (_, size) in sorted(used.items(), key=lambda item: item[1][0]):
        if total <= limit:
            break
        gone = entry.with_name(f"{PART}{entry.name}")  # a leftover, should this be interrupted
        os.replace(entry, gone)
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        total -= size
        deleted.append(entry)
    return deleted


def filled_array(
    path: Path, shape: Sequence[int], fill: Callable[[np.ndarray], object]
) -> np.ndarray:
    """Return an array stored on disk, which is written first if it is missing.

    Like `covid_project.files.cached_array`, but the whole array is never in memory.

    Parameters
    ----------
    path : Path
        A ``.npy`` file.
    shape : sequence of int
    fill : callable
        Given the empty array, uint8 of this shape, fills it.

    Returns
    -------
    np.ndarray, uint8 (shape)
        Memory-mapped, read-only.

    Raises
    ------
    ValueError
        The file is damaged.
    """
    if not Path(path).is_file():
        with whole_file(path) as part:
            array = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=tuple(shape))
            fill(array)
            array.flush()
            del array  # Windows renames no file that is mapped
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and run again") from None
