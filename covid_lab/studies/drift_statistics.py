"""Statistics of drift and of the loss of AUC, with intervals.

All intervals are percentile intervals of the bootstrap over images in `image_bootstrap`. Tables of
scores and drift hold one network, or several that differ only in the seed of training; the column
``seed`` identifies them. Results are means over the networks.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import softmax

from covid_lab.studies.image_bootstrap import (
    estimate,
    weighted_auc,
    weighted_mean,
    with_sample,
)
from covid_lab.studies.saliency_drift import MEASURES, ORIGINAL


def _class_auc(labels: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the AUC (R,) of `robustness.auc` under each weighting of the images."""
    if logits.shape[1] == 2:
        return weighted_auc(labels == 1, logits[:, 1] - logits[:, 0], weights)
    scores = softmax(logits, axis=1)
    aucs = [weighted_auc(labels == k, scores[:, k], weights) for k in range(logits.shape[1])]
    return np.mean(aucs, axis=0)


def _mean_auc(rows: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    """Return the mean AUC (R,) over the networks on one version of the images."""
    aucs = [
        _class_auc(group["label"].to_numpy(), logits_of(group), weights)
        for _, group in rows.groupby("seed")
    ]
    return np.mean(aucs, axis=0)


def logits_of(rows: pd.DataFrame) -> np.ndarray:
    """Return the columns logit_0, logit_1, … of a table.

    Parameters
    ----------
    rows : pd.DataFrame

    Returns
    -------
    np.ndarray, float (N, K)
    """
    return rows.filter(like="logit_").to_numpy()


def with_errors(scores: pd.DataFrame, labels: np.ndarray) -> pd.DataFrame:
    """Add labels, predictions and errors to the scores of one network.

    Parameters
    ----------
    scores : pd.DataFrame
        From `saliency_drift.grid`.
    labels : np.ndarray, int (N,)

    Returns
    -------
    pd.DataFrame
        With the additional columns label, predicted, wrong, confidence (softmax probability of the
        predicted class) and score_change. The last is the absolute change of the probability of the
        class that is predicted for the original image.
    """
    probabilities = softmax(logits_of(scores), axis=1)
    image = scores["image"].to_numpy()
    predicted = probabilities.argmax(axis=1)
    original = (scores["perturbation"] == ORIGINAL).to_numpy()  # its rows are in image order
    first = predicted[original][image]  # the class that is predicted for the original image
    before = probabilities[original][image, first]
    label = np.asarray(labels)[image]
    return scores.assign(
        label=label,
        predicted=predicted,
        wrong=predicted != label,
        confidence=probabilities.max(axis=1),
        score_change=np.abs(probabilities[np.arange(len(image)), first] - before),
    )


def constant_networks(errors: pd.DataFrame) -> list[int]:
    """Return the networks that predict the same class for every unperturbed image.

    Parameters
    ----------
    errors : pd.DataFrame
        From `with_errors`, with ``seed``; of validation images, because networks are not chosen by
        their test predictions.

    Returns
    -------
    list of int
        Their seeds.
    """
    original = errors[errors["perturbation"] == ORIGINAL]
    classes = original.groupby("seed")["predicted"].nunique()
    return [int(seed) for seed in classes.index[classes == 1]]


def performance(errors: pd.DataFrame, weights: np.ndarray) -> pd.DataFrame:
    """Return AUC and accuracy on the original images.

    Parameters
    ----------
    errors : pd.DataFrame
        From `with_errors`, with ``seed``.
    weights : np.ndarray, float (R, N)
        From `image_bootstrap.draws`.

    Returns
    -------
    pd.DataFrame
        Columns network, metric ("AUC" or "accuracy"), value, low and high. ``network`` is a seed,
        "mean" or, if there are several, "together": the mean of their logits.
    """
    clean = errors[errors["perturbation"] == ORIGINAL]
    labels = clean["label"].to_numpy()[clean["seed"] == clean["seed"].iloc[0]]
    logits = {seed: logits_of(group) for seed, group in clean.groupby("seed")}
    every = with_sample(weights)

    def measured(logits: np.ndarray) -> np.ndarray:
        right = (logits.argmax(axis=1) == labels).astype(float)
        return np.stack([_class_auc(labels, logits, every), weighted_mean(right, every)])

    found = {network: measured(values) for network, values in logits.items()}
    found["mean"] = np.mean(list(found.values()), axis=0)
    if len(logits) > 1:
        found["together"] = measured(np.mean(list(logits.values()), axis=0))
    rows = [
        (network, metric, *estimate(values))
        for network, both in found.items()
        for metric, values in zip(("AUC", "accuracy"), both, strict=True)
    ]
    return pd.DataFrame(rows, columns=["network", "metric", "value", "low", "high"])


def drift_by_layer(
    drifts: pd.DataFrame, errors: pd.DataFrame, classes: Sequence[str], weights: np.ndarray
) -> pd.DataFrame:
    """Return the mean drift per measure, perturbation, severity, layer, class and prediction.

    Parameters
    ----------
    drifts : pd.DataFrame
        From `saliency_drift.grid`, with ``seed``.
    errors : pd.DataFrame
        From `with_errors`, with ``seed``.
    classes : sequence of str
    weights : np.ndarray, float (R, N)
        From `image_bootstrap.draws`.

    Returns
    -------
    pd.DataFrame
        Columns measure, perturbation, severity, layer, class, prediction ("right" or "wrong", of
        the original image), n (images times networks), value, low and high.
    """
    original = errors[errors["perturbation"] == ORIGINAL].set_index(["seed", "image"])
    facts = drifts.join(original[["label", "wrong"]], on=["seed", "image"])
    keys = ["perturbation", "severity", "layer", "label", "wrong"]
    every, rows = with_sample(weights), []
    for (*where, label, wrong), group in facts.groupby(keys, sort=False):
        chosen = every[:, group["image"]]
        for measure in MEASURES:
            values = group[measure].to_numpy()
            cell = (measure, *where, classes[label], "wrong" if wrong else "right")
            n = int(np.isfinite(values).sum())
            rows.append((*cell, n, *estimate(weighted_mean(values, chosen))))
    names = ["measure", "perturbation", "severity", "layer", "class", "prediction", "n", "value"]
    return pd.DataFrame(rows, columns=[*names, "low", "high"])


def auc_losses(errors: pd.DataFrame, weights: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """Return ΔAUC, the AUC on the originals minus the AUC on each perturbed set, paired.

    Parameters
    ----------
    errors : pd.DataFrame
        From `with_errors`, with ``seed``.
    weights : np.ndarray, float (R, N)
        From `image_bootstrap.draws`.

    Returns
    -------
    table : pd.DataFrame
        One row per perturbed set: perturbation, severity, auc, delta, low, high, wrong (fraction).
    deltas : np.ndarray, float64 (R + 1, sets)
        ΔAUC of the sample, followed by those of the resamples, in the order of the table.
    """
    every = with_sample(weights)
    reference = _mean_auc(errors[errors["perturbation"] == ORIGINAL], every)
    rows, deltas = [], []
    for (perturbation, severity), group in errors.groupby(["perturbation", "severity"], sort=False):
        if perturbation == ORIGINAL:
            continue
        values = _mean_auc(group, every)
        deltas.append(reference - values)
        wrong = group["wrong"].mean()
        rows.append((perturbation, severity, values[0], *estimate(deltas[-1]), wrong))
    columns = ["perturbation", "severity", "auc", "delta", "low", "high", "wrong"]
    return pd.DataFrame(rows, columns=columns), np.stack(deltas, axis=1)


def balanced_errors(errors: pd.DataFrame, weights: np.ndarray) -> pd.DataFrame:
    """Return balanced errors, and by how much they exceed those of the original images.

    The balanced error of Di Salvo et al. 2024 ("MedMNIST-C") is 1 minus the mean recall of the
    classes, averaged over the severities. They divide it by that of AlexNet, which is
    ill-conditioned where AlexNet hardly loses or even improves. It is not divided here.

    Parameters
    ----------
    errors : pd.DataFrame
        From `with_errors`, with ``seed``.
    weights : np.ndarray, float (R, N)
        From `image_bootstrap.draws`.

    Returns
    -------
    pd.DataFrame
        Columns perturbation ("none": the originals, "all": mean over the perturbations),
        balanced_error, low, high, relative (difference from the originals), relative_low and
        relative_high.
    """
    every = with_sample(weights)
    values = {
        perturbation: np.mean(
            [_balanced_error(rows, every) for _, rows in group.groupby("severity")], axis=0
        )
        for perturbation, group in errors.groupby("perturbation", sort=False)
    }
    values["all"] = np.mean([values[name] for name in values if name != ORIGINAL], axis=0)
    rows = [
        (name, *estimate(found), *estimate(found - values[ORIGINAL]))
        for name, found in values.items()
    ]
    columns = ["perturbation", "balanced_error", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "relative", "relative_low", "relative_high"])


def _balanced_error(rows: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    wrong, label, image = (rows[name].to_numpy() for name in ("wrong", "label", "image"))
    return np.mean(
        [
            weighted_mean(wrong[label == k].astype(float), weights[:, image[label == k]])
            for k in np.unique(label)
        ],
        axis=0,
    )
