"""Training of heads on cached features, with every answer to imbalance and every kind of head.

Only training data are used; other splits are refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import keras
import numpy as np
import pandas as pd

from covid_lab.studies import cgan
from covid_lab.studies.ct_preprocessing import as_grey, resized
from covid_lab.studies.grading import (
    Predict,
    convolutional_head,
    fit_svm,
    perceptron,
    predictor,
    train,
)
from covid_lab.studies.imbalance import Balanced, balance
from covid_project.settings import within
from covid_project.training import set_seed

TASKS = ("five", "binary")
# Answer: method of `imbalance.balance` and its options. SMOTE and the GAN come in two sizes: the
# report at most doubled a class by SMOTE, and brought every class to 1.2 times the largest by GAN.
METHODS = {
    "none": ("none", {}),
    "class_weights": ("class_weights", {}),
    "oversample": ("oversample", {}),
    "undersample": ("undersample", {}),
    "smote_pixels": ("smote", {"most": 2.0}),
    "smote_features": ("smote", {"most": 2.0}),
    "smote_full": ("smote", {}),
    "cgan": ("cgan", {}),
    "cgan_more": ("cgan", {"height": 1.2}),
}
ON_IMAGES = ("smote_pixels", "cgan", "cgan_more")  # the others work on features
AUGMENTED = ("augmented_ahead", "augmented_on_the_fly")  # both with class weights
ANSWERS = (*METHODS, *AUGMENTED)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a perceptron on cached features is trained."""

    dropout: float = within(0, 0.95)
    learning_rate: float = within(1e-8, 1)
    batch_size: int = within(1, 4096)
    epochs: int = within(1, 1000)  # at most; early stopping watches validation


def task_labels(labels: np.ndarray, task: str, malignant_from: int) -> np.ndarray:
    """Convert the labels of the five malignancies to those of a task.

    Parameters
    ----------
    labels : np.ndarray, int (N,)
        0 to 4.
    task : str
        One of `TASKS`.
    malignant_from : int
        Least malignancy, 1 to 5, that the binary task calls malignant.

    Returns
    -------
    np.ndarray, int (N,)

    Examples
    --------
    >>> task_labels([0, 2, 3, 4], "binary", malignant_from=4)
    array([0, 0, 1, 1])
    """
    labels = np.asarray(labels, int)
    return labels if task == "five" else (labels + 1 >= malignant_from).astype(int)


def class_names(task: str) -> tuple[str, ...]:
    """List the names of a task's labels.

    Parameters
    ----------
    task : str
        One of `TASKS`.

    Returns
    -------
    tuple of str
    """
    return tuple("12345") if task == "five" else ("benign", "malignant")


# ---- training data ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Material:
    """Training images of one view, their features, and the sources of new images.

    Attributes
    ----------
    images : np.ndarray, uint8 (N, S, S, 1)
    features : np.ndarray, float32 (N, D)
    grades : np.ndarray, int (N,)
        0 to 4.
    splits : np.ndarray, str (N,)
        All "train".
    featurise : callable
        uint8 (M, S, S, 1) → float32 (M, D).
    gan : cgan.Trained, optional
        Needed by the answers "cgan" and "cgan_more".
    copies : np.ndarray, float32 (V, N, D), optional
        Features of V distorted versions of every image; needed by `AUGMENTED`.
    drawing_seed : int
        Seed of the answers that make new images. These are the same for all trainings, so that
        their features are computed once.
    """

    images: np.ndarray
    features: np.ndarray
    grades: np.ndarray
    splits: np.ndarray
    featurise: Callable[[np.ndarray], np.ndarray]
    gan: cgan.Trained | None = None
    copies: np.ndarray | None = None
    drawing_seed: int = 0


