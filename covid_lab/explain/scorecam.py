"""Score-CAM: weigh each feature map by the score of the image that is seen through it.

No gradient is needed, so the flow is its own; the manner of calling is that of `gradcam`.

The published formula takes the network's probability, and for a single sigmoid output, whose
softmax over classes is always 1, libraries that take it give every channel the same weight. Here
the score is the logit, with the sign of the class explained.

Reference
---------
Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
CVPR Workshops 2020.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike
from scipy.special import softmax

from covid_lab.explain.class_score import (
    batch_signature,
    by_batches,
    checked_images,
    checked_target,
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
from covid_lab.explain.network import fold_normalization
from covid_lab.explain.outputs import remove_final_activation


def score_cam(
    model: keras.Model,
    images: ArrayLike,
    target: ArrayLike,
    layer: str | None = None,
    batch_size: int = 32,
) -> Heatmaps:
    """Score-CAM heatmaps of the evidence for a class; arguments and errors as for `grad_cam`.

    Takes one forward pass per channel of the layer and image. For several layers, or many calls,
    keep the function that `score_cam_function` returns.
    """
    layer = layer or last_spatial_layer(model)
    return score_cam_function(model, [layer])(images, target, batch_size)[layer]


def score_cam_function(
    model: keras.Model, layers: Sequence[str]
) -> Callable[..., dict[str, Heatmaps]]:
    """Compile `heatmaps(images, target, batch_size=32)`, which explains all `layers`.

    It returns one `Heatmaps` per layer, under the layer's name. `batch_size` masked images are
    computed at once, and memory does not grow with the number of images beyond the maps.

    Notes
    -----
    Wang et al. 2020, algorithm 1, for an image X, features A (h, w, K) and a class score f:

        H_k = s(up(A_k)),  s(M) = (M − min M) / (max M − min M),  up: bilinear, to the image's size
        S_k = f(X ∘ H_k) − f(X_b),  X_b: the black image
        α = softmax(S) over the channels
        raw = Σ_k α_k A_k

    A constant A_k gives a black mask. All weights are positive, so `raw` is negative only where
    features are. Where no mask changes the score (S = 0), the weights would all be equal and the
    map a mean of the features that says nothing about the class: it is blank, "no change".
    """
    model = remove_final_activation(model)
    network = fold_normalization(features_and_logits(model, layers))
    grids = token_grids(model, layers)
    score = score_function(model)

    @tf.function(input_signature=batch_signature(model))
    def look(images, target):
        *features, logits = network(images, training=False)
        features = [on_grid(*each) for each in zip(features, grids, strict=True)]
        return features, class_score(logits, target)

    def explain_batch(images, target, batch_size):
        features, (scores, target) = look(images, target)
        black, _ = score(np.zeros_like(images), target)
        maps = []
        for activation in features:
            channels = tf.transpose(activation, (0, 3, 1, 2))  # (N, K, h, w)
            increase = np.empty(channels.shape[:2], np.float32)
            for image, channel in image_variant_pairs(*increase.shape, batch_size):
                masks = _masks(tf.gather_nd(channels, np.stack([image, channel], axis=1)), images)
                seen = score(images[image] * masks, tf.gather(target, image))[0]
                increase[image, channel] = score_change(seen, tf.gather(black, image))
            unchanged = (increase == 0).all(axis=1)  # (N,)
            weights = softmax(increase, axis=1) * ~unchanged[:, None]
            reasons = {
                "zero features": tf.reduce_all(activation == 0, axis=(1, 2, 3)),
                "no change": unchanged,
            }
            maps.append((tf.einsum("nhwk,nk->nhw", activation, weights), reasons))
        return scores, target, maps

    def heatmaps(images: ArrayLike, target: ArrayLike, batch_size: int = 32) -> dict[str, Heatmaps]:
        images = checked_images(model, images)
        target = checked_target(model, target, len(images))
        scores, explained, maps = by_batches(
            lambda *batch: explain_batch(*batch, batch_size), images, target, batch_size
        )
        return {
            layer: Heatmaps.from_raw(layer, raw, scores, explained, reasons)
            for layer, (raw, reasons) in zip(layers, maps, strict=True)
        }

    return heatmaps


def _masks(features: tf.Tensor, images: np.ndarray) -> tf.Tensor:
    """Feature maps (P, h, w) as masks (P, H, W, 1) in [0, 1] of the images' size."""
    enlarged = tf.image.resize(features[..., None], images.shape[1:3])
    low = tf.reduce_min(enlarged, axis=(1, 2), keepdims=True)
    high = tf.reduce_max(enlarged, axis=(1, 2), keepdims=True)
    return tf.math.divide_no_nan(enlarged - low, high - low)
