"""The two files to hand in: the report's PDF, and a zip of the code and its tables.

The zip holds what the four notebooks need and what they wrote, and no more: no data, no weights,
nothing that the task sheet does not ask for. What is wrong is refused, with every reason at once.
"""

import ast
import re
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

import nbformat

from covid_project.report import build, checks
from covid_project.report.evidence import collect
from covid_project.runner import EXECUTED
from covid_project.settings import HOUSE, NOTEBOOKS
from covid_project.storage import read_csv, whole_file

PROFILE = "course.yaml"
PACKAGE = "covid_project"
README = """# COVID-19 assisted diagnosis: code and documentation of group {group}

Four notebooks, run in this order: `data_exploration.ipynb` (task 1), `baseline.ipynb` (task 2),
`transfer_learning.ipynb` (task 3), `gradcam.ipynb` (task 4). They are stored as they were executed;
the package `covid_project` holds the functions that they import, `results/` the tables that they
wrote, `profiles/course.yaml` every setting.

To run them again, with Python 3.12:

    python3.12 -m venv .venv
    .venv/bin/pip install -r requirements.txt
    .venv/bin/python -m covid_project run --data path/to/covid_xray.zip --results results/again

or open them in Jupyter and name the data in the settings cell:
`load_settings("course", data="path/to/covid_xray.zip", results="results/again")`.

The weights of ImageNet are read from the Keras cache (`~/.keras/models`) or downloaded by Keras;
`--set transfer.backbone=MobileNetV2` takes a smaller network. Data and weights are not included.
"""


class Refused(RuntimeError):
    """What is to be handed in is not as it must be; ``reasons`` names every fault."""

    def __init__(self, reasons: list[str]):
        super().__init__("; ".join(reasons))
        self.reasons = reasons


def submit(
    results: Path, group: int, folder: Path, *, draft: bool = False, source: Path = build.SOURCE
) -> list[Path]:
    """Check everything, then write ``Report_group<n>.pdf`` and ``covid_project_group<n>.zip``.

    Parameters
    ----------
    results
        Results folder of a finished run, with its report built.
    draft
        Marked places that the team has not filled are warnings then; nothing else is.

    Raises
    ------
    Refused
        Naming each reason. Nothing is written then.
    """
    unfilled = checks.marked_places(source.read_text(encoding="utf-8"))
    reasons = faults(results, source)
    if unfilled and not draft:
        reasons += unfilled
    if reasons:
        raise Refused(reasons)
    for place in unfilled:
        print(f"warning: {place}")
    archive = folder / f"{PACKAGE}_group{group}.zip"
    with whole_file(archive) as part:
        write_archive(part, results, group)
    report = folder / f"Report_group{group}.pdf"
    with whole_file(report) as part:
        shutil.copyfile(results / "report" / "Report.pdf", part)
    return [report, archive]


def faults(results: Path, source: Path = build.SOURCE) -> list[str]:
    """Every reason not to hand in a run and its report, but for the places the team must fill."""
    return [
        *build.source_faults(results, source, collect(results)),
        *checks.missing_figures(source.read_text(encoding="utf-8"), results),
        *build.pdf_faults(results, source),
        *further_looks(results),
        *notebook_faults(results),
    ]


def further_looks(results: Path) -> list[str]:
    """Stages whose test figures do not come from a single look at the test set."""
    ledger = read_csv(results / "test_ledger.csv")
    looks = ledger.groupby("stage", sort=False)["look"].max()
    return [
        f"the test set was read {count} times for the stage {stage} (test_ledger.csv)"
        for stage, count in looks.items()
        if count > 1
    ]


def notebook_faults(results: Path) -> list[str]:
    """Executed notebooks that are missing, changed since, out of order, or hold an error."""
    complaints, before = [], ""
    for name in NOTEBOOKS:
        path = results / EXECUTED / f"{name}.ipynb"
        if not path.is_file():
            complaints.append(f"{path} is missing: run the notebooks (python -m covid_project run)")
            continue
        cells = _code(path)
        committed = _code(HOUSE / f"{name}.ipynb")
        if [cell.source for cell in cells] != [cell.source for cell in committed]:
            complaints.append(f"{name}.ipynb changed after it was executed: run it again")
        if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
            complaints.append(f"{name}.ipynb was not executed from top to bottom")
        for cell in cells:
            for output in cell.outputs:
                if output.output_type == "error":
                    complaints.append(f"{name}.ipynb holds an error: {output.ename}")
        times = [cell.metadata.get("execution", {}).get("iopub.execute_input") for cell in cells]
        times = [time for time in times if time]
        if times and before and times[0] < before:
            complaints.append(f"{name}.ipynb was executed before the notebook that precedes it")
        before = max([before, *times])
    return complaints


def _code(path: Path) -> list[nbformat.NotebookNode]:
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def write_archive(path: Path, results: Path, group: int) -> None:
    """Write the zip: code, executed notebooks, tables, requirements, README."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for module in needed_modules():
            archive.write(module, module.relative_to(HOUSE))
        for name in NOTEBOOKS:
            archive.write(results / EXECUTED / f"{name}.ipynb", f"{name}.ipynb")
        for table in sorted([*results.glob("*.csv"), *results.glob("*.json")]):
            archive.write(table, f"results/{table.name}")
        archive.write(results / "settings.yaml", "results/settings.yaml")
        archive.write(HOUSE / "profiles" / PROFILE, f"profiles/{PROFILE}")
        archive.write(HOUSE / "requirements.txt", "requirements.txt")
        archive.writestr("README.md", README.format(group=group))


def needed_modules() -> list[Path]:
    """Modules of the package that the notebooks and the run command import at their top.

    What is imported inside a function is left out: it serves the phantoms and the report.
    """
    text = "\n".join(cell.source for name in NOTEBOOKS for cell in _code(HOUSE / f"{name}.ipynb"))
    waiting = [*_imported(text), f"{PACKAGE}.__main__", f"{PACKAGE}.runner"]
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        path = HOUSE.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in found or not path.is_file():
            continue
        found[name] = path
        waiting += [*_imported(path.read_text(encoding="utf-8")), name.rpartition(".")[0]]
    return sorted(found.values())


def _imported(code: str) -> Iterable[str]:
    """Modules of the package that some code imports at its top level."""
    for node in ast.parse(code).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(PACKAGE))
        elif isinstance(node, ast.ImportFrom) and re.match(rf"{PACKAGE}\b", node.module or ""):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
