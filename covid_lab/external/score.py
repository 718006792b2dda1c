"""How well a model does on another collection, compared with its own test set."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from covid_lab.calibration import calibration
from covid_project.evaluation import (
    area_under_roc,
    bootstrap,
    checked,
    metrics_table,
    percentile_interval,
    wilson_interval,
)

BALANCED = "balanced accuracy"
COLUMNS = ("value", "low", "high", "n")
DIVISIONS = 100  # of a test set into two halves


def external_metrics(
    labels: np.ndarray, scores: np.ndarray, own: pd.DataFrame | None = None, seed: int = 0
) -> pd.DataFrame:
    """Compute all metrics of external images, and their drop from the model's own test set.

    The two sets hold different patients and are resampled independently.

    Parameters
    ----------
    labels : np.ndarray, int (N,), 0 or 1
        Labels of the external images.
    scores : np.ndarray, float (N,)
        Their logits. The threshold is 0, as on the model's own test set.
    own : pd.DataFrame, optional
        Columns label and score of the model's own test set.
    seed : int, from 0
        Seed of the bootstrap.

    Returns
    -------
    pd.DataFrame
        One row per metric: metric, value, low, high, n of the external images; with ``own`` also
        own_value, own_low, own_high, own_n, and drop (own minus external) with drop_low and
        drop_high. Intervals are 95 %: Wilson 1927 for proportions, otherwise percentiles of the
        bootstrap.

    Raises
    ------
    ValueError
        Labels and scores do not fit each other, see `covid_project.evaluation.checked`.

    Examples
    --------
    >>> table = external_metrics(np.repeat([0, 1], 20), np.arange(40.0) - 22)
    >>> table.set_index("metric")["value"].round(2).loc[["sensitivity", "AUC"]].to_dict()
    {'sensitivity': 0.85, 'AUC': 1.0}
    """
    external, resampled = _with_balanced(labels, scores, seed)
    if own is None:
        return external
    inside, own_resampled = _with_balanced(own["label"], own["score"], seed + 1)
    table = external.merge(inside.add_prefix("own_"), left_on="metric", right_on="own_metric")
    table = table.drop(columns="own_metric")
    table["drop"] = table["own_value"] - table["value"]
    bounds = [percentile_interval(own_resampled[name] - resampled[name]) for name in table.metric]
    table[["drop_low", "drop_high"]] = bounds
    return table


def _with_balanced(labels, scores, seed: int) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """All metrics and the balanced accuracy, and their resampled values by name."""
    labels, scores = checked(labels, scores)
    resampled = bootstrap(labels, scores, seed=seed)
    resampled[BALANCED] = (resampled["sensitivity"] + resampled["specificity"]) / 2
    table = metrics_table(labels, scores, seed=seed)[["metric", *COLUMNS]]
    both = table.set_index("metric").loc[["sensitivity", "specificity"], "value"].mean()
    low, high = percentile_interval(resampled[BALANCED])
    table.loc[len(table)] = (BALANCED, both, low, high, len(labels))
    return table, resampled


def external_calibration(
    labels: np.ndarray, scores: np.ndarray, own: pd.DataFrame | None = None, seed: int = 0
) -> pd.DataFrame:
    """Measure the calibration of a model on external images and on its own test set.

    Parameters
    ----------
    labels : np.ndarray, int (N,), 0 or 1
        Labels of the external images.
    scores : np.ndarray, float (N,)
        Their logits.
    own : pd.DataFrame, optional
        Columns label and score of the model's own test set.
    seed : int, from 0
        Seed of the bootstrap and the draws.

    Returns
    -------
    pd.DataFrame
        One row per set ("external", "own"), with the values of `calibration` as columns.

    Raises
    ------
    ValueError
        Labels and scores do not fit each other, see `covid_project.evaluation.checked`.

    Examples
    --------
    >>> table = external_calibration(np.repeat([0, 1], 20), np.linspace(-3, 3, 40))
    >>> table[["set", "n"]].values.tolist()
    [['external', 40]]
    """
    sets = {"external": (labels, scores)}
    if own is not None:
        sets["own"] = own["label"], own["score"]
    rows = [{"set": name, **calibration(*pair, seed=seed)} for name, pair in sets.items()]
    return pd.DataFrame(rows)


def called_positive(groups: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Compute the fraction of images that are called COVID, in groups without the disease.

    Parameters
    ----------
    groups : mapping of str to np.ndarray, float (N,)
        Name of the group → logits of its images.

    Returns
    -------
    pd.DataFrame
        One row per group: group, value, low, high (Wilson 1927, 95 %), n.

    Examples
    --------
    >>> called_positive({"healthy": np.array([-1.0, -2.0, 0.5, -3.0])})[["group", "value", "n"]]
         group  value  n
    0  healthy   0.25  4
    """
    rows = []
    for name, scores in groups.items():
        called = int((np.asarray(scores) > 0).sum())
        rows.append(
            (name, called / len(scores), *wilson_interval(called, len(scores)), len(scores))
        )
    return pd.DataFrame(rows, columns=["group", *COLUMNS])


