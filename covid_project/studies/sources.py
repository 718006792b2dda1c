"""Could the label be read off what has nothing to do with the patient?

Where the classes come from different sources, they differ in file sizes, borders and exposure, and
a classifier that reads those is near perfect on its own data and worthless elsewhere.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from covid_project.audit.duplicates import joined_groups
from covid_project.evaluation import bootstrap_auc

FOLDS = 5
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
        "whole image, 32 px": small.reshape(n, -1),
    }


def source_table(
    features: Mapping[str, np.ndarray], labels: np.ndarray, groups: np.ndarray, seed: int = 0
) -> pd.DataFrame:
    """How well each view predicts the label, by cross-validation that parts no group.

    A logistic regression on standardised features, fitted anew on four fifths of the groups and
    scored on the last one; the five sets of scores are ranked within their fifth before they are
    put together, as their scales differ.

    Parameters
    ----------
    features
        Name of a view → (N, F).
    labels, groups
        (N,); labels 0 or 1.

    Returns
    -------
    One row per view: view, AUC, low, high (95 %, bootstrap over images), n. 0.5 is chance.
    """
    groups = joined_groups(groups)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    rows = []
    for name, values in features.items():
        scores = np.empty(len(labels))
        for train, test in folds.split(values, labels, groups):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
            found = model.fit(values[train], labels[train]).decision_function(values[test])
            scores[test] = (np.argsort(np.argsort(found)) + 0.5) / len(test)
        rows.append((name, *bootstrap_auc(labels, scores, seed=seed), len(labels)))
    return pd.DataFrame(rows, columns=["view", "AUC", "low", "high", "n"])
