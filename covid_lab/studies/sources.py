"""How well two sources of images are told apart by what has nothing to do with the patient.

Where each class comes from a source of its own, a classifier that reads file sizes, borders or the
exposure is near perfect on its own data and worthless elsewhere. `audit.shortcuts` asks this of the
labels of one data set; here any two sets of images can be compared, such as two sources neither of
which holds the disease.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from covid_lab.audit.predictability import predict, prepare

SIDE = 32  # pixels of what is looked at
FRAME = 2  # of these, the outer ones that count as border


def views(images: np.ndarray, sizes: pd.DataFrame) -> dict[str, np.ndarray]:
    """What a shortcut could look at, each float (N, F).

    Parameters
    ----------
    images
        uint8 (N, H, W, 1), H and W multiples of 32.
    sizes
        Width, height and bytes of each file, as from ``data.image_sizes``.
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
    """How well each view tells two sources apart, cross-validated over groups.

    Parameters
    ----------
    features
        Name of a view → (N, F).
    which, groups
        (N,); the source, 0 or 1, and what must not be parted, such as a patient.

    Returns
    -------
    One row per view: view, auc, low, high (95 %, bootstrap over groups), n. 0.5 is chance.

    Raises
    ------
    audit.predictability.TooFewGroups
        A source has too few groups.
    """
    trial = prepare(which, groups, seed)
    found = {name: predict(values, trial) for name, values in features.items()}
    rows = [(name, one.auc, one.low, one.high, len(which)) for name, one in found.items()]
    return pd.DataFrame(rows, columns=["view", "auc", "low", "high", "n"])
