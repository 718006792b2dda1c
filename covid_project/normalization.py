"""The normalisation strategies of task 1, each a layer that lives inside the saved model.

Inside the model, training, testing and explaining cannot normalise differently. All layers take
grey values 0–255 of shape (N, H, W, 1), float32.
"""

import keras
import numpy as np
from keras import layers

from covid_project.settings import STRATEGIES

SMALLEST_DEVIATION = 1.0  # grey level; a constant pixel or image would otherwise be divided by 0


@keras.saving.register_keras_serializable(package="covid_project")
class SampleNormalization(layers.Layer):
    """Subtract each image's mean, then divide by its standard deviation (at least one grey level).

    Shape (N, H, W, 1) in and out, float32.
    """

    def call(self, images):
        """Normalise a batch of images (N, H, W, 1)."""
        mean, variance = keras.ops.moments(images, axes=(1, 2, 3), keepdims=True)
        return (images - mean) / keras.ops.maximum(keras.ops.sqrt(variance), SMALLEST_DEVIATION)


def normalization_layer(strategy: str, training_images: np.ndarray) -> layers.Layer:
    """Layer that normalises images by one of the ``STRATEGIES``.

    Parameters
    ----------
    strategy
        "fixed", "dataset", "pixel" or "sample".
    training_images
        uint8 (N, H, W, 1), of the training split alone: "dataset" and "pixel" take their
        statistics from them.

    Raises
    ------
    ValueError
        Unknown strategy.
    """
    if strategy == "fixed":
        return layers.Rescaling(1 / 127.5, offset=-1.0, name="normalization")
    if strategy == "sample":
        return SampleNormalization(name="normalization")
    if strategy == "dataset":
        mean, deviation = training_images.mean(), training_images.std()
        axis = None
    elif strategy == "pixel":
        mean, deviation = pixel_statistics(training_images)
        axis = (1, 2, 3)
    else:
        raise ValueError(f"unknown normalisation {strategy!r}; allowed: {', '.join(STRATEGIES)}")
    variance = np.maximum(deviation, SMALLEST_DEVIATION) ** 2
    return layers.Normalization(axis=axis, mean=mean, variance=variance, name="normalization")


def pixel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each pixel over uint8 images (N, H, W, 1).

    Summed image by image in float64, so that memory stays flat. Returns two (H, W, 1) arrays in
    grey levels.
    """
    total = np.zeros(images.shape[1:])
    squares = np.zeros(images.shape[1:])
    for image in images:
        values = image.astype(np.float64)
        total += values
        squares += values**2
    mean = total / len(images)
    return mean, np.sqrt(np.maximum(squares / len(images) - mean**2, 0))
