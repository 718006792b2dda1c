"""Lung nodules by malignancy, in two views and two tasks: settings, splits, prepared slices.

Views: "full", the whole axial slice, and "nodule", what is cut out round the nodule. Tasks: "five",
the malignancies 1 to 5, and "binary", malignant from a given one on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from scipy.special import softmax

from covid_lab.runs import experiment
from covid_lab.runs.settings import CACHE, RunSettings, load_study
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
from covid_lab.studies.grading import (
    METRICS,
    Predict,
    Verdicts,
    fit_svm,
    interval_over_seeds,
    metrics_table,
    perceptron,
    predictor,
    train,
)
from covid_lab.studies.imbalance import Balanced, balance
from covid_lab.studies.nrrd_slices import VIEWS, Image, load_slices, open_slices
from covid_lab.studies.splits import dealt_once
from covid_project.data import Dataset
from covid_project.files import cached_array, fingerprint, write_csv
from covid_project.models import BACKBONES, model_fingerprint, outputs
from covid_project.settings import SettingsError, one_of, within
from covid_project.training import set_seed

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
TASKS = ("five", "binary")
# As the imbalance is compared: SMOTE twice, on what a backbone sees and on what it says.
ANSWERS = (
    "none", "class_weights", "oversample", "undersample", "smote_pixels", "smote_features", "cgan",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DrawnSlices:
    """The drawn slices that stand in where no real ones are given (see ``ct_phantoms``)."""

    size: int = within(ct_phantoms.SMALLEST_SIZE, 1024)  # pixels of a full view
    slices: int = within(25, 100_000)
    per_patient: int = within(1, 100)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How slices are prepared."""

    low: float = within(-2000, 3000)  # HU that becomes 0
    high: float = within(-2000, 3000)  # HU that becomes 1
    gamma: float = within(0.1, 10)
    clip_limit: float = within(1, 100)  # of CLAHE
    tiles: int = within(1, 64)  # of CLAHE, down and across
    only_lungs: bool  # in the full view, what lies outside the lungs is made 0
    noise_percentile: float = within(50, 100)  # training images above it are removed; 100: none

    def __post_init__(self):
        if self.low >= self.high:
            raise SettingsError(
                f"low is {self.low} and high {self.high} HU: low must be below high"
            )


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a perceptron on cached features is trained."""

    dropout: float = within(0, 0.95)
    learning_rate: float = within(1e-8, 1)
    batch_size: int = within(1, 4096)
    epochs: int = within(1, 1000)  # at most; early stopping watches validation


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Everything that the study depends on."""

    phantoms: DrawnSlices | None
    malignant_from: int = within(2, 5)  # in the binary task
    preparation: Preparation
    image_size: int = within(32, 512)  # pixels, of a backbone's input
    backbones: dict[str, float]  # name: width multiplier; the first is the one that is explained
    weights: str = one_of("imagenet", "random")
    without_weights: str = one_of("stop", "random")  # when they cannot be had
    training: Training
    seeds: int = within(1, 100)  # trainings of each case
    cgan: cgan.Recipe
    augmented_copies: int = within(0, 100)  # ahead of time
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
        """What every result depends on."""
        return (self.preparation, self.malignant_from, self.image_size)


# Settings of a profile, by name or path; without data that of drawn slices.
load_settings = partial(load_study, Settings, "lung_nodules")


def begin(settings: Settings) -> experiment.StudyRun:
    """Open the data, or draw them, and claim the results folder (see ``experiment.begin``)."""
    return experiment.begin(settings, open_data, _drawn)


def open_data(source: Path, settings: Settings) -> Dataset:
    """Both views and their labels, dealt into splits by patient."""
    dataset = open_slices(source)
    splits_file = Path(settings.results) / "splits.csv"
    return dealt_once(dataset, splits_file, lambda data: data.table["group"], SHARES, settings.seed)


def _drawn(settings: Settings) -> Path:
    asked = settings.phantoms
    made = {**vars(asked), "drawing": ct_phantoms.DRAWING, "seed": settings.seed}
    folder = CACHE / f"ct-phantoms-{fingerprint(made)}"
    return ct_phantoms.write_dataset(
        folder, asked.slices, asked.per_patient, asked.size, settings.seed
    )


def task_labels(labels: np.ndarray, task: str, malignant_from: int) -> np.ndarray:
    """Labels of a task, int (N,), from those of the five malignancies (0 to 4)."""
    labels = np.asarray(labels, int)
    return labels if task == "five" else (labels + 1 >= malignant_from).astype(int)


def class_names(task: str) -> tuple[str, ...]:
    """Names of a task's labels."""
    return tuple("12345") if task == "five" else ("benign", "malignant")


# ---- prepared slices ----------------------------------------------------------------------------


