"""``python -m covid_lab audit``: all checks on one data set, printed and written.

The command writes

- ``audit.csv``, the findings, and ``audit.json``, the same with settings, versions, pairs and
  checklists,
- ``duplicates.csv``,
- ``labels.csv``, the images ranked by how far a model contradicts their labels, with
  ``label_controls.csv``, and ``label_readers.csv`` where a second reader is given,
- ``shortcuts.csv``, and ``controls.csv`` on request,
- ``audit.html``, which shows images of the data set and must therefore not be published.
"""

import dataclasses
import json
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from covid_lab.audit.checklists import answers
from covid_lab.audit.controls import controls_table
from covid_lab.audit.data_checks import DataAudit, audit_data, named_pairs
from covid_lab.audit.findings import Finding, as_table, figure
from covid_lab.audit.groups import clusters, grouped_split, joined_groups
from covid_lab.audit.labels import audit_labels
from covid_lab.audit.model_shortcuts import audit_model
from covid_lab.audit.page import Report, page
from covid_lab.audit.protocol import audit_protocol
from covid_lab.audit.second_reader import COLUMN, second_labels
from covid_lab.audit.shortcuts import audit_shortcuts
from covid_lab.datasets import described, open_dataset, write_splits
from covid_lab.progress import Progress
from covid_lab.reading.manifests import content_of, read_table
from covid_lab.reading.roots import stem_of
from covid_project.data import CLASSES, DataError, Dataset
from covid_project.files import versions, write_csv, write_text

STAGES = ("baseline", "fine_tuned")  # tested models, whose own use of shortcuts is audited


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to audit, and where to write: the options of the command, see its help."""

    data: Path
    results: Path | None = None
    out: Path | None = None
    masks: Path | None = None
    classes: tuple[str, ...] | None = None
    table: Path | None = None
    columns: tuple[tuple[str, str], ...] = ()
    finding: str | None = None
    pattern: str | None = None
    metadata: Path | None = None
    write_splits: Path | None = None
    controls: bool = False
    seed: int = 0


def run(request: Request) -> list[Finding]:
    """Audit a data set, print the findings and write the files.

    Parameters
    ----------
    request : Request
        What to audit, and where to write.

    Returns
    -------
    list of Finding
        Of all areas.

    Raises
    ------
    DataError
        Data, pattern, metadata or masks that cannot be used.

    Examples
    --------
    >>> findings = run(Request(data=Path("covid_xray"), out=Path("audit")))
    data: covid_xray, 48 images...
    >>> findings[0].check, findings[0].verdict
    ('every image can be read', 'pass')
    """
    report = audit(request)
    print(_as_text(report.findings))
    out = _folder(request)
    _write(report, out)
    print(f"written: {out}: audit.html to read, audit.csv, audit.json and the tables")
    if request.write_splits is not None:
        table = _kept_together(report.data).table
        splits = grouped_split(table["label"], table["group"], seed=request.seed)
        write_splits(request.write_splits, report.data.dataset, splits)
        print(f"written: {request.write_splits}, a split that keeps patients and copies together")
    return report.findings


def audit(request: Request) -> Report:
    """Audit a data set without writing anything but a cache of the network's features.

    Parameters
    ----------
    request : Request
        What to audit; ``write_splits`` is ignored.

    Returns
    -------
    Report
        Findings and tables of all areas.

    Raises
    ------
    DataError
        Data, pattern, metadata or masks that cannot be used.
    """
    dataset = _opened(request)
    print(described(dataset, request.data.name), flush=True)
    metadata = None if request.metadata is None else _table(request.metadata)
    second = None
    if metadata is not None and COLUMN in metadata:
        second = second_labels(metadata, dataset)
        metadata = metadata if "patient" in {c.casefold() for c in metadata} else None
    progress = Progress()
    how = {"seed": request.seed, "progress": progress}
    data = audit_data(dataset, pattern=request.pattern, metadata=metadata, **how)
    if data.patients:
        print(data.patients, flush=True)
    together = _kept_together(data)
    cache = _folder(request) / "cache"
    labels = audit_labels(together, second=second, cache=cache, **how)
    findings = [*data.findings, *labels.findings]
    shortcuts = pd.DataFrame()
    if len(data.dataset.classes) > 1:
        found = audit_shortcuts(together, masks=request.masks, **how)
        findings += found.findings
        shortcuts = found.table
    else:
        reason = "two classes are needed, and there is only one"
        findings.append(Finding("shortcuts", "shortcuts", "not applicable", reason))
    if request.results is not None:
        findings += audit_protocol(request.results, dataset)
        findings += _models(request, data)
    controls = pd.DataFrame()
    if request.controls:
        controls = controls_table(request.seed, progress)
    return Report(
        name=request.data.name,
        findings=findings,
        data=data,
        pairs=named_pairs(data),
        labels=labels,
        shortcuts=shortcuts,
        controls=controls,
        checklists=answers(findings),
        settings=_settings(request, data),
    )


def _write(report: Report, out: Path) -> None:
    """Write the tables, ``audit.json`` and the page."""
    findings = as_table(report.findings)
    write_csv(out / "audit.csv", findings)
    write_csv(out / "duplicates.csv", report.pairs)
    tables = {
        "label_controls": report.labels.controls,
        "label_readers": report.labels.readers,
        "shortcuts": report.shortcuts,
        "controls": report.controls,
    }
    for name, table in {"labels": report.labels.table, **tables}.items():
        if len(table):
            write_csv(out / f"{name}.csv", table)
    everything = {
        **report.settings,
        "findings": _records(findings),
        "unreadable": report.data.unreadable,
        "pairs": _records(report.pairs),
        "contradicted_labels": _records(report.labels.contradicted),
        **{name: _records(table) for name, table in tables.items()},
        "checklists": _records(report.checklists),
    }
    write_text(out / "audit.json", json.dumps(everything, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "audit.html", page(report))


def _as_text(findings: list[Finding]) -> str:
    """Set findings as a table for a terminal: verdict, check, figure with interval, finding."""
    width = max(shutil.get_terminal_size().columns, 80)
    rows = [("verdict", "check", "figure (95 % interval)", "finding")]
    rows += [(f.verdict, f.check, figure(f), f.found) for f in findings]
    sizes = [max(len(row[column]) for row in rows) for column in range(3)]
    indent = sum(sizes) + 6
    if indent > width - 30:  # too narrow for a fourth column: the finding goes below
        indent = 4
    lines = []
    for row in rows:
        start = "  ".join(text.ljust(size) for text, size in zip(row, sizes, strict=False))
        found = textwrap.wrap(row[3], width - indent) or [""]
        if indent == 4:
            lines += [start.rstrip(), *(" " * indent + line for line in found)]
        else:
            lines += [f"{start}  {found[0]}", *(" " * indent + line for line in found[1:])]
    return "\n".join(lines)


def _opened(request: Request) -> Dataset:
    """Open the data with the run's split, or with their own where that split is of other data."""
    splits = None if request.results is None else request.results / "splits.csv"
    how = {
        "classes": request.classes,
        "as_found": True,
        "table": request.table,
        "columns": dict(request.columns),
        "finding": request.finding,
    }
    try:
        return open_dataset(request.data, splits_file=splits, **how)
    except DataError:
        # Where the split is not the reason, this fails in the same way.
        return open_dataset(request.data, **how)


