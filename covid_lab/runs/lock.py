"""One run at a time in a results folder: the second is told who holds it, and since when.

The lock is the operating system's, on the file ``.lock`` in the folder. It ends with the processes
that hold it, however they end, so that one that was killed stands in nobody's way.
"""

import errno
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has other locks: there the file's being there is the lock
    fcntl = None

NAME = ".lock"
RUN_VARIABLE = "COVID_PROJECT_RUN"  # in the environment of what a run starts: its process id
LEFT_OVER = 15.0  # seconds that a killed run's kernel is given to notice and to end
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of some network drives


class FolderInUse(RuntimeError):
    """Another run is at work in the results folder; the message says which."""


@contextmanager
def only_run(results: Path) -> Iterator[int]:
    """Hold the folder while a run is at work in it; yield the lock's file descriptor.

    A process that is given the descriptor holds the folder as well, until it ends. The folder is
    made where it is missing, and removed again where nothing was written.

    Raises
    ------
    FolderInUse
        Another run holds it.
    """
    results = Path(results)
    missing = [folder for folder in (results, *results.parents) if not folder.exists()]
    results.mkdir(parents=True, exist_ok=True)
    path = results / NAME
    handle = _patiently_taken(path)
    holder = {
        "process": os.getpid(),
        "machine": platform.node(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.ftruncate(handle, 0)
    os.write(handle, json.dumps(holder).encode())
    os.environ[RUN_VARIABLE] = str(os.getpid())
    try:
        yield handle
    finally:
        del os.environ[RUN_VARIABLE]
        _released(handle, path)
        with suppress(OSError):  # not empty
            for folder in missing:
                folder.rmdir()


def refuse_others(results: Path) -> None:
    """Raise ``FolderInUse`` where a run holds the folder that has not started this process."""
    path = Path(results) / NAME
    if not path.is_file() or os.environ.get(RUN_VARIABLE) == str(_holder(path).get("process")):
        return
    handle = _taken(path)
    if handle is None:
        raise _in_use(path)
    os.close(handle)  # left behind by a run that was killed


def _patiently_taken(path: Path) -> int:
    begun = time.monotonic()
    while (handle := _taken(path)) is None:
        if _lives(_holder(path)) or time.monotonic() - begun > LEFT_OVER:
            raise _in_use(path)
        time.sleep(0.2)
    return handle


def _taken(path: Path) -> int | None:
    """Descriptor of the lock's file, now ours; None where another process holds it."""
    while True:
        new = not path.exists()
        try:
            exclusive = os.O_EXCL if new else 0
            handle = os.open(path, os.O_RDWR | os.O_CREAT | exclusive, 0o644)
        except FileExistsError:
            continue
        if fcntl is None:
            locked = new
        else:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            except OSError as error:
                locked = new and error.errno in NO_LOCKS
        if locked and _is_at(handle, path):
            return handle
        os.close(handle)
        if not locked:
            return None
        # Else its holder ended, and removed it, just now.


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _released(handle: int, path: Path) -> None:
    if fcntl is None:  # Windows removes no open file
        os.close(handle)
        path.unlink()
    else:  # removed while it is held: nobody else can have taken it
        path.unlink(missing_ok=True)
        os.close(handle)


def _holder(path: Path) -> dict:
    """What the lock's file says of its holder; empty where it says nothing yet."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _lives(holder: dict) -> bool:
    """Whether the process that wrote the lock is still there, as far as this machine can tell."""
    if fcntl is None or holder.get("machine") != platform.node():
        return True
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return False
    except (OSError, KeyError, ValueError):
        return True
    return True


def _in_use(path: Path) -> FolderInUse:
    holder = _holder(path)
    who = (
        f"process {holder['process']} on {holder['machine']}, since {holder['since']}"
        if holder.keys() >= {"process", "machine", "since"}
        else "one that has just begun"
    )
    return FolderInUse(
        f"{path.parent} is in use by another run ({who}): wait until it ends, stop it, or choose "
        f"another results folder. Where no such run is left, delete {path}"
    )
