"""Checks of the report: what must be mended before the hand-in, and what deserves a look.

Each check returns its complaints, one line each, or an empty list. ``source`` is the LaTeX source
of the report, ``results`` the folder of the run, and ``log`` the text of LaTeX's log.
"""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path

from covid_lab.report.evidence import Evidence
from covid_project.data import CLASSES
from covid_project.files import figure_stamp, read_csv

QUESTIONS = 24
LEAST_PAGES, MOST_PAGES = 10, 15
METRIC = re.compile(r"accura|AUC|sensitiv|specific|precision|F_?1|MCC|Brier|ECE|loss", re.I)
NEAR = 80  # characters within which a metric's name makes a number look like a result
NAMED, LISTED = 3, 5  # macros in a warning, undefined keys in a complaint

# Commands whose digits are keys or page layout.
_KEYS = (
    r"\\(?:val|choice|ifyes|ifmade|label|ref|eqref|cite|input|runtable|made|narrowfigure|widefigure)\{[^}]*\}",
    r"\\begin\{minipage\}(?:\[\w\])?\{[^}]*\}",
    r"\\(?:setlength|includegraphics|vspace|hspace)\*?(?:\[[^]]*\])?(?:\{[^}]*\})+",
)
_HINT = r"(?:[^{}#]|\{[^{}]*\})+"  # text with commands that take an argument
_IFMADE = re.compile(r"\\ifmade\{([^}#]+)\}\{")
# A number with decimals that is no length, or a percentage.
_NUMBER = re.compile(
    r"(?<![\w.])\d+\.\d+(?!\d|\s*\\\w*(?:width|height)|(?:[cm]m|em|pt|in)\b)(?P<percent>\s*%)?"
    r"|(?<![\w.])\d+(?P<whole>\s*%)"
)


def _text_of(source: str) -> str:
    """Remove the comments from LaTeX source."""
    return re.sub(r"(?<!\\)%.*", "", source)


def applicable(source: str, evidence: Evidence) -> str:
    r"""Remove the passages that this run has no values for.

    Parameters
    ----------
    source : str
    evidence : Evidence

    Returns
    -------
    str
        The source without the comments and without each ``\ifmade{key}{...}`` whose value was not
        made. The lines keep their numbers.
    """
    text, start = _text_of(source), 0
    while match := _IFMADE.search(text, start):
        end = _closing_brace(text, match.end())
        if match.group(1) not in evidence.values:
            text = text[: match.start()] + _blank(text[match.start() : end]) + text[end:]
        start = match.end()
    return text


def observations(text: str) -> dict[str, str]:
    r"""Read the observations of ``observations.tex``.

    Parameters
    ----------
    text : str

    Returns
    -------
    dict of str to str
        The text of each ``\observation{key}{text}``, by key.
    """
    text = _text_of(text)
    return {
        match.group(1): " ".join(text[match.end() : _closing_brace(text, match.end()) - 1].split())
        for match in re.finditer(r"\\observation\{([^}#]+)\}\{", text)
    }


def filled(source: str, seen: Mapping[str, str]) -> str:
    r"""Put the observations in place of each ``\observe{key}{hint}``.

    Parameters
    ----------
    source : str
    seen : mapping of str to str

    Returns
    -------
    str
        The source without comments; hints without an observation stay.
    """

    def put(match: re.Match) -> str:
        if match.group(1) not in seen:
            return match.group()
        return seen[match.group(1)] + "\n" * match.group().count("\n")  # lines keep their numbers

    return re.sub(rf"\\observe\{{([^}}#]+)\}}\{{{_HINT}\}}", put, _text_of(source))


def stale_observations(text: str, models: Mapping[str, str]) -> list[str]:
    """Check that the observations are about the models of this run.

    Parameters
    ----------
    text : str
        Content of ``observations.tex``; its first line names the models.
    models : mapping of str to str
        Fingerprint of the tested model of each stage.

    Returns
    -------
    list of str
    """
    about = "% about " + ", ".join(f"{stage} {model}" for stage, model in models.items())
    if not text or text.splitlines()[0].strip() == about:
        return []
    return [
        "observations.tex is not about the models of this run: look at its figures and tables, "
        f"write what you see, and begin the file with the line {about!r}"
    ]


def _closing_brace(text: str, start: int) -> int:
    """Return the place after the brace that closes the one before ``start``."""
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text[start:], flags=re.S):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return start + match.end()
    return len(text)


# ---- what only warns ----------------------------------------------------------------------------


