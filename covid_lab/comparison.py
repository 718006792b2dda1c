"""Paired tests of several models on the same images, from labels and logits only."""

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from covid_project.evaluation import SIGNIFICANCE, compare_models, holm

COLUMNS = (
    *("metric", "first", "second", "difference", "low", "high", "p_value", "p_adjusted", "verdict"),
    *("n", "test"),
)


def compare(
    labels: np.ndarray,
    scores: Mapping[str, np.ndarray],
    *,
    reference: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare every pair of models, or every model with a reference, on the same images.

    Parameters
    ----------
    labels : np.ndarray, (N,)
        0 or 1.
    scores : mapping of str to np.ndarray, (N,)
        Name of a model → its logits; at least two models.
    reference : str, optional
        Compare only with this model; None: all pairs, in the order of ``scores``.
    seed : int, from 0
        Of the bootstrap.

    Returns
    -------
    pd.DataFrame
        One row per metric (accuracy, AUC) and pair: metric, first, second, difference (second minus
        first), low, high, p_value, p_adjusted (Holm, over the pairs of one metric), verdict (see
        `verdict`), n, test. See `covid_project.evaluation.compare_models` for the tests.

    Raises
    ------
    ValueError
        Fewer than two models, or scores that do not fit the labels.

    Examples
    --------
    >>> labels, good = np.repeat([0, 1], 20), np.arange(40.0) - 19.5
    >>> table = compare(labels, {"good": good, "reversed": -good})
    >>> table[["metric", "difference", "verdict"]]
         metric  difference verdict
    0  accuracy        -1.0   worse
    1       AUC        -1.0   worse
    """
    names = list(scores)
    if reference is None:
        pairs = list(itertools.combinations(names, 2))
    else:
        pairs = [(reference, name) for name in names if name != reference]
    tables = [
        compare_models(labels, scores[first], scores[second], seed).assign(
            first=first, second=second
        )
        for first, second in pairs
    ]
    table = pd.concat(tables).sort_index(kind="stable")  # metric by metric
    by_metric = table.groupby("metric", sort=False)["p_value"]
    table["p_adjusted"] = by_metric.transform(lambda values: holm(values.to_numpy()))
    table["verdict"] = [
        verdict(*row) for row in zip(table["difference"], table["p_adjusted"], strict=True)
    ]
    return table[list(COLUMNS)].reset_index(drop=True)


def verdict(difference: float, p_value: float) -> str:
    """Say in words which of two models is better, at the 5 % level.

    Parameters
    ----------
    difference : float
        Second model minus first.
    p_value : float, 0–1
        NaN where the test is undefined.

    Returns
    -------
    str
        "better" or "worse" (the second model), or "no difference".

    Examples
    --------
    >>> verdict(0.02, 0.01), verdict(0.02, 0.3)
    ('better', 'no difference')
    """
    if not p_value < SIGNIFICANCE:
        return "no difference"
    return "better" if difference > 0 else "worse"
