"""Grad-CAM from scratch: where in an image a classifier finds evidence for a class.

The functions follow the steps of the task sheet (4.8.1): remove the final activation, find the
last convolutional features, take the gradient of the class score with respect to them, average it
into one weight per channel, average the features with these weights, normalise, map onto the
image and overlay. `grad_cam` does the middle steps for a whole batch of images.

A scalar output needs one care: with a single logit z, the score of class 1 is z and the score of
class 0 is -z, so the evidence for one class is exactly the evidence against the other.

The flow stands once, in `heatmap_function`. A method is one small function of the features and
their gradients which returns the weights; `METHODS` names them.

References
----------
Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017. Chattopadhay et al., "Grad-CAM++: Generalized Gradient-based Visual
Explanations for Deep Convolutional Networks", WACV 2018.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from matplotlib.colors import Colormap
from numpy.typing import ArrayLike

OVERLAY_WEIGHT = 0.4  # of the coloured heatmap, as the task sheet asks
PREDICTED = "predicted"
_ANY = -1  # stands for the predicted class among class indices

# Layers that are an activation; all others carry theirs, if any, in an attribute `activation`.
_ACTIVATION_LAYERS = (
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ReLU,
    keras.layers.Softmax,
)


@dataclass(frozen=True, eq=False)
class Heatmaps:
    """The heatmaps of N images at one layer, whose features are h by w.

    Attributes
    ----------
    layer : name of the layer whose features were weighted.
    maps : (N, h, w) float32 in [0, 1]; each map that is not blank has 1 as its maximum.
    raw : (N, h, w) float32, the signed map before the ReLU: positive where the image speaks for
        the class explained, negative where it speaks against it.
    scores : (N,) float32, the class score explained: a logit, or minus the one logit for class 0.
    target : (N,) int32, the class explained.
    status : (N,) str, "ok", or why the map is blank: "zero gradient" (the score does not react to
        the features at all) or "all negative" (it does, but no place speaks for the class). Scores
        are logits, so a map is never blank because a sigmoid saturates.
    """

    layer: str
    maps: np.ndarray
    raw: np.ndarray
    scores: np.ndarray
    target: np.ndarray
    status: np.ndarray


# Step: remove the final activation if present.


def remove_final_activation(model: keras.Model) -> keras.Model:
    """Return a model that ends in logits; the given one if it already does, and never altered.

    A sigmoid near 0 or 1 has no gradient left, and the softmax of one class also holds the
    evidence against the others; the logit is free of both. The returned model shares its layers
    with the given one, except a last layer with an activation of its own (`Dense(1, "sigmoid")`):
    that one becomes a linear layer with a copy of the weights.
    """
    last = _nodes(model)[-1]
    layer, features = last.operation, last.input_tensors[0]
    if not _has_activation(layer):
        return model
    if isinstance(layer, (keras.layers.Activation, *_ACTIVATION_LAYERS)):
        return keras.Model(model.inputs[0], features)
    linear = type(layer).from_config({**layer.get_config(), "activation": "linear"})
    logits = linear(features)
    linear.set_weights(layer.get_weights())
    return keras.Model(model.inputs[0], logits)


# Step: find the last convolutional layer's output.


def spatial_layers(model: keras.Model) -> list[str]:
    """Names of the layers with an output (N, height, width, channels), from input to output."""
    return list(_spatial_nodes(model))


def last_spatial_layer(model: keras.Model) -> str:
    """Name of the last layer whose output is a spatial feature map after its activation.

    That is an activation, a convolution with an activation of its own, a place where branches
    meet, or a nested model. Pooling, normalisation and dropout that follow are passed over: they
    blur or rescale the same features.

    Raises
    ------
    ValueError : when there is none; the message lists all spatial layers.
    """
    candidates = [
        name
        for name, node in _spatial_nodes(model).items()
        if _has_activation(node.operation)
        or isinstance(node.operation, keras.Model)
        or len(set(node.input_tensors)) > 1
    ]
    if not candidates:
        raise ValueError(
            f"Model '{model.name}' has no spatial feature map that follows an activation. "
            f"Choose one of its spatial layers by name: {spatial_layers(model)}."
        )
    return candidates[-1]


def _nodes(model: keras.Model) -> list:
    """Every call of an operation in the model's graph, from the input to the output."""
    # Not `layer.output`: that is the layer's first call ever, which may belong to another model
    # or, for a nested model, lie inside it. Keras offers no public list of a model's calls.
    by_depth = keras.Function(model.inputs, model.outputs)._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def _spatial_nodes(model: keras.Model) -> dict:
    """Layer name → its call, for outputs (N, height, width, channels) with height·width > 1."""
    return {
        node.operation.name: node
        for node in _nodes(model)
        if not node.is_input
        and len(node.outputs) == 1
        and len(node.outputs[0].shape) == 4
        and node.outputs[0].shape[1:3] != (1, 1)
    }


