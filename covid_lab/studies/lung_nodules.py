"""Lung nodules by malignancy: settings, splits, prepared slices, and the test evaluation.

Views: "full", the whole axial slice, and "nodule", the cut-out around the nodule; data may lack the
full view. Tasks: "five", the malignancies 1 to 5, and "binary", malignant from a given one on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from covid_lab.runs import experiment
from covid_lab.runs.settings import CACHE, RunSettings, load_study, one_of
from covid_lab.studies import cgan, ct_phantoms
from covid_lab.studies.ct_preprocessing import (
    as_grey,
    clahe,
    gamma_corrected,
    laplacian_variance,
    lung_mask,
    resized,
    standard_size,
    to_unit,
    without_background,
)
from covid_lab.studies.nodule_images import (
    grey_measures,
    holds_images,
    open_nodules,
    outline_measures,
    read_nodule,
)
from covid_lab.studies.nodule_training import Training
from covid_lab.studies.nrrd_slices import VIEWS, Image, load_masks, load_slices, open_slices
from covid_lab.studies.splits import dealt_once
from covid_project.data import Dataset
from covid_project.files import cached_array, fingerprint
from covid_project.models import BACKBONES, model_fingerprint, outputs
from covid_project.settings import SettingsError, within

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


@dataclass(frozen=True, kw_only=True)
class DrawnSlices:
    """Drawn slices, used where no real ones are given (see ``ct_phantoms``)."""

    size: int = within(ct_phantoms.SMALLEST_SIZE, 1024)  # pixels of a full view
    slices: int = within(25, 100_000)
    per_patient: int = within(1, 100)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How slices are prepared."""

    low: float = within(-2000, 3000)  # HU that becomes 0
    high: float = within(-2000, 3000)  # HU that becomes 1
    gamma: float = within(0.1, 10)
    clip_limit: float = within(1, 100)  # of CLAHE; 1: no CLAHE, as contrast may not grow
    tiles: int = within(1, 64)  # of CLAHE, down and across
    only_lungs: bool  # in the full view, pixels outside the lungs become 0
    noise_percentile: float = within(50, 100)  # training images above it are removed; 100: none

    def __post_init__(self):
        if self.low >= self.high:
            raise SettingsError(
                f"low is {self.low} and high {self.high} HU: low must be below high"
            )


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Everything that the study depends on."""

    phantoms: DrawnSlices | None
    malignant_from: int = within(2, 5)  # in the binary task
    preparation: Preparation
    image_size: int = within(32, 512)  # pixels, of a backbone's input
    backbones: dict[str, float]  # name: width multiplier; the first is the one that is explained
    weights: str = one_of("imagenet", "random")
    without_weights: str = one_of("stop", "random")  # when they are unavailable
    training: Training
    seeds: int = within(1, 100)  # trainings of each case
    cgan: cgan.Recipe
    augmented_copies: int = within(0, 100)  # made before the training
    small_epochs: int = within(1, 1000)  # of the small network on which augmentation is compared
    explained: int = within(1, 1000)  # test images in the Grad-CAM table

    def __post_init__(self):
        super().__post_init__()
        unknown = sorted(set(self.backbones) - set(BACKBONES))
        if unknown or not self.backbones:
            raise SettingsError(
                f"backbones must name some of {', '.join(BACKBONES)}, found {unknown or 'none'}"
            )

    @property
    def common(self) -> tuple:
        """Values that every result depends on.

        Returns
        -------
        tuple
        """
        return (self.preparation, self.malignant_from, self.image_size)


# Settings of a profile, by name or path; without data that of drawn slices.
load_settings = partial(load_study, Settings, "lung_nodules")


def begin(settings: Settings) -> experiment.StudyRun:
    """Open the data, or draw them, and claim the results folder.

    Parameters
    ----------
    settings : Settings

    Returns
    -------
    StudyRun
        See `experiment.begin`.
    """
    return experiment.begin(settings, open_data, _drawn)


def open_data(source: Path, settings: Settings) -> Dataset:
    """Open slices in NRRD files, or nodules in PNG files, and split them once by patient.

    Parameters
    ----------
    source : Path
        Folder or archive.
    settings : Settings
        Their results folder holds ``splits.csv``.

    Returns
    -------
    Dataset
    """
    dataset = open_nodules(source) if holds_images(source) else open_slices(source)
    splits_file = Path(settings.results) / "splits.csv"
    return dealt_once(dataset, splits_file, lambda data: data.table["group"], SHARES, settings.seed)


def _drawn(settings: Settings) -> Path:
    asked = settings.phantoms
    made = {**vars(asked), "drawing": ct_phantoms.DRAWING, "seed": settings.seed}
    folder = CACHE / f"ct-phantoms-{fingerprint(made)}"
    return ct_phantoms.write_dataset(
        folder, asked.slices, asked.per_patient, asked.size, settings.seed
    )


# ---- prepared slices ----------------------------------------------------------------------------


def is_grey(dataset: Dataset) -> bool:
    """Tell whether the pixels are grey values of PNG files, not Hounsfield units.

    Parameters
    ----------
    dataset : Dataset
        From `open_data`.

    Returns
    -------
    bool
    """
    return "ratings" in dataset.table


def views_of(dataset: Dataset) -> tuple[str, ...]:
    """List the views that the data have.

    Parameters
    ----------
    dataset : Dataset
        From `open_data`.

    Returns
    -------
    tuple of str
        Some of `nrrd_slices.VIEWS`.
    """
    return tuple(view for view in VIEWS if view in dataset.table)


def load_view[Kind](
    dataset: Dataset,
    view: str,
    change: Callable[[Image], Kind] = lambda image: image,
    *,
    progress: str | None = None,
) -> list[Kind]:
    """Read the images of a view, one after the other.

    Parameters
    ----------
    dataset : Dataset
        From `open_data`.
    view : str
        One of `views_of`.
    change : callable
        Applied to each `Image`.
    progress : str, optional
        Title of the progress; None shows nothing.

    Returns
    -------
    list
        Results of ``change``, in the order of the table.
    """
    if not is_grey(dataset):
        return load_slices(dataset, view, change, progress=progress)
    return [change(read_nodule(dataset, row)[0]) for row in range(len(dataset.table))]


def view_masks(dataset: Dataset, view: str, rows: Sequence[int] | None = None) -> list[np.ndarray]:
    """Read the nodule's masks in images of a view.

    Parameters
    ----------
    dataset : Dataset
        From `open_data`.
    view : str
        One of `views_of`.
    rows : sequence of int, optional
        Rows of the table; by default all.

    Returns
    -------
    list of np.ndarray, bool (H, W)
        Empty where the data have no masks.
    """
    if not is_grey(dataset):
        return load_masks(dataset, view, rows)
    rows = range(len(dataset.table)) if rows is None else rows
    return [read_nodule(dataset, row)[1] for row in rows]


def nodule_measures(run: experiment.StudyRun) -> np.ndarray | None:
    """Measure outline and grey values of all nodules, from the nodule view and its masks.

    Parameters
    ----------
    run : StudyRun

    Returns
    -------
    np.ndarray, float64 (N, 12)
        As `nodule_images.OUTLINE`, then `nodule_images.GREY`; None without masks.
    """
    masks = view_masks(run.dataset, "nodule")
    if not masks:
        return None
    images = load_view(run.dataset, "nodule")
    return np.array([
        [*outline_measures(mask, image.spacing[0] if image.spacing else 0.7),
         *grey_measures(image.values, mask)]
        for image, mask in zip(images, masks, strict=True)
    ])  # fmt: skip


def steps(
    image: Image, view: str, preparation: Preparation, standard: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Compute every step of the preparation of one slice, in order; the last one is used.

    Parameters
    ----------
    image : Image
        In Hounsfield units, or grey values 0–255 of the unit "grey".
    view : str
    preparation : Preparation
    standard : tuple of int
        Height and width of the prepared nodule view, pixels.

    Returns
    -------
    dict of str to np.ndarray, (H, W)
        "HU" or "grey" is as given, the others are in [0, 1]. Full view: scaled, gamma, CLAHE and,
        with ``only_lungs``, only the lungs. Nodule view: scaled, standard size, gamma, CLAHE.
        CLAHE is left out with a clip limit of 1.
    """
    grey = image.unit == "grey"
    bounds = (0, 255) if grey else (preparation.low, preparation.high)
    found = {"grey" if grey else "HU": image.values}
    found["scaled"] = to_unit(image.values, bounds)
    if view == "nodule":
        found["standard size"] = resized(found["scaled"], standard)
    last = list(found.values())[-1]
    found["gamma"] = last = gamma_corrected(last, preparation.gamma)
    if preparation.clip_limit > 1:
        tiles = (preparation.tiles, preparation.tiles)
        found["CLAHE"] = last = clahe(last, preparation.clip_limit, tiles)
    if view == "full" and preparation.only_lungs:
        mask = lung_mask(image.values, image.spacing[0] if image.spacing else 0.7)
        found["lungs alone"] = without_background(last, mask)
    return found


