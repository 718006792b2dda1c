"""Figures of explanations and studies, in the style of `covid_project.figures`."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from covid_lab.explain.quality_terms import (
    BASELINES,
    FAITHFULNESS,
    LOCALISATION,
    SANITY,
    is_lower_better,
)
from covid_project.figures import COLOURS, COLUMN, MARKERS, PAGE, image_grid, styled


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

    Examples
    --------
    >>> figure = feature_maps(np.zeros((4, 8, 8)), ["1", "2", "3", "4"])
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

    Examples
    --------
    >>> from covid_lab.calibration import reliability as bins_of
    >>> labels, scores = np.repeat([0, 1], 20), np.linspace(-3, 3, 40)
    >>> figure = reliability({"baseline": bins_of(labels, scores)})
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
