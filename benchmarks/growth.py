"""How time and memory grow with the number of images: ``python -m benchmarks.growth``.

Each stage runs in a process of its own, which measures itself on a data set of drawn images. The
results are ``results/growth.csv`` and the figure ``results/figures/growth.pdf``. Memory is the peak
of the process above its memory before the stage. The size of the uint8 images, which grows by
nature, is shown beside it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.memory import peak
from benchmarks.runner import machine, versions
from covid_project.files import whole_file, write_csv

COUNTS = (500, 2000, 8000, 14_000)
SIZE = 128  # pixels, of the files and of the images
CLASSES = ("COVID", "NORMAL")
PART = 512  # images that are explained at a time


def draw(folder: Path, count: int) -> None:
    """Write images of coarse random blots, no two alike, in the folders of two classes.

    Parameters
    ----------
    folder : Path
        Folder to write.
    count : int, from 1
        Number of images.
    """
    for number in range(count):
        grey = np.random.default_rng(number).integers(0, 256, (12, 12), dtype=np.uint8)
        path = folder / CLASSES[number % 2] / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(grey).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        image.save(path, compress_level=1)


# ---- stages: each takes the folder and its number of images, and returns the work to measure ----


def load(folder: Path, _: int) -> Callable[[], object]:
    """Prepare to decode and resize all images into the array on disk.

    Parameters
    ----------
    folder : Path
        Folder of the images.
    _ : int
        Not used.

    Returns
    -------
    callable
        The work to measure.
    """
    from covid_lab.datasets import load_images, open_dataset
    from covid_lab.storage import filled_array

    dataset = open_dataset(folder)
    shape = (len(dataset.table), SIZE, SIZE, 1)

    def work() -> None:
        with tempfile.TemporaryDirectory() as cache:
            filled_array(
                Path(cache, "images.npy"),
                shape,
                lambda images: load_images(dataset, SIZE, into=images),
            )

    return work


def audit(folder: Path, _: int) -> Callable[[], object]:
    """Prepare all checks of ``python -m covid_lab audit``.

    Parameters
    ----------
    folder : Path
        Folder of the images.
    _ : int
        Not used.

    Returns
    -------
    callable
        The work to measure.
    """
    from covid_lab.audit.command import Request
    from covid_lab.audit.command import audit as audited

    return lambda: audited(Request(data=folder))


def training_epoch(_: Path, count: int) -> Callable[[], object]:
    """Prepare one epoch of the baseline in augmented batches of 32.

    Parameters
    ----------
    _ : Path
        Not used.
    count : int, from 1
        Number of images.

    Returns
    -------
    callable
        The work to measure.
    """
    from covid_lab.training import fit
    from covid_project.pipeline import training_batches
    from covid_project.settings import Augmentation

    images, labels = _images(count)
    amounts = Augmentation(flip=True, rotation=10, zoom=0.1, shift=0, brightness=0, contrast=0)
    model = _network(images)
    # Compilation and one-time allocations are not measured.
    fit(model, training_batches(images[:64], labels[:64], 32, amounts, 0), learning_rate=1e-3,
        epochs=1)  # fmt: skip
    return lambda: fit(
        model, training_batches(images, labels, 32, amounts, 0), learning_rate=1e-3, epochs=1
    )


def evaluation(_: Path, count: int) -> Callable[[], object]:
    """Prepare the logit of every image, and the metrics with their intervals.

    Parameters
    ----------
    _ : Path
        Not used.
    count : int, from 1
        Number of images.

    Returns
    -------
    callable
        The work to measure.
    """
    from covid_project.evaluation import metrics_table
    from covid_project.models import logits

    images, labels = _images(count)
    model = _network(images)
    logits(model, images[:64])
    return lambda: metrics_table(labels, logits(model, images))


def explanation(_: Path, count: int) -> Callable[[], object]:
    """Prepare Grad-CAM of every image, `PART` at a time.

    Parameters
    ----------
    _ : Path
        Not used.
    count : int, from 1
        Number of images.

    Returns
    -------
    callable
        The work to measure.
    """
    from covid_lab.explain.gradcam import grad_cam

    images, _ = _images(count)
    model = _network(images)
    grad_cam(model, images[:PART], 1)
    return lambda: [
        grad_cam(model, images[first : first + PART], 1).maps.mean()
        for first in range(0, len(images), PART)
    ]


STAGES = {
    "load": load,
    "audit": audit,
    "training epoch": training_epoch,
    "evaluation": evaluation,
    "explanation": explanation,
}


def _images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random images, uint8 (count, SIZE, SIZE, 1), and alternating labels 0 and 1."""
    images = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 1), dtype=np.uint8)
    return images, np.arange(count) % 2


