"""Splits for data without a split, or without a validation split; each is made only once."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from covid_lab.audit.groups import grouped_split
from covid_project.data import SPLITS, DataError, Dataset
from covid_project.files import fingerprint, write_csv

COLUMNS = ["path", "label", "split", "group", "fingerprint"]


def dealt_once(
    dataset: Dataset,
    splits_file: Path,
    groups: Callable[[Dataset], np.ndarray],
    shares: Mapping[str, float],
    seed: int,
    *,
    kept: Collection[str] = (),
) -> Dataset:
    """Split images so that groups stay together and the classes are balanced.

    Parameters
    ----------
    dataset : Dataset
        Data opened with ``as_found``.
    splits_file : Path
        CSV (path, label, split, group, fingerprint). It is written if missing and otherwise read,
        so that a split is never made a second time.
    groups : callable
        Takes the data set and returns the group of each image (N,), such as its patient. Called
        only where there is no splits file.
    shares : mapping of str to float, 0–1
        Fraction of the images by the name of the split; the sum is 1.
    seed : int, from 0
        Seed of the split, see `covid_lab.audit.groups.grouped_split`.
    kept : collection of str
        Splits whose images stay where they are; all others are split again.

    Returns
    -------
    Dataset
        The data with the new splits and groups, sorted by split, label and path, with a fingerprint
        of its own.

    Raises
    ------
    DataError
        The splits file is of other data or was changed, or groups are too few or too large.
    """
    table, splits_file = dataset.table, Path(splits_file)
    if splits_file.is_file():
        table = _as_written(dataset, splits_file)
    else:
        table = table.assign(group=[str(group) for group in groups(dataset)])
        is_split = ~table["split"].isin(kept)
        chosen = table[is_split]
        table.loc[is_split, "split"] = grouped_split(chosen["label"], chosen["group"], shares, seed)
    identity = _identity(dataset, table)
    if not splits_file.is_file():
        write_csv(splits_file, table.assign(fingerprint=identity)[COLUMNS])
    order = table["split"].map(SPLITS.index)
    table = table.iloc[np.lexsort((table["path"], table["label"], order))]
    return replace(dataset, table=table.reset_index(drop=True), fingerprint=identity)


def _as_written(dataset: Dataset, splits_file: Path) -> pd.DataFrame:
    try:
        written = pd.read_csv(splits_file, dtype=str, keep_default_na=False).set_index("path")
        wanted = written.loc[dataset.table["path"], ["split", "group"]].to_numpy()
        table = dataset.table.assign(split=wanted[:, 0], group=wanted[:, 1])
        fits = list(written["fingerprint"].unique()) == [_identity(dataset, table)]
    except (ValueError, KeyError):  # not a CSV, or a different one
        fits = False
    if not fits:
        raise DataError(
            f"{splits_file} is the split of other data, or was changed. Give the data that it was "
            "made for, choose another results folder, or delete it to have a new split made"
        )
    return table


def _identity(dataset: Dataset, table: pd.DataFrame) -> str:
    rows = table[["path", "split", "group"]].itertuples(index=False)
    return fingerprint(dataset.fingerprint, *(value for row in rows for value in row))
