"""Hyperparameter search: every trial trains a new model and is a row; the best model is stored.

`propose` is the whole strategy, a function of the finished trials only. An interrupted search
therefore needs only its CSV file to continue.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import keras
import numpy as np
import pandas as pd

from covid_project.evaluation import cross_entropy, point_metrics
from covid_project.files import append_rows, fingerprint, read_csv, write_csv
from covid_project.models import logits
from covid_project.results import Run
from covid_project.settings import Axis
from covid_project.training import best_epoch

OBJECTIVE = "val_loss"  # minimised: finer than accuracy, and it penalises false confidence

Hyperparameters = dict[str, float]


def propose(
    axes: Mapping[str, Axis], start: Hyperparameters, trials: pd.DataFrame, strategy: str
) -> list[Hyperparameters]:
    """Choose the hyperparameters to try next.

    Parameters
    ----------
    axes : mapping of str to Axis
        Range of each hyperparameter, the most important first.
    start : dict of str to float
        Where a search of one hyperparameter at a time begins.
    trials : pd.DataFrame
        Finished trials: one column per hyperparameter and the column `OBJECTIVE`; a value that
        is not finite marks a failed trial.
    strategy : str
        "grid": all combinations. "one at a time": each hyperparameter in turn, the others at the
        best values so far. With both, as long as the best value of a hyperparameter is on the
        edge of what was tried, the next value beyond is tried, up to the axis' limit.

    Returns
    -------
    list of dict
        Empty when the search is over.

    Raises
    ------
    ValueError
        Unknown strategy.
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


def _in_turn(function: Callable, points: Sequence) -> Iterator[tuple[int, object]]:
    """Yield the position and the result of each point, one after the other."""
    for position, point in enumerate(points):
        yield position, function(point)


run_points = _in_turn  # how trials are run; may be replaced to spread them over many processes


def search(
    run: Run,
    name: str,
    axes: Mapping[str, Axis],
    start: Hyperparameters,
    run_trial: Callable[[Hyperparameters], tuple[keras.Model, pd.DataFrame]],
    validation: tuple[np.ndarray, np.ndarray],
    *,
    strategy: str,
    identity: Mapping[str, object],
) -> pd.DataFrame:
    """Run the trials that are still missing, keep the best model, return all trials.

    Parameters
    ----------
    run : Run
        Its folder gets ``tuning_<name>.csv``, which grows by one row per finished trial, and the
        best trial's model and history under the stage ``<name>_tuned``.
    name : str
        Name of the search.
    axes : mapping of str to Axis
    start : dict of str to float
        As for `propose`.
    run_trial : callable
        Builds a new model for the given hyperparameters, trains it and returns it with its history
        (`training.TrainingLog`). ``FloatingPointError`` marks the trial as failed.
    validation : tuple of np.ndarray
        Inputs (N, ...) and labels (N,) of the validation split, on which each model is scored.
    strategy : str
        As for `propose`.
    identity : mapping
        Data, seed, settings and versions (`Run.identity`), written into every row. Trials of other
        data or settings are set aside under another name.

    Returns
    -------
    pd.DataFrame
        Columns: trial, the hyperparameters, best_epoch, val_loss, one column for each validation
        metric, initial_model (fingerprint of the first weights), seconds, extension (beyond the
        planned range), and the identity.

    Examples
    --------
    >>> def run_trial(point):
    ...     history = pd.DataFrame({"loss": [0.7]})
    ...     history.attrs["initial_model"] = "first weights"
    ...     return model, history
    >>> rates = {"rate": Axis(values=(0.001,), low=0.001, high=0.001, times=10)}
    >>> options = {"strategy": "grid", "identity": run.identity()}
    >>> trials = search(run, "example", rates, {}, run_trial, (images, labels), **options)
    example, trial 1: rate 0.001: loss ... in ... s; 0 more planned, 0 min left
    >>> trials[["trial", "rate", "best_epoch"]]
       trial   rate  best_epoch
    0      1  0.001           1
    """
    path, stage = run.folder / f"tuning_{name}.csv", f"{name}_tuned"
    trials = resumed_trials(path, identity)
    if len(trials):
        print(f"{name}: {len(trials)} finished trials found in {path.name}; continuing")
    else:
        trials = pd.DataFrame(columns=["trial", *axes, OBJECTIVE])
    trial = partial(_trial, run_trial, validation)
    while points := propose(axes, start, trials, strategy):
        taken = set(trials["trial"])
        numbers = [k for k in range(1, len(taken) + len(points) + 1) if k not in taken]
        for done, (position, (row, model, history)) in enumerate(run_points(trial, points), 1):
            point = points[position]
            extension = any(point[key] not in axis.values for key, axis in axes.items())
            row = {"trial": numbers[position], **point, **row, "extension": extension, **identity}
            if _is_best(row, trials):
                run.save_model(stage, model, history, _recipe(row, axes, identity))
            trials = append_rows(path, pd.DataFrame([row]))
            _report(name, point, row, trials, waiting=len(points) - done)
        trials = trials.sort_values("trial", ignore_index=True)
        write_csv(path, trials)  # several processes finish in any order
    if not np.isfinite(trials[OBJECTIVE].astype(float)).any():
        return trials
    best = best_trial(trials)
    if not run.has_model(stage, _recipe(best, axes, identity)):
        print(f"{name}: the model of the best trial is missing and is trained again")
        _, model, history = trial({key: _plain(best[key]) for key in axes})
        run.save_model(stage, model, history, _recipe(best, axes, identity))
    return trials


