"""Logistic regression and nearest neighbours on flattened pixels.

Each is one scikit-learn pipeline from images to scores. All that it learns, including the scaling,
comes from the images on which it is fitted.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler


def logistic_regression(*, strength: float = 1.0) -> Pipeline:
    """Build a logistic regression on standardised pixels, with an L2 penalty.

    Parameters
    ----------
    strength : float, above 0
        scikit-learn's C, the inverse weight of the penalty.

    Returns
    -------
    Pipeline
        Classifier to fit on images, uint8 (N, H, W, 1), and labels (N,).
    """
    return _on_pixels(LogisticRegression(C=strength, max_iter=2000))


def nearest_neighbours(*, neighbours: int = 3) -> Pipeline:
    """Build a vote of the nearest training images.

    Parameters
    ----------
    neighbours : int, from 1
        Number of votes; the distance is Euclidean between standardised pixels.

    Returns
    -------
    Pipeline
        Classifier to fit on images, uint8 (N, H, W, 1), and labels (N,).
    """
    return _on_pixels(KNeighborsClassifier(n_neighbors=neighbours))


def _on_pixels(classifier) -> Pipeline:
    return make_pipeline(FunctionTransformer(flattened), StandardScaler(), classifier)


def flattened(images: np.ndarray) -> np.ndarray:
    """Flatten images to rows of pixels.

    Parameters
    ----------
    images : np.ndarray, (N, H, W, 1)
        Images.

    Returns
    -------
    np.ndarray, float32 (N, H·W)
        One row per image.
    """
    return np.reshape(images, (len(images), -1)).astype(np.float32)


def log_odds(model: Pipeline, images: np.ndarray) -> np.ndarray:
    """Compute the logits of the positive class.

    A vote of v among k neighbours becomes log((v + 1/2) / (k − v + 1/2)). The fraction of votes
    alone would make a unanimous vote infinitely certain.

    Parameters
    ----------
    model : Pipeline
        Fitted pipeline of this module.
    images : np.ndarray, (N, H, W, 1)
        Images.

    Returns
    -------
    np.ndarray, float (N,)
        Logits.

    Examples
    --------
    >>> images = np.array([0, 10, 200, 220], np.uint8).reshape(4, 1, 1, 1)
    >>> model = nearest_neighbours(neighbours=1).fit(images, [0, 0, 1, 1])
    >>> log_odds(model, images).round(2).tolist()
    [-1.1, -1.1, 1.1, 1.1]
    """
    classifier = model[-1]
    if isinstance(classifier, KNeighborsClassifier):
        neighbours = classifier.n_neighbors
        votes = model.predict_proba(images)[:, 1] * neighbours
        return np.log((votes + 0.5) / (neighbours - votes + 0.5))
    return model.decision_function(images)
