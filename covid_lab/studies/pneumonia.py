"""Paediatric pneumonia (Kermany et al. 2018): settings and splits of the study."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from covid_lab.datasets import load_images, open_dataset
from covid_lab.external.adapted import KEPT, TABLE, adapted_metrics
from covid_lab.external.inputs import INPUTS
from covid_lab.external.styles import restyle
from covid_lab.lungs.segmentation import segment_lungs
from covid_lab.progress import tracked
from covid_lab.runs import experiment
from covid_lab.runs.settings import RunSettings, load_study, one_of
from covid_lab.studies.splits import dealt_once
from covid_project.augmentation import augment
from covid_project.data import CLASSES as PHANTOM_CLASSES
from covid_project.data import DataError, Dataset, listed
from covid_project.files import cached_array, read_csv, write_csv
from covid_project.models import split_at
from covid_project.pipeline import feature_batches, untuned
from covid_project.settings import (
    Augmentation,
    SettingsError,
    one_of_registry,
    within,
)

CLASSES = ("NORMAL", "PNEUMONIA")  # PNEUMONIA = 1 is the positive class
# Accuracy, AUC and seconds of training that are published for these 624 test images.
PUBLISHED = {
    "mlp": (0.763, 0.832, 1101),
    "cnn": (0.872, 0.936, 3534),
    "transfer": (0.867, 0.936, 2450),
}
# person1000_virus_1681.jpeg, IM-0433-0001-0002.jpeg, NORMAL2-IM-0374-0001-0001.jpeg: the first
# number is the patient, or at least the examination.
PATIENT = r"(?i)/(person\d+|(?:NORMAL2-)?IM-\d+)[-_]"
SERIES = r"(?i)/((?:NORMAL2-)?IM)-\d+[^/]*$"  # NORMAL images have names of two kinds


@dataclass(frozen=True, kw_only=True)
class Network:
    """Training of one network; early stopping and the learning rate watch validation."""

    image_size: int = within(32, 512)  # pixels
    epochs: int = within(1, 1000)  # at most
    patience: int = within(1, 1000)
    learning_rate: float = within(1e-8, 1)
    batch_size: int = within(1, 4096)
    dropout: float = within(0, 0.95)


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """The backbone, its new head, and the fine-tuning of its last layers."""

    backbone: str = one_of_registry("models", "BACKBONES")
    width: float = within(0.1, 2)  # alpha of the MobileNets
    weights: str  # "imagenet", "random", or the path of a weights file
    without_weights: str = one_of("stop", "random")  # when they are unavailable
    augmented_copies: int = within(0, 100)
    head: Network
    last_layers: int = within(0, 1000)  # fine-tuned; 0: those of the backbone's last stage
    tuned_epochs: int = within(1, 1000)
    tuned_learning_rate: float = within(1e-8, 1)


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """All settings of the study."""

    other_data = ("other_site",)

    validation_share: float = within(0.01, 0.5)  # fraction of the training images
    inputs: tuple[str, ...]  # keys of `INPUTS`, of which one is chosen on images of another kind
    styled_copies: int = within(0, 100)  # of each training image, for the networks from scratch
    other_site: str | None  # archive of another collection, whose validation split helps to choose
    comparison: Network  # a small CNN, by which the inputs are compared
    comparison_filters: int = within(1, 512)
    normalization: str = one_of_registry("normalization", "STRATEGIES")
    augmentation: Augmentation
    plateau: int = within(1, 100)  # epochs without a lower validation loss: smaller steps
    mlp: Network
    mlp_units: tuple[int, ...]  # of each hidden layer
    cnn: Network
    cnn_filters: int = within(1, 512)
    transfer: Pretrained
    occlusion_patch: int = within(1, 512)  # pixels at the pretrained network's size
    occlusion_stride: int = within(1, 512)
    explained: int = within(1, 100)  # images per row of the occlusion figures

    def __post_init__(self):
        super().__post_init__()
        unknown = sorted(set(self.inputs) - set(INPUTS))
        if unknown or not self.inputs:
            raise SettingsError(
                f"inputs: found {listed(unknown) or 'none'}; allowed: one or more of "
                f"{listed(INPUTS)}"
            )

    @property
    def common(self) -> tuple:
        """Settings on which every result depends.

        Returns
        -------
        tuple
            Inputs, styled copies, other site, normalisation, augmentation and validation fraction.
        """
        return (
            self.inputs,
            self.styled_copies,
            self.other_site and Path(self.other_site).name,
            self.normalization,
            self.augmentation,
            self.validation_share,
        )


# Settings of a profile, by name or path; without data that of drawn images.
load_settings = partial(load_study, Settings, "pneumonia")


def begin(settings: Settings) -> experiment.StudyRun:
    """Open the data and claim the results folder.

    Parameters
    ----------
    settings : Settings
        Settings of the study.

    Returns
    -------
    StudyRun
        The run, see `covid_lab.runs.experiment.begin`.
    """
    return experiment.begin(settings, open_data)


def open_data(source: Path, settings: Settings) -> Dataset:
    """Open NORMAL and PNEUMONIA with their test split, and split the rest by patient.

    The archive's own validation split, if it has one (16 images, too few to choose by), is split
    again with the training images. Phantoms keep the names of their own classes.

    Parameters
    ----------
    source : Path
        Folder or archive of the data.
    settings : Settings
        Settings of the study.

    Returns
    -------
    Dataset
        The data with the study's splits.

    Raises
    ------
    DataError
        The data cannot be read or split, or have no test split.
    """
    drawn = Path(source, "phantoms.json").is_file()
    dataset = open_dataset(source, classes=PHANTOM_CLASSES if drawn else CLASSES, as_found=True)
    if "test" not in set(dataset.table["split"]):
        raise DataError(
            f"{source}: no test split, which the study uses unchanged. Found: "
            f"{listed(sorted(set(dataset.table['split'])))}; a folder test is needed"
        )
    share = settings.validation_share
    return dealt_once(
        dataset,
        Path(settings.results) / "splits.csv",
        patients,
        {"train": 1 - share, "val": share},
        settings.seed,
        kept=("test",),
    )


def patients(dataset: Dataset) -> np.ndarray:
    """Return the patient of each image from its file's name.

    Parameters
    ----------
    dataset : Dataset
        The images.

    Returns
    -------
    np.ndarray, str (N,)
        Patient; the path of an image whose name does not identify one.
    """
    paths = dataset.table["path"]
    found = paths.str.extract(PATIENT, expand=False).str.lower()
    return found.fillna(paths).to_numpy(dtype=object)


def series(paths: pd.Series) -> np.ndarray:
    """Return the series, IM or NORMAL2-IM, of each image from its file's name.

    Parameters
    ----------
    paths : pd.Series of str, (N,)
        POSIX paths.

    Returns
    -------
    np.ndarray, str (N,)
        Series; "" where the name does not identify one.

    Examples
    --------
    >>> paths = pd.Series(["NORMAL/NORMAL2-IM-0374-0001.jpeg", "PNEUMONIA/person1_virus_6.jpeg"])
    >>> series(paths).tolist()
    ['NORMAL2-IM', '']
    """
    return paths.str.extract(SERIES, expand=False).str.upper().fillna("").to_numpy(dtype=str)


def change_input(images: np.ndarray, name: str) -> np.ndarray:
    """Change images before a network sees them.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, S, S, 1), 0–255
        Grey values.
    name : str
        A key of `covid_lab.external.inputs.INPUTS`, such as "CLAHE" or "rank inside the lungs".

    Returns
    -------
    np.ndarray, uint8 (N, S, S, 1), 0–255
        Changed images; "as it is" returns them unchanged.
    """
    if name == "as it is":
        return images
    pairs = zip(
        tracked(images[..., 0], f"images: {name}"), segment_lungs(images[..., 0]), strict=True
    )
    return np.stack([INPUTS[name](image, lungs) for image, lungs in pairs])[..., None]


def prepared(run: experiment.StudyRun, image_size: int, name: str) -> np.ndarray:
    """Change all images of a run as by `change_input`; the result is stored in the run's cache.

    Parameters
    ----------
    run : StudyRun
        The run with its images.
    image_size : int, 32–512
        Pixels along each side.
    name : str
        See `change_input`.

    Returns
    -------
    np.ndarray, uint8 (N, image_size, image_size, 1), 0–255
        Images in the order of the data set's table.
    """
    path = run.cache / f"images-{image_size}-{name}.npy"
    return cached_array(path, lambda: change_input(run.images(image_size), name))


def training_copies(
    run: experiment.StudyRun, image_size: int, name: str, seed: int
) -> list[np.ndarray]:
    """Draw copies of the training images in random styles, and change them as by `change_input`.

    How the same radiograph could look from another hospital, see
    `covid_lab.external.styles.restyle`. The result is stored in the run's cache.

    Parameters
    ----------
    run : StudyRun
        The run with its images.
    image_size : int, 32–512
        Pixels along each side.
    name : str
        See `change_input`.
    seed : int, from 0
        Seed of the styles.

    Returns
    -------
    list of np.ndarray, uint8 (N, image_size, image_size, 1), 0–255
        First the training images themselves, then ``settings.styled_copies`` copies of them.
    """
    rows = run.dataset.rows("train")
    copies = [prepared(run, image_size, name)[rows]]
    for copy in range(1, run.settings.styled_copies + 1):

        def draw(copy=copy):
            grey = run.images(image_size)[rows][..., 0]
            drawn = [
                restyle(image, grey, np.random.default_rng([seed, copy, row]))
                for row, image in enumerate(tracked(grey, f"styles, copy {copy}"))
            ]
            return change_input(np.stack(drawn)[..., None], name)

        copies.append(cached_array(run.cache / f"styles-{image_size}-{name}-{copy}.npy", draw))
    return copies


def augmented_batches(
    copies: Sequence[np.ndarray],
    labels: np.ndarray,
    batch_size: int,
    amounts: Augmentation,
    seed: int,
) -> tf.data.Dataset:
    """Form batches for training: in each epoch one copy of every image, drawn and augmented.

    Parameters
    ----------
    copies : sequence of np.ndarray, each uint8 (N, S, S, 1), 0–255
        The images and copies of them, as from `training_copies`.
    labels : np.ndarray, int (N,), 0 or 1
        Labels of the images.
    batch_size : int, from 1
        Images of a batch; the last one of an epoch may be smaller.
    amounts : Augmentation
        Range of each random transformation.
    seed : int, from 0
        Seed of orders, copies and transformations.

    Returns
    -------
    tf.data.Dataset
        Finite, of (float32 (B, S, S, 1) in 0–255, float32 (B, 1)).
    """
    batches = feature_batches(copies, labels, batch_size, seed)
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)

    def form(batch, batch_seed):
        images, truth = batch
        return augment(images, amounts, batch_seed), truth

    return untuned(tf.data.Dataset.zip(batches, seeds).map(form).prefetch(2))


def other_site(settings: Settings, image_size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Read images of another collection, on which the networks are compared but not trained.

    Parameters
    ----------
    settings : Settings
        ``other_site`` is the path of the collection, in any layout that the package reads.
    image_size : int, 32–512
        Pixels along each side.

    Returns
    -------
    tuple of np.ndarray or None
        Images uint8 (N, image_size, image_size, 1) and labels int (N,) of its validation split, or
        of all images where there are no splits. None without another collection.

    Raises
    ------
    DataError
        The collection has no validation images of both classes, or cannot be read.
    """
    if settings.other_site is None:
        return None
    dataset = open_dataset(settings.other_site, classes=None, as_found=True)
    split = dataset.table["split"].to_numpy()
    rows = np.flatnonzero(split == ("val" if (split != "").any() else ""))
    labels = dataset.table["label"].to_numpy()[rows]
    if set(labels) != {0, 1}:
        raise DataError(
            f"{settings.other_site}: found {len(rows)} validation images with the labels "
            f"{listed(sorted(set(labels))) or 'none'}; allowed: images of two classes"
        )
    return load_images(dataset, image_size)[rows], labels


