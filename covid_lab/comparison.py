"""Are two models different? Paired tests on the same images, from labels and logits alone."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm, rankdata

from covid_project.evaluation import (
    LEVEL,
    RESAMPLES,
    checked,
    drawn_rows,
    percentile_interval,
)

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Difference:
    """Second model minus first: the difference, its 95 % interval, and the p-value of none."""

    difference: float
    low: float
    high: float
    p_value: float


def accuracy_difference(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, seed: int = 0
) -> Difference:
    """Difference of accuracies on the same images.

    The p-value is McNemar's (1947) in its exact form: of the images that just one of the models
    gets right, either model is as likely to be the right one, so their number is binomial with
    share one half. The interval is the percentile interval of a bootstrap over images, each class
    resampled by itself and both models' verdicts on an image kept together.

    Parameters
    ----------
    labels
        (N,), 0 or 1.
    first, second
        (N,), logits of two models for the same images.
    """
    labels, first = checked(labels, first)
    labels, second = checked(labels, second)
    gain = ((second > 0) == labels).astype(int) - ((first > 0) == labels)  # -1, 0 or 1 per image
    gained, lost = int((gain > 0).sum()), int((gain < 0).sum())
    p_value = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    rng = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for group in (gain[~labels], gain[labels]):
        total += np.concatenate([group[rows].sum(axis=1) for rows in drawn_rows(rng, len(group))])
    low, high = percentile_interval(total / len(gain))
    return Difference(float(gain.mean()), low, high, float(p_value))


def auc_difference(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> Difference:
    """Difference of AUCs on the same images, by DeLong, DeLong & Clarke-Pearson (1988).

    The AUC is a mean over pairs; each image's own share in it (their eq. 4 and 5, through ranks)
    gives the covariance of the two AUCs (eq. 6), from which interval and p-value follow with the
    normal distribution. All NaN where a class has fewer than two images.
    """
    labels, first = checked(labels, first)
    labels, second = checked(labels, second)
    if min(labels.sum(), (~labels).sum()) < 2:
        return Difference(math.nan, math.nan, math.nan, math.nan)
    aucs, variance = [], np.zeros((2, 2))
    of_positives, of_negatives = zip(
        *(_components(labels, s) for s in (first, second)), strict=True
    )
    aucs = [shares.mean() for shares in of_positives]
    variance = np.cov(of_positives) / labels.sum() + np.cov(of_negatives) / (~labels).sum()
    difference = aucs[1] - aucs[0]
    error = math.sqrt(max(variance[0, 0] + variance[1, 1] - 2 * variance[0, 1], 0.0))
    if error < 1e-12:  # the same ranking twice, or two perfect ones
        p_value = 1.0 if abs(difference) < 1e-12 else 0.0
        return Difference(float(difference), float(difference), float(difference), p_value)
    half = norm.ppf(0.5 + LEVEL / 2) * error
    p_value = 2 * norm.sf(abs(difference) / error)
    return Difference(
        float(difference), float(difference - half), float(difference + half), float(p_value)
    )


def _components(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of negatives below each positive, and of positives above each negative.

    Ties count one half. A positive's rank among all images, less its rank among the positives, is
    the number of negatives below it; likewise for the negatives.
    """
    positives, negatives = scores[labels], scores[~labels]
    ranks = rankdata(scores)
    below = (ranks[labels] - rankdata(positives)) / len(negatives)
    above = 1 - (ranks[~labels] - rankdata(negatives)) / len(positives)
    return below, above


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values adjusted for their number (Holm 1979): the family's chance of a false alarm holds.

    The smallest of m is multiplied by m, the next by m - 1 and so on; none may be smaller than the
    one before it, and none exceeds 1. NaN stays NaN and does not count.
    """
    p_values = np.asarray(p_values, float)
    adjusted = np.full(p_values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted


def compare(
    labels: np.ndarray,
    scores: Mapping[str, np.ndarray],
    *,
    reference: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Every pair of models, or every model against a reference, on the same images.

    Parameters
    ----------
    labels
        (N,), 0 or 1.
    scores
        Name of a model → its logits (N,).
    reference
        Compare with this one alone; None: all pairs, in the order of ``scores``.

    Returns
    -------
    One row per metric (accuracy, AUC) and pair: metric, first, second, difference (second minus
    first), low, high, p_value, p_adjusted (Holm, over the pairs of one metric), verdict ("better",
    "worse": the second model, at an adjusted p below 5 %; else "no difference"), n, test.
    """
    names = list(scores)
    if reference is None:
        pairs = list(itertools.combinations(names, 2))
    else:
        pairs = [(reference, name) for name in names if name != reference]
    tests = {
        "accuracy": ("McNemar, exact", lambda a, b: accuracy_difference(labels, a, b, seed)),
        "AUC": ("DeLong", lambda a, b: auc_difference(labels, a, b)),
    }
    tables = []
    for metric, (test, difference_of) in tests.items():
        found = [difference_of(scores[first], scores[second]) for first, second in pairs]
        table = pd.DataFrame(pairs, columns=["first", "second"])
        table.insert(0, "metric", metric)
        for column in ("difference", "low", "high", "p_value"):
            table[column] = [getattr(one, column) for one in found]
        table["p_adjusted"] = holm(table["p_value"].to_numpy())
        table["verdict"] = [
            verdict(*row) for row in zip(table["difference"], table["p_adjusted"], strict=True)
        ]
        tables.append(table.assign(n=len(labels), test=test))
    return pd.concat(tables, ignore_index=True)


def verdict(difference: float, p_value: float) -> str:
    """The word for a difference: "better", "worse" or "no difference" at the 5 % level."""
    if not p_value < SIGNIFICANCE:
        return "no difference"
    return "better" if difference > 0 else "worse"
