"""Paediatric pneumonia (Kermany et al. 2018): settings and splits of the study."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from skimage.exposure import equalize_adapthist

from covid_lab.datasets import open_dataset
from covid_lab.external.adapted import KEPT, TABLE, adapted_metrics
from covid_lab.progress import tracked
from covid_lab.runs import experiment
from covid_lab.runs.settings import RunSettings, load_study
from covid_lab.studies.splits import dealt_once
from covid_project.data import CLASSES as PHANTOM_CLASSES
from covid_project.data import DataError, Dataset, listed
from covid_project.files import cached_array, read_csv, write_csv
from covid_project.settings import Augmentation, one_of, one_of_registry, within

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
    tuned_epochs: int = within(1, 1000)
    tuned_learning_rate: float = within(1e-8, 1)


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """All settings of the study."""

    validation_share: float = within(0.01, 0.5)  # fraction of the training images
    clip_limits: tuple[float, ...]  # of local equalisation, tried on a series left out; 0: none
    normalization: str = one_of_registry("normalization", "STRATEGIES")
    augmentation: Augmentation
    plateau: int = within(1, 100)  # epochs without a lower validation loss: smaller steps
    mlp: Network
    mlp_units: int = within(1, 4096)
    cnn: Network
    cnn_filters: int = within(1, 512)
    transfer: Pretrained
    occlusion_patch: int = within(1, 512)  # pixels at the pretrained network's size
    occlusion_stride: int = within(1, 512)
    explained: int = within(1, 100)  # images per row of the occlusion figures

    @property
    def common(self) -> tuple:
        """Settings on which every result depends.

        Returns
        -------
        tuple
            Clip limits, normalisation, augmentation and validation fraction.
        """
        return (self.clip_limits, self.normalization, self.augmentation, self.validation_share)


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


def equalized(run: experiment.StudyRun, image_size: int, clip_limit: float) -> np.ndarray:
    """Equalise the contrast of all images locally, once per run.

    The method is contrast-limited adaptive histogram equalisation (Zuiderveld 1994) in tiles of an
    eighth of the side. The result is stored in the run's cache.

    Parameters
    ----------
    run : StudyRun
        The run with its images.
    image_size : int, 32–512
        Pixels along each side.
    clip_limit : float, 0–1
        Largest fraction of a tile's pixels that one grey value may keep; 0 leaves the images
        unchanged.

    Returns
    -------
    np.ndarray, uint8 (N, image_size, image_size, 1)
        Images in the order of the data set's table.
    """
    images = run.images(image_size)
    if clip_limit == 0:
        return images

    def compute() -> np.ndarray:
        what = f"images equalised at {image_size} pixels"
        found = [
            equalize_adapthist(image[..., 0], clip_limit=clip_limit)
            for image in tracked(images, what)
        ]
        return np.round(255 * np.stack(found)[..., None]).astype(np.uint8)

    return cached_array(run.cache / f"images-{image_size}-clip-{clip_limit:g}.npy", compute)


def adapt_kept(results: Path, seed: int = 0) -> pd.DataFrame:
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
            table.insert(2, "source", KEPT)
            shown = (table["metric"] == "accuracy") & (split == "test")
            tables.append(table.assign(published=np.where(shown, published, np.nan)))
    found = pd.concat(tables, ignore_index=True)
    write_csv(Path(results, TABLE), found)
    return found
