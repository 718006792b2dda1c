"""Grad-CAM from scratch: where in an image a classifier finds evidence for a class.

The functions follow the steps of the task sheet (4.8.1): remove the final activation, find the
last convolutional features, take the gradient of the class score with respect to them, average it
into one weight per channel, average the features with these weights, normalise, map onto the
image and overlay. `grad_cam` does the middle steps for a whole batch of images.

All methods share the code of `heatmap_function`. A method is one small function that returns the
weights for given features and gradients; `METHODS` names these functions. With A the features of
one image (h, w, K), g the gradient of the class score with respect to them and w the weights, each
map is Σ_k w_k A_k.

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
    checked,
    class_score,
    keep_compiled,
)
from covid_lab.explain.features import (
    features_and_logits,
    last_spatial_layer,
    on_grid,
    token_grids,
)
from covid_lab.explain.heatmaps import Heatmaps
from covid_lab.explain.outputs import remove_final_activation


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
    model : keras.Model
        Sequential or functional classifier with one output of shape (N, 1) or (N, K). Nested models
        are flattened; probabilities become logits or log-odds (see `outputs.scored`).
    images : array_like, (N, H, W, C), uint8 or float, 0..255
        Images before normalisation, which is part of the model. N may be 0.
    target : int, array_like of int (N,), or "predicted"
        The class to explain: one index, one index per image, or the class with the largest logit
        ("predicted"; for one logit, class 1 if it is positive). A model with one logit has the
        classes 0 and 1.
    layer : str, optional
        Name of a spatial layer, ``outer/inner`` for a layer of a nested model. By default
        `last_spatial_layer(model)`. Tokens of a transformer are placed on the grid of its patches.
    method : str
        One of `METHODS`: "grad-cam", "grad-cam++", "hirescam", "layercam" or "eigen-cam". Eigen-CAM
        ignores the class: its map is the same for every target.
    batch_size : int
        Images per forward and backward pass. Apart from the maps, memory does not grow with N.

    Returns
    -------
    Heatmaps
        Maps (N, h, w) at the layer's resolution.

    Raises
    ------
    ValueError
        The layer, method or class is unknown, or the images have another shape or range or contain
        values that are not finite.

    See Also
    --------
    heatmap_function : Explain several layers in one pass.

    Notes
    -----
    The first call compiles the model, which takes a second or two for a large backbone. The
    compiled function is cached for the next call.

    Examples
    --------
    >>> import numpy as np
    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((8, 8, 1)),
    ...         keras.layers.Conv2D(2, 3, activation="relu", kernel_initializer="ones"),
    ...         keras.layers.GlobalAveragePooling2D(),
    ...         keras.layers.Dense(1, kernel_initializer="ones"),
    ...     ]
    ... )
    >>> images = np.zeros((2, 8, 8, 1), np.uint8)
    >>> images[0, 2:5, 2:5] = 100
    >>> heatmaps = grad_cam(model, images, target=1)
    >>> heatmaps.maps.shape
    (2, 6, 6)
    >>> np.unravel_index(heatmaps.maps[0].argmax(), (6, 6)) == (2, 2)
    True
    >>> [str(status) for status in heatmaps.status]
    ['ok', 'zero features']
    """
    layer = layer or last_spatial_layer(model)
    return heatmap_function(model, [layer], method)(images, target, batch_size)[layer]


