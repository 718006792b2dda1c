"""Grad-CAM from scratch: where in an image a classifier finds evidence for a class.

The functions follow the steps of the task sheet (4.8.1). `grad_cam` does for many images what the
notebook does step by step for one. With z the logit, the score of COVID is z. A single logit has no
output for NORMAL: its score is −z, because p(NORMAL) = 1 − sigmoid(z) = sigmoid(−z).

References
----------
Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017, eq. 1 and 2.
"""

from dataclasses import dataclass

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from keras.layers import ELU, Activation, LeakyReLU, PReLU, ReLU, Softmax

OVERLAY_WEIGHT = 0.4  # of the coloured heatmap, from the task sheet
_ACTIVATIONS = (Activation, ReLU, LeakyReLU, PReLU, ELU, Softmax)


@dataclass(frozen=True, eq=False)
class Heatmaps:
    """Heatmaps of N images at one layer.

    Attributes
    ----------
    layer : str
        Name of the layer whose feature maps were weighted.
    maps : np.ndarray, float32 (N, h, w)
        In [0, 1]; every map that is not blank has 1 as its maximum.
    raw : np.ndarray, float32 (N, h, w)
        The signed maps; `maps` shows their positive part. Negative values are evidence against the
        class.
    scores : np.ndarray, float32 (N,)
        Score of the class explained: z for COVID, −z for NORMAL.
    target : np.ndarray, int64 (N,)
        The class explained, 0 or 1.
    status : np.ndarray, (N,) of str
        "ok", or why the map is blank: "zero features" (the layer's output is 0), "zero gradient"
        (the score does not depend on the layer) or "all negative" (no evidence for the class).
    """

    layer: str
    maps: np.ndarray
    raw: np.ndarray
    scores: np.ndarray
    target: np.ndarray
    status: np.ndarray


def remove_final_activation(model: keras.Model) -> keras.Model:
    """Make a flat one-output classifier end in its logit.

    The gradient of a saturated sigmoid is zero, that of the logit is not. The layers are shared,
    except a last layer with an activation of its own, which becomes a linear one with a copy of the
    weights.

    Parameters
    ----------
    model : keras.Model

    Returns
    -------
    keras.Model
        The given model where it ends in a logit.

    Raises
    ------
    ValueError
        The model has another output than (N, 1).

    Examples
    --------
    >>> inputs = keras.Input((4,))
    >>> dense = keras.layers.Dense(1, activation="sigmoid")
    >>> remove_final_activation(keras.Model(inputs, dense(inputs))).layers[-1].activation.__name__
    'linear'
    """
    if len(model.outputs) != 1 or tuple(model.outputs[0].shape[1:]) != (1,):
        shapes = [tuple(output.shape) for output in model.outputs]
        raise ValueError(f"{model.name} has outputs {shapes}; allowed: one of shape (N, 1)")
    last = model.layers[-1]
    if isinstance(last, _ACTIVATIONS):
        return keras.Model(model.input, last.input)
    if getattr(last, "activation", None) in (None, keras.activations.linear):
        return model
    linear = type(last).from_config({**last.get_config(), "activation": "linear"})
    logit = linear(last.input)
    linear.set_weights(last.get_weights())
    return keras.Model(model.input, logit)


def last_convolutional_layer(model: keras.Model) -> str:
    """Find the last layer with feature maps (N, h, w, K) after their activation.

    Parameters
    ----------
    model : keras.Model

    Returns
    -------
    str
        Name of the layer.

    Raises
    ------
    ValueError
        No such layer: for example, a model inside the model hides its layers.

    Examples
    --------
    >>> last_convolutional_layer(model)
    'stage3_2_relu'
    """
    plain = (None, keras.activations.linear)
    for layer in reversed(model.layers):
        shape = getattr(layer, "output", np.empty(0)).shape
        active = isinstance(layer, _ACTIVATIONS) or getattr(layer, "activation", None) not in plain
        if active and len(shape) == 4 and tuple(shape[1:3]) != (1, 1):
            return layer.name
    raise ValueError(
        f"{model.name} has no convolutional layer with an activation; its layers are: "
        f"{', '.join(layer.name for layer in model.layers)}"
    )


