"""Logistic regression and nearest neighbours on flattened pixels.

Each is one scikit-learn pipeline from images to scores: what it learns of the data (the scaling
too) comes from the images that it is fitted on, and nothing else.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler


def logistic_regression(*, strength: float = 1.0) -> Pipeline:
    """Logistic regression on standardised pixels, with L2 penalty.

    Parameters
    ----------
    strength
        scikit-learn's C, the inverse of the penalty's weight.
    """
    return _on_pixels(LogisticRegression(C=strength, max_iter=2000))


def nearest_neighbours(*, neighbours: int = 3) -> Pipeline:
    """Vote of the nearest training images, by Euclidean distance of standardised pixels."""
    return _on_pixels(KNeighborsClassifier(n_neighbors=neighbours))


def _on_pixels(classifier) -> Pipeline:
    return make_pipeline(FunctionTransformer(flattened), StandardScaler(), classifier)


def flattened(images: np.ndarray) -> np.ndarray:
    """Images (N, H, W, 1) as rows of pixels, float32 (N, H·W)."""
    return np.reshape(images, (len(images), -1)).astype(np.float32)


def log_odds(model: Pipeline, images: np.ndarray) -> np.ndarray:
    """Logits (N,) of the positive class, of a fitted pipeline for images (N, H, W, 1).

    A vote of v among k neighbours becomes log((v + 1/2) / (k − v + 1/2)): the share of votes alone
    would make a unanimous one infinitely certain.
    """
    classifier = model[-1]
    if isinstance(classifier, KNeighborsClassifier):
        neighbours = classifier.n_neighbors
        votes = model.predict_proba(images)[:, 1] * neighbours
        return np.log((votes + 0.5) / (neighbours - votes + 0.5))
    return model.decision_function(images)