def halves_control(own: pd.DataFrame, seed: int = 0) -> dict[str, float]:
    """Control: one collection split in two must show no drop.

    The model's own test set is repeatedly divided at random into two halves of equal class sizes.
    The difference in AUC between the halves is tested as a drop would be, with the variance of
    DeLong et al. 1988, eq. 4 to 6.

    Parameters
    ----------
    own : pd.DataFrame
        Columns label (0 or 1) and score (logit).
    seed : int, from 0
        Seed of the divisions.

    Returns
    -------
    dict of str to float
        drop (mean difference in AUC), flagged (fraction of the divisions whose 95 % interval
        excludes 0; at most about 0.05 is expected), repeats (`DIVISIONS`).

    Raises
    ------
    ValueError
        Labels and scores do not fit each other, see `covid_project.evaluation.checked`.

    Examples
    --------
    >>> own = pd.DataFrame({"label": np.repeat([0, 1], 20), "score": np.arange(40.0)})
    >>> halves_control(own)["drop"]
    0.0
    """
    labels, scores = checked(own["label"], own["score"])
    rng = np.random.default_rng(seed)
    drops, flagged = [], 0
    for _ in range(DIVISIONS):
        first = np.zeros(len(labels), bool)
        for label in (False, True):
            rows = rng.permutation(np.flatnonzero(labels == label))
            first[rows[: len(rows) // 2]] = True
        sides = [(labels[side], scores[side]) for side in (first, ~first)]
        drops.append(area_under_roc(*sides[0]) - area_under_roc(*sides[1]))
        variance = sum(_auc_variance(*side) for side in sides)
        flagged += abs(drops[-1]) > 1.96 * math.sqrt(variance)
    return {"drop": float(np.mean(drops)), "flagged": flagged / DIVISIONS, "repeats": DIVISIONS}


def _auc_variance(labels: np.ndarray, scores: np.ndarray) -> float:
    """Variance of an AUC from the contributions of the images (DeLong et al. 1988, eq. 4 to 6)."""
    positives, negatives = scores[labels], scores[~labels]
    wins = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    return wins.mean(1).var(ddof=1) / len(positives) + wins.mean(0).var(ddof=1) / len(negatives)


def score_quantiles(labels: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """Compute quantiles of the logits of each class, which show how far a collection shifts them.

    Parameters
    ----------
    labels : np.ndarray, int (N,), 0 or 1
        Labels of the images.
    scores : np.ndarray, float (N,)
        Their logits.

    Returns
    -------
    pd.DataFrame
        One row per class: label, n, and the logits at 5, 25, 50, 75 and 95 % (NaN without images).

    Raises
    ------
    ValueError
        Labels and scores do not fit each other, see `covid_project.evaluation.checked`.

    Examples
    --------
    >>> table = score_quantiles(np.array([0, 0, 0, 1]), np.array([-3.0, -2.0, -1.0, 2.0]))
    >>> table["logit_50"].tolist()
    [-2.0, 2.0]
    """
    labels, scores = checked(labels, scores)
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    rows = []
    for label in (0, 1):
        here = scores[labels == bool(label)]
        found = np.quantile(here, levels) if len(here) else np.full(len(levels), np.nan)
        rows.append((label, len(here), *found))
    names = [f"logit_{level:.0%}".replace("%", "") for level in levels]
    return pd.DataFrame(rows, columns=["label", "n", *names])
