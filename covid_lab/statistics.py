"""Metrics that only the lab needs: per class, and thresholds chosen on validation data."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from covid_project.evaluation import checked, metrics_table


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