def steps(
    image: Image, view: str, preparation: Preparation, standard: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Every step of the preparation of one slice, in order; the last is what is used.

    "HU" is in Hounsfield units, the others in [0, 1]. Full view: scaled, gamma, CLAHE and, where
    ``only_lungs``, the lungs alone. Nodule view: scaled, ``standard`` size in pixels, gamma, CLAHE.
    """
    found = {"HU": image.values}
    found["scaled"] = to_unit(image.values, (preparation.low, preparation.high))
    if view == "nodule":
        found["standard size"] = resized(found["scaled"], standard)
    last = list(found.values())[-1]
    found["gamma"] = gamma_corrected(last, preparation.gamma)
    tiles = (preparation.tiles, preparation.tiles)
    found["CLAHE"] = clahe(found["gamma"], preparation.clip_limit, tiles)
    if view == "full" and preparation.only_lungs:
        mask = lung_mask(image.values, image.spacing[0] if image.spacing else 0.7)
        found["lungs alone"] = without_background(found["CLAHE"], mask)
    return found


@dataclass(frozen=True, eq=False)
class View:
    """All slices of one view, prepared, in the order of the data set's table."""

    images: np.ndarray  # uint8 (N, S, S, 1)
    measures: pd.DataFrame  # height, width (pixels), variance (Laplacian), lungs (share of area)


def prepared_views(run: experiment.StudyRun) -> tuple[dict[str, View], tuple[int, int]]:
    """Both views prepared, and the standard size of the nodule view (height, width).

    Computed once and kept in the cache. The standard size is that of the training images.
    """
    settings = run.settings
    key = fingerprint(str(settings.preparation), str(settings.image_size))
    sizes = cached_array(
        run.cache / "nodule-sizes.npy",
        lambda: np.array(load_slices(run.dataset, "nodule", lambda image: image.values.shape)),
    )
    standard = standard_size(map(tuple, sizes[run.dataset.rows("train")]))
    views = {}
    for view in VIEWS:
        made = {}

        def prepare(which: str, view: str = view, made: dict = made) -> np.ndarray:
            if not made:
                pairs = load_slices(
                    run.dataset,
                    view,
                    lambda image: _prepared(image, view, settings, standard),
                    progress=f"{view} view prepared",
                )
                made["images"] = np.stack([image for image, _ in pairs])
                made["measures"] = np.array([measures for _, measures in pairs])
            return made[which]

        places = {
            which: run.cache / f"{view}-{key}-{which}.npy" for which in ("images", "measures")
        }
        images, measures = (
            cached_array(place, partial(prepare, which)) for which, place in places.items()
        )
        columns = ["height", "width", "variance", "lungs"]
        views[view] = View(images, pd.DataFrame(measures, columns=columns))
    return views, standard


def _prepared(image: Image, view: str, settings: Settings, standard) -> tuple[np.ndarray, tuple]:
    found = steps(image, view, settings.preparation, standard)
    last = list(found.values())[-1]
    side = (settings.image_size, settings.image_size)
    lungs = float(np.mean(found["lungs alone"] > 0)) if "lungs alone" in found else np.nan
    measures = (*image.values.shape, laplacian_variance(found["scaled"]), lungs)
    return as_grey(resized(last, side)), measures


# ---- training data ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Material:
    """What the heads of one view learn from: images, their features, and the way from one to the
    other. All rows are training images.
    """

    images: np.ndarray  # uint8 (N, S, S, 1)
    features: np.ndarray  # float32 (N, D)
    grades: np.ndarray  # int (N,), 0 to 4
    splits: np.ndarray  # (N,), all "train"
    featurise: Callable[[np.ndarray], np.ndarray]  # uint8 (M, S, S, 1) → float32 (M, D)
    gan: cgan.Trained | None = None


def answered(
    answer: str, material: Material, task: str, malignant_from: int, seed: int
) -> Balanced:
    """Training features of a task under one of `ANSWERS` to the imbalance."""
    labels = task_labels(material.grades, task, malignant_from)
    if answer not in ("smote_pixels", "cgan"):
        method = "smote" if answer == "smote_features" else answer
        return balance(method, material.features, labels, material.splits, seed=seed)
    generate = None
    if answer == "cgan":
        if material.gan is None:
            raise ValueError("the answer 'cgan' needs a trained GAN")
        generate = partial(synthetic, material.gan, material.grades, task, malignant_from,
                           material.images.shape[1])  # fmt: skip
    method = "smote" if answer == "smote_pixels" else "cgan"
    found = balance(method, material.images, labels, material.splits, seed=seed, generate=generate)
    new = found.inputs[found.synthetic]
    features = material.features
    if len(new):
        features = np.concatenate([features, material.featurise(new)])
    return Balanced(features, found.labels, found.weights, found.synthetic)


def synthetic(
    gan: cgan.Trained,
    grades: np.ndarray,
    task: str,
    malignant_from: int,
    size: int,
    label: int,
    count: int,
    seed: int,
) -> np.ndarray:
    """Images of a label of a task, uint8 (count, size, size, 1).

    For the binary task the malignancies of the label stand in their proportions among ``grades``.
    """
    of = task_labels(grades, task, malignant_from) == label
    drawn = np.random.default_rng([seed, label]).choice(grades[of], count)
    made = np.concatenate(
        [gan.generate(g, int((drawn == g).sum()), seed) for g in np.unique(drawn)]
    )
    if made.shape[1] == size:
        return made
    return np.stack([as_grey(resized(one[..., 0] / 255, (size, size))) for one in made])


def fit_head(
    head: str,
    data: Balanced,
    validation: tuple[np.ndarray, np.ndarray],
    classes: int,
    training: Training,
    *,
    seed: int,
    svm: Mapping[str, float] | None = None,
    progress: str | None = None,
) -> tuple[Predict, keras.Model | None, pd.DataFrame]:
    """Train one of ``grading.HEADS`` anew; gives what it says, its network, and its history.

    ``svm`` are C and gamma, from ``grading.choose_svm``; an SVM has no network and no history.
    """
    set_seed(seed)
    if head == "svm":
        return fit_svm(data, strength=svm["C"], gamma=svm["gamma"]), None, pd.DataFrame()
    ordinal = head == "coral"
    model = perceptron(data.inputs.shape[1], classes, ordinal=ordinal, dropout=training.dropout)
    history = train(
        model,
        data,
        validation,
        ordinal=ordinal,
        learning_rate=training.learning_rate,
        batch_size=training.batch_size,
        epochs=training.epochs,
        seed=seed,
        progress=progress,
    )
    return predictor(model, ordinal=ordinal), model, history


def whole_network(backbone: keras.Model, head: keras.Model) -> keras.Model:
    """Flat model from images to logits, of a backbone and a perceptron's layers (shared)."""
    x = backbone.output
    for layer in head.layers[1:]:
        x = layer(x)
    return keras.Model(backbone.input, x, name="nodule_network")


# ---- tables -------------------------------------------------------------------------------------


def over_seeds(trials: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Trials of several seeds, one row per case: of each metric the mean, ``_low`` and ``_high``.

    The interval is Student's over seeds (see ``grading.interval_over_seeds``); ``seeds`` says of
    how many.
    """
    rows = []
    for case, group in trials.groupby(by, sort=False):
        row = dict(zip(by, case, strict=True))
        for metric in METRICS:
            found = interval_over_seeds(group[metric])
            row |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), found, strict=True))
        rows.append({**row, "seeds": len(group)})
    return pd.DataFrame(rows)


def evaluate_on_test(
    run: experiment.StudyRun,
    stage: str,
    network: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    source: Mapping[str, object],
) -> tuple[Verdicts, pd.DataFrame]:
    """Enter a final network into the ledger, then evaluate it on the test split.

    Writes each slice's scores to ``scores_<stage>_test.csv`` and the metrics to ``metrics.csv``.

    Parameters
    ----------
    run : StudyRun
    stage : str
    network : keras.Model
        From images to K logits.
    images : np.ndarray, uint8 (N, S, S, 1)
        All slices of a view, in the order of the data set's table.
    labels : np.ndarray, int (N,)
        Of all slices, from 0 to K − 1.
    source : mapping
        Further columns of the metrics.

    Returns
    -------
    verdicts : Verdicts
        Of the test slices.
    metrics : pd.DataFrame
        As `Run.keep_metrics`.
    """
    look = run.enter_test(stage, model_fingerprint(network))
    rows = run.dataset.rows("test")
    logits = outputs(network, images[rows]).astype(np.float64)
    verdicts = Verdicts(softmax(logits, axis=1), logits.argmax(axis=1))
    scored = pd.DataFrame(
        {"path": run.paths("test"), "label": labels[rows], "predicted": verdicts.predicted}
    )
    for label in range(verdicts.scores.shape[1]):
        scored[f"score_{label}"] = verdicts.scores[:, label]
    write_csv(run.folder / f"scores_{stage}_test.csv", scored)
    metrics = metrics_table(labels[rows], verdicts, seed=run.settings.seed)
    return verdicts, run.keep_metrics(stage, "test", metrics, **source, look=look)


def small_masks(masks: list[np.ndarray], size: int) -> np.ndarray:
    """Masks bool (H, W) of any sizes as bool (N, size, size); none loses its last pixel."""
    small = [resized(mask.astype(np.float32), (size, size)) for mask in masks]
    return np.stack([one >= min(0.5, one.max()) if one.any() else one > 0 for one in small])