def _has_activation(layer: keras.Operation) -> bool:
    activation = getattr(layer, "activation", None)
    return isinstance(layer, _ACTIVATION_LAYERS) or activation not in (
        None,
        keras.activations.linear,
    )


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
    model : Sequential or functional classifier with one output of shape (N, 1) or (N, K).
    images : (N, H, W, C), uint8 or float, as the model expects them (here 0..255, since models
        normalise inside). N may be 0.
    target : the class to explain: one index, N indices, or "predicted" (the largest logit; for
        one logit, class 1 if it is positive). A model with one logit has the classes 0 and 1.
    layer : name of a spatial layer; by default `last_spatial_layer(model)`.
    method : "grad-cam" or "grad-cam++".
    batch_size : images computed at once; memory does not grow with N beyond the maps themselves.

    Raises
    ------
    ValueError : for an unknown layer, method or class, images of another shape, or values that
        are not finite.

    Notes
    -----
    Compiles the model for this one call, which takes a second or two for a large backbone. For
    many calls, or several layers in one pass, keep the function that `heatmap_function` returns.
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
    if len(model.inputs) != 1 or [len(output.shape) for output in model.outputs] != [2]:
        raise ValueError(
            f"Model '{model.name}' has inputs {[tuple(x.shape) for x in model.inputs]} and outputs "
            f"{[tuple(x.shape) for x in model.outputs]}; expected one input of images and one "
            "output (N, 1) or (N, K)."
        )
    model = remove_final_activation(model)
    image_shape, logit_count = model.inputs[0].shape[1:], model.outputs[0].shape[-1]
    explain_batch = _compiled(model, layers, METHODS[method])

    def heatmaps(images: ArrayLike, target: ArrayLike, batch_size: int = 32) -> dict[str, Heatmaps]:
        images = np.asarray(images)
        _check_image_shape(images, image_shape)
        count = len(images)
        target = _class_indices(target, count, max(logit_count, 2))
        if count == 0:  # TensorFlow's fused kernels refuse empty batches: one image stands in
            images, target = np.zeros((1, *images.shape[1:])), np.zeros(1, np.int32)
        batches = []
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            _check_finite(images[batch], start)
            batches.append(explain_batch(images[batch].astype(np.float32), target[batch]))
        scores, explained, maps = tf.nest.map_structure(
            lambda *parts: np.concatenate(parts)[:count], *batches
        )
        return {layer: _with_status(layer, *maps[layer], scores, explained) for layer in layers}

    return heatmaps


def _compiled(model: keras.Model, layers: Sequence[str], weigh: Callable) -> Callable:
    """Compile (images, target) → scores (N,), target (N,), {layer: (raw (N, h, w), blind (N,))}.

    `blind` tells where the gradient is zero throughout.
    """
    spatial = _spatial_nodes(model)
    if unknown := [layer for layer in layers if layer not in spatial]:
        raise ValueError(
            f"Model '{model.name}' has no spatial layer named {unknown}; it has {list(spatial)}."
        )
    features_and_logits = keras.Model(
        model.inputs, [*(spatial[layer].outputs[0] for layer in layers), *model.outputs]
    )

    # The batch size is left open, so that the last, smaller batch runs the same compiled graph.
    @tf.function(
        input_signature=[
            tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32),
            tf.TensorSpec((None,), tf.int32),
        ]
    )
    def explain_batch(images, target):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            # Watching images and weights records the features of every layer, wherever it lies.
            # Gradients below the features are never asked for, so the compiled graph drops them.
            tape.watch([images, *(weight.value for weight in model.weights)])
            *features, logits = features_and_logits(images, training=False)
            target = tf.where(target == _ANY, _predicted_class(logits), target)
            scores = _class_score(logits, target)  # (N,)
        gradients = tape.gradient(scores, features)
        maps = {}
        for layer, activation, gradient in zip(layers, features, gradients, strict=True):
            if gradient is None:
                raise ValueError(f"The score cannot be differentiated back to layer '{layer}'.")
            activation = tf.cast(activation, tf.float32)  # (N, h, w, K)
            gradient = tf.cast(gradient, tf.float32)  # (N, h, w, K)
            # A sum over the channels as in the paper's equation 2; the average that the sheet
            # asks for is this divided by their number, and normalisation removes that factor.
            raw = tf.reduce_sum(weigh(activation, gradient) * activation, axis=-1)  # (N, h, w)
            maps[layer] = raw, tf.reduce_all(gradient == 0, axis=(1, 2, 3))
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


# Each takes features and gradients (N, h, w, K) and returns weights (N, 1 or h, 1 or w, K).
METHODS: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "grad-cam": _gradient_mean,
    "grad-cam++": _positive_gradient_coefficients,
}


def _check_image_shape(images: np.ndarray, image_shape: tuple) -> None:
    if images.ndim != 1 + len(image_shape) or any(
        wanted not in (None, found)
        for wanted, found in zip(image_shape, images.shape[1:], strict=True)
    ):
        raise ValueError(
            f"Images have shape {images.shape}; this model takes (N, H, W, channels) with "
            f"(H, W, channels) = {image_shape}."
        )


