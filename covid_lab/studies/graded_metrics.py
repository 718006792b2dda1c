"""Metrics of graded answers: for any number of ordered classes, with intervals.

Intervals are over patients or images (`metrics_table`), or over trainings (`interval_over_seeds`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t

from covid_project.evaluation import LEVEL, area_under_roc, percentile_interval

METRICS = (
    "accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_F1", "AUC",
    "kappa", "MAE",
)  # fmt: skip
RESAMPLES = 500


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Predictions of a classifier for N inputs.

    Attributes
    ----------
    scores : np.ndarray, (N, K)
        Larger for likelier classes; probabilities, except those of an SVM.
    predicted : np.ndarray, int (N,)
    """

    scores: np.ndarray
    predicted: np.ndarray


def graded_metrics(
    labels: np.ndarray, verdicts: Verdicts, *, scored: bool = True
) -> dict[str, float]:
    """Compute all `METRICS`.

    Parameters
    ----------
    labels : np.ndarray, int (N,)
        From 0 to K − 1.
    verdicts : Verdicts
    scored : bool
        Whether the AUC is computed, which takes most of the time.

    Returns
    -------
    dict from str to float
        ``AUC`` is the mean over the classes of one against the rest; ``kappa`` is Cohen's (1968)
        with quadratic weights, 1 for perfect and 0 for chance; ``MAE`` is the mean absolute error
        in grades. Precision, recall and F1 are means over classes; a class that is never predicted
        has F1 0 and precision 0. Classes without any label do not count.

    Raises
    ------
    ValueError
        No labels, another number of predictions, or a label outside 0 to K − 1.

    Examples
    --------
    >>> verdicts = Verdicts(np.eye(3), np.array([0, 1, 2]))
    >>> found = graded_metrics(np.array([0, 1, 1]), verdicts)
    >>> round(float(found["accuracy"]), 2), round(float(found["MAE"]), 2)
    (0.67, 0.33)
    """
    labels, count = np.asarray(labels, int), verdicts.scores.shape[1]
    if labels.shape != verdicts.predicted.shape or not len(labels):
        raise ValueError(f"{labels.shape} labels for verdicts {verdicts.predicted.shape}")
    if labels.min() < 0 or labels.max() >= count:
        raise ValueError(f"labels lie in {labels.min()}…{labels.max()}; there are {count} classes")
    pairs = np.bincount(count * labels + verdicts.predicted, minlength=count**2)
    found = _from_counts(pairs.reshape(count, count))  # rows are labels, columns predictions
    return {**found, "AUC": _one_against_rest(labels, verdicts.scores)} if scored else found


def metrics_table(
    labels: np.ndarray, verdicts: Verdicts, seed: int = 0, groups: np.ndarray | None = None
) -> pd.DataFrame:
    """Compute all `METRICS` with 95 % percentile intervals of a bootstrap.

    Parameters
    ----------
    labels : np.ndarray, int (N,)
        From 0 to K − 1.
    verdicts : Verdicts
    seed : int
        Seed of the bootstrap.
    groups : np.ndarray, (N,), optional
        Patients: whole patients are resampled. By default images are, within each class.

    Returns
    -------
    pd.DataFrame
        One row per metric: metric, value, low, high, n.
    """
    labels = np.asarray(labels, int)
    values = graded_metrics(labels, verdicts)
    drawn = []
    for rows in resamples(labels if groups is None else groups, seed, whole=groups is not None):
        again = Verdicts(verdicts.scores[rows], verdicts.predicted[rows])
        drawn.append(graded_metrics(labels[rows], again))
    intervals = {name: percentile_interval([one[name] for one in drawn]) for name in METRICS}
    rows = [(name, values[name], *intervals[name], len(labels)) for name in METRICS]
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n"])


def resamples(groups: np.ndarray, seed: int, *, whole: bool) -> Iterator[np.ndarray]:
    """Draw `RESAMPLES` sets of rows with replacement.

    Parameters
    ----------
    groups : np.ndarray, (N,)
        Patients or classes.
    seed : int
    whole : bool
        True: as many groups as there are, each with all its rows (cluster bootstrap, Field & Welsh
        2007). False: rows within each group, so that each keeps its size.

    Yields
    ------
    np.ndarray, int (M,)
        M is N unless groups are drawn whole.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    for _ in range(RESAMPLES):
        if whole:
            yield np.concatenate([members[n] for n in rng.integers(0, len(members), len(members))])
        else:
            yield np.concatenate([rng.choice(group, len(group)) for group in members])


def interval_over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Compute the mean of a metric over trainings from several seeds, with Student's 95 % interval.

    The interval covers the randomness of the training only, not that of the test images.

    Parameters
    ----------
    values : sequence of float
        One value per seed.

    Returns
    -------
    mean, low, high : float
        The bounds are NaN for a single seed.

    Examples
    --------
    >>> [round(value, 2) for value in interval_over_seeds([0.8, 0.9, 1.0])]
    [0.9, 0.65, 1.15]
    """
    values = np.asarray(values, float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = t.ppf(0.5 + LEVEL / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return mean, mean - float(half), mean + float(half)


def _from_counts(counts: np.ndarray) -> dict[str, float]:
    counts = counts.astype(float)
    total, hits = counts.sum(), np.diag(counts)
    here = counts.sum(axis=1) > 0
    said, are = counts.sum(axis=0)[here], counts.sum(axis=1)[here]
    precision = np.divide(hits[here], said, out=np.zeros(here.sum()), where=said > 0)
    recall = hits[here] / are
    steps = np.abs(np.subtract.outer(np.arange(len(counts)), np.arange(len(counts))))
    by_chance = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / total
    disagreement = (steps**2 * by_chance).sum()
    return {
        "accuracy": hits.sum() / total,
        "balanced_accuracy": recall.mean(),
        "macro_precision": precision.mean(),
        "macro_recall": recall.mean(),
        "macro_F1": (2 * hits[here] / (said + are)).mean(),
        "kappa": 1 - (steps**2 * counts).sum() / disagreement if disagreement else math.nan,
        "MAE": (steps * counts).sum() / total,
    }


def _one_against_rest(labels: np.ndarray, scores: np.ndarray) -> float:
    found = [
        area_under_roc(labels == label, scores[:, label])
        for label in range(scores.shape[1])
        if 0 < (labels == label).sum() < len(labels)
    ]
    return float(np.mean(found)) if found else math.nan
