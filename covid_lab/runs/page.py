"""The page ``index.html`` of a course run: its figures, its tables, and links to its notebooks.

One file that needs no network. It shows images of the data set and stays local.
"""

import json
import re
from html import escape
from pathlib import Path

import nbformat
import pandas as pd

from covid_lab.runs.runner import EXECUTED
from covid_lab.runs.settings import NOTEBOOKS
from covid_project.files import read_csv, write_text
from covid_project.settings import read_file

PAGE = "index.html"
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
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 70rem;
  color: #1a1a1a; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.drawn { border: 2px solid #8e1600; padding: 0.5rem 1rem; font-weight: 600; }
table { border-collapse: collapse; } th, td { padding: 0.2rem 0.8rem; text-align: left;
  border-bottom: 1px solid #ddd; font-weight: normal; } thead th { font-weight: 600; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; } figcaption { font-size: 0.9rem; }
"""


def write_page(results: Path) -> Path:
    """Write the page of a run, as far as the run has come; return its path."""
    record = json.loads((results / "run.json").read_text(encoding="utf-8"))
    transfer = read_file(results / "settings.yaml")["transfer"]
    weights = f"{transfer['backbone']}, {transfer['weights']} weights"
    parts = [f"<h1>Run on {escape(record['source'])}</h1>"]
    if record["phantoms"]:
        parts.append(
            '<p class="drawn">These images are drawn, not of patients. The run tests the software; '
            "its figures say nothing about COVID-19.</p>"
        )
    parts.append(
        f"<p>Seed {record['seed']}; {escape(weights)}; data {record['data']}; "
        f"{escape(record['versions'])}.</p>"
    )
    links = [_link(name) for name in NOTEBOOKS if _executed(results, name).is_file()]
    parts.append(f"<h2>Notebooks</h2><ol>{''.join(links)}</ol>")
    parts += _tables(results)
    pictures = saved_pictures(results)
    shown = [name for name in FIGURES if name in pictures]
    parts += ["<h2>Figures</h2>"] if shown else []
    for name in shown:
        images = "".join(
            f'<img src="data:image/png;base64,{picture}" alt="{escape(FIGURES[name])}">'
            for picture in pictures[name]
        )
        parts.append(f"<figure>{images}<figcaption>{escape(FIGURES[name])}</figcaption></figure>")
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Run on {escape(record['source'])}</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )
    write_text(results / PAGE, text)
    return results / PAGE


def saved_pictures(results: Path) -> dict[str, list[str]]:
    """Return the pictures (PNG, base64) of the cells that save a figure, by the figure's name."""
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


def _link(name: str) -> str:
    return f'<li><a href="{EXECUTED}/{name}.html">{name.replace("_", " ")}</a></li>'


def _tables(results: Path) -> list[str]:
    """Return the metrics of the test set, and the test evaluations, as far as there are any."""
    parts = []
    metrics, ledger = read_csv(results / "metrics.csv"), read_csv(results / "test_ledger.csv")
    tested = metrics[metrics["split"] == "test"] if len(metrics) else metrics
    if len(tested):
        text = [
            f"{row.value:.3f} ({row.low:.3f}–{row.high:.3f})" if pd.notna(row.low)
            else f"{row.value:.3f}"
            for row in tested.itertuples()
        ]  # fmt: skip
        shown = tested.assign(text=text).pivot_table(
            index="metric", columns="stage", values="text", aggfunc="first", sort=False
        )
        shown.columns.name = shown.index.name = None
        title = f"Test set, {int(tested['n'].max())} images, with 95 % intervals"
        parts += [f"<h2>{title}</h2>", shown.to_html(border=0)]
    if len(ledger):
        evaluations = ledger[["stage", "look", "model"]].to_html(border=0, index=False)
        parts += ["<h2>Test evaluations</h2>", evaluations]
    return parts
