"""Figures are for the eye; here only what can be told without one."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from covid_project import figures
from covid_project.settings import Axis

CLASSES = ("NORMAL", "COVID")


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def words(figure):
    """All text on a figure, drawn."""
    figure.canvas.draw()
    return " ".join(text.get_text() for text in figure.findobj(plt.Text))


@pytest.fixture
def trials():
    return pd.DataFrame(
        {
            "learning_rate": [0.001, 0.002, 0.004],
            "dropout": [0.2, 0.2, 0.2],
            "val_loss": [0.5, np.nan, 0.3],
            "extension": [False, False, True],
        }
    )


def test_class_distribution_shows_the_counts():
    table = pd.DataFrame({"split": ["train"] * 5 + ["val"] * 2, "label": [0, 0, 0, 1, 1, 0, 1]})
    text = words(figures.class_distribution(table, CLASSES))
    assert {"3", "2", "train", "val", "NORMAL", "COVID"} <= set(text.split())


def test_image_grid_shows_each_image_on_the_fixed_grey_scale():
    images = np.full((5, 8, 8, 1), 100, np.uint8)
    figure = figures.image_grid(images, [f"t{k}" for k in range(5)], columns=2)
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == 5
    assert all(axis.images[0].get_clim() == (0, 255) for axis in shown)


def test_history_marks_the_best_epoch_and_names_units():
    table = pd.DataFrame(
        {"epoch": [1, 2], "loss": [1, 0.5], "accuracy": [0.5, 0.8], "val_loss": [1, 0.9],
         "val_accuracy": [0.5, 0.6]}
    )  # fmt: skip
    text = words(figures.history(table, best_epoch=2))
    assert "nats" in text
    assert "epoch 2" in text
    assert "validation" in text
    assert "validation" not in words(figures.history(table[["epoch", "loss", "accuracy"]]))


def test_tuning_survives_failed_trials(trials):
    axes = {
        "learning_rate": Axis(values=(0.001, 0.002), times=2, low=0.001, high=0.1),
        "dropout": Axis(values=(0.2,), plus=0.2, low=0.0, high=0.8),
    }
    figure = figures.tuning(trials, axes)
    text = words(figure)
    assert {"planned trial", "extension of a range", "best trial"} <= {
        label.get_text() for label in figure.legends[0].get_texts()
    }
    assert "learning rate" in text
    assert figure.axes[0].get_xscale() == "log"
    assert figure.axes[1].get_xscale() == "linear"


def test_confusion_matrix_shows_the_counts_by_name():
    text = words(figures.confusion_matrix(np.array([[50, 3], [7, 40]]), CLASSES))
    assert {"50", "3", "7", "40", "label", "prediction"} <= set(text.split())


@pytest.mark.parametrize("classes", [("COVID", "NORMAL"), ("CT_NonCOVID", "CT_COVID")])
def test_cells_of_a_confusion_matrix_keep_their_size_however_long_the_names(classes):
    figure = figures.confusion_matrix(np.array([[50, 3], [7, 40]]), classes)
    figure.draw_without_rendering()
    (axis,) = figure.axes
    assert axis.get_window_extent().width / figure.dpi > 0.8  # inches, two cells
    boxes = [label.get_window_extent() for label in axis.get_yticklabels()]
    assert not boxes[0].overlaps(boxes[1])


def test_titles_of_long_names_do_not_run_into_each_other():
    title = figures.verdict(1, 2.0, ("NORMAL", "PNEUMONIA"))
    figure = figures.image_grid(np.zeros((4, 8, 8), np.uint8), [title] * 4)
    figure.draw_without_rendering()
    boxes = [axis.title.get_window_extent() for axis in figure.axes]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_intervals_are_drawn_from_bound_to_bound():
    # A percentile interval need not contain the value; error bars could not draw that.
    metrics = pd.DataFrame(
        {"stage": ["baseline"], "metric": ["F1"], "value": [0.9], "low": [0.91], "high": [0.95]}
    )
    figure = figures.intervals(metrics)
    (segment,) = figure.axes[0].collections[0].get_segments()
    assert segment[:, 0].tolist() == [0.91, 0.95]


@pytest.mark.parametrize(
    ("label", "score", "expected"),
    [
        (1, 2.0, "COVID; predicted COVID\np(COVID) = 0.88: correct"),
        (1, -2.0, "COVID; predicted NORMAL\np(COVID) = 0.12: WRONG"),
        (0, -2.0, "NORMAL; predicted NORMAL\np(COVID) = 0.12: correct"),
    ],
)
def test_the_verdict_gives_label_prediction_and_the_probability_of_covid(label, score, expected):
    assert figures.verdict(label, score, CLASSES) == expected


def test_histograms_and_panels_draw():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    figures.grey_histograms({("train", "NORMAL"): images, ("train", "COVID"): images})
    assert "value" in words(figures.value_histograms({"a": images, "b": images}))
    overlays = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    figure = figures.heatmap_panel(images, overlays, ["x", "y", "z"])
    assert sum(bool(axis.images) for axis in figure.axes) == 6
    assert "heat" in words(figure)  # the colour bar


def test_a_colour_bar_says_its_scale_and_fewer_images_make_a_narrower_figure():
    images = np.zeros((2, 8, 8))
    figure = figures.image_grid(images, ["a", "b"], scale=(0, 60), bar="grey values")
    assert figure.get_size_inches()[0] < figures.PAGE
    bar = figure.axes[-1]
    assert bar.get_ylabel() == "grey values"
    assert bar.get_ylim() == (0, 60)


def test_drawing_changes_matplotlibs_settings_for_nobody():
    before = dict(plt.rcParams)
    figures.history(pd.DataFrame({"epoch": [1], "loss": [1.0], "accuracy": [0.5]}))
    assert dict(plt.rcParams) == before


def test_one_image_is_no_larger_than_its_like_among_four():
    for count in (1, 4):
        images = np.zeros((count, 8, 8, 1), np.uint8)
        overlays = np.zeros((count, 8, 8, 3), np.uint8)
        figure = figures.heatmap_panel(images, overlays, ["x"] * count)
        assert figure.get_size_inches()[0] == figures.PAGE


def test_a_second_line_of_the_titles_gets_its_own_space():
    heights = [
        figures.image_grid(np.zeros((8, 9, 9)), [title] * 8, bar="heat").get_figheight()
        for title in ("one", "one\ntwo")
    ]
    assert heights[1] - heights[0] >= 2 * 8 * 1.2 / 72  # two rows; 8 points, in inches
