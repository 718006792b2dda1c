"""How the tests run a study: its notebook, with a small profile, as the command line does."""

import os
import subprocess
from pathlib import Path

import yaml

from covid_lab.runs.settings import profile_values
from covid_project.settings import PROJECT


def small_profile(study: str) -> dict:
    """Return the values of a study's demo, to be made smaller."""
    return profile_values(study, demo=True)


def run_study(python: str, folder: Path, study: str, values: dict, data: str | Path) -> Path:
    """Run a study's notebook on some data with these settings; return its results folder."""
    profile = folder / "small.yaml"
    profile.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [python, "-m", "covid_lab", "run", "--study", study]
    command += ["--profile", str(profile), "--data", str(data), "--results", "made"]
    where = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=where)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return folder / "made"
