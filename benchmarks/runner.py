"""What a benchmark is, how it is measured, and how its rows are written.

Times on a shared machine vary, and two machines differ. The ratio of two runs that follow each
other in one process is more stable. Each benchmark therefore alternates between its two sides, and
its result is the median of the ratios with their range.
"""

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from covid_project.files import read_csv, write_csv

_PACKAGES = ("tensorflow", "keras", "numpy", "tf-keras-vis", "lime")


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A comparison of this project with another way to do the same.

    Attributes
    ----------
    name : str
        What is done.
    against : str
        By whom, or how else.
    ours : callable
        Does it once. What both sides return is compared once; where ``unit`` is not "s", they
        return the measured number instead.
    peer : callable
        Does it once in the other way.
    promised : float
        Smallest ratio of the peer's number to ours; NaN where none is promised.
    agreement : callable, optional
        (result of ours, result of peer) → largest difference; None where the sides do not compute
        the same.
    tolerance : float
        Largest agreement that is allowed.
    weights : str
        Where the network's weights come from.
    repeats : int, from 1
        Pairs of runs that are measured.
    unit : str
        Unit of the measured numbers.
    peer_counts : int, from 1
        How often the peer's number counts, where it does only a part of the work (such as one epoch
        of a sweep).
    """

    name: str
    against: str
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    promised: float = np.nan
    agreement: Callable[[Any, Any], float] | None = None
    tolerance: float = np.nan
    weights: str = "random"
    repeats: int = 7
    unit: str = "s"
    peer_counts: int = 1


def measure(benchmark: Benchmark) -> dict[str, Any]:
    """Run both sides once to warm up and to compare them, then alternately to measure them.

    Parameters
    ----------
    benchmark : Benchmark
        The comparison.

    Returns
    -------
    dict
        A row of the table. ``ours`` and ``peer`` are medians in the benchmark's unit. ``ratio`` is
        the median of peer / ours over the pairs; ``ratio_low`` and ``ratio_high`` are the smallest
        and the largest.
    """
    if benchmark.unit == "s":
        results = benchmark.ours(), benchmark.peer()
        sides = [_timed(benchmark.ours), _timed(benchmark.peer)]
    else:
        results, sides = (), [benchmark.ours, benchmark.peer]
    agreement = benchmark.agreement(*results) if benchmark.agreement else np.nan
    measured = np.empty((benchmark.repeats, 2))
    for repeat in range(benchmark.repeats):
        # The sides take turns to go first, so that neither gains from a warm cache.
        for side in (0, 1) if repeat % 2 == 0 else (1, 0):
            measured[repeat, side] = sides[side]()
    measured[:, 1] *= benchmark.peer_counts
    ratios = measured[:, 1] / measured[:, 0]
    ours, peer = np.median(measured, axis=0)
    return {
        "name": benchmark.name,
        "against": benchmark.against,
        "unit": benchmark.unit,
        "ours": ours,
        "peer": peer,
        "ratio": np.median(ratios),
        "ratio_low": ratios.min(),
        "ratio_high": ratios.max(),
        "promised": benchmark.promised,
        "agreement": agreement,
        "tolerance": benchmark.tolerance,
        "weights": benchmark.weights,
        "repeats": benchmark.repeats,
    }


def _timed(function: Callable[[], Any]) -> Callable[[], float]:
    def seconds() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return seconds


def run(suite: str, benchmarks: Iterable[Benchmark]) -> Iterator[dict[str, Any]]:
    """Measure benchmarks one after the other.

    Parameters
    ----------
    suite : str
        Name of the suite.
    benchmarks : iterable of Benchmark
        Its comparisons.

    Yields
    ------
    dict
        Each row as soon as it is measured, see `measure`; also suite, machine, versions and date.
    """
    facts = {"machine": machine(), "versions": versions()}
    for benchmark in benchmarks:
        yield {
            "suite": suite,
            **measure(benchmark),
            **facts,
            "date": time.strftime("%Y-%m-%d"),
        }


def line(row: dict[str, Any]) -> str:
    """Write one row for the screen, with what it misses.

    Parameters
    ----------
    row : dict
        Result of `measure`.

    Returns
    -------
    str
        One line.
    """
    text = (
        f"{row['name']} | {row['against']}: {row['ours']:.3g} against {row['peer']:.3g} "
        f"{row['unit']}, ratio {row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})"
    )
    if not np.isnan(row["promised"]):
        kept = row["ratio"] >= row["promised"]
        text += f", promised {row['promised']:.2f}" + ("" if kept else ": MISSED")
    if not np.isnan(row["agreement"]):
        text += f", agreement {row['agreement']:.1e}"
    return text + (": RESULTS DIFFER" if differs(row) else "")


def differs(row: dict[str, Any]) -> bool:
    """Tell whether the two sides compute different results; then their times mean nothing.

    Parameters
    ----------
    row : dict
        Result of `measure`.

    Returns
    -------
    bool
        False where nothing is compared.
    """
    compared = not np.isnan(row["tolerance"])
    return compared and not row["agreement"] <= row["tolerance"]  # NaN differs too


def update(path: Path, rows: pd.DataFrame) -> None:
    """Write rows into a CSV in place of those of the same suites; other rows stay.

    Parameters
    ----------
    path : Path
        The CSV, which may be missing.
    rows : pd.DataFrame
        The new rows.
    """
    before = read_csv(path)
    if not before.empty:
        before = before[~before["suite"].isin(rows["suite"])]
        rows = pd.concat([before, rows], ignore_index=True) if len(before) else rows
    write_csv(path, rows)


def machine() -> str:
    """Name the machine.

    Returns
    -------
    str
        Processor and number of cores.
    """
    name = platform.processor() or platform.machine()
    if (facts := Path("/proc/cpuinfo")).is_file():
        models = [text for text in facts.read_text().splitlines() if text.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{name}, {os.cpu_count()} cores"


def versions() -> str:
    """Name the versions of Python and of the packages that are measured.

    Returns
    -------
    str
        Such as "python 3.12.3; tensorflow 2.21.0; …".
    """
    packages = [f"{package} {version(package)}" for package in _PACKAGES]
    return "; ".join([f"python {platform.python_version()}", *packages])
