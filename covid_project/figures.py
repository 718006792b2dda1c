"""Figures: draw what others computed, at the width of a report's column or page.

Every function returns the figure; `results.Run.save_figure` writes it. Lines differ by dash and
marker as well as by colour, so that they can be told apart in grey.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from scipy.special import expit

from covid_project.settings import Axis
from covid_project.tuning import OBJECTIVE

COLUMN = 3.5  # inches: one column of a two-column article
PAGE = 7.2  # inches: both columns
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000")  # distinct for colour-blind readers too
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "figure.dpi": 120,
    "legend.frameon": False,
}


def styled(draw: Callable) -> Callable:
    """Decorate a function that draws: it uses `STYLE` and leaves Matplotlib's settings unchanged.

    Parameters
    ----------
    draw : callable

    Returns
    -------
    callable
    """

    @wraps(draw)
    def drawn(*arguments, **options):
        with plt.rc_context(STYLE):
            return draw(*arguments, **options)

    return drawn


@styled
def class_distribution(table: pd.DataFrame, classes: Sequence[str]) -> plt.Figure:
    """Draw the number of images per class in each split.

    Parameters
    ----------
    table : pd.DataFrame
        One row per image, columns split and label.
    classes : sequence of str
        Two names, in the order of the labels.

    Returns
    -------
    plt.Figure

    Examples
    --------
    >>> figure = class_distribution(run.dataset.table, ("NORMAL", "COVID"))
    """
    counts = pd.crosstab(table["split"], table["label"]).loc[table["split"].unique()]
    figure, axis = plt.subplots(figsize=(COLUMN, 2.0), layout="constrained")
    width = 0.38
    for label, name in enumerate(classes):
        places = np.arange(len(counts)) + (label - 0.5) * width
        style = {"color": COLOURS[label], "hatch": "//" if label else None, "edgecolor": "black"}
        bars = axis.bar(places, counts[label], width, label=name, **style)
        axis.bar_label(bars, fontsize=8)
    axis.set(xticks=range(len(counts)), xticklabels=counts.index, ylabel="images", xlabel="split")
    axis.grid(False, axis="x")
    axis.margins(y=0.12)
    figure.legend(loc="outside upper center", ncols=len(classes))
    return figure


@styled
def image_grid(
    images: np.ndarray,
    titles: Sequence[str],
    columns: int = 4,
    *,
    scale: tuple[float, float] = (0, 255),
    colour_map: str = "gray",
    bar: str = "",
) -> plt.Figure:
    """Draw images with a title each.

    Parameters
    ----------
    images : np.ndarray, (N, H, W), (N, H, W, 1) or uint8 (N, H, W, 3)
    titles : sequence of str
    columns : int
        Images side by side, over the width of a page.
    scale : tuple of float
        Values of the darkest and the brightest colour; for (N, H, W, 3) only of the colour bar.
    colour_map : str
        Name of a Matplotlib colour map.
    bar : str
        Label of a colour bar; "" for none.

    Returns
    -------
    plt.Figure

    Examples
    --------
    >>> figure = image_grid(images[:4], ["first", "second", "third", "fourth"])
    """
    rows, side = -(-len(images) // columns), PAGE / columns
    columns = min(columns, max(len(images), 1))
    lines = max((title.count("\n") + 1 for title in titles), default=1)
    size = (columns * side + (0.6 if bar else 0), rows * (side + 0.25 + 0.15 * lines))  # inches
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    colours = {"cmap": colour_map, "vmin": scale[0], "vmax": scale[1], "interpolation": "nearest"}
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        image = np.squeeze(image)
        axis.imshow(image, **(colours if image.ndim == 2 else {}))
        axis.set_title(title, parse_math=False)  # a file may be called $x^$.png
    if bar:
        values = plt.cm.ScalarMappable(plt.Normalize(*scale), colour_map)
        figure.colorbar(values, ax=axes, label=bar, shrink=0.8, pad=0.01, aspect=25)
    return figure


@styled
def grey_histograms(images: Mapping[tuple[str, str], np.ndarray]) -> plt.Figure:
    """Draw the percentage of pixels per grey value: a panel per split, a line per class.

    Parameters
    ----------
    images : mapping of (split, class name) to np.ndarray, uint8

    Returns
    -------
    plt.Figure

    Examples
    --------
    >>> figure = grey_histograms({("train", "NORMAL"): images[labels == 0]})
    """
    splits = list(dict.fromkeys(split for split, _ in images))
    size = {"figsize": (PAGE, 1.9), "sharey": True, "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(1, len(splits), **size)
    for axis, split in zip(axes.flat, splits, strict=True):
        lines = [(name, values) for (owner, name), values in images.items() if owner == split]
        for k, (name, values) in enumerate(lines):
            counts = np.bincount(values.reshape(-1), minlength=256)
            percentage = 100 * counts.reshape(64, 4).sum(axis=1) / values.size  # 4 grey levels each
            axis.plot(np.arange(64) * 4 + 1.5, percentage, DASHES[k], color=COLOURS[k], label=name)
        axis.set(title=split, xlabel="grey value (0–255)")
    axes[0, 0].set_ylabel("pixels (%)")
    axes[0, 0].legend()
    return figure


@styled
def value_histograms(values: Mapping[str, np.ndarray]) -> plt.Figure:
    """Draw the distribution of values, one panel per array.

    Parameters
    ----------
    values : mapping of str to np.ndarray
        The keys are the titles.

    Returns
    -------
    plt.Figure

    Examples
    --------
    >>> figure = value_histograms({"grey values": images})
    """
    figure, axes = plt.subplots(1, len(values), figsize=(PAGE, 1.7), layout="constrained")
    for axis, (name, array) in zip(np.atleast_1d(axes), values.items(), strict=True):
        axis.hist(np.ravel(array), bins=50, color=COLOURS[0])
        axis.set(title=name, xlabel="value", yticks=[])
    np.atleast_1d(axes)[0].set_ylabel("pixels")
    return figure


@styled
def history(table: pd.DataFrame, best_epoch: int | None = None) -> plt.Figure:
    """Draw loss and accuracy by epoch, with validation where the table has it.

    Parameters
    ----------
    table : pd.DataFrame
        From `training.TrainingLog`.
    best_epoch : int, optional
        Epoch (from 1) to mark.

    Returns
    -------
    plt.Figure

    Examples
    --------
    >>> figure = history(pd.DataFrame({"epoch": [1, 2], "loss": [0.7, 0.5], "accuracy": [0.5, 1]}))
    """
    figure, axes = plt.subplots(1, 2, figsize=(COLUMN, 2.0), layout="constrained")
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for k, (column, label) in enumerate([(name, "training"), (f"val_{name}", "validation")]):
            if column in table:
                line = {"color": COLOURS[k], "label": label if name == "loss" else None}
                axis.plot(table["epoch"], table[column], DASHES[k], **line)
        if best_epoch:
            label = f"epoch {best_epoch}" if name == "loss" else None
            axis.axvline(best_epoch, color="0.5", linewidth=0.8, linestyle=":", label=label)
        axis.set(xlabel="epoch", ylabel="cross-entropy (nats)" if name == "loss" else name)
    axes[0].set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=3, columnspacing=1, handlelength=1.8)
    return figure


@styled
def tuning(trials: pd.DataFrame, axes: Mapping[str, Axis]) -> plt.Figure:
    """Draw the validation loss of every trial against each hyperparameter, and mark the best.

    Parameters
    ----------
    trials : pd.DataFrame
        From `tuning.search`.
    axes : mapping of str to Axis
        Range of each hyperparameter.

    Returns
    -------
    plt.Figure

    Examples
    --------
    >>> rates = Axis(values=(1e-4, 1e-3), low=1e-5, high=1e-2, times=10)
    >>> trials = pd.DataFrame({"rate": [1e-4, 1e-3], "val_loss": [0.6, 0.5], "extension": False})
    >>> figure = tuning(trials, {"rate": rates})
    """
    size = {"figsize": (PAGE, 2.2), "sharey": True, "layout": "constrained", "squeeze": False}
    figure, panels = plt.subplots(1, len(axes), **size)
    best = trials.loc[trials[OBJECTIVE].idxmin()]
    extension = trials["extension"].astype(bool)
    groups = [(~extension, "none", "planned trial"), (extension, "0.4", "extension of a range")]
    for panel, (name, axis) in zip(panels.flat, axes.items(), strict=True):
        for chosen, face, label in groups:
            dots = {"markersize": 4, "markerfacecolor": face, "color": "black", "label": label}
            panel.plot(trials[name][chosen], trials[OBJECTIVE][chosen], "o", **dots)
        star = {"markersize": 11, "color": COLOURS[1], "label": "best trial"}
        panel.plot(best[name], best[OBJECTIVE], "*", **star)
        panel.set_xlabel(name.replace("_", " "))
        panel.margins(0.15)
        if axis.times:  # steps are factors
            values = sorted(trials[name].unique())
            panel.set_xscale("log", base=2)
            panel.set_xticks(values, [f"{value:.3g}" for value in values], rotation=45)
            panel.minorticks_off()
    panels[0, 0].set_ylabel("validation loss (nats)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


@styled
def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> plt.Figure:
    """Draw a confusion matrix.

    Parameters
    ----------
    counts : np.ndarray, int (classes, classes)
        Rows are labels, columns predictions.
    classes : sequence of str

    Returns
    -------
    plt.Figure

    Examples
    --------
    >>> figure = confusion_matrix(np.array([[9, 1], [2, 8]]), ("NORMAL", "COVID"))
    """
    side, longest = 0.5 * len(classes), max(len(name) for name in classes)
    names = 0.09 * longest
    size = (side + names + 0.5, side + 0.7 * names + 0.5)  # inches
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    text = {"annot": True, "fmt": "d", "annot_kws": {"size": 10}}
    ticks = {"xticklabels": classes, "yticklabels": classes}
    cells = {"cmap": "Greys", "vmin": 0, "vmax": 1.4 * counts.max(), "square": True, "cbar": False}
    lines = {"linewidths": 0.5, "linecolor": "0.5"}
    sns.heatmap(counts, ax=axis, **text, **ticks, **cells, **lines)
    axis.grid(False)
    axis.tick_params(axis="y", rotation=0)
    if longest > 6:
        plt.setp(axis.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    axis.set(xlabel="prediction", ylabel="label")
    return figure


@styled
def intervals(metrics: pd.DataFrame) -> plt.Figure:
    """Draw metrics with their 95 % intervals, a row per metric, a marker per stage.

    Parameters
    ----------
    metrics : pd.DataFrame
        Columns stage, metric, value, low and high.

    Returns
    -------
    plt.Figure

    Examples
    --------
    >>> row = {"stage": "baseline", "metric": "AUC", "value": 0.95, "low": 0.91, "high": 0.97}
    >>> figure = intervals(pd.DataFrame([row]))
    """
    stages, names = list(metrics["stage"].unique()), list(metrics["metric"].unique())
    size = (COLUMN, 0.3 * len(names) + 0.9)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    for k, stage in enumerate(stages):
        rows = metrics[metrics["stage"] == stage].set_index("metric").loc[names]
        places = np.arange(len(names)) + (k - (len(stages) - 1) / 2) * 0.22
        axis.hlines(places, rows["low"], rows["high"], color=COLOURS[k], linewidth=1)
        dots = {"color": COLOURS[k], "markersize": 4, "label": stage.replace("_", "-")}
        axis.plot(rows["value"], places, MARKERS[k], **dots)
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel="value with 95 % interval")
    axis.locator_params(axis="x", nbins=6)
    axis.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def verdict(label: int, score: float, classes: Sequence[str]) -> str:
    """Write the title of a tested image: label, prediction, and probability of the second class.

    Parameters
    ----------
    label : int, 0 or 1
    score : float
        Logit of the second class, which is the positive one.
    classes : sequence of str

    Returns
    -------
    str

    Examples
    --------
    >>> print(verdict(1, 2.0, ("NORMAL", "COVID")))
    COVID; predicted COVID
    p(COVID) = 0.88: correct
    """
    predicted = int(score > 0)
    mark = "correct" if predicted == label else "WRONG"
    names = f"{classes[label]}; predicted {classes[predicted]}"
    names = names.replace("; ", ";\n") if len(names) > 26 else names
    return f"{names}\np({classes[1]}) = {expit(score):.2f}: {mark}"


@styled
def heatmap_panel(
    images: np.ndarray, overlays: np.ndarray, titles: Sequence[str], columns: int = 4
) -> plt.Figure:
    """Draw images above their Grad-CAM overlays, with a colour bar.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, H, W, 1)
    overlays : np.ndarray, uint8 (N, H, W, 3)
        From `gradcam.overlay`.
    titles : sequence of str
    columns : int
        Images side by side, over the width of a page.

    Returns
    -------
    plt.Figure

    Examples
    --------
    >>> figure = heatmap_panel(images[:1], np.repeat(images[:1], 3, axis=-1), ["an image"])
    """
    blocks = max(-(-len(images) // columns), 1)
    size = (PAGE, blocks * (2 * PAGE / columns + 0.35))
    style = {"figsize": size, "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(2 * blocks, columns, **style)
    for axis in axes.flat:
        axis.axis("off")
    for k in range(len(images)):
        row, column = 2 * (k // columns), k % columns
        axes[row, column].imshow(np.squeeze(images[k]), cmap="gray", vmin=0, vmax=255)
        axes[row, column].set_title(titles[k])
        axes[row + 1, column].imshow(overlays[k])
    heat = plt.cm.ScalarMappable(plt.Normalize(0, 1), "jet")
    label = "heat, each image on its own scale"
    figure.colorbar(heat, ax=axes, label=label, shrink=0.6, pad=0.01, aspect=30)
    return figure
