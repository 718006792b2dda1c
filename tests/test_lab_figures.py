"""Figures of the lab: only what can be told without an eye."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from covid_lab import figures

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
