"""Work that is killed at random moments, started again, and compared with undisturbed work.

``kill_often`` runs in a process of its own that never imports TensorFlow, so that it can fork: each
attempt costs as little as the work itself.
"""

import contextlib
import hashlib
import io
import os
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

CHANGING = {"seconds", "epoch_seconds"}  # columns that no two runs have in common


def contents(folder: Path) -> dict[str, str]:
    """Digest of every finished file by its path; of a CSV without the columns that change."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".part-") for part in name.parts):
            content = path.read_bytes()
            if path.suffix == ".csv":
                table = pd.read_csv(io.BytesIO(content), float_precision="round_trip")
                kept = [column for column in table if column not in CHANGING]
                content = table[kept].to_csv().encode()
            found[str(name)] = hashlib.sha256(content).hexdigest()
    return found


def draw(folder: Path) -> None:
    """The data set of phantoms, made in a folder and then renamed."""
    from covid_lab.phantoms import write_dataset

    write_dataset(folder / "phantoms", {"train": 6, "val": 3, "test": 3}, 48, 1)


def unpack(folder: Path) -> None:
    """All images of an archive into one cached array."""
    from covid_lab.datasets import load_images, open_dataset
    from covid_project.files import cached_array

    dataset = open_dataset(folder.parent / "set.zip", splits_file=folder / "splits.csv")
    for size in (16, 32, 64):
        cached_array(folder / f"images-{size}.npy", lambda size=size: load_images(dataset, size))


def cache_features(folder: Path) -> None:
    """Arrays of features, one file per copy."""
    from covid_project.files import cached_array

    for copy in range(6):

        def compute(copy=copy):
            rng = np.random.default_rng(copy)
            return np.fft.fft2(rng.normal(size=(40, 128, 128))).real.astype(np.float32)

        cached_array(folder / f"copy{copy}.npy", compute)


def search_grid(folder: Path) -> None:
    """A search whose trials take a few milliseconds each."""
    from covid_project.settings import Axis
    from covid_project.tuning import outcome, search

    axes = {
        "learning_rate": Axis(values=(0.001, 0.002, 0.004), times=2, low=0.0005, high=0.03),
        "dropout": Axis(values=(0.2, 0.4), plus=0.2, low=0.0, high=0.8),
    }

    def trial(point):
        rng = np.random.default_rng(round(1e6 * point["learning_rate"] + 10 * point["dropout"]))
        labels = np.arange(400) % 2
        scores = rng.normal(size=400) + labels
        time.sleep(0.005)
        loss = abs(np.log2(point["learning_rate"] / 0.016)) + abs(point["dropout"] - 0.6)
        if point["learning_rate"] == 0.004 and point["dropout"] == 0.2:
            raise FloatingPointError("the loss is no longer finite")
        return outcome(3, loss, labels, scores)

    search(
        axes,
        {"learning_rate": 0.002, "dropout": 0.4},
        trial,
        folder / "tuning.csv",
        strategy="grid",
        identity={"data": "d", "seed": 1, "versions": "v"},
        title="search",
    )


def write_tables(folder: Path) -> None:
    """Scores, metrics and the ledger of a final model, as an experiment writes them."""
    from covid_project.evaluation import metrics_table, record_test_look
    from covid_project.files import append_rows, read_csv, write_csv

    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    for stage in ("baseline", "transfer", "fine_tuned"):
        scores = rng.normal(size=60) + labels
        record_test_look(folder / "test_ledger.csv", stage, {"model": stage, "data": "d"})
        write_csv(folder / f"scores_{stage}.csv", pd.DataFrame({"label": labels, "score": scores}))
        rows = metrics_table(labels, scores).assign(stage=stage)
        path = folder / "metrics.csv"
        found = read_csv(path)
        if found.empty or stage not in set(found["stage"]):
            append_rows(path, rows)


def write_report(folder: Path) -> None:
    """Values and tables of the report, from the results of a finished run."""
    from covid_lab.report.build import write_evidence

    write_evidence(folder)


WORK: dict[str, Callable[[Path], None]] = {
    "drawing the data": draw,
    "unpacking": unpack,
    "caching features": cache_features,
    "a search": search_grid,
    "writing tables": write_tables,
    "the report": write_report,
}


def kill_often(work: str, folder: str, kills: str, seed: str, start: str = "") -> dict:
    """Kill the work so many times, at seeded moments, and let it end; what came of it.

    ``start`` is a folder that every attempt begins from.
    """
    import shutil

    # Imported before the forks, so that these are not spent on imports.
    import covid_project.evaluation
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
            with contextlib.redirect_stdout(io.StringIO()):
                status = 1
                try:
                    do(where)
                    status = 0
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
            trials = rows_of(where / "tuning.csv")
            if any(half[name] != expected.get(name) for name in half if not grows(name)):
                wrong.append(f"round {rounds}: a file that is not as it should be")
        if os.waitpid(begun(where), 0)[1] != 0:
            wrong.append(f"round {rounds}: it did not go on")
        elif contents(where) != expected:
            wrong.append(f"round {rounds}: it ended otherwise than undisturbed")
        elif rows_of(where / "tuning.csv")[: len(trials)] != trials:
            wrong.append(f"round {rounds}: a finished trial was lost or run again")
        shutil.rmtree(where)
    return {"killed": done, "rounds": rounds, "wrong": wrong, "seconds": length}


def grows(name: str) -> bool:
    """Whether a file is added to row by row, so that it may be shorter."""
    return name.endswith(("tuning.csv", "metrics.csv", "ledger.csv"))


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