@dataclass(frozen=True, eq=False)
class View:
    """All slices of one view, prepared, in the order of the data set's table.

    Attributes
    ----------
    images : np.ndarray, uint8 (N, S, S, 1)
    measures : pd.DataFrame
        Columns height, width (pixels), variance (of the Laplacian), lungs (fraction of the area).
    """

    images: np.ndarray
    measures: pd.DataFrame


def prepared_views(run: experiment.StudyRun) -> tuple[dict[str, View], tuple[int, int]]:
    """Prepare all views; they are computed once and stored in the cache.

    Parameters
    ----------
    run : StudyRun

    Returns
    -------
    views : dict of str to View
    standard : tuple of int
        Standard size of the nodule view (height, width), from the training images.
    """
    settings = run.settings
    key = fingerprint(str(settings.preparation), str(settings.image_size))
    sizes = cached_array(
        run.cache / "nodule-sizes.npy",
        lambda: np.array(load_view(run.dataset, "nodule", lambda image: image.values.shape)),
    )
    standard = standard_size(map(tuple, sizes[run.dataset.rows("train")]))
    views = {view: _view(run, view, key, standard) for view in views_of(run.dataset)}
    return views, standard


def _view(run: experiment.StudyRun, view: str, key: str, standard: tuple[int, int]) -> View:
    @cache
    def prepare() -> tuple[np.ndarray, np.ndarray]:
        pairs = load_view(
            run.dataset,
            view,
            lambda image: _prepared(image, view, run.settings, standard),
            progress=f"{view} view prepared",
        )
        return tuple(np.array(part) for part in zip(*pairs, strict=True))

    images, measures = (
        cached_array(run.cache / f"{view}-{key}-{name}.npy", lambda part=part: prepare()[part])
        for part, name in enumerate(("images", "measures"))
    )
    columns = ["height", "width", "variance", "lungs"]
    return View(images, pd.DataFrame(measures, columns=columns))


def _prepared(image: Image, view: str, settings: Settings, standard) -> tuple[np.ndarray, tuple]:
    found = steps(image, view, settings.preparation, standard)
    last = list(found.values())[-1]
    side = (settings.image_size, settings.image_size)
    lungs = float(np.mean(found["lungs alone"] > 0)) if "lungs alone" in found else np.nan
    measures = (*image.values.shape, laplacian_variance(found["scaled"]), lungs)
    return as_grey(resized(last, side)), measures


def features_of(
    run: experiment.StudyRun, network: keras.Model, images: np.ndarray, title: str
) -> np.ndarray:
    """Compute a network's outputs for images; they are stored in the run's cache.

    Parameters
    ----------
    run : StudyRun
    network : keras.Model
    images : np.ndarray, uint8 (N, S, S, 1)
    title : str
        Title of the progress.

    Returns
    -------
    np.ndarray, float32 (N, ...)
    """
    key = fingerprint(model_fingerprint(network), images)
    path = run.cache / f"features-{key}.npy"
    return cached_array(path, lambda: outputs(network, images, title=title))
