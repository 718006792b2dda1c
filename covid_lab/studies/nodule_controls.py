"""Controls for the malignancy of nodules, and their combination with a network's features.

Each is one scikit-learn pipeline on the same table of inputs: six outline measures, six grey
measures (see `nodule_images`), then the features of a backbone, with and without surroundings.
Readers drew the outlines, so that a control knows where the nodule ends.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from covid_lab.studies.graded_metrics import METRICS, Verdicts, graded_metrics, resamples
from covid_lab.studies.nodule_images import GREY, OUTLINE
from covid_lab.studies.nodule_training import TASKS, task_labels
from covid_project.evaluation import percentile_interval
from covid_project.files import fingerprint

MEASURES = len(OUTLINE) + len(GREY)
COMPONENTS = 20  # of the network's features
STRENGTH = 1.0  # C of the logistic regression on measures
STRENGTH_FEATURES = 0.1  # where components of features are among the inputs
FOLDS = 5
# Candidate: columns of the measures, and which features are added: of the nodule view's picture, or
# of the same with everything outside the nodule made 0.
CONTROLS = {
    "majority": (slice(0, 1), ""),
    "diameter": (slice(1, 2), ""),
    "outline": (slice(0, len(OUTLINE)), ""),
    "outline_grey": (slice(0, MEASURES), ""),
}
COMBINATIONS = {
    "network": (slice(0, 0), "picture"),
    "masked_network": (slice(0, 0), "nodule"),
    "outline_grey_network": (slice(0, MEASURES), "picture"),
    "outline_grey_masked_network": (slice(0, MEASURES), "nodule"),
}
CANDIDATES = CONTROLS | COMBINATIONS


def classifier(name: str, features: int) -> Pipeline:
    """Build the pipeline of one of `CANDIDATES`.

    A logistic regression with balanced class weights on standardised measures and the first 20
    principal components of standardised features, scaled so that the first has variance 1.

    Parameters
    ----------
    name : str
    features : int
        Number of features of the network. Inputs are the measures, the features of the image, and
        those of the nodule without its surroundings.

    Returns
    -------
    Pipeline
        Not fitted.
    """
    if name == "majority":
        return make_pipeline(DummyClassifier(strategy="most_frequent"))
    columns, of = CANDIDATES[name]
    parts = [(StandardScaler(), columns)] if columns.stop else []
    if of:
        reduced = make_pipeline(StandardScaler(), PCA(COMPONENTS, random_state=0), FirstToOne())
        start = MEASURES + (features if of == "nodule" else 0)
        parts.append((reduced, slice(start, start + features)))
    strength = STRENGTH_FEATURES if of else STRENGTH
    regression = LogisticRegression(C=strength, max_iter=2000, class_weight="balanced")
    return make_pipeline(make_column_transformer(*parts), regression)


class FirstToOne(StandardScaler):
    """Divide all columns by the standard deviation of the first, so that their ratios stay."""

    def fit(self, X, y=None, sample_weight=None):
        """Fit the scale.

        Parameters
        ----------
        X : np.ndarray, (N, F)
        y : None
            Ignored.
        sample_weight : np.ndarray, (N,), optional

        Returns
        -------
        FirstToOne
        """
        super().fit(X, y, sample_weight)
        self.scale_ = np.full_like(self.scale_, self.scale_[0])
        return self


def verdicts_of(model: Pipeline, inputs: np.ndarray, classes: int) -> Verdicts:
    """Predict with a fitted pipeline.

    Parameters
    ----------
    model : Pipeline
    inputs : np.ndarray, (N, F)
    classes : int
        Number of classes; those that the pipeline has not seen get probability 0.

    Returns
    -------
    Verdicts
    """
    scores = np.zeros((len(inputs), classes))
    scores[:, model.classes_] = model.predict_proba(inputs)
    return Verdicts(scores, scores.argmax(axis=1))


def model_identity(model: Pipeline, inputs: np.ndarray) -> str:
    """Compute a hash of a fitted pipeline's predictions for its training inputs.

    Parameters
    ----------
    model : Pipeline
    inputs : np.ndarray, (N, F)

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    return fingerprint(np.round(model.predict_proba(inputs), 6).astype(np.float32))


