"""Calibration of predicted probabilities, from labels and logits only."""

import numpy as np
import pandas as pd
from scipy.special import expit

from covid_project.evaluation import (
    RESAMPLES,
    checked,
    drawn_rows,
    percentile_interval,
    wilson_interval,
)

BINS = 10  # of equal width, over the predicted probability


def reliability(labels: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """Compare predicted probability and observed frequency of the positive class in `BINS` bins.

    Parameters
    ----------
    labels : np.ndarray, (N,)
        0 or 1.
    scores : np.ndarray, (N,)
        Logits; the probability of the positive class is their sigmoid.

    Returns
    -------
    pd.DataFrame
        One row per bin with images: bin (from 0), n, predicted (mean probability), observed
        (fraction of positives) with low and high, its 95 % interval (Wilson 1927).

    Raises
    ------
    ValueError
        Labels and scores do not fit each other (see `covid_project.evaluation.checked`).

    Examples
    --------
    >>> labels, scores = np.array([0, 1, 1, 1]), np.array([-2.0, -1.8, 2.0, 3.0])
    >>> reliability(labels, scores)[["bin", "n", "predicted", "observed"]].round(2)
       bin  n  predicted  observed
    0    1  2       0.13       0.5
    1    8  1       0.88       1.0
    2    9  1       0.95       1.0
    """
    labels, scores = checked(labels, scores)
    probability = expit(scores.astype(np.float64))
    number = _bin(probability)
    rows = []
    for chosen in np.unique(number):
        inside = number == chosen
        low, high = wilson_interval(int(labels[inside].sum()), int(inside.sum()))
        mean = probability[inside].mean()
        rows.append((chosen, inside.sum(), mean, labels[inside].mean(), low, high))
    return pd.DataFrame(rows, columns=["bin", "n", "predicted", "observed", "low", "high"])


def _calibration_error(labels: np.ndarray, probability: np.ndarray) -> float | np.ndarray:
    """Return the expected calibration error of one set of images (N,), or of R sets (R, N)."""
    labels, probability = np.broadcast_arrays(np.asarray(labels, float), probability)
    number = _bin(probability)
    gap = labels - probability
    total = sum(np.abs(np.where(number == b, gap, 0.0).sum(axis=-1)) for b in range(BINS))
    return total / labels.shape[-1]


def calibration(labels: np.ndarray, scores: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Measure the calibration of a model, and what a perfectly calibrated model would show.

    The calibration error of finitely many images is never 0: even labels drawn with exactly the
    predicted probabilities give some. Such draws (consistency resampling, Bröcker & Smith 2007,
    Weather and Forecasting) give the reference value and the p-value.

    Parameters
    ----------
    labels : np.ndarray, (N,)
        0 or 1.
    scores : np.ndarray, (N,)
        Logits.
    seed : int, from 0
        Of the bootstrap and the draws.

    Returns
    -------
    dict of str to float
        ece (Σ_b n_b/N · |fraction of positives − mean probability| over the bins b; Naeini, Cooper
        & Hauskrecht 2015, AAAI; Guo et al. 2017, ICML, eq. 3) with ece_low and ece_high (95 %,
        bootstrap over images); expected (mean error of a
        calibrated model with these probabilities); p_value (fraction of such draws that are at
        least as bad); brier (mean squared error of the probability, Brier 1950) with brier_low and
        brier_high; n.

    Raises
    ------
    ValueError
        Labels and scores do not fit each other (see `covid_project.evaluation.checked`).

    Examples
    --------
    >>> labels, scores = np.repeat([0, 1], 20), np.linspace(-3, 3, 40)
    >>> found = calibration(labels, scores)
    >>> found["n"], bool(found["ece_low"] < found["ece"] < found["ece_high"])
    (40, True)
    """
    labels, scores = checked(labels, scores)
    probability = expit(scores.astype(np.float64))
    rng = np.random.default_rng(seed)
    error = float(_calibration_error(labels, probability))
    squared = (probability - labels) ** 2
    resampled, brier, ideal = [], [], []
    for rows in drawn_rows(rng, len(labels)):
        resampled.append(_calibration_error(labels[rows], probability[rows]))
        brier.append(squared[rows].mean(axis=1))
    for part in resampled:
        drawn = rng.random((len(part), len(labels))) < probability
        ideal.append(_calibration_error(drawn, probability))
    ideal = np.concatenate(ideal)
    ece_low, ece_high = percentile_interval(np.concatenate(resampled))
    brier_low, brier_high = percentile_interval(np.concatenate(brier))
    return {
        "ece": error,
        "ece_low": ece_low,
        "ece_high": ece_high,
        "expected": float(ideal.mean()),
        # The set itself counts as one more draw, so that the p-value is never 0.
        "p_value": float((1 + (ideal >= error).sum()) / (1 + RESAMPLES)),
        "brier": float(squared.mean()),
        "brier_low": brier_low,
        "brier_high": brier_high,
        "n": len(labels),
    }


def _bin(probability: np.ndarray) -> np.ndarray:
    """Number of the bin, from 0; a probability of exactly 1 belongs to the last."""
    return np.minimum((probability * BINS).astype(int), BINS - 1)
