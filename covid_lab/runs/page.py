"""The page ``index.html`` of a course run: its figures, its tables, and links to its notebooks.

Its text is in ``covid_lab/templates/run.html``. It shows images of the data set and therefore stays
local.
"""

import json
import re
from pathlib import Path

import nbformat
import pandas as pd

from covid_lab.pages import PAGE, interval, render
from covid_lab.runs.runner import EXECUTED
from covid_lab.runs.settings import NOTEBOOKS
from covid_project.files import read_csv, write_text
from covid_project.settings import read_file

FIGURES = {  # name, as the notebooks save it → what it shows
    "test_metrics": "The tested models on the test set, with 95 % intervals.",
    "confusion_baseline": "Baseline: test images by label and prediction.",
    "confusion_fine_tuned": "Fine-tuned network: test images by label and prediction.",
    "history_baseline_tuned": "Training of the tuned baseline, validation set held out.",
    "history_fine_tuned": "Fine-tuning on training and validation images.",
    "tuning_baseline": "Every trial of the baseline's search.",
    "tuning_transfer": "Every trial of the search for the new layers.",
    "gradcam_mean": "Mean Grad-CAM heatmap of each group of test images.",
    "images_gradcam_{name.lower()}_{group}": "Grad-CAM of the predicted class, by group.",
}


def write_page(results: Path) -> Path:
    """Write the page of a run with the notebooks, tables and figures that exist.

    Parameters
    ----------
    results : Path
        Folder of the run; has ``run.json`` and ``settings.yaml``.

    Returns
    -------
    Path
        The page.
    """
    record = json.loads((results / "run.json").read_text(encoding="utf-8"))
    transfer = read_file(results / "settings.yaml")["transfer"]
    pictures = saved_pictures(results)
    text = render(
        "run.html",
        title=f"Run on {record['source']}",
        record=record,
        weights=f"{transfer['backbone']}, {transfer['weights']} weights",
        folder=EXECUTED,
        notebooks=[name for name in NOTEBOOKS if _executed(results, name).is_file()],
        figures=[(pictures[name], FIGURES[name]) for name in FIGURES if name in pictures],
        **_tables(results),
    )
    write_text(results / PAGE, text)
    return results / PAGE


def saved_pictures(results: Path) -> dict[str, list[str]]:
    """Find the pictures that the executed notebooks show of the figures that they save.

    Parameters
    ----------
    results : Path
        Folder of the run.

    Returns
    -------
    dict of str to list of str
        PNG in base64, by the figure's name as the notebook's cell writes it.
    """
    pictures: dict[str, list[str]] = {}
    for name in NOTEBOOKS:
        path = _executed(results, name)
        cells = nbformat.read(path, as_version=4).cells if path.is_file() else []
        for cell in (cell for cell in cells if cell.cell_type == "code"):
            names = re.findall(r'save_figure\(\s*figure,\s*f?"([^"]+)"', cell.source)
            shown = [
                output.data["image/png"]
                for output in cell.outputs
                if "image/png" in output.get("data", {})
            ]
            if len(names) == 1 and shown:
                pictures[names[0]] = shown
    return pictures


def _executed(results: Path, name: str) -> Path:
    return results / EXECUTED / f"{name}.ipynb"


def _tables(results: Path) -> dict[str, pd.DataFrame | int | None]:
    """Return the test metrics, the number of test images and the test evaluations."""
    metrics, ledger = read_csv(results / "metrics.csv"), read_csv(results / "test_ledger.csv")
    tested = metrics[metrics["split"] == "test"] if len(metrics) else metrics
    shown = {"metrics": None, "tested": 0, "ledger": None}
    if len(tested):
        text = [interval(row.value, row.low, row.high) for row in tested.itertuples()]
        shown["metrics"] = (
            tested.assign(text=text)
            .pivot_table(
                index="metric", columns="stage", values="text", aggfunc="first", sort=False
            )
            .reset_index()
        )
        shown["tested"] = int(tested["n"].max())
    if len(ledger):
        shown["ledger"] = ledger[["stage", "look", "model"]].rename(columns={"look": "evaluation"})
    return shown
