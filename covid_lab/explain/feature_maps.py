"""What a layer makes of an image: its feature maps, the strongest first."""

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
    model, images : as for `explain.gradcam.grad_cam`.
    layer : name of a spatial layer; see `spatial_layers`.
    count : how many maps of each image; all of the layer where it has fewer.
    batch_size : images computed at once.

    Returns
    -------
    maps : (N, count, h, w) float32, as the layer gives them, the strongest first.
    channels : (N, count) int64, which of the layer's channels they are.

    Raises
    ------
    ValueError : for bad images or an unknown layer, whose message lists the candidates; for a count
        below 1.
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
