"""Hyperparameter search: a new model for every trial, every trial a row, nothing lost.

``propose`` is the whole strategy as a pure function of the trials that are finished. A search cut
off therefore needs nothing but its CSV to go on where it stopped.
"""

import itertools
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from covid_project.evaluation import point_metrics
from covid_project.settings import Axis
from covid_project.storage import append_rows, fingerprint, read_csv, write_csv
from covid_project.workers import each

OBJECTIVE = "val_loss"  # to be minimised: finer than accuracy, and it punishes false confidence

Hyperparameters = dict[str, float]


def propose(
    axes: Mapping[str, Axis], start: Hyperparameters, trials: pd.DataFrame, strategy: str
) -> list[Hyperparameters]:
    """The hyperparameters to try next, given the finished trials; none when the search is over.

    Parameters
    ----------
    axes
        Range of each hyperparameter, in the order of importance.
    start
        Where a search that takes one hyperparameter at a time begins.
    trials
        Finished trials: one column per hyperparameter and the column ``OBJECTIVE``; a value that
        is not finite marks a failed trial.
    strategy
        "grid": all combinations. "one at a time": each hyperparameter in turn, the others at the
        best values so far. With both, as long as the best value of a hyperparameter lies on the
        edge of what was tried, the next one beyond is tried, up to the axis' limit.
    """
    if strategy == "grid":
        combinations = itertools.product(*(axis.values for axis in axes.values()))
        planned = [dict(zip(axes, values, strict=True)) for values in combinations]
        missing = [point for point in planned if not _is_tried(point, trials)]
        if missing:
            return missing
        centre = _centre(trials, axes)
        # One at a time: each may move the centre, and a resumed search must decide the same again.
        further = (_beyond(axes, name, centre, trials) for name in axes)
        return [point for point in further if point][:1]
    if strategy != "one at a time":
        raise ValueError(f"unknown strategy {strategy!r}; allowed: 'grid', 'one at a time'")
    centre = dict(start)
    for name, axis in axes.items():
        line = [{**centre, name: value} for value in axis.values]
        missing = [point for point in line if not _is_tried(point, trials)]
        if missing:
            return missing
        # Only trials on this line decide, so that a resumed search decides the same again.
        on_line = trials[_same(trials, {key: centre[key] for key in axes if key != name})]
        best = _centre(on_line, axes)
        point = _beyond(axes, name, best, on_line)
        if point:
            return [point]
        centre = best
    return []


def search(
    axes: Mapping[str, Axis],
    start: Hyperparameters,
    run_trial: Callable[[Hyperparameters], Mapping[str, float]],
    path: Path,
    *,
    strategy: str,
    identity: Mapping[str, object],
    title: str,
    workers: int = 1,
    backend: str = "loky",
) -> pd.DataFrame:
    """Run the trials that are still missing and return all of them.

    Parameters
    ----------
    run_trial
        Builds a new model, trains it with early stopping and returns best_epoch and the validation
        metrics at that epoch. A ``FloatingPointError`` (the loss is no longer finite) marks the
        trial as failed and the search goes on.
    path
        CSV that grows by one row per finished trial: trial, the hyperparameters, what
        ``run_trial`` returned, seconds, extension (beyond the planned range) and the identity.
    identity
        Data, seed, settings and versions of the search, written into every row. Trials of other
        data or settings found at ``path`` are set aside under another name.
    workers, backend
        As for ``workers.each``. Trials that do not depend on each other run at once; the table is
        the same whoever ran them, and in the same order.
    """
    trials = _resume(path, identity)
    if trials.empty:
        trials = pd.DataFrame(columns=[*axes, OBJECTIVE])
    else:
        print(f"{title}: {len(trials)} finished trials found in {path.name}, going on from there")
    while points := propose(axes, start, trials, strategy):
        taken = set() if trials.empty else set(trials["trial"])
        free = (number for number in itertools.count(1) if number not in taken)
        numbers = list(itertools.islice(free, len(points)))
        measured = partial(_measured, run_trial, failed={OBJECTIVE: np.nan})
        done = each(measured, points, workers=workers, backend=backend)
        for finished, (index, (found, seconds, failure)) in enumerate(done, start=1):
            point = points[index]
            if failure:
                print(f"{title}: {failure}", flush=True)
            row = {
                "trial": numbers[index],
                **point,
                **found,
                "seconds": seconds,
                "extension": any(point[name] not in axis.values for name, axis in axes.items()),
                **identity,
            }
            trials = append_rows(path, pd.DataFrame([row]))
            _report(title, point, row, trials, waiting=len(points) - finished, workers=workers)
        trials = _in_order(path, trials.sort_values("trial", ignore_index=True))
    return trials


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
    """Measure named cases (seeds, variants of a model), one row each; nothing is chosen here.

    Parameters
    ----------
    cases
        Name → what ``run_case`` is given. Cases whose name is found at ``path`` are not repeated.
    run_case
        Trains a new model and returns its columns. A ``FloatingPointError`` marks the case as
        failed: its columns stay empty.
    path, identity, workers, backend
        As for ``search``.

    Returns
    -------
    Columns case, those of ``run_case``, seconds and the identity, in the order of the cases.
    """
    rows = _resume(path, identity)
    waiting = [name for name in cases if rows.empty or name not in set(rows["case"])]
    measured = partial(_measured, run_case, failed={})
    done = each(measured, [cases[name] for name in waiting], workers=workers, backend=backend)
    for finished, (index, (found, seconds, failure)) in enumerate(done, start=1):
        name = waiting[index]
        if failure:
            print(f"{title}: {name}: {failure}", flush=True)
        rows = append_rows(
            path, pd.DataFrame([{"case": name, **found, "seconds": seconds, **identity}])
        )
        left = (len(waiting) - finished) * rows["seconds"].mean() / workers
        print(f"{title}: {name} done in {seconds:.0f} s; {left:.0f} s left", flush=True)
    rows = rows.set_index("case")
    others = [name for name in rows.index if name not in cases]
    return _in_order(path, rows.loc[[*cases, *others]].reset_index())[: len(cases)]


