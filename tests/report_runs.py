"""A complete small run for the tests of the report: the four notebooks, then their extras."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

FEWER = {"SEEDS = 3": "SEEDS = 2", "TESTED_EXPLANATIONS = 40": "TESTED_EXPLANATIONS = 4"}


@cache
def complete_run(project: Path) -> Path:
    """Results of ``small_run`` in a copy, with the tables of ``studies/course_extras.ipynb``."""
    results = shutil.copytree(project / "made", project / "complete")
    notebook = project / "studies" / "course_extras.ipynb"
    text = notebook.read_text(encoding="utf-8")
    for many, few in FEWER.items():
        assert many in text
        text = text.replace(many, few)
    notebook.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "covid_lab", "run", "--profile", "small"]
    command += ["--study", "course_extras", "--results", results.name]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return results
