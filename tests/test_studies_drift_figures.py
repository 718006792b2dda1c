"""Figures of the robustness study: legends off points, titles that do not overlap."""

from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection

from covid_lab.studies import drift_figures
from covid_lab.studies.perturbations import PERTURBATIONS, SEVERITIES
from covid_project.figures import COLUMN

LAYERS = [f"block{stage}_{block}" for stage in (1, 2, 3, 4) for block in (1, 2)]
CLASSES = (
    "actinic keratoses and intraepithelial carcinoma",
    "basal cell carcinoma",
    "benign keratosis-like lesions",
    "melanocytic nevi",
)


@pytest.fixture
def losses():
    sets = product(PERTURBATIONS, SEVERITIES)
    table = pd.DataFrame(sets, columns=["perturbation", "severity"])
    return table.assign(delta=-0.001, low=-0.01, high=0.1)


def assert_no_overlap(figure, ticks=False):
    """Titles, and labels of the x axis where asked for, are apart."""
    figure.canvas.draw()
    axes = [axis for axis in figure.axes if axis.get_visible()]
    texts = [axis.title for axis in axes]
    texts += [text for axis in axes for text in axis.get_xticklabels() if ticks]
    boxes = [text.get_window_extent() for text in texts if text.get_visible() and text.get_text()]
    assert boxes
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_panels_of_drift_by_layer_have_titles_apart_and_the_losses_in_the_legend(losses):
    cells = product(["rmse"], PERTURBATIONS, [3], LAYERS, CLASSES, ("right", "wrong"))
    columns = ["measure", "perturbation", "severity", "layer", "class", "prediction"]
    table = pd.DataFrame(cells, columns=columns).assign(n=7, value=30.0, low=25.0, high=35.0)
    table = table[(table["class"] != CLASSES[0]) | (table["prediction"] == "right")]
    figure = drift_figures.drift_by_layer(table, losses, CLASSES, 3)
    assert figure.get_figwidth() == COLUMN
    assert_no_overlap(figure, ticks=True)
    assert figure.axes[1].get_title().endswith("wrong, n = 0")
    assert figure.axes[1].texts[0].get_text() == "no such image"
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [f"{name}: 0.00" for name in PERTURBATIONS]


def test_box_plots_have_a_panel_per_severity_and_class(losses, rng):
    images = np.arange(4 * len(CLASSES))
    original = pd.DataFrame({"image": images, "label": images % len(CLASSES), "seed": 1})
    errors = original.assign(perturbation="none", severity=0, wrong=images % 3 == 0)
    cells = product(PERTURBATIONS, SEVERITIES, images)
    drifts = pd.DataFrame(cells, columns=["perturbation", "severity", "image"])
    drifts = drifts.assign(layer="block4_2", seed=1, rmse=rng.uniform(0, 80, len(drifts)))
    figure = drift_figures.drift_boxes(drifts, errors, losses, CLASSES, "block4_2")
    assert len(figure.axes) == 5 * len(CLASSES)
    assert_no_overlap(figure)
    (side,) = figure.axes[len(CLASSES) - 1].child_axes
    assert [text.get_text() for text in side.get_yticklabels()] == ["0.00"] * 5
    # The median of a box is that of its cell: severity 1, first class, right, first perturbation.
    here = drifts.merge(errors[["image", "label", "wrong"]], on="image")
    cell = here.query(
        "severity == 1 and label == 0 and not wrong and perturbation == @PERTURBATIONS[0]"
    )
    medians = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_color() == "black"]
    assert cell["rmse"].median() in medians


def test_titles_of_drift_and_loss_give_both_correlations(losses, rng):
    drifts = losses[["perturbation", "severity"]].merge(pd.Series(LAYERS, name="layer"), "cross")
    drifts = drifts.assign(rmse=rng.uniform(0, 60, len(drifts)))
    found = pd.DataFrame(product(LAYERS, ("nothing", "severity")), columns=["layer", "constant"])
    found = found.assign(measure="rmse", kind="sets", low=-0.95, high=0.95)
    found["value"] = found["constant"].map({"nothing": 0.91, "severity": -0.52})
    figure = drift_figures.drift_and_loss(drifts, losses, found)
    assert_no_overlap(figure)
    title = "block 2.2\nρ 0.91 (−0.95 to 0.95)\nρₛ −0.52 (−0.95 to 0.95)"
    assert figure.axes[3].get_title() == title


@pytest.mark.parametrize("correlation", [-0.97, 0.97])
def test_no_legend_of_the_summary_covers_a_point(correlation, losses):
    drifts = pd.DataFrame(product(LAYERS, PERTURBATIONS), columns=["layer", "perturbation"])
    drifts = drifts.assign(measure="rmse", value=30.0, n=4)
    kinds = sorted({(kind, constant) for kind, constant, *_ in drift_figures.CORRELATIONS.values()})
    rows = [(layer, *kind) for layer, kind in product(LAYERS, kinds)]
    correlations = pd.DataFrame(rows, columns=["layer", "kind", "constant"]).assign(
        measure="rmse", value=correlation, low=correlation - 0.02, high=correlation + 0.02
    )
    found = product((*PERTURBATIONS, "all"), drift_figures.DETECTORS)
    found = pd.DataFrame(found, columns=["perturbation", "detector"])
    found = found.assign(auc=0.9, low=0.8, high=1.0)
    both = {"plain": losses, "augmented": losses}
    figure = drift_figures.summary(both, drifts, correlations, found, ["A finding."])
    figure.canvas.draw()
    with_legends = [axis for axis in figure.axes if axis.get_legend()]
    assert len(with_legends) == 2
    for axis in with_legends:
        box = axis.get_legend().get_window_extent()
        markers = [one for one in axis.collections if isinstance(one, PathCollection)]
        points = [axis.transData.transform(one.get_offsets()) for one in markers]
        assert not any(box.contains(*point) for point in np.concatenate(points))
        assert not (axis.get_title() and box.overlaps(axis.title.get_window_extent()))