def _models(request: Request, data: DataAudit) -> list[Finding]:
    """Audit the run's final models for shortcuts, where models and test images are available."""
    stages = [s for s in STAGES if list((request.results / "models").glob(f"{s}*.keras"))]
    rows = data.dataset.rows("test")
    if not stages or not len(rows) or data.dataset.classes != CLASSES:
        return []
    from covid_lab.verify import NotKept, load_kept  # TensorFlow, which takes seconds to load
    from covid_project.models import WeightsUnavailable

    findings = []
    for stage in stages:
        try:
            model, _ = load_kept(request.results, stage)
        except (NotKept, WeightsUnavailable) as error:
            print(f"the model {stage} is left out: {error}")
            continue
        print(f"the model {stage} is audited for shortcuts", flush=True)
        found = audit_model(model, data.dataset, rows, masks=request.masks, seed=request.seed)
        findings += [dataclasses.replace(f, check=f"{stage}: {f.check}") for f in found]
    return findings


def _kept_together(data: DataAudit) -> Dataset:
    """Join patients and copies into groups, which cross-validation keeps together."""
    table = data.dataset.table
    groups = joined_groups(table["group"], clusters(len(table), data.pairs))
    return dataclasses.replace(data.dataset, table=table.assign(group=groups))


def _settings(request: Request, data: DataAudit) -> dict:
    options = {
        key: value.name if isinstance(value, Path) else value  # no machine's paths
        for key, value in dataclasses.asdict(request).items()
        if key not in ("out", "write_splits")
    }
    table = data.dataset.table
    counts = table.groupby(["split", "label"], sort=False).size()
    return {
        "settings": options,
        "seed": request.seed,
        "versions": versions(),
        "data": {
            "name": request.data.name,
            "fingerprint": data.dataset.fingerprint,
            "phantoms": data.dataset.is_phantom,
            "classes": list(data.dataset.classes),
            "not_used": {r: len(names) for r, names in data.dataset.passed_over.items()},
            "notes": [*data.dataset.notes, *([data.patients] if data.patients else [])],
            "images": {
                f"{split or 'no split'}/{data.dataset.classes[label]}": int(count)
                for (split, label), count in counts.items()
            },
        },
    }


def _folder(request: Request) -> Path:
    if request.out is not None:
        return request.out
    if request.results is not None:
        return request.results / "audit"
    return Path("results") / "audit" / stem_of(request.data)


def _table(path: Path) -> pd.DataFrame:
    ((name, content),) = content_of(path).items()
    return read_table(content, name)


def _records(table: pd.DataFrame) -> list[dict]:
    """Rows as JSON needs them: null for NaN, plain numbers."""
    return json.loads(table.to_json(orient="records", force_ascii=False))
