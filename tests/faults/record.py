"""Counts what was tried and what came out; the long form writes it as a table."""

import platform
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from covid_project.files import read_csv, write_csv

VERSIONS = "; ".join(
    [f"python {platform.python_version()}"]
    + [f"{name} {version(name)}" for name in ("tensorflow", "keras", "numpy", "pillow")]
)
COLUMNS = ["fault", "tried", "outcome", "count", "seed", "versions"]


class Record:
    """Every trial, counted by fault, what was tried and what came out."""

    def __init__(self):
        self.counts = Counter()

    def __call__(self, fault: str, tried: str, outcome: str, seed: int = 0, count: int = 1) -> None:
        self.counts[fault, tried, outcome, seed] += count

    def table(self) -> pd.DataFrame:
        """One row per fault, thing tried and outcome, in the order in which they first came."""
        rows = [
            (fault, tried, outcome, count, seed, VERSIONS)
            for (fault, tried, outcome, seed), count in self.counts.items()
        ]
        return pd.DataFrame(rows, columns=COLUMNS)

    def write(self, path: Path) -> None:
        """Write the table; what was not tried this time keeps its rows."""
        table = self.table()
        if path.is_file():
            found = read_csv(path)
            again = {(fault, tried) for fault, tried, *_ in self.counts}
            tried = zip(found["fault"], found["tried"], strict=True)
            table = pd.concat([found[[pair not in again for pair in tried]], table])
        write_csv(path, table.sort_values("fault", kind="stable", ignore_index=True))
