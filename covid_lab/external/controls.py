"""Controls of an external test: models whose result is known beforehand."""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from covid_lab.datasets import open_dataset
from covid_lab.masks import border
from covid_project.data import Dataset, ImageFiles
from covid_project.evaluation import bootstrap_auc
from covid_project.images import resize

SIDE = 32  # pixels


def border_control(own: Path, external: Dataset, seed: int = 0) -> pd.DataFrame:
    """Control: a model that sees only the border of the image must fail on other collections.

    Ridge regression on the pixels of the outer tenth, trained on the training split of the models'
    own data. Its AUC on held-out images of these data comes from a shortcut; on images of another
    collection it should be near 0.5.

    Parameters
    ----------
    own : Path
        The data that the models were trained on, with splits train and val.
    external : Dataset
        Images of the other collection; all of them are scored.
    seed : int, from 0
        Seed of the bootstrap.

    Returns
    -------
    pd.DataFrame
        Two rows, of the own validation split and of the external images: model, control, set, AUC,
        low and high (95 %), n.

    Raises
    ------
    DataError
        Data cannot be read.
    """
    dataset = open_dataset(own, as_found=True)
    train, val = dataset.rows("train"), dataset.rows("val")
    model = _border_model()
    model.fit(_pixels(dataset, train), dataset.table["label"].to_numpy()[train])
    sets = {"own validation split": (dataset, val)}
    sets["external"] = external, np.arange(len(external.table))
    rows = []
    for name, (images, at) in sets.items():
        labels = images.table["label"].to_numpy()[at]
        auc, low, high = bootstrap_auc(
            labels, model.decision_function(_pixels(images, at)), seed=seed
        )
        rows.append(
            {"model": "ridge regression", "control": "border only", "set": name}
            | {"AUC": auc, "low": low, "high": high, "n": len(at)}
        )
    return pd.DataFrame(rows)


def _border_model() -> Pipeline:
    """Build the classifier of border pixels: standardisation and ridge regression."""
    return make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(0, 5, 11)))


def _border_pixels(images: np.ndarray) -> np.ndarray:
    """Pixels of the border, float32 (N, D), standardised by each image's mean and deviation."""
    pixels = images[:, border(SIDE)].astype(np.float32)
    return (pixels - pixels.mean(1, keepdims=True)) / (pixels.std(1, keepdims=True) + 1)


def border_scores(images: np.ndarray, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Predict the class of each image from its border, with five-fold cross-validation.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, S, S), 0–255
        Grey values.
    labels : np.ndarray, int (N,), 0 or 1
        Labels of the images, of both classes.
    seed : int, from 0
        Seed of the folds.

    Returns
    -------
    np.ndarray, float (N,)
        Scores of models that have not seen the image; positive where the border indicates COVID.
    """
    pixels = _border_pixels(np.stack([resize(image, (SIDE, SIDE)) for image in images]))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return cross_val_predict(_border_model(), pixels, labels, cv=folds, method="decision_function")


def _pixels(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    return _border_pixels(ImageFiles(dataset, rows, SIDE)[:][..., 0])
