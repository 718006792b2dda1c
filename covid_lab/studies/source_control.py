"""What a study measures in which each class comes from a source of its own.

The published study took its lesions from one collection of slices and everything else from another.
Here a network learns to tell two such sources apart, in cross-validation with patients kept
together, so that its scores are as high as the published ones. Then it scores slices that have a
finding but come from the source without lesions. A network that recognises a finding calls many of
them positive; a network that recognises the source calls almost none.
"""

from collections.abc import Callable

import keras
import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from covid_lab.audit.predictability import resample
from covid_lab.studies.image_bootstrap import estimate, weighted_auc, weighted_mean, with_sample
from covid_project.models import logits


def out_of_fold(
    train: Callable[[np.ndarray], keras.Model],
    inputs: np.ndarray,
    sources: np.ndarray,
    groups: np.ndarray,
    others: np.ndarray,
    *,
    folds: int = 5,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Train in cross-validation over groups; score the held-out rows and further inputs.

    Parameters
    ----------
    train : callable
        Takes row numbers, int (n,), and returns a model trained on these rows only. It has one
        logit, the higher the more like source 1.
    inputs : np.ndarray, (N, ...)
        What the model takes: images or features.
    sources : np.ndarray, (N,), 0 or 1
        Source of each row.
    groups : np.ndarray, (N,)
        Patients; one is never in training and held out at once.
    others : np.ndarray, (M, ...)
        Further inputs, scored by the model of every fold.
    folds : int, from 2
        Parts of the cross-validation.
    seed : int, from 0
        Seed of the folds.

    Returns
    -------
    own : np.ndarray, float (N,)
        Logit of each row from the model that did not see its group.
    further : np.ndarray, float (folds, M)
        Logits of the further inputs.
    """
    own, further = np.full(len(sources), np.nan), np.empty((folds, len(others)))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (learned, held_out) in enumerate(splitter.split(sources, sources, groups)):
        model = train(learned)
        own[held_out] = logits(model, inputs[held_out])
        further[fold] = logits(model, others)
    return own, further


def source_measures(
    own: np.ndarray,
    sources: np.ndarray,
    groups: np.ndarray,
    further: np.ndarray,
    further_groups: np.ndarray,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure how well the sources are told apart, and how often further inputs are called 1.

    Parameters
    ----------
    own : np.ndarray, float (N,)
        Logits from `out_of_fold`.
    sources : np.ndarray, (N,), 0 or 1
        Source of each row.
    groups : np.ndarray, (N,)
        Patients.
    further : np.ndarray, float (folds, M)
        Logits of the further inputs.
    further_groups : np.ndarray, (M,)
        Their patients.
    seed : int, from 0
        Seed of the bootstrap.

    Returns
    -------
    pd.DataFrame
        One row per metric (accuracy, majority class, sensitivity, specificity, AUC, others called
        positive): metric, value, low, high (95 %, bootstrap over groups), n, groups. The last is
        the fraction of further inputs called positive, averaged over the folds.
    """
    sources = np.asarray(sources)
    weights = _weights(sources, groups, seed)
    right = (own > 0) == (sources == 1)
    values = {
        "accuracy": weighted_mean(right, weights),
        "majority class": weighted_mean(sources == (sources.mean() > 0.5), weights),
        "sensitivity": weighted_mean(np.where(sources == 1, right, np.nan), weights),
        "specificity": weighted_mean(np.where(sources == 0, right, np.nan), weights),
        "AUC": weighted_auc(sources == 1, own, weights),
    }
    rows = [(name, *estimate(value), len(own), _count(groups)) for name, value in values.items()]
    called = (further > 0).mean(axis=0)
    other_weights = _weights(np.zeros(len(called), int), further_groups, seed)
    found = estimate(weighted_mean(called, other_weights))
    rows.append(("others called positive", *found, len(called), _count(further_groups)))
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n", "groups"])


def _weights(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Return how often each row counts in the sample and in each resample of groups."""
    numbers = pd.factorize(np.asarray(groups))[0]
    return with_sample(resample(labels, numbers, np.random.default_rng(seed)).astype(float))


def _count(groups: np.ndarray) -> int:
    return len(np.unique(np.asarray(groups)))
