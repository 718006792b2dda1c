"""Rank correlation of drift with the loss of AUC and with the change of the score.

Severity is a common cause of both: a stronger perturbation moves the map and the score. Each
correlation is therefore also reported with severity, or severity and perturbation, held constant.
"""

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, rankdata
from threadpoolctl import threadpool_limits

from covid_lab.studies.drift_statistics import auc_losses
from covid_lab.studies.image_bootstrap import estimate, with_sample
from covid_lab.studies.perturbations import PERTURBATIONS, SEVERITIES
from covid_lab.studies.saliency_drift import MEASURES, SETS

SIMILARITIES = ("ssim", "spearman")  # a larger value of these measures is less drift
PERTURBED = SETS[1:]  # the 25 sets, perturbation by perturbation


@threadpool_limits.wrap(limits=1, user_api="blas")  # the products are small: threads only wait
def correlations(drifts: pd.DataFrame, errors: pd.DataFrame, weights: np.ndarray) -> pd.DataFrame:
    """Return Spearman's correlation of drift with loss, plain and with severity held constant.

    Similarities count negatively: a positive correlation always means that more drift goes with
    more loss.

    Parameters
    ----------
    drifts : pd.DataFrame
        From `saliency_drift.grid`, with ``seed``.
    errors : pd.DataFrame
        From `drift_statistics.with_errors`, with ``seed``.
    weights : np.ndarray, float (R, N)
        From `image_bootstrap.draws`.

    Returns
    -------
    pd.DataFrame
        Columns measure, layer, kind, constant, value, low, high and n.

        Kind "sets" correlates the mean drift of the 25 perturbed sets with their ΔAUC. ``constant``
        "nothing" uses all sets. "severity" is the mean over the severities of the correlation
        across the five perturbations. "severity and perturbation" correlates the ranks of the sets
        after the mean rank of their severity and of their perturbation is subtracted.

        Kind "images" correlates each image's drift with its ``score_change``, for each network, and
        takes the mean over the networks. ``constant`` "nothing" uses all sets together. "severity
        and perturbation" is the mean over the sets of the correlation within a set. Resamples use
        the ranks of the whole sample.
    """
    every = with_sample(weights)
    deltas = auc_losses(errors, weights)[1]
    changes = _cube(errors, "score_change")
    rows = []
    for layer, group in drifts.groupby("layer", sort=False):
        for measure in MEASURES:
            moved = _cube(group, measure) * (-1 if measure in SIMILARITIES else 1)
            means = _mean_drift(moved, every)
            n = int(np.isfinite(moved).sum())
            found = {
                ("sets", "nothing", len(PERTURBED)): _spearman(means, deltas),
                ("sets", "severity", len(PERTURBED)): _within_severity(means, deltas),
                ("sets", "severity and perturbation", len(PERTURBED)): _beyond(means, deltas),
                ("images", "nothing", n): _of_images(moved, changes, every, within=False),
                ("images", "severity and perturbation", n): _of_images(
                    moved, changes, every, within=True
                ),
            }
            for (kind, constant, count), values in found.items():
                rows.append((measure, layer, kind, constant, *estimate(values), count))
    columns = ["measure", "layer", "kind", "constant", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def _cube(table: pd.DataFrame, column: str) -> np.ndarray:
    """Return a column as an array (networks, sets, images)."""
    keys = ["seed", "perturbation", "severity", "image"]
    wide = table.set_index(keys)[column].unstack("image")  # noqa: PD010
    return np.stack([wide.loc[seed].loc[list(PERTURBED)] for seed in table["seed"].unique()])


def _mean_drift(moved: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of the defined drifts of each set: (networks, sets, N) → (R, sets)."""
    total = weights @ np.nansum(moved, axis=0).T
    return total / (weights @ np.isfinite(moved).sum(axis=0).T)


def _spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation along the last axis."""
    return _pearson(rankdata(first, axis=-1), rankdata(second, axis=-1))


def _pearson(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation along the last axis, NaN where either is constant."""
    varies = (np.ptp(first, axis=-1) > 0) & (np.ptp(second, axis=-1) > 0)
    found = np.full(varies.shape, np.nan)
    if varies.any():
        found[varies] = pearsonr(first[varies], second[varies], axis=-1).statistic
    return found


def _by_severity(sets: np.ndarray) -> np.ndarray:
    """Return values of the sets as (R, severities, perturbations)."""
    return sets.reshape(len(sets), len(PERTURBATIONS), len(SEVERITIES)).swapaxes(1, 2)


def _within_severity(means: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    return _spearman(_by_severity(means), _by_severity(deltas)).mean(axis=1)


def _beyond(means: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """Partial rank correlation given severity and perturbation, both as categories."""
    residuals = []
    for sets in (means, deltas):
        ranks = _by_severity(rankdata(sets, axis=1))
        ranks = ranks - ranks.mean(axis=1, keepdims=True)
        ranks = ranks - ranks.mean(axis=2, keepdims=True)
        residuals.append(ranks.reshape(len(sets), -1))
    return _pearson(*residuals)


def _of_images(
    moved: np.ndarray, changes: np.ndarray, weights: np.ndarray, *, within: bool
) -> np.ndarray:
    """Return the correlation (R,) of drift and change, both (networks, sets, N)."""
    found = []
    for drift, change in zip(moved, changes, strict=True):
        if not within:
            drift, change = drift.reshape(1, -1), change.reshape(1, -1)
        change = np.where(np.isfinite(drift), change, np.nan)
        ranks = [
            rankdata(part, axis=1, nan_policy="omit").reshape(moved.shape[1:])
            for part in (drift, change)
        ]
        found.append(_weighted_pearson(*ranks, weights, within=within))
    return np.mean(found, axis=0)


def _weighted_pearson(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, *, within: bool
) -> np.ndarray:
    """Return Pearson's correlation (R,) of x and y (sets, N), every image with its weight.

    Within the sets, it is the mean over the sets in which it is defined.
    """
    defined = np.isfinite(x)
    x, y = np.where(defined, x, 0), np.where(defined, y, 0)
    sums = np.stack([weights @ part.T for part in (defined, x, y, x * y, x * x, y * y)])
    if not within:
        sums = sums.sum(axis=2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_x, mean_y, xy, xx, yy = sums[1:] / sums[0]
        scale = np.sqrt(np.maximum((xx - mean_x**2) * (yy - mean_y**2), 0))
        found = (xy - mean_x * mean_y) / scale
    found[~(scale > 0)] = np.nan
    some = np.isfinite(found).any(axis=1)
    return np.where(some, np.nanmean(np.where(some[:, None], found, 0), axis=1), np.nan)
