"""Grad-CAM from scratch: where in an image a classifier finds evidence for a class.

The functions follow the steps of the task sheet (4.8.1): remove the final activation, find the
last convolutional features, take the gradient of the class score with respect to them, average it
into one weight per channel, average the features with these weights, normalise, map onto the
image and overlay. `grad_cam` does the middle steps for a whole batch of images.

The flow stands once, in `heatmap_function`. A method is one small function of the features and
their gradients which returns the weights; `METHODS` names them. With A the features of one image
(h, w, K), g the gradient of the class score with respect to them and w the weights, each map is
Σ_k w_k A_k.

References
----------
Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017. Chattopadhay et al., "Grad-CAM++: Generalized Gradient-based Visual
Explanations for Deep Convolutional Networks", WACV 2018. Draelos & Carin, "Use HiResCAM instead of
Grad-CAM for faithful explanations of convolutional neural networks", arXiv:2011.08891. Jiang et
al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE Transactions
on Image Processing 2021. Muhammad & Yeasin, "Eigen-CAM: Class Activation Map using Principal
Components", IJCNN 2020.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from numpy.typing import ArrayLike

from covid_lab.explain.class_score import (
    batch_signature,
    by_batches,
    checked_images,
    checked_target,
    class_score,
    keep_compiled,
)
from covid_lab.explain.features import (
    features_and_logits,
    last_spatial_layer,
    on_grid,
    spatial_layers,
    token_grids,
)
from covid_lab.explain.heatmaps import Heatmaps
from covid_lab.explain.network import fold_normalization
from covid_lab.explain.outputs import remove_final_activation

__all__ = [
    "METHODS", "grad_cam", "heatmap_function", "last_spatial_layer", "remove_final_activation",
    "spatial_layers",
]  # fmt: skip

# Steps: evaluate the image, compute the gradients of the class score with respect to the
# features, average them into channel weights, and average the features with these weights.


def grad_cam(
    model: keras.Model,
    images: ArrayLike,
    target: ArrayLike,
    layer: str | None = None,
    method: str = "grad-cam",
    batch_size: int = 32,
) -> Heatmaps:
    """Heatmaps of the evidence for a class in each image.

    Parameters
    ----------
    model : Sequential or functional classifier with one output of shape (N, 1) or (N, K). Models
        inside are opened; probabilities become logits or log-odds (`outputs.scored`).
    images : (N, H, W, C), uint8 or float, in 0..255, since models normalise inside. N may be 0.
    target : the class to explain: one index, N indices, or "predicted" (the largest logit; for
        one logit, class 1 if it is positive). A model with one logit has the classes 0 and 1.
    layer : name of a spatial layer, ``outer/inner`` for a layer of a model inside; by default
        `last_spatial_layer(model)`. The tokens of a transformer lie on the grid of its patches.
    method : one of `METHODS`: "grad-cam", "grad-cam++", "hirescam", "layercam", or "eigen-cam",
        which knows no class: its map is the same for every target.
    batch_size : images computed at once; memory does not grow with N beyond the maps themselves.

    Raises
    ------
    ValueError : for an unknown layer, method or class, or images of another shape or range
        or with values that are not finite.

    Notes
    -----
    Compiles the model at the first call, which takes a second or two for a large backbone, and
    keeps that for the next. For several layers in one pass take `heatmap_function`.
    """
    layer = layer or last_spatial_layer(model)
    return heatmap_function(model, [layer], method)(images, target, batch_size)[layer]


def heatmap_function(
    model: keras.Model, layers: Sequence[str], method: str = "grad-cam"
) -> Callable[..., dict[str, Heatmaps]]:
    """Compile `heatmaps(images, target, batch_size=32)`, which explains all `layers` in one pass.

    It returns one `Heatmaps` per layer, under the layer's name; see `grad_cam` for the arguments
    and errors. All layers share one forward and one backward pass, with dropout off and batch
    normalisation at its moving statistics. The model's weights are read at each call, save a last
    layer with a sigmoid or softmax of its own, whose weights are copied here.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown method '{method}'; the methods are {sorted(METHODS)}.")
    model = remove_final_activation(model)
    explain_batch = _compiled(model, tuple(layers), METHODS[method])

    def heatmaps(images: ArrayLike, target: ArrayLike, batch_size: int = 32) -> dict[str, Heatmaps]:
        images = checked_images(model, images)
        target = checked_target(model, target, len(images))
        scores, explained, maps = by_batches(explain_batch, images, target, batch_size)
        return {
            layer: Heatmaps.from_raw(layer, raw, scores, explained, reasons)
            for layer, (raw, reasons) in zip(layers, maps, strict=True)
        }

    return heatmaps