def typed_results(source: str, evidence: Evidence) -> list[str]:
    """Warn of typed numbers that look like results of the run.

    These are numbers with at least two decimals, and percentages, which equal a value of the run,
    or which stand beside the name of a metric and equal neither a value nor a number of a table.
    Numbers are compared to the decimals that are typed. The bibliography is not read.

    Parameters
    ----------
    source : str
    evidence : Evidence

    Returns
    -------
    list of str
    """
    head, _, text = _text_of(source).partition(r"\begin{document}")
    text = text.partition(r"\begin{thebibliography}")[0]
    for pattern in _KEYS:
        text = re.sub(pattern, lambda match: _blank(match.group()), text)
    text = _plain(text)
    made = {key: _numbers(value) for key, value in evidence.values.items()}
    tables = [number for table in evidence.tables.values() for number in _numbers(table)]
    line = head.count("\n") + 1
    warnings = []
    for match in _NUMBER.finditer(text):
        (typed,) = _numbers(match.group())
        if typed[1] < 2:
            continue
        where = f"Report.tex, line {line + text.count(chr(10), 0, match.start())}"
        shown = match.group().strip()
        keys = [key for key, numbers in made.items() if any(_same(typed, n) for n in numbers)]
        near = METRIC.search(text[max(match.start() - NEAR, 0) : match.end() + NEAR])
        if keys:
            macros = ", ".join(rf"\val{{{key}}}" for key in keys[:NAMED])
            warnings.append(f"{where}: {shown} is typed; it is a value of the run: {macros}")
        elif near and not any(_same(typed, number) for number in tables):
            warnings.append(
                f"{where}: {shown} beside {near.group()!r} is typed, and no value of this run"
            )
    return warnings


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def _plain(latex: str) -> str:
    return latex.replace("$-$", "-").replace(r"\,\%", "%").replace(r"\%", "%")


def _numbers(latex: str) -> list[tuple[float, int]]:
    """Return the numbers of a text with their decimals; 95 % is 0.95 with two decimals."""
    found = []
    for match in _NUMBER.finditer(_plain(latex)):
        digits = match.group().rstrip("% \n")
        percent = match["percent"] or match["whole"]
        decimals = len(digits.partition(".")[2]) + (2 if percent else 0)
        found.append((float(digits) / (100 if percent else 1), decimals))
    return found


def _same(typed: tuple[float, int], made: tuple[float, int]) -> bool:
    """Whether a number of the run, rounded to the decimals that are typed, is the typed one."""
    return made[1] >= typed[1] and abs(typed[0] - made[0]) < 0.5001 * 10.0 ** -typed[1]


def loose_ends(source: str) -> list[str]:
    """Find figures and tables that are never referred to, uncited references, lost questions.

    Parameters
    ----------
    source : str

    Returns
    -------
    list of str
    """
    text = _text_of(source)
    floats = {label for label in _labels(text) if label.startswith(("fig:", "tab:"))}
    questions = len(re.findall(r"\\question\{", text))
    few = f"{questions} questions are answered, the sheet asks {QUESTIONS}"
    return [
        *(f"the reference {key} is never cited" for key in sorted(_items(text) - _cited(text))),
        *(f"{key} is never referred to" for key in sorted(floats - _referred(text))),
        *([few] if questions != QUESTIONS else []),
    ]


# ---- what stops the hand-in ---------------------------------------------------------------------


def undefined(source: str, evidence: Evidence) -> list[str]:
    """Find the values and tables that the report uses and this run has not made.

    Parameters
    ----------
    source : str
    evidence : Evidence

    Returns
    -------
    list of str
    """
    text = _text_of(source)
    complaints = []
    for kind, pattern, made in (
        ("value", r"\\(?:val|choice|ifyes)\{([^}#]+)\}", set(evidence.values)),
        ("table", r"\\(?:input\{table_|runtable\{)([^}#]+)\}", set(evidence.tables)),
    ):
        lost = sorted(set(re.findall(pattern, text)) - made)
        more = f" and {len(lost) - LISTED} more" if len(lost) > LISTED else ""
        if lost:
            names = ", ".join(lost[:LISTED])
            complaints.append(f"Report.tex uses a {kind} that this run has not made: {names}{more}")
    return complaints


def references(source: str) -> list[str]:
    """Find references and citations without a target, and targets that occur twice.

    Parameters
    ----------
    source : str

    Returns
    -------
    list of str
    """
    text = _text_of(source)
    labels = _labels(text)
    twice = {label for label in labels if labels.count(label) > 1}
    lost = sorted(_cited(text) - _items(text))
    return [
        *(f"\\ref to {key}, which is nowhere" for key in sorted(_referred(text) - set(labels))),
        *(f"\\cite of {key}, which is not among the references" for key in lost),
        *(f"the label {key} is there twice" for key in sorted(twice)),
    ]


def _labels(text: str) -> list[str]:
    labels = re.findall(r"\\label\{([^}#]+)\}", text)
    return labels + [
        f"fig:{name}" for name in re.findall(r"\\(?:narrow|wide)figure\{([^}#]+)\}", text)
    ]


def _referred(text: str) -> set[str]:
    return set(re.findall(r"\\(?:eq)?ref\{([^}#]+)\}", text))


def _cited(text: str) -> set[str]:
    found = re.findall(r"\\cite(?:\[[^]]*\])?\{([^}#]+)\}", text)
    return {key.strip() for keys in found for key in keys.split(",")}


def _items(text: str) -> set[str]:
    return set(re.findall(r"\\bibitem\{([^}#]+)\}", text))


def marked_places(source: str) -> list[str]:
    """Find the places that the team has not filled.

    Parameters
    ----------
    source : str

    Returns
    -------
    list of str
    """
    place = rf"\\(?:teamplace|observe\{{[^}}#]+\}})\{{({_HINT})\}}"
    found = re.findall(place, _text_of(source))
    return [f"to be written by the team: {' '.join(what.split())}" for what in found]


