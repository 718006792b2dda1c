"""Normalisation strategies, each a layer that is stored inside the model.

Inside the model, training, testing and explaining cannot normalise differently. All layers take
grey values 0–255, float32 (N, H, W, 1).
"""

from collections.abc import Callable

import keras
import numpy as np
from keras import layers

SMALLEST_DEVIATION = 1.0  # grey level; a constant pixel or image would otherwise be divided by 0


@keras.saving.register_keras_serializable(package="covid_project")
class SampleNormalization(layers.Layer):
    """Subtract each image's mean and divide by its standard deviation (at least one grey level)."""

    def call(self, images):
        """Normalise images, float32 (N, H, W, 1)."""
        mean, variance = keras.ops.moments(images, axes=(1, 2, 3), keepdims=True)
        return (images - mean) / keras.ops.maximum(keras.ops.sqrt(variance), SMALLEST_DEVIATION)


def _fixed(training_images: np.ndarray) -> layers.Layer:
    """Fixed values: 0–255 becomes −1 to 1."""
    return layers.Rescaling(1 / 127.5, offset=-1.0, name="normalization")


def _dataset(training_images: np.ndarray) -> layers.Layer:
    """Mean and standard deviation of the whole training set."""
    variance = max(training_images.std(), SMALLEST_DEVIATION) ** 2
    return layers.Normalization(
        axis=None, mean=training_images.mean(), variance=variance, name="normalization"
    )


def _pixel(training_images: np.ndarray) -> layers.Layer:
    """Mean and standard deviation of each pixel over the training set."""
    mean, deviation = pixel_statistics(training_images)
    variance = np.maximum(deviation, SMALLEST_DEVIATION) ** 2
    return layers.Normalization(axis=(1, 2, 3), mean=mean, variance=variance, name="normalization")


def _sample(training_images: np.ndarray) -> layers.Layer:
    """Each image's own mean and standard deviation."""
    return SampleNormalization(name="normalization")


# Name in the settings → function of the training images that returns the layer.
STRATEGIES: dict[str, Callable[[np.ndarray], layers.Layer]]
STRATEGIES = {"fixed": _fixed, "dataset": _dataset, "pixel": _pixel, "sample": _sample}


def normalization_layer(strategy: str, training_images: np.ndarray) -> layers.Layer:
    """Build the layer that normalises images by one of the `STRATEGIES`.

    Parameters
    ----------
    strategy : str
        "fixed", "dataset", "pixel" or "sample".
    training_images : np.ndarray, uint8 (N, H, W, 1)
        Of the training split only: "dataset" and "pixel" take their statistics from them.

    Returns
    -------
    keras.layers.Layer
        From grey values 0–255 to normalised values, float32 (N, H, W, 1).

    Raises
    ------
    ValueError
        Unknown strategy.

    Examples
    --------
    >>> layer = normalization_layer("fixed", np.zeros((1, 2, 2, 1), np.uint8))
    >>> layer(np.array([0.0, 127.5, 255.0])).numpy()
    array([-1.,  0.,  1.], dtype=float32)
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown normalisation {strategy!r}; allowed: {', '.join(STRATEGIES)}")
    return STRATEGIES[strategy](training_images)


def pixel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard deviation of each pixel over images.

    They are summed image by image, so that memory does not grow with the number of images.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, H, W, 1)

    Returns
    -------
    mean, deviation : np.ndarray, float64 (H, W, 1)
    """
    total = np.zeros(images.shape[1:])
    squares = np.zeros(images.shape[1:])
    for image in images:
        values = image.astype(np.float64)
        total += values
        squares += values**2
    mean = total / len(images)
    return mean, np.sqrt(np.maximum(squares / len(images) - mean**2, 0))
