"""Benchmarks of whole commands, each in a process or a copy of the project of its own.

Where a time was promised and not a ratio to a peer, the promised time stands for the peer.
"""

import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.runner import Benchmark

HOUSE = Path(__file__).resolve().parent.parent
DATA = HOUSE.parent / "shared" / "data" / "covid_xray.zip"
STARTS = {"audit": "covid_lab.audit.command", "report": "covid_lab.report.build"}
LEFT_BEHIND = (".git", ".venv", ".floor", ".cache", "demo", "smoke", "submission", "__pycache__")


def benchmarks() -> Iterator[Benchmark]:
    """Measure how fast commands start and how long audit, first overlay, demo and tests take.

    The audit reads 2,200 radiographs and the overlay one of them, from ``covid_xray.zip`` beside
    the project; without it, these two are left out.

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
    if DATA.is_file():
        yield _promise("`covid-lab audit` of 2,200 radiographs", 20.0, _audit)
        yield _promise("`covid-lab explain`, from start to the overlay", 8.0, _explain, repeats=3)
    yield _promise("`make run`, the demo, after installation", 300.0, lambda: make("run"))
    yield _promise("`make test`, after installation", 300.0, lambda: make("test"))


def _audit() -> float:
    """Measure an audit of the course's images."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        options = ["--data", str(DATA), "--out", folder]
        # A check that fails ends the command with 1.
        return seconds([sys.executable, "-m", "covid_lab", "audit", *options], allowed=(0, 1))


def _explain() -> float:
    """Measure the explanation of one radiograph by the kept baseline."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        with zipfile.ZipFile(DATA) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".png"))
            picture = archive.extract(name, folder)
        options = ["results/models/baseline.keras", picture, "--out", folder]
        return seconds([sys.executable, "-m", "covid_lab", "explain", *options])


def seconds(command: list[str], folder: Path = HOUSE, allowed: Sequence[int] = (0,)) -> float:
    """Measure how long a command takes.

    Parameters
    ----------
    command : list of str
        Program and its arguments.
    folder : Path
        Working directory.
    allowed : sequence of int
        Exit statuses of a success.

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
    done = subprocess.run(command, cwd=folder, check=False)  # its output shows the progress
    if done.returncode not in allowed:
        raise subprocess.CalledProcessError(done.returncode, command)
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
