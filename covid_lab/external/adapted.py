"""What a threshold from unlabelled images is worth, measured on labelled ones.

``python -m covid_lab.external.adapted FOLDER`` computes ``adapted.csv`` and the page of an external
test again from its kept scores.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from covid_lab.external.adapt import label_shift_threshold, mixture_threshold, site_warning
from covid_lab.external.score import BALANCED, external_metrics
from covid_project.evaluation import FEWEST, checked, percentile_interval
from covid_project.files import read_csv, write_csv

TABLE = "adapted.csv"
SHOWN = ("accuracy", BALANCED, "sensitivity", "specificity")
RESAMPLES = 300  # each finds the threshold again
KEPT, NOW = "kept scores of an earlier reading", "this reading"
COLUMNS = ("method", "threshold", "prevalence", "metric", "value", "low", "high", "n")
COLUMNS += ("change", "change_low", "change_high", "note")


def adapted_metrics(
    labels: np.ndarray, scores: np.ndarray, reference: pd.DataFrame | None = None, seed: int = 0
) -> pd.DataFrame:
    """Measure a model at its own threshold and at those from unlabelled images.

    Parameters
    ----------
    labels : np.ndarray, (N,)
        0 or 1; they measure, and have no part in any threshold.
    scores : np.ndarray, (N,)
        Logits.
    reference : pd.DataFrame, optional
        Columns label and score: the model on labelled images of its own collection. Without it,
        there are neither label shift nor warning.
    seed : int
        Of the bootstrap.

    Returns
    -------
    pd.DataFrame
        One row per method (plain, mixture, label shift) and metric: method, threshold (logit),
        prevalence (estimated, 0–1), metric, value, low, high, n, change (against plain) with
        change_low and change_high, note (in the method's first row: the warning, or why its
        threshold is refused). Intervals are 95 %: for plain as in `external_metrics`, else
        percentiles of `RESAMPLES` resamples within each class, of the images and of the reference.
        Each finds the threshold again; where that is refused, the plain threshold counts.

    Raises
    ------
    ValueError
        Labels and scores do not fit each other (see `covid_project.evaluation.checked`).
    """
    labels, scores = checked(labels, scores)
    plain = external_metrics(labels, scores, seed=seed).set_index("metric").loc[list(SHOWN)]
    note = "" if reference is None else site_warning(scores, reference)[1]
    parts = [plain.reset_index().assign(method="plain", threshold=0.0, note=note)]
    methods = {"mixture": lambda target, _: mixture_threshold(target)}
    if reference is not None:
        methods["label shift"] = label_shift_threshold
    for name, method in methods.items():
        found = method(scores, reference)
        part = plain[["n"]].reset_index().assign(method=name, note=found.reason)
        part["threshold"], part["prevalence"] = found.value, found.prevalence
        if not found.reason:
            part["value"] = _values(labels, scores, found.value)
            part["change"] = part["value"] - _values(labels, scores, 0)
            bounds = _bounds(labels, scores, reference, method, seed)
            part[["low", "high", "change_low", "change_high"]] = bounds
        parts.append(part)
    for part in parts:
        part.loc[1:, "note"] = ""
    return pd.concat([part.reindex(columns=COLUMNS) for part in parts], ignore_index=True)


def both_sets(
    labels: np.ndarray,
    scores: np.ndarray,
    own: pd.DataFrame | None,
    *,
    shift: float = 0.0,
    source: str = NOW,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the thresholds on external images, and what the mixture costs at home.

    Parameters
    ----------
    labels, scores : np.ndarray, (N,)
        Of the external images.
    own : pd.DataFrame or None
        Columns label and score of the model's own test set.
    shift : float
        What was added to the logits of the external images, but not to those of the own test set.
    source : {KEPT, NOW}
        Whether the scores are kept ones.
    seed : int

    Returns
    -------
    pd.DataFrame
        As `adapted_metrics`, after the columns set (external, own) and source.
    """
    same = None if own is None else own.assign(score=own["score"] + shift)
    tables = {"external": adapted_metrics(labels, scores, same, seed)}
    if own is not None:
        tables["own"] = adapted_metrics(own["label"], own["score"], seed=seed)
    parts = [table.assign(set=name, source=source) for name, table in tables.items()]
    return pd.concat(parts, ignore_index=True)[["set", "source", *COLUMNS]]


