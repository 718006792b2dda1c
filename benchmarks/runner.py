"""The frame: what a benchmark is, how it is measured, and what is written of it.

Times on a shared machine wander, and two machines differ; the ratio of two runs that follow each
other in one process says what holds. Each benchmark therefore runs its two sides in turn, and gives
the median of the ratios with their range.
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

WORSE = 2 / 3  # of the ratio before: below it, a promise counts as broken
_KEY = ["suite", "name", "against"]
_PACKAGES = ("tensorflow", "keras", "numpy", "tf-keras-vis", "lime")


@dataclass(frozen=True, eq=False)
class Benchmark:
    """One promise: what this project does, and what another way of doing it takes.

    Attributes
    ----------
    name, against : what is done, and by whom or how else.
    ours, peer : do it once. What they return is compared once; where `unit` is not "s", they
        return the measured number instead.
    promised : least ratio of the peer's number to ours; NaN where none is promised.
    agreement : (result of ours, result of peer) → largest difference; None where the sides do not
        compute the same.
    tolerance : largest agreement that is allowed.
    weights : where the network's weights come from.
    repeats : pairs of runs that are measured.
    peer_counts : how often the peer's number counts, where it does but a part of the work (an epoch
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
    """Run both sides once to warm up and to compare, then in turn; return the row of numbers.

    `ours` and `peer` are medians in the benchmark's unit; `ratio` is the median of peer / ours over
    the pairs, `ratio_low` and `ratio_high` the smallest and the largest.
    """
    if benchmark.unit == "s":
        results = benchmark.ours(), benchmark.peer()
        sides = [_timed(benchmark.ours), _timed(benchmark.peer)]
    else:
        results, sides = (), [benchmark.ours, benchmark.peer]
    agreement = benchmark.agreement(*results) if benchmark.agreement else np.nan
    measured = np.empty((benchmark.repeats, 2))
    for repeat in range(benchmark.repeats):
        # In turn the one or the other goes first, so that neither gains from a warm cache.
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
    """Measure one benchmark after the other; give each row as soon as it is there."""
    facts = {"machine": machine(), "versions": versions()}
    for benchmark in benchmarks:
        yield {
            "suite": suite,
            **measure(benchmark),
            **facts,
            "date": time.strftime("%Y-%m-%d"),
        }


def line(row: dict[str, Any]) -> str:
    """One row for the screen, with what it misses."""
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


def promises(rows: Iterable[dict[str, Any]]) -> str:
    """What was promised and whether it is kept, as a table in Markdown."""
    lines = ["| what | against | times as fast | promised | kept |", "| --- " * 5 + "|"]
    for row in rows:
        if not np.isnan(row["promised"]):
            ratio = f"{row['ratio']:.1f} ({row['ratio_low']:.1f}–{row['ratio_high']:.1f})"
            kept = "yes" if row["ratio"] >= row["promised"] else "**no**"
            cells = row["name"], row["against"], ratio, f"{row['promised']:.1f}", kept
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def differs(row: dict[str, Any]) -> bool:
    """Whether the two sides do not give the same: then their times mean nothing."""
    compared = not np.isnan(row["tolerance"])
    return compared and not row["agreement"] <= row["tolerance"]  # a NaN differs, too


def update(path: Path, rows: pd.DataFrame) -> None:
    """Write the rows into a CSV in the place of those of their suites; others stay as they are."""
    before = read_csv(path)
    if not before.empty:
        before = before[~before["suite"].isin(rows["suite"])]
        rows = pd.concat([before, rows], ignore_index=True) if len(before) else rows
    write_csv(path, rows)


def worse(rows: pd.DataFrame, before: pd.DataFrame) -> list[str]:
    """Name the benchmarks whose ratio has fallen by more than a third."""
    if before.empty:
        return []
    both = rows.merge(before, on=_KEY, suffixes=("", "_before"))
    return [
        f"{row['name']} | {row['against']}: ratio {row['ratio']:.2f}, before "
        f"{row['ratio_before']:.2f}"
        for row in both.to_dict("records")
        if row["ratio"] < WORSE * row["ratio_before"]
    ]


def machine() -> str:
    """Processor, cores and system, as a row names them."""
    name = platform.processor() or platform.machine()
    if (facts := Path("/proc/cpuinfo")).is_file():
        models = [text for text in facts.read_text().splitlines() if text.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{name}, {os.cpu_count()} cores"


def versions() -> str:
    """Versions of what is measured."""
    packages = [f"{package} {version(package)}" for package in _PACKAGES]
    return "; ".join([f"python {platform.python_version()}", *packages])
