"""Figures: draw what others computed, in one look, at the width of a report's column.

Every function returns the figure; ``Experiment.save_figure`` writes it. Lines differ by dash and
marker as well as by colour, so that they can be told apart in grey.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from sklearn.metrics import precision_recall_curve, roc_curve

from covid_project.evaluation import confusion
from covid_project.explain.quality_terms import (
    BASELINES,
    FAITHFULNESS,
    LOCALISATION,
    SANITY,
    is_lower_better,
)
from covid_project.tuning import OBJECTIVE

COLUMN = 3.5  # inches: one column of a two-column article
PAGE = 7.2  # inches: both columns
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000")  # told apart by colour-blind readers too
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
GREY = {"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "nearest"}

plt.rcParams.update(
    {
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
        "pdf.fonttype": 42,  # text stays text
        "legend.frameon": False,
    }
)


def class_distribution(table: pd.DataFrame, classes: Sequence[str]) -> plt.Figure:
    """Images per class in each split, from the data set's table (columns split, label)."""
    counts = pd.crosstab(table["split"], table["label"]).loc[table["split"].unique()]
    figure, axis = plt.subplots(figsize=(COLUMN, 2.0), layout="constrained")
    width = 0.38
    for label, name in enumerate(classes):
        places = np.arange(len(counts)) + (label - 0.5) * width
        bars = axis.bar(
            places,
            counts[label],
            width,
            label=name,
            color=COLOURS[label],
            edgecolor="black",
            hatch="//" if label else None,
        )
        axis.bar_label(bars, fontsize=8)
    axis.set(xticks=range(len(counts)), xticklabels=counts.index, ylabel="images", xlabel="split")
    axis.grid(False, axis="x")
    axis.legend(loc="upper right")
    return figure


def image_grid(
    images: np.ndarray, titles: Sequence[str], columns: int = 4, width: float = PAGE
) -> plt.Figure:
    """Images (N, H, W[, 1 or 3]) with a title each; grey ones on the scale 0–255."""
    rows = -(-len(images) // columns)
    side = width / columns
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, rows * (side + 0.4)), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        image = np.squeeze(image)
        axis.imshow(image, **(GREY if image.ndim == 2 else {}))
        axis.set_title(title, fontsize=8, parse_math=False)  # a file may be called $x^$.png
    return figure


