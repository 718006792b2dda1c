"""Figures of the robustness study: drift by layer and class, beside ΔAUC, and as a detector.

Perturbations differ by colour, dash and marker, so that they are distinct in grey and for
colour-blind readers.
"""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from covid_lab.studies.perturbations import PERTURBATIONS, SEVERITIES
from covid_lab.studies.saliency_drift import ORIGINAL
from covid_project.figures import COLOURS, COLUMN, DASHES, MARKERS, PAGE, styled

WRAP, WRAP_BOXES = 24, 15  # characters that fit above a panel
GREY = {"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "nearest"}
RMSE = "RMSE of the maps (grey levels)"
COLOUR = dict(zip(PERTURBATIONS, (*COLOURS, "#CC79A7"), strict=True))
DASH = dict(zip(PERTURBATIONS, (*DASHES, (0, (5, 1, 1, 1, 1, 1))), strict=True))
MARKER = dict(zip(PERTURBATIONS, (*MARKERS, "v"), strict=True))
OPEN = ("gaussian noise", "motion blur")  # white markers, distinct in grey where points are dense
DETECTORS = {  # marker and filling
    "confidence": ("o", "white"),
    "change": ("s", "white"),
    "drift": ("^", "0.6"),
    "both": ("o", "black"),
    "all three": ("D", "black"),
}

CORRELATIONS = {  # label → kind, constant, marker and filling
    "sets: ΔAUC": ("sets", "nothing", "o", "black"),
    "same severity": ("sets", "severity", "s", "black"),
    "images: score": ("images", "nothing", "o", "white"),
    "same set": ("images", "severity and perturbation", "s", "white"),
}


def _line(name: str) -> dict:
    lines = {"color": COLOUR[name], "linestyle": DASH[name], "lw": 1.1}
    return lines | {"marker": MARKER[name], "markersize": 3.5, "markerfacecolor": _fill(name)}


def _fill(name: str) -> str:
    return "white" if name in OPEN else COLOUR[name]


def _panels(rows: int, columns: int, size: tuple[float, float], **shared):
    """Return a figure of this size (inches) and its axes (rows, columns)."""
    how = {"figsize": size, "squeeze": False, "layout": "constrained"}
    return plt.subplots(rows, columns, **how, **shared)


def _points(axis: plt.Axes, x, y, marker: str, fill: str, size: float, label: str) -> None:
    style = {"facecolor": fill, "edgecolor": "black", "zorder": 3}
    axis.scatter(x, y, s=size, marker=marker, label=label, **style)


def _legend_above(axis: plt.Axes, x: float, columns: int) -> None:
    place = {"loc": "lower center", "bbox_to_anchor": (x, 1.0), "ncols": columns}
    axis.legend(columnspacing=0.8, handletextpad=0.1, **place)


def _short(layers: Sequence[str]) -> list[str]:
    """Shorten block2_1 to 2.1, as in the thesis."""
    return [layer.removeprefix("block").replace("_", ".") for layer in layers]


@styled
def drift_by_layer(
    table: pd.DataFrame,
    losses: pd.DataFrame,
    classes: Sequence[str],
    severity: int,
) -> plt.Figure:
    """Draw the mean drift against the layer, with ΔAUC in the legend.

    Parameters
    ----------
    table : pd.DataFrame
        From `drift_statistics.drift_by_layer`.
    losses : pd.DataFrame
        From `drift_statistics.auc_losses`.
    classes : sequence of str
        A row of panels each: right predictions on the left, wrong ones on the right.
    severity : int
        1 to 5.

    Returns
    -------
    matplotlib.figure.Figure
    """
    chosen = table[(table["measure"] == "rmse") & (table["severity"] == severity)]
    layers = list(dict.fromkeys(chosen["layer"]))
    size = COLUMN, 1.1 + 1.2 * len(classes)
    figure, axes = _panels(len(classes), 2, size, sharex=True, sharey=True)
    for row, name in zip(axes, classes, strict=True):
        for axis, prediction in zip(row, ("right", "wrong"), strict=True):
            here = chosen[(chosen["class"] == name) & (chosen["prediction"] == prediction)]
            for number, (perturbation, lines) in enumerate(here.groupby("perturbation")):
                lines = lines.set_index("layer").loc[layers]
                places = np.arange(len(layers)) + 0.06 * (number - 2)
                style = _line(perturbation)
                axis.plot(places, lines["value"], **style)
                axis.vlines(places, lines["low"], lines["high"], color=style["color"], lw=0.6)
            n = int(here["n"].max()) if len(here) else 0
            axis.set_title(f"{textwrap.fill(name, WRAP)}\n{prediction}, n = {n}")
            if not n:
                axis.text(0.5, 0.5, "no such image", transform=axis.transAxes, ha="center")
            axis.set_xticks(range(len(layers)), _short(layers), rotation=90)
    figure.supylabel(RMSE, fontsize=8)
    figure.supxlabel(f"block; severity {severity}, 95 % intervals over images", fontsize=8)
    deltas = losses[losses["severity"] == severity].set_index("perturbation")["delta"]
    names = {name: f"{name}: {_two_decimals(deltas[name])}" for name in PERTURBATIONS}
    _legend(figure, names, 2, title="perturbation: ΔAUC")
    return figure


def _two_decimals(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")  # no minus before 0.00


def _legend(
    figure: plt.Figure, names: Mapping[str, str], columns: int, title: str | None = None
) -> None:
    handles = [plt.Line2D([], [], label=label, **_line(name)) for name, label in names.items()]
    place = {"loc": "outside upper center", "ncols": columns}
    figure.legend(handles=handles, title=title, title_fontsize=8, **place)


@styled
def drift_boxes(
    drifts: pd.DataFrame,
    errors: pd.DataFrame,
    losses: pd.DataFrame,
    classes: Sequence[str],
    layer: str,
) -> plt.Figure:
    """Draw box plots of the drift: a row of panels per severity, a column per class.

    White boxes are of images that are predicted right before the perturbation, grey ones of those
    that are predicted wrong. A box spans the quartiles, its whiskers the middle 90 %. ΔAUC is
    written beside the last column.

    Parameters
    ----------
    drifts : pd.DataFrame
        From `saliency_drift.grid`, with ``seed``.
    errors : pd.DataFrame
        From `drift_statistics.with_errors`, with ``seed``.
    losses : pd.DataFrame
        From `drift_statistics.auc_losses`.
    classes : sequence of str
    layer : str
        Name of a block, such as "block4_2".

    Returns
    -------
    matplotlib.figure.Figure
    """
    original = errors[errors["perturbation"] == ORIGINAL].set_index(["seed", "image"])
    facts = drifts[drifts["layer"] == layer].dropna(subset="rmse")
    facts = facts.join(original[["label", "wrong"]], on=["seed", "image"])
    cells = facts.groupby(["severity", "label", "wrong", "perturbation"])["rmse"]
    values = {key: group.to_numpy() for key, group in cells}
    deltas = losses.set_index(["severity", "perturbation"])["delta"]
    size = max(COLUMN, 1.4 + 0.85 * len(classes)), 1.25 * len(SEVERITIES) + 0.4
    figure, axes = _panels(len(SEVERITIES), len(classes), size, sharex=True, sharey=True)
    places = np.arange(len(PERTURBATIONS))
    for row, severity in zip(axes, SEVERITIES, strict=True):
        for label, axis in enumerate(row):
            for wrong, (shift, fill) in enumerate(((-0.2, "white"), (0.2, "0.6"))):
                groups = [
                    values.get((severity, label, bool(wrong), name), []) for name in PERTURBATIONS
                ]
                axis.boxplot(
                    groups, positions=places + shift, widths=0.34, orientation="horizontal",
                    whis=(5, 95), showfliers=False, patch_artist=True, manage_ticks=False,
                    boxprops={"facecolor": fill, "lw": 0.6}, medianprops={"color": "black"},
                    whiskerprops={"lw": 0.6}, capprops={"lw": 0.6},
                )  # fmt: skip
            axis.grid(False, axis="y")
        row[0].set_yticks(places, PERTURBATIONS)
        row[0].set_ylabel(f"severity {severity}")
        side = row[-1].secondary_yaxis("right")
        side.set_yticks(places, [_two_decimals(deltas[severity, name]) for name in PERTURBATIONS])
        side.tick_params(length=0)
        side.spines["right"].set_visible(False)
    axes[0, 0].invert_yaxis()
    axes[0, -1].annotate(
        "ΔAUC", (1, 1), (4, 2), xycoords="axes fraction", textcoords="offset points"
    )
    for label, name in enumerate(classes):
        counts = original[original["label"] == label]["wrong"].value_counts()
        n = f"{counts.get(False, 0)} right\n{counts.get(True, 0)} wrong"
        axes[0, label].set_title(f"{textwrap.fill(name, WRAP_BOXES)}\n{n}", pad=12)
    handles = [
        plt.Rectangle((0, 0), 1, 1, facecolor=fill, edgecolor="black", label=f"predicted {name}")
        for name, fill in {"right": "white", "wrong": "0.6"}.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    figure.supxlabel(f"{RMSE}, block {_short([layer])[0]}", fontsize=8)
    return figure


@styled
def drift_and_loss(
    drifts: pd.DataFrame,
    losses: pd.DataFrame,
    correlations: pd.DataFrame,
) -> plt.Figure:
    """Draw ΔAUC of each perturbed set against its mean drift, in a panel per layer.

    Larger markers are higher severities. The titles give the rank correlation over all sets, ρ, and
    the mean of those within a severity, ρₛ.

    Parameters
    ----------
    drifts : pd.DataFrame
        From `saliency_drift.grid`.
    losses : pd.DataFrame
        From `drift_statistics.auc_losses`.
    correlations : pd.DataFrame
        From `drift_correlations.correlations`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    layers = list(dict.fromkeys(drifts["layer"]))
    rows = -(-len(layers) // 2)
    figure, axes = _panels(rows, 2, (COLUMN, 1.75 * rows + 0.7), sharey=True)
    means = drifts.groupby(["layer", "perturbation", "severity"])["rmse"].mean()
    found = correlations[correlations["kind"] == "sets"]
    found = found.set_index(["measure", "layer", "constant"]).sort_index()
    for axis in axes.flat[len(layers) :]:
        axis.set_visible(False)
    for axis, layer in zip(axes.flat, layers, strict=False):
        for perturbation in PERTURBATIONS:
            here = losses[losses["perturbation"] == perturbation]
            x = means.loc[layer, perturbation].loc[here["severity"]].to_numpy()
            axis.vlines(x, here["low"], here["high"], color=COLOUR[perturbation], lw=0.5)
            style = {"facecolor": _fill(perturbation), "edgecolor": COLOUR[perturbation]}
            style |= {"marker": MARKER[perturbation], "linewidth": 0.9, "alpha": 0.8}
            axis.scatter(x, here["delta"], s=4 + 6 * here["severity"], **style)
        title = [f"block {_short([layer])[0]}"]
        for sign, constant in {"ρ": "nothing", "ρₛ": "severity"}.items():
            row = found.loc[("rmse", layer, constant)]
            value, low, high = (_two_decimals(row[name]) for name in ("value", "low", "high"))
            title.append(f"{sign} {value} ({low} to {high})")
        axis.set_title("\n".join(title))
        axis.axhline(0, color="0.5", lw=0.6)
    for axis in axes[:, 0]:
        axis.set_ylabel("ΔAUC")
    figure.supxlabel(f"{RMSE}\nρ: all {len(losses)} sets; ρₛ: within a severity", fontsize=8)
    _legend(figure, {name: name for name in PERTURBATIONS}, 2)
    return figure


@styled
def detection(table: pd.DataFrame, axis: plt.Axes | None = None) -> plt.Figure:
    """Draw the AUC of each detector of wrong predictions by perturbation.

    Parameters
    ----------
    table : pd.DataFrame
        From `drift_detection.detection`.
    axis : matplotlib.axes.Axes, optional
        Where to draw; None makes a figure.

    Returns
    -------
    matplotlib.figure.Figure
    """
    if axis is None:
        _, axis = plt.subplots(figsize=(COLUMN, 2.8), layout="constrained")
    names = list(dict.fromkeys(table["perturbation"]))
    for number, (name, (marker, fill)) in enumerate(DETECTORS.items()):
        rows = table[table["detector"] == name].set_index("perturbation").loc[names]
        places = np.arange(len(names)) + 0.15 * (number - 2)
        axis.hlines(places, rows["low"], rows["high"], color="black", lw=0.8)
        _points(axis, rows["auc"], places, marker, fill, 14, name)
    axis.axvline(0.5, color="0.5", lw=0.8)
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel="AUC for wrong predictions")
    axis.invert_yaxis()
    _legend_above(axis, 0.35, columns=3)
    return axis.figure


@styled
def summary(
    losses: Mapping[str, pd.DataFrame],
    drift_table: pd.DataFrame,
    correlations: pd.DataFrame,
    found: pd.DataFrame,
    sentences: Sequence[str],
) -> plt.Figure:
    """Draw one page: loss of AUC, drift by layer, their correlation, and detection of errors.

    Parameters
    ----------
    losses : mapping of str to pd.DataFrame
        Training ("plain", "augmented") → table of `drift_statistics.auc_losses`.
    drift_table, correlations, found : pd.DataFrame
        From `drift_statistics.drift_by_layer`, `drift_correlations.correlations` and
        `drift_detection.detection`.
    sentences : sequence of str
        The findings, written below.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = plt.subplots(2, 2, figsize=(PAGE, 6.4), layout="constrained")
    panel = axes[0, 0]
    for name in PERTURBATIONS:
        for training, table in losses.items():
            rows = table[table["perturbation"] == name]
            style = _line(name) | ({} if training == "plain" else {"alpha": 0.4, "lw": 2})
            panel.plot(rows["severity"], rows["delta"], **style)
    panel.axhline(0, color="0.5", lw=0.6)
    faint = "; pale: augmented training" if len(losses) > 1 else ""
    panel.set(xlabel=f"severity{faint}", ylabel="ΔAUC", xticks=SEVERITIES)
    panel.set_title("Loss of AUC")
    panel = axes[0, 1]
    rmse = drift_table[drift_table["measure"] == "rmse"].dropna(subset="value")
    layers = list(dict.fromkeys(rmse["layer"]))
    for name in PERTURBATIONS:
        rows = rmse[rmse["perturbation"] == name]
        weighed = (rows["value"] * rows["n"]).groupby(rows["layer"]).sum()
        panel.plot(weighed[layers] / rows.groupby("layer")["n"].sum()[layers], **_line(name))
    panel.set_xticks(range(len(layers)), _short(layers))
    panel.set(xlabel="block", ylabel=RMSE, title="Drift of the maps")
    panel = axes[1, 0]
    rmse = correlations[correlations["measure"] == "rmse"]
    for number, (label, (kind, constant, marker, fill)) in enumerate(CORRELATIONS.items()):
        rows = rmse[(rmse["kind"] == kind) & (rmse["constant"] == constant)]
        places = np.arange(len(rows)) + 0.16 * (number - 1.5)
        panel.vlines(places, rows["low"], rows["high"], color="black", lw=0.8)
        _points(panel, places, rows["value"], marker, fill, 16, label)
    panel.set_xticks(range(len(layers)), _short(layers))
    panel.axhline(0, color="0.5", lw=0.6)
    panel.set(xlabel="block", ylabel="rank correlation of drift", ylim=(-1.05, 1.05))
    _legend_above(panel, 0.45, columns=2)
    detection(found, axes[1, 1])
    _legend(figure, {name: name for name in PERTURBATIONS}, len(PERTURBATIONS))
    figure.supxlabel(textwrap.fill(" ".join(sentences), 115), fontsize=8)
    return figure


@styled
def maps(
    images: np.ndarray, heatmaps: np.ndarray, titles: Sequence[str], layers: Sequence[str]
) -> plt.Figure:
    """Draw each image beside its maps of every layer.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, H, W, C)
    heatmaps : np.ndarray, float (N, L, H, W)
    titles : sequence of str, (N,)
    layers : sequence of str, (L,)

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows, columns = len(images), 1 + len(layers)
    side = PAGE / columns
    figure, axes = _panels(rows, columns, (PAGE, rows * (side + 0.1) + 0.3))
    for row in range(rows):
        axes[row, 0].imshow(images[row].squeeze(), **(GREY if images.shape[3] == 1 else {}))
        axes[row, 0].set_ylabel(titles[row], fontsize=6)
        for column in range(len(layers)):
            axes[row, column + 1].imshow(heatmaps[row, column], cmap="cividis")
    for axis, name in zip(axes[0, 1:], _short(layers), strict=True):
        axis.set_title(name)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure
