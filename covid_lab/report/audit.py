"""What an audit of the data adds to the evidence of a run."""

import json
import re

import numpy as np
import pandas as pd

from covid_lab.report.latex import escape, interval, percent_bounds, yes
from covid_lab.report.reading import RunTables


def add_audit(run: RunTables, values: dict, tables: dict) -> None:
    """Add the findings of the data audit, where one was made of this run's data.

    Parameters
    ----------
    run : RunTables
    values : dict of str to str
        Receives the values whose keys begin with "audit.".
    tables : dict of str to str
        Not changed.

    Raises
    ------
    EvidenceMissing
        The audit lacks a table.
    """
    folder = _audit_of(run)
    values["audit.there"] = yes(folder)
    values["audit.copies"] = "--"
    if folder:
        views = run.table(f"{folder}/shortcuts.csv").rename(columns={"auc": "value"})
        views = views.set_index("view")
        pairs = run.table(f"{folder}/duplicates.csv")
        values["audit.copies"] = str(int((pairs["split_first"] != pairs["split_second"]).sum()))
        _audit_of_the_model(run.table(f"{folder}/audit.csv"), run.table("gradcam.csv"), values)
    for view in ("border", "lungs removed", "whole image", "file metadata"):
        shown = interval(views.loc[view]) if folder and view in views.index else "--"
        values[f"audit.{view.replace(' ', '.')}.AUC"] = shown


def _audit_of_the_model(audit: pd.DataFrame, maps: pd.DataFrame, values: dict) -> None:
    """Add what the explained model scores on parts of the images, and where its heat is."""
    audit, stage = audit.set_index("check"), maps["stage"].iloc[0]
    views = {"border": "border", "outside": "image without lungs", "lungs": "lungs"}
    for key, view in views.items():
        check = f"{stage}: the model on the {view} alone"
        if check in audit.index:
            values[f"audit.model.{key}"] = interval(audit.loc[check])
    heat = f"{stage}: share of Grad-CAM inside the lungs"
    if heat in audit.index and np.isfinite(audit.loc[heat, "value"]):
        row = audit.loc[heat]
        values["audit.heat"] = percent_bounds(*row[["value", "low", "high"]])
        values["audit.heat.concentrated"] = yes(row["verdict"] == "pass")
        values["audit.lungs.area"] = escape(re.search(r"take ([\d.]+%)", row["found"]).group(1))


def _audit_of(run: RunTables) -> str | None:
    """Return the results' folder with an audit of the run's data, or None."""
    data = run.record()["data"]
    for record in sorted(run.results.glob("audit/**/audit.json")):
        audited = json.loads(record.read_text(encoding="utf-8"))["data"]["fingerprint"]
        if audited == data and record.with_name("shortcuts.csv").is_file():
            return record.parent.relative_to(run.results).as_posix()
    return None
