"""The page ``index.html`` of an external test.

Its text is in ``covid_lab/templates/external.html``. It shows images of the data set and stays
local; tables and drawn curves are beside it.
"""

import json
from pathlib import Path

import pandas as pd

from covid_lab.external.adapted import KEPT
from covid_lab.pages import PAGE, interval, render
from covid_project.files import read_csv, write_text

SHOWN = ("accuracy", "balanced accuracy", "sensitivity", "specificity", "AUC")
VIEWS = ("border", "corners", "lungs removed", "lungs only", "whole image")
COSTS = {
    "metrics": "metrics on the own test set and on the external images.",
    "scores": "logits by class; the threshold is dotted.",
}


def write_page(folder: Path) -> Path:
    """Write the page from the tables and figures of an external test.

    Parameters
    ----------
    folder : Path
        Has ``external.json``, the tables and ``figures``.

    Returns
    -------
    Path
        Of the page.
    """
    folder = Path(folder)
    record = json.loads((folder / "external.json").read_text(encoding="utf-8"))
    names = list(record["models"])
    tables = {"leak": _leak, "use": _use, "heat": _heat, "calibration": _calibration}
    tables |= {"probe": _probe, "controls": _controls, "adapted": _adapted}
    shown = {}
    for name, select in tables.items():
        table = read_csv(folder / f"{name}.csv")
        shown[name] = select(table) if len(table) else None
    adapted = read_csv(folder / "adapted.csv")
    text = render(
        "external.html",
        title=f"External test on {record['data']}",
        record=record,
        headline=_headline(read_csv(folder / "metrics.csv"), names),
        costs=_costs(folder / "figures", names),
        errors=_errors(folder / "figures", names),
        warnings=_warnings(adapted) if len(adapted) else [],
        kept=bool(len(adapted)) and (adapted["source"] == KEPT).any(),
        **shown,
    )
    write_text(folder / PAGE, text)
    return folder / PAGE


def _headline(metrics: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The metrics of every model on both sets, and the differences."""
    rows = []
    for name in names:
        here = metrics[metrics["model"] == name].set_index("metric")
        for metric in SHOWN:
            row = here.loc[metric]
            cells = {"model": name, "metric": metric}
            if "own_value" in here and pd.notna(row["own_value"]):
                cells["own test set"] = _interval(row, "own_") + f", n = {row['own_n']:,.0f}"
            cells["external"] = _interval(row) + f", n = {row['n']:,.0f}"
            if "drop" in here and pd.notna(row["drop"]):
                cells["drop"] = _interval(row, "drop_", "drop", sign="+")
            rows.append(cells)
    return pd.DataFrame(rows)


def _leak(leak: pd.DataFrame) -> pd.DataFrame:
    shown = leak[leak["view"].isin(VIEWS)]
    return pd.DataFrame(
        {"what a linear model sees": shown["view"], "AUC": _intervals(shown, "", "auc")}
    )


def _use(use: pd.DataFrame) -> pd.DataFrame:
    return use[["model", "check", "found"]]


def _heat(heat: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": heat["model"],
            "images": heat["images"],
            "n": heat["n"],
            "heat on opacities": _intervals(heat),
            "their area": heat["area"],
            "above even heat": _intervals(heat, "gain_", "gain", sign="+"),
            "within the lungs, above even heat": _intervals(
                heat, "lungs_gain_", "lungs_gain", sign="+"
            ),
        }
    )


def _costs(figures: Path, names: list[str]) -> list[tuple[str, list[tuple[bytes, str]]]]:
    """The figures of every model that has some, with their captions."""
    found = []
    for name in names:
        paths = {figures / f"{kind}_{name}.png": caption for kind, caption in COSTS.items()}
        pictures = [
            (path.read_bytes(), f"{name}: {caption}")
            for path, caption in paths.items()
            if path.is_file()
        ]
        found += [(name, pictures)] if pictures else []
    return found


def _calibration(calibration: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": calibration["model"],
            "images": calibration["set"],
            "ECE": _intervals(calibration, "ece_", "ece"),
            "of a calibrated model": calibration["expected"],
        }
    )


def _probe(probe: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": probe["model"],
            "images without COVID-19": probe["group"],
            "n": probe["n"],
            "called COVID": _intervals(probe),
        }
    )


def _controls(controls: pd.DataFrame) -> pd.DataFrame:
    """One sentence per control; the two kinds of controls have different columns."""
    rows = []
    for _, row in controls.iterrows():
        if pd.notna(row.get("AUC")):
            control = f"{row['control']}, {row['set']}"
            found = "AUC " + _interval(row, "", "AUC") + f", n = {row['n']:,.0f}"
        else:
            control = row["control"]
            found = "mean drop in AUC " + _interval(row, value="drop")
            found += f"; {row['flagged']:.0%} of {row['repeats']:.0f} divisions flagged"
        rows.append({"model": row["model"], "control": control, "found": found})
    return pd.DataFrame(rows)


def _adapted(adapted: pd.DataFrame) -> pd.DataFrame:
    """One row per model, set and threshold; a refused threshold has its reason."""
    rows = []
    for (model, on, method), part in adapted.groupby(["model", "set", "method"], sort=False):
        metrics = part.set_index("metric")
        first = metrics.iloc[0]
        cells = {"model": model, "images": f"{on}, n = {metrics.loc['accuracy', 'n']:,.0f}"}
        cells |= {"threshold": method, "on the logits": first["threshold"]}
        cells["estimated prevalence"] = first["prevalence"]
        refused = pd.isna(first["threshold"])
        cells |= {name: "" if refused else _interval(metrics.loc[name]) for name in SHOWN[:4]}
        cells["change in balanced accuracy"] = (
            _interval(metrics.loc["balanced accuracy"], "change_", "change", sign="+")
            if pd.notna(first["change"])
            else f"refused: {first['note']}" * refused
        )
        rows.append(cells)
    return pd.DataFrame(rows)


def _warnings(adapted: pd.DataFrame) -> list[tuple[str, str]]:
    """The label-free warning of every model whose own scores are known."""
    found = adapted[(adapted["set"] == "external") & (adapted["method"] == "plain")]
    found = found.drop_duplicates("model").dropna(subset="note")
    return list(found[["model", "note"]].itertuples(index=False, name=None))


def _errors(figures: Path, names: list[str]) -> list[tuple[str, bytes, str]]:
    paths = {name: figures / f"images_errors_{name}.png" for name in names}
    caption = "false positives, then false negatives; Grad-CAM below."
    return [
        (name, path.read_bytes(), f"{name}: {caption}")
        for name, path in paths.items()
        if path.is_file()
    ]


def _interval(row: pd.Series, prefix: str = "", value: str | None = None, sign: str = "-"):
    """Write a value with its interval, from the columns value (or another), low and high."""
    low, high = row.get(f"{prefix}low"), row.get(f"{prefix}high")
    return interval(row[value or f"{prefix}value"], low, high, sign=sign)


def _intervals(table: pd.DataFrame, *columns: str | None, sign: str = "-") -> list:
    return [_interval(row, *columns, sign=sign) for _, row in table.iterrows()]
