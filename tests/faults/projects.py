"""Small projects, whose notebooks are written here, run through the command line."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml

from faults.children import ENVIRONMENT

CODE = """
import sys
from pathlib import Path
from covid_lab import __main__
from covid_lab.runs import runner
runner.PROJECT = Path({folder!r})
sys.exit(__main__.main(sys.argv[1:]))
"""


def project(folder: Path, *cells: str) -> Path:
    """Write one notebook, ``baseline``, of a settings cell and these, and a profile of phantoms."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = nbformat.v4.new_code_cell("DATA = RESULTS = SETTINGS = None")
    settings.metadata["tags"] = ["parameters"]
    rest = [nbformat.v4.new_code_cell(cell) for cell in cells]
    notebook = nbformat.v4.new_notebook(cells=[settings, *rest])
    nbformat.write(notebook, folder / "baseline.ipynb")
    values = {"image_size": 32, "phantoms": {"size": 32, "train": 2, "val": 2, "test": 2}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return folder


def start(folder: Path, *options: str, python: str = sys.executable, **more) -> subprocess.Popen:
    """Start the run of the project's notebook, with results in ``made``; its output is text."""
    code = CODE.format(folder=str(folder))
    arguments = ["run", "--profile", str(folder / "tiny.yaml"), "--only", "baseline"]
    return subprocess.Popen(
        [python, "-c", code, *arguments, "--results", "made", *options],
        cwd=folder,
        env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def wait_for(process: subprocess.Popen, words: str) -> str:
    """Read what a process prints until a line holds the words; return that line."""
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(f"{words!r} never came; {process.communicate()[1]}")


def command(folder: Path, *arguments: str, **more) -> subprocess.Popen:
    """Start ``python -m covid_lab …`` in a copied project (`conftest.copy_project`)."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, "-m", "covid_lab", *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        **more,
    )  # fmt: skip