def _trial(
    run_trial: Callable, validation: tuple[np.ndarray, np.ndarray], point: Hyperparameters
) -> tuple[dict, keras.Model | None, pd.DataFrame | None]:
    """Return the columns of a trial, its model and its history; no model where it failed."""
    begun = time.perf_counter()
    try:
        model, history = run_trial(point)
    except FloatingPointError as error:
        print(f"trial {point} failed: {error}", flush=True)
        seconds = round(time.perf_counter() - begun, 2)
        return {OBJECTIVE: np.nan, "seconds": seconds}, None, None
    inputs, labels = validation
    scores = logits(model, inputs)
    metrics = {f"val_{name}": value for name, value in point_metrics(labels, scores).items()}
    row = {
        # With a validation loss the model has the weights of its best epoch, else of its last.
        "best_epoch": best_epoch(history) if OBJECTIVE in history else len(history),
        OBJECTIVE: cross_entropy(labels, scores),
        **metrics,
        "initial_model": history.attrs["initial_model"],
        "seconds": round(time.perf_counter() - begun, 2),
    }
    return row, model, history


def _recipe(row: Mapping, axes: Mapping[str, Axis], identity: Mapping) -> dict:
    """Return what identifies the model of a trial."""
    return {**identity, "trial": int(row["trial"]), **{key: float(row[key]) for key in axes}}


def _is_best(row: Mapping, trials: pd.DataFrame) -> bool:
    losses = trials[OBJECTIVE].astype(float)
    return bool(np.isfinite(row[OBJECTIVE]) and not (losses <= row[OBJECTIVE]).any())


def resumed_trials(path, identity: Mapping[str, object]) -> pd.DataFrame:
    """Read the finished trials of this search; the file of another search is renamed.

    Parameters
    ----------
    path : Path
        The CSV file of the search.
    identity : mapping
        Columns that must have these values in every row, except "versions".

    Returns
    -------
    pd.DataFrame
        Empty where there are none.
    """
    trials = read_csv(path)
    others = {
        f"{name} {found}"
        for name, value in identity.items()
        if name != "versions"  # recorded, but a search may continue after an update
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
    name: str, point: Hyperparameters, row: Mapping, trials: pd.DataFrame, waiting: int
) -> None:
    values = ", ".join(f"{key} {value:g}" for key, value in point.items())
    minutes = waiting * trials["seconds"].mean() / 60
    print(
        f"{name}, trial {row['trial']}: {values}: loss {row[OBJECTIVE]:.4f} in "
        f"{row['seconds']:.0f} s; {waiting} more planned, {minutes:.0f} min left",
        flush=True,
    )


def best_hyperparameters(trials: pd.DataFrame, names) -> Hyperparameters:
    """Return the hyperparameters of the `best_trial`.

    Parameters
    ----------
    trials : pd.DataFrame
        From `search`.
    names : iterable of str

    Returns
    -------
    dict of str to float
        Counts are integers.

    Examples
    --------
    >>> trials = pd.DataFrame({"units": [32.0, 64.0], "val_loss": [0.5, 0.4]})
    >>> best_hyperparameters(trials, ["units"])
    {'units': 64}
    """
    row = best_trial(trials)
    return {name: _plain(row[name]) for name in names}


def best_trial(trials: pd.DataFrame) -> pd.Series:
    """Find the trial with the lowest finite objective; the first where several are equal.

    Parameters
    ----------
    trials : pd.DataFrame
        From `search`.

    Returns
    -------
    pd.Series
        The trial's row.

    Raises
    ------
    ValueError
        No trial has a finite objective.

    Examples
    --------
    >>> int(best_trial(pd.DataFrame({"trial": [1, 2], "val_loss": [0.5, 0.4]}))["trial"])
    2
    """
    finite = trials[np.isfinite(trials[OBJECTIVE].astype(float))]
    if finite.empty:
        raise ValueError(
            f"none of {len(trials)} trials has a finite {OBJECTIVE}: lower the learning rates"
        )
    return finite.loc[finite[OBJECTIVE].idxmin()]


def _centre(trials: pd.DataFrame, axes: Mapping[str, Axis]) -> Hyperparameters:
    """Return the best point so far; where every trial failed, the one with the smallest values.

    A smaller learning rate is the likeliest to succeed, so the search continues downwards.
    """
    if np.isfinite(trials[OBJECTIVE].astype(float)).any():
        return best_hyperparameters(trials, axes)
    row = trials.sort_values([*axes]).iloc[0]
    return {name: _plain(row[name]) for name in axes}


def _beyond(axes, name: str, best: Hyperparameters, trials) -> Hyperparameters | None:
    """Return the next point outwards along an axis, where the best value is on an edge."""
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
    """Return which trials have these values, up to the rounding of a CSV."""
    same = np.ones(len(trials), bool)
    for name, value in point.items():
        same &= np.isclose(trials[name].astype(float), value, rtol=1e-9, atol=0)
    return same


def _is_tried(point: Hyperparameters, trials: pd.DataFrame) -> bool:
    return len(trials) > 0 and bool(_same(trials, point).any())


def _plain(value: float) -> float:
    return int(value) if float(value).is_integer() and abs(value) >= 1 else float(value)
