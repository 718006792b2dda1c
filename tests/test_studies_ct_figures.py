"""Figures of the study of CT slices: what they show is what they were given."""

import numpy as np
import pandas as pd
import pytest

from covid_lab.studies import ct_figures


def history(values):
    table = pd.DataFrame({"val_loss": values, "val_accuracy": values})
    return table.assign(epoch=range(1, len(values) + 1))


def texts(items):
    return [text.get_text() for text in items]


def test_a_panel_for_each_variant_and_dead_networks_in_grey():
    parts = [
        history([0.7, 0.6, 0.5]).assign(loss=0.4, variant=name, training_seed=seed)
        for name in "abcde"
        for seed in (7, 8)
    ]
    figure = ct_figures.variant_histories(pd.concat(parts), list("abcde"), [("b", 8)])
    drawn = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in drawn] == list("abcde")
    assert [len(axis.lines) for axis in drawn] == [4] * 5
    assert [line.get_color() for line in drawn[1].lines[2:]] == ["0.6", "0.6"]
    assert "a network that did not train" in texts(figure.legends[0].texts)


def test_dots_leave_dead_networks_out():
    trials = pd.DataFrame({"variant": list("aab"), "trained": [True, False, True]})
    trials = trials.assign(val_loss=[0.5, 0.7, 0.4])
    figure = ct_figures.variant_dots(trials, {"kernel": {"3": "a", "5": "b"}, "size": {"64": "a"}})
    first, second = figure.axes
    assert [line.get_ydata().tolist() for line in first.lines] == [[0.5], [0.4]]
    assert texts(first.get_xticklabels()) == ["3", "5"]
    assert len(second.lines) == 1


def test_the_kept_epoch_is_marked_and_pruning_begins_there():
    curves = {"A": history([0.7, 0.5, 0.6]), "B": history([0.4, 0.5, 0.6])}
    figure = ct_figures.validation_curves(curves)
    assert [line.get_markevery() for line in figure.axes[0].lines] == [[1], [0]]
    assert texts(figure.legends[0].texts) == ["A", "B"]
    pruned = {"50 %": history([0.6, 0.55]).assign(sparsity=[0.4, 0.5])}
    figure = ct_figures.pruning_curves(curves["A"], pruned)
    before, after, mark = figure.axes[0].lines
    assert before.get_xdata().tolist() == [1, 2]
    assert after.get_xydata().tolist() == [[2, 0.5], [3, 0.6], [4, 0.55]]
    assert mark.get_xdata() == [2, 2]
    assert figure.axes[1].lines[0].get_ydata().tolist() == [40, 50]


def test_histograms_are_percentages_of_each_set(rng):
    sets = {"few": rng.normal(size=10), "many": rng.normal(size=400)}
    figure = ct_figures.source_histograms({"B": sets, "C": sets}, "a lesion")
    for patch in figure.axes[0].patches:
        assert patch.get_xy()[1:-1:2, 1].sum() == pytest.approx(100, abs=0.1)
        assert np.abs(patch.get_xy()[:, 0]).min() < 1e-9  # no bin on both sides of the threshold


def test_visible_and_smoothed_maps_keep_order_and_blank_ones():
    maps = np.zeros((3, 20, 20))
    maps[0] = np.arange(400).reshape(20, 20)
    maps[1, 10, 10] = 5  # its percentile is 0
    seen = ct_figures.visible(maps)
    assert seen[0].max() == seen[1, 10, 10] == 1
    assert (np.diff(seen[0].ravel()) >= 0).all()
    assert (seen[0] == 1).sum() == 4
    smooth = ct_figures.smoothed(maps, 0.05)
    assert smooth[1].sum() == pytest.approx(5)
    assert (smooth[1] > 1e-3).sum() > 5
    assert not seen[2].any()
    assert not smooth[2].any()


def test_raw_map_and_overlay_stand_below_each_image(rng):
    images, overlays = (rng.integers(0, 256, (5, 8, 8, n)).astype(np.uint8) for n in (1, 3))
    maps = rng.random((5, 8, 8))
    figure = ct_figures.raw_and_overlay(images, maps, overlays, list("vwxyz"))
    axes = np.array(figure.axes[:24]).reshape(6, 4)
    assert [axis.get_title() for axis in axes[0]] == list("vwxy")
    assert axes[3, 0].get_title() == "z"
    for axis, shown in zip(axes[3:, 0], (images[4, ..., 0], maps[4], overlays[4]), strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), shown)
    assert not axes[3, 1].images


def test_every_correlation_is_drawn_once():
    table = pd.DataFrame({"network": list("AACC"), "compared": list("xyxy")})
    table = table.assign(correlation=[0.1, np.nan, 0.9, 1.0])
    figure = ct_figures.agreement_dots(table, ["x", "y"])
    drawn = [line.get_xdata().tolist() for line in figure.axes[0].lines[:4]]
    assert drawn == [[0.1], [], [0.9], [1.0]]
