"""The robustness study: its settings, its data, and the training of ResNet18."""

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from covid_lab.checkpoints import fitted, keep_training, kept_training
from covid_lab.datasets import open_dataset
from covid_lab.models import resnet18
from covid_lab.runs import experiment
from covid_lab.runs.settings import RunSettings, load_study, one_of
from covid_lab.studies import medmnist
from covid_lab.studies.perturbations import PERTURBATIONS, SEVERITIES, perturbed
from covid_project.data import DataError, Dataset
from covid_project.files import fingerprint
from covid_project.models import outputs
from covid_project.normalization import normalization_layer
from covid_project.settings import one_of_registry, within
from covid_project.training import set_seed

LOSSES = ("softmax", "sigmoid per class")  # cross-entropy of either
STEPS = (0.5, 0.75)  # of the epochs, after which the learning rate falls to a tenth each
KEEP_EVERY = 60  # seconds, at least, between two checkpoints of a training


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way of training; the epoch with the best validation AUC is kept.

    Attributes
    ----------
    loss : str
        One of `LOSSES`.
    batch_size : int
    learning_rate : float
    epochs : int
        At most.
    patience : int
        Epochs without a lower validation loss, after which training stops.
    stepped : bool
        Whether the learning rate is divided by 10 after half of the epochs, and again after three
        quarters.
    """

    loss: str = one_of(*LOSSES)
    batch_size: int = within(1, 4096)
    learning_rate: float = within(1e-8, 1)
    epochs: int = within(1, 1000)
    patience: int = within(1, 1000)
    stepped: bool


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Everything that the study depends on.

    Attributes
    ----------
    image_size : int
        Of drawn images, in pixels; a MedMNIST file has its own.
    normalization : str
        One of ``normalization.STRATEGIES``.
    recipes : dict of str to Recipe
        The best one on validation is used.
    perturbed_share : float
        Fraction of the images of an epoch that are perturbed in augmented training.
    seeds : int
        Trainings of each kind.
    false_alarms : float
        Of the flag: fraction of right validation predictions.
    resamples : int
        Of every bootstrap.
    shown : int
        Images whose maps are drawn, of right and of wrong predictions each.
    """

    image_size: int = within(20, 512)
    normalization: str = one_of_registry("normalization", "STRATEGIES")
    recipes: dict[str, Recipe]
    perturbed_share: float = within(0.01, 1)
    seeds: int = within(1, 100)
    false_alarms: float = within(0.001, 0.5)
    resamples: int = within(100, 100_000)
    shown: int = within(1, 20)

    @property
    def common(self) -> tuple:
        """Settings that every result depends on."""
        return (self.normalization,)


# Load a profile by name or path; without data, the one for drawn images.
load_settings = partial(load_study, Settings, "robustness")


def begin(settings: Settings) -> experiment.StudyRun:
    """Open the data and the results folder.

    Parameters
    ----------
    settings : Settings

    Returns
    -------
    experiment.StudyRun

    Raises
    ------
    DataError
        The data cannot be used, or the results folder belongs to other data.
    """
    return experiment.begin(settings, open_data)


def open_data(source: Path, settings: Settings) -> Dataset:
    """Open a MedMNIST file with its official splits, or drawn phantoms.

    Parameters
    ----------
    source : Path
    settings : Settings

    Returns
    -------
    Dataset
    """
    if Path(source, "phantoms.json").is_file():
        return open_dataset(source)
    return medmnist.read(source).as_dataset(Path(source).parent)


