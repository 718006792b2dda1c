"""A threshold for another site from its unlabelled images, and a warning that needs no labels.

The functions see the scores (logits) of the target's images, never their labels. What a threshold
is worth is measured in `covid_lab.external.adapted`.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import binomtest, ks_2samp, norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture

from covid_project.evaluation import checked

# Fixed on validation scores, before any test score was adapted: docs/external.md.
FEWEST = 100  # images, for any threshold
BIC_GAIN = 10  # of two components over one: "very strong" (Kass & Raftery 1995, JASA)
SEPARATION = 2.0  # Ashman's D: below, two normal components are not apart (Ashman et al. 1994)
SMALLEST = 0.05  # fraction of the images in a component
DISCRIMINATION = 0.2  # sensitivity + specificity - 1 at home, for a prevalence to be estimated
LEVEL = 0.01  # of the tests: a difference is reported below this p-value
STARTS = (0.25, 0.5, 0.75)  # the mixture is fitted from these fractions of low scores
TOO_FEW = f"{{}} images are too few; {FEWEST} are needed"


@dataclass(frozen=True)
class Threshold:
    """A threshold from unlabelled images, or the reason why it is refused.

    Attributes
    ----------
    value : float
        On the logits; a higher score is called positive. NaN where it is refused.
    prevalence : float, 0–1
        Estimated fraction of positive images; NaN where it is unknown.
    reason : str
        Why the threshold is refused; empty otherwise.
    """

    value: float
    prevalence: float = math.nan
    reason: str = ""


def mixture_threshold(scores: np.ndarray) -> Threshold:
    """Separate unlabelled scores by a mixture of two normal distributions.

    Assumption: the scores of each class are about normal at the target, the classes are apart, and
    the component with the higher mean is the positive class. Nothing is assumed about the
    prevalence or about how far a class has moved.

    Parameters
    ----------
    scores : np.ndarray, (N,)
        Logits of the target's images.

    Returns
    -------
    Threshold
        Between the two means, where both components are equally probable. It is refused for fewer
        than `FEWEST` images, a gain in BIC over one component below `BIC_GAIN`, components closer
        than `SEPARATION`, Ashman's D = |μ₁ − μ₀| / √((σ₀² + σ₁²) / 2), or smaller than `SMALLEST`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> scores = np.concatenate([rng.normal(1, 1, 100), rng.normal(6, 1, 100)])
    >>> round(mixture_threshold(scores).value, 1)
    3.7
    """
    scores = _finite(scores)
    if len(scores) < FEWEST:
        return Threshold(math.nan, reason=TOO_FEW.format(len(scores)))
    column = scores[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fits = [_two_normals(column, start) for start in STARTS]
        two = max(fits, key=lambda fit: fit.lower_bound_)
        gain = GaussianMixture(1).fit(column).bic(column) - two.bic(column)
    order = np.argsort(two.means_[:, 0])
    means, deviations = two.means_[order, 0], np.sqrt(two.covariances_[order, 0, 0])
    weights = two.weights_[order]
    apart = (means[1] - means[0]) / math.sqrt((deviations**2).mean())
    found = Threshold(_crossing(means, deviations, weights), float(weights[1]))
    if gain < BIC_GAIN:
        reason = f"one component explains the scores as well (BIC gain {gain:.0f})"
    elif apart < SEPARATION:
        reason = f"the two components are not apart (D = {apart:.1f}, at least {SEPARATION:g})"
    elif weights.min() < SMALLEST:
        reason = f"one component has only {weights.min():.0%} of the images"
    elif math.isnan(found.value):
        reason = "the components do not cross between their means"
    else:
        return found
    return Threshold(math.nan, reason=reason)


def label_shift_threshold(scores: np.ndarray, reference: pd.DataFrame) -> Threshold:
    """Estimate the prevalence at the target, and move the threshold accordingly.

    Assumption: label shift. Only the prevalence differs; the images of a class look to the model
    as they do at home. Where they do not, no mix of the two classes at home gives the target's
    scores, and the threshold is refused.

    Parameters
    ----------
    scores : np.ndarray, (N,)
        Logits of the target's images.
    reference : pd.DataFrame
        Columns label and score: the model on labelled images that it was not trained on.

    Returns
    -------
    Threshold
        Where the probability is 1/2 at the estimated prevalence. The probabilities are calibrated
        on the reference (Platt 1999); the prevalence is the fixed point of Saerens, Latinne &
        Decaestecker (2002, Neural Computation, eq. 2.9).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> scores = np.concatenate([rng.normal(-1.5, 1, 100), rng.normal(1.5, 1, 100)])
    >>> reference = pd.DataFrame({"label": np.repeat([0, 1], 100), "score": scores})
    >>> round(label_shift_threshold(scores[50:], reference).prevalence, 2)
    0.67
    """
    scores = _finite(scores)
    labels, own = checked(reference["label"], reference["score"])
    if len(scores) < FEWEST:
        return Threshold(math.nan, reason=TOO_FEW.format(len(scores)))
    discrimination = (own[labels] > 0).mean() - (own[~labels] > 0).mean()
    if discrimination < DISCRIMINATION:
        return Threshold(math.nan, reason="the model does not tell its own classes apart")
    platt = LogisticRegression(solver="newton-cholesky").fit(own[:, None], labels)
    slope, intercept = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    at_home = float(labels.mean())
    prevalence = _prevalence_by_em(slope * scores + intercept, at_home)
    distance, critical = _distance(scores, own[labels], own[~labels], prevalence)
    if distance > critical:
        reason = (
            f"no prevalence explains the scores: their distribution differs by {distance:.2f} "
            f"from the closest mix of the classes at home (at most {critical:.2f} by chance)"
        )
        return Threshold(math.nan, reason=reason)
    value = (logit(at_home) - logit(prevalence) - intercept) / slope
    return Threshold(float(value), prevalence)


def site_warning(scores: np.ndarray, reference: pd.DataFrame) -> tuple[bool, str]:
    """Say without labels whether a site differs from the model's own collection.

    Assumption: none about the target. It cannot tell another prevalence from other images.

    Parameters
    ----------
    scores : np.ndarray, (N,)
        Logits of the target's images.
    reference : pd.DataFrame
        As for `label_shift_threshold`; its prevalence stands for that of the training.

    Returns
    -------
    tuple of bool and str
        Whether the fraction called positive is not the prevalence at home (exact binomial test),
        or the scores' distributions differ (Kolmogorov–Smirnov), each at the level `LEVEL`; and
        the numbers in words.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> scores = np.concatenate([rng.normal(-1.5, 1, 100), rng.normal(1.5, 1, 100)])
    >>> reference = pd.DataFrame({"label": np.repeat([0, 1], 100), "score": scores})
    >>> site_warning(scores + 3, reference)[0]
    True
    """
    scores = _finite(scores)
    labels, own = checked(reference["label"], reference["score"])
    called, at_home = int((scores > 0).sum()), float(labels.mean())
    p_called = binomtest(called, len(scores), at_home).pvalue
    shape = ks_2samp(scores, own)
    differs = bool(min(p_called, shape.pvalue) < LEVEL)
    opening = "Warning: this site differs." if differs else "No sign that this site differs."
    estimated = _prevalence_by_counts(scores, labels, own)
    text = (
        f"{opening} {called / len(scores):.0%} of {len(scores)} images are called positive, where "
        f"{at_home:.0%} of the model's own images are positive ({_p(p_called)}). The distributions "
        f"of the scores differ by {shape.statistic:.2f} (Kolmogorov–Smirnov, {_p(shape.pvalue)}). "
        f"If only the prevalence differed, it would be {estimated:.2f}."
    )
    return differs, text


def _finite(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or len(scores) == 0 or not np.isfinite(scores).all():
        raise ValueError("scores must be finite, of shape (N,), N > 0")
    return scores


def _two_normals(column: np.ndarray, start: float) -> GaussianMixture:
    """Fit two components, first with a fraction ``start`` of the images in the lower one."""
    low, high = np.split(np.sort(column, axis=0), [int(start * len(column))])
    mixture = GaussianMixture(
        2,
        weights_init=[start, 1 - start],
        means_init=[low.mean(0), high.mean(0)],
        precisions_init=[[[1 / max(float(part.var()), 1e-3)]] for part in (low, high)],
        tol=1e-4,
        max_iter=500,
    )
    return mixture.fit(column)


def _crossing(means: np.ndarray, deviations: np.ndarray, weights: np.ndarray) -> float:
    """Score between two means at which two weighted normal densities are equal, or NaN."""

    def excess(score: float) -> float:
        lower, upper = np.log(weights) + norm.logpdf(score, means, deviations)
        return upper - lower

    inside = excess(means[0]) < 0 < excess(means[1])
    return float(brentq(excess, *means)) if inside else math.nan


def _prevalence_by_em(logits: np.ndarray, prior: float) -> float:
    """Estimate a prevalence from logits calibrated at ``prior``; never 0 or 1."""
    least, prevalence = 1 / (2 * len(logits)), prior
    for _ in range(1000):
        shifted = logits + logit(prevalence) - logit(prior)
        previous, prevalence = prevalence, float(np.clip(expit(shifted).mean(), least, 1 - least))
        if abs(prevalence - previous) < 1e-7:
            break
    return prevalence


def _prevalence_by_counts(scores: np.ndarray, labels: np.ndarray, own: np.ndarray) -> float:
    """(q − FPR) / (TPR − FPR), q the fraction called positive; the check of `_prevalence_by_em`.

    Black-box shift estimation (Lipton, Wang & Smola 2018, ICML), cut to 0–1.
    """
    true, false = (own[labels] > 0).mean(), (own[~labels] > 0).mean()
    if true == false:
        return math.nan
    return float(np.clip(((scores > 0).mean() - false) / (true - false), 0, 1))


def _distance(
    scores: np.ndarray, positives: np.ndarray, negatives: np.ndarray, prevalence: float
) -> tuple[float, float]:
    """Kolmogorov–Smirnov distance from scores to a mix of two classes, and its critical value.

    The variance of the mix is that of 1 / (π² / n₁ + (1 − π)² / n₀) images.
    """
    points = np.concatenate([scores, positives, negatives])
    here, *classes = (
        np.searchsorted(np.sort(group), points, side="right") / len(group)
        for group in (scores, positives, negatives)
    )
    mix = prevalence * classes[0] + (1 - prevalence) * classes[1]
    variance = prevalence**2 / len(positives) + (1 - prevalence) ** 2 / len(negatives)
    critical = math.sqrt(-math.log(LEVEL / 2) / 2 * (variance + 1 / len(scores)))
    return float(np.abs(here - mix).max()), critical


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
