"""Metrics with 95 % intervals and paired tests, from labels and scores only.

Label 1 (COVID) is the positive class. Scores are logits; the threshold is 0 (probability 0.5),
fixed before any test image is seen.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm, rankdata

LEVEL = 0.95
RESAMPLES = 2000
SIGNIFICANCE = 0.05
FEWEST = 5  # images of a class without which nothing is resampled
HELD = 2**21  # rows of all resamples that are in memory at once


# ---- metrics ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """How one metric is computed; exactly one of the three is given.

    Attributes
    ----------
    proportion : callable, optional
        (tn, fp, fn, tp) → (successes, trials); the metric is their ratio.
    from_counts : callable, optional
        (tn, fp, fn, tp) → value, for counts of any shape.
    from_scores : callable, optional
        (labels bool (N,), scores (N,)) → value.
    """

    proportion: Callable | None = None
    from_counts: Callable | None = None
    from_scores: Callable | None = None

    def __call__(self, labels: np.ndarray, scores: np.ndarray) -> float:
        """Compute the value for labels (N,) and scores (N,); NaN where it is undefined."""
        if self.from_scores:
            return float(self.from_scores(labels, scores))
        return float(_of_counts(self, *confusion(labels, scores).reshape(4)))


def _of_counts(metric: Metric, *counts):
    """Compute a metric from (tn, fp, fn, tp), numbers or arrays; NaN where it is undefined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric.proportion:
            successes, trials = metric.proportion(*counts)
            return np.true_divide(successes, trials)
        return metric.from_counts(*(np.asarray(count, np.float64) for count in counts))


def area_under_roc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Compute the area under the ROC curve (AUC) from ranks.

    It is the fraction of pairs of a positive and a negative image in which the positive one has the
    higher score; ties count one half (the Mann–Whitney statistic; Hanley & McNeil 1982, eq. 1).

    Parameters
    ----------
    labels : np.ndarray, (N,), 0 or 1
    scores : np.ndarray, (N,)

    Returns
    -------
    float
        In [0, 1]; NaN for a single class.
    """
    labels = np.asarray(labels, bool)
    positives, negatives = labels.sum(), (~labels).sum()
    if positives == 0 or negatives == 0:
        return math.nan
    ranks = rankdata(scores)
    return (ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives)


def _matthews(tn, fp, fn, tp):
    """Compute the correlation of label and prediction (Matthews 1975)."""
    return (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))


# A further metric is one more entry here: tables, intervals, figures and audits take it from there.
METRICS: dict[str, Metric] = {
    "accuracy": Metric(proportion=lambda tn, fp, fn, tp: (tn + tp, tn + fp + fn + tp)),
    "sensitivity": Metric(proportion=lambda tn, fp, fn, tp: (tp, tp + fn)),
    "specificity": Metric(proportion=lambda tn, fp, fn, tp: (tn, tn + fp)),
    "precision": Metric(proportion=lambda tn, fp, fn, tp: (tp, tp + fp)),
    "F1": Metric(from_counts=lambda tn, fp, fn, tp: 2 * tp / (2 * tp + fp + fn)),
    "AUC": Metric(from_scores=area_under_roc),
    "MCC": Metric(from_counts=_matthews),
}


def confusion(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Count the images by label and prediction.

    Parameters
    ----------
    labels : np.ndarray, (N,), 0 or 1
    scores : np.ndarray, (N,), logits

    Returns
    -------
    np.ndarray, int64 (2, 2)
        [[true negatives, false positives], [false negatives, true positives]].

    Examples
    --------
    >>> confusion([0, 0, 1, 1], [-2.0, 0.5, 1.0, 3.0])
    array([[1, 1],
           [0, 2]])
    """
    labels, scores = checked(labels, scores)
    return np.bincount(2 * labels + (scores > 0), minlength=4).reshape(2, 2)


