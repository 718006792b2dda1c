"""What several tests need: small data sets, and the real ones where they are at hand."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib as mpl
import numpy as np
import pytest
import yaml
from hypothesis import settings

mpl.use("Agg")
# A busy machine is no fault of what is tested.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

HOUSE = Path(__file__).resolve().parent.parent
SHARED = HOUSE.parent / "shared"


def pytest_collection_modifyitems(items):
    """Keep together, where several processes share the tests, what shares what it is made from."""
    for item in items:
        group = "small_run" if "small_run" in item.fixturenames else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def tiny_profile(tmp_path):
    """Path of a profile that draws a few small phantoms; everything goes to tmp_path."""
    values = yaml.safe_load((HOUSE / "profiles" / "demo.yaml").read_text())
    values |= {"results": str(tmp_path / "results"), "image_size": 32}
    values["phantoms"] = {"size": 32, "train": 8, "val": 4, "test": 4}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="session")
def course_archive():
    path = SHARED / "data" / "covid_xray.zip"
    if not path.is_file():
        pytest.skip("the course's covid_xray.zip is not at hand (../shared/data)")
    return path


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """All four notebooks on a few phantoms: (project folder, command, its output)."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("covid_project", "profiles"):
        shutil.copytree(HOUSE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for notebook in HOUSE.glob("*.ipynb"):
        shutil.copy(notebook, folder)
    values = yaml.safe_load((HOUSE / "profiles" / "smoke.yaml").read_text())
    values |= {"image_size": 32, "results": "made"}
    values["phantoms"] = {"size": 48, "train": 24, "val": 12, "test": 12}
    values["transfer"] |= {"image_size": 64, "weights": "random"}
    rates = {"values": [1e-5, 3e-5], "times": 3, "low": 1e-5, "high": 3e-5}
    values["transfer"]["fine_tuning"] |= {"learning_rate": rates, "sudden_drop": 0.5}
    (folder / "profiles" / "small.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "covid_project", "run", "--profile", "small"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, command, done.stdout
