"""Measure named cases, such as seeds or variants of a model: one row each, nothing is chosen."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from covid_lab.runs.workers import each
from covid_project.evaluation import point_metrics
from covid_project.files import append_rows, read_csv, write_csv
from covid_project.tuning import OBJECTIVE, resumed_trials


def measure_each(
    cases: Mapping[str, object],
    run_case: Callable[[object], Mapping[str, float]],
    path: Path,
    *,
    identity: Mapping[str, object],
    title: str,
    workers: int = 1,
    backend: str = "loky",
) -> pd.DataFrame:
    """Measure named cases and return one row for each.

    Parameters
    ----------
    cases : mapping
        Name → what ``run_case`` is given. Cases whose name is found at ``path`` are not repeated.
    run_case : callable
        Trains a new model and returns its columns. ``FloatingPointError`` marks the case as failed:
        its columns stay empty.
    path : Path
        CSV that grows by one row per finished case.
    identity : mapping
        Data, seed, settings and versions, written into every row. Rows of other data or settings
        are set aside under another name.
    title : str
        For the lines of progress.
    workers, backend
        As for `workers.each`.

    Returns
    -------
    pd.DataFrame
        Columns case, those of ``run_case``, seconds and the identity, in the order of the cases.
    """
    rows = resumed_trials(path, identity)
    waiting = [name for name in cases if rows.empty or name not in set(rows["case"])]
    measured = partial(_measured, run_case)
    done = each(measured, [cases[name] for name in waiting], workers=workers, backend=backend)
    for finished, (index, (found, seconds, failure)) in enumerate(done, start=1):
        name = waiting[index]
        if failure:
            print(f"{title}: {name}: {failure}", flush=True)
        row = {"case": name, **found, "seconds": seconds, **identity}
        rows = append_rows(path, pd.DataFrame([row]))
        left = (len(waiting) - finished) * rows["seconds"].mean() / workers
        print(f"{title}: {name} done in {seconds:.0f} s; {left:.0f} s left", flush=True)
    rows = rows.set_index("case")
    others = [name for name in rows.index if name not in cases]
    rows = rows.loc[[*cases, *others]].reset_index()
    if not rows.equals(read_csv(path)):  # several workers finish in any order
        write_csv(path, rows)
    return rows[: len(cases)]


def _measured(
    run_case: Callable[[object], Mapping[str, float]], case: object
) -> tuple[dict[str, float], float, str]:
    """Columns of a case, its seconds, and why it failed, if it did."""
    begun, found, failure = time.perf_counter(), {}, ""
    try:
        found = dict(run_case(case))
    except FloatingPointError as error:
        failure = str(error)
    return found, round(time.perf_counter() - begun, 2), failure


def validation_columns(
    best_epoch: int, val_loss: float, labels: np.ndarray, scores: np.ndarray
) -> dict[str, float]:
    """Return the columns best_epoch, val_loss and ``val_<metric>`` of a case.

    Parameters
    ----------
    best_epoch : int
    val_loss : float
        In that epoch.
    labels, scores : np.ndarray, (N,)
        Of the validation images; scores are logits.
    """
    metrics = {f"val_{name}": value for name, value in point_metrics(labels, scores).items()}
    return {"best_epoch": best_epoch, OBJECTIVE: val_loss, **metrics}
