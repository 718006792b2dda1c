"""Work that is killed at random moments, started again, and compared with undisturbed work.

``kill_often`` runs in a process of its own that imports TensorFlow but does not use it, so that it
can fork: each attempt costs as little as the work itself.
"""

import contextlib
import hashlib
import io
import os
import signal
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

CHANGING = {"seconds", "epoch_seconds"}  # columns that no two runs have in common
TRIALS = Path("results", "tuning_small.csv")  # of `search_grid`


def contents(folder: Path) -> dict[str, str]:
    """Digest of every finished file by its path, without what changes: dates and durations."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".part-") for part in name.parts):
            content = path.read_bytes()
            if path.suffix == ".csv":
                table = pd.read_csv(io.BytesIO(content), float_precision="round_trip")
                kept = [column for column in table if column not in CHANGING]
                content = table[kept].to_csv().encode()
            if path.suffix == ".keras":
                with zipfile.ZipFile(path) as model:  # a model; its metadata.json has the date
                    content = model.read("config.json") + model.read("model.weights.h5")
            found[str(name)] = hashlib.sha256(content).hexdigest()
    return found


def draw(folder: Path) -> None:
    """The data set of phantoms, made in a folder and then renamed."""
    from covid_lab.phantoms import write_dataset

    write_dataset(folder / "phantoms", {"train": 6, "val": 3, "test": 3}, 48, 1)


def cache_features(folder: Path) -> None:
    """Arrays of features, one file per copy."""
    from covid_project.files import cached_array

    for copy in range(6):

        def compute(copy=copy):
            rng = np.random.default_rng(copy)
            return np.fft.fft2(rng.normal(size=(40, 128, 128))).real.astype(np.float32)

        cached_array(folder / f"copy{copy}.npy", compute)


def open_small_run(folder: Path):
    """The run of the course on the images of ``archive``."""
    from covid_project.results import open_run
    from covid_project.settings import load_settings

    settings = load_settings(data=folder.parent / "set.zip", results=folder / "results")
    return open_run(settings)


def small_model(slope: float):
    """A model of two inputs, and a history as of two epochs."""
    import keras

    inputs, layer = keras.Input((2,), name="inputs"), keras.layers.Dense(1, name="logit")
    model = keras.Model(inputs, layer(inputs), name="small")
    layer.set_weights([np.array([[slope], [0.1]]), np.array([-slope / 2])])
    history = pd.DataFrame({"epoch": [1, 2], "val_loss": [0.6, 0.5], "seconds": 0.01})
    history.attrs["initial_model"] = "the same"
    return model, history


def search_grid(folder: Path) -> None:
    """A search over a grid whose trials train nothing."""
    from covid_project.settings import Axis
    from covid_project.tuning import search

    axes = {
        "learning_rate": Axis(values=(0.001, 0.002), times=2, low=0.0005, high=0.008),
        "dropout": Axis(values=(0.2, 0.4), plus=0.2, low=0.0, high=0.6),
    }
    labels = np.arange(40) % 2
    inputs = np.stack([np.random.default_rng(0).normal(size=40) + labels, labels], axis=1)

    def trial(point):
        if point["learning_rate"] == 0.004 and point["dropout"] == 0.2:
            raise FloatingPointError("the loss is no longer finite")
        slope = 1 / (abs(np.log2(point["learning_rate"] / 0.004)) + abs(point["dropout"] - 0.4) + 1)
        return small_model(slope)

    run = open_small_run(folder)
    start = {"learning_rate": 0.002, "dropout": 0.4}
    identity = run.identity("search")
    search(run, "small", axes, start, trial, (inputs, labels), strategy="grid", identity=identity)


def write_tables(folder: Path) -> None:
    """Models, then ledger, scores and metrics of the final models."""
    run = open_small_run(folder)
    for name in ("baseline_tuned", "baseline"):  # as in the course: a search comes before tables
        if not run.has_model(name):
            run.save_model(name, *small_model(1.0), {})
    rng = np.random.default_rng(0)
    for stage, split in (("baseline", "val"), ("baseline", "test"), ("fine_tuned", "test")):
        labels = run.dataset.table["label"].iloc[run.dataset.rows(split)]
        if split == "test":
            run.enter_test(stage, f"fingerprint of {stage}")
        run.record_metrics(stage, split, rng.normal(size=len(labels)) + labels)


def write_report(folder: Path) -> None:
    """Values and tables of the report, from the results of a finished run."""
    from covid_lab.report.build import write_evidence

    write_evidence(folder)


WORK: dict[str, Callable[[Path], None]] = {
    "drawing the data": draw,
    "caching features": cache_features,
    "a search": search_grid,
    "writing tables": write_tables,
    "the report": write_report,
}


def kill_often(work: str, folder: str, kills: str, seed: str, start: str = "") -> dict:
    """Kill the work so many times, at seeded moments, then let it finish; return what happened.

    ``start`` is a folder whose copy every attempt starts from.
    """
    import shutil

    # Imported before the forks, so that these are not spent on imports.
    import covid_lab.phantoms
    import covid_lab.report.build  # noqa: F401
    import covid_project.tuning  # noqa: F401

    do, place, rng = WORK[work], Path(folder), np.random.default_rng(int(seed))
    place.mkdir()
    archive(place / "set.zip")

    def fresh(name: str) -> Path:
        made = place / name
        if start:
            shutil.copytree(start, made)
        else:
            made.mkdir()
        return made

    def begun(where: Path) -> int:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    do(where)
                status = 0
            except BaseException:
                traceback.print_exc()  # the test shows it
            finally:
                os._exit(status)
        return child

    quiet = fresh("undisturbed")
    os.waitpid(begun(quiet), 0)  # once more below: the first one also fills the caches
    quiet = fresh("again")
    started = time.monotonic()
    assert os.waitpid(begun(quiet), 0)[1] == 0
    length, expected = time.monotonic() - started, contents(quiet)

    done, wrong, rounds = 0, [], 0
    while done < int(kills):
        where = fresh(f"killed-{rounds}")
        rounds += 1
        for _ in range(int(rng.integers(1, 4))):
            child = begun(where)
            time.sleep(length * rng.random())
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            done += os.WIFSIGNALED(status)  # else it had already ended
            half = contents(where)  # what is there under its own name is readable
            trials = rows_of(where / TRIALS)
            if any(half[name] != expected.get(name) for name in half if not grows(name)):
                wrong.append(f"round {rounds}: a file that is not as it should be")
        if os.waitpid(begun(where), 0)[1] != 0:
            wrong.append(f"round {rounds}: it did not go on")
        elif contents(where) != expected:
            wrong.append(f"round {rounds}: it ended otherwise than undisturbed")
        elif rows_of(where / TRIALS)[: len(trials)] != trials:
            wrong.append(f"round {rounds}: a finished trial was lost or run again")
        shutil.rmtree(where)
    return {"killed": done, "rounds": rounds, "wrong": wrong, "seconds": length}


def grows(name: str) -> bool:
    """Whether a file is replaced as the work proceeds: tables, and the best model so far."""
    return Path(name).name.startswith(("tuning_", "metrics", "test_ledger", "small_tuned",
                                       "history_small_tuned"))  # fmt: skip


def rows_of(path: Path) -> list[tuple]:
    """Number, values and seconds of each trial: one that was run again would differ in its time.

    Not the lines themselves: once a trial has failed, counts are written as 3.0 instead of 3.
    """
    if not path.is_file():
        return []
    columns = ["trial", "learning_rate", "dropout", "seconds"]
    return list(pd.read_csv(path, float_precision="round_trip")[columns].itertuples(index=False))


def archive(path: Path) -> None:
    """Forty images without a split."""
    rng = np.random.default_rng(3)
    with zipfile.ZipFile(path, "w") as file:
        for number in range(40):
            stream = io.BytesIO()
            pixels = rng.integers(0, 256, (128, 128), np.uint8)
            Image.fromarray(pixels).save(stream, "PNG")
            file.writestr(f"{('COVID', 'NORMAL')[number % 2]}/{number}.png", stream.getvalue())
