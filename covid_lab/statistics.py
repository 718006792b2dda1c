"""Metrics with 95 % intervals, from labels and scores alone, and the ledger of test looks.

Label 1 (COVID) is the positive class. Scores are logits: 0 is the threshold, fixed beforehand.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata

from covid_project.storage import append_rows, read_csv

LEVEL = 0.95
RESAMPLES = 2000
DRAWN = 2**21  # rows of all resamples that are held at once
METRICS = ("accuracy", "sensitivity", "specificity", "precision", "F1", "AUC", "MCC")


def confusion(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Counts [[true negatives, false positives], [false negatives, true positives]], int64."""
    labels, predicted = checked(labels, scores)[0], np.asarray(scores) > 0
    return np.array(
        [
            [np.sum(~labels & ~predicted), np.sum(~labels & predicted)],
            [np.sum(labels & ~predicted), np.sum(labels & predicted)],
        ]
    )


def point_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """All ``METRICS`` of labels (N,) in {0, 1} and scores (N,), logits.

    A metric whose denominator is zero (precision without any positive prediction, AUC or MCC of
    one class) is NaN: undefined, not zero.
    """
    labels, scores = checked(labels, scores)
    counts = confusion(labels, scores)[None].reshape(1, 4)
    values = {name: float(value[0]) for name, value in _from_counts(counts).items()}
    values["AUC"] = float(_auc(labels, scores))
    return {name: values[name] for name in METRICS}


