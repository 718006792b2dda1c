"""How time and memory grow with the number of images: ``python -m benchmarks.growth``.

Each stage runs in a process of its own, which measures itself on a data set of drawn images. The
result is ``results/growth.csv``. Memory is the peak of the process above its memory before the
stage. The size of the uint8 images, which grows by nature, is beside it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.runner import machine, versions
from covid_project.files import write_csv

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


def _load(folder: Path, _: int) -> Callable[[], object]:
    """Prepare to decode and resize all images into the array on disk."""
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


def _audit(folder: Path, _: int) -> Callable[[], object]:
    """Prepare all checks of ``python -m covid_lab audit``."""
    from covid_lab.audit.command import Request
    from covid_lab.audit.command import audit as audited

    return lambda: audited(Request(data=folder))


def _training_epoch(_: Path, count: int) -> Callable[[], object]:
    """Prepare one epoch of the baseline in augmented batches of 32."""
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


def _evaluation(_: Path, count: int) -> Callable[[], object]:
    """Prepare the logit of every image, and the metrics with their intervals."""
    from covid_project.evaluation import metrics_table
    from covid_project.models import logits

    images, labels = _images(count)
    model = _network(images)
    logits(model, images[:64])
    return lambda: metrics_table(labels, logits(model, images))


def _explanation(_: Path, count: int) -> Callable[[], object]:
    """Prepare Grad-CAM of every image, `PART` at a time."""
    from covid_lab.explain.gradcam import grad_cam

    images, _ = _images(count)
    model = _network(images)
    grad_cam(model, images[:PART], 1)
    return lambda: [
        grad_cam(model, images[first : first + PART], 1).maps.mean()
        for first in range(0, len(images), PART)
    ]


STAGES = {
    "load": _load,
    "audit": _audit,
    "training epoch": _training_epoch,
    "evaluation": _evaluation,
    "explanation": _explanation,
}


def _images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random images, uint8 (count, SIZE, SIZE, 1), and alternating labels 0 and 1."""
    images = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 1), dtype=np.uint8)
    return images, np.arange(count) % 2


def _network(images: np.ndarray):
    from covid_project.models import baseline_cnn
    from covid_project.normalization import normalization_layer

    return baseline_cnn(SIZE, normalization_layer("fixed", images), filters=16, dropout=0.3)


def _measured(stage: str, folder: Path, count: int) -> dict[str, float]:
    """Measure a stage in this process."""
    work = STAGES[stage](folder, count)
    before, start = _peak(), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "mib": (_peak() - before) / 2**20}


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


def _peak() -> int:
    """Largest memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not `ru_maxrss`, which on Linux begins with the peak of the process that started this one.
        peak = next(text for text in status.read_text().splitlines() if text.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def main(arguments: list[str] | None = None) -> None:
    """Measure all stages at all numbers of images, and write the table.

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
        print(json.dumps(_measured(stage, Path(folder), int(count))))
        return
    table = growth(tuple(options.counts)).assign(machine=machine(), versions=versions())
    write_csv(options.to / "growth.csv", table)
    print(f"written: {options.to / 'growth.csv'}")


if __name__ == "__main__":
    main()
