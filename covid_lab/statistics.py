"""Statistics that only the lab needs: means, metrics per class, thresholds of validation data."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from covid_project.evaluation import LEVEL, RESAMPLES, checked, metrics_table


def mean_interval(
    values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float, float, int]:
    """Compute the mean of the defined values, its 95 % interval, and their number.

    The interval is the percentile interval of a bootstrap (Efron & Tibshirani 1993, ch. 13).

    Parameters
    ----------
    values : np.ndarray, float (N,)
        One value per image, NaN where undefined.
    seed : int, from 0
        Seed of the bootstrap.
    resamples : int, from 1
        Number of resamples.

    Returns
    -------
    mean : float
        NaN without values.
    low, high : float
        NaN for fewer than two values.
    n : int

    Examples
    --------
    >>> mean, low, high, n = mean_interval(np.array([0.0, 1.0, np.nan]))
    >>> mean, n
    (0.5, 2)
    """
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return (float(values[0]) if len(values) else np.nan), np.nan, np.nan, len(values)
    drawn = stats.bootstrap(
        (values,), np.mean, n_resamples=resamples, confidence_level=LEVEL, method="percentile",
        rng=seed,
    )  # fmt: skip
    return float(values.mean()), *map(float, drawn.confidence_interval), len(values)


def class_metrics(
    labels: np.ndarray, scores: np.ndarray, classes: Sequence[str], seed: int = 0
) -> pd.DataFrame:
    """Compute precision, recall and F1 of both classes, with 95 % intervals.

    Parameters
    ----------
    labels : np.ndarray, (N,)
        0 or 1.
    scores : np.ndarray, (N,)
        Logits.
    classes : sequence of str
        Names of the two labels.
    seed : int, from 0
        Of the bootstrap.

    Returns
    -------
    pd.DataFrame
        Columns class, metric, value, low, high, n, method. For the first class, positive and
        negative are exchanged.

    Raises
    ------
    ValueError
        Labels and scores do not fit each other (see `covid_project.evaluation.checked`).

    Examples
    --------
    >>> table = class_metrics(np.repeat([0, 1], 20), np.arange(40.0) - 22, ("NORMAL", "COVID"))
    >>> table[["class", "metric", "value"]].round(2).head(3)
        class     metric  value
    0  NORMAL     recall   1.00
    1  NORMAL  precision   0.87
    2  NORMAL         F1   0.93
    """
    labels, scores = checked(labels, scores)
    predicted = np.where(scores > 0, 1.0, -1.0)
    tables = []
    for label, sign in ((0, -1), (1, 1)):
        table = metrics_table(labels == label, sign * predicted, seed=seed)
        table["metric"] = table["metric"].replace("sensitivity", "recall")
        table.insert(0, "class", classes[label])
        tables.append(table[table["metric"].isin(["precision", "recall", "F1"])])
    return pd.concat(tables, ignore_index=True)


def equal_error_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """Find the score at which sensitivity and specificity are closest to each other.

    It does not depend on how frequent the classes are. It can therefore be chosen on one set and
    used on another with a different mix.

    Parameters
    ----------
    labels : np.ndarray, (N,)
        0 or 1; both occur.
    scores : np.ndarray, (N,)
        Logits.

    Returns
    -------
    float
        Midway between two neighbouring scores; of several equally good ones, the median.

    Raises
    ------
    ValueError
        Only one class, or labels and scores that do not fit each other.

    Examples
    --------
    >>> equal_error_threshold([0, 0, 1, 1], [-3.0, -1.0, 2.0, 5.0])
    0.5
    """
    labels, scores = checked(labels, scores)
    if not 0 < labels.sum() < len(labels):
        raise ValueError("both classes are needed to choose a threshold")
    values = np.unique(scores)
    candidates = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    positives, negatives = np.sort(scores[labels]), np.sort(scores[~labels])
    sensitivity = 1 - np.searchsorted(positives, candidates, side="right") / len(positives)
    specificity = np.searchsorted(negatives, candidates, side="right") / len(negatives)
    gap = np.abs(sensitivity - specificity)
    best = gap == gap.min()  # of several, the middle one: the widest margin to either side
    return float(np.median(candidates[best]))
