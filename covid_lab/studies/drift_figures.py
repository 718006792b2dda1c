"""Figures of the robustness study: drift by layer and class, beside ΔAUC, and as a detector.

Perturbations differ by colour, dash and marker, so that they can be told apart in grey and by
colour-blind readers.
"""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from covid_lab.studies.perturbations import PERTURBATIONS, SEVERITIES
from covid_project.figures import COLOURS, DASHES, MARKERS, PAGE, styled

GREY = {"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "nearest"}
UNITS = {
    "rmse": "RMSE of the maps (grey levels)",
    "ssim": "SSIM of the maps",
    "spearman": "rank correlation of the maps",
    "centroid_shift": "shift of the centroid (pixels)",
}
STYLES = dict(
    zip(
        PERTURBATIONS,
        zip(
            (*COLOURS, "#CC79A7"),
            (*DASHES, (0, (5, 1, 1, 1, 1, 1))),
            (*MARKERS, "v"),
            strict=True,
        ),
        strict=True,
    )
)
DETECTORS = {  # marker and filling
    "confidence": ("o", "white"),
    "change": ("s", "white"),
    "drift": ("^", "0.6"),
    "both": ("o", "black"),
    "all three": ("D", "black"),
}


def _line(name: str) -> dict:
    colour, dashes, marker = STYLES[name]
    return {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 3, "lw": 1.1}


def _short(layers: Sequence[str]) -> list[str]:
    """The thesis' names of the blocks: block2_1 is 2.1."""
    return [layer.removeprefix("block").replace("_", ".") for layer in layers]


@styled
def drift_by_layer(
    table: pd.DataFrame, classes: Sequence[str], severity: int, measure: str = "rmse"
) -> plt.Figure:
    """Mean drift against the layer: a column of panels per class, right above wrong predictions.

    ``table`` is that of ``drift_statistics.drift_by_layer``. A panel without images says so.
    """
    chosen = table[(table["measure"] == measure) & (table["severity"] == severity)]
    layers = list(dict.fromkeys(chosen["layer"]))
    columns = len(classes)
    figure, axes = plt.subplots(
        2,
        columns,
        figsize=(max(PAGE, 1.9 * columns), 4.2),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for row, prediction in enumerate(("right", "wrong")):
        for column, name in enumerate(classes):
            axis = axes[row, column]
            here = chosen[(chosen["class"] == name) & (chosen["prediction"] == prediction)]
            for number, (perturbation, lines) in enumerate(here.groupby("perturbation")):
                lines = lines.set_index("layer").loc[layers]
                places = np.arange(len(layers)) + 0.06 * (number - 2)
                style = _line(perturbation)
                axis.plot(places, lines["value"], label=perturbation, **style)
                axis.vlines(places, lines["low"], lines["high"], color=style["color"], lw=0.6)
            predictions = int(here["n"].max()) if len(here) else 0
            axis.set_title(f"{name}, predicted {prediction}: n = {predictions}")
            if not predictions:
                axis.text(0.5, 0.5, "no such image", transform=axis.transAxes, ha="center")
            axis.set_xticks(range(len(layers)), _short(layers))
        axes[row, 0].set_ylabel(UNITS[measure])
    _legend(figure)
    figure.supxlabel(f"block; severity {severity}, 95 % intervals over images", fontsize=8)
    return figure


def _legend(figure: plt.Figure) -> None:
    handles = [plt.Line2D([], [], label=name, **_line(name)) for name in PERTURBATIONS]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(PERTURBATIONS))


@styled
def drift_and_loss(
    drifts: pd.DataFrame,
    losses: pd.DataFrame,
    correlations: pd.DataFrame,
    measure: str = "rmse",
) -> plt.Figure:
    """ΔAUC of each perturbed set against its mean drift, a panel per layer; larger: more severe.

    The tables are the grid's drift, and those of ``drift_statistics.auc_losses`` and
    ``correlations``.
    """
    layers = list(dict.fromkeys(drifts["layer"]))
    rows = -(-len(layers) // 4)
    figure, axes = plt.subplots(
        rows,
        4,
        figsize=(PAGE, 1.9 * rows + 0.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    means = drifts.groupby(["layer", "perturbation", "severity"])[measure].mean()
    found = correlations[correlations["kind"] == "sets"].set_index(["measure", "layer"])
    for axis in axes.flat[len(layers) :]:
        axis.set_visible(False)
    for axis, layer in zip(axes.flat, layers, strict=False):
        for perturbation in PERTURBATIONS:
            here = losses[losses["perturbation"] == perturbation]
            x = means.loc[layer, perturbation].loc[here["severity"]].to_numpy()
            colour, _, marker = STYLES[perturbation]
            axis.vlines(x, here["low"], here["high"], color=colour, lw=0.5)
            size = 6 + 6 * here["severity"]
            axis.scatter(x, here["delta"], s=size, marker=marker, color=colour, alpha=0.8)
        rank = found.loc[(measure, layer)]
        axis.set_title(
            f"block {_short([layer])[0]}: ρ = {rank['value']:.2f}\n"
            f"({rank['low']:.2f} to {rank['high']:.2f})"
        )
        axis.axhline(0, color="0.5", lw=0.6)
    for axis in axes[:, 0]:
        axis.set_ylabel("ΔAUC")
    figure.supxlabel(UNITS[measure], fontsize=8)
    _legend(figure)
    return figure


@styled
def detection(table: pd.DataFrame, axis: plt.Axes | None = None) -> plt.Figure:
    """AUC of each detector of wrong predictions by perturbation, from ``detection``'s table."""
    if axis is None:
        _, axis = plt.subplots(figsize=(PAGE / 2, 2.8), layout="constrained")
    names = list(dict.fromkeys(table["perturbation"]))
    for number, (name, (marker, fill)) in enumerate(DETECTORS.items()):
        rows = table[table["detector"] == name].set_index("perturbation").loc[names]
        places = np.arange(len(names)) + 0.15 * (number - 2)
        axis.hlines(places, rows["low"], rows["high"], color="black", lw=0.8)
        axis.scatter(
            rows["auc"], places, s=14, marker=marker, facecolor=fill, edgecolor="black", zorder=3,
            label=name,
        )  # fmt: skip
    axis.axvline(0.5, color="0.5", lw=0.8)
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel="AUC for wrong predictions")
    axis.invert_yaxis()
    axis.legend(
        loc="lower center", bbox_to_anchor=(0.35, 1.0), ncols=3, columnspacing=0.8,
        handletextpad=0.1,
    )  # fmt: skip
    return axis.figure


@styled
def summary(
    losses: dict[str, pd.DataFrame],
    drift_table: pd.DataFrame,
    correlations: pd.DataFrame,
    found: pd.DataFrame,
    sentences: Sequence[str],
) -> plt.Figure:
    """One page: how AUC falls, where maps drift, whether the two go together, who finds errors.

    Parameters
    ----------
    losses
        Training ("plain", "augmented") → table of ``auc_losses``.
    drift_table, correlations, found
        Tables of ``drift_by_layer``, ``correlations`` and ``detection``.
    sentences
        The findings, written below.
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
    panel.set(xlabel=f"severity{faint}", ylabel="ΔAUC (loss)", xticks=SEVERITIES)
    panel.set_title("How much ranking is lost")
    panel = axes[0, 1]
    rmse = drift_table[drift_table["measure"] == "rmse"].dropna(subset="value")
    layers = list(dict.fromkeys(rmse["layer"]))
    for name in PERTURBATIONS:
        rows = rmse[rmse["perturbation"] == name]
        weighed = (rows["value"] * rows["n"]).groupby(rows["layer"]).sum()
        panel.plot(weighed[layers] / rows.groupby("layer")["n"].sum()[layers], **_line(name))
    panel.set_xticks(range(len(layers)), _short(layers))
    panel.set(xlabel="block", ylabel=UNITS["rmse"], title="Where the maps drift")
    panel = axes[1, 0]
    for number, (kind, fill) in enumerate({"sets": "black", "images": "white"}.items()):
        rows = correlations[(correlations["kind"] == kind) & (correlations["measure"] == "rmse")]
        places = np.arange(len(rows)) + 0.16 * (number - 0.5)
        panel.vlines(places, rows["low"], rows["high"], color="black", lw=0.8)
        label = {"sets": "with ΔAUC, 25 sets", "images": "with the change of score, images"}[kind]
        panel.scatter(
            places, rows["value"], s=20, facecolor=fill, edgecolor="black", zorder=3, label=label
        )
    panel.set_xticks(range(len(layers)), _short(layers))
    panel.axhline(0, color="0.5", lw=0.6)
    panel.set(xlabel="block", ylabel="rank correlation of drift", ylim=(-1.05, 1.05))
    panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))  # points may lie anywhere within
    detection(found, axes[1, 1])
    _legend(figure)
    figure.supxlabel(textwrap.fill(" ".join(sentences), 115), fontsize=8)
    return figure


@styled
def maps(
    images: np.ndarray, heatmaps: np.ndarray, titles: Sequence[str], layers: Sequence[str]
) -> plt.Figure:
    """Images uint8 (N, H, W, C), each beside its maps (N, L, H, W) of every layer."""
    rows, columns = len(images), 1 + len(layers)
    side = PAGE / columns
    figure, axes = plt.subplots(
        rows, columns, figsize=(PAGE, rows * (side + 0.1) + 0.3), squeeze=False,
        layout="constrained",
    )  # fmt: skip
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
