"""Evaluation of the nodule study: over seeds, over patients, and on the test split."""

from collections.abc import Callable, Mapping

import keras
import numpy as np
import pandas as pd
from scipy.special import softmax

from covid_lab.runs.experiment import StudyRun
from covid_lab.studies.graded_metrics import (
    METRICS,
    Verdicts,
    interval_over_seeds,
    metrics_table,
    resamples,
)
from covid_project.evaluation import area_under_roc, percentile_interval
from covid_project.files import write_csv
from covid_project.models import model_fingerprint, outputs

INDETERMINATE = 2  # malignancy 3 as a label


def over_seeds(trials: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Summarise trials of several seeds, one row per case.

    Parameters
    ----------
    trials : pd.DataFrame
        One row per training, with `grading.METRICS`; columns that begin with "patients_" are
        bounds of intervals over patients.
    by : list of str
        Columns that name a case.

    Returns
    -------
    pd.DataFrame
        The case; for each metric the mean, ``_low`` and ``_high`` (Student's interval over seeds);
        for each bound over patients the mean; and the number of seeds.
    """
    rows = []
    for case, group in trials.groupby(by, sort=False):
        row = dict(zip(by, case, strict=True))
        for metric in METRICS:
            found = interval_over_seeds(group[metric])
            row |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), found, strict=True))
        bounds = [name for name in group if name.startswith("patients_")]
        rows.append({**row, **group[bounds].mean(), "seeds": len(group)})
    return pd.DataFrame(rows)


def evaluate_on_test(
    run: StudyRun,
    stage: str,
    network: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    source: Mapping[str, object],
) -> Verdicts:
    """Enter a final network into the ledger, and evaluate it on the test split.

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
    Verdicts
        Predictions for the test slices; their metrics are written as by `record_test`.
    """
    look = run.enter_test(stage, model_fingerprint(network))
    logits = outputs(network, images[run.dataset.rows("test")]).astype(np.float64)
    verdicts = Verdicts(softmax(logits, axis=1), logits.argmax(axis=1))
    record_test(run, stage, verdicts, labels, {**source, "look": look})
    return verdicts


def record_test(
    run: StudyRun,
    stage: str,
    verdicts: Verdicts,
    labels: np.ndarray,
    source: Mapping[str, object],
) -> pd.DataFrame:
    """Write ``scores_<stage>_test.csv``, and the metrics into ``metrics.csv``.

    Parameters
    ----------
    run : StudyRun
    stage : str
        A stage that is in the ledger already.
    verdicts : Verdicts
        Predictions for the test slices.
    labels : np.ndarray, int (N,)
        Of all slices, from 0 to K − 1.
    source : mapping
        Further columns of the metrics, such as "look", from `Run.enter_test`.

    Returns
    -------
    pd.DataFrame
        As `Run.keep_metrics`, with intervals of a bootstrap over patients. The last row,
        "AUC_without_3", is the AUC of malignancy 4 and 5 against 1 and 2 by the expected label.
    """
    rows = run.dataset.rows("test")
    table = run.dataset.table.iloc[rows]
    scored = pd.DataFrame(
        {"path": run.paths("test"), "label": labels[rows], "predicted": verdicts.predicted}
    )
    for label in range(verdicts.scores.shape[1]):
        scored[f"score_{label}"] = verdicts.scores[:, label]
    write_csv(run.folder / f"scores_{stage}_test.csv", scored)
    groups, seed = table["group"].to_numpy(), run.settings.seed
    metrics = metrics_table(labels[rows], verdicts, seed=seed, groups=groups)
    expected = verdicts.scores @ np.arange(verdicts.scores.shape[1])
    extremes = auc_without_3(table["label"].to_numpy(), expected, groups, seed)
    metrics.loc[len(metrics)] = ["AUC_without_3", *extremes]
    return run.keep_metrics(stage, "test", metrics, **source)


def auc_without_3(
    grades: np.ndarray, scores: np.ndarray, groups: np.ndarray, seed: int
) -> tuple[float, float, float, int]:
    """Compute the AUC of malignancy 4 and 5 against 1 and 2, with its 95 % interval.

    Parameters
    ----------
    grades : np.ndarray, int (N,)
        0 to 4; nodules of malignancy 3 are left out.
    scores : np.ndarray, (N,)
        Larger for more malignant.
    groups : np.ndarray, (N,)
        Patients, which the bootstrap resamples.
    seed : int

    Returns
    -------
    auc, low, high : float
    n : int
    """
    known = grades != INDETERMINATE
    malignant, scores, groups = grades[known] > INDETERMINATE, scores[known], groups[known]
    return _over_patients(lambda rows: area_under_roc(malignant[rows], scores[rows]), groups, seed)


def mean_over_patients(
    values: np.ndarray, groups: np.ndarray, seed: int
) -> tuple[float, float, float, int]:
    """Compute a mean with the 95 % interval of a bootstrap over patients.

    Parameters
    ----------
    values : np.ndarray, (N,)
    groups : np.ndarray, (N,)
        Patients, which the bootstrap resamples.
    seed : int

    Returns
    -------
    mean, low, high : float
    n : int
    """
    return _over_patients(lambda rows: float(values[rows].mean()), groups, seed)


def _over_patients(
    statistic: Callable[[np.ndarray], float], groups: np.ndarray, seed: int
) -> tuple[float, float, float, int]:
    """Return a statistic of all rows, its interval, and the number of rows."""
    drawn = [statistic(rows) for rows in resamples(groups, seed, whole=True)]
    return statistic(np.arange(len(groups))), *percentile_interval(drawn), len(groups)
