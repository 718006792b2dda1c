"""CT slices with and without a finding, in two folders: settings and splits of the study."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from covid_lab.audit.duplicates import near_pairs
from covid_lab.audit.groups import clusters, joined_groups
from covid_lab.datasets import load_images, open_dataset
from covid_lab.runs import experiment
from covid_lab.runs.settings import RunSettings, load_study, one_of
from covid_lab.studies.ct import slice_groups
from covid_lab.studies.pruning import SCOPES
from covid_lab.studies.splits import dealt_once
from covid_project.data import DataError, Dataset
from covid_project.settings import Augmentation, one_of_registry, within

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
COMPARED = 128  # pixels at which near copies are sought, as measured in `audit.duplicates`


@dataclass(frozen=True, kw_only=True)
class Network:
    """A plain network of a few convolutions, and how it is trained."""

    filters: tuple[float, ...]
    dense: int = within(1, 4096)
    kernel: int = within(1, 15)
    dropout: float = within(0, 0.95)
    learning_rate: float = within(1e-8, 1)
    batch_size: int = within(1, 4096)


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """The backbone, and the training of its new head."""

    backbone: str = one_of_registry("models", "BACKBONES")
    width: float = within(0.1, 2)
    weights: str  # "imagenet", "random", or the path of a weights file
    without_weights: str = one_of("stop", "random")
    image_size: int = within(32, 512)  # pixels
    augmented_copies: int = within(0, 100)
    dropout: float = within(0, 0.95)
    learning_rate: float = within(1e-8, 1)
    batch_size: int = within(1, 4096)


@dataclass(frozen=True, kw_only=True)
class Compression:
    """Pruning of model B."""

    sparsities: tuple[float, ...]  # each a model of its own, pruned from the dense one
    initial: float = within(0, 0.99)
    epochs: int = within(1, 1000)
    learning_rate: float = within(1e-8, 1)
    scope: str = one_of(*SCOPES)


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """All settings of the study."""

    other_data = ("boxes", "unseen")

    negative: str  # class folders; the positive one is label 1 everywhere
    positive: str
    boxes: str | None  # slices of another source with lesion boxes (DeepLesion), without finding
    unseen: str | None  # a folder or archive of the user's images, to be predicted
    image_size: int = within(64, 512)  # pixels, of all but the pretrained network
    normalization: str = one_of_registry("normalization", "STRATEGIES")
    augmentation: Augmentation
    epochs: int = within(1, 1000)  # at most; early stopping watches validation
    patience: int = within(1, 1000)
    model_a: Network
    model_b: Network
    kernel_sizes: tuple[float, ...]
    batch_sizes: tuple[float, ...]
    image_sizes: tuple[float, ...]  # pixels
    repeats: int = within(1, 20)  # seeds of each variant of model A, and of the source control
    folds: int = within(2, 20)  # of the source control
    source_epochs: int = within(1, 1000)
    model_c: Pretrained
    model_d: Compression
    neighbours: tuple[float, ...]  # tried on validation
    strengths: tuple[float, ...]
    timed_calls: int = within(1, 1000)
    explained: int = within(1, 20)  # images of each class in a grid
    lime_samples: int = within(2, 10_000)

    @property
    def classes(self) -> tuple[str, str]:
        """Names of the labels 0 and 1.

        Returns
        -------
        tuple of str
            Negative and positive class.
        """
        return (self.negative, self.positive)

    @property
    def common(self) -> tuple:
        """Settings on which every result depends.

        Returns
        -------
        tuple
            Normalisation, augmentation and image size.
        """
        return (self.normalization, self.augmentation, self.image_size)


# Settings of a profile, by name or path; without data that of drawn images.
load_settings = partial(load_study, Settings, "ct_lesions")


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
    """Open both class folders and split the images by group.

    Splits in the data are ignored.

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
        The data cannot be read or split.
    """
    dataset = open_dataset(source, classes=settings.classes, as_found=True)
    splits_file = Path(settings.results) / "splits.csv"
    try:
        return dealt_once(dataset, splits_file, patients, SHARES, settings.seed)
    except DataError as error:
        groups = pd.Series(slice_groups(dataset.table["path"])).value_counts()
        series = groups[groups.index.str.contains("/from ")]
        if series.max() > 1:
            raise DataError(
                f"{error}. Files that are numbered in sequence were taken for one patient: "
                f"{series.index[0].replace('/from ', ', from number ')}, {series.iloc[0]} files. "
                "If they are several patients, start the names with the patient: p07_12.png"
            ) from None
        raise


def patients(dataset: Dataset) -> np.ndarray:
    """Return the group of each slice: slices with related names, joined with near copies.

    Parameters
    ----------
    dataset : Dataset
        The slices.

    Returns
    -------
    np.ndarray, int64 (N,)
        Group of each slice, see `covid_lab.studies.ct.slice_groups`.
    """
    copies = near_pairs(load_images(dataset, COMPARED))
    return joined_groups(slice_groups(dataset.table["path"]), clusters(len(dataset.table), copies))
