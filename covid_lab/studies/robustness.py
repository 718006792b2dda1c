"""Robustness under perturbation: its settings, its data, and how ResNet18 is trained on it."""

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
from covid_lab.runs.settings import RunSettings, load_study
from covid_lab.studies import medmnist
from covid_lab.studies.perturbations import PERTURBATIONS, SEVERITIES, perturbed
from covid_project.data import DataError, Dataset
from covid_project.files import fingerprint
from covid_project.models import outputs
from covid_project.normalization import normalization_layer
from covid_project.settings import one_of, one_of_registry, within
from covid_project.training import set_seed

LOSSES = ("softmax", "sigmoid per class")  # cross-entropy of either
STEPS = (0.5, 0.75)  # of the epochs, after which the learning rate falls to a tenth each
KEEP_EVERY = 60  # seconds at least between two times that a training under way is written


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way of training; the epoch with the best validation AUC is kept."""

    loss: str = one_of(*LOSSES)
    batch_size: int = within(1, 4096)
    learning_rate: float = within(1e-8, 1)
    epochs: int = within(1, 1000)  # at most
    patience: int = within(1, 1000)  # epochs without a lower validation loss, then it stops
    stepped: bool  # learning rate a tenth after half, and again after three quarters of the epochs


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Everything that the study depends on."""

    image_size: int = within(20, 512)  # of drawn images; a file has its own
    normalization: str = one_of_registry("normalization", "STRATEGIES")
    recipes: dict[str, Recipe]  # of which the better one on validation is used
    perturbed_share: float = within(0.01, 1)  # of the images of an augmented epoch
    seeds: int = within(1, 100)  # trainings of each kind
    false_alarms: float = within(0.001, 0.5)  # of the flag: share of right validation predictions
    resamples: int = within(100, 100_000)  # of every bootstrap
    shown: int = within(1, 20)  # images in the figure of maps

    @property
    def common(self) -> tuple:
        """What every result depends on."""
        return (self.normalization,)


# Settings of a profile, by name or path; without data that of drawn images.
load_settings = partial(load_study, Settings, "robustness")


def begin(settings: Settings) -> experiment.StudyRun:
    """Open the data and claim the results folder (see ``experiment.begin``)."""
    return experiment.begin(settings, open_data)


def open_data(source: Path, settings: Settings) -> Dataset:
    """A MedMNIST file with its official splits, or drawn phantoms."""
    if Path(source, "phantoms.json").is_file():
        return open_dataset(source)
    return medmnist.read(source).as_dataset(Path(source).parent)


def split(run: experiment.StudyRun, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (N, H, W, C) and labels (N,) of "train" or "val"."""
    if name == "test":
        raise DataError("test images come from test_split(run, stage, model) only")
    return _images_and_labels(run, run.dataset.rows(name))


def test_split(
    run: experiment.StudyRun, stage: str, model: keras.Model | str
) -> tuple[np.ndarray, np.ndarray]:
    """Enter a test evaluation into the ledger, then return images and labels as `split`."""
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
    """The network of one recipe and seed with its history: trained once, then loaded (`train`).

    A training that was cut off goes on after its last epoch that was kept.
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
    """Under which a network's files are kept, such as ``thesis_plain_21``."""
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
    """Train a ResNet18 from scratch, the images in another order in every epoch.

    Parameters
    ----------
    training, validation
        Images uint8 (N, H, W, C) and labels (N,).
    perturbed_share
        Share of the training images that are perturbed in each epoch, each in its own way and
        severity, drawn anew every epoch; 0 trains on the images as they are.
    under_way
        Where the training is kept while it goes on, once a minute at most; what lies there must be
        of the same arguments, and the training goes on from it, to the same result.
    progress
        What is being trained, for a line per epoch; None is silent.

    Returns
    -------
    The model as it was after the epoch with the best validation AUC (of several, the one with the
    lowest validation loss), and one row per epoch: epoch (from 1), loss, val_loss, val_auc,
    val_accuracy, learning_rate, seconds.

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
        # Every epoch draws by its own number, so that a training goes on as if never cut off. The
        # order is ours: Keras' shuffle, where operations are deterministic, repeats the first one.
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(pixels))
        found = model.fit(
            partly_perturbed(pixels[order], perturbed_share, rng).astype(np.float32),
            targets[order],
            batch_size=recipe.batch_size,
            epochs=1,
            shuffle=False,
            verbose=0,
        )
        scores = outputs(model, others)
        row = {
            "epoch": epoch,
            "loss": found.history["loss"][0],
            "val_loss": float(loss(expected, scores)),
            "val_auc": auc(truth, scores),
            "val_accuracy": float((scores.argmax(1) == truth).mean()),
            "learning_rate": float(optimizer.learning_rate),
            "seconds": time.perf_counter() - start,
        }
        if not np.isfinite(row["loss"]):
            raise FloatingPointError(
                f"the loss is no longer finite in epoch {epoch} at learning rate "
                f"{row['learning_rate']:g}; try a smaller one"
            )
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
    """How good an epoch is; where validation lacks a class there is no AUC: the loss decides."""
    return float(np.nan_to_num(row["val_auc"])), -row["val_loss"]


def _ended(rows: list[dict[str, float]], recipe: Recipe) -> bool:
    """Whether a training with these epochs has had them all, or its patience is at an end."""
    if not rows:
        return False
    lowest = min(rows, key=lambda row: row["val_loss"])["epoch"]
    return len(rows) >= recipe.epochs or len(rows) - lowest >= recipe.patience


def partly_perturbed(pixels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Images uint8 (N, H, W, C), of which each is perturbed with probability ``share``.

    Perturbation and severity are drawn evenly for each image.
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
    """AUC of labels (N,) and logits (N, K): each class against the rest, averaged, as in MedMNIST.

    Of two classes it is that of the second. NaN where a class is missing.
    """
    classes = logits.shape[1]
    if len(np.unique(labels)) < classes:
        return float("nan")
    scores = softmax(logits.astype(np.float64), axis=1)
    if classes == 2:
        return float(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
    return float(np.mean([roc_auc_score(labels == k, scores[:, k]) for k in range(classes)]))
