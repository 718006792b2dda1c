"""Are the classes, or a column across the splits, out of balance? Chi-squared tests."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency, chisquare

from covid_lab.audit.duplicates import require_columns
from covid_project.data import DataError


@dataclass(frozen=True)
class ChiSquare:
    """Result of Pearson's (1900) χ² test.

    Attributes
    ----------
    statistic : float
        χ².
    degrees : int
        Degrees of freedom.
    p_value : float, 0 to 1
        Probability of a statistic at least as large under balance.
    cramers_v : float, 0 (balance) to 1
        Cramér's V (Cramér 1946, p. 282), which does not depend on the number of images. For one
        column of counts it is √(χ² / (n (k - 1))), which is 1 if one of k classes holds all n
        images.
    """

    statistic: float
    degrees: int
    p_value: float
    cramers_v: float


def split_balance(table: pd.DataFrame) -> ChiSquare:
    """Test whether the classes are differently frequent in the splits.

    This is the χ² test of independence without Yates' correction.

    Parameters
    ----------
    table : pd.DataFrame
        One row per image with the columns split and label.

    Returns
    -------
    ChiSquare
        With one split or one class there is nothing to test: statistic 0, no degrees of freedom,
        p-value 1.

    Raises
    ------
    DataError
        A missing column, or no rows.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"split": ["train"] * 2 + ["test"] * 2, "label": [0, 1, 0, 1]})
    >>> found = split_balance(table)
    >>> found.statistic, found.degrees, found.p_value
    (0.0, 1, 1.0)
    """
    require_columns(table, ("split", "label"))
    counts = pd.crosstab(table["split"], table["label"]).to_numpy()
    if not counts.size:
        raise DataError("no images: there is nothing to test")
    smaller = min(counts.shape) - 1
    if not smaller:
        return ChiSquare(0.0, 0, 1.0, 0.0)
    found = chi2_contingency(counts, correction=False)
    strength = np.sqrt(found.statistic / (counts.sum() * smaller))
    return ChiSquare(float(found.statistic), int(found.dof), float(found.pvalue), float(strength))


def class_balance(labels: Iterable) -> ChiSquare:
    """Test whether all classes are equally frequent (χ² test of goodness of fit).

    Parameters
    ----------
    labels : iterable, (N,)
        Class of each image; any hashable values.

    Returns
    -------
    ChiSquare
        With one class there is nothing to test, see `split_balance`.

    Raises
    ------
    DataError
        No labels.

    Examples
    --------
    >>> found = class_balance(["COVID"] * 75 + ["NORMAL"] * 25)
    >>> found.statistic, found.degrees, found.cramers_v
    (25.0, 1, 0.5)
    """
    counts = pd.Series(list(labels)).value_counts().to_numpy()
    if not len(counts):
        raise DataError("no images: there is nothing to test")
    degrees = len(counts) - 1
    if not degrees:
        return ChiSquare(0.0, 0, 1.0, 0.0)
    found = chisquare(counts)
    strength = np.sqrt(found.statistic / (counts.sum() * degrees))
    return ChiSquare(float(found.statistic), degrees, float(found.pvalue), float(strength))