def _measured(
    run: Callable[[object], Mapping[str, float]], what: object, *, failed: Mapping[str, float]
) -> tuple[dict[str, float], float, str]:
    """What a trial found, its seconds, and why it failed, if it did."""
    begun, failure = time.perf_counter(), ""
    try:
        found = dict(run(what))
    except FloatingPointError as error:
        found, failure = dict(failed), str(error)
    return found, round(time.perf_counter() - begun, 2), failure


def _in_order(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, also as they lie on disk, where workers may have finished in another order."""
    if not rows.equals(read_csv(path)):
        write_csv(path, rows)
    return rows


def outcome(
    best_epoch: int, val_loss: float, labels: np.ndarray, scores: np.ndarray
) -> dict[str, float]:
    """Columns of a trial: its best epoch, and the validation metrics of its model at that epoch.

    ``labels`` and ``scores`` (N,) are those of the validation images, scores as logits.
    """
    metrics = point_metrics(labels, scores)
    named = {f"val_{name}": value for name, value in metrics.items()}
    return {"best_epoch": best_epoch, OBJECTIVE: val_loss, **named}


def _resume(path: Path, identity: Mapping[str, object]) -> pd.DataFrame:
    """The finished trials of this very search; those of another one are set aside, not mixed in."""
    trials = read_csv(path)
    others = {
        f"{name} {found}"
        for name, value in identity.items()
        if name != "versions"  # recorded, but a search may go on after an update
        for found in (trials[name].astype(str).unique() if name in trials else ["unknown"])
        if len(trials) and found != str(value)
    }
    if not others:
        return trials
    aside = path.with_name(f"{path.stem}-{fingerprint(path.read_bytes())}.csv")
    os.replace(path, aside)
    print(f"{path.name} held another search ({', '.join(sorted(others))}): kept as {aside.name}")
    return pd.DataFrame()


def _report(
    title: str, point: Hyperparameters, row: Mapping, trials, waiting: int, workers: int
) -> None:
    values = ", ".join(f"{name} {value:g}" for name, value in point.items())
    left = waiting * trials["seconds"].mean() / workers
    print(
        f"{title}: trial {row['trial']}: {values}: {OBJECTIVE} {row[OBJECTIVE]:.4f} "
        f"in {row['seconds']:.0f} s; {waiting} more planned, {left:.0f} s left",
        flush=True,
    )


def best_hyperparameters(trials: pd.DataFrame, names) -> Hyperparameters:
    """Hyperparameters of the finished trial with the lowest objective; counts stay integers.

    Raises
    ------
    ValueError
        No trial has a finite objective.
    """
    row = best_trial(trials)
    return {name: _plain(row[name]) for name in names}


def best_trial(trials: pd.DataFrame) -> pd.Series:
    """The row with the lowest finite objective; the earliest where several are equal."""
    finite = trials[np.isfinite(trials[OBJECTIVE].astype(float))]
    if finite.empty:
        raise ValueError(
            f"none of {len(trials)} trials has a finite {OBJECTIVE}: lower the learning rates"
        )
    return finite.loc[finite[OBJECTIVE].idxmin()]


def _centre(trials: pd.DataFrame, axes: Mapping[str, Axis]) -> Hyperparameters:
    """The best point so far; where every trial failed, the one with the smallest values.

    A smaller learning rate is the likeliest to succeed, so the search goes on downwards.
    """
    if np.isfinite(trials[OBJECTIVE].astype(float)).any():
        return best_hyperparameters(trials, axes)
    row = trials.sort_values([*axes]).iloc[0]
    return {name: _plain(row[name]) for name in axes}


def _beyond(axes, name: str, best: Hyperparameters, trials) -> Hyperparameters | None:
    """The next point outwards along an axis, where the best value lies on the edge of its line."""
    axis, value = axes[name], best[name]
    others = {key: best[key] for key in axes if key != name}
    line = trials[_same(trials, others)][name].astype(float)
    if line.min() < value < line.max():
        return None
    for outwards in (-1, 1):
        if (outwards < 0 and value > line.min()) or (outwards > 0 and value < line.max()):
            continue
        further = value * axis.times**outwards if axis.times else value + outwards * axis.plus
        further = round(further) if isinstance(axis.values[0], int) else float(f"{further:.6g}")
        point = {**best, name: further}
        if axis.low <= further <= axis.high and not _is_tried(point, trials):
            return point
    return None


def _same(trials: pd.DataFrame, point: Mapping[str, float]) -> np.ndarray:
    """Which trials have these values, up to the rounding of a CSV."""
    same = np.ones(len(trials), bool)
    for name, value in point.items():
        same &= np.isclose(trials[name].astype(float), value, rtol=1e-9, atol=0)
    return same


def _is_tried(point: Hyperparameters, trials: pd.DataFrame) -> bool:
    return len(trials) > 0 and bool(_same(trials, point).any())


def _plain(value: float) -> float:
    return int(value) if float(value).is_integer() and abs(value) >= 1 else float(value)
