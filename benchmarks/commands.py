"""The promises in minutes and seconds: whole commands, each in a process or a copy of its own.

Where no ratio to a peer was promised but a time, the promised time stands in the peer's place.
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
    """How soon a command without a network begins, and how long the demo and all tests take."""
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
    """How long a command takes; ``CalledProcessError`` where it fails."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True)  # what it says shows how far it is
    return time.perf_counter() - start


def make(target: str) -> float:
    """Seconds of a target of the Makefile in a copy of the project, where nothing is cached."""
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