def clean_cut(backbone: keras.Model, last_layers: int) -> str:
    """Find the layer after which a backbone can be cut so that its last layers are above.

    Parameters
    ----------
    backbone : keras.Model
        Flat, with connections that bypass layers.
    last_layers : int, from 1
        Number of layers, counted from the output, that must be above the cut.

    Returns
    -------
    str
        Name of the highest such layer.

    Raises
    ------
    ValueError
        The backbone cannot be cut so low.
    """
    for layer in reversed(backbone.layers[1:-last_layers]):
        try:
            split_at(backbone, layer.name)
        except ValueError:
            continue
        return layer.name
    raise ValueError(
        f"{backbone.name} has {len(backbone.layers)} layers and cannot be cut below the last "
        f"{last_layers}"
    )


def freeze_all_but_last(backbone: keras.Model, last_layers: int) -> None:
    """Freeze the layers of a backbone below its last ones: its cut may be lower than these.

    Parameters
    ----------
    backbone : keras.Model
        Changed in place.
    last_layers : int, from 0
        Number of layers, counted from the output, that stay as they are; 0 for all.
    """
    for layer in backbone.layers[:-last_layers] if last_layers else []:
        layer.trainable = False


def adapt_kept(results: Path, seed: int = 0, source: str = KEPT) -> pd.DataFrame:
    """Choose thresholds from the unlabelled images of the test split, using stored scores.

    No image is read. The rules were fixed on validation scores (`covid_lab.external.adapt`); the
    test split had been read before.

    Parameters
    ----------
    results : Path
        Folder with ``scores_<network>_val.csv`` and ``scores_<network>_test.csv``; ``adapted.csv``
        is written to it.
    seed : int, from 0
        Seed of the bootstrap.
    source : str
        What the table says of the scores, `covid_lab.external.adapted.KEPT` or ``NOW``.

    Returns
    -------
    pd.DataFrame
        Columns stage, split and source, those of `covid_lab.external.adapted.adapted_metrics`, and
        published (the published accuracy on these test images). Rows of the validation split show
        the cost of the mixture, rows of the test split its gain.

    Raises
    ------
    DataError
        Scores of a network are missing.
    """
    tables = []
    for stage, (published, *_) in PUBLISHED.items():
        val, test = (read_csv(Path(results, f"scores_{stage}_{s}.csv")) for s in ("val", "test"))
        if not (len(val) and len(test)):
            raise DataError(f"{results} has no scores of {stage} on both splits")
        for split, scores, reference in (("val", val, None), ("test", test, val)):
            table = adapted_metrics(scores["label"], scores["score"], reference, seed)
            table.insert(0, "stage", stage)
            table.insert(1, "split", split)
            table.insert(2, "source", source)
            shown = (table["metric"] == "accuracy") & (split == "test")
            tables.append(table.assign(published=np.where(shown, published, np.nan)))
    found = pd.concat(tables, ignore_index=True)
    write_csv(Path(results, TABLE), found)
    return found
