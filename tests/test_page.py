"""The overview of a run: everything in one page, as far as the run has come."""

import re
import shutil

import pandas as pd

from covid_lab.runs.page import FIGURES, saved_pictures, write_page


def test_the_page_of_a_run_has_its_figures_tables_and_notebooks(small_run):
    folder, _, output = small_run
    assert "index.html" in output
    text = (folder / "made" / "index.html").read_text(encoding="utf-8")
    assert "drawn, not of patients" in text
    for name in ("data_exploration", "baseline", "transfer_learning", "gradcam"):
        (link,) = re.findall(rf'href="(notebooks/{name}\.html)"', text)
        assert (folder / "made" / link).is_file()
    metrics = pd.read_csv(folder / "made" / "metrics.csv")
    row = metrics[(metrics["stage"] == "baseline") & (metrics["split"] == "test")].iloc[0]
    assert f"{row['value']:.3f} ({row['low']:.3f}–{row['high']:.3f})" in text
    pictures = saved_pictures(folder / "made")
    assert set(FIGURES) <= set(pictures)
    assert text.count("data:image/png;base64,") == sum(len(pictures[name]) for name in FIGURES)
    assert str(folder) not in text


def test_the_page_of_an_unfinished_run_has_what_there_is(small_run, tmp_path):
    results = shutil.copytree(small_run[0] / "made", tmp_path / "results")
    for name in ("metrics.csv", "notebooks/baseline.ipynb", "notebooks/gradcam.ipynb"):
        (results / name).unlink()
    text = write_page(results).read_text(encoding="utf-8")
    assert "notebooks/transfer_learning.html" in text
    assert "notebooks/baseline.html" not in text
    assert "Test set," not in text