@keep_compiled
def _compiled(model: keras.Model, layers: tuple[str, ...], weigh: Callable) -> Callable:
    """Compile (images, target) → scores (N,), target (N,), one (raw (N, h, w), reasons) per layer.

    The reasons say for each image why its map may be blank; see `Heatmaps`.
    """
    network = fold_normalization(features_and_logits(model, layers))
    grids = token_grids(model, layers)

    @tf.function(input_signature=batch_signature(network))
    def explain_batch(images, target):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            # Watching images and weights records the features of every layer, wherever it lies.
            # Gradients below the features are never asked for, so the compiled graph drops them.
            tape.watch([images, *(weight.value for weight in network.weights)])
            *features, logits = network(images, training=False)
            scores, target = class_score(logits, target)  # (N,)
        gradients = tape.gradient(scores, features)
        maps = []
        for layer, activation, gradient, grid in zip(
            layers, features, gradients, grids, strict=True
        ):
            if gradient is None:
                raise ValueError(f"The score cannot be differentiated back to layer '{layer}'.")
            activation, gradient = (
                on_grid(activation, grid),
                on_grid(gradient, grid),
            )  # (N, h, w, K)
            # A sum over the channels as in the paper's equation 2; the average that the sheet
            # asks for is this divided by their number, and normalisation removes that factor.
            raw = tf.reduce_sum(weigh(activation, gradient) * activation, axis=-1)  # (N, h, w)
            reasons = {
                "zero features": tf.reduce_all(activation == 0, axis=(1, 2, 3)),
                "zero gradient": tf.reduce_all(gradient == 0, axis=(1, 2, 3)),
            }
            maps.append((raw, reasons))
        return scores, target, maps

    return explain_batch


def _gradient_mean(features: tf.Tensor, gradients: tf.Tensor) -> tf.Tensor:
    """Grad-CAM: the mean gradient of each channel; Selvaraju et al. 2017, equation 1."""
    return tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)


def _positive_gradient_coefficients(features: tf.Tensor, gradients: tf.Tensor) -> tf.Tensor:
    """Grad-CAM++: coefficients times positive gradients; Chattopadhay et al. 2018, equation 19.

    With Y = exp(z), every derivative of Y is exp(z) times a power of the gradient g of z, and
    the paper's coefficient reduces to 1 / (2 + g ΣA). The factor exp(z) that is left on the
    gradient scales the whole map, so it is dropped, and nothing can overflow.

    Only g > 0 counts. The formula supposes features that follow a ReLU; where others sum to less
    than zero, ΣA is taken as zero, which keeps the denominator at 2 or above.
    """
    positive = tf.nn.relu(gradients)
    total = tf.nn.relu(tf.reduce_sum(features, axis=(1, 2), keepdims=True))
    return tf.reduce_sum(positive / (2.0 + positive * total), axis=(1, 2), keepdims=True)


def _gradient(features: tf.Tensor, gradients: tf.Tensor) -> tf.Tensor:
    """HiResCAM: each place's own gradient, w_ij = g_ij; Draelos & Carin 2020.

    Where one dense layer follows the features, the sum of the map is the score less the bias.
    """
    return gradients


def _positive_gradient(features: tf.Tensor, gradients: tf.Tensor) -> tf.Tensor:
    """LayerCAM: each place's positive gradient, w_ij = ReLU(g_ij); Jiang et al. 2021."""
    return tf.nn.relu(gradients)


def _first_principal_direction(features: tf.Tensor, gradients: tf.Tensor) -> tf.Tensor:
    """Eigen-CAM: the first right singular vector v of A = U Σ Vᵀ; Muhammad & Yeasin 2020.

    A is the matrix (h·w, K) of the features, not centred, and the map is its projection A v. The
    sign of v is arbitrary: here it makes the sum of the projection positive, and with it the whole
    map where the features follow a ReLU.
    """
    channels = features.shape[-1]
    matrix = tf.reshape(features, (tf.shape(features)[0], -1, channels))  # (N, h·w, K)
    _, _, right = tf.linalg.svd(matrix)
    direction = right[..., :1]  # (N, K, 1)
    projected = tf.reduce_sum(matrix @ direction, axis=1, keepdims=True)  # (N, 1, 1)
    signed = tf.where(projected < 0, -direction, direction)
    return tf.reshape(signed, (-1, 1, 1, channels))


# Each takes features and gradients (N, h, w, K) and returns weights (N, 1 or h, 1 or w, K).
METHODS: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "grad-cam": _gradient_mean,
    "grad-cam++": _positive_gradient_coefficients,
    "hirescam": _gradient,
    "layercam": _positive_gradient,
    "eigen-cam": _first_principal_direction,
}
