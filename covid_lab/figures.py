"""Figures of explanations and studies, in the style of `covid_project.figures`."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from covid_lab.explain.quality_terms import (
    BASELINES,
    FAITHFULNESS,
    LOCALISATION,
    SANITY,
    is_lower_better,
)
from covid_project.evaluation import confusion
from covid_project.figures import COLOURS, COLUMN, DASHES, MARKERS, PAGE, image_grid, styled


@styled
def feature_maps(maps: np.ndarray, titles: Sequence[str], columns: int = 8) -> plt.Figure:
    """Draw feature maps of one image, each on its own grey scale.

    Parameters
    ----------
    maps : np.ndarray, float (K, h, w)
    titles : sequence of str, (K,)
    columns : int, from 1
        Maps in a row.

    Returns
    -------
    matplotlib.figure.Figure
    """
    low = maps.min(axis=(1, 2), keepdims=True)
    spread = np.maximum(np.ptp(maps, axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny)
    return image_grid(255 * (maps - low) / spread, titles, columns)


@styled
def reliability(tables: Mapping[str, pd.DataFrame]) -> plt.Figure:
    """Draw observed against predicted frequency of the positive class, one panel per model.

    Parameters
    ----------
    tables : mapping of str to pd.DataFrame
        Name of a model → its table from `covid_lab.calibration.reliability`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = plt.subplots(
        1,
        len(tables),
        figsize=(COLUMN, 1.75),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for number, (axis, (name, table)) in enumerate(zip(axes.flat, tables.items(), strict=True)):
        axis.plot([0, 1], [0, 1], ":", color="0.4", linewidth=1)
        axis.vlines(
            table["predicted"], table["low"], table["high"], color=COLOURS[number], linewidth=1
        )
        axis.plot(
            table["predicted"],
            table["observed"],
            MARKERS[number],
            color=COLOURS[number],
            markersize=3,
        )
        axis.set(title=name.replace("_", "-"), xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
        axis.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    axes[0, 0].set_ylabel("fraction of COVID, observed")
    figure.supxlabel("probability of COVID, predicted", fontsize=8)
    return figure


@styled
def explanation_quality(table: pd.DataFrame) -> plt.Figure:
    """Draw the quality of each explanation: a panel per measure, a row per method, 95 % intervals.

    Filled marks are better than all three control maps, or pass. Upright strokes are the mean
    similarity of different images' maps: sanity must stay below it, stability above. Of the sanity
    test the last step is shown, with the whole network randomised.

    Parameters
    ----------
    table : pd.DataFrame
        From `covid_lab.explain.quality.explanation_quality`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    names = list(dict.fromkeys(table["method"]))
    panels = _quality_panels(table)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(PAGE, rows * (0.15 * len(names) + 0.85)),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (test, measure, setting) in zip(axes.flat, panels, strict=False):
        here = table[
            (table["test"] == test) & (table["measure"] == measure) & (table["setting"] == setting)
        ]
        means = here[here["versus"].isna()].set_index("method").reindex(names)
        if test in (LOCALISATION, FAITHFULNESS):
            wins = here[here["verdict"] == "better"].groupby("method").size()
            good = wins.reindex(names, fill_value=0) == len(BASELINES)
        else:
            good = means["verdict"] == "pass"
        places = np.arange(len(names))
        colours = np.where(np.isin(names, BASELINES), "0.45", COLOURS[0])
        axis.hlines(places, means["low"], means["high"], color=colours, linewidth=1)
        axis.scatter(
            means["value"],
            places,
            s=16,
            marker="o",
            facecolor=np.where(good, colours, "white"),
            edgecolor=colours,
            zorder=3,
        )
        axis.plot(means["reference"], places, "|", color="black", markersize=8)
        setting = "all layers randomised" if test == SANITY else setting
        axis.set_title(f"{measure}\n{setting}", fontsize=8)
        axis.set_xlabel("lower is better" if is_lower_better(test, measure, setting) else "")
        axis.locator_params(axis="x", nbins=4)
    axes[0, 0].set(yticks=range(len(names)), yticklabels=names)
    axes[0, 0].invert_yaxis()
    return figure


def _quality_panels(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Choose test, measure and setting of each panel.

    IoU says the same as the energy inside and stays in the table, as do the steps of ROAD.
    """
    shown = table[
        (table["test"].eq(LOCALISATION) & ~table["measure"].str.startswith("IoU"))
        | (table["test"].eq(FAITHFULNESS) & ~table["setting"].str.endswith("first"))
        | table["measure"].eq("SSIM")
    ]
    keys = list(dict.fromkeys(shown[["test", "measure", "setting"]].itertuples(index=False)))
    cascade = [key for key in keys if key.test == SANITY and key.setting.startswith("cascading")]
    return [tuple(key) for key in keys if key.test != SANITY or key == cascade[-1]]


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
        One row per model: stage, seconds, published_seconds, and for accuracy and AUC the value,
        ``<metric>_low``, ``<metric>_high`` and ``published_<metric>``.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = plt.subplots(1, 3, figsize=(PAGE, 2.2), layout="constrained")
    places = np.arange(len(table))
    for axis, name in zip(axes, ("accuracy", "AUC", "seconds"), strict=True):
        bars = {"edgecolor": "black", "linewidth": 0.5}
        axis.bar(
            places - 0.2, table[f"published_{name}"], 0.4, color="0.8", label="published", **bars
        )
        axis.bar(places + 0.2, table[name], 0.4, color=COLOURS[0], label="here", **bars)
        if f"{name}_low" in table:
            axis.vlines(places + 0.2, table[f"{name}_low"], table[f"{name}_high"], color="black")
            axis.set_ylim(0, 1)
        axis.set(xticks=places, xticklabels=table["stage"], ylabel=name)
    axes[2].set_ylabel("seconds of training")
    axes[2].legend()
    return figure
