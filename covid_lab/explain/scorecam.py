"""Score-CAM: weigh each feature map by the score of the image that is masked with it.

Score-CAM needs no gradient. The signature is that of `gradcam.grad_cam` without `method`.

The published formula uses the network's probability. For a single sigmoid output, the softmax over
the classes is always 1, and libraries that use it give every channel the same weight. Here the
score is the logit, with the sign of the class explained.

References
----------
Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
CVPR Workshops 2020.
"""

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike
from scipy.special import softmax

from covid_lab.explain.class_score import (
    batch_signature,
    by_batches,
    checked,
    class_score,
    image_variant_pairs,
    score_change,
    score_function,
)
from covid_lab.explain.features import (
    features_and_logits,
    last_spatial_layer,
    on_grid,
    token_grids,
)
from covid_lab.explain.heatmaps import Heatmaps
from covid_lab.explain.outputs import remove_final_activation


def score_cam(
    model: keras.Model,
    images: ArrayLike,
    target: ArrayLike,
    layer: str | None = None,
    batch_size: int = 32,
) -> Heatmaps:
    """Score-CAM heatmaps of the evidence for a class.

    Takes one forward pass per image and channel of the layer.

    Parameters
    ----------
    model, images, target : as for `grad_cam`
    layer : str, optional
        As for `grad_cam`; by default `last_spatial_layer(model)`.
    batch_size : int
        Masked images per forward pass. Apart from the maps, memory does not grow with N.

    Returns
    -------
    Heatmaps
        Maps (N, h, w) at the layer's resolution.

    Raises
    ------
    ValueError
        The input is invalid (see `grad_cam`).

    Notes
    -----
    Wang et al. 2020, algorithm 1, for an image X, features A (h, w, K) and a class score f:

        H_k = s(up(A_k)),  s(M) = (M − min M) / (max M − min M),  up: bilinear, to the image's size
        S_k = f(X ∘ H_k) − f(X_b),  X_b: the black image
        α = softmax(S) over the channels
        raw = Σ_k α_k A_k

    A constant A_k gives a black mask. All weights are positive, so `raw` is negative only where
    features are. Where no mask changes the score (S = 0), all weights would be equal, and the map
    would be a mean of the features without information about the class. Such a map is blank, "no
    change".
    """
    model = remove_final_activation(model)
    images, target = checked(model, images, target)
    layer = layer or last_spatial_layer(model)
    network = features_and_logits(model, [layer])
    (grid,) = token_grids(model, [layer])
    score = score_function(model)

    @tf.function(input_signature=batch_signature(model))
    def evaluate(images, target):
        features, logits = network(images, training=False)
        return on_grid(features, grid), *class_score(logits, target)

    def explain_batch(images, target):
        features, scores, target = evaluate(images, target)
        black, _ = score(np.zeros_like(images), target)
        channels = tf.transpose(features, (0, 3, 1, 2))  # (N, K, h, w)
        increase = np.empty(channels.shape[:2], np.float32)
        for image, channel in image_variant_pairs(*increase.shape, batch_size):
            masks = _masks(tf.gather_nd(channels, np.stack([image, channel], axis=1)), images)
            seen = score(images[image] * masks, tf.gather(target, image))[0]
            increase[image, channel] = score_change(seen, tf.gather(black, image))
        unchanged = (increase == 0).all(axis=1)  # (N,)
        weights = softmax(increase, axis=1) * ~unchanged[:, None]
        reasons = {
            "zero features": tf.reduce_all(features == 0, axis=(1, 2, 3)),
            "no change": unchanged,
        }
        return tf.einsum("nhwk,nk->nhw", features, weights), scores, target, reasons

    return Heatmaps.from_raw(layer, *by_batches(explain_batch, images, target, batch_size))


def _masks(features: tf.Tensor, images: np.ndarray) -> tf.Tensor:
    """Turn feature maps (P, h, w) into masks (P, H, W, 1) in [0, 1] of the images' size."""
    enlarged = tf.image.resize(features[..., None], images.shape[1:3])
    low = tf.reduce_min(enlarged, axis=(1, 2), keepdims=True)
    high = tf.reduce_max(enlarged, axis=(1, 2), keepdims=True)
    return tf.math.divide_no_nan(enlarged - low, high - low)
