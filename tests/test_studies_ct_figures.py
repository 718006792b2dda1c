"""Figures of the study of CT slices: what they show is what they were given."""

import numpy as np
import pandas as pd
import pytest

from covid_lab.studies import ct_figures


def history(values):
    return pd.DataFrame(
        {"epoch": range(1, len(values) + 1), "val_loss": values, "val_accuracy": values}
    )


def test_a_panel_for_each_variant_and_dead_networks_in_grey():
    parts = [
        history([0.7, 0.6, 0.5]).assign(loss=0.4, variant=name, training_seed=seed)
        for name in ("a", "b", "c", "d", "e")
        for seed in (7, 8)
    ]
    figure = ct_figures.variant_histories(pd.concat(parts), list("abcde"), [("b", 8)])
    drawn = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in drawn] == list("abcde")
    assert [len(axis.lines) for axis in drawn] == [4] * 5
    assert [line.get_color() for line in drawn[1].lines[2:]] == ["0.6", "0.6"]
    assert "a network that did not train" in [t.get_text() for t in figure.legends[0].texts]


def test_dots_leave_dead_networks_out():
    trials = pd.DataFrame(
        {"variant": ["a", "a", "b"], "trained": [True, False, True], "val_loss": [0.5, 0.7, 0.4]}
    )
    figure = ct_figures.variant_dots(trials, {"kernel": {"3": "a", "5": "b"}, "size": {"64": "a"}})
    first, second = figure.axes
    assert [line.get_ydata().tolist() for line in first.lines] == [[0.5], [0.4]]
    assert [tick.get_text() for tick in first.get_xticklabels()] == ["3", "5"]
    assert len(second.lines) == 1


def test_the_kept_epoch_is_marked():
    curves = {"A": history([0.7, 0.5, 0.6]), "B": history([0.4, 0.5, 0.6])}
    figure = ct_figures.validation_curves(curves)
    assert [line.get_markevery() for line in figure.axes[0].lines] == [[1], [0]]
    assert [text.get_text() for text in figure.legends[0].texts] == ["A", "B"]


def test_pruning_begins_where_the_dense_model_was_best():
    dense = history([0.7, 0.5, 0.6, 0.65])
    pruned = {"50 %": history([0.6, 0.55]).assign(sparsity=[0.4, 0.5])}
    figure = ct_figures.pruning_curves(dense, pruned)
    before, after, mark = figure.axes[0].lines
    assert before.get_xdata().tolist() == [1, 2]
    assert after.get_xdata().tolist() == [2, 3, 4]
    assert after.get_ydata().tolist() == [0.5, 0.6, 0.55]
    assert mark.get_xdata() == [2, 2]
    assert figure.axes[1].lines[0].get_ydata().tolist() == [40, 50]


def test_histograms_are_percentages_of_each_set(rng):
    sets = {"few": rng.normal(size=10), "many": rng.normal(size=400)}
    figure = ct_figures.source_histograms({"B": sets, "C": sets}, "a lesion")
    for patch in figure.axes[0].patches:
        steps = patch.get_xy()[1:-1:2, 1]
        assert steps.sum() == pytest.approx(100, abs=0.1)
        assert np.abs(patch.get_xy()[:, 0]).min() < 1e-9  # no bin on both sides of the threshold


def test_visible_maps_keep_order_and_blank_ones():
    maps = np.zeros((3, 20, 20))
    maps[0] = np.arange(400).reshape(20, 20)
    maps[1, 0, 0] = 5  # its percentile is 0
    seen = ct_figures.visible(maps)
    assert seen[0].max() == 1
    assert (np.diff(seen[0].ravel()) >= 0).all()
    assert (seen[0] == 1).sum() == 4
    assert seen[1, 0, 0] == 1
    assert not seen[2].any()


def test_smoothing_keeps_each_map_to_itself():
    maps = np.zeros((2, 50, 50))
    maps[0, 25, 25] = 1
    found = ct_figures.smoothed(maps)
    assert found[0].sum() == pytest.approx(1)
    assert (found[0] > 1e-3).sum() > 5
    assert not found[1].any()


def test_raw_map_and_overlay_stand_below_each_image(rng):
    images = rng.integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    maps, overlays = rng.random((5, 8, 8)), rng.integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    figure = ct_figures.raw_and_overlay(images, maps, overlays, list("vwxyz"))
    axes = np.array(figure.axes[:24]).reshape(6, 4)
    assert [axis.get_title() for axis in axes[0]] == list("vwxy")
    assert axes[3, 0].get_title() == "z"
    np.testing.assert_array_equal(axes[3, 0].images[0].get_array(), images[4, ..., 0])
    np.testing.assert_array_equal(axes[4, 0].images[0].get_array(), maps[4])
    np.testing.assert_array_equal(axes[5, 0].images[0].get_array(), overlays[4])
    assert not axes[3, 1].images


def test_every_correlation_is_drawn_once():
    table = pd.DataFrame(
        {
            "network": ["A", "A", "C", "C"],
            "compared": ["x", "y", "x", "y"],
            "correlation": [0.1, np.nan, 0.9, 1.0],
        }
    )
    figure = ct_figures.agreement_dots(table, ["x", "y"])
    drawn = [line.get_xdata().tolist() for line in figure.axes[0].lines[:4]]
    assert drawn == [[0.1], [], [0.9], [1.0]]
