"""Figures of the pneumonia study: its data, its trainings, and the networks beside each other."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve, roc_curve

from covid_project.evaluation import confusion
from covid_project.figures import COLOURS, COLUMN, DASHES, MARKERS, PAGE, styled


@styled
def class_shares(table: pd.DataFrame, classes: Sequence[str]) -> plt.Figure:
    """Draw the fractions of the classes in each split, one pie per split.

    Parameters
    ----------
    table : pd.DataFrame
        One row per image, with the columns split and label (0 to K − 1).
    classes : sequence of str, (K,)
        Names of the labels.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> table = pd.DataFrame({"split": ["train", "train", "test"], "label": [0, 1, 1]})
    >>> figure = class_shares(table, ("NORMAL", "COVID"))
    """
    counts = pd.crosstab(table["split"], table["label"]).loc[table["split"].unique()]
    figure, axes = plt.subplots(1, len(counts), figsize=(COLUMN, 1.5), layout="constrained")
    for axis, (split, row) in zip(np.atleast_1d(axes), counts.iterrows(), strict=True):
        wedges, *_ = axis.pie(row, colors=COLOURS[: len(row)], autopct="%.0f%%", startangle=90)
        axis.set_title(f"{split}: {row.sum()}")
    figure.legend(wedges, classes, loc="outside lower center", ncols=len(classes))
    return figure


@styled
def stored_sizes(sizes: pd.DataFrame, classes: Sequence[str]) -> plt.Figure:
    """Draw width and height of the image files: a box plot of each, and one against the other.

    Parameters
    ----------
    sizes : pd.DataFrame
        One row per image, with the columns width, height (pixels) and label (0 to K − 1).
    classes : sequence of str, (K,)
        Names of the labels.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> sizes = pd.DataFrame({"width": [90, 80], "height": [90, 70], "label": [0, 1]})
    >>> figure = stored_sizes(sizes, ("NORMAL", "COVID"))
    """
    figure, axes = plt.subplots(1, 3, figsize=(PAGE, 2.0), layout="constrained")
    groups = [sizes[sizes["label"] == label] for label in range(len(classes))]
    for axis, side in zip(axes, ("width", "height"), strict=False):
        axis.boxplot([group[side] for group in groups], tick_labels=classes)
        axis.set(ylabel=f"{side} (pixels)")
    for number, (group, name) in enumerate(zip(groups, classes, strict=True)):
        style = {"color": COLOURS[number], "marker": MARKERS[number], "label": name}
        axes[2].scatter(group["width"], group["height"], s=12, alpha=0.5, **style)
    axes[2].set(xlabel="width (pixels)", ylabel="height (pixels)")
    axes[2].legend()
    return figure


@styled
def ranking_curves(labels: np.ndarray, scores: Mapping[str, np.ndarray]) -> plt.Figure:
    """Draw ROC and precision-recall curves of several models, with their thresholds marked.

    Parameters
    ----------
    labels : np.ndarray, (N,)
        0 or 1.
    scores : mapping of str to np.ndarray, (N,)
        Name of a model → its logits, whose threshold is 0.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> scores = {"baseline": np.array([-2.0, 1.0, 0.5, 3.0])}
    >>> figure = ranking_curves(np.array([0, 0, 1, 1]), scores)
    """
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.8), layout="constrained")
    for number, (name, values) in enumerate(scores.items()):
        style = {"color": COLOURS[number], "linestyle": DASHES[number]}
        counts = confusion(labels, values)
        found = counts[1, 1] / counts[1].sum()
        false_alarms, sensitivity, _ = roc_curve(labels, values)
        axes[0].plot(false_alarms, sensitivity, label=name, **style)
        precision, recall, _ = precision_recall_curve(labels, values)
        axes[1].plot(recall, precision, label=name, **style)
        marker = {"marker": MARKERS[number], "color": COLOURS[number], "markersize": 5}
        axes[0].plot(counts[0, 1] / counts[0].sum(), found, **marker)
        if counts[:, 1].any():
            axes[1].plot(found, counts[1, 1] / counts[:, 1].sum(), **marker)
    axes[0].set(xlabel="1 − specificity", ylabel="sensitivity", title="ROC")
    axes[1].set(xlabel="recall", ylabel="precision", title="precision and recall")
    axes[1].axhline(np.mean(labels), color="0.5", linewidth=0.8)
    axes[0].plot([0, 1], [0, 1], color="0.5", linewidth=0.8)
    axes[0].legend(loc="lower right")
    return figure


@styled
def model_bars(table: pd.DataFrame) -> plt.Figure:
    """Draw accuracy and AUC with 95 % intervals, and training time, beside the published values.

    Parameters
    ----------
    table : pd.DataFrame
        One row per model: stage, seconds, and for accuracy and AUC the value, ``<metric>_low`` and
        ``<metric>_high``. The published values, where there are any, are in ``published_seconds``
        and ``published_<metric>``.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = plt.subplots(1, 3, figsize=(PAGE, 2.2), layout="constrained")
    places = np.arange(len(table))
    for axis, name in zip(axes, ("accuracy", "AUC", "seconds"), strict=True):
        bars = {"edgecolor": "black", "linewidth": 0.5}
        if f"published_{name}" in table:
            published = {"color": "0.8", "label": "published", **bars}
            axis.bar(places - 0.2, table[f"published_{name}"], 0.4, **published)
        axis.bar(places + 0.2, table[name], 0.4, color=COLOURS[0], label="here", **bars)
        if f"{name}_low" in table:
            axis.vlines(places + 0.2, table[f"{name}_low"], table[f"{name}_high"], color="black")
            axis.set_ylim(0, 1)
        axis.set(xticks=places, xticklabels=table["stage"], ylabel=name)
    axes[2].set_ylabel("seconds of training")
    figure.legend(*axes[2].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@styled
def class_bars(table: pd.DataFrame, metric: str = "F1") -> plt.Figure:
    """Draw one metric per class and model, with 95 % intervals and its value above each bar.

    Parameters
    ----------
    table : pd.DataFrame
        Columns stage, class, metric, value, low and high, as from
        `covid_lab.statistics.class_metrics`.
    metric : str
        Which metric.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> row = {"stage": "cnn", "metric": "F1", "value": 0.8, "low": 0.7, "high": 0.9}
    >>> figure = class_bars(pd.DataFrame([row | {"class": "NORMAL"}, row | {"class": "COVID"}]))
    """
    shown = table[table["metric"] == metric]
    classes, stages = shown["class"].unique(), shown["stage"].unique()
    figure, axis = plt.subplots(figsize=(COLUMN, 2.2), layout="constrained")
    width = 0.8 / len(classes)
    for number, name in enumerate(classes):
        rows = shown[shown["class"] == name].set_index("stage").loc[stages]
        places = np.arange(len(stages)) + (number - (len(classes) - 1) / 2) * width
        style = {"color": COLOURS[number], "edgecolor": "black", "linewidth": 0.5, "label": name}
        axis.bar(places, rows["value"], width, **style)
        axis.vlines(places, rows["low"], rows["high"], color="black")
        for place, row in zip(places, rows.itertuples(), strict=True):
            axis.text(place, row.high + 0.02, f"{row.value:.3f}", ha="center", fontsize=7)
    axis.set(xticks=np.arange(len(stages)), xticklabels=stages, ylabel=metric, ylim=(0, 1.1))
    figure.legend(loc="outside upper center", ncols=len(classes))
    return figure


@styled
def training_curves(history: pd.DataFrame, best_epoch: int) -> plt.Figure:
    """Draw loss, accuracy, precision and recall by epoch; mark the best epoch and fine-tuning.

    Parameters
    ----------
    history : pd.DataFrame
        From `covid_lab.training.fit`, with precision and recall. The column phase, if there is one,
        names the stage of the training; where it changes, fine-tuning begins.
    best_epoch : int, from 1
        Epoch whose weights are kept.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> history = {name: [0.6, 0.5] for name in ("loss", "accuracy", "precision", "recall")}
    >>> figure = training_curves(pd.DataFrame({"epoch": [1, 2], **history}), 2)
    """
    names = ("loss", "accuracy", "precision", "recall")
    figure, axes = plt.subplots(1, 4, figsize=(PAGE, 2.0), layout="constrained")
    phases = history.get("phase", pd.Series("", history.index))
    begins = history["epoch"][phases != phases.shift(fill_value=phases.iloc[0])]
    for axis, name in zip(axes, names, strict=True):
        for number, (column, label) in enumerate(
            ((name, "training"), (f"val_{name}", "validation"))
        ):
            if column in history:
                style = {"color": COLOURS[number], "label": label}
                axis.plot(history["epoch"], history[column], DASHES[number], **style)
        axis.axvline(best_epoch, color="0.5", linestyle=":", label=f"epoch {best_epoch}, kept")
        for epoch in begins:
            axis.axvline(epoch - 0.5, color="0.5", linestyle="--", label="fine-tuning begins")
        axis.set(xlabel="epoch", ylabel="cross-entropy (nats)" if name == "loss" else name)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes[0].set_ylim(bottom=0)
    lines = axes[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside upper center", ncols=len(lines[0]))
    return figure
