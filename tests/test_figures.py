"""Figures are for the eye; here only what can be told without one."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from covid_project import figures

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
    assert "best epoch 2" in text
    assert "validation" in text
    assert "validation" not in words(figures.history(table[["epoch", "loss", "accuracy"]]))


def test_tuning_survives_failed_trials(trials):
    assert "best" in words(figures.tuning(trials, ["learning_rate", "dropout"]))


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
        (1, 2.0, "COVID; predicted COVID\np = 0.88: correct"),
        (1, -2.0, "COVID; predicted NORMAL\np = 0.88: WRONG"),
        (0, -2.0, "NORMAL; predicted NORMAL\np = 0.88: correct"),
    ],
)
def test_the_verdict_gives_label_prediction_and_its_probability(label, score, expected):
    assert figures.verdict(label, score, CLASSES) == expected


def test_histograms_and_panels_draw():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    figures.grey_histograms({("train", "NORMAL"): images, ("train", "COVID"): images})
    assert "normalised value" in words(figures.value_histograms({"a": images, "b": images}))
    overlays = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    figure = figures.heatmap_panel(images, overlays, ["x", "y", "z"])
    assert sum(bool(axis.images) for axis in figure.axes) == 6


@pytest.fixture
def quality():
    """Two methods and the baselines; "good" wins everywhere, "bad" nowhere."""
    kinds = ["random", "centred Gaussian", "edges"]
    rows = []
    for name in ["good", "bad", *kinds]:
        common = {"method": name, "layer": "relu", "n": 9, "blank": 0}
        good = name == "good"
        value = {"value": 0.8 if good else 0.3, "low": 0.2, "high": 0.9}
        for test, measure, setting in [
            ("localisation", "energy inside", "lungs"),
            ("faithfulness", "deletion", "to the mean"),
            ("faithfulness", "ROAD", "most relevant first"),
        ]:
            what = {"test": test, "measure": measure, "setting": setting}
            rows.append({**common, **what, **value, "versus": None, "verdict": None})
            verdict = "better" if good else "no difference"
            for kind in kinds if name not in kinds else []:
                rows.append({**common, **what, **value, "versus": kind, "verdict": verdict})
        for number in (1, 2):
            what = {"test": "sanity", "measure": "SSIM", "setting": f"cascading {number} x"}
            verdict = {"reference": 0.5, "verdict": "pass" if good and number == 2 else "fail"}
            rows.append({**common, **what, **value, "versus": None, **verdict})
    return pd.DataFrame(rows)


def test_quality_has_a_panel_per_measure_and_fills_the_marks_of_those_that_win(quality):
    figure = figures.explanation_quality(quality)
    text = words(figure)
    assert {"good", "bad", "edges", "lungs", "deletion"} <= set(text.split())
    assert "all layers randomised" in text
    assert "most relevant first" not in text
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert len(panels) == 3
    assert [axis.get_xlabel() for axis in panels] == ["", "lower is better", "lower is better"]
    for axis in panels:
        (marks,) = [c for c in axis.collections if len(c.get_offsets()) == 5]
        white = (marks.get_facecolors()[:, :3] == 1).all(axis=1)
        assert white.tolist() == [False, True, True, True, True]
        assert marks.get_offsets()[:, 0].tolist() == [0.8, 0.3, 0.3, 0.3, 0.3]


def test_one_image_is_no_larger_than_its_like_among_four():
    for count in (1, 4):
        images = np.zeros((count, 8, 8, 1), np.uint8)
        overlays = np.zeros((count, 8, 8, 3), np.uint8)
        figure = figures.heatmap_panel(images, overlays, ["x"] * count)
        assert figure.get_size_inches()[0] == figures.PAGE


def test_the_figures_of_a_study_name_classes_and_models():
    table = pd.DataFrame({"split": ["train"] * 4 + ["test"] * 2, "label": [0, 1, 1, 1, 0, 1]})
    assert "75%" in words(figures.class_shares(table, CLASSES))
    sizes = pd.DataFrame({"label": [0, 1, 1], "width": [3, 4, 5], "height": [6, 7, 8]})
    assert set(CLASSES) <= set(words(figures.stored_sizes(sizes, CLASSES)).split())


def test_ranking_curves_mark_the_threshold_that_the_confusion_matrix_has(rng):
    labels = np.repeat([0, 1], 20)
    scores = {"one": rng.normal(labels, 1), "two": rng.normal(labels, 1)}
    roc = figures.ranking_curves(labels, scores).axes[0]
    points = [line.get_data() for line in roc.lines if len(line.get_xdata()) == 1]
    for (x, y), values in zip(points, scores.values(), strict=True):
        assert x[0] == (values[labels == 0] > 0).mean()
        assert y[0] == (values[labels == 1] > 0).mean()


def test_model_bars_stand_beside_the_published_ones():
    table = pd.DataFrame({"stage": ["cnn"], "seconds": [5], "published_seconds": [50]})
    for name in ("accuracy", "AUC"):
        table = table.assign(
            **{name: 0.9, f"{name}_low": 0.8, f"{name}_high": 0.95, f"published_{name}": 0.85}
        )
    heights = [
        [bar.get_height() for bar in axis.patches] for axis in figures.model_bars(table).axes
    ]
    assert heights == [[0.85, 0.9], [0.85, 0.9], [50, 5]]