def _check_finite(batch: np.ndarray, start: int) -> None:
    finite = np.isfinite(batch).all(axis=(1, 2, 3))
    if not finite.all():
        bad = (start + np.flatnonzero(~finite)).tolist()
        raise ValueError(f"Images {bad} hold NaN or infinite values; leave them out.")


def _class_indices(target: ArrayLike, count: int, classes: int) -> np.ndarray:
    """(count,) int32 class indices, all of them `_ANY` for the predicted class."""
    if isinstance(target, str) and target == PREDICTED:
        return np.full(count, _ANY, np.int32)
    indices = np.asarray(target)
    if indices.shape not in ((), (count,)):
        raise ValueError(f"Target has shape {indices.shape}; expected one class or ({count},).")
    allowed = np.isin(indices, np.arange(classes))
    if not allowed.all():
        raise ValueError(
            f"Target {np.unique(indices[~allowed]).tolist()} is not a class of this model; its "
            f"classes are 0 to {classes - 1}, or '{PREDICTED}'."
        )
    return np.broadcast_to(indices, (count,)).astype(np.int32)


def _predicted_class(logits: tf.Tensor) -> tf.Tensor:
    if logits.shape[-1] == 1:
        return tf.cast(logits[:, 0] > 0, tf.int32)
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


def _class_score(logits: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Score of the target class, (N,): its logit, or ±z where z is the only one."""
    logits = tf.cast(logits, tf.float32)
    if logits.shape[-1] == 1:
        return tf.where(target == 1, logits[:, 0], -logits[:, 0])
    return tf.gather(logits, target, batch_dims=1)


def _with_status(
    layer: str, raw: np.ndarray, blind: np.ndarray, scores: np.ndarray, target: np.ndarray
) -> Heatmaps:
    if not np.isfinite(raw).all():
        bad = np.flatnonzero(~np.isfinite(raw).all(axis=(1, 2))).tolist()
        raise ValueError(
            f"Layer '{layer}' gives NaN or infinite maps for images {bad}; check the model's "
            "weights and the range of the images."
        )
    status = np.where(
        raw.max(axis=(1, 2)) > 0, "ok", np.where(blind, "zero gradient", "all negative")
    )
    return Heatmaps(layer, normalize_heatmaps(raw), raw, scores, target, status)


# Step: normalise the heatmap between 0 and 1.


def normalize_heatmaps(raw: np.ndarray, shared: bool = False) -> np.ndarray:
    """Keep the positive part of signed maps (N, h, w) and scale it into [0, 1].

    Each map is divided by its own maximum, which shows where an image's evidence lies but not how
    strong it is. With `shared`, all are divided by the largest value among them, which makes them
    comparable. A map without a positive value stays zero.
    """
    positive = np.maximum(raw, 0)
    largest = positive.max(axis=None if shared else (1, 2), keepdims=True, initial=0)
    return np.divide(positive, largest, out=np.zeros_like(positive), where=largest > 0)


# Step: map the heatmap onto the original sample space.


def resize_heatmaps(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize maps (N, h, w) to (N, H, W) float32 for `size` (H, W), bilinearly."""
    return tf.image.resize(maps[..., None], size).numpy()[..., 0]


# Step: overlay the heatmap on the original image.


def overlay(
    images: np.ndarray,
    maps: np.ndarray,
    alpha: float = OVERLAY_WEIGHT,
    colour_map: str | Colormap = "jet",
) -> np.ndarray:
    """Images with their heatmaps laid over them, (N, H, W, 3) uint8.

    The sheet's rule: the coloured heatmap, in 0..255, is multiplied by `alpha` and added to the
    image. The sum reaches up to 255·(1 + alpha) and is divided by (1 + alpha), so that nothing is
    clipped, and equal grey values with equal heat look equal in every image.

    Parameters
    ----------
    images : (N, H, W, 1) or (N, H, W, 3) in 0..255.
    maps : (N, h, w) in [0, 1], resized to (H, W) where needed.
    colour_map : a Matplotlib colour map or its name.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) != len(maps):
        raise ValueError(
            f"Images {images.shape} and maps {maps.shape} do not fit: expected (N, H, W, 1 or 3) "
            "and (N, h, w)."
        )
    if images.min(initial=0) < 0 or images.max(initial=0) > 255:
        raise ValueError(
            f"Image values lie in {images.min():g}..{images.max():g}; expected 0..255."
        )
    resized = resize_heatmaps(maps, images.shape[1:3])
    colours = matplotlib.colormaps.get_cmap(colour_map)(resized, bytes=True)[..., :3]
    blend = (images.astype(np.float32) + alpha * colours.astype(np.float32)) / (1 + alpha)
    return np.rint(blend).astype(np.uint8)