def cross_validated(
    inputs: np.ndarray, grades: np.ndarray, groups: np.ndarray, malignant_from: int, seed: int
) -> pd.DataFrame:
    """Cross-validate every candidate in both tasks, patients kept together.

    Parameters
    ----------
    inputs : np.ndarray, (N, F)
        Measures, features of the image and of the nodule only, of training and validation.
    grades : np.ndarray, int (N,)
        0 to 4.
    groups : np.ndarray, (N,)
        Patients.
    malignant_from : int
        Least malignancy of the binary task's label 1.
    seed : int

    Returns
    -------
    pd.DataFrame
        Columns task, candidate, each of `grading.METRICS`, ``patients_<metric>_low`` and ``_high``
        for the metrics that `patient_bounds` has, n. The predictions of all folds are pooled.
    """
    rows, features = [], (inputs.shape[1] - MEASURES) // 2
    for task in TASKS:
        labels = task_labels(grades, task, malignant_from)
        for name in CANDIDATES:
            verdicts = out_of_fold(classifier(name, features), inputs, labels, groups, seed)
            found = graded_metrics(labels, verdicts)
            bounds = patient_bounds(labels, verdicts.predicted, groups, seed)
            rows.append({"task": task, "candidate": name, **found, **bounds, "n": len(labels)})
    return pd.DataFrame(rows)


def out_of_fold(
    model: Pipeline, inputs: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int
) -> Verdicts:
    """Predict each sample with a model that is fitted on the folds without its patient.

    Parameters
    ----------
    model : Pipeline
        Unfitted.
    inputs : np.ndarray, (N, F)
    labels : np.ndarray, int (N,)
        From 0.
    groups : np.ndarray, (N,)
        Patients.
    seed : int
        Seed of the five folds.

    Returns
    -------
    Verdicts
    """
    scores = np.zeros((len(labels), labels.max() + 1))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fit_rows, rest in folds.split(inputs, labels, groups):
        fitted = clone(model).fit(inputs[fit_rows], labels[fit_rows])
        scores[rest] = verdicts_of(fitted, inputs[rest], scores.shape[1]).scores
    return Verdicts(scores, scores.argmax(axis=1))


def patient_bounds(
    labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray, seed: int
) -> dict[str, float]:
    """Compute 95 % intervals over patients of all metrics that need no scores.

    Parameters
    ----------
    labels, predicted : np.ndarray, int (N,)
    groups : np.ndarray, (N,)
        Patients, which the bootstrap resamples.
    seed : int

    Returns
    -------
    dict of str to float
        ``patients_<metric>_low`` and ``patients_<metric>_high``; the AUC is left out.
    """
    classes = int(max(labels.max(), predicted.max())) + 1
    silent = np.zeros((len(labels), classes))
    drawn = [
        graded_metrics(labels[rows], Verdicts(silent, predicted[rows]), scored=False)
        for rows in resamples(groups, seed, whole=True)
    ]
    found = {}
    for metric in METRICS:
        if metric != "AUC":
            bounds = percentile_interval([one[metric] for one in drawn])
            found |= {f"patients_{metric}_low": bounds[0], f"patients_{metric}_high": bounds[1]}
    return found


# ---- the readers --------------------------------------------------------------------------------


def reader_against_others(ratings: Iterable[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare every reader's rating with the median of the other readers of the same nodule.

    A reader's agreement with the others is an upper limit for a model that is judged by them.

    Parameters
    ----------
    ratings : iterable of str, (N,)
        Ratings 1–5 of each nodule, separated by spaces; nodules with fewer than three are skipped.

    Returns
    -------
    nodule : np.ndarray, int (M,)
        Row of each reading.
    reader : np.ndarray, int (M,)
        The reader's grade, 0 to 4.
    others : np.ndarray, int (M,)
        Median of the others, halves rounded up, 0 to 4.

    Examples
    --------
    >>> [part.tolist() for part in reader_against_others(["1 2 5"])]
    [[0, 0, 0], [0, 1, 4], [3, 2, 1]]
    """
    rows = []
    for nodule, text in enumerate(ratings):
        grades = np.array([int(value) for value in text.split()])
        if len(grades) < 3:
            continue
        for reader in range(len(grades)):
            median = np.median(np.delete(grades, reader))
            rows.append((nodule, grades[reader] - 1, int(np.floor(median + 0.5)) - 1))
    found = np.array(rows, int).reshape(-1, 3)
    return found[:, 0], found[:, 1], found[:, 2]


def certain(predicted: np.ndarray, classes: int) -> Verdicts:
    """Convert predictions without scores to verdicts.

    Parameters
    ----------
    predicted : np.ndarray, int (N,)
    classes : int
        K, number of classes.

    Returns
    -------
    Verdicts
        The score of a class is minus its distance to the prediction.
    """
    distance = np.abs(np.asarray(predicted)[:, None] - np.arange(classes))
    return Verdicts(-distance.astype(float), np.asarray(predicted, int))
