"""Write what the report reads, check it, and typeset it with LaTeX."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from functools import cached_property
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
    files = _files_of(evidence)
    for name, text in files.items():
        write_text(folder / name, text)
    for path in folder.glob("table_*.tex"):
        if path.name not in files:
            path.unlink()  # of an earlier report
    return evidence


def _files_of(evidence: Evidence) -> dict[str, str]:
    """Return the text of ``values.tex`` and of each ``table_<name>.tex``, by file name."""
    head = "".join(f"% from {name} {print_}\n" for name, print_ in evidence.sources.items())
    values = "".join(
        f"\\definevalue{{{key}}}{{{value}}}\n" for key, value in evidence.values.items()
    )
    tables = {f"table_{name}.tex": f"{head}{table}%\n" for name, table in evidence.tables.items()}
    return {"values.tex": head + values, **tables}


class Report:
    """The report of a run: its text, what is wrong with it, and its PDF.

    Parameters
    ----------
    results : Path
        Folder of a run.
    source : Path
        The report's LaTeX source.
    """

    def __init__(self, results: Path, source: Path = SOURCE):
        self.results, self.source = results, source
        self.folder = results / "report"

    @cached_property
    def evidence(self) -> Evidence:
        """What the run measured.

        Returns
        -------
        Evidence
        """
        return collect(self.results)

    @property
    def text(self) -> str:
        """The source as it is typeset for this run, with its observations and without comments.

        Returns
        -------
        str
        """
        return checks.applicable(self._filled(), self.evidence)

    def _filled(self) -> str:
        path = self.folder / OBSERVATIONS
        seen = checks.observations(path.read_text("utf-8")) if path.is_file() else {}
        return checks.filled(self.source.read_text("utf-8"), seen)

    def unfilled_places(self) -> list[str]:
        """List the places that the team has not filled.

        Returns
        -------
        list of str
        """
        return checks.marked_places(self._filled())

    def source_faults(self) -> list[str]:
        """List what stops the hand-in, judged by text, evidence and existing figures only.

        Returns
        -------
        list of str
        """
        text, seen = self.text, self.folder / OBSERVATIONS
        ledger = read_csv(self.results / "test_ledger.csv").itertuples()
        models = {row.stage: row.model for row in ledger if row.model != "none"}
        return [
            *self.evidence.missing,
            *checks.undefined(text, self.evidence),
            *checks.references(text),
            *checks.stale_files(_files_of(self.evidence), self.folder),
            *checks.stale_figures(text, self.results),
            *(checks.stale_observations(seen.read_text("utf-8"), models) if seen.is_file() else []),
        ]

    def warnings(self) -> list[str]:
        """List what deserves a look in the text and stops nothing.

        Returns
        -------
        list of str
        """
        return [
            *(f"some sentences are left out: {line}" for line in self.evidence.extras_missing[:1]),
            *checks.typed_results(self.text, self.evidence),
            *checks.loose_ends(self.text),
        ]

    def missing_figures(self) -> list[str]:
        """List the figures that the report shows and the run has not made.

        Returns
        -------
        list of str
        """
        return checks.missing_figures(self.text, self.results)

    def pdf_faults(self) -> list[str]:
        """List what is wrong with the PDF: missing, stale, too long, or unresolved.

        Returns
        -------
        list of str
        """
        pdf, built = self.folder / "Report.pdf", self.folder / RECORD
        if not pdf.is_file() or not built.is_file():
            return [f"{pdf} is missing: make report makes it"]
        record = json.loads(built.read_text(encoding="utf-8"))
        now, then = self._fingerprints(), record["made_from"]
        changed = sorted(
            file for file in now.keys() | then.keys() if now.get(file) != then.get(file)
        )
        stale = (
            f"Report.pdf is stale: {', '.join(changed)} changed since; make report makes it again"
        )
        return [
            *([stale] if changed else []),
            *checks.page_count(record["pages"]),
            *record["errors"],
            *record["unresolved"],
        ]

    def faults(self) -> list[str]:
        """List everything that stops the hand-in, except the places that the team must fill.

        Returns
        -------
        list of str
        """
        return [*self.source_faults(), *self.missing_figures(), *self.pdf_faults()]

    def typeset(self) -> Path:
        """Typeset the report as ``report/Report.pdf`` of the results.

        LaTeX continues after an error. ``report/built.json`` records everything that the PDF was
        made from, its number of pages, the errors, and the references that LaTeX could not resolve,
        so that a stale PDF is noticed.

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
        folder = self.folder
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary)
            for name, path in self._inputs().items():
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
            "made_from": self._fingerprints(),
        }
        write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
        return folder / "Report.pdf"

    def _inputs(self) -> dict[str, Path]:
        """Files that the PDF is made from, by name."""
        text = self.source.read_text(encoding="utf-8")
        figures = [checks.figure_path(self.results, name) for name in checks.figure_names(text)]
        read = [*sorted(self.folder.glob("*.tex")), *filter(Path.is_file, figures)]
        return {"Report.tex": self.source, **{path.name: path for path in read}}

    def _fingerprints(self) -> dict[str, str]:
        return {name: fingerprint(path.read_bytes()) for name, path in self._inputs().items()}


def engine() -> str | None:
    """Find an installed LaTeX.

    Returns
    -------
    str or None
        A key of `ENGINES`; None where neither is installed.
    """
    return next((name for name in ENGINES if shutil.which(name)), None)
