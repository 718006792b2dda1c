"""Figures of the study of lung nodules; each takes a table or verdicts and returns a figure."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, roc_curve

from covid_lab.studies.graded_metrics import Verdicts
from covid_lab.studies.nodule_training import class_names, task_labels
from covid_project.figures import COLOURS, COLUMN, PAGE, styled


@styled
def variance_by_class(variances: Mapping[str, np.ndarray], grades: np.ndarray) -> plt.Figure:
    """Draw the variance of the Laplacian by malignancy, one panel per view.

    Parameters
    ----------
    variances : mapping of str to np.ndarray, (N,)
        By view, of images in [0, 1].
    grades : np.ndarray, int (N,)
        0 to 4.

    Returns
    -------
    plt.Figure
    """
    figure, axes = plt.subplots(
        1, len(variances), figsize=(COLUMN * len(variances), 2.2), layout="constrained"
    )
    for axis, (view, values) in zip(np.atleast_1d(axes), variances.items(), strict=True):
        parts = [values[grades == grade] for grade in range(5)]
        axis.boxplot(parts, tick_labels=[f"{n + 1}\nn={len(p)}" for n, p in enumerate(parts)])
        axis.set(title=f"{view} view", xlabel="malignancy", ylabel="Laplacian variance")
    return figure


@styled
def size_histogram(sizes: pd.DataFrame, standard: tuple[int, int]) -> plt.Figure:
    """Draw the distribution of height and width in pixels, and the standard size.

    Parameters
    ----------
    sizes : pd.DataFrame
        Columns height and width, one row per cut-out.
    standard : tuple of int
        Height and width.

    Returns
    -------
    plt.Figure
    """
    figure, axis = plt.subplots(figsize=(COLUMN, 2.0), layout="constrained")
    for name, colour in zip(("height", "width"), COLOURS, strict=False):
        axis.hist(sizes[name], bins=30, histtype="step", color=colour, label=name)
    axis.axvline(np.mean(standard), color="0.4", linestyle=":", label="standard size")
    axis.set(xlabel="pixels", ylabel="cut-outs")
    axis.legend()
    return figure


@styled
def answers(table: pd.DataFrame) -> plt.Figure:
    """Draw macro-F1 by answer to imbalance: mean, intervals over seeds and over patients.

    Parameters
    ----------
    table : pd.DataFrame
        From `nodule_evaluation.over_seeds`, with the columns view, task and answer.

    Returns
    -------
    plt.Figure
    """
    groups = list(table.groupby(["view", "task"], sort=False))
    figure, axes = plt.subplots(
        1, len(groups), figsize=(PAGE, 2.6), layout="constrained", sharey=True
    )
    for axis, ((view, task), part) in zip(np.atleast_1d(axes), groups, strict=True):
        places = np.arange(len(part))
        for name, prefix, offset, colour in (
            ("over seeds", "", 0.12, COLOURS[0]),
            ("over patients", "patients_", -0.2, COLOURS[1]),
        ):
            low, high = part[f"{prefix}macro_F1_low"], part[f"{prefix}macro_F1_high"]
            axis.hlines(places + offset, low.clip(0), high.clip(upper=1), color=colour,
                        linewidth=1.5, label=f"95 % CI {name}")  # fmt: skip
        axis.plot(part["macro_F1"], places + 0.12, "o", color=COLOURS[0], markersize=3)
        axis.set(title=f"{view} view, {task}", xlabel="macro-F1, validation", xlim=(0, 1))
        axis.set_yticks(places, part["answer"])
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure


@styled
def confusion_and_roc(
    verdicts: Mapping[str, Verdicts], grades: np.ndarray, malignant_from: int
) -> plt.Figure:
    """Draw counts and ROC curves of each classifier.

    Parameters
    ----------
    verdicts : mapping of str to Verdicts
        By stage, whose name ends in the task.
    grades : np.ndarray, int (N,)
        0 to 4.
    malignant_from : int
        Least malignancy, 1 to 5, that the binary task calls malignant.

    Returns
    -------
    plt.Figure
    """
    width = PAGE / 4 * max(2, len(verdicts))
    figure, axes = plt.subplots(
        2, len(verdicts), figsize=(width, 4.0), layout="constrained", squeeze=False
    )
    for column, (stage, found) in enumerate(verdicts.items()):
        task = stage.rsplit("_", 1)[1]
        truth, names = task_labels(grades, task, malignant_from), class_names(task)
        _draw_counts(axes[0, column], truth, found, names)
        axes[0, column].set_title(stage.replace("_", " ").replace(" masked", "\nmasked"))
        _draw_curves(axes[1, column], truth, found, names)
    return figure


def _draw_counts(axis, truth, found, names):
    short = [name[:3] for name in names]
    counts = confusion_matrix(truth, found.predicted, labels=range(len(names)))
    axis.imshow(counts, cmap="Greys", vmax=1.4 * max(counts.max(), 1))
    for (row, place), count in np.ndenumerate(counts):
        axis.text(place, row, count, ha="center", va="center", fontsize=7)
    axis.set(xlabel="prediction", ylabel="label", xticks=range(len(names)), xticklabels=short)
    axis.set_yticks(range(len(names)), short)
    axis.grid(False)


def _draw_curves(axis, truth, found, names):
    for label in range(len(names)) if len(names) > 2 else (1,):
        x, y, _ = roc_curve(truth == label, found.scores[:, label])
        axis.plot(x, y, label=names[label], linewidth=1)
    axis.plot([0, 1], [0, 1], color="0.5", linewidth=0.8)
    axis.set(xlabel="1 − specificity", ylabel="sensitivity")
    axis.legend(fontsize=6)


@styled
def test_metrics(metrics: pd.DataFrame, metric: str, task: str) -> plt.Figure:
    """Draw one metric of all stages of a task on the test split, with its intervals.

    Parameters
    ----------
    metrics : pd.DataFrame
        From `nodule_evaluation.record_test`.
    metric : str
        Such as "macro_F1".
    task : str
        One of `nodule_training.TASKS`.

    Returns
    -------
    plt.Figure
    """
    rows = metrics[(metrics["metric"] == metric) & metrics["stage"].str.endswith(f"_{task}")]
    size = (1.4 * COLUMN, 0.6 + 0.22 * len(rows))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    places = np.arange(len(rows))[::-1]
    axis.hlines(places, rows["low"], rows["high"], color=COLOURS[0])
    axis.plot(rows["value"], places, "o", color=COLOURS[0], markersize=4)
    names = rows["stage"].str.removesuffix(f"_{task}").str.replace("_", " ")
    axis.set_yticks(places, names)
    axis.set(xlabel=f"{metric.replace('_', ' ')}, test split, with 95 % CI over patients")
    return figure