def answered(
    answer: str, material: Material, task: str, malignant_from: int, seed: int
) -> Balanced:
    """Prepare the training features of a task with one answer to the imbalance.

    Parameters
    ----------
    answer : str
        One of `ANSWERS`.
    material : Material
    task : str
        One of `TASKS`.
    malignant_from : int
        Least malignancy, 1 to 5, that the binary task calls malignant.
    seed : int
        Determines what is drawn from features.

    Returns
    -------
    Balanced

    Raises
    ------
    imbalance.NotTraining
        The material has samples of another split.
    ValueError
        The answer needs a GAN or distorted copies that the material lacks.
    """
    labels = task_labels(material.grades, task, malignant_from)
    if answer in AUGMENTED:
        return _augmented(answer, material, labels, seed)
    method, options = METHODS[answer]
    if answer not in ON_IMAGES:
        return balance(method, material.features, labels, material.splits, seed=seed, **options)
    if method == "cgan":
        if material.gan is None:
            raise ValueError(f"the answer {answer!r} needs a trained GAN")
        of_gan = (material.gan, material.grades, task, malignant_from, material.images.shape[1])
        options = {**options, "generate": partial(_synthetic, *of_gan)}
    seed = material.drawing_seed
    found = balance(method, material.images, labels, material.splits, seed=seed, **options)
    new = found.inputs[found.synthetic]
    features = material.features
    if len(new):
        features = np.concatenate([features, material.featurise(new)])
    return Balanced(features, found.labels, found.weights, found.synthetic)


def _augmented(answer: str, material: Material, labels: np.ndarray, seed: int) -> Balanced:
    if material.copies is None:
        raise ValueError(f"the answer {answer!r} needs distorted copies")
    found = balance("class_weights", material.features, labels, material.splits, seed=seed)
    every = np.concatenate([found.inputs[None], material.copies])
    if answer == "augmented_on_the_fly":
        return replace(found, variants=every)
    times = len(every)
    return Balanced(
        every.reshape(-1, *every.shape[2:]), np.tile(found.labels, times), found.weights,
        np.tile(found.synthetic, times),
    )  # fmt: skip


def _synthetic(
    gan: cgan.Trained,
    grades: np.ndarray,
    task: str,
    malignant_from: int,
    size: int,
    label: int,
    count: int,
    seed: int,
) -> np.ndarray:
    """Generate ``count`` images (count, size, size, 1) of a label of a task."""
    # For the binary task, a label's malignancies have the same proportions as in ``grades``.
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
    """Train a new head.

    Parameters
    ----------
    head : str
        "softmax", "coral", "svm" or "convolution"; "coral_from_zero" is "coral" with offsets that
        start at 0.
    data : Balanced
        Training features (N, D); for "convolution" feature maps (N, H, W, C).
    validation : tuple of np.ndarray
        Inputs of the same kind and labels int (M,).
    classes : int
    training : Training
    seed : int
    svm : mapping, optional
        C and gamma, from `grading.choose_svm`.
    progress : str, optional
        Title of a line that is printed at the end.

    Returns
    -------
    predict : Predict
    network : keras.Model or None
        None for an SVM.
    history : pd.DataFrame
        As `grading.train`; empty for an SVM.
    """
    set_seed(seed)
    if head == "svm":
        return fit_svm(data, strength=svm["C"], gamma=svm["gamma"]), None, pd.DataFrame()
    ordinal = head.startswith("coral")
    if head == "convolution":
        model = convolutional_head(data.inputs.shape[1:], classes, dropout=training.dropout)
    else:
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
        start_at_log_odds=head != "coral_from_zero",
    )
    return predictor(model, ordinal=ordinal), model, history


def feature_maps(backbone: keras.Model) -> keras.Model:
    """Remove the global pooling from a backbone.

    Parameters
    ----------
    backbone : keras.Model
        From images to pooled features.

    Returns
    -------
    keras.Model
        From images to feature maps (N, H, W, C).
    """
    return keras.Model(backbone.input, backbone.layers[-2].output, name=f"{backbone.name}_maps")


def whole_network(backbone: keras.Model, head: keras.Model) -> keras.Model:
    """Join a backbone and a head to one flat model that shares their layers.

    Parameters
    ----------
    backbone : keras.Model
        From images to pooled features.
    head : keras.Model
        From pooled features or from feature maps to logits.

    Returns
    -------
    keras.Model
        From images to logits.
    """
    pooled = len(head.input.shape) == 2
    x = backbone.output if pooled else feature_maps(backbone).output
    for layer in head.layers[1:]:
        x = layer(x)
    return keras.Model(backbone.input, x, name="nodule_network")
