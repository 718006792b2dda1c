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

from covid_project import experiment
from covid_project.checkpoints import fitted
from covid_project.data import Dataset, open_dataset
from covid_project.models import resnet18
from covid_project.normalization import normalization_layer
from covid_project.settings import STRATEGIES, RunSettings, load_profile, one_of, within
from covid_project.studies import medmnist
from covid_project.studies.perturbations import PERTURBATIONS, SEVERITIES, perturbed
from covid_project.training import outputs, set_seed

LOSSES = ("softmax", "sigmoid per class")  # cross-entropy of either
STEPS = (0.5, 0.75)  # of the epochs, after which the learning rate falls to a tenth each


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
    normalization: str = one_of(*STRATEGIES)
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
load_settings = partial(load_profile, Settings, ("robustness", "robustness_demo"))


def begin(settings: Settings) -> experiment.Experiment:
    """Open the data and claim the results folder (see ``experiment.begin``)."""
    return experiment.begin(settings, open_data)


def open_data(source: Path, settings: Settings) -> Dataset:
    """A MedMNIST file with its official splits, or drawn phantoms."""
    if Path(source, "phantoms.json").is_file():
        return open_dataset(source)
    return medmnist.read(source).as_dataset(Path(source).parent)


def images(run: experiment.Experiment) -> np.ndarray:
    """All images of a run, uint8 (N, H, W, C), in the order of its table."""
    if run.dataset.is_phantom:
        return run.images(run.settings.image_size)
    return medmnist.read(run.settings.data).images


def split(run: experiment.Experiment, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, H, W, C) and labels (N,) of one split."""
    rows = run.dataset.rows(name)
    return images(run)[rows], run.dataset.table["label"].to_numpy()[rows]


# ---- training -----------------------------------------------------------------------------------


def network(
    run: experiment.Experiment, recipe: str, seed: int, *, augmented: bool
) -> tuple[keras.Model, pd.DataFrame]:
    """The network of one recipe and seed with its history: trained once, then loaded (`train`)."""
    settings = run.settings
    how = settings.recipes[recipe]
    share = settings.perturbed_share if augmented else 0.0
    stage = stage_name(recipe, seed, augmented=augmented)
    identity = {**run.identity(), **asdict(how), "perturbed_share": share, "seed": seed}
    return fitted(
        run.results,
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
            progress=stage,
        ),
    )


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
    progress: str | None = None,
) -> tuple[keras.Model, pd.DataFrame]:
    """Train a ResNet18 from scratch.

    Parameters
    ----------
    training, validation
        Images uint8 (N, H, W, C) and labels (N,).
    perturbed_share
        Share of the training images that are perturbed in each epoch, each in its own way and
        severity, drawn anew every epoch; 0 trains on the images as they are.
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
    rng = np.random.default_rng(seed)
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
    targets, expected = np.eye(classes, dtype=np.float32)[labels], np.eye(classes)[truth]
    rows, kept, best, lowest = [], model.get_weights(), (-1.0, 0.0), (np.inf, 0)
    for epoch in range(1, recipe.epochs + 1):
        start = time.perf_counter()
        if recipe.stepped:
            fallen = sum(epoch > step * recipe.epochs for step in STEPS)
            optimizer.learning_rate = recipe.learning_rate * 0.1**fallen
        found = model.fit(
            partly_perturbed(pixels, perturbed_share, rng).astype(np.float32),
            targets,
            batch_size=recipe.batch_size,
            epochs=1,
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
        # Where a class is missing from validation there is no AUC, and the loss decides alone.
        reached = float(np.nan_to_num(row["val_auc"])), -row["val_loss"]
        if reached > best:
            best, kept = reached, model.get_weights()
        lowest = min(lowest, (row["val_loss"], epoch))
        if progress:
            left = (recipe.epochs - epoch) * np.mean([one["seconds"] for one in rows])
            print(
                f"{progress}: epoch {epoch} of {recipe.epochs}  loss {row['loss']:.3f}  val_loss "
                f"{row['val_loss']:.3f}  val_auc {row['val_auc']:.3f}  at most {left:.0f} s left",
                flush=True,
            )
        if epoch - lowest[1] >= recipe.patience:
            break
    model.set_weights(kept)
    return model, pd.DataFrame(rows)


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
