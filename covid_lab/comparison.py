"""Paired tests of several models on the same images, from labels and logits only."""

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from covid_project.evaluation import SIGNIFICANCE, accuracy_difference, auc_difference, holm


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
        Name of a model → its logits.
    reference : str, optional
        Compare only with this model; None: all pairs, in the order of ``scores``.
    seed : int
        Of the bootstrap.

    Returns
    -------
    pd.DataFrame
        One row per metric (accuracy, AUC) and pair: metric, first, second, difference (second minus
        first), low, high, p_value, p_adjusted (Holm, over the pairs of one metric), verdict (see
        `verdict`), n, test.
    """
    names = list(scores)
    if reference is None:
        pairs = list(itertools.combinations(names, 2))
    else:
        pairs = [(reference, name) for name in names if name != reference]
    tests = {
        "accuracy": ("McNemar, exact", lambda a, b: accuracy_difference(labels, a, b, seed)),
        "AUC": ("DeLong", lambda a, b: auc_difference(labels, a, b)),
    }
    tables = []
    for metric, (test, difference_of) in tests.items():
        found = [difference_of(scores[first], scores[second]) for first, second in pairs]
        table = pd.DataFrame(pairs, columns=["first", "second"])
        table.insert(0, "metric", metric)
        for column in ("difference", "low", "high", "p_value"):
            table[column] = [getattr(one, column) for one in found]
        table["p_adjusted"] = holm(table["p_value"].to_numpy())
        table["verdict"] = [
            verdict(*row) for row in zip(table["difference"], table["p_adjusted"], strict=True)
        ]
        tables.append(table.assign(n=len(labels), test=test))
    return pd.concat(tables, ignore_index=True)


def verdict(difference: float, p_value: float) -> str:
    """Return "better", "worse" (the second model) or "no difference" at the 5 % level."""
    if not p_value < SIGNIFICANCE:
        return "no difference"
    return "better" if difference > 0 else "worse"
