"""Figures of the pneumonia study: only what can be told without an eye."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from covid_lab.studies import pneumonia_figures as figures

CLASSES = ("NORMAL", "COVID")


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def words(figure):
    """All text on a figure, drawn."""
    figure.canvas.draw()
    return " ".join(text.get_text() for text in figure.findobj(plt.Text))


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


def test_class_bars_write_each_value_above_its_interval():
    rows = [
        {"stage": stage, "class": name, "metric": metric, "value": value, "low": 0.5, "high": 0.9}
        for stage, values in (("mlp", (0.61, 0.72)), ("cnn", (0.83, 0.84)))
        for name, value in zip(CLASSES, values, strict=True)
        for metric in ("F1", "recall")
    ]
    figure = figures.class_bars(pd.DataFrame(rows))
    (axis,) = figure.axes
    heights = sorted(round(bar.get_height(), 2) for bar in axis.patches)
    assert heights == [0.61, 0.72, 0.83, 0.84]
    places = {round(t.get_position()[0], 2): float(t.get_text()) for t in axis.texts}
    bars = {round(b.get_x() + b.get_width() / 2, 2): b.get_height() for b in axis.patches}
    assert places == bars
    assert all(text.get_position()[1] > 0.9 for text in axis.texts)


def test_training_curves_mark_the_kept_epoch_and_where_fine_tuning_begins():
    epochs = np.arange(1, 6)
    history = pd.DataFrame({"epoch": epochs, "phase": ["head"] * 3 + ["fine-tuning"] * 2})
    for name in ("loss", "accuracy", "precision", "recall"):
        history[name] = history[f"val_{name}"] = 0.1 * epochs
    figure = figures.training_curves(history, 5)
    assert [axis.get_ylabel() for axis in figure.axes][1:] == ["accuracy", "precision", "recall"]
    for axis in figure.axes:
        marks = {line.get_label(): line.get_xdata()[0] for line in axis.lines[2:]}
        assert marks == {"epoch 5, kept": 5, "fine-tuning begins": 3.5}
    figure = figures.training_curves(history.drop(columns="phase"), 2)
    assert all(len(axis.lines) == 3 for axis in figure.axes)
