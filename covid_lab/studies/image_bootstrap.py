"""A stratified bootstrap over images, for all resamples at once.

An image is drawn with all its perturbed versions and for all networks, because these are not
independent. Images are drawn within their class, so that the classes keep their sizes. Both sides
of a difference use the same draws, which pairs them.
"""

import numpy as np

from covid_project.evaluation import percentile_interval


def draws(labels: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """Return how often each image is drawn in each resample of a stratified bootstrap.

    Parameters
    ----------
    labels : np.ndarray, int (N,)
    resamples : int
    seed : int

    Returns
    -------
    np.ndarray, float64 (resamples, N)
    """
    rng = np.random.default_rng(seed)
    counts = np.zeros((resamples, len(labels)))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        counts[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), resamples)
    return counts


def with_sample(weights: np.ndarray) -> np.ndarray:
    """Return the weights of the sample itself, followed by those of its resamples.

    Parameters
    ----------
    weights : np.ndarray, float (R, N)
        From `draws`.

    Returns
    -------
    np.ndarray, float64 (R + 1, N)
        The first row is 1 everywhere.
    """
    return np.vstack([np.ones(weights.shape[1]), weights])


def estimate(values: np.ndarray) -> tuple[float, float, float]:
    """Return the value of the sample and its 95 % interval.

    Parameters
    ----------
    values : np.ndarray, float (R + 1,)
        The value of the sample, followed by those of the resamples; undefined ones are NaN.

    Returns
    -------
    tuple of float
        Value, lower and upper bound. The bounds are NaN where no resample has a value.
    """
    resampled = values[1:][np.isfinite(values[1:])]
    bounds = percentile_interval(resampled) if len(resampled) else (np.nan, np.nan)
    return (float(values[0]), *bounds)


def weighted_auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the AUC under each weighting of the rows, all weightings at once.

    The fraction of pairs in which the positive row has the higher score. Ties count one half, and a
    pair counts the product of the weights of its rows.

    Parameters
    ----------
    positive : np.ndarray, bool (N,)
    scores : np.ndarray, float (N,)
    weights : np.ndarray, float (R, N)

    Returns
    -------
    np.ndarray, float64 (R,)
        NaN where the positive or the negative rows have no weight.
    """
    up, down = scores[positive], scores[~positive]
    order = (np.sign(up[:, None] - down[None]) + 1) / 2
    ours, others = weights[:, positive], weights[:, ~positive]
    total = ours.sum(1) * others.sum(1)
    won = ((ours @ order) * others).sum(1)
    return np.divide(won, total, out=np.full(len(weights), np.nan), where=total > 0)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of the defined values under each weighting.

    Parameters
    ----------
    values : np.ndarray, float (N,)
        NaN where undefined.
    weights : np.ndarray, float (R, N)

    Returns
    -------
    np.ndarray, float64 (R,)
    """
    defined = np.isfinite(values)
    total = weights[:, defined].sum(1)
    summed = weights[:, defined] @ values[defined]
    return np.divide(summed, total, out=np.full(len(weights), np.nan), where=total > 0)
