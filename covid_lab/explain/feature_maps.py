"""The feature maps of a layer, the strongest first."""

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from covid_lab.explain.class_score import by_batches, checked_images
from covid_lab.explain.features import features_and_logits, on_grid, token_grids


def feature_maps(
    model: keras.Model, images: ArrayLike, layer: str, count: int = 16, batch_size: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Feature maps of one layer with the largest mean magnitude in each image.

    Parameters
    ----------
    model, images : as for `grad_cam`
    layer : str
        Name of a spatial layer; see `spatial_layers`.
    count : int, 1 or more
        Maps per image; all maps of a layer that has fewer.
    batch_size : int
        Images per forward pass.

    Returns
    -------
    maps : np.ndarray, (N, count, h, w), float32
        Outputs of the layer, the strongest first.
    channels : np.ndarray, (N, count), int64
        The layer's channels that they come from.

    Raises
    ------
    ValueError
        The images are invalid, the layer is unknown (the message lists the candidates), or `count`
        is below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; expected 1 or more.")
    images = checked_images(model, images)
    network = features_and_logits(model, [layer])
    (grid,) = token_grids(model, [layer])

    @tf.function(input_signature=[tf.TensorSpec((None, *images.shape[1:]), tf.float32)])
    def strongest(images):
        features = on_grid(network(images, training=False)[0], grid)
        features = tf.transpose(features, (0, 3, 1, 2))  # (N, K, h, w)
        magnitude = tf.reduce_mean(tf.abs(features), axis=(2, 3))
        _, channels = tf.math.top_k(magnitude, min(count, features.shape[1]))
        return tf.gather(features, channels, batch_dims=1), tf.cast(channels, tf.int64)

    unused = np.zeros(len(images), np.int32)
    return by_batches(lambda batch, _: strongest(batch), images, unused, batch_size)
