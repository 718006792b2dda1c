"""Many searches in one process: memory, threads and open files stay where they were."""

import math
import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from faults.children import call, memory

SEED = 26


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def searches(number: str) -> dict:
    """Run small searches one after another; what the process holds after each."""
    import keras

    from covid_lab.phantoms import write_dataset
    from covid_lab.training import fit
    from covid_project.models import baseline_cnn
    from covid_project.normalization import SampleNormalization
    from covid_project.pipeline import evaluation_batches
    from covid_project.results import open_run
    from covid_project.settings import Axis, load_settings
    from covid_project.training import set_seed
    from covid_project.tuning import search

    rng = np.random.default_rng(SEED)
    labels = np.arange(16) % 2
    images = rng.integers(0, 256, (16, 32, 32, 1), dtype=np.uint8)
    axes = {"learning_rate": Axis(values=(0.001, 0.002), times=2, low=0.001, high=0.002)}

    def trial(point):
        keras.backend.clear_session()
        set_seed(1)
        model = baseline_cnn(32, SampleNormalization(), filters=2, dropout=0.2)
        batches = evaluation_batches(images, labels, 8)
        return model, fit(model, batches, epochs=2, validation=batches, patience=2, **point)

    held = {"bytes": [], "threads": [], "files": []}
    with tempfile.TemporaryDirectory() as folder:
        data = write_dataset(Path(folder) / "data", {"train": 1, "val": 1, "test": 1}, 32, SEED)
        run = open_run(load_settings(data=data, results=Path(folder) / "results"))
        for count in range(int(number)):
            search(
                run, f"{count}", axes, {}, trial, (images, labels),
                strategy="grid", identity=run.identity(),
            )  # fmt: skip
            held["bytes"].append(memory("VmRSS"))
            held["threads"].append(threading.active_count())
            held["files"].append(open_files())
    return held


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts in /proc")
@pytest.mark.parametrize(
    ("number", "within"),
    [  # two are too few to judge the memory, which has yet to settle
        (2, math.inf),
        pytest.param(50, 0.1, marks=pytest.mark.long),
    ],
)
def test_searches_leave_nothing_open_and_the_memory_flat(number, within, record, python):
    held = call("faults.test_long_and_many:searches", number, seconds=1500, python=python)
    settled = number // 5  # TensorFlow allocates what it needs in the first ones
    growth = held["bytes"][-1] / held["bytes"][settled] - 1
    record("long and many", f"{number} searches: memory", f"grew by {growth:.1%}", SEED, number)
    assert growth < within
    for kind in ("threads", "files"):
        grown = held[kind][-1] - held[kind][settled]
        record("long and many", f"{number} searches: open {kind}", f"{grown} more", SEED, number)
        assert grown <= 0
