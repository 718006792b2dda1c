"""The two files to hand in: the report's PDF, and a zip of the code and its tables.

The zip holds the course package, the four notebooks as they were executed, their tables, the
packages that the sheet allows, and a short README, but neither data nor weights. A run with faults
is refused, with every reason at once.
"""

import json
import re
import shutil
import zipfile
from pathlib import Path

import nbformat
import yaml

from covid_lab.notebooks import code_cells, is_kept, is_parameters, sources, without_chatter
from covid_lab.report.build import Report
from covid_lab.runs.runner import EXECUTED
from covid_lab.runs.settings import NOTEBOOKS
from covid_project.files import read_csv, whole_file
from covid_project.settings import COURSE, PROJECT, read_file

PACKAGE = "covid_project"
PLACE = "✎"  # marks a place in a notebook that the team has to fill
README = """# COVID-19 assisted diagnosis: code and documentation of group {group}

| notebook | task |
|---|---|
| `data_exploration.ipynb` | 1: data exploration, pre-processing and augmentation |
| `baseline.ipynb` | 2: the baseline model |
| `transfer_learning.ipynb` | 3: transfer learning |
| `gradcam.ipynb` | 4: explainability through Grad-CAM |

The notebooks are stored as they were executed. They import the package `covid_project`; its
`course.yaml` holds every setting of our run. `results/` has the tables that the notebooks wrote.

To run them again, put `covid_xray.zip` beside the notebooks, open them in this order in Jupyter and
choose "Run all":

    python3.12 -m venv .venv                          # Windows: py -3.12 -m venv .venv
    .venv/bin/pip install -r requirements.txt jupyterlab       # .venv\\Scripts\\pip …
    .venv/bin/jupyter lab                                      # .venv\\Scripts\\jupyter lab

A new run writes to `results_rerun/`, so that it can be compared with `results/`. Keras downloads
the ImageNet weights of {backbone} once.
"""


class Refused(RuntimeError):
    """The hand-in has faults.

    Parameters
    ----------
    reasons : list of str
        Every fault.
    """

    def __init__(self, reasons: list[str]):
        super().__init__("; ".join(reasons))
        self.reasons = reasons


def submit(results: Path, group: int, folder: Path, *, draft: bool = False) -> list[Path]:
    """Check everything, then write ``Report_group<n>.pdf`` and ``covid_project_group<n>.zip``.

    Parameters
    ----------
    results : Path
        Results folder of a finished run, with its report built.
    group : int, from 1
        Number of the group.
    folder : Path
        Where the two files are written.
    draft : bool
        Only warn of places that the team has not filled; all other faults are still refused.

    Returns
    -------
    list of Path
        The report and the archive.

    Raises
    ------
    Refused
        With every reason. Nothing is written then.
    """
    report = Report(results)
    places = [*unfilled_places(results), *report.unfilled_places()]
    reasons = [*code_faults(results), *report.faults()]
    if reasons or (places and not draft):
        raise Refused([*reasons, *([] if draft else places)])
    for place in places:
        print(f"warning: {place}")
    archive = folder / f"{PACKAGE}_group{group}.zip"
    with whole_file(archive) as part:
        write_archive(part, results, group)
    pdf = folder / f"Report_group{group}.pdf"
    with whole_file(pdf) as part:
        shutil.copyfile(report.folder / "Report.pdf", part)
    return [pdf, archive]


def code_faults(results: Path) -> list[str]:
    """Return the faults of the run and its notebooks.

    Parameters
    ----------
    results : Path
        Folder of the run.

    Returns
    -------
    list of str
        One line for each.
    """
    record = results / "run.json"
    if not record.is_file():
        return [f"{results} holds no run (run.json is missing): run the four notebooks first"]
    drawn = json.loads(record.read_text(encoding="utf-8")).get("phantoms", False)
    synthetic = "the run used drawn images; the sheet does not allow synthetic data"
    return [
        *([synthetic] if drawn else []),
        *_further_test_evaluations(results),
        *notebook_faults(results),
    ]


