"""What several tests need: small data sets, and the real ones where they are at hand."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib as mpl
import numpy as np
import pytest
import yaml

mpl.use("Agg")

HOUSE = Path(__file__).resolve().parent.parent
SHARED = HOUSE.parent / "shared"


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
