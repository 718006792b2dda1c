"""How well two sources of images can be told apart without looking at the patient.

Where each class comes from a source of its own, a classifier that reads file sizes, borders or the
exposure is near perfect on its own data and worthless elsewhere. `covid_lab.audit.shortcuts` checks
this for the labels of one data set. Here any two sets of images can be compared, such as two
sources without the disease.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from covid_lab.audit.predictability import predict, prepare

SIDE = 32  # pixels along each side of the reduced image
FRAME = 2  # of these, the outer ones that count as border


def views(images: np.ndarray, sizes: pd.DataFrame) -> dict[str, np.ndarray]:
    """Compute the features that a shortcut could use.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, H, W, 1), H and W multiples of 32
        Grey values.
    sizes : pd.DataFrame, N rows
        Columns width, height and bytes of each file, as from `covid_lab.datasets.image_sizes`.

    Returns
    -------
    dict of str to np.ndarray, float (N, F)
        Name of a view → its features.
    """
    n, height, width, _ = images.shape
    blocks = images.reshape(n, SIDE, height // SIDE, SIDE, width // SIDE)
    small = blocks.mean((2, 4))  # (N, SIDE, SIDE)
    border = np.ones((SIDE, SIDE), bool)
    border[FRAME:-FRAME, FRAME:-FRAME] = False
    histograms = [np.bincount(image.ravel() // 8, minlength=32) for image in images]
    logs = np.log(sizes[["width", "height", "bytes"]].to_numpy(float))
    squareness = np.abs(logs[:, :1] - logs[:, 1:2])
    return {
        "file size and dimensions": np.hstack([logs, squareness]),
        "border alone": small[:, border],
        "grey histogram alone": np.array(histograms) / (height * width),
        "whole image": small.reshape(n, -1),
    }


def source_table(
    features: Mapping[str, np.ndarray], which: np.ndarray, groups: np.ndarray, seed: int = 0
) -> pd.DataFrame:
    """Measure how well each view separates two sources, cross-validated over groups.

    Parameters
    ----------
    features : mapping of str to np.ndarray, float (N, F)
        Name of a view → its features.
    which : np.ndarray, (N,), 0 or 1
        Source of each image.
    groups : np.ndarray, (N,)
        Groups that stay together, such as patients.
    seed : int, from 0
        Seed of the folds and the bootstrap.

    Returns
    -------
    pd.DataFrame
        One row per view: view, auc, low, high (95 %, bootstrap over groups), n. An AUC of 0.5 is
        chance.

    Raises
    ------
    audit.predictability.TooFewGroups
        A source has too few groups.
    """
    trial = prepare(which, groups, seed)
    found = {name: predict(values, trial) for name, values in features.items()}
    rows = [(name, one.auc, one.low, one.high, len(which)) for name, one in found.items()]
    return pd.DataFrame(rows, columns=["view", "auc", "low", "high", "n"])