def grad_cam(
    model: keras.Model,
    images: np.ndarray,
    target: int | np.ndarray | None = None,
    layer: str | None = None,
    batch_size: int = 32,
) -> Heatmaps:
    """Compute the heatmaps of the evidence for a class.

    Parameters
    ----------
    model : keras.Model
        Flat, with one output (N, 1); a final activation is removed first.
    images : np.ndarray, (N, H, W, 1), grey values 0–255
        Normalisation is a layer of the model.
    target : int or np.ndarray (N,), optional
        The class to explain, 0 or 1; by default the predicted class of each image.
    layer : str, optional
        By default the `last_convolutional_layer`.
    batch_size : int
        Images computed at once.

    Returns
    -------
    Heatmaps

    Raises
    ------
    ValueError
        A class other than 0 and 1, a layer that a connection bypasses, values that are not finite.

    Examples
    --------
    >>> grad_cam(model, images[:2], target=1).maps.shape
    (2, 2, 2)
    """
    model = remove_final_activation(model)
    layer = layer or last_convolutional_layer(model)
    features = model.get_layer(layer).output
    lower, upper = keras.Model(model.input, features), keras.Model(features, model.output)
    if target is not None and not np.isin(target, (0, 1)).all():
        raise ValueError(f"target is {np.unique(target).tolist()}; allowed: 0, 1 or None")
    wanted = np.broadcast_to(-1 if target is None else target, len(images))  # −1: the predicted one

    @tf.function(reduce_retracing=True)
    def explain(batch, classes):
        feature_maps = lower(batch, training=False)  # (n, h, w, K)
        with tf.GradientTape() as tape:
            tape.watch(feature_maps)
            logit = upper(feature_maps, training=False)[:, 0]
            classes = tf.where(classes < 0, tf.cast(logit > 0, classes.dtype), classes)
            score = tf.where(classes == 1, logit, -logit)  # (n,)
        gradients = tape.gradient(score, feature_maps)
        importance = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)  # (n, 1, 1, K)
        raw = tf.reduce_mean(importance * feature_maps, axis=-1)  # (n, h, w)
        silent = tf.reduce_all(feature_maps == 0, axis=(1, 2, 3))
        flat = tf.reduce_all(gradients == 0, axis=(1, 2, 3))
        return raw, score, classes, silent, flat

    parts = [
        [part.numpy() for part in explain(
            tf.cast(images[first : first + batch_size], tf.float32),
            tf.constant(wanted[first : first + batch_size], tf.int64),
        )]
        for first in range(0, len(images), batch_size)
    ]  # fmt: skip
    raw, scores, classes, silent, flat = (np.concatenate(part) for part in zip(*parts, strict=True))
    if not np.isfinite(raw).all():
        raise ValueError(f"layer {layer} gives values that are not finite: check the weights")
    maps = normalize_heatmaps(raw)
    status = np.select(
        [maps.any(axis=(1, 2)), silent, flat],
        ["ok", "zero features", "zero gradient"],
        "all negative",
    )
    return Heatmaps(layer, maps, raw, scores, classes, status)


def normalize_heatmaps(raw: np.ndarray) -> np.ndarray:
    """Keep the positive part of signed maps and divide each map by its own maximum.

    The result shows where an image's evidence is, but not how strong it is.

    Parameters
    ----------
    raw : np.ndarray, (N, h, w)

    Returns
    -------
    np.ndarray, (N, h, w)
        In [0, 1]; a map without a positive value is zero.
    """
    positive = np.maximum(raw, 0)
    largest = positive.max(axis=(1, 2), keepdims=True, initial=0)
    return np.divide(positive, largest, out=np.zeros_like(positive), where=largest > 0)


def resize_heatmaps(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize maps with bilinear interpolation.

    Parameters
    ----------
    maps : np.ndarray, (N, h, w)
    size : tuple of int
        Height and width to make, in pixels.

    Returns
    -------
    np.ndarray, float32 (N, height, width)

    Examples
    --------
    >>> resize_heatmaps(np.ones((1, 3, 3)), (12, 12)).shape
    (1, 12, 12)
    """
    return tf.image.resize(maps[..., None], size).numpy()[..., 0]


def overlay(
    images: np.ndarray, maps: np.ndarray, alpha: float = OVERLAY_WEIGHT, colour_map="jet"
) -> np.ndarray:
    """Lay heatmaps over their images.

    The task sheet's rule: the coloured heatmap, 0–255, times ``alpha`` is added to the image. The
    sum is divided by (1 + ``alpha``), so that nothing is clipped and the same grey value with the
    same heat looks the same in every image.

    Parameters
    ----------
    images : np.ndarray, (N, H, W, 1) or (N, H, W, 3), 0–255
    maps : np.ndarray, (N, h, w), in [0, 1]
        Resized to the images.
    alpha : float
        Weight of the heatmap.
    colour_map : str or matplotlib.colors.Colormap

    Returns
    -------
    np.ndarray, uint8 (N, H, W, 3)

    Raises
    ------
    ValueError
        Images and maps do not fit, or image values are outside 0–255.

    Examples
    --------
    >>> overlay(np.full((1, 8, 8, 1), 140, np.uint8), np.zeros((1, 2, 2)))[0, 0, 0]
    array([100, 100, 136], dtype=uint8)
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) != len(maps):
        raise ValueError(
            f"images {images.shape} and maps {maps.shape} do not fit; allowed: (N, H, W, 1 or 3) "
            "and (N, h, w)"
        )
    if images.min(initial=0) < 0 or images.max(initial=0) > 255:
        raise ValueError(
            f"image values are in {images.min():g} to {images.max():g}; allowed: 0 to 255"
        )
    resized = resize_heatmaps(maps, images.shape[1:3])
    colours = matplotlib.colormaps.get_cmap(colour_map)(resized, bytes=True)[..., :3]
    blend = (images.astype(np.float32) + alpha * colours.astype(np.float32)) / (1 + alpha)
    return np.rint(blend).astype(np.uint8)