def heatmap_function(
    model: keras.Model, layers: Sequence[str], method: str = "grad-cam"
) -> Callable[..., dict[str, Heatmaps]]:
    """Compile a function that explains several layers in one forward and backward pass.

    Parameters
    ----------
    model : keras.Model
        Classifier, as for `grad_cam`. Its weights are read at each call, except those of a last
        layer with its own sigmoid or softmax, which are copied here.
    layers : sequence of str
        Names of spatial layers.
    method : str
        One of `METHODS`.

    Returns
    -------
    callable
        ``heatmaps(images, target, batch_size=32)``, which returns a dict from each layer's name to
        its `Heatmaps`. Arguments and errors are those of `grad_cam`. Dropout is off, and batch
        normalisation uses its moving statistics.

    Raises
    ------
    ValueError
        The method or a layer is unknown.

    Examples
    --------
    >>> model = keras.saving.load_model("model.keras", compile=False)
    >>> heatmaps = heatmap_function(model, ["stage2_2_relu", "stage3_2_relu"])
    >>> found = heatmaps(tf.zeros((2, 32, 32, 1)), 1)
    >>> {layer: one.maps.shape for layer, one in found.items()}
    {'stage2_2_relu': (2, 4, 4), 'stage3_2_relu': (2, 2, 2)}
    """
    if method not in METHODS:
        raise ValueError(f"Unknown method '{method}'; the methods are {sorted(METHODS)}.")
    model = remove_final_activation(model)
    explain_batch = _compiled(model, tuple(layers), METHODS[method])

    def heatmaps(images: ArrayLike, target: ArrayLike, batch_size: int = 32) -> dict[str, Heatmaps]:
        images, target = checked(model, images, target)
        scores, explained, maps = by_batches(explain_batch, images, target, batch_size)
        return {
            layer: Heatmaps.from_raw(layer, raw, scores, explained, reasons)
            for layer, (raw, reasons) in zip(layers, maps, strict=True)
        }

    return heatmaps


@keep_compiled
def _compiled(model: keras.Model, layers: tuple[str, ...], weigh: Callable) -> Callable:
    """Compile (images, target) → scores (N,), target (N,), and per layer (raw (N, h, w), reasons).

    The reasons are those of `Heatmaps.from_raw`: why each image's map may be blank.
    """
    network = features_and_logits(model, layers)
    grids = token_grids(model, layers)

    @tf.function(input_signature=batch_signature(network))
    def explain_batch(images, target):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            # Watching images and weights records the features of every layer, wherever it is.
            # Gradients below the features are never requested, so the compiled graph drops them.
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
            activation, gradient = on_grid(activation, grid), on_grid(gradient, grid)
            # A sum over the channels as in the paper's equation 2. The average that the sheet
            # asks for is this sum divided by K, and normalisation removes that factor.
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
    the paper's coefficient reduces to 1 / (2 + g ΣA). The remaining factor exp(z) scales the whole
    map, so it is dropped, and nothing can overflow.

    Only g > 0 counts. The formula assumes features that follow a ReLU. Where the sum of other
    features is negative, ΣA is taken as zero, which keeps the denominator at 2 or above.
    """
    positive = tf.nn.relu(gradients)
    total = tf.nn.relu(tf.reduce_sum(features, axis=(1, 2), keepdims=True))
    return tf.reduce_sum(positive / (2.0 + positive * total), axis=(1, 2), keepdims=True)


def _gradient(features: tf.Tensor, gradients: tf.Tensor) -> tf.Tensor:
    """HiResCAM: the gradient of each place as its weight, w_ij = g_ij; Draelos & Carin 2020.

    Where one dense layer follows the features, the sum of the map is the score minus the bias.
    """
    return gradients


def _positive_gradient(features: tf.Tensor, gradients: tf.Tensor) -> tf.Tensor:
    """LayerCAM: the positive gradient of each place, w_ij = ReLU(g_ij); Jiang et al. 2021."""
    return tf.nn.relu(gradients)


def _first_principal_direction(features: tf.Tensor, gradients: tf.Tensor) -> tf.Tensor:
    """Eigen-CAM: the first right singular vector v of A = U Σ Vᵀ; Muhammad & Yeasin 2020.

    A is the matrix (h·w, K) of the features, not centred, and the map is its projection A v. The
    sign of v is arbitrary. Here it is chosen so that the projection has a positive sum. After a
    ReLU the whole map is then positive.
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
