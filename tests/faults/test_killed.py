"""Killed at any moment: nothing is lost, doubled or half there, and the results are the same."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from covid_project.files import read_csv
from faults.children import ENVIRONMENT, PROJECT, call
from faults.kills import CHANGING, WORK
from faults.projects import command, copied

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


def kill(work: str, kills: int, tmp_path: Path, finished: Path, record) -> None:
    start = [finished] if work == "the report" else []
    arguments = (work, tmp_path / "place", kills, SEED, *start)
    found = call("faults.kills:kill_often", *arguments, seconds=550)
    assert not found["wrong"], found["wrong"]
    assert found["killed"] >= kills
    record("killed", work, "went on, same results, nothing lost or doubled", SEED, found["killed"])


@pytest.mark.parametrize("work", WORK)
def test_work_that_is_killed_a_few_times(tmp_path, finished, record, work):
    kill(work, 3, tmp_path, finished, record)


@pytest.mark.long
@pytest.mark.parametrize("work", WORK)
def test_work_that_is_killed_often(tmp_path, finished, record, work):
    kill(work, 15, tmp_path, finished, record)


# ---- with TensorFlow, each in a process of its own ----------------------------------------------

FIT = """
import sys
from pathlib import Path
import keras, numpy as np
from covid_lab.checkpoints import fitted
from covid_project.models import baseline_cnn, model_fingerprint
from covid_project.normalization import SampleNormalization
from covid_project.pipeline import evaluation_batches
from covid_project.training import fit, set_seed

folder = Path(sys.argv[1])
rng = np.random.default_rng(0)
labels = np.arange(32) % 2
images = rng.integers(0, 256, (32, 32, 32, 1), dtype=np.uint8)
print("ready", flush=True)

def train():
    set_seed(5)
    model = baseline_cnn(32, SampleNormalization(), filters=2, dropout=0.2)
    history = fit(model, evaluation_batches(images, labels), learning_rate=0.01, epochs=6)
    return model, history

model, history = fitted(folder, "final", {"seed": 5}, train)
print(model_fingerprint(model), history.drop(columns="seconds").to_csv())
"""


def begin_fit(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", FIT, str(folder)],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def kill_fits(tmp_path: Path, kills: int, record) -> None:
    rng = np.random.default_rng(SEED)
    process = begin_fit(tmp_path / "undisturbed")
    started = time.monotonic()
    undisturbed = process.communicate()[0]
    length = time.monotonic() - started
    done = 0
    while done < kills:
        folder = tmp_path / f"killed-{done}"
        process = begin_fit(folder)
        time.sleep(length * rng.uniform(0.02, 0.9))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        done += process.returncode == -signal.SIGKILL
        went_on = begin_fit(folder)
        assert went_on.communicate()[0].splitlines()[-8:] == undisturbed.splitlines()[-8:]
        assert went_on.returncode == 0
    record("killed", "final fit and saving of the model", "same weights and history", SEED, done)


def test_a_final_fit_that_is_killed_ends_with_the_same_weights(tmp_path, record):
    kill_fits(tmp_path, 1, record)


@pytest.mark.long
def test_a_final_fit_that_is_killed_often(tmp_path, record):
    kill_fits(tmp_path, 6, record)


# ---- the whole run ------------------------------------------------------------------------------


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    found = {path.name: read_csv(path) for path in sorted(folder.glob("*.csv"))}
    return {
        name: table.drop(columns=[c for c in table if c in CHANGING])
        for name, table in found.items()
    }


@pytest.mark.long
def test_a_whole_run_that_is_killed_again_and_again(tmp_path, record):
    house, rng = copied(tmp_path / "house"), np.random.default_rng(SEED)
    options = ("run", "--profile", "small")
    started = time.monotonic()
    undisturbed = command(house, *options)
    said = undisturbed.communicate()[0]
    assert undisturbed.returncode == 0, said[-2000:]
    length = time.monotonic() - started
    shutil.move(house / "made", house / "undisturbed")
    shutil.rmtree(house / ".cache")
    expected, done = tables(house / "undisturbed"), 0
    finished: dict[str, list[str]] = {}
    for _ in range(4):
        process = command(house, *options)
        time.sleep(length * rng.uniform(0.1, 0.45))
        process.kill()
        process.communicate()
        done += process.returncode == -signal.SIGKILL
        for path in (house / "made").glob("tuning_*.csv"):
            rows = path.read_text().splitlines()
            before = finished.get(path.name, [])
            assert rows[: len(before)] == before, f"{path.name}: a finished trial has changed"
            finished[path.name] = rows
        if process.returncode == 0:
            break
    last = command(house, *options)
    said = last.communicate()[0]
    assert last.returncode == 0, said[-2000:]
    found = tables(house / "made")
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        pd.testing.assert_frame_equal(found[name], table, check_exact=True, obj=name)
    assert (found["test_ledger.csv"]["look"] == 1).all()
    record("killed", "a whole run of four notebooks", "same tables, nothing lost", SEED, done)
