"""The page ``audit.html``: verdicts, copies, labels, shortcuts, protocol and checklists.

Its text is in ``covid_lab/templates/audit.html``. It shows images of the data set, so
that it must not be published.
"""

import io
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from PIL import Image

from covid_lab.audit.data_checks import DataAudit
from covid_lab.audit.findings import VERDICTS, Finding, figure
from covid_lab.audit.labels import LabelAudit
from covid_lab.pages import image_url, interval, render
from covid_project.data import DataError, decode

SHOWN = 60  # pairs, and images of contradicted labels; the others are in the tables
SIDE = 256  # pixels of the longer side of an image shown


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that an audit found: the content of the files and of the page.

    Attributes
    ----------
    name : str
        Of the data.
    findings : list of Finding
        Of all areas, in the order in which they were made.
    data : DataAudit
        The audited data.
    pairs : pd.DataFrame
        From ``data_checks.named_pairs``.
    labels : LabelAudit
        From ``labels.audit_labels``.
    shortcuts, controls : pd.DataFrame
        One row per view, and one per control; empty where none were made.
    checklists : pd.DataFrame
        From ``checklists.answers``.
    settings : dict
        First entries of ``audit.json``: settings, seed, versions, data.
    """

    name: str
    findings: list[Finding]
    data: DataAudit
    pairs: pd.DataFrame
    labels: LabelAudit
    shortcuts: pd.DataFrame
    controls: pd.DataFrame
    checklists: pd.DataFrame
    settings: dict


def page(report: Report) -> str:
    """Write the page of an audit.

    Parameters
    ----------
    report : Report
        From `covid_lab.audit.command.audit`.

    Returns
    -------
    str
        The whole page as HTML; it needs no other file.
    """
    findings, pairs, labels = report.findings, report.pairs, report.labels
    judged = not labels.table.empty
    areas = ("labels", "shortcuts", "protocol")
    return render(
        "audit.html",
        title=f"Audit of {report.name}",
        settings=report.settings,
        data=report.settings["data"],
        tally={verdict: sum(f.verdict == verdict for f in findings) for verdict in VERDICTS},
        worst_first=sorted(findings, key=lambda finding: VERDICTS.index(finding.verdict)),
        areas={area: [f for f in findings if f.area == area] for area in areas},
        figure=figure,
        most=SHOWN,
        pairs=list(pairs.itertuples()),
        across=0 if pairs.empty else int((pairs["split_first"] != pairs["split_second"]).sum()),
        image_of=partial(_image, report),
        labels_judged=judged,
        suspects=list(labels.contradicted.itertuples()) if judged else [],
        flipped=labels.controls.iloc[0] if judged else None,
        label_controls=_label_controls(labels.controls) if judged else None,
        readers=_readers(labels.readers) if judged and len(labels.readers) else None,
        views=[_view(row) for _, row in report.shortcuts.iterrows()],
        controls=report.controls if len(report.controls) else None,
        checklists=[
            (name, list(items.itertuples()))
            for name, items in report.checklists.groupby("checklist", sort=False)
        ],
    )


def _image(report: Report, path: str) -> str:
    """Return an image of the data set as a data URL; JPEG, small enough for a page of many."""
    root = report.data.dataset.root
    try:
        pixels = decode(root.joinpath(path).read_bytes(), path)
    except (DataError, OSError):  # the file changed since it was audited
        pixels = np.zeros((1, 1), np.uint8)
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return image_url(file.getvalue(), "jpeg")


def _label_controls(controls: pd.DataFrame) -> pd.DataFrame:
    """Recall and precision of planted flips, as they are shown."""
    shown = {
        name: [
            interval(row[name], row[f"{name}_low"], row[f"{name}_high"], digits=2)
            for _, row in controls.iterrows()
        ]
        for name in ("recall", "precision")
    }
    return pd.DataFrame(
        {
            "model sees": controls["features"],
            "reported": controls["reported"],
            "images": controls["images"].round().astype(int),
            **shown,
        }
    )


def _readers(readers: pd.DataFrame) -> pd.DataFrame:
    """The second reader's labels of the images of each label, as they are shown."""
    return pd.DataFrame(
        {
            "label": readers["label"],
            "second reader": readers["second_label"],
            "images": readers["images"],
            "fraction": [interval(row.fraction, row.low, row.high) for row in readers.itertuples()],
        }
    )


def _view(row: pd.Series) -> dict:
    """One line of the plot of shortcuts; AUCs from 0 to 1 are drawn from 0 to 1000."""
    auc, low, high = (1000 * float(row[name]) for name in ("auc", "low", "high"))
    chance = 1000 * float(row["null_high"])
    return {
        "name": row["view"],
        "kind": row["kind"],
        "text": interval(row["auc"], row["low"], row["high"]),
        "drawn": bool(np.isfinite([auc, low, high]).all()),
        "auc": auc,
        "low": low,
        "width": max(high - low, 2),
        "chance": chance if np.isfinite(chance) else 500.0,
    }