def _network(images: np.ndarray):
    from covid_project.models import baseline_cnn
    from covid_project.normalization import normalization_layer

    return baseline_cnn(SIZE, normalization_layer("fixed", images), filters=16, dropout=0.3)


def measured(stage: str, folder: Path, count: int) -> dict[str, float]:
    """Measure a stage in this process.

    Parameters
    ----------
    stage : str, key of `STAGES`
        The stage.
    folder : Path
        Folder of the images.
    count : int, from 1
        Number of images.

    Returns
    -------
    dict of str to float
        "seconds" and "mib" (peak memory above the memory before, in MiB).
    """
    work = STAGES[stage](folder, count)
    before, start = peak(), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "mib": (peak() - before) / 2**20}


def growth(counts: tuple[int, ...] = COUNTS) -> pd.DataFrame:
    """Measure all stages at all numbers of images.

    Parameters
    ----------
    counts : tuple of int
        Numbers of images.

    Returns
    -------
    pd.DataFrame
        One row per stage and number of images: stage, images, seconds, mib, cache_mib (size of the
        uint8 images in MiB).

    Raises
    ------
    RuntimeError
        The process of a stage fails.
    """
    rows, start = [], time.perf_counter()
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="growth-") as folder:
            draw(Path(folder), count)
            for stage in STAGES:
                command = [sys.executable, "-m", "benchmarks.growth", "--stage", stage, folder]
                done = subprocess.run(
                    [*command, str(count)], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise RuntimeError(f"{stage}, {count} images: {done.stderr}")
                row = json.loads(done.stdout.splitlines()[-1])
                rows.append({"stage": stage, "images": count, **row})
                print(
                    f"{time.perf_counter() - start:4.0f} s  {stage}, {count} images: "
                    f"{row['seconds']:.1f} s, {row['mib']:.0f} MiB",
                    flush=True,
                )
    return pd.DataFrame(rows).assign(cache_mib=lambda table: table["images"] * SIZE**2 / 2**20)


def figure(table: pd.DataFrame) -> plt.Figure:
    """Draw time and memory of each stage against the number of images, on logarithmic axes.

    Parameters
    ----------
    table : pd.DataFrame
        Result of `growth`.

    Returns
    -------
    matplotlib.figure.Figure
        Two panels.
    """
    from covid_project.figures import COLOURS, DASHES, MARKERS, PAGE, STYLE

    styles = zip(
        (*COLOURS, "#CC79A7"), (*DASHES, (0, (5, 1, 1, 1, 1, 1))), (*MARKERS, "v"), strict=True
    )
    with plt.rc_context(STYLE):
        drawn, axes = plt.subplots(1, 2, figsize=(PAGE, 2.8), layout="constrained")
    for (stage, rows), (colour, dashes, marker) in zip(
        table.groupby("stage", sort=False), styles, strict=False
    ):
        style = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4}
        axes[0].plot(rows["images"], rows["seconds"], label=stage, **style)
        axes[1].plot(rows["images"], rows["mib"], **style)
    rows = table.drop_duplicates("images")
    axes[1].plot(rows["images"], rows["cache_mib"], color="0.6", lw=3, label="uint8 images")
    for axis, title in zip(axes, ("time (seconds)", "memory (MiB)"), strict=True):
        axis.set(xscale="log", xlabel=f"images of {SIZE} × {SIZE} pixels", ylabel=title)
        axis.set_xticks(rows["images"], [f"{count:,}" for count in rows["images"]])
        axis.minorticks_off()
    axes[0].set_yscale("log")
    drawn.legend(loc="outside upper center", ncols=5)
    return drawn


def main(arguments: list[str] | None = None) -> None:
    """Measure all stages at all numbers of images, write the table and draw it.

    Parameters
    ----------
    arguments : list of str, optional
        Options; None: those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--to", type=Path, default=Path("results"), help="folder (%(default)s)")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--stage", nargs=3, metavar=("STAGE", "FOLDER", "IMAGES"),
                        help="measure one stage in this process and print it")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.stage:
        stage, folder, count = options.stage
        print(json.dumps(measured(stage, Path(folder), int(count))))
        return
    table = growth(tuple(options.counts)).assign(machine=machine(), versions=versions())
    write_csv(options.to / "growth.csv", table)
    with whole_file(options.to / "figures" / "growth.pdf") as part:
        figure(table).savefig(part, metadata={"CreationDate": None})
    print(f"written: {options.to / 'growth.csv'} and {options.to / 'figures' / 'growth.pdf'}")


if __name__ == "__main__":
    main()
