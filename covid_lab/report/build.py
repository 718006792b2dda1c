"""Write what the report reads, check it, and typeset it with LaTeX."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from covid_lab.report import checks
from covid_lab.report.evidence import Evidence, collect
from covid_project.files import fingerprint, read_csv, whole_file, write_text
from covid_project.settings import PROJECT

SOURCE = PROJECT / "Report.tex"
OBSERVATIONS = "observations.tex"  # what people saw in this run, in the report/ of its results
RECORD = "built.json"  # what the PDF was made from
ENGINES = {
    "latexmk": ["latexmk", "-pdf", "-g", "-f", "-interaction=nonstopmode", "-file-line-error",
                "Report.tex"],
    "tectonic": ["tectonic", "--keep-logs", "Report.tex"],
}  # fmt: skip
RUNS = 3  # after an error latexmk ends before the references are resolved
INSTALL = (
    "no LaTeX: install latexmk (Debian: apt install latexmk texlive-latex-extra "
    "texlive-fonts-recommended; macOS: MacTeX; Windows: MiKTeX) or tectonic "
    "(https://tectonic-typesetting.github.io), then run the same command again"
)


class ReportFault(RuntimeError):
    """The PDF cannot be made; the message says why."""


def files_of(evidence: Evidence) -> dict[str, str]:
    """Write the evidence as LaTeX files.

    Parameters
    ----------
    evidence : Evidence

    Returns
    -------
    dict of str to str
        Text of ``values.tex`` and of each ``table_<name>.tex``, by file name.
    """
    head = "".join(f"% from {name} {print_}\n" for name, print_ in evidence.sources.items())
    values = "".join(
        f"\\definevalue{{{key}}}{{{value}}}\n" for key, value in evidence.values.items()
    )
    tables = {f"table_{name}.tex": f"{head}{table}%\n" for name, table in evidence.tables.items()}
    return {"values.tex": head + values, **tables}


def write_evidence(results: Path) -> Evidence:
    """Collect a run's evidence and write it to ``report/`` of the results.

    Tables of an earlier report that are no longer made are deleted.

    Parameters
    ----------
    results : Path
        Folder of a run.

    Returns
    -------
    Evidence
    """
    evidence = collect(results)
    folder = results / "report"
    files = files_of(evidence)
    for name, text in files.items():
        write_text(folder / name, text)
    for path in folder.glob("table_*.tex"):
        if path.name not in files:
            path.unlink()  # of an earlier report
    return evidence


def report_text(results: Path, source: Path, evidence: Evidence) -> str:
    """Return the report's source as it is typeset for this run.

    Parameters
    ----------
    results : Path
        Folder of the run.
    source : Path
        ``Report.tex``.
    evidence : Evidence

    Returns
    -------
    str
        With the observations that belong to the run, and without the passages whose values the run
        lacks.
    """
    text = checks.filled(source.read_text(encoding="utf-8"), _observations(results))
    return checks.applicable(text, evidence)


def unfilled_places(results: Path, source: Path) -> list[str]:
    """Return the places of the report that the team has not filled.

    Parameters
    ----------
    results : Path
        Folder of the run.
    source : Path
        ``Report.tex``.

    Returns
    -------
    list of str
        One line for each.
    """
    text = source.read_text(encoding="utf-8")
    return checks.marked_places(checks.filled(text, _observations(results)))


def _observations(results: Path) -> dict[str, str]:
    path = results / "report" / OBSERVATIONS
    return checks.observations(path.read_text(encoding="utf-8")) if path.is_file() else {}


def source_faults(results: Path, source: Path, evidence: Evidence) -> list[str]:
    """Return what stops the hand-in, judged by the text, the evidence and the figures only.

    Parameters
    ----------
    results : Path
        Folder of the run.
    source : Path
        ``Report.tex``.
    evidence : Evidence

    Returns
    -------
    list of str
        One line for each fault. Missing figures are no fault here: those that show images of the
        data set are not distributed.
    """
    text = report_text(results, source, evidence)
    seen = results / "report" / OBSERVATIONS
    ledger = read_csv(results / "test_ledger.csv").itertuples()
    models = {row.stage: row.model for row in ledger if row.model != "none"}
    return [
        *evidence.missing,
        *checks.undefined(text, evidence),
        *checks.references(text),
        *checks.stale_files(files_of(evidence), results / "report"),
        *checks.stale_figures(text, results),
        *(checks.stale_observations(seen.read_text("utf-8"), models) if seen.is_file() else []),
    ]


def source_warnings(results: Path, source: Path, evidence: Evidence) -> list[str]:
    """Return what deserves a look in the text and stops nothing.

    Parameters
    ----------
    results : Path
        Folder of the run.
    source : Path
        ``Report.tex``.
    evidence : Evidence

    Returns
    -------
    list of str
        One line for each warning.
    """
    text = report_text(results, source, evidence)
    return [
        *(f"some sentences are left out: {line}" for line in evidence.extras_missing[:1]),
        *checks.typed_results(text, evidence),
        *checks.loose_ends(text),
    ]


def missing_figures(results: Path, source: Path, evidence: Evidence) -> list[str]:
    """Return the figures that the report shows and the run has not made.

    Parameters
    ----------
    results : Path
        Folder of the run.
    source : Path
        ``Report.tex``.
    evidence : Evidence

    Returns
    -------
    list of str
        One line for each figure.
    """
    return checks.missing_figures(report_text(results, source, evidence), results)


def engine() -> str | None:
    """Find an installed LaTeX.

    Returns
    -------
    str or None
        A key of `ENGINES`; None where neither is installed.
    """
    return next((name for name in ENGINES if shutil.which(name)), None)


def build(results: Path, source: Path = SOURCE) -> Path:
    """Typeset the report as ``report/Report.pdf`` of the results.

    LaTeX continues after an error. ``report/built.json`` records everything that the PDF was
    made from, its number of pages, the errors, and the references that LaTeX could not resolve,
    so that a stale PDF is noticed.

    Parameters
    ----------
    results : Path
        Folder of the run, with its evidence written.
    source : Path
        The report's LaTeX source.

    Returns
    -------
    Path
        The PDF.

    Raises
    ------
    ReportFault
        LaTeX is not installed, or made no PDF.
    """
    chosen = engine()
    if chosen is None:
        raise ReportFault(INSTALL)
    folder = results / "report"
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        for name, path in inputs(results, source).items():
            shutil.copy(path, place / name)
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "0"}  # the same text is the same file
        for _ in range(RUNS):
            done = subprocess.run(
                ENGINES[chosen],
                cwd=place,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
            )
            path = place / "Report.log"
            log = path.read_text("utf-8", errors="replace") if path.is_file() else done.stderr
            errors = checks.latex_errors(log)
            if not errors:
                break
        if not (place / "Report.pdf").is_file():
            write_text(folder / "Report.log", log)
            reason = "; ".join(errors) or done.stderr[-500:]
            raise ReportFault(
                f"{chosen} made no PDF: {reason}\n(the whole log is in {folder / 'Report.log'})"
            )
        (folder / "Report.log").unlink(missing_ok=True)  # of an earlier failure
        with whole_file(folder / "Report.pdf") as part:
            shutil.copyfile(place / "Report.pdf", part)
    pages = re.search(r"Output written on \S+ \((\d+) pages?", log.replace("\n", ""))
    record = {
        "pages": int(pages.group(1)) if pages else 0,
        "errors": errors,
        "unresolved": checks.unresolved(log),
        "made_from": _fingerprints(results, source),
    }
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
    return folder / "Report.pdf"


def inputs(results: Path, source: Path = SOURCE) -> dict[str, Path]:
    """Return the files that the PDF is made from.

    Parameters
    ----------
    results : Path
        Folder of the run.
    source : Path
        The report's LaTeX source.

    Returns
    -------
    dict of str to Path
        The text, its values and tables, and its figures as far as they exist, by the name that
        LaTeX uses.
    """
    text = source.read_text(encoding="utf-8")
    figures = [checks.figure_path(results, name) for name in checks.figure_names(text)]
    read = [*sorted((results / "report").glob("*.tex")), *filter(Path.is_file, figures)]
    return {"Report.tex": source, **{path.name: path for path in read}}


def pdf_faults(results: Path, source: Path = SOURCE) -> list[str]:
    """Return what is wrong with the PDF.

    Parameters
    ----------
    results : Path
        Folder of the run.
    source : Path
        The report's LaTeX source.

    Returns
    -------
    list of str
        One line for each fault: a missing or stale PDF, its length, LaTeX's errors, and unresolved
        references.
    """
    folder = results / "report"
    if not (folder / "Report.pdf").is_file() or not (folder / RECORD).is_file():
        return [f"{folder / 'Report.pdf'} is missing: make report makes it"]
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    now, then = _fingerprints(results, source), record["made_from"]
    changed = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    stale = f"Report.pdf is stale: {', '.join(changed)} changed since; make report makes it again"
    return [
        *([stale] if changed else []),
        *checks.page_count(record["pages"]),
        *record["errors"],
        *record["unresolved"],
    ]


def _fingerprints(results: Path, source: Path) -> dict[str, str]:
    read = inputs(results, source)
    return {name: fingerprint(path.read_bytes()) for name, path in read.items()}
