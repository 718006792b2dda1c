"""Killed at any moment: nothing is lost, doubled or half there, and the results are the same."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import copy_project

from covid_project.files import read_csv
from faults.children import ENVIRONMENT, PROJECT, call
from faults.kills import CHANGING, WORK, archive
from faults.projects import command, wait_for

SEED = 23
FINISHED = PROJECT / "results"


@pytest.fixture
def finished(tmp_path):
    """The tables of the committed run, for a report."""
    folder = tmp_path / "finished"

    def folders(_, names: list[str]) -> set[str]:
        return {name for name in names if "." not in name and name != "figures"}

    shutil.copytree(FINISHED, folder, ignore=folders)
    return folder


@pytest.mark.parametrize("kills", [3, pytest.param(15, marks=pytest.mark.long)])
@pytest.mark.parametrize("work", WORK)
def test_work_that_is_killed_goes_on(work, kills, tmp_path, finished, record, python):
    start = [finished] if work == "the report" else []
    arguments = (work, tmp_path / "place", kills, SEED, *start)
    found = call("faults.kills:kill_often", *arguments, seconds=550, python=python)
    assert not found["wrong"], found["wrong"]
    assert found["killed"] >= kills
    record("killed", work, "went on, same results, nothing lost or doubled", SEED, found["killed"])


# ---- with TensorFlow, each in a process of its own ----------------------------------------------

FIT = """
import sys
from pathlib import Path
import keras
from covid_project.models import baseline_cnn, model_fingerprint
from covid_project.normalization import SampleNormalization
from covid_project.pipeline import evaluation_batches
from covid_project.results import open_run
from covid_project.settings import load_settings
from covid_project.training import TrainingLog, classification_metrics, set_seed

folder = Path(sys.argv[1])
run = open_run(load_settings(data=folder.parent / "set.zip", results=folder))
images, labels = run.arrays("train", image_size=32)
print("ready", flush=True)

if not run.has_model("final", {"seed": 5}):
    set_seed(5)
    model = baseline_cnn(32, SampleNormalization(), filters=2, dropout=0.2)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=classification_metrics())
    log = TrainingLog()
    model.fit(evaluation_batches(images, labels), epochs=6, callbacks=[log], verbose=0)
    run.save_model("final", model, log.history, {"seed": 5})
model = run.load_model("final", "this test")
print(model_fingerprint(model), run.load_history("final").drop(columns="seconds").to_csv())
"""


def start_fit(python: str, folder: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [python, "-c", FIT, str(folder)],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    wait_for(process, "ready")
    return process


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.long)])
def test_a_final_fit_that_is_killed_ends_with_the_same_weights(tmp_path, kills, record, python):
    rng = np.random.default_rng(SEED)
    archive(tmp_path / "set.zip")
    process = start_fit(python, tmp_path / "undisturbed")
    started = time.monotonic()
    undisturbed = process.communicate()[0]
    length = time.monotonic() - started
    done = 0
    while done < kills:
        folder = tmp_path / f"killed-{done}"
        process = start_fit(python, folder)
        time.sleep(length * rng.uniform(0.02, 0.9))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        done += process.returncode == -signal.SIGKILL
        again = start_fit(python, folder)
        assert again.communicate()[0].splitlines()[-8:] == undisturbed.splitlines()[-8:]
        assert again.returncode == 0
    record("killed", "final fit and saving of the model", "same weights and history", SEED, done)


# ---- the whole run ------------------------------------------------------------------------------


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    found = {path.name: read_csv(path) for path in sorted(folder.glob("*.csv"))}
    return {
        name: table.drop(columns=[c for c in table if c in CHANGING])
        for name, table in found.items()
    }


@pytest.mark.long
def test_a_whole_run_that_is_killed_again_and_again(tmp_path, record):
    folder, rng = copy_project(tmp_path / "project"), np.random.default_rng(SEED)
    options = ("run", "--profile", "small")
    started = time.monotonic()
    undisturbed = command(folder, *options)
    said = undisturbed.communicate()[0]
    assert undisturbed.returncode == 0, said[-2000:]
    length = time.monotonic() - started
    shutil.move(folder / "made", folder / "undisturbed")
    shutil.rmtree(folder / ".cache")
    expected, done = tables(folder / "undisturbed"), 0
    finished: dict[str, list[str]] = {}
    for _ in range(4):
        process = command(folder, *options)
        time.sleep(length * rng.uniform(0.1, 0.45))
        process.kill()
        process.communicate()
        done += process.returncode == -signal.SIGKILL
        for path in (folder / "made").glob("tuning_*.csv"):
            rows = path.read_text().splitlines()
            before = finished.get(path.name, [])
            assert rows[: len(before)] == before, f"{path.name}: a finished trial has changed"
            finished[path.name] = rows
        if process.returncode == 0:
            break
    last = command(folder, *options)
    said = last.communicate()[0]
    assert last.returncode == 0, said[-2000:]
    found = tables(folder / "made")
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        pd.testing.assert_frame_equal(found[name], table, check_exact=True, obj=name)
    assert (found["test_ledger.csv"]["look"] == 1).all()
    record("killed", "a whole run of four notebooks", "same tables, nothing lost", SEED, done)