def shift_of(record: Path) -> float:
    """Return the shift of a model's bias for another site, from its record; 0 for other models.

    Own scores are kept without it, since at home a model is judged at its own threshold. A
    comparison of scores needs the same model on both sets.

    Parameters
    ----------
    record : Path
        Of a network with two exits (``.json``), or any other model.

    Returns
    -------
    float
        In logits.
    """
    if record.suffix != ".json" or not record.is_file():
        return 0.0
    return float(json.loads(record.read_text(encoding="utf-8")).get("shift", 0.0))


def from_kept(folder: Path) -> Path:
    """Compute ``adapted.csv`` of an external test from its kept scores, without any image.

    Parameters
    ----------
    folder : Path
        ``<results>/external/<data>`` with ``external.json`` and ``scores_<model>.csv``. Scores of
        the own test sets are in ``<results>``, or in ``own_scores`` beside a model's record.

    Returns
    -------
    Path
        Of the table.
    """
    folder = Path(folder).resolve()
    record = json.loads((folder / "external.json").read_text(encoding="utf-8"))
    tables = []
    for name in record["models"]:
        scores = read_csv(folder / f"scores_{name}.csv")
        own, shift = read_csv(folder.parents[1] / f"scores_{name}_test.csv"), 0.0
        for path in folder.parent.glob(f"*/{name}.json"):
            own, shift = read_csv(path.parent / "own_scores" / f"{name}.csv"), shift_of(path)
        table = both_sets(
            scores["label"],
            scores["score"],
            own if len(own) else None,
            shift=shift,
            source=KEPT,
            seed=record["seed"],
        )
        tables.append(table.assign(model=name)[["model", *table.columns]])
    write_csv(folder / TABLE, pd.concat(tables, ignore_index=True))
    return folder / TABLE


def _values(labels: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Metrics of `SHOWN` at a threshold, float64 (4,); NaN where a class is missing."""
    called = scores > threshold
    sensitivity = called[labels].mean() if labels.any() else np.nan
    specificity = (~called[~labels]).mean() if not labels.all() else np.nan
    balanced = (sensitivity + specificity) / 2
    return np.array([(called == labels).mean(), balanced, sensitivity, specificity])


def _bounds(labels, scores, reference, method, seed: int) -> np.ndarray:
    """Bounds of the metrics and of their changes, float64 (4, 4); NaN for too few images."""
    if min(labels.sum(), (~labels).sum()) < FEWEST:
        return np.full((len(SHOWN), 4), np.nan)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        rows = _drawn(labels, rng)
        known = reference
        if reference is not None:
            known = reference.iloc[_drawn(reference["label"].to_numpy() == 1, rng)]
        found = method(scores[rows], known)
        drawn = labels[rows], scores[rows]
        plain = _values(*drawn, 0)
        adapted = plain if found.reason else _values(*drawn, found.value)
        values.append((adapted, adapted - plain))
    values = np.array(values)  # (RESAMPLES, 2, 4)
    return np.array(
        [
            percentile_interval(values[:, 0, k]) + percentile_interval(values[:, 1, k])
            for k in range(len(SHOWN))
        ]
    )


def _drawn(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of a resample that keeps the sizes of both classes, int (N,)."""
    groups = np.flatnonzero(labels), np.flatnonzero(~labels)
    return np.concatenate([rng.choice(group, len(group)) for group in groups])


if __name__ == "__main__":
    from covid_lab.external.page import write_page

    for argument in sys.argv[1:]:
        print(from_kept(Path(argument)))
        print(write_page(Path(argument)))
