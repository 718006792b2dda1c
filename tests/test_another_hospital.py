"""The notebook on the external test: on the committed tables, without images."""

import nbformat
import pytest
from nbclient import NotebookClient

from covid_project.settings import PROJECT

NOTEBOOK = PROJECT / "studies" / "another_hospital.ipynb"


def test_the_notebook_runs_from_its_own_folder_on_the_committed_tables():
    if not (PROJECT / "results" / "external" / "external_siim" / "metrics.csv").is_file():
        pytest.skip("no external test is committed")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": NOTEBOOK.parent}},
    )
    client.execute()
    shown = [cell for cell in notebook.cells if cell.get("outputs")]
    assert len(shown) >= 8
