"""Figures of the study of CT slices, in the style of `covid_project.figures`."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from covid_project.figures import COLOURS, COLUMN, DASHES, MARKERS, PAGE, styled

ACROSS = 4  # panels side by side
STRONG = 99  # percentile of a map that gets the brightest colour
HEAT = "inferno"  # colour map of saliency; it rises in brightness, so that it can be read in grey


@styled
def variant_histories(
    histories: pd.DataFrame, variants: Sequence[str], untrained: Sequence[tuple[str, int]]
) -> plt.Figure:
    """Draw the loss of each variant by epoch, a panel for each, a pair of lines for each seed.

    Parameters
    ----------
    histories : pd.DataFrame
        Columns variant, training_seed, epoch, loss and val_loss.
    variants : sequence of str
        Names of the panels in their order.
    untrained : sequence of (str, int)
        Variant and seed of the networks that did not train, which are drawn in grey.

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows = -(-len(variants) // ACROSS)
    size = {"figsize": (PAGE, 1.45 * rows + 0.3), "sharex": True, "sharey": True}
    figure, axes = plt.subplots(rows, ACROSS, layout="constrained", squeeze=False, **size)
    for axis in axes.flat[len(variants) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, variants, strict=False):
        part = histories[histories["variant"] == name]
        for seed, line in part.groupby("training_seed"):
            dead = (name, seed) in untrained
            for number, column in enumerate(("loss", "val_loss")):
                colour = "0.6" if dead else COLOURS[number]
                axis.plot(line["epoch"], line[column], DASHES[number], color=colour, linewidth=1)
        axis.set_title(name)
    for axis in axes.flat[max(0, len(variants) - ACROSS) : len(variants)]:
        axis.tick_params(labelbottom=True)
    figure.supxlabel("epoch", fontsize=8)
    figure.supylabel("cross-entropy (nats)", fontsize=8)
    lines = [plt.Line2D([], [], color=COLOURS[k], linestyle=DASHES[k]) for k in (0, 1)]
    names = ["training", "validation"]
    if untrained:
        lines.append(plt.Line2D([], [], color="0.6"))
        names.append("a network that did not train")
    figure.legend(lines, names, loc="outside upper center", ncols=3)
    return figure


@styled
def variant_dots(trials: pd.DataFrame, groups: Mapping[str, Mapping[str, str]]) -> plt.Figure:
    """Draw the validation loss of each variant: a dot for each seed, a line at the mean.

    Parameters
    ----------
    trials : pd.DataFrame
        Columns variant, trained (bool) and val_loss; networks that did not train are left out.
    groups : mapping of str to mapping of str to str
        Label of a panel → value → name of the variant, as from `ct_variants.groups`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    width = [max(len(values), 3) for values in groups.values()]
    size = {"figsize": (PAGE, 2.1), "sharey": True, "layout": "constrained"}
    figure, axes = plt.subplots(1, len(groups), width_ratios=width, **size)
    trained = trials[trials["trained"]]
    for axis, (title, values) in zip(np.atleast_1d(axes), groups.items(), strict=True):
        for place, name in enumerate(values.values()):
            losses = trained.loc[trained["variant"] == name, "val_loss"]
            axis.plot([place] * len(losses), losses, "o", color=COLOURS[0], markersize=4)
            axis.hlines(losses.mean(), place - 0.3, place + 0.3, color="black")
        axis.set(xticks=range(len(values)), xticklabels=values, xlabel=title)
        axis.set_xlim(-0.6, len(values) - 0.4)
    np.atleast_1d(axes)[0].set_ylabel("validation loss (nats)")
    return figure


@styled
def validation_curves(histories: Mapping[str, pd.DataFrame]) -> plt.Figure:
    """Draw validation loss and accuracy of several models by epoch, the kept epoch marked.

    Parameters
    ----------
    histories : mapping of str to pd.DataFrame
        Name of a model → its history with the columns epoch, val_loss and val_accuracy.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.4), layout="constrained")
    for axis, column in zip(axes, ("val_loss", "val_accuracy"), strict=True):
        for number, (name, history) in enumerate(histories.items()):
            best = history.loc[history["val_loss"].idxmin()]
            line = {"color": COLOURS[number], "linestyle": DASHES[number]}
            mark = {"marker": MARKERS[number], "markersize": 6, "markevery": [best.name]}
            axis.plot(history["epoch"], history[column], label=name, **line, **mark)
        axis.set_xlabel("epoch (mark: the one that is kept)")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("validation loss (nats)")
    axes[1].set_ylabel("validation accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


@styled
def pruning_curves(dense: pd.DataFrame, pruned: Mapping[str, pd.DataFrame]) -> plt.Figure:
    """Draw the validation loss of a model, and of its pruned copies from where pruning begins.

    Parameters
    ----------
    dense : pd.DataFrame
        History of the dense model: epoch, val_loss. Its best epoch is the one that is pruned.
    pruned : mapping of str to pd.DataFrame
        Sparsity in words → history of the fine-tuning: epoch (from 1), val_loss, sparsity (0–1).

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = plt.subplots(
        2, 1, figsize=(COLUMN, 3.4), sharex=True, layout="constrained", height_ratios=(2, 1)
    )
    best = dense.loc[dense["val_loss"].idxmin()]
    kept = dense[dense["epoch"] <= best["epoch"]]
    axes[0].plot(kept["epoch"], kept["val_loss"], color="0.5", label="dense")
    for number, (name, history) in enumerate(pruned.items()):
        line = {"color": COLOURS[number % 4], "linestyle": DASHES[number % 4]}
        epochs = [best["epoch"], *(best["epoch"] + history["epoch"])]
        losses = [best["val_loss"], *history["val_loss"]]
        axes[0].plot(epochs, losses, label=name, **line)
        axes[1].plot(epochs[1:], 100 * history["sparsity"], **line)
    for axis in axes:
        axis.axvline(best["epoch"], color="black", linewidth=0.8, linestyle=":")
    begins = "fine-tuning with \npruning begins "
    axes[1].text(best["epoch"], 50, begins, ha="right", va="center", fontsize=8)
    axes[0].set_ylabel("validation loss (nats)")
    axes[1].set(xlabel="epoch", ylabel="sparsity (%)", ylim=(0, 100))
    figure.legend(loc="outside upper center", ncols=3)
    return figure


@styled
def source_histograms(scores: Mapping[str, Mapping[str, np.ndarray]], positive: str) -> plt.Figure:
    """Draw how the logits of several sets of images are distributed, a panel for each network.

    Parameters
    ----------
    scores : mapping of str to mapping of str to np.ndarray, float (N,)
        Name of a network → name of a set → its logits.
    positive : str
        What a logit above 0 means.

    Returns
    -------
    matplotlib.figure.Figure
    """
    size = {"figsize": (PAGE, 2.2), "sharey": True, "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(1, len(scores), **size)
    for axis, (network, sets) in zip(axes.flat, scores.items(), strict=True):
        everything = np.concatenate([np.ravel(values) for values in sets.values()])
        width = np.ptp(everything) / 40  # the threshold, 0, is an edge
        first, last = np.floor(everything.min() / width), np.ceil(everything.max() / width)
        bins = np.arange(first, last + 1) * width
        for number, (name, values) in enumerate(sets.items()):
            weights = np.full(np.size(values), 100 / np.size(values))
            style = {"color": COLOURS[number], "linestyle": DASHES[number], "label": name}
            axis.hist(
                np.ravel(values), bins, weights=weights, histtype="step", linewidth=1.5, **style
            )
        axis.axvline(0, color="0.4", linewidth=0.8)
        axis.set(title=network, xlabel=f"logit; above 0: called {positive}")
    axes[0, 0].set_ylabel("images of the set (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def visible(maps: np.ndarray) -> np.ndarray:
    """Scale maps so that a few very strong pixels do not darken all others.

    Parameters
    ----------
    maps : np.ndarray, float (N, h, w), from 0
        Heatmaps.

    Returns
    -------
    np.ndarray, float (N, h, w), 0–1
        Each divided by its 99th percentile and cut off at 1; a map whose percentile is 0 is divided
        by its maximum, and a blank one stays 0.

    Examples
    --------
    >>> visible(np.linspace(0, 1, 101).reshape(1, 1, 101))[0, 0, [0, 50, 99, 100]].round(2).tolist()
    [0.0, 0.51, 1.0, 1.0]
    """
    flat = maps.reshape(len(maps), -1)
    highest = np.percentile(flat, STRONG, axis=1)
    highest = np.where(highest > 0, highest, flat.max(axis=1))
    return np.clip(maps / np.where(highest > 0, highest, 1)[:, None, None], 0, 1)


def smoothed(maps: np.ndarray, fraction: float = 0.02) -> np.ndarray:
    """Smooth maps with a Gaussian, so that single pixels become regions.

    Parameters
    ----------
    maps : np.ndarray, float (N, h, w)
        Heatmaps.
    fraction : float, from 0
        Standard deviation as a fraction of the height.

    Returns
    -------
    np.ndarray, float (N, h, w)
        Smoothed maps.
    """
    sigma = fraction * maps.shape[1]
    return gaussian_filter(maps, (0, sigma, sigma))


@styled
def raw_and_overlay(
    images: np.ndarray, maps: np.ndarray, overlays: np.ndarray, titles: Sequence[str]
) -> plt.Figure:
    """Draw each image, its raw map and its overlay, one below the other.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, H, W, 1)
        Grey values.
    maps : np.ndarray, float (N, H, W), 0–1
        Raw maps.
    overlays : np.ndarray, uint8 (N, H, W, 3)
        Images with their maps in the colours of `HEAT`.
    titles : sequence of str, (N,)
        Titles of the images.

    Returns
    -------
    matplotlib.figure.Figure
    """
    blocks = -(-len(images) // ACROSS)
    size = {"figsize": (PAGE, blocks * (3 * PAGE / ACROSS + 0.4)), "squeeze": False}
    figure, axes = plt.subplots(3 * blocks, ACROSS, layout="constrained", **size)
    for axis in axes.flat:
        axis.axis("off")
    for number, title in enumerate(titles):
        row, column = 3 * (number // ACROSS), number % ACROSS
        axes[row, column].imshow(np.squeeze(images[number]), cmap="gray", vmin=0, vmax=255)
        axes[row, column].set_title(title, parse_math=False)
        axes[row + 1, column].imshow(maps[number], cmap=HEAT, vmin=0, vmax=1)
        axes[row + 2, column].imshow(overlays[number])
    heat = plt.cm.ScalarMappable(plt.Normalize(0, 1), HEAT)
    label = "magnitude of the gradient; 1: its 99th percentile in the image"
    figure.colorbar(heat, ax=axes, label=label, shrink=0.5, pad=0.01, aspect=30)
    return figure


@styled
def agreement_dots(table: pd.DataFrame, groups: Sequence[str]) -> plt.Figure:
    """Draw the correlation of two methods' maps, a dot for each image.

    Parameters
    ----------
    table : pd.DataFrame
        Columns network, compared and correlation.
    groups : sequence of str
        Values of compared, from top to bottom.

    Returns
    -------
    matplotlib.figure.Figure
    """
    networks = list(table["network"].unique())
    figure, axis = plt.subplots(figsize=(COLUMN, 0.3 * len(groups) + 1.0), layout="constrained")
    for number, network in enumerate(networks):
        shift = (number - (len(networks) - 1) / 2) * 0.25
        for place, name in enumerate(groups):
            rows = table[(table["network"] == network) & (table["compared"] == name)]
            values = rows["correlation"].dropna()
            dots = {"color": COLOURS[number], "markersize": 4, "markerfacecolor": "none"}
            label = network if place == 0 else None
            heights = np.full(len(values), place + shift)
            axis.plot(values, heights, MARKERS[number], label=label, **dots)
    axis.axvline(0, color="0.4", linewidth=0.8)
    axis.set(xlim=(-1.05, 1.05), xlabel="correlation with our map")
    axis.set_yticks(range(len(groups)), groups)
    axis.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=2)
    return figure
