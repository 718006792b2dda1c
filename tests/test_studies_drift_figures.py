"""Figures of the robustness study: legends off points, titles that do not overlap."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection

from covid_lab.studies import drift_figures
from covid_lab.studies.perturbations import PERTURBATIONS, SEVERITIES
from covid_project.figures import COLUMN

LAYERS = [f"block{stage}_{block}" for stage in (1, 2, 3, 4) for block in (1, 2)]
DERMA = (
    "actinic keratoses and intraepithelial carcinoma",
    "basal cell carcinoma",
    "benign keratosis-like lesions",
    "dermatofibroma",
    "melanoma",
    "melanocytic nevi",
    "vascular lesions",
)
BREAST = ("malignant", "normal, benign")


@pytest.fixture
def losses():
    sets = [(name, severity) for name in PERTURBATIONS for severity in SEVERITIES]
    table = pd.DataFrame(sets, columns=["perturbation", "severity"])
    return table.assign(delta=-0.001, low=-0.01, high=0.1)


def drawn_texts(figure):
    figure.canvas.draw()
    return [
        text
        for axis in figure.axes
        for text in (axis.title, *axis.get_xticklabels())
        if text.get_text() and text.get_visible() and axis.get_visible()
    ]


def assert_no_overlap(texts):
    boxes = [text.get_window_extent() for text in texts]
    for number, box in enumerate(boxes):
        for other, text in zip(boxes[number + 1 :], texts[number + 1 :], strict=True):
            assert not box.overlaps(other), (texts[number].get_text(), text.get_text())


@pytest.mark.parametrize("classes", [BREAST, DERMA])
def test_panels_of_drift_by_layer_have_titles_apart_and_the_losses_in_the_legend(losses, classes):
    rows = [
        ("rmse", perturbation, 3, layer, name, prediction, 7, 30.0, 25.0, 35.0)
        for perturbation in PERTURBATIONS
        for layer in LAYERS
        for name in classes
        for prediction in ("right", "wrong")
    ]
    columns = ["measure", "perturbation", "severity", "layer", "class", "prediction", "n"]
    table = pd.DataFrame(rows, columns=[*columns, "value", "low", "high"])
    figure = drift_figures.drift_by_layer(table, losses, classes, 3)
    assert figure.get_figwidth() == COLUMN
    assert_no_overlap(drawn_texts(figure))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        f"{name}: 0.00" for name in PERTURBATIONS
    ]
    plt.close(figure)


@pytest.mark.parametrize("classes", [BREAST, DERMA])
def test_box_plots_have_a_panel_per_severity_and_class(losses, classes, rng):
    images = np.arange(4 * len(classes))
    original = pd.DataFrame({"image": images, "label": images % len(classes), "seed": 1})
    errors = original.assign(perturbation="none", severity=0, wrong=images % 3 == 0)
    drifts = pd.concat(
        pd.DataFrame({"image": images, "perturbation": name, "severity": severity})
        for name in PERTURBATIONS
        for severity in SEVERITIES
    ).assign(layer="block4_2", seed=1)
    drifts = drifts.assign(rmse=rng.uniform(0, 80, len(drifts)))
    figure = drift_figures.drift_boxes(drifts, errors, losses, classes, "block4_2")
    assert len(figure.axes) == 5 * len(classes)
    assert figure.get_figwidth() == COLUMN or len(classes) > 2
    assert_no_overlap(
        [text for text in drawn_texts(figure) if text in {a.title for a in figure.axes}]
    )
    (side,) = figure.axes[len(classes) - 1].child_axes
    assert [text.get_text() for text in side.get_yticklabels()] == ["0.00"] * 5
    # The median of a box is that of its cell: severity 1, first class, right, first perturbation.
    here = drifts.merge(original.assign(wrong=errors["wrong"]), on=["image", "seed"])
    cell = here.query(
        "severity == 1 and label == 0 and not wrong and perturbation == @PERTURBATIONS[0]"
    )
    medians = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_color() == "black"]
    assert cell["rmse"].median() in medians
    plt.close(figure)


def test_titles_of_drift_and_loss_give_both_correlations(losses, rng):
    drifts = pd.concat(
        losses[["perturbation", "severity"]].assign(layer=layer, rmse=rng.uniform(0, 60, 25))
        for layer in LAYERS
    )
    rows = [
        ("rmse", layer, "sets", constant, value, -0.95, 0.95)
        for layer in LAYERS
        for constant, value in {"nothing": 0.91, "severity": -0.52}.items()
    ]
    columns = ["measure", "layer", "kind", "constant", "value", "low", "high"]
    figure = drift_figures.drift_and_loss(drifts, losses, pd.DataFrame(rows, columns=columns))
    assert_no_overlap([axis.title for axis in figure.axes])
    assert figure.axes[3].get_title() == (
        "block 2.2\nρ 0.91 (−0.95 to 0.95)\nρₛ −0.52 (−0.95 to 0.95)"
    )
    plt.close(figure)


@pytest.mark.parametrize("correlation", [-0.97, 0.0, 0.97])
def test_no_legend_of_the_summary_covers_a_point(correlation, losses):
    drifts = pd.DataFrame(
        [("rmse", layer, name, 30.0, 4) for layer in LAYERS for name in PERTURBATIONS],
        columns=["measure", "layer", "perturbation", "value", "n"],
    )
    kinds = {(kind, constant) for kind, constant, *_ in drift_figures.CORRELATIONS.values()}
    correlations = pd.DataFrame(
        [("rmse", layer, *kind) for layer in LAYERS for kind in sorted(kinds)],
        columns=["measure", "layer", "kind", "constant"],
    ).assign(value=correlation, low=correlation - 0.02, high=correlation + 0.02)
    found = pd.DataFrame(
        [(name, kind) for name in (*PERTURBATIONS, "all") for kind in drift_figures.DETECTORS],
        columns=["perturbation", "detector"],
    ).assign(auc=0.9, low=0.8, high=1.0)
    figure = drift_figures.summary(
        {"plain": losses, "augmented": losses}, drifts, correlations, found, ["A finding."]
    )
    figure.canvas.draw()
    for axis in figure.axes:
        if axis.get_legend() is None:
            continue
        box = axis.get_legend().get_window_extent()
        points = [
            axis.transData.transform(point)
            for collection in axis.collections
            if isinstance(collection, PathCollection)  # markers, no lines
            for point in collection.get_offsets()
        ]
        assert points
        assert not any(box.contains(*point) for point in points)
        assert not (axis.get_title() and box.overlaps(axis.title.get_window_extent()))
    plt.close(figure)
