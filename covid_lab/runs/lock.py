"""One run at a time in a results folder; a second run is told who uses it, and since when.

The lock belongs to the operating system and ends with the process that holds it.
"""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

NAME = ".lock"


class FolderInUse(RuntimeError):
    """Another run uses the results folder; the message says which."""


@contextmanager
def only_run(folder: str | Path) -> Iterator[None]:
    """Reserve a results folder for a run.

    The folder is created if it is missing, and removed again if nothing was written.

    Parameters
    ----------
    folder : str or Path

    Yields
    ------
    None

    Raises
    ------
    FolderInUse
        Another run uses it.
    """
    folder = Path(folder)
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / f"{NAME}.json"
    lock = FileLock(folder / NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderInUse(
            f"{folder} is in use by another run ({_described(holder)}): wait until it ends, stop "
            "it, or choose another results folder"
        ) from None
    try:
        record = {
            "process": os.getpid(),
            "machine": platform.node(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        holder.write_text(json.dumps(record), encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
        if made and os.listdir(folder) in ([], [NAME]):
            (folder / NAME).unlink(missing_ok=True)
            with suppress(OSError):  # a parent that is not empty
                for parent in made:
                    parent.rmdir()


def _described(holder: Path) -> str:
    try:
        record = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {record['process']} on {record['machine']}, since {record['since']}"
    except (OSError, ValueError, KeyError):
        return "one that has just begun"