def _further_test_evaluations(results: Path) -> list[str]:
    """Name the stages whose test figures do not come from a single evaluation."""
    ledger = read_csv(results / "test_ledger.csv")
    if ledger.empty:
        return ["test_ledger.csv is missing: no model was tested"]
    looks = ledger.groupby("stage", sort=False)["look"].max()
    return [
        f"the test set was read {count} times at the stage {stage} (test_ledger.csv); the sheet "
        "allows one evaluation"
        for stage, count in looks.items()
        if count > 1
    ]


def notebook_faults(results: Path) -> list[str]:
    """Return which notebooks were not executed, are out of order, hold an error or were changed.

    Parameters
    ----------
    results : Path
        Folder of the run.

    Returns
    -------
    list of str
        One line for each fault.
    """
    faults = []
    for name in NOTEBOOKS:
        path, ours = _executed_path(results, name), PROJECT / f"{name}.ipynb"
        if path is None:
            faults.append(f"{name}.ipynb was not executed: run it from top to bottom and save it")
            continue
        cells = code_cells(path)
        if is_kept(cells):
            faults.append(f"{name}.ipynb holds the outputs of the project's own run: run it")
        if path != ours and sources(cells) != sources(code_cells(ours)):
            faults.append(f"{name}.ipynb changed after it was executed: run it again")
        counts = [cell.execution_count for cell in cells if cell.source.strip()]
        if counts != list(range(1, len(counts) + 1)):
            faults.append(f"{name}.ipynb was not executed from top to bottom: choose Run all")
        for cell in cells:
            errors = [output for output in cell.outputs if output.output_type == "error"]
            faults += [f"{name}.ipynb holds an error: {error.ename}" for error in errors]
    return faults


def _executed_path(results: Path, name: str) -> Path | None:
    """Find an executed notebook: among the results, or saved in its own place."""
    by_command = results / EXECUTED / f"{name}.ipynb"
    if by_command.is_file():
        return by_command
    ours = PROJECT / f"{name}.ipynb"
    return ours if any(cell.execution_count for cell in code_cells(ours)) else None


def unfilled_places(results: Path) -> list[str]:
    """Return the places of the executed notebooks that the team has not filled.

    Parameters
    ----------
    results : Path
        Folder of the run.

    Returns
    -------
    list of str
        One line for each.
    """
    places = []
    for name in NOTEBOOKS:
        path = _executed_path(results, name)
        cells = nbformat.read(path, as_version=4).cells if path else []
        texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
        for text in texts:
            for hint in re.findall(rf"{PLACE} *([^\n]*)", text):
                places.append(f"{name}.ipynb, to be written by the team: {hint}")
    return places


def write_archive(path: Path, results: Path, group: int) -> None:
    """Write the zip: package, executed notebooks, tables, requirements, README.

    Parameters
    ----------
    path : Path
        The zip.
    results : Path
        Folder of the run.
    group : int, from 1
        Number of the group.
    """
    settings = read_file(results / "settings.yaml")
    ours = {key: value for key, value in settings.items() if key not in ("data", "results")}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for module in sorted((PROJECT / PACKAGE).glob("*.py")):
            archive.write(module, f"{PACKAGE}/{module.name}")
        # The settings of this run become those of the package, so that "Run all" repeats it.
        archive.writestr(f"{PACKAGE}/{COURSE.name}", yaml.safe_dump(ours, sort_keys=False))
        for name in NOTEBOOKS:
            archive.writestr(f"{name}.ipynb", _as_handed_in(_executed_path(results, name), name))
        for table in sorted(results.glob("*.csv")):
            archive.write(table, f"results/{table.name}")
        archive.write(PROJECT / "requirements.txt", "requirements.txt")
        backbone = settings["transfer"]["backbone"]
        archive.writestr("README.md", README.format(group=group, backbone=backbone))


def _as_handed_in(path: Path, name: str) -> str:
    """Return an executed notebook without this machine's paths and TensorFlow's messages."""
    notebook = nbformat.read(path, as_version=4)
    committed = nbformat.read(PROJECT / f"{name}.ipynb", as_version=4)
    defaults = [cell.source for cell in committed.cells if is_parameters(cell)]
    defaults = [re.sub(r"^(\w+) = .*?(?=  #|$)", r"\1 = None", s, flags=re.M) for s in defaults]
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        if is_parameters(cell) and defaults:
            cell.source = defaults[0]
        cell.outputs = without_chatter(cell)
    return nbformat.writes(notebook)
