"""Pages of the documentation that are made from the tables in ``results/``.

The sections of a page, and the functions that make their tables, are in `run_tables`,
`study_tables` and `benchmark_tables`.
"""

from pathlib import Path

import pandas as pd

from covid_lab.documentation import benchmark_tables, run_tables, study_tables
from covid_lab.documentation.cells import Section
from covid_project.files import read_csv

INTERVALS = (
    "Brackets hold 95 % intervals: Wilson's for proportions, else a bootstrap over images, unless "
    "the text says otherwise. AUC is the area under the ROC curve, n the number of images."
)
RESULTS = (
    "# Results",
    "Every table on this page is made from `results/` by `make docs-tables`. " + INTERVALS + " "
    "What the numbers mean is on the pages of the [audit](audit.md), the [external test]"
    "(external.md) and the studies; what was run before, and which test splits are spent, is in "
    "`results/HISTORY.md`.",
    "## The course run",
    *run_tables.COURSE,
    "## In another hospital",
    *run_tables.ANOTHER_HOSPITAL,
    "## Audits",
    *study_tables.AUDITS,
    "## Studies",
    *study_tables.STUDIES,
    "## Faults",
    *study_tables.FAULTS,
)
BENCHMARKS = (
    "# Benchmarks",
    "Every table on this page is made from `results/benchmarks.csv`, `growth.csv` and "
    "`course_times.csv` by `make docs-tables`; `python -m benchmarks`, `python -m "
    "benchmarks.growth` and `python -m benchmarks.course` measure them again. Both sides of a "
    "comparison run in turn in one process. The ratio is the other side's number divided by ours: "
    "above 1, ours is better. It is the median over the repetitions, with the smallest and the "
    "largest; the goal is the ratio that was set before measuring.",
    *benchmark_tables.BENCHMARKS,
)
PAGES = {"results.md": RESULTS, "benchmarks.md": BENCHMARKS}


def page(name: str, results: Path) -> str:
    """Write the Markdown text of a generated page.

    Parameters
    ----------
    name : str, key of `PAGES`
        File name of the page.
    results : Path
        Folder of the tables. A section whose files are missing is left out.

    Returns
    -------
    str
        The whole page.
    """
    blocks = ["<!-- Made by `make docs-tables`; changes by hand are lost. -->"]
    for part in PAGES[name]:
        blocks += [part] if isinstance(part, str) else _section(part, results)
    return "\n\n".join(blocks) + "\n"


def _section(section: Section, results: Path) -> list[str]:
    files = sorted(path for path in results.glob(section.files) if path.is_file())
    tables = {path.relative_to(results).as_posix(): read_csv(path) for path in files}
    if not tables:
        return []
    table = section.table(tables if "*" in section.files else next(iter(tables.values())))
    shows = f"{section.shows} From `results/{section.files}`."
    return [f"### {section.heading}", shows, _as_markdown(table)]


def _as_markdown(table: pd.DataFrame) -> str:
    """Write a table of text as Markdown; a bar in a cell is escaped."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy()]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows
    )
