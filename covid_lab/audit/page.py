"""The page ``audit.html``: verdicts, copies, labels, shortcuts, protocol and checklists.

One file that needs nothing else: no script, no network; styles, images and curves lie inside. What
comes from file names is escaped. It shows images of the data set and stays local.
"""

import base64
import io
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd
from PIL import Image

from covid_lab.audit.data_checks import DataAudit
from covid_lab.audit.findings import VERDICTS, Finding, figure
from covid_lab.audit.labels import LabelAudit
from covid_project.data import DataError, decode

SHOWN = 60  # pairs, and images of contradicted labels; the others are in the tables
SIDE = 256  # pixels of the longer side of an image shown
SIGNS = {"fail": "✗", "warn": "!", "pass": "✓", "not applicable": "–"}

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 75rem;
  color: #1a1a1a; background: #fff; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 0.5rem; border-bottom: 2px solid #ccc; }
h3 { font-size: 1rem; margin: 1.2rem 0 0.3rem; }
p, ul { max-width: 48rem; }
.verdict { font-weight: 600; white-space: nowrap; padding: 0 0.5em; border-radius: 0.3em;
  border: 1px solid; display: inline-block; }
.fail { color: #8e1600; background: #fde7e3; }
.warn { color: #6a4a00; background: #fdf3d3; }
.pass { color: #0b5a2a; background: #e3f5e8; }
.na { color: #4a4a4a; background: #efefef; }
.tally { display: flex; flex-wrap: wrap; gap: 0.5rem; font-size: 1.1rem; }
.row { display: grid; grid-template-columns: 10.5rem 17rem 1fr; gap: 0.1rem 1rem; padding: 0.5rem 0;
  border-bottom: 1px solid #ddd; }
.check { font-weight: 600; }
.figure { color: #444; font-size: 0.9rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; }
.pair { border: 1px solid #ccc; border-radius: 0.4em; padding: 0.6rem; }
.pair.across { border: 2px solid #8e1600; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 0.5rem; }
.sides img, .suspects img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #000;
  display: block; }
.side { font-size: 0.8rem; margin: 0; }
.suspects { grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.2rem 0.7rem; border-bottom: 1px solid #ddd; text-align: left; }
.view { display: grid; grid-template-columns: 16rem 12rem 1fr; gap: 0.1rem 1rem;
  align-items: center; padding: 0.3rem 0; border-bottom: 1px solid #eee; }
.view svg { width: 100%; height: 1.6rem; display: block; }
.scale { font-size: 0.8rem; color: #444; display: flex; justify-content: space-between; }
.item { display: grid; grid-template-columns: 10.5rem 6rem 1fr; gap: 0.1rem 1rem; padding: 0.4rem 0;
  border-bottom: 1px solid #eee; }
@media (max-width: 50rem) {
  .row, .view, .item { grid-template-columns: 1fr; }
}
"""


@dataclass(frozen=True, eq=False)
class Report:
    """All that an audit found; what the files and the page are made from.

    Attributes
    ----------
    name
        Of the data.
    findings
        Of all areas, in the order in which they were made.
    data
        The data as they were audited.
    pairs
        From ``data_checks.named_pairs``.
    labels
        From ``labels.audit_labels``.
    shortcuts, controls
        One row per view and per control; empty where none were made.
    checklists
        From ``checklists.answers``.
    settings
        What ``audit.json`` begins with: settings, seed, versions, data.
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
    """Return the whole page as HTML."""
    settings = report.settings
    data = settings["data"]
    images = ", ".join(f"{_text(where)} {count:,}" for where, count in data["images"].items())
    kind = "drawn images (phantoms)" if data["phantoms"] else "images"
    facts = (
        f"<p>{images} {kind}. Fingerprint of the data {_text(data['fingerprint'])}; seed "
        f"{settings['seed']}; {_text(settings['versions'])}.</p>"
    )
    sections = [
        ("Verdicts", _tally(report.findings) + _findings(_gravest_first(report.findings))),
        ("Copies", _pairs(report)),
        ("Labels", _labels(report)),
        ("Shortcuts", _shortcuts(report)),
        ("Protocol", _protocol(report.findings)),
        ("Checklists", _checklists(report.checklists)),
    ]
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections)
    title = f"Audit of {_text(report.name)}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{title}</h1>{facts}{body}</body></html>\n"
    )


def _text(value: object) -> str:
    """Escaped, and with control characters written out."""
    text = str(value)
    return escape(text if text.isprintable() else repr(text))


def _badge(verdict: str) -> str:
    kind = "na" if verdict == "not applicable" else verdict
    return f'<span class="verdict {kind}">{SIGNS[verdict]} {verdict}</span>'


def _tally(findings: list[Finding]) -> str:
    counts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in VERDICTS}
    badges = (f"<span>{count} {_badge(verdict)}</span>" for verdict, count in counts.items())
    return f'<p class="tally">{"".join(badges)}</p>'


def _gravest_first(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: VERDICTS.index(finding.verdict))


def _findings(findings: list[Finding]) -> str:
    rows = (
        f'<div class="row"><div>{_badge(f.verdict)}</div>'
        f'<div><div class="check">{_text(f.check)}</div>'
        f'<div class="figure">{_text(figure(f))}</div></div>'
        f"<div>{_text(f.found)}</div></div>"
        for f in findings
    )
    return "".join(rows)


# ---- pairs of images ----------------------------------------------------------------------------


def _pairs(report: Report) -> str:
    pairs = report.pairs
    if pairs.empty:
        return "<p>No image was found twice.</p>"
    across = int((pairs["split_first"] != pairs["split_second"]).sum())
    rest = len(pairs) - SHOWN
    more = f" The first {SHOWN} are shown, the rest is in duplicates.csv." if rest > 0 else ""
    intro = (
        f"<p>{len(pairs):,} pairs, {across:,} of them in two splits (framed in red, first). The "
        "similarity is the correlation of the finest details after alignment; exact copies have "
        f"1.{more}</p>"
    )
    shown = "".join(_pair(report, pair) for _, pair in pairs.head(SHOWN).iterrows())
    return f'{intro}<div class="pairs">{shown}</div>'


def _pair(report: Report, pair: pd.Series) -> str:
    sides = "".join(
        f'<figure style="margin:0"><img alt="{_text(pair[f"path_{side}"])}" '
        f'src="{_image(report, pair[f"path_{side}"])}">'
        f'<figcaption class="side">{_text(pair[f"path_{side}"])}<br>'
        f"{_text(pair[f'split_{side}'] or 'no split')}, {_text(pair[f'label_{side}'])}"
        "</figcaption></figure>"
        for side in ("first", "second")
    )
    across = " across" if pair["split_first"] != pair["split_second"] else ""
    gravity = "fail" if pair["kind"] == "exact" else "warn"
    conflict = f" {_badge(gravity)} two labels" if pair["label_conflict"] else ""
    return (
        f'<div class="pair{across}"><div>{_text(pair["kind"])}, similarity '
        f'{pair["similarity"]:.3f}{conflict}</div><div class="sides">{sides}</div></div>'
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
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


# ---- labels -------------------------------------------------------------------------------------


def _labels(report: Report) -> str:
    labels = report.labels
    content = _findings([finding for finding in report.findings if finding.area == "labels"])
    if labels.table.empty:
        return content
    suspects = labels.contradicted
    rest = len(suspects) - SHOWN
    more = f" The first {SHOWN} are shown, the rest is in labels.csv." if rest > 0 else ""
    content += (
        f"<p>{len(suspects):,} labels are contradicted by a model that was trained without the "
        "image, its copies and its patient (confident learning, Northcutt et al. 2021). The most "
        f"certain contradictions come first.{more} A person should look at these images: the label "
        "may be wrong, or the image difficult. Test images are left out. labels.csv ranks all "
        "others.</p>"
        "<p>The model learns whatever separates the classes, the collection of origin included. "
        "Where one class comes from another collection, a wrong label of that class looks right to "
        "it, and no number here counts such errors.</p>"
    )
    shown = "".join(_suspect(report, row) for row in suspects.head(SHOWN).itertuples())
    controls = _label_controls(labels.controls)
    readers = ""
    if len(labels.readers):
        table = labels.readers.to_html(index=False, border=0, float_format="%.3f", escape=True)
        readers = f"<h3>The second reader: labels given to the images of each label</h3>{table}"
    return f'{content}<div class="pairs suspects">{shown}</div>{controls}{readers}'


def _suspect(report: Report, row) -> str:
    second = ""
    if row.second_label:
        against = f" {_badge('warn')}" if row.second_contradicts else ""
        second = f"<br>second reader: {_text(row.second_label)}{against}"
    return (
        f'<figure class="pair" style="margin:0"><img alt="{_text(row.path)}" '
        f'src="{_image(report, row.path)}"><figcaption class="side">'
        f"{row.rank}. labelled {_text(row.label)} (probability {row.label_probability:.2f}), "
        f"model: {_text(row.suggested)} ({row.suggested_probability:.2f}){second}<br>"
        f"{_text(row.path)}, {_text(row.split or 'no split')}</figcaption></figure>"
    )


def _label_controls(controls: pd.DataFrame) -> str:
    """Recall and precision of planted flips, as a table with its explanation."""
    first = controls.iloc[0]
    rows = "".join(
        f"<tr><td>{_text(row.features)}</td><td>{_text(row.reported)}</td><td>{row.images:.0f}</td>"
        f"<td>{row.recall:.2f} ({row.recall_low:.2f}–{row.recall_high:.2f})</td>"
        f"<td>{row.precision:.2f} ({row.precision_low:.2f}–{row.precision_high:.2f})</td></tr>"
        for row in controls.itertuples()
    )
    return (
        "<h3>Controls: labels flipped on purpose</h3>"
        f"<p>{first['planted']} labels, chosen at random, were changed, {first['draws']} times. "
        "Recall is the fraction of these that is reported; precision is the fraction of the "
        "reports that was changed. Shown are means over the draws, with the range of 95 % of "
        "them. One minus the precision estimates the fraction of false reports where one label "
        "in twenty is wrong. It is too high where the given labels hold errors of their own, and "
        "too low where fewer labels are wrong. Real errors are often difficult images, so that "
        "fewer of them are found. What a model of the border finds does not come from the "
        "lungs.</p>"
        "<table><tr><th>model sees</th><th>reported</th><th>images</th><th>recall</th>"
        f"<th>precision</th></tr>{rows}</table>"
    )


# ---- shortcuts ----------------------------------------------------------------------------------


def _shortcuts(report: Report) -> str:
    found = [finding for finding in report.findings if finding.area == "shortcuts"]
    content = ""
    if len(report.shortcuts):
        views = "".join(_view(row) for _, row in report.shortcuts.iterrows())
        content = (
            "<p>How well each view of an image alone predicts its label: the AUC (mark) with its "
            "95 % interval (bar). The grey field is what labels dealt at random reach; a view that "
            "holds nothing of the disease should lie inside it.</p>"
            f'{views}<div class="view"><div></div><div></div>'
            '<div class="scale"><span>0</span><span>0.5</span><span>1</span></div></div>'
        )
    if len(report.controls):
        table = report.controls.to_html(index=False, border=0, float_format="%.3f", escape=True)
        content += f"<h3>Controls: data whose answer is known</h3>{table}"
    return content + _findings(found)


def _view(row: pd.Series) -> str:
    """One line of the plot; 0 to 1 is 0 to 1000 in the drawing."""
    text = f"{row['auc']:.3f} ({row['low']:.3f}–{row['high']:.3f})"
    if not np.isfinite(row[["auc", "low", "high"]].to_numpy(float)).all():
        drawn = ""
    else:
        auc, low, high = (1000 * float(row[name]) for name in ("auc", "low", "high"))
        null = row["null_high"]
        chance = 1000 * float(null) if np.isfinite(null) else 500.0
        drawn = (
            '<svg viewBox="0 0 1000 40" preserveAspectRatio="none" role="img" '
            f'aria-label="{_text(text)}">'
            f'<rect x="0" y="0" width="{chance:.1f}" height="40" fill="#ddd"/>'
            '<line x1="500" y1="0" x2="500" y2="40" stroke="#888" stroke-width="2"/>'
            f'<rect x="{low:.1f}" y="14" width="{max(high - low, 2):.1f}" height="12" '
            'fill="#0072b2"/>'
            f'<rect x="{auc - 4:.1f}" y="4" width="8" height="32" fill="#003f63"/></svg>'
        )
    kind = f' <span class="figure">{_text(row["kind"])}</span>'
    return (
        f'<div class="view"><div>{_text(row["view"])}{kind}</div>'
        f"<div>{_text(text)}</div><div>{drawn}</div></div>"
    )


# ---- protocol and checklists --------------------------------------------------------------------


def _protocol(findings: list[Finding]) -> str:
    found = [finding for finding in findings if finding.area == "protocol"]
    return _findings(found) if found else "<p>No run was given (--results).</p>"


def _checklists(checklists: pd.DataFrame) -> str:
    parts = [
        "<p>Items of REFORMS (Kapoor et al. 2024) and CLAIM (2024 update, Tejani et al.) that a "
        "program can judge, each with the gravest verdict of the checks that answer it. Both "
        "checklists ask for more than this.</p>"
    ]
    for name, items in checklists.groupby("checklist", sort=False):
        rows = (
            f'<div class="item"><div>{_badge(row.answer)}</div><div>item {_text(row.item)}</div>'
            f'<div>{_text(row.asks)}<div class="figure">{_text(row.answered_by)}</div></div></div>'
            for row in items.itertuples()
        )
        parts.append(f"<h3>{_text(name)}</h3>{''.join(rows)}")
    return "".join(parts)
