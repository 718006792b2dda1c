"""How each step of the preparation changes what a backbone's features say about malignancy."""

from collections.abc import Mapping
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from covid_lab.datasets import without
from covid_lab.runs.experiment import StudyRun
from covid_lab.studies.ct_preprocessing import as_grey, resized
from covid_lab.studies.graded_metrics import graded_metrics
from covid_lab.studies.lung_nodules import features_of, load_view, steps, view_masks
from covid_lab.studies.nodule_controls import out_of_fold, patient_bounds
from covid_lab.studies.nodule_evaluation import auc_without_3
from covid_project.data import Dataset

REPORT = {"gamma": 1.35, "clip_limit": 2.5}
PREPARATIONS = {
    "scaled": {"gamma": 1.0, "clip_limit": 1.0},
    "gamma": {**REPORT, "clip_limit": 1.0},
    "gamma_CLAHE": REPORT,
    "gamma_only_nodule": {**REPORT, "clip_limit": 1.0},
}
ONLY_NODULE = PREPARATIONS["gamma_only_nodule"]
AROUND = 2  # pixels around the outline that are kept, where only the nodule is
STRENGTH = 0.003  # C of the logistic regression on all features


def prepared_nodules(
    run: StudyRun,
    dataset: Dataset,
    standard: tuple[int, int],
    changes: Mapping[str, float],
    *,
    only_nodule: bool,
) -> np.ndarray:
    """Prepare the nodule view of a data set.

    Parameters
    ----------
    run : StudyRun
        Its settings give the preparation and S.
    dataset : Dataset
        All or some of the run's slices.
    standard : tuple of int
        Height and width of the prepared nodule view, pixels.
    changes : mapping
        Values of the preparation that differ from the settings.
    only_nodule : bool
        Whether all pixels more than 2 pixels outside the nodule's mask become 0.

    Returns
    -------
    np.ndarray, uint8 (N, S, S, 1)
    """
    preparation = replace(run.settings.preparation, **changes)
    images = load_view(dataset, "nodule")
    masks = view_masks(dataset, "nodule") if only_nodule else [None] * len(images)
    prepared = []
    for image, mask in zip(images, masks, strict=True):
        last = list(steps(image, "nodule", preparation, standard).values())[-1]
        if mask is not None:
            wide = ndimage.binary_dilation(mask, iterations=AROUND).astype(np.float32)
            last = last * (resized(wide, standard) > 0.5)
        prepared.append(as_grey(resized(last, (run.settings.image_size,) * 2)))
    return np.stack(prepared)


def compare_preparations(
    run: StudyRun, network: keras.Model, standard: tuple[int, int]
) -> pd.DataFrame:
    """Cross-validate a linear classifier of the five malignancies after each preparation.

    Training and validation nodules, patients kept together; the test split is not read.

    Parameters
    ----------
    run : StudyRun
    network : keras.Model
        From images to pooled features.
    standard : tuple of int
        Height and width of the prepared nodule view, pixels.

    Returns
    -------
    pd.DataFrame
        One row per preparation: preparation, `grading.METRICS`, AUC_without_3, its ``_low`` and
        ``_high``, bounds over patients, n. The last preparation needs masks of the nodules.
    """
    test = run.dataset.rows("test")
    known = without(run.dataset, run.dataset.table["path"].iloc[test])
    grades = known.table["label"].to_numpy()
    groups = known.table["group"].to_numpy()
    linear = LogisticRegression(C=STRENGTH, max_iter=500, class_weight="balanced")
    has_masks = bool(view_masks(known, "nodule", [0]))
    rows = []
    for name, changes in PREPARATIONS.items():
        only_nodule = name.endswith("only_nodule")
        if only_nodule and not has_masks:
            continue
        prepared = prepared_nodules(run, known, standard, changes, only_nodule=only_nodule)
        features = features_of(run, network, prepared, title=f"preparation {name}")
        model = make_pipeline(StandardScaler(), linear)
        said = out_of_fold(model, features, grades, groups, run.settings.seed)
        auc, low, high, _ = auc_without_3(
            grades, said.scores @ np.arange(said.scores.shape[1]), groups, run.settings.seed
        )
        extremes = {"AUC_without_3": auc, "AUC_without_3_low": low, "AUC_without_3_high": high}
        bounds = patient_bounds(grades, said.predicted, groups, run.settings.seed)
        found = graded_metrics(grades, said)
        rows.append({"preparation": name, **found, **extremes, **bounds, "n": len(grades)})
    return pd.DataFrame(rows)
