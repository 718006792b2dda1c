"""Benchmarks of whole commands, each in a process or a copy of the project of its own.

Where a time was promised and not a ratio to a peer, the promised time stands for the peer.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.runner import Benchmark

HOUSE = Path(__file__).resolve().parent.parent
STARTS = {"audit": "covid_lab.audit.command", "report": "covid_lab.report.build"}
LEFT_BEHIND = (".git", ".venv", ".floor", ".cache", "demo", "smoke", "submission", "__pycache__")


def benchmarks() -> Iterator[Benchmark]:
    """Measure how fast commands start, and how long the demo and all tests take.

    Yields
    ------
    Benchmark
        One command.
    """
    for name, module in STARTS.items():
        yield _promise(
            f"start of `python -m covid_lab {name}`",
            2.0,
            lambda module=module: seconds([sys.executable, "-c", f"import {module}"]),
            repeats=7,
        )
    yield _promise("`make run`, the demo, after installation", 300.0, lambda: make("run"))
    yield _promise("`make test`, after installation", 900.0, lambda: make("test"))


def seconds(command: list[str], folder: Path = HOUSE) -> float:
    """Measure how long a command takes.

    Parameters
    ----------
    command : list of str
        Program and its arguments.
    folder : Path
        Working directory.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    subprocess.CalledProcessError
        The command fails.
    """
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True)  # its output shows the progress
    return time.perf_counter() - start


def make(target: str) -> float:
    """Measure a target of the Makefile in a copy of the project, where nothing is cached.

    Parameters
    ----------
    target : str
        Such as "run".

    Returns
    -------
    float
        Seconds.
    """
    # Beside the project, as the tests look for real images there.
    with tempfile.TemporaryDirectory(dir=HOUSE.parent, prefix="benchmark-") as folder:
        left = shutil.ignore_patterns(*LEFT_BEHIND)
        shutil.copytree(HOUSE, folder, ignore=left, dirs_exist_ok=True)
        return seconds(["make", target, f"VENV={sys.prefix}"], Path(folder))


def _promise(name: str, promised: float, run: Callable[[], float], repeats: int = 1) -> Benchmark:
    return Benchmark(
        name=name,
        against=f"the {promised:g} seconds promised",
        ours=run,
        peer=lambda: promised,
        promised=1,
        repeats=repeats,
        unit="seconds",
    )