def metrics_table(labels: np.ndarray, scores: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """One row per metric: metric, value, low, high, n, method (95 % intervals).

    Shares of a fixed number of images (accuracy, sensitivity, specificity, precision) have Wilson's
    interval; F1, AUC and MCC the percentile interval of a bootstrap over images, each class
    resampled by itself. ``n`` is the number of images that the metric is a share of.
    """
    labels, scores = checked(labels, scores)
    (true_negative, false_positive), (false_negative, true_positive) = confusion(labels, scores)
    shares = {
        "accuracy": (true_negative + true_positive, len(labels)),
        "sensitivity": (true_positive, true_positive + false_negative),
        "specificity": (true_negative, true_negative + false_positive),
        "precision": (true_positive, true_positive + false_positive),
    }
    resampled = bootstrap(labels, scores, seed=seed)
    rows = []
    for name, value in point_metrics(labels, scores).items():
        if name in shares:
            low, high = wilson_interval(*shares[name])
            method, n = "Wilson", int(shares[name][1])
        else:
            low, high = percentile_interval(resampled[name])
            method, n = f"bootstrap, {RESAMPLES} resamples", len(labels)
        rows.append((name, value, low, high, n, method))
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n", "method"])


def class_metrics(
    labels: np.ndarray, scores: np.ndarray, classes: Sequence[str], seed: int = 0
) -> pd.DataFrame:
    """Precision, recall and F1 of both classes: class, metric, value, low, high, n, method.

    Intervals as in ``metrics_table``. The first class' figures are those of the task turned round.
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
    """Score above which sensitivity and specificity come nearest to each other.

    Midway between two neighbouring scores. It does not depend on how frequent the classes are, so
    that it can be chosen on one set and used on another of a different mix.
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


def wilson_interval(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Interval of a share of ``n`` independent trials (Wilson 1927, eq. 1 solved for the share).

    Unlike value ± 1.96 standard errors it stays inside [0, 1] and is right for shares near 1.
    NaN for n = 0.
    """
    if n == 0:
        return math.nan, math.nan
    z = norm.ppf(0.5 + level / 2)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # At the ends the bound is exact; rounding would leave it a hair inside.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def bootstrap(
    labels: np.ndarray, scores: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, np.ndarray]:
    """All ``METRICS`` of resampled test sets, each (resamples,).

    Images are drawn with replacement within each class, so that the sizes of the classes stay as
    they were designed (Efron & Tibshirani 1993, ch. 8, two-sample problem).
    """
    labels, scores = checked(labels, scores)
    negative, positive = np.flatnonzero(~labels), np.flatnonzero(labels)
    sorted_labels = np.repeat([False, True], [len(negative), len(positive)])
    of_negative, of_positive = np.random.default_rng(seed), np.random.default_rng(seed)
    block = max(1, DRAWN // len(labels))
    for _ in drawn_rows(of_positive, len(negative), resamples, block):
        pass  # the positives are drawn after all negatives
    counts, areas = [], []
    for negatives, positives in zip(
        drawn_rows(of_negative, len(negative), resamples, block),
        drawn_rows(of_positive, len(positive), resamples, block),
        strict=True,
    ):
        drawn = scores[np.concatenate([negative[negatives], positive[positives]], axis=1)]
        missed, found = np.split(drawn > 0, [len(negative)], axis=1)
        counts.append(
            np.stack([(~missed).sum(1), missed.sum(1), (~found).sum(1), found.sum(1)], axis=1)
        )
        areas += [_auc(sorted_labels, row) for row in drawn]
    return {**_from_counts(np.concatenate(counts)), "AUC": np.array(areas)}


def drawn_rows(
    rng: np.random.Generator, size: int, resamples: int = RESAMPLES, block: int | None = None
) -> Iterator[np.ndarray]:
    """Resamples of ``size`` rows, drawn with replacement, block after block: int64 (B, size).

    One below the other they are what one call would draw; only a block at a time is in memory, by
    default of as many resamples as have ``DRAWN`` rows.
    """
    block = block or max(1, DRAWN // max(size, 1))
    for first in range(0, resamples, block):
        yield rng.integers(0, max(size, 1), (min(block, resamples - first), size))


def percentile_interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Bounds that hold the middle 95 % of the values; NaN where any value is undefined."""
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def bootstrap_auc(
    labels: np.ndarray, scores: np.ndarray, *, seed: int = 0
) -> tuple[float, float, float]:
    """AUC of any score, not only of logits, with its 95 % interval (see ``bootstrap``)."""
    low, high = percentile_interval(bootstrap(labels, scores, seed=seed)["AUC"])
    return float(_auc(*checked(labels, scores))), low, high


def cross_entropy(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean binary cross-entropy of labels (N,) in {0, 1} and logits (N,), in nats."""
    labels, scores = checked(labels, scores)
    # log(1 + exp(z)) - y z, without overflow.
    return float(np.mean(np.logaddexp(0, scores.astype(np.float64)) - labels * scores))


def _from_counts(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of confusion counts (R, 4): true negatives, false positives, false negatives, true
    positives.
    """
    tn, fp, fn, tp = counts.T.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "accuracy": (tn + tp) / (tn + fp + fn + tp),
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "precision": tp / (tp + fp),
            "F1": 2 * tp / (2 * tp + fp + fn),
            # Matthews 1975: the correlation of label and prediction.
            "MCC": (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
        }


def _auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Share of pairs in which the positive image has the higher score, ties counting one half.

    The Mann–Whitney statistic (Hanley & McNeil 1982, eq. 1), through ranks.
    """
    positives = labels.sum()
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        return math.nan
    ranks = rankdata(scores)
    return (ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives)


def checked(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels as bool and scores, both (N,); ``ValueError`` where they cannot be evaluated."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.shape != scores.shape or labels.ndim != 1 or len(labels) == 0:
        raise ValueError(
            f"labels {labels.shape} and scores {scores.shape} must have the same shape (N,), N > 0"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, found {sorted(set(labels.tolist()))[:5]}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores are not finite")
    return labels.astype(bool), scores


def record_test_look(path: Path, stage: str, identity: Mapping[str, str]) -> int:
    """Enter a look at the test set into the ledger; return which look it is for this stage.

    Parameters
    ----------
    path
        ``results/test_ledger.csv``: stage, look, and the identity.
    stage
        "baseline", "transfer", "fine_tuned" …
    identity
        Must hold ``model`` and ``data``, their fingerprints. The same model on the same data is a
        replay and adds no row; another model of the same stage is a further look, which is
        recorded for everybody to see: the test set has then been read more than once.
    """
    ledger = read_csv(path)
    looks = ledger[ledger["stage"] == stage] if len(ledger) else ledger
    for _, look in looks.iterrows():
        if look["model"] == identity["model"] and look["data"] == identity["data"]:
            return int(look["look"])
    number = len(looks) + 1
    append_rows(path, pd.DataFrame([{"stage": stage, "look": number, **identity}]))
    if number > 1:
        print(
            f"WARNING: look {number} at the test set for the stage {stage}: the test figures of "
            "this stage no longer come from a single look. The ledger keeps both."
        )
    return number