def split(run: experiment.StudyRun, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of a split that may be used for choices.

    Parameters
    ----------
    run : experiment.StudyRun
    name : str
        "train" or "val".

    Returns
    -------
    images : np.ndarray, uint8 (N, H, W, C)
    labels : np.ndarray, int (N,)

    Raises
    ------
    DataError
        For "test".
    """
    if name == "test":
        raise DataError("test images come from test_split(run, stage, model) only")
    return _images_and_labels(run, run.dataset.rows(name))


def test_split(
    run: experiment.StudyRun, stage: str, model: keras.Model | str
) -> tuple[np.ndarray, np.ndarray]:
    """Enter a test evaluation into the ledger, then return the test images and labels.

    Parameters
    ----------
    run : experiment.StudyRun
    stage : str
        Name of the network.
    model : keras.Model or str
        The final network, or its fingerprint.

    Returns
    -------
    images : np.ndarray, uint8 (N, H, W, C)
    labels : np.ndarray, int (N,)
    """
    return _images_and_labels(run, run.test_rows(stage, model))


def _images_and_labels(run: experiment.StudyRun, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if run.dataset.is_phantom:
        images = run.images(run.settings.image_size)
    else:
        images = medmnist.read(run.settings.data).images
    return images[rows], run.dataset.table["label"].to_numpy()[rows]


# ---- training -----------------------------------------------------------------------------------


def network(
    run: experiment.StudyRun, recipe: str, seed: int, *, augmented: bool
) -> tuple[keras.Model, pd.DataFrame]:
    """Return the network of one recipe and seed: trained once, then loaded.

    A training that was interrupted resumes after its last stored epoch.

    Parameters
    ----------
    run : experiment.StudyRun
    recipe : str
        Name in ``run.settings.recipes``.
    seed : int
    augmented : bool
        Whether some training images are perturbed.

    Returns
    -------
    model : keras.Model
    history : pd.DataFrame
        See `train`.
    """
    settings = run.settings
    how = settings.recipes[recipe]
    share = settings.perturbed_share if augmented else 0.0
    stage = stage_name(recipe, seed, augmented=augmented)
    identity = {**run.identity(), **asdict(how), "perturbed_share": share, "seed": seed}
    under_way = run.cache / f"training-{stage}-{fingerprint(identity)}.npz"
    found = fitted(
        run,
        stage,
        identity,
        lambda: train(
            split(run, "train"),
            split(run, "val"),
            how,
            classes=len(run.dataset.classes),
            normalization=settings.normalization,
            perturbed_share=share,
            seed=seed,
            under_way=under_way,
            progress=stage,
        ),
    )
    under_way.unlink(missing_ok=True)
    return found


def stage_name(recipe: str, seed: int, *, augmented: bool) -> str:
    """Return the name of a network's files, such as ``thesis_plain_21``.

    Parameters
    ----------
    recipe : str
    seed : int
    augmented : bool

    Returns
    -------
    str
    """
    return f"{recipe}_{'augmented' if augmented else 'plain'}_{seed}"


def train(
    training: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    recipe: Recipe,
    *,
    classes: int,
    normalization: str,
    perturbed_share: float = 0.0,
    seed: int = 0,
    under_way: Path | None = None,
    progress: str | None = None,
) -> tuple[keras.Model, pd.DataFrame]:
    """Train a ResNet18 from scratch, with the images in another order in every epoch.

    Parameters
    ----------
    training, validation : tuple of np.ndarray
        Images uint8 (N, H, W, C) and labels int (N,).
    recipe : Recipe
    classes : int
    normalization : str
        One of ``normalization.STRATEGIES``.
    perturbed_share : float, 0 to 1
        Fraction of the training images that are perturbed in each epoch. Perturbation and severity
        are drawn again in every epoch; 0 trains on the images as they are.
    seed : int
    under_way : Path, optional
        Checkpoint, written once a minute at most. If it exists, it must come from the same
        arguments; the training resumes from it, with the same result.
    progress : str, optional
        Name of the training, for a line per epoch; None prints nothing.

    Returns
    -------
    model : keras.Model
        After the epoch with the best validation AUC; of several, the one with the lowest validation
        loss.
    history : pd.DataFrame
        One row per epoch: epoch (from 1), loss, val_loss, val_auc, val_accuracy, learning_rate and
        seconds.

    Raises
    ------
    FloatingPointError
        The loss is not finite.
    """
    (pixels, labels), (others, truth) = training, validation
    set_seed(seed)
    model = resnet18(
        pixels.shape[1],
        normalization_layer(normalization, pixels),
        classes=classes,
        channels=pixels.shape[3],
    )
    sigmoid = recipe.loss == "sigmoid per class"
    kind = keras.losses.BinaryCrossentropy if sigmoid else keras.losses.CategoricalCrossentropy
    loss = kind(from_logits=True)
    optimizer = keras.optimizers.Adam(recipe.learning_rate)
    model.compile(optimizer=optimizer, loss=loss)
    optimizer.build(model.trainable_variables)
    targets, expected = np.eye(classes, dtype=np.float32)[labels], np.eye(classes)[truth]
    rows, best = kept_training(under_way, model) if under_way else ([], model.get_weights())
    written = time.monotonic()
    while not _ended(rows, recipe):
        start, epoch = time.perf_counter(), len(rows) + 1
        if recipe.stepped:
            fallen = sum(epoch > step * recipe.epochs for step in STEPS)
            optimizer.learning_rate = recipe.learning_rate * 0.1**fallen
        # Every epoch has its own random numbers, so that a resumed training gives the same result.
        # Keras' shuffle, where operations are deterministic, repeats the first order.
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(pixels))
        found = model.fit(
            partly_perturbed(pixels[order], perturbed_share, rng).astype(np.float32),
            targets[order],
            batch_size=recipe.batch_size,
            shuffle=False,
            verbose=0,
        )
        training_loss, rate = found.history["loss"][0], float(optimizer.learning_rate)
        scores = outputs(model, others)
        if not (np.isfinite(training_loss) and np.isfinite(scores).all()):
            raise FloatingPointError(
                f"the loss is no longer finite in epoch {epoch} at learning rate {rate:g}; try a "
                "smaller one"
            )
        row = {
            "epoch": epoch,
            "loss": training_loss,
            "val_loss": float(loss(expected, scores)),
            "val_auc": auc(truth, scores),
            "val_accuracy": float((scores.argmax(1) == truth).mean()),
            "learning_rate": rate,
            "seconds": time.perf_counter() - start,
        }
        rows.append(row)
        if max(rows, key=_rank) is row:
            best = model.get_weights()
        if under_way and time.monotonic() - written >= KEEP_EVERY:
            keep_training(under_way, model, rows, best)
            written = time.monotonic()
        if progress:
            left = (recipe.epochs - epoch) * np.mean([one["seconds"] for one in rows])
            print(
                f"{progress}: epoch {epoch} of {recipe.epochs}  loss {row['loss']:.3f}  val_loss "
                f"{row['val_loss']:.3f}  val_auc {row['val_auc']:.3f}  at most {left:.0f} s left",
                flush=True,
            )
    model.set_weights(best)
    return model, pd.DataFrame(rows)


def _rank(row: dict[str, float]) -> tuple[float, float]:
    """Return the sort key of an epoch; without an AUC (a class is missing) the loss decides."""
    return float(np.nan_to_num(row["val_auc"])), -row["val_loss"]


def _ended(rows: list[dict[str, float]], recipe: Recipe) -> bool:
    """Return whether a training had all its epochs, or its patience is exhausted."""
    if not rows:
        return False
    lowest = min(rows, key=lambda row: row["val_loss"])["epoch"]
    return len(rows) >= recipe.epochs or len(rows) - lowest >= recipe.patience


def partly_perturbed(pixels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Perturb each image with a given probability.

    Parameters
    ----------
    pixels : np.ndarray, uint8 (N, H, W, C)
    share : float, 0 to 1
        The probability. Perturbation and severity are drawn uniformly for each image.
    rng : np.random.Generator

    Returns
    -------
    np.ndarray, uint8 (N, H, W, C)
    """
    kinds = rng.integers(0, len(PERTURBATIONS) * len(SEVERITIES), len(pixels))
    kinds[rng.random(len(pixels)) >= share] = -1
    found = pixels.copy()
    for kind in np.unique(kinds[kinds >= 0]):
        which, severity = divmod(int(kind), len(SEVERITIES))
        here = kinds == kind
        seed = int(rng.integers(2**31))
        found[here] = perturbed(pixels[here], PERTURBATIONS[which], SEVERITIES[severity], seed)
    return found


def auc(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the AUC as in MedMNIST: each class against the rest, averaged.

    Parameters
    ----------
    labels : np.ndarray, int (N,)
    logits : np.ndarray, float (N, K)

    Returns
    -------
    float
        Of two classes, the AUC of the second. NaN where a class is missing.
    """
    classes = logits.shape[1]
    if len(np.unique(labels)) < classes:
        return float("nan")
    if classes == 2:
        return float(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
    scores = softmax(logits.astype(np.float64), axis=1)
    return float(roc_auc_score(labels, scores, multi_class="ovr"))