def point_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Compute all `METRICS`.

    Parameters
    ----------
    labels : np.ndarray, (N,), 0 or 1
    scores : np.ndarray, (N,), logits

    Returns
    -------
    dict of str to float
        A metric whose denominator is zero (precision without a positive prediction, AUC or MCC of
        one class) is undefined: NaN, not zero.
    """
    labels, scores = checked(labels, scores)
    return {name: metric(labels, scores) for name, metric in METRICS.items()}


def metrics_table(labels: np.ndarray, scores: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """Compute all `METRICS` with 95 % intervals.

    Parameters
    ----------
    labels : np.ndarray, (N,), 0 or 1
    scores : np.ndarray, (N,), logits
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    pd.DataFrame
        One row per metric: metric, value, low, high, n (images that count), method. Proportions
        have Wilson's interval (1927); the others have the percentile interval of a `bootstrap`.
    """
    labels, scores = checked(labels, scores)
    counts = confusion(labels, scores).reshape(4)
    resampled = bootstrap(labels, scores, seed=seed)
    rows = []
    for name, metric in METRICS.items():
        if metric.proportion:
            successes, n = metric.proportion(*counts)
            low, high = wilson_interval(successes, n)
            method = "Wilson"
        else:
            low, high = percentile_interval(resampled[name])
            method, n = f"bootstrap, {RESAMPLES} resamples", len(labels)
        rows.append((name, metric(labels, scores), low, high, int(n), method))
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n", "method"])


def wilson_interval(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Compute Wilson's interval of a proportion (1927).

    Parameters
    ----------
    successes, n : int
        Numerator and denominator.
    level : float, in (0, 1)

    Returns
    -------
    low, high : float
        NaN for n = 0.
    """
    if n == 0:
        return math.nan, math.nan
    interval = binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap(
    labels: np.ndarray, scores: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, np.ndarray]:
    """Compute all `METRICS` of resampled test sets.

    Images are drawn with replacement within each class, so that the sizes of the classes stay as
    they were designed (Efron & Tibshirani 1993, ch. 8, two-sample problem).

    Parameters
    ----------
    labels : np.ndarray, (N,), 0 or 1
    scores : np.ndarray, (N,), logits
    resamples, seed : int

    Returns
    -------
    dict of str to np.ndarray, (resamples,)
        All NaN where a class has fewer than `FEWEST` images, whose resamples hardly differ.
    """
    labels, scores = checked(labels, scores)
    negatives, positives = scores[~labels], scores[labels]
    if min(len(negatives), len(positives)) < FEWEST:
        return {name: np.full(resamples, np.nan) for name in METRICS}
    rng = np.random.default_rng(seed)
    ordered = np.repeat([False, True], [len(negatives), len(positives)])
    values = {name: [] for name in METRICS}
    block = max(1, HELD // len(labels))
    for first in range(0, resamples, block):
        count = min(block, resamples - first)
        groups = (negatives, positives)
        drawn = [group[rng.integers(0, len(group), (count, len(group)))] for group in groups]
        drawn = np.concatenate(drawn, axis=1)
        missed, found = np.split(drawn > 0, [len(negatives)], axis=1)
        counts = (~missed).sum(1), missed.sum(1), (~found).sum(1), found.sum(1)
        for name, metric in METRICS.items():
            if metric.from_scores:
                values[name].append([metric.from_scores(ordered, row) for row in drawn])
            else:
                values[name].append(_of_counts(metric, *counts))
    return {name: np.concatenate(parts) for name, parts in values.items()}


def percentile_interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Compute the bounds of the middle part of resampled values.

    Parameters
    ----------
    values : np.ndarray, (resamples,)
    level : float, in (0, 1)
        Fraction of the values between the bounds.

    Returns
    -------
    low, high : float
        NaN where any value is undefined.
    """
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def bootstrap_auc(
    labels: np.ndarray, scores: np.ndarray, *, seed: int = 0
) -> tuple[float, float, float]:
    """Compute the AUC of any score, not only of logits, with its 95 % bootstrap interval.

    Parameters
    ----------
    labels : np.ndarray, (N,), 0 or 1
    scores : np.ndarray, (N,)
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    auc, low, high : float

    Examples
    --------
    >>> bootstrap_auc(np.repeat([0, 1], 20), np.arange(40.0))
    (1.0, 1.0, 1.0)
    """
    low, high = percentile_interval(bootstrap(labels, scores, seed=seed)["AUC"])
    return float(area_under_roc(labels, scores)), low, high


def cross_entropy(labels: np.ndarray, scores: np.ndarray) -> float:
    """Compute the mean binary cross-entropy.

    Parameters
    ----------
    labels : np.ndarray, (N,), 0 or 1
    scores : np.ndarray, (N,), logits

    Returns
    -------
    float
        In nats.
    """
    labels, scores = checked(labels, scores)
    # log(1 + exp(z)) − y z, without overflow.
    return float(np.mean(np.logaddexp(0, scores.astype(np.float64)) - labels * scores))


def checked(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check that labels and scores fit together.

    Parameters
    ----------
    labels : array-like, (N,), 0 or 1
    scores : array-like, (N,), finite

    Returns
    -------
    labels : np.ndarray, bool (N,)
    scores : np.ndarray, (N,)

    Raises
    ------
    ValueError
        Different shapes, no images, other labels than 0 and 1, scores that are not finite.
    """
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


# ---- two models on the same images --------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Second model minus first, its 95 % interval, and the p-value of no difference."""

    difference: float
    low: float
    high: float
    p_value: float


def accuracy_difference(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, seed: int = 0
) -> Difference:
    """Compare the accuracies of two models on the same images.

    The p-value is McNemar's (1947), exact: of the images that only one model classifies correctly,
    either model is as likely to be the correct one. The interval is the percentile interval of a
    bootstrap over images within each class; the two predictions for an image stay together.

    Parameters
    ----------
    labels : np.ndarray, (N,), 0 or 1
    first, second : np.ndarray, (N,), logits
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    Difference
    """
    labels, first = checked(labels, first)
    labels, second = checked(labels, second)
    gain = ((second > 0) == labels).astype(int) - ((first > 0) == labels)  # −1, 0 or 1 per image
    gained, lost = int((gain > 0).sum()), int((gain < 0).sum())
    p_value = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    rng = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for group in (gain[~labels], gain[labels]):
        total += np.concatenate([group[rows].sum(axis=1) for rows in drawn_rows(rng, len(group))])
    low, high = percentile_interval(total / len(gain))
    if min(labels.sum(), (~labels).sum()) < FEWEST:
        low = high = math.nan
    return Difference(float(gain.mean()), low, high, float(p_value))


def drawn_rows(
    rng: np.random.Generator, size: int, resamples: int = RESAMPLES
) -> Iterator[np.ndarray]:
    """Draw resamples of rows with replacement, in blocks that fit into memory.

    Parameters
    ----------
    rng : np.random.Generator
    size : int
        Number of rows.
    resamples : int

    Yields
    ------
    np.ndarray, int64 (B, size)
        Row numbers of B resamples.
    """
    block = max(1, HELD // max(size, 1))
    for first in range(0, resamples, block):
        yield rng.integers(0, max(size, 1), (min(block, resamples - first), size))


def auc_difference(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> Difference:
    """Compare the AUCs of two models on the same images (DeLong et al. 1988).

    The AUC is a mean over pairs. Each image's own part in it (their eq. 4 and 5, from ranks) gives
    the covariance of the two AUCs (eq. 6). Interval and p-value follow with the normal
    distribution.

    Parameters
    ----------
    labels : np.ndarray, (N,), 0 or 1
    first, second : np.ndarray, (N,), logits

    Returns
    -------
    Difference
        All NaN where a class has fewer than two images.
    """
    labels, first = checked(labels, first)
    labels, second = checked(labels, second)
    if min(labels.sum(), (~labels).sum()) < 2:
        return Difference(math.nan, math.nan, math.nan, math.nan)
    parts = [_pair_fractions(labels, scores) for scores in (first, second)]
    of_positives, of_negatives = zip(*parts, strict=True)
    variance = np.cov(of_positives) / labels.sum() + np.cov(of_negatives) / (~labels).sum()
    difference = of_positives[1].mean() - of_positives[0].mean()
    error = math.sqrt(max(variance[0, 0] + variance[1, 1] - 2 * variance[0, 1], 0.0))
    if error < 1e-12:  # the same ranking twice, or two perfect ones
        p_value = 1.0 if abs(difference) < 1e-12 else 0.0
        return Difference(float(difference), float(difference), float(difference), p_value)
    half = norm.ppf(0.5 + LEVEL / 2) * error
    p_value = 2 * norm.sf(abs(difference) / error)
    return Difference(*map(float, (difference, difference - half, difference + half, p_value)))


def _pair_fractions(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the fraction of negatives below each positive, and of positives above each negative.

    Ties count one half. A positive's rank among all images, less its rank among the positives, is
    the number of negatives below it; likewise for the negatives.
    """
    positives, negatives = scores[labels], scores[~labels]
    ranks = rankdata(scores)
    below = (ranks[labels] - rankdata(positives)) / len(negatives)
    above = 1 - (ranks[~labels] - rankdata(negatives)) / len(positives)
    return below, above


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values for their number (Holm 1979).

    The smallest of m is multiplied by m, the next by m − 1 and so on; none may be smaller than the
    one before it, and none exceeds 1.

    Parameters
    ----------
    p_values : np.ndarray, (m,)

    Returns
    -------
    np.ndarray, float64 (m,)
        NaN stays NaN and does not count.
    """
    p_values = np.asarray(p_values, float)
    adjusted = np.full(p_values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted


def compare_models(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, seed: int = 0
) -> pd.DataFrame:
    """Compare two models on the same images, by accuracy and by AUC.

    Parameters
    ----------
    labels : np.ndarray, (N,), 0 or 1
    first, second : np.ndarray, (N,), logits
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    pd.DataFrame
        One row per metric: metric, test, difference (second minus first), low, high, p_value,
        p_adjusted (Holm, over the two metrics), n.

    Examples
    --------
    >>> labels, first = np.repeat([0, 1], 20), np.arange(40.0) - 22
    >>> compare_models(labels, first, first + 2)[["metric", "difference", "p_value"]]
         metric  difference  p_value
    0  accuracy        0.05      0.5
    1       AUC        0.00      1.0
    """
    accuracy = accuracy_difference(labels, first, second, seed)
    rows = [
        {"metric": "accuracy", "test": "McNemar, exact", **vars(accuracy)},
        {"metric": "AUC", "test": "DeLong", **vars(auc_difference(labels, first, second))},
    ]
    table = pd.DataFrame(rows)
    return table.assign(p_adjusted=holm(table["p_value"].to_numpy()), n=len(labels))
