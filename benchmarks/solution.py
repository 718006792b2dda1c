"""Benchmark of the whole course run, against the recipe of published notebooks for the same task.

Their recipe: `ImageDataGenerator` reads and augments the files in every epoch, the first network
has convolution, BatchNorm, ReLU and pooling from full resolution on, and every epoch of transfer
learning runs through the frozen backbone. Both sides search the same trials with the same epochs.
A whole run of theirs takes hours, so both are estimated: the seconds per image and epoch, measured
here, times the images and epochs of the committed run. The images are drawn; the time does not
depend on what they show.
"""

import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from PIL import Image

from benchmarks.course import MEASURED, epoch_seconds, estimate, read_counts
from benchmarks.runner import Benchmark
from covid_project.files import read_csv
from covid_project.models import (
    BACKBONES,
    baseline_cnn,
    build_backbone,
    classification_head,
    transfer_model,
    unfreeze_above,
)
from covid_project.normalization import normalization_layer
from covid_project.pipeline import training_batches
from covid_project.settings import PROJECT, Settings, load_settings
from covid_project.training import set_seed

RUN = PROJECT / "results"
BATCH = 32
STORED = 256  # pixels of the files


def benchmarks(run: Path = RUN) -> Iterator[Benchmark]:
    """Estimate the seconds of the course run by both recipes, in one process.

    Parameters
    ----------
    run : Path
        Results folder of the finished run whose settings and numbers of epochs are used.

    Yields
    ------
    Benchmark
        One comparison.
    """
    settings = load_settings(run / "settings.yaml", data="unused", results="unused")
    work = settings, run, baseline_epochs(run, settings)
    yield Benchmark(
        name="trainings of the course run, estimated from seconds per epoch",
        against="published notebooks: generator, full resolution, frozen layers in every epoch",
        ours=lambda: _ours(*work),
        peer=lambda: _published(*work),
        promised=5,
        repeats=2,
        unit="seconds",
    )


def baseline_epochs(run: Path, settings: Settings) -> int:
    """Count the epochs that the baseline was trained in a finished run.

    Parameters
    ----------
    run : Path
        Results folder of the run.
    settings : Settings
        Settings of the run.

    Returns
    -------
    int
        Epochs of all trials, of the first training and of the final one.
    """
    spec = settings.baseline
    trials = read_csv(run / "tuning_baseline.csv")["best_epoch"]
    stopped = np.minimum(trials + spec.patience, spec.max_epochs).sum()
    return int(stopped) + spec.initial_epochs + len(read_csv(run / "history_baseline.csv"))


def _ours(settings: Settings, run: Path, epochs: int) -> float:
    """Estimate our trainings: frozen features once, then small networks on them."""
    set_seed(0)
    images = _drawn(settings.image_size)
    normalization = normalization_layer("fixed", images)
    filters = int(settings.baseline.start["filters"])
    model = baseline_cnn(settings.image_size, normalization, filters=filters, dropout=0.2)
    labels = np.arange(MEASURED) % 2
    batches = training_batches(images, labels, BATCH, settings.augmentation, 0)
    baseline = epoch_seconds(model, batches) / MEASURED * read_counts(run)["images"] * epochs
    return baseline + estimate(settings, run)["seconds"].sum()


def _published(settings: Settings, run: Path, epochs: int) -> float:
    """Estimate the same search by the recipe of published notebooks."""
    set_seed(0)
    spec, counts = settings.transfer, read_counts(run)
    backbone = build_backbone(spec.backbone, spec.image_size, width=spec.width, weights="random")
    backbone.trainable = False
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        write_files(Path(folder))
        plain = _plain_cnn(settings.image_size, int(settings.baseline.start["filters"]))
        seconds = epochs * epoch_seconds(plain, generator(folder, settings.image_size))
        model, source = transfer_model(backbone, dropout=0.2), generator(folder, spec.image_size)
        seconds += counts["head_epochs"] * epoch_seconds(model, source)
        unfreeze_above(model, BACKBONES[spec.backbone].frozen_up_to)
        seconds += counts["fine_tuning_epochs"] * epoch_seconds(model, source)
    return seconds / MEASURED * counts["images"]


def _plain_cnn(image_size: int, filters: int) -> keras.Model:
    """Build a plain network: four times convolution, BatchNorm, ReLU and pooling."""
    images = keras.Input((image_size, image_size, 1))
    x = layers.Rescaling(1 / 127.5, -1)(images)
    for width in (filters, 2 * filters, 4 * filters, 8 * filters):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.95)(x)  # as in ours: there are few steps
        x = layers.MaxPooling2D()(layers.ReLU()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, classification_head(x, dropout=0.3))


def _drawn(image_size: int) -> np.ndarray:
    """Draw noise, in grey values 0–255."""
    shape = (MEASURED, image_size, image_size, 1)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_files(folder: Path) -> None:
    """Write the images as PNG files of two classes, at the stored size.

    Parameters
    ----------
    folder : Path
        Gets a folder for each class.
    """
    for number, image in enumerate(_drawn(STORED)):
        path = folder / ("COVID" if number % 2 else "NORMAL") / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)


def generator(folder: str | Path, image_size: int):
    """Read and augment the files in every epoch, as published notebooks do.

    Parameters
    ----------
    folder : str or Path
        From `write_files`.
    image_size : int
        Pixels along each side.

    Returns
    -------
    keras.utils.PyDataset
        Grey images and labels.
    """
    source = tf.keras.preprocessing.image.ImageDataGenerator(
        horizontal_flip=True, rotation_range=10, zoom_range=0.1
    )
    with redirect_stdout(StringIO()):
        return source.flow_from_directory(
            folder,
            target_size=(image_size, image_size),
            color_mode="grayscale",
            class_mode="binary",
            batch_size=BATCH,
            seed=0,
        )
