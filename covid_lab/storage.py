"""Files that only the lab has: arrays larger than memory, and a cache of limited size."""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from covid_project.files import PART, whole_file


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left half written under a folder, once it is an hour old.

    A younger one may still be being written.
    """
    for part in list(Path(folder).rglob(f"{PART}*")):
        if time.time() - part.stat().st_mtime > 3600:
            shutil.rmtree(part) if part.is_dir() else part.unlink()


def bound_cache(folder: Path, limit: float, keep: Sequence[Path] = ()) -> list[Path]:
    """Delete the oldest entries of a cache until it holds at most ``limit`` bytes.

    Parameters
    ----------
    folder : Path
        Each file and folder directly in it is an entry, which is deleted as a whole or not at all.
    limit : float
        Bytes.
    keep : sequence of Path
        Entries that contain one of these paths, or are inside one, are not deleted.

    Returns
    -------
    list of Path
        What was deleted.
    """
    used = {}
    for entry in Path(folder).glob("*"):
        files = [file.lstat() for file in (entry, *entry.rglob("*"))]
        used[entry] = max(file.st_mtime for file in files), sum(file.st_size for file in files)
    total, deleted = sum(size for _, size in used.values()), []
    for entry, (_, size) in sorted(used.items(), key=lambda item: item[1][0]):
        if total <= limit:
            break
        if any(entry.is_relative_to(path) or Path(path).is_relative_to(entry) for path in keep):
            continue
        gone = entry.with_name(f"{PART}{entry.name}")  # a leftover, should this be interrupted
        os.replace(entry, gone)
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        total -= size
        deleted.append(entry)
    return deleted


def filled_array(
    path: Path, shape: Sequence[int], fill: Callable[[np.ndarray], object]
) -> np.ndarray:
    """Return the uint8 array of a ``.npy`` file, written by ``fill(array)`` where it is missing.

    Like `covid_project.files.cached_array`, but the array is never in memory as a whole.
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
