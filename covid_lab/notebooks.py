"""Executed notebooks: their code, and which of their outputs may be distributed."""

from collections.abc import Sequence
from pathlib import Path

import nbformat

from covid_lab.runs.runner import CHATTER, EXECUTED, TAG
from covid_lab.runs.settings import NOTEBOOKS
from covid_project.files import write_text
from covid_project.settings import PROJECT

NOT_SHOWN = "Not distributed: this picture shows images of the data set. Run the cell to see it.\n"
IMAGES = '"images_'  # in the code of a cell: it saves a figure that shows images of the data set


class OutputsRefused(ValueError):
    """Outputs cannot be stored; the message names the notebook and the remedy."""


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    """Read the code cells of a notebook.

    Parameters
    ----------
    path : Path
        An ``.ipynb`` file.

    Returns
    -------
    list of nbformat.NotebookNode
    """
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def is_parameters(cell: nbformat.NotebookNode) -> bool:
    """Tell whether a cell names data, results and settings, which every user changes.

    Parameters
    ----------
    cell : nbformat.NotebookNode

    Returns
    -------
    bool
    """
    return TAG in cell.metadata.get("tags", [])


def sources(cells: list[nbformat.NotebookNode]) -> list[str]:
    """Return the code of cells, except of the cell with the parameters.

    Parameters
    ----------
    cells : list of nbformat.NotebookNode

    Returns
    -------
    list of str
    """
    return [cell.source for cell in cells if not is_parameters(cell)]


def without_chatter(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return the outputs of a code cell without TensorFlow's messages.

    Parameters
    ----------
    cell : nbformat.NotebookNode

    Returns
    -------
    list of nbformat.NotebookNode
        The text of the cell's own outputs is changed.
    """
    outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    for output in outputs:
        if output.output_type == "stream":
            lines = output.text.splitlines(keepends=True)
            output.text = "".join(line for line in lines if not line.startswith(CHATTER))
    return [output for output in outputs if output.get("text") != ""]


def keep_outputs(
    results: Path, folder: Path = PROJECT, names: Sequence[str] = NOTEBOOKS
) -> list[Path]:
    """Write the outputs of a run into the project's notebooks, without images of the data set.

    Text, tables and curves are stored. A line, `NOT_SHOWN`, replaces each picture that shows images
    of the data set.

    Parameters
    ----------
    results : Path
        Folder of a run by command, whose executed notebooks are in ``notebooks/``.
    folder : Path
        Folder of the notebooks to write to. Their code must be the executed code; their text may
        have changed.
    names : sequence of str
        Names of the notebooks; those of a study are in the folder ``studies``.

    Returns
    -------
    list of Path
        The notebooks.

    Raises
    ------
    OutputsRefused
        A notebook was not executed, or its code changed since. Nothing is written then.
    """
    texts = {}
    for name in names:
        path, executed = folder / f"{name}.ipynb", results / EXECUTED / f"{name}.ipynb"
        if not executed.is_file():
            raise OutputsRefused(f"{executed} is missing: run the notebooks with covid_lab run")
        done, notebook = code_cells(executed), nbformat.read(path, as_version=4)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        if sources(done) != sources(cells):
            raise OutputsRefused(f"{path.name} changed after it was executed: run it again")
        for cell, ran in zip(cells, done, strict=True):
            cell.outputs = _shareable(ran)
            cell.execution_count = ran.execution_count
        texts[path] = nbformat.writes(notebook) + "\n"
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def is_kept(cells: list[nbformat.NotebookNode]) -> bool:
    """Tell whether outputs are those of the project's own run, as `keep_outputs` stores them.

    Parameters
    ----------
    cells : list of nbformat.NotebookNode

    Returns
    -------
    bool
    """
    return any(output.get("text") == NOT_SHOWN for cell in cells for output in cell.outputs)


def _shareable(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    outputs = without_chatter(cell)
    if IMAGES not in cell.source:
        return outputs
    texts = [output for output in outputs if "image/png" not in output.get("data", {})]
    line = nbformat.v4.new_output("stream", name="stdout", text=NOT_SHOWN)
    return texts if texts == outputs else [*texts, line]
