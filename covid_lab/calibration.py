"""Do the predicted probabilities mean what they say? From labels and logits alone."""

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


def reliability(labels: np.ndarray, scores: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """How often the positive class is true where it is predicted with a certain probability.

    Parameters
    ----------
    labels
        (N,), 0 or 1.
    scores
        (N,), logits; the probability of the positive class is their sigmoid.

    Returns
    -------
    One row per bin that holds an image: bin (from 0), n, predicted (mean probability), observed
    (share of positives) with low and high, its 95 % interval by Wilson.
    """
    labels, scores = checked(labels, scores)
    probability = expit(scores.astype(np.float64))
    number = _bin(probability, bins)
    rows = []
    for chosen in np.unique(number):
        inside = number == chosen
        low, high = wilson_interval(int(labels[inside].sum()), int(inside.sum()))
        mean = probability[inside].mean()
        rows.append((chosen, inside.sum(), mean, labels[inside].mean(), low, high))
    return pd.DataFrame(rows, columns=["bin", "n", "predicted", "observed", "low", "high"])


def expected_calibration_error(
    labels: np.ndarray, probability: np.ndarray, bins: int = BINS
) -> float | np.ndarray:
    """Mean distance between predicted and observed share, weighted by the images of each bin.

    Naeini, Cooper & Hauskrecht 2015, and Guo et al. 2017, eq. 3, for the probability of the
    positive class: Σ_b n_b/N · |share of positives − mean probability| over the bins b.

    Parameters
    ----------
    labels, probability
        (N,), or (R, N) for R sets of labels and probabilities at once.
    """
    labels, probability = np.broadcast_arrays(np.asarray(labels, float), probability)
    number = _bin(probability, bins)
    gap = labels - probability
    total = sum(np.abs(np.where(number == b, gap, 0.0).sum(axis=-1)) for b in range(bins))
    return total / labels.shape[-1]


def calibration(
    labels: np.ndarray, scores: np.ndarray, *, bins: int = BINS, seed: int = 0
) -> dict[str, float]:
    """Calibration of a model, and what a perfectly calibrated one would have shown.

    The calibration error of finitely many images is never 0: even labels drawn with exactly the
    predicted probabilities give some. Those draws are made here (consistency resampling, Bröcker &
    Smith 2007), and give the yardstick and the p-value.

    Returns
    -------
    ece, with ece_low and ece_high (bootstrap over images, 95 %); expected (mean error of a
    calibrated model with these probabilities), p_value (share of such draws at least as bad); brier
    (mean squared error of the probability, Brier 1950) and its bounds; n.
    """
    labels, scores = checked(labels, scores)
    probability = expit(scores.astype(np.float64))
    rng = np.random.default_rng(seed)
    error = float(expected_calibration_error(labels, probability, bins))
    squared = (probability - labels) ** 2
    resampled, brier, ideal = [], [], []
    for rows in drawn_rows(rng, len(labels)):
        resampled.append(expected_calibration_error(labels[rows], probability[rows], bins))
        brier.append(squared[rows].mean(axis=1))
    for part in resampled:
        drawn = rng.random((len(part), len(labels))) < probability
        ideal.append(expected_calibration_error(drawn, probability, bins))
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


def _bin(probability: np.ndarray, bins: int) -> np.ndarray:
    """Number of the bin, from 0; a probability of exactly 1 belongs to the last."""
    return np.minimum((probability * bins).astype(int), bins - 1)
