"""What several tests need: small data sets, one small run, and the real data where they are."""

import os
import shutil
import subprocess
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from hypothesis import settings
from PIL import Image
from warm import warm_python

from covid_project.data import CLASSES

mpl.use("Agg")
settings.register_profile("patient", deadline=None)  # a busy machine is no fault of what is tested
settings.load_profile("patient")

HOUSE = Path(__file__).resolve().parent.parent
SHARED = HOUSE.parent / "shared"


SLOW = {  # files that take more than twenty seconds, left out by `make test`
    *("test_study_robustness", "test_study_lung_nodules", "test_study_pneumonia"),
    *("test_study_ct_lesions", "test_grader", "test_audit_command", "test_report_build"),
    *("test_audit_protocol", "test_external_mitigation", "test_external_training"),
    *("test_benchmarks", "test_main", "test_killed", "test_two_runs", "test_verify"),
    *("test_bad_images", "test_long_and_many", "test_audit_data_checks"),
}


def pytest_configure(config):
    """Have several processes take the groups in their order, not by their number of tests."""
    config.option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Mark slow tests; keep together, for several processes, tests that share what they need."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
        group = "small_run" if "small_run" in item.fixturenames else item.path.stem
        if group == "test_docstrings" and hasattr(item, "callspec"):  # long, and independent
            group += "-" + "-".join(item.callspec.params["name"].split(".")[1:-1])
        item.add_marker(pytest.mark.xdist_group(group))
    # The longest groups first, so that the processes end at about the same time.
    items.sort(key=lambda item: ("small_run" not in item.fixturenames, item.path.stem not in SLOW))


@pytest.fixture(autouse=True)
def closed_figures():
    """Close the figures of a test: Matplotlib warns when more than twenty are open."""
    yield
    plt.close("all")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def course_archive():
    path = SHARED / "data" / "covid_xray.zip"
    if not path.is_file():
        pytest.skip("the course's covid_xray.zip is not at hand (../shared/data)")
    return path


@pytest.fixture
def image_folder(tmp_path):
    """Folder in the course's layout: noise, brighter for COVID; 12, 6 and 6 images per class."""
    return write_images(tmp_path / "covid_xray", {"train": 12, "val": 6, "test": 6})


def write_images(folder, counts, size=24, seed=0):
    """Write noise in the course's layout; ``counts`` are images per class in each split."""
    rng = np.random.default_rng(seed)
    for split, count in counts.items():
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for k in range(count):
                image = rng.integers(0, 150, (size, size)) + 80 * label
                path = folder / split / name / f"{name}-{split}-{k}.png"
                Image.fromarray(image.astype(np.uint8)).save(path)
    return folder


SMALL = {
    "seed": 1,
    "image_size": 32,
    "results": "made",
    "phantoms": {"size": 48, "train": 24, "val": 12, "test": 12},
    "baseline": {
        "initial_epochs": 3,
        "max_epochs": 3,
        "patience": 2,
        "start": {"filters": 4, "batch_size": 16},
        "search": {
            "learning_rate": {"values": [0.004], "times": 2, "low": 0.004, "high": 0.004},
            "dropout": {"values": [0.4], "plus": 0.2, "low": 0.4, "high": 0.4},
            "filters": {"values": [4], "times": 2, "low": 4, "high": 4},
            "batch_size": {"values": [16], "times": 2, "low": 16, "high": 16},
        },
    },
    "transfer": {
        "backbone": "MobileNet",
        "width": 0.25,
        "weights": "random",
        "image_size": 64,
        "augmented_copies": 1,
        "initial_epochs": 3,
        "max_epochs": 3,
        "patience": 2,
        "start": {"learning_rate": 0.004, "batch_size": 16},
        "search": {
            "batch_size": {"values": [16], "times": 2, "low": 16, "high": 16},
            "learning_rate": {"values": [0.004], "times": 2, "low": 0.004, "high": 0.004},
            "dropout": {"values": [0.4], "plus": 0.2, "low": 0.4, "high": 0.4},
        },
        "fine_tuning": {
            "batch_size": 16,
            "learning_rate": {"values": [1e-5], "times": 3, "low": 1e-5, "high": 3e-5},
            "sudden_drop": 0.5,
            "attempts": 2,
        },
    },
}


def copy_project(folder):
    """Copy what `make run` needs to a folder, with the profile ``small``."""
    for name in ("covid_project", "covid_lab", "profiles", "studies"):
        shutil.copytree(HOUSE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*HOUSE.glob("*.ipynb"), HOUSE / "requirements.txt", HOUSE / "Report.tex"):
        shutil.copy(file, folder)
    (folder / "profiles" / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return folder


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """The path of a Python that starts in no time."""
    with warm_python(tmp_path_factory.mktemp("python")) as script:
        yield script


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, python):
    """All four notebooks on a few phantoms: (project folder, command, its output)."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    command = [python, "-m", "covid_lab", "run", "--profile", "small"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return folder, command, done.stdout
