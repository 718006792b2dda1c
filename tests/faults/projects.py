"""Small projects, whose notebooks are written here, run through the command line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml

from faults.children import ENVIRONMENT, HOUSE

CODE = """
import sys
from pathlib import Path
from covid_project import __main__, runner
runner.HOUSE = Path({folder!r})
sys.exit(__main__.main(sys.argv[1:]))
"""


def project(folder: Path, *cells: str) -> Path:
    """A folder with one notebook, ``baseline``, of these cells, and a profile of few phantoms."""
    folder.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, folder / "baseline.ipynb")
    values = yaml.safe_load((HOUSE / "profiles" / "demo.yaml").read_text())
    values |= {"image_size": 32, "phantoms": {"size": 32, "train": 2, "val": 2, "test": 2}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return folder


def start(folder: Path, *options: str, **more) -> subprocess.Popen:
    """Begin the run of the project's notebook; its output is a pipe of text."""
    code = CODE.format(folder=str(folder))
    arguments = ["run", "--profile", str(folder / "tiny.yaml"), "--only", "baseline", *options]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
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


def copied(folder: Path) -> Path:
    """A project of the four notebooks, with a profile as small as they can run on."""
    for name in ("covid_project", "profiles"):
        shutil.copytree(HOUSE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for notebook in HOUSE.glob("*.ipynb"):
        shutil.copy(notebook, folder)
    values = yaml.safe_load((HOUSE / "profiles" / "smoke.yaml").read_text())
    values |= {"image_size": 32, "results": "made", "seeds": 1, "tested_explanations": 4}
    values["phantoms"] = {"size": 48, "train": 16, "val": 8, "test": 8}
    values["transfer"] |= {"image_size": 64, "weights": "random"}
    (folder / "profiles" / "small.yaml").write_text(yaml.safe_dump(values))
    return folder


def command(folder: Path, *arguments: str, **more) -> subprocess.Popen:
    """Begin ``python -m covid_project …`` in a copied project."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, "-m", "covid_project", *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        **more,
    )  # fmt: skip
