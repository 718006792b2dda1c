"""The page ``index.html`` of an external test: one file that needs no network.

It shows images of the data set and stays local; tables and drawn curves are beside it.
"""

import base64
import json
from html import escape
from pathlib import Path

import pandas as pd

from covid_lab.runs.page import PAGE, STYLE
from covid_project.files import read_csv, write_text

SHOWN = ("accuracy", "balanced accuracy", "sensitivity", "specificity", "AUC")
VIEWS = ("border", "corners", "lungs removed", "lungs only", "whole image")
MARK = "The images are drawn, not of patients. These figures test the software."


def write_page(folder: Path) -> Path:
    """Write the page from the tables and figures of an external test; return its path.

    Parameters
    ----------
    folder : Path
        Has ``external.json``, the tables and ``figures``.

    Returns
    -------
    Path
    """
    folder = Path(folder)
    record = json.loads((folder / "external.json").read_text(encoding="utf-8"))
    names = list(record["models"])
    title = f"External test on {record['data']}"
    parts = [f"<h1>{escape(title)}</h1>"]
    if record["phantoms"]:
        parts.append(f'<p class="drawn">{MARK}</p>')
    parts.append(
        f"<p>{record['images']} images; fingerprint {record['fingerprint']}; "
        f"{escape(record['versions'])}. Intervals are 95 %. The threshold is that of the model's "
        "own test set: p(COVID) = 0.5.</p>"
    )
    parts += _headline(read_csv(folder / "metrics.csv"), names)
    parts += _leak(read_csv(folder / "leak.csv"))
    parts += _use(read_csv(folder / "use.csv"), read_csv(folder / "heat.csv"))
    parts += _cost(folder, names)
    parts += _probe(read_csv(folder / "probe.csv"))
    parts += _controls(read_csv(folder / "controls.csv"))
    parts += _errors(folder, names)
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )
    write_text(folder / PAGE, text)
    return folder / PAGE


def _headline(metrics: pd.DataFrame, names: list[str]) -> list[str]:
    rows = []
    for name in names:
        here = metrics[metrics["model"] == name].set_index("metric")
        for metric in SHOWN:
            row = here.loc[metric]
            cells = {"model": name, "metric": metric}
            if "own_value" in here and pd.notna(row["own_value"]):
                cells["own test set"] = f"{_interval(row, 'own_')}, n = {row['own_n']:.0f}"
            cells["external"] = f"{_interval(row)}, n = {row['n']:.0f}"
            if "drop" in here and pd.notna(row["drop"]):
                cells["drop"] = (
                    f"{row['drop']:+.3f} [{row['drop_low']:+.3f}, {row['drop_high']:+.3f}]"
                )
            rows.append(cells)
    return ["<h2>Here and there</h2>", _table(pd.DataFrame(rows))]


def _leak(leak: pd.DataFrame) -> list[str]:
    parts = ["<h2>1. What the training data give away</h2>"]
    if leak.empty:
        return [*parts, "<p>No audit of the models' own data was found beside them.</p>"]
    shown = leak[leak["view"].isin(VIEWS)]
    cells = pd.DataFrame(
        {
            "what a linear model sees": shown["view"],
            "AUC": [_interval(row, value="auc") for _, row in shown.iterrows()],
        }
    )
    text = "An AUC well above 0.5 without the lungs is a shortcut that a network can learn."
    return [*parts, f"<p>{text}</p>", _table(cells)]


def _use(use: pd.DataFrame, heat: pd.DataFrame) -> list[str]:
    parts = ["<h2>2. What the models use</h2>"]
    if len(use):
        cells = use[["model", "check", "found"]]
        parts += ["<p>On the external images, with everything else covered:</p>", _table(cells)]
    if len(heat):
        rows = pd.DataFrame(
            {
                "model": heat["model"],
                "images": [f"{row.images} (n = {row.n})" for row in heat.itertuples()],
                "heat on opacities": [_interval(row) for _, row in heat.iterrows()],
                "their area": [f"{value:.3f}" for value in heat["area"]],
                "above even heat": [_interval(row, "gain_", "gain") for _, row in heat.iterrows()],
                "within the lungs, above even heat": [
                    _interval(row, "lungs_gain_", "lungs_gain") for _, row in heat.iterrows()
                ],
            }
        )
        text = (
            "Fraction of the Grad-CAM for COVID on opacities that radiologists marked. Even heat "
            "would have the opacities' fraction of the area."
        )
        parts += [f"<p>{text}</p>", _table(rows)]
    return parts if len(parts) > 1 else []


def _cost(folder: Path, names: list[str]) -> list[str]:
    parts = ["<h2>3. What that costs elsewhere</h2>"]
    for name in names:
        for kind, text in (
            ("metrics", "Metrics on the own test set and on the external images"),
            ("scores", "Logits by class; the threshold is dotted"),
        ):
            parts.append(_figure(folder / "figures" / f"{kind}_{name}.png", f"{name}. {text}."))
    calibration = read_csv(folder / "calibration.csv")
    if len(calibration):
        rows = pd.DataFrame(
            {
                "model": calibration["model"],
                "images": calibration["set"],
                "ECE": [_interval(row, "ece_", "ece") for _, row in calibration.iterrows()],
                "of a calibrated model": [f"{value:.3f}" for value in calibration["expected"]],
            }
        )
        parts += ["<p>Expected calibration error:</p>", _table(rows)]
    return parts


def _probe(probe: pd.DataFrame) -> list[str]:
    if probe.empty:
        return []
    rows = pd.DataFrame(
        {
            "model": probe["model"],
            "images without COVID-19": [f"{row.group} (n = {row.n})" for row in probe.itertuples()],
            "called COVID": [_interval(row) for _, row in probe.iterrows()],
        }
    )
    return ["<h2>Other diseases</h2>", _table(rows)]


def _controls(table: pd.DataFrame) -> list[str]:
    if table.empty:
        return []
    text = (
        "A model of the border only must fail on external images; two halves of one test set must "
        "show no drop (at most about 5 % of the divisions are flagged, by chance)."
    )
    return ["<h2>Controls</h2>", f"<p>{text}</p>", _table(table.round(3))]


def _errors(folder: Path, names: list[str]) -> list[str]:
    parts = ["<h2>The most confident errors</h2>"]
    for name in names:
        path = folder / "figures" / f"images_errors_{name}.png"
        parts.append(_figure(path, f"{name}: false alarms, then missed ones; Grad-CAM below."))
    return parts


def _figure(path: Path, caption: str) -> str:
    if not path.is_file():
        return ""
    picture = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{picture}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _interval(row: pd.Series, prefix: str = "", value: str | None = None) -> str:
    """Write a value with its interval, from the columns value (or another), low and high."""
    number = row[value or f"{prefix}value"]
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    if pd.isna(number):
        return "not defined"
    return f"{number:.3f}" if pd.isna(low) else f"{number:.3f} ({low:.3f} to {high:.3f})"


def _table(table: pd.DataFrame) -> str:
    return table.to_html(border=0, index=False, na_rep="")
