"""Checks of the report: nothing typed, nothing stale, nothing unresolved.

Each check returns its complaints, one line each; none means that all is well.
"""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path

from covid_lab.report.evidence import Evidence
from covid_project.data import CLASSES
from covid_project.files import figure_stamp, read_csv

NAMES = ("COVID-19", "ResNet50V2", "MobileNetV2", "F_1")  # names that hold digits
QUESTIONS = 24
LEAST_PAGES, MOST_PAGES = 10, 15

# What a digit may stand in: keys, layout, names. All else was typed.
_KEYS = (
    r"\\(?:val|choice|ifyes|label|ref|eqref|cite|input|made|narrowfigure|widefigure)\{[^}]*\}",
    r"\\begin\{minipage\}(?:\[\w\])?\{[^}]*\}",
    r"\\setlength\{[^}]*\}\{[^}]*\}",
    *(re.escape(name) for name in NAMES),
)


def text_of(source: str) -> str:
    """Source of the report without its comments."""
    return re.sub(r"(?<!\\)%.*", "", source)


def typed_numbers(source: str) -> list[str]:
    """Digits between the beginning of the document and the bibliography that somebody typed.

    Allowed are those in keys, labels, page layout and names; in formulas also the single digits 0,
    1 and 2, which belong to the notation.
    """
    head, _, text = text_of(source).partition(r"\begin{document}")
    text = text.partition(r"\begin{thebibliography}")[0]
    for pattern in _KEYS:
        text = re.sub(pattern, _blank, text)
    text = re.sub(
        r"\$[^$]*\$|\\begin\{equation\}.*?\\end\{equation\}", _without_notation, text, flags=re.S
    )
    return [
        f"Report.tex, line {line}: the number {found.rstrip('.,')} is typed; write a \\val and let "
        "the evidence make it"
        for line, content in enumerate(text.split("\n"), start=head.count("\n") + 1)
        for found in re.findall(r"\d[\d.,]*", content)
    ]


def _blank(match: re.Match) -> str:
    return re.sub(r"[^\n]", " ", match.group())  # the lines keep their numbers


def _without_notation(match: re.Match) -> str:
    return re.sub(r"(?<![\d.,])[012](?![\d.,])", " ", match.group())


def macros(source: str, evidence: Evidence) -> list[str]:
    """Values and tables that are used and not made, or made and not used."""
    text = text_of(source)
    complaints = []
    for kind, pattern, made in (
        ("value", r"\\(?:val|choice|ifyes)\{([^}#]+)\}", set(evidence.values)),
        ("table", r"\\input\{table_([^}]+)\}", set(evidence.tables)),
    ):
        used = set(re.findall(pattern, text))
        complaints += [
            f"Report.tex uses the {kind} {key}, which nothing makes" for key in sorted(used - made)
        ]
        complaints += [
            f"the {kind} {key} is made, and Report.tex does not use it"
            for key in sorted(made - used)
        ]
    return complaints


def references(source: str) -> list[str]:
    """References and citations without a target, targets used twice or never, lost questions."""
    text = text_of(source)
    labels = re.findall(r"\\label\{([^}#]+)\}", text)
    labels += [f"fig:{name}" for name in re.findall(r"\\(?:narrow|wide)figure\{([^}#]+)\}", text)]
    referred = set(re.findall(r"\\(?:eq)?ref\{([^}#]+)\}", text))
    cited = {key for keys in re.findall(r"\\cite\{([^}]+)\}", text) for key in keys.split(",")}
    items = set(re.findall(r"\\bibitem\{([^}]+)\}", text))
    floats = {label for label in labels if label.startswith(("fig:", "tab:"))}
    twice = {label for label in labels if labels.count(label) > 1}
    questions = len(re.findall(r"\\question\{", text))
    complaints = [
        *(f"\\ref to {key}, which is nowhere" for key in sorted(referred - set(labels))),
        *(f"\\cite of {key}, which is not among the references" for key in sorted(cited - items)),
        *(f"the reference {key} is never cited" for key in sorted(items - cited)),
        *(f"the label {key} is there twice" for key in sorted(twice)),
        *(f"{key} is never referred to" for key in sorted(floats - referred)),
    ]
    if questions != QUESTIONS:
        complaints.append(f"{questions} questions are answered, the sheet asks {QUESTIONS}")
    return complaints


def marked_places(source: str) -> list[str]:
    """Places that only the team can fill, and has not."""
    text = text_of(source).partition(r"\begin{document}")
    found = re.findall(r"\\teamplace\{([^}#]+)\}", text[0] + text[2])
    return [f"to be written by the team: {what}" for what in found]


def figure_names(source: str) -> list[str]:
    """Figures that the report shows, in order."""
    return re.findall(r"\\(?:made|narrowfigure|widefigure)\{([^}#]+)\}", text_of(source))


def figure_path(results: Path, name: str) -> Path:
    """Return the path of a figure in the results folder, whether it is there or not."""
    return results / "figures" / f"{name}.pdf"


def stale_figures(source: str, results: Path) -> list[str]:
    """Figures that were not made from the tables and data as they are now."""
    data = str(read_csv(results / "metrics.csv")["data"].iloc[0])
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
    """Figures that the report shows and the run has not made.

    A Grad-CAM group without any image, such as misclassified normal ones, has no figure.
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
    """Files of values and tables that do not say what the results say now."""
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
    """Whether the report is as long as the sheet asks."""
    if LEAST_PAGES <= pages <= MOST_PAGES:
        return []
    return [f"the report has {pages} pages; allowed: {LEAST_PAGES} to {MOST_PAGES}"]


def unresolved(log: str) -> list[str]:
    """What LaTeX itself could not resolve, from its log."""
    log = log.replace("\n", " ")  # LaTeX breaks the lines of its log anywhere
    found = re.findall(r"(?:Reference|Citation) `([^']+)' on page \w+ +undefined", log)
    return [f"LaTeX: {key} is undefined" for key in dict.fromkeys(found)]