def feature_maps(maps: np.ndarray, titles: Sequence[str], columns: int = 8) -> plt.Figure:
    """Feature maps (K, h, w) of one image, each on its own scale, with a title each."""
    low = maps.min(axis=(1, 2), keepdims=True)
    spread = np.maximum(np.ptp(maps, axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny)
    return image_grid(255 * (maps - low) / spread, titles, columns)


def grey_histograms(images: Mapping[tuple[str, str], np.ndarray]) -> plt.Figure:
    """Share of pixels per grey value: one panel per split, one line per class.

    ``images`` maps (split, class name) to uint8 arrays.
    """
    splits = list(dict.fromkeys(split for split, _ in images))
    figure, axes = plt.subplots(
        1, len(splits), figsize=(PAGE, 1.9), sharey=True, layout="constrained", squeeze=False
    )
    for axis, split in zip(axes.flat, splits, strict=True):
        lines = [(name, values) for (owner, name), values in images.items() if owner == split]
        for number, (name, values) in enumerate(lines):
            share = np.bincount(values.reshape(-1), minlength=256) / values.size
            smooth = share.reshape(64, 4).sum(1)  # bins of four grey levels
            axis.plot(
                np.arange(64) * 4 + 1.5,
                100 * smooth,
                DASHES[number],
                color=COLOURS[number],
                label=name,
            )
        axis.set(title=split, xlabel="grey value (0–255)")
    axes[0, 0].set_ylabel("share of pixels (%)")
    axes[0, 0].legend()
    return figure


def value_histograms(values: Mapping[str, np.ndarray]) -> plt.Figure:
    """One panel per array: the distribution of its values (a normalised image, say)."""
    figure, axes = plt.subplots(1, len(values), figsize=(PAGE, 1.7), layout="constrained")
    for axis, (name, array) in zip(np.atleast_1d(axes), values.items(), strict=True):
        axis.hist(np.ravel(array), bins=50, color=COLOURS[0])
        axis.set(title=name, xlabel="normalised value")
        axis.set_yticks([])
    np.atleast_1d(axes)[0].set_ylabel("pixels")
    return figure


def history(table: pd.DataFrame, best_epoch: int | None = None) -> plt.Figure:
    """Loss and accuracy by epoch, with validation where the table has it."""
    figure, axes = plt.subplots(1, 2, figsize=(COLUMN, 2.0), layout="constrained")
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for number, (column, label) in enumerate(
            [(name, "training"), (f"val_{name}", "validation")]
        ):
            if column in table:
                axis.plot(
                    table["epoch"],
                    table[column],
                    DASHES[number],
                    color=COLOURS[number],
                    label=label,
                )
        if best_epoch:
            axis.axvline(best_epoch, color="0.5", linewidth=0.8, label=f"best epoch {best_epoch}")
        axis.set(xlabel="epoch", ylabel="cross-entropy (nats)" if name == "loss" else name)
    axes[0].set_ylim(bottom=0)
    # One legend for both, above them; it hangs on the left one, and the top is kept free for it.
    figure.get_layout_engine().set(rect=(0, 0, 1, 0.9))
    legend = axes[0].legend(
        loc="lower left", bbox_to_anchor=(-0.2, 1.0), ncols=3, columnspacing=1, handlelength=1.8
    )
    legend.set_in_layout(False)
    return figure


def tuning(trials: pd.DataFrame, hyperparameters: Sequence[str]) -> plt.Figure:
    """Objective of every trial against each hyperparameter; extensions filled, the best marked."""
    figure, axes = plt.subplots(
        1, len(hyperparameters), figsize=(PAGE, 1.9), sharey=True, layout="constrained"
    )
    best = trials.loc[trials[OBJECTIVE].idxmin()]
    extension = trials["extension"].astype(bool)
    for axis, name in zip(np.atleast_1d(axes), hyperparameters, strict=True):
        for chosen, face, label in [
            (~extension, "none", "planned"),
            (extension, "0.4", "extension"),
        ]:
            axis.plot(
                trials[name][chosen],
                trials[OBJECTIVE][chosen],
                "o",
                markersize=4,
                markerfacecolor=face,
                color="black",
                label=label,
            )
        axis.plot(best[name], best[OBJECTIVE], "*", markersize=11, color=COLOURS[1], label="best")
        axis.set_xlabel(name.replace("_", " "))
        axis.margins(0.15)
        if name in ("learning_rate", "batch_size", "filters"):
            values = sorted(trials[name].unique())
            axis.set_xscale("log", base=2)
            axis.set_xticks(values, [f"{value:g}" for value in values], rotation=45)
            axis.minorticks_off()
    np.atleast_1d(axes)[0].set_ylabel("validation loss (nats)")
    np.atleast_1d(axes)[-1].legend()
    return figure


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> plt.Figure:
    """Counts (classes, classes), rows the label, columns the prediction.

    Cells keep their size whatever the names' lengths: long names stand aslant below them.
    """
    cells = 0.5 * len(classes)  # inches
    names = 0.09 * max(len(name) for name in classes)
    figure, axis = plt.subplots(figsize=(cells + names + 0.5, cells + 0.7 * names + 0.5))
    figure.set_layout_engine("constrained")
    sns.heatmap(
        counts,
        annot=True,
        fmt="d",
        cmap="Greys",
        vmin=0,
        vmax=1.4 * counts.max(),
        cbar=False,
        square=True,
        linewidths=0.5,
        linecolor="0.5",
        xticklabels=classes,
        yticklabels=classes,
        ax=axis,
        annot_kws={"size": 10},
    )
    axis.grid(False)
    axis.tick_params(axis="y", rotation=0)
    if max(len(name) for name in classes) > 6:
        plt.setp(axis.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    axis.set(xlabel="prediction", ylabel="label")
    return figure


def intervals(metrics: pd.DataFrame) -> plt.Figure:
    """Metrics with their 95 % intervals, one row per metric, one marker per stage."""
    stages = list(dict.fromkeys(metrics["stage"]))
    names = list(dict.fromkeys(metrics["metric"]))
    figure, axis = plt.subplots(figsize=(COLUMN, 0.35 * len(names) + 0.8), layout="constrained")
    for number, stage in enumerate(stages):
        rows = metrics[metrics["stage"] == stage].set_index("metric").loc[names]
        places = np.arange(len(names)) + (number - (len(stages) - 1) / 2) * 0.22
        axis.hlines(places, rows["low"], rows["high"], color=COLOURS[number], linewidth=1)
        axis.plot(
            rows["value"],
            places,
            MARKERS[number],
            color=COLOURS[number],
            markersize=4,
            label=stage.replace("_", "-"),
        )
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel="value with 95 % interval")
    axis.locator_params(axis="x", nbins=6)
    axis.invert_yaxis()
    axis.legend(loc="upper center", bbox_to_anchor=(0.45, 1.14), ncols=3)
    return figure


def reliability(tables: Mapping[str, pd.DataFrame]) -> plt.Figure:
    """Observed against predicted share of the positive class, one panel per model.

    ``tables`` maps the name of a model to its ``calibration.reliability``.
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
    axes[0, 0].set_ylabel("share of COVID, observed")
    figure.supxlabel("probability of COVID, predicted", fontsize=8)
    return figure


def verdict(label: int, score: float, classes: Sequence[str]) -> str:
    """Title of a tested image: its label, its prediction and the predicted probability.

    Names too long for a quarter of a page, side by side, stand on two lines.
    """
    predicted = int(score > 0)
    probability = 1 / (1 + np.exp(-abs(score)))
    mark = "correct" if predicted == label else "WRONG"
    names = f"{classes[label]}; predicted {classes[predicted]}"
    if len(names) > 26:
        names = names.replace("; ", ";\n")
    return f"{names}\np = {probability:.2f}: {mark}"


def heatmap_panel(
    images: np.ndarray, overlays: np.ndarray, titles: Sequence[str], columns: int = 4
) -> plt.Figure:
    """Each image (H, W, 1) above its Grad-CAM overlay (H, W, 3), with a title over the pair.

    As wide as a page for a single image, too: set to a page's width it would fill the page.
    """
    blocks = max(-(-len(images) // columns), 1)
    side = PAGE / columns
    figure, axes = plt.subplots(
        2 * blocks,
        columns,
        figsize=(side * columns, blocks * (2 * side + 0.35)),
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat:
        axis.axis("off")
    for number in range(len(images)):
        row, column = 2 * (number // columns), number % columns
        axes[row, column].imshow(np.squeeze(images[number]), **GREY)
        axes[row, column].set_title(titles[number], fontsize=8)
        axes[row + 1, column].imshow(overlays[number])
    return figure


def explanation_quality(table: pd.DataFrame) -> plt.Figure:
    """How good each explanation is: one panel per measure, one row per method, 95 % intervals.

    ``table`` is that of ``explain.quality.explanation_quality``. Filled marks are better than all
    three baselines, or pass; the upright strokes are the mean similarity of different images' maps,
    which sanity has to stay below and stability above. Of the sanity test the last step is shown,
    with the whole network randomised.
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
    """Test, measure and setting of each panel: what a reader compares the methods by.

    IoU says the same as the energy inside and stays in the table, as the steps of ROAD do.
    """
    shown = table[
        (table["test"].eq(LOCALISATION) & ~table["measure"].str.startswith("IoU"))
        | (table["test"].eq(FAITHFULNESS) & ~table["setting"].str.endswith("first"))
        | table["measure"].eq("SSIM")
    ]
    keys = list(dict.fromkeys(shown[["test", "measure", "setting"]].itertuples(index=False)))
    cascade = [key for key in keys if key.test == SANITY and key.setting.startswith("cascading")]
    return [tuple(key) for key in keys if key.test != SANITY or key == cascade[-1]]


def class_shares(table: pd.DataFrame, classes: Sequence[str]) -> plt.Figure:
    """Share of each class per split, one pie each (columns split, label)."""
    counts = pd.crosstab(table["split"], table["label"]).loc[table["split"].unique()]
    figure, axes = plt.subplots(1, len(counts), figsize=(COLUMN, 1.5), layout="constrained")
    for axis, (split, row) in zip(np.atleast_1d(axes), counts.iterrows(), strict=True):
        wedges, *_ = axis.pie(row, colors=COLOURS[: len(row)], autopct="%.0f%%", startangle=90)
        axis.set_title(f"{split}: {row.sum()}")
    figure.legend(wedges, classes, loc="outside lower center", ncols=len(classes))
    return figure


def stored_sizes(sizes: pd.DataFrame, classes: Sequence[str]) -> plt.Figure:
    """Width and height of the files (columns width, height, label): boxes, and one by the other."""
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


def ranking_curves(labels: np.ndarray, scores: Mapping[str, np.ndarray]) -> plt.Figure:
    """ROC and precision-recall curves of several models, their own thresholds marked.

    ``scores`` maps the name of a model to its logits (N,) for images with these labels (N,).
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


def model_bars(table: pd.DataFrame) -> plt.Figure:
    """Accuracy and AUC with 95 % intervals, and seconds of training, beside the published ones.

    ``table`` has one row per model: stage, seconds, published_seconds, and for accuracy and AUC
    the value, ``_low``, ``_high`` and ``published_``.
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
