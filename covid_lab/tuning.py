"""Measure named cases, such as seeds or variants of a model: one row each, without a choice."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from covid_lab.progress import tracked
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
) -> pd.DataFrame:
    """Measure named cases and return one row for each.

    Parameters
    ----------
    cases : mapping of str to object
        Name → argument of ``run_case``. Cases whose name is found at ``path`` are not repeated.
    run_case : callable
        Trains a new model and returns its columns. ``FloatingPointError`` marks the case as failed:
        its columns stay empty.
    path : Path
        CSV that grows by one row per finished case.
    identity : mapping of str to object
        Data, seed, settings and versions, written into every row. Rows of other data or settings
        are moved to another file.
    title : str
        Names the work in its lines of progress.

    Returns
    -------
    pd.DataFrame
        Columns case, those of ``run_case``, seconds and the identity, in the order of the cases.

    Examples
    --------
    >>> cases = {"half": 0.5, "double": 2.0}
    >>> options = {"path": Path("cases.csv"), "identity": {"seed": 0}, "title": "factors"}
    >>> table = measure_each(cases, lambda factor: {"result": 10 * factor}, **options)
    factors: cases: 2 of 2 in ...
    >>> table[["case", "result"]]
         case  result
    0    half     5.0
    1  double    20.0
    """
    rows = resumed_trials(path, identity)
    waiting = [name for name in cases if rows.empty or name not in set(rows["case"])]
    for name in tracked(waiting, f"{title}: cases"):
        begun, found = time.perf_counter(), {}
        try:
            found = run_case(cases[name])
        except FloatingPointError as error:
            print(f"{title}: {name}: {error}", flush=True)
        seconds = round(time.perf_counter() - begun, 2)
        row = {"case": name, **found, "seconds": seconds, **identity}
        rows = append_rows(path, pd.DataFrame([row]))
    rows = rows.set_index("case")
    others = [name for name in rows.index if name not in cases]
    rows = rows.loc[[*cases, *others]].reset_index()
    if not rows.equals(read_csv(path)):  # an earlier call had the cases in another order
        write_csv(path, rows)
    return rows[: len(cases)]


def validation_columns(
    best_epoch: int, val_loss: float, labels: np.ndarray, scores: np.ndarray
) -> dict[str, float]:
    """Return the validation columns of a case.

    Parameters
    ----------
    best_epoch : int, from 1
    val_loss : float
        In that epoch.
    labels : np.ndarray, (N,)
        0 or 1, of the validation images.
    scores : np.ndarray, (N,)
        Logits.

    Returns
    -------
    dict of str to float
        best_epoch, val_loss and ``val_<metric>`` for each metric.

    Examples
    --------
    >>> found = validation_columns(3, 0.4, np.array([0, 1]), np.array([-1.0, 1.0]))
    >>> found["best_epoch"], found["val_accuracy"]
    (3, 1.0)
    """
    metrics = {f"val_{name}": value for name, value in point_metrics(labels, scores).items()}
    return {"best_epoch": best_epoch, OBJECTIVE: val_loss, **metrics}
