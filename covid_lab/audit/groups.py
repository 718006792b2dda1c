"""Groups of images (patients, clusters of copies), and splits that keep groups together."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from covid_lab.audit.duplicates import require_columns
from covid_project.data import DataError

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def clusters(n: int, pairs: pd.DataFrame) -> np.ndarray:
    """Number the clusters that pairs of copies form.

    Parameters
    ----------
    n : int
        Number of images.
    pairs : pd.DataFrame
        With the columns first and second: row numbers of images.

    Returns
    -------
    np.ndarray, int64 (n,)
        Cluster of each image, numbered from 0 in the order of appearance. Images that pairs
        connect, directly or through others, share a cluster; every other image has its own.

    Raises
    ------
    DataError
        A pair names a row that does not exist.

    Examples
    --------
    >>> import pandas as pd
    >>> clusters(5, pd.DataFrame({"first": [0, 2], "second": [2, 4]}))
    array([0, 1, 0, 2, 0])
    """
    first, second = pairs["first"].to_numpy(), pairs["second"].to_numpy()
    if len(pairs) and not 0 <= min(first.min(), second.min()) <= max(first.max(), second.max()) < n:
        raise DataError(f"the pairs name rows beyond the {n} images")
    return _connected(n, first, second)


def joined_groups(*groupings: Iterable) -> np.ndarray:
    """Join groupings of the same images, such as patients and clusters of copies.

    Parameters
    ----------
    *groupings : iterable, each (N,)
        Groups of the images; any hashable values.

    Returns
    -------
    np.ndarray, int64 (N,)
        Numbered as by `clusters`. Images that share a group in any of the groupings, directly or
        through others, share a group here.

    Raises
    ------
    DataError
        No groupings, groupings of different lengths, or missing values.

    Examples
    --------
    >>> joined_groups(["anna", "anna", "ben", "carl"], [7, 8, 8, 9])
    array([0, 0, 0, 1])
    """
    codes = [pd.factorize(pd.Series(list(grouping)))[0] for grouping in groupings]
    if len({len(code) for code in codes}) != 1:
        raise DataError("give at least one grouping, and each of them for the same images")
    if any((code < 0).any() for code in codes):
        raise DataError("a group is missing (None or NaN); give such images a group of their own")
    n = len(codes[0])
    # Every image is connected with the first one of its group.
    firsts = [np.unique(code, return_index=True)[1][code] for code in codes]
    return _connected(n, np.tile(np.arange(n), len(codes)), np.concatenate(firsts))


def _connected(n: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Connected components of n nodes, int64 (n,), numbered in the order of appearance."""
    edges = coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    _, components = connected_components(edges, directed=False)
    return pd.factorize(components)[0].astype(np.int64)


def groups_across_splits(table: pd.DataFrame) -> pd.DataFrame:
    """Find the groups (patients, or clusters of copies) with images in more than one split.

    Parameters
    ----------
    table : pd.DataFrame
        One row per image with the columns group and split, as `covid_project.data.Dataset.table`.

    Returns
    -------
    pd.DataFrame
        One row per such group, sorted by group: group, images (how many in all), splits
        ("test, train"), and one column per split with the number of the group's images in it.

    Raises
    ------
    DataError
        A missing column.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"group": ["a", "a", "b"], "split": ["train", "test", "train"]})
    >>> groups_across_splits(table)
      group  images       splits  test  train
    0     a       2  test, train     1      1
    """
    require_columns(table, ("group", "split"))
    counts = pd.crosstab(table["group"], table["split"])
    counts = counts[(counts > 0).sum(axis=1) > 1]
    names = np.array(counts.columns, dtype=object)
    splits = [", ".join(names[row]) for row in counts.to_numpy() > 0]
    summary = {"group": counts.index, "images": counts.sum(axis=1).to_numpy(int), "splits": splits}
    found = pd.DataFrame(summary)
    return found.assign(**{name: counts[name].to_numpy(int) for name in names})


def grouped_split(
    labels: np.ndarray, groups: Iterable, shares: Mapping[str, float] | None = None, seed: int = 0
) -> np.ndarray:
    """Draw a stratified split that keeps groups together.

    Groups are assigned one by one, large ones first, groups of equal size in random order. Each
    goes to the split that lacks most of the classes in the group. The same arguments always give
    the same split.

    Parameters
    ----------
    labels : np.ndarray, (N,)
        Class of each image.
    groups : iterable, (N,)
        Patients, clusters of near copies, or both: see `joined_groups`.
    shares : mapping from str to float, optional
        Fraction of the images by the name of the split; the sum is 1. None: `SHARES`.
    seed : int
        Of the random order.

    Returns
    -------
    np.ndarray, str (N,)
        Name of each image's split.

    Raises
    ------
    DataError
        Arguments of different lengths; fractions that are not positive or whose sum is not 1; or
        groups that are too few or too large for every split to get images of every class.

    Examples
    --------
    >>> patients = ["a", "a", "b", "c", "d", "d", "e", "f"]
    >>> labels = [0, 0, 0, 0, 1, 1, 1, 1]
    >>> grouped_split(labels, patients, {"train": 0.5, "test": 0.5}).tolist()
    ['train', 'train', 'test', 'test', 'train', 'train', 'test', 'test']
    """
    shares = dict(SHARES if shares is None else shares)
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise DataError(f"shares must be positive and add up to 1, not {shares}")
    classes, of_label = np.unique(np.asarray(labels), return_inverse=True)
    groups = joined_groups(groups)
    if len(of_label) != len(groups) or not len(groups):
        raise DataError(
            f"{len(of_label)} labels and {len(groups)} groups: give one of each per image"
        )
    # Fractions of the classes, so that a rare class weighs as much as a frequent one.
    counts = np.zeros((groups.max() + 1, len(classes)))
    np.add.at(counts, (groups, of_label), 1)
    portions = counts / counts.sum(axis=0)
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    missing = np.repeat(np.array(list(shares.values()))[:, None], len(classes), axis=1)
    split_of = np.empty(len(counts), int)
    for group in order:
        # The squared distance from the wanted fractions shrinks most where most is missing.
        chosen = split_of[group] = np.argmax(missing @ portions[group])
        missing[chosen] -= portions[group]
    drawn = split_of[groups]
    gaps = [
        f"{name} no image of class {label}"
        for row, name in enumerate(shares)
        for column, label in enumerate(classes)
        if not ((drawn == row) & (of_label == column)).any()
    ]
    if gaps:
        raise DataError(f"too few groups, or too large ones, for this split: {'; '.join(gaps)}")
    return np.array(list(shares), dtype=object)[drawn]
