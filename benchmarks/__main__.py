"""Command line: ``python -m benchmarks [SUITE …]``: measure, print and write to a CSV."""

import argparse
import sys
import time
from pathlib import Path

import pandas as pd

from benchmarks import (
    commands,
    explain,
    lungs,
    near_copies,
    perturbations,
    solution,
    statistics,
    training,
)
from benchmarks.runner import differs, line, run, update

SUITES = {
    "explain": explain.benchmarks,
    "training": training.benchmarks,
    "perturbations": perturbations.benchmarks,
    "lungs": lungs.benchmarks,
    "near copies": near_copies.benchmarks,
    "statistics": statistics.benchmarks,
    "course run": solution.benchmarks,
    "commands": commands.benchmarks,
}


def main(arguments: list[str] | None = None) -> int:
    """Measure suites, print the rows and write them.

    Parameters
    ----------
    arguments : list of str, optional
        Options; None: those of the process.

    Returns
    -------
    int
        Exit status: 1 where the results of two sides differ, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"{', '.join(SUITES)} (default: all)"
    )
    parser.add_argument(
        "--to",
        type=Path,
        default=Path("results/benchmarks.csv"),
        help="CSV for the rows; rows of other suites stay (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    strange = set(options.suites) - set(SUITES)
    if strange:
        parser.error(
            f"there is no suite {', '.join(sorted(strange))}; there are {', '.join(SUITES)}"
        )
    start, faults = time.monotonic(), 0
    for suite in options.suites or SUITES:
        print(f"{suite}: up to twenty minutes on an idle machine with two cores", flush=True)
        measured = []
        for row in run(suite, SUITES[suite]()):
            measured.append(row)
            faults += differs(row)
            print(f"{time.monotonic() - start:4.0f} s  {line(row)}", flush=True)
        update(options.to, pd.DataFrame(measured))
    print(f"written: {options.to}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
