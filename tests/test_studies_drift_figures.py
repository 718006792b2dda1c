import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.collections import PathCollection

from covid_lab.studies import drift_figures
from covid_lab.studies.perturbations import PERTURBATIONS, SEVERITIES

LAYERS = [f"block{stage}_{block}" for stage in (1, 2, 3, 4) for block in (1, 2)]


@pytest.mark.parametrize("correlation", [-0.97, 0.0, 0.97])
def test_no_legend_of_the_summary_covers_a_point(correlation):
    sets = [(name, severity) for name in PERTURBATIONS for severity in SEVERITIES]
    losses = pd.DataFrame(sets, columns=["perturbation", "severity"]).assign(delta=0.1)
    drifts = pd.DataFrame(
        [("rmse", layer, name, 30.0, 4) for layer in LAYERS for name in PERTURBATIONS],
        columns=["measure", "layer", "perturbation", "value", "n"],
    )
    correlations = pd.DataFrame(
        [("rmse", layer, kind) for layer in LAYERS for kind in ("sets", "images")],
        columns=["measure", "layer", "kind"],
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
