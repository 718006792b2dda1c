"""Figures of an external test."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from covid_project import figures
from covid_project.data import CLASSES
from covid_project.figures import COLOURS, PAGE, styled
from covid_project.gradcam import grad_cam, overlay

SHOWN = ("accuracy", "sensitivity", "specificity", "AUC", "balanced accuracy")
WORST = 4  # errors shown of each class
WIDEST = 0.98  # quantile of the logits beyond which they are drawn at the edge


def metrics(table: pd.DataFrame) -> plt.Figure:
    """Draw the metrics of one model on its own test set and on the external images.

    Parameters
    ----------
    table : pd.DataFrame
        From `covid_lab.external.score.external_metrics`, of one model.

    Returns
    -------
    plt.Figure
        One point with its interval per metric and set.

    Examples
    --------
    >>> from covid_lab.external.score import external_metrics
    >>> figure = metrics(external_metrics(np.repeat([0, 1], 20), np.arange(40.0) - 22))
    """
    shown = table[table["metric"].isin(SHOWN)]
    parts = []
    if "own_value" in shown:
        own = shown[["metric", "own_value", "own_low", "own_high"]]
        own.columns = ["metric", "value", "low", "high"]
        parts.append(own.assign(stage="own test set"))
    parts.append(shown[["metric", "value", "low", "high"]].assign(stage="external"))
    figure = figures.intervals(pd.concat(parts, ignore_index=True))
    figure.axes[0].set_xlim(-0.02, 1.02)
    return figure


@styled
def score_distributions(sets: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> plt.Figure:
    """Draw the distribution of the logits of each class, one panel per set of images.

    Parameters
    ----------
    sets : mapping of str to tuple of np.ndarray, int (N,), and np.ndarray, float (N,)
        Name of the set, such as "own test set" or "external" → labels and logits.

    Returns
    -------
    plt.Figure
        Histograms in percent of the images of a class. Logits beyond the 98 % quantile of their
        absolute values are drawn at the edge.

    Examples
    --------
    >>> figure = score_distributions({"external": (np.repeat([0, 1], 20), np.arange(40.0) - 22)})
    """
    height = 1.35 * len(sets) + 0.5
    figure, axes = plt.subplots(
        len(sets), 1, figsize=(PAGE / 2, height), sharex=True, layout="constrained", squeeze=False
    )
    everything = np.concatenate([np.abs(scores) for _, scores in sets.values()])
    limit = max(float(np.quantile(everything, WIDEST)), 1.0)
    bins = np.linspace(-limit, limit, 46)
    for axis, (name, (labels, scores)) in zip(axes.flat, sets.items(), strict=True):
        for label, class_name in enumerate(CLASSES):
            here = np.clip(np.asarray(scores)[np.asarray(labels) == label], -limit, limit)
            weights = np.full(len(here), 100 / max(len(here), 1))
            style = {"color": COLOURS[label], "linestyle": ("-", "--")[label], "linewidth": 1.3}
            axis.hist(here, bins, weights=weights, histtype="step", label=class_name, **style)
        axis.axvline(0, color="0.4", linestyle=":", linewidth=1)
        axis.set(title=name, ylabel="images (%)")
    axes[-1, 0].set_xlabel("logit of COVID (threshold at 0)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2)
    return figure


def errors(model, images: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> plt.Figure | None:
    """Draw errors of a model with their Grad-CAM.

    Parameters
    ----------
    model : keras.Model
        Images (N, S, S, 1 or 3) → logits (N, 1).
    images : np.ndarray, uint8 (N, S, S, 1 or 3), 0–255
        The errors to draw, as the model takes them.
    labels : np.ndarray, int (N,), 0 or 1
        Their labels.
    scores : np.ndarray, float (N,)
        Their logits.

    Returns
    -------
    plt.Figure or None
        Image and overlay of each error; None without errors.
    """
    if not len(images):
        return None
    maps = grad_cam(model, images).maps
    titles = [
        figures.verdict(label, score, CLASSES) for label, score in zip(labels, scores, strict=True)
    ]
    return figures.heatmap_panel(images[..., :1], overlay(images, maps), titles)


def worst_errors(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Select the most confident errors of each class.

    Parameters
    ----------
    labels : np.ndarray, int (N,), 0 or 1
        Labels of the images.
    scores : np.ndarray, float (N,)
        Their logits; the threshold is 0.

    Returns
    -------
    np.ndarray, int (K,)
        Rows of up to `WORST` false positives, then of up to `WORST` false negatives, the most
        confident of each first.

    Examples
    --------
    >>> worst_errors(np.array([0, 0, 1, 1]), np.array([-1.0, 3.0, -2.0, 1.0])).tolist()
    [1, 2]
    """
    labels = np.asarray(labels)
    false = np.flatnonzero((labels == 0) & (scores > 0))
    missed = np.flatnonzero((labels == 1) & (scores <= 0))
    false = false[np.argsort(-scores[false], kind="stable")][:WORST]
    missed = missed[np.argsort(scores[missed], kind="stable")][:WORST]
    return np.concatenate([false, missed])