def figure_names(source: str) -> list[str]:
    """List the figures that the report shows.

    Parameters
    ----------
    source : str

    Returns
    -------
    list of str
        Names without suffix, in order.
    """
    return re.findall(r"\\(?:made|narrowfigure|widefigure)\{([^}#]+)\}", _text_of(source))


def figure_path(results: Path, name: str) -> Path:
    """Return the path of a figure, whether it exists or not.

    Parameters
    ----------
    results : Path
    name : str

    Returns
    -------
    Path
    """
    return results / "figures" / f"{name}.pdf"


def stale_figures(source: str, results: Path) -> list[str]:
    """Find figures that were made from other tables or data than those of the run.

    Parameters
    ----------
    source : str
    results : Path

    Returns
    -------
    list of str
        One line for each figure. Missing figures are not named.
    """
    record = results / "run.json"
    data = json.loads(record.read_text(encoding="utf-8"))["data"] if record.is_file() else ""
    complaints = []
    for name in figure_names(source):
        path = figure_path(results, name)
        if not path.is_file():
            continue
        found = re.search(rb"/Keywords \(([^)]*)\)", path.read_bytes())
        stamp = found.group(1).decode("latin-1") if found else ""
        tables = re.findall(r"; ([^=;]+)=", stamp)
        missing = [table for table in tables if not (results / table).is_file()]
        if missing or stamp != figure_stamp(results, data, tables):
            now = figure_stamp(results, data, [table for table in tables if table not in missing])
            old = [part for part in stamp.split("; ") if part not in now.split("; ")]
            changed = ", ".join(part.partition("=")[0] for part in old) or "nothing it names"
            complaints.append(
                f"{path.name} is stale: made from another {changed}; run its notebook again"
            )
    return complaints


def missing_figures(source: str, results: Path) -> list[str]:
    """Find the figures that the report shows and the run has not made.

    A Grad-CAM group without images, such as misclassified normal ones, has no figure.

    Parameters
    ----------
    source : str
    results : Path

    Returns
    -------
    list of str
    """
    explained = read_csv(results / "gradcam.csv")
    members = {
        (CLASSES[row.label], "correct" if row.predicted == row.label else "misclassified")
        for row in explained.itertuples()
    }
    empty = {
        f"images_gradcam_{group[0].lower()}_{group[1]}"
        for group in itertools.product(CLASSES, ("correct", "misclassified"))
        if group not in members
    }
    return [
        f"figures/{name}.pdf is missing: run the notebook that makes it"
        for name in figure_names(source)
        if name not in empty and not figure_path(results, name).is_file()
    ]


def stale_files(expected: Mapping[str, str], folder: Path) -> list[str]:
    """Find files of values and tables that differ from what the results say now.

    Parameters
    ----------
    expected : mapping of str to str
        Text of each file, by name.
    folder : Path

    Returns
    -------
    list of str
    """
    complaints = []
    for name, text in expected.items():
        path = folder / name
        if not path.is_file():
            complaints.append(f"{path} is missing: python -m covid_lab report makes it")
        elif path.read_text(encoding="utf-8") != text:
            now, then = (_sources(content) for content in (text, path.read_text(encoding="utf-8")))
            changed = sorted(source for source in now if then.get(source) != now[source])
            reason = f"{', '.join(changed)} changed since" if changed else "it was edited by hand"
            complaints.append(
                f"{path} is stale: {reason}; python -m covid_lab report makes it again"
            )
    return complaints


def _sources(text: str) -> dict[str, str]:
    return dict(re.findall(r"^% from (\S+) (\w+)$", text, flags=re.M))


def page_count(pages: int) -> list[str]:
    """Check that the report is as long as the sheet asks.

    Parameters
    ----------
    pages : int

    Returns
    -------
    list of str
    """
    fits = LEAST_PAGES <= pages <= MOST_PAGES
    return [] if fits else [f"the report has {pages} pages; allowed: {LEAST_PAGES} to {MOST_PAGES}"]


def latex_errors(log: str) -> list[str]:
    """Read the errors in LaTeX's log.

    Parameters
    ----------
    log : str

    Returns
    -------
    list of str
        One line for each, with the line of the source, such as an unknown command.
    """
    found = re.findall(r"^(?:\./)?(Report\.tex):(\d+): (.*)\n(.*)", log, flags=re.M)
    found = [f"{file}, line {line}: LaTeX: {what} {more}" for file, line, what, more in found]
    return list(dict.fromkeys(found)) or re.findall(r"^! .*", log, flags=re.M)


def unresolved(log: str) -> list[str]:
    """Read from LaTeX's log which references and citations it could not resolve.

    Parameters
    ----------
    log : str

    Returns
    -------
    list of str
    """
    log = log.replace("\n", " ")  # LaTeX breaks the lines of its log anywhere
    found = re.findall(r"(?:Reference|Citation) `([^']+)' on page \w+ +undefined", log)
    return [f"LaTeX: {key} is undefined" for key in dict.fromkeys(found)]
