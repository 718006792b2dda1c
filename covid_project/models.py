"""Builders of the networks: flat (no model inside a model), not compiled, ending in one logit.

Input: grey values 0–255, float32 (N, H, W, 1); normalisation is the first layer. Output: (N, 1),
the logit of the positive class; the sigmoid is applied where a probability is wanted.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import layers

from covid_project.augmentation import augment
from covid_project.files import cached_array, fingerprint
from covid_project.settings import PROJECT

BATCH = 64  # images per call where nothing is learned


# ---- the baseline -------------------------------------------------------------------------------


def baseline_cnn(
    image_size: int,
    normalization: layers.Layer,
    *,
    filters: int,
    dropout: float,
    dense_units: int = 64,
) -> keras.Model:
    """Build the baseline: a convolutional part, then a fully connected part with Dropout.

    A strided convolution and pooling reduce the image to a quarter of its side before the 3×3
    convolutions: at full resolution these would cost most of the time.

    Parameters
    ----------
    image_size : int
        Pixels along each side.
    normalization : keras.layers.Layer
        From `normalization.normalization_layer`; it becomes part of the model.
    filters : int
        Feature maps of the first convolution; the three stages have 2, 4 and 8 times as many.
    dropout : float, in [0, 1)
        Fraction of the fully connected layer's units that are left out in training.
    dense_units : int
        Units of the fully connected layer.

    Returns
    -------
    keras.Model

    Examples
    --------
    >>> baseline_cnn(32, layers.Rescaling(1 / 255), filters=4, dropout=0.4).count_params()
    20885
    """
    images = keras.Input((image_size, image_size, 1), name="images")
    x = convolution(normalization(images), filters, kernel=5, strides=2, name="stem")
    for stage, width in enumerate((2 * filters, 4 * filters, 8 * filters), start=1):
        x = layers.MaxPooling2D(name=f"stage{stage}_pool")(x)
        x = convolution(x, width, name=f"stage{stage}_1")
        x = convolution(x, width, name=f"stage{stage}_2")
    x = layers.GlobalAveragePooling2D(name="features")(x)
    logit = classification_head(x, dropout=dropout, dense_units=dense_units)
    return keras.Model(images, logit, name="baseline")


def convolution(x, filters, *, name, kernel=3, strides=1, activation=True, momentum=0.8):
    """Apply a convolution, batch normalisation and ReLU.

    The convolution has no bias: the offset of the batch normalisation takes its place.

    Parameters
    ----------
    x : keras.KerasTensor, (N, H, W, C)
    filters : int
    name : str
        Beginning of the layers' names.
    kernel, strides : int
    activation : bool
        Whether ReLU is applied.
    momentum : float, in [0, 1)
        Of the moving statistics. Small, so that they follow the weights within a few steps: where
        they lag behind, the validation loss jumps between epochs.

    Returns
    -------
    keras.KerasTensor, (N, H / strides, W / strides, filters)
    """
    options = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
    x = layers.Conv2D(filters, kernel, strides, name=f"{name}_convolution", **options)(x)
    x = layers.BatchNormalization(momentum=momentum, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if activation else x


def classification_head(features, *, dropout: float, dense_units: int = 64):
    """Apply the fully connected part.

    Parameters
    ----------
    features : keras.KerasTensor, (N, D)
    dropout : float, in [0, 1)
    dense_units : int

    Returns
    -------
    keras.KerasTensor, (N, 1)
        The logit.
    """
    x = layers.Dense(dense_units, activation="relu", name="dense")(features)
    x = layers.Dropout(dropout, name="dropout")(x)
    return layers.Dense(1, dtype="float32", name="logit")(x)


# ---- transfer learning --------------------------------------------------------------------------


@dataclass(frozen=True)
class Backbone:
    """A pretrained network, and the scale of the input that its weights were trained on."""

    build: Callable[..., keras.Model]  # of ``keras.applications``
    frozen_up_to: str  # end of a block; the layers after it are fine-tuned by default
    scale: float = 1 / 127.5  # grey values 0–255 become −1 to 1: scale * value + offset
    offset: float | tuple[float, float, float] = -1.0  # three for three channels
    has_width: bool = False  # it takes ``alpha``, a multiplier of the number of filters


IMAGENET_MEANS = (-103.939, -116.779, -123.68)  # blue, green, red, in grey levels
# A further backbone is one more entry here.
BACKBONES: dict[str, Backbone] = {
    "ResNet50V2": Backbone(keras.applications.ResNet50V2, "conv5_block1_out"),
    "MobileNetV2": Backbone(keras.applications.MobileNetV2, "block_12_add", has_width=True),
    "MobileNet": Backbone(keras.applications.MobileNet, "conv_pw_11_relu", has_width=True),
    "ResNet50": Backbone(keras.applications.ResNet50, "conv5_block1_out", 1.0, IMAGENET_MEANS),
    "VGG19": Backbone(keras.applications.VGG19, "block4_pool", 1.0, IMAGENET_MEANS),
    "EfficientNetB0": Backbone(keras.applications.EfficientNetB0, "block6d_add", 1.0, 0.0),
}


class WeightsUnavailable(RuntimeError):
    """The pretrained weights are neither in the Keras cache nor downloadable."""


def build_backbone(
    name: str, image_size: int, *, width: float = 1.0, weights: str = "imagenet"
) -> keras.Model:
    """Build a backbone without its top: images (N, image_size, image_size, 1) to features (N, D).

    Parameters
    ----------
    name : str
        One of `BACKBONES`.
    image_size : int
        Pixels along each side.
    width : float
        Multiplier of the number of filters (``alpha``), for the MobileNets.
    weights : str
        "imagenet" (the Keras cache, else a download), "random", or the path of a weights file,
        as it is or from the folder of the notebooks.

    Returns
    -------
    keras.Model

    Raises
    ------
    WeightsUnavailable
        The message says what to do.
    ValueError
        A width other than 1 for a network that has none.

    Examples
    --------
    >>> build_backbone("MobileNet", 32, width=0.25, weights="random").output_shape
    (None, 256)
    """
    backbone = BACKBONES[name]
    if width != 1 and not backbone.has_width:
        raise ValueError(f"{name} has no width multiplier: width is {width}, allowed: 1")
    if weights not in ("imagenet", "random") and not Path(weights).is_file():
        weights = str(PROJECT / weights)
    images = keras.Input((image_size, image_size, 1), name="images")
    colours = layers.Concatenate(name="rgb")([images] * 3)  # the grey image in all three channels
    scaling = layers.Rescaling(backbone.scale, offset=backbone.offset, name="scaling")
    try:
        with warnings.catch_warnings():
            # Without the top there are only convolutions, whose weights fit images of any size.
            warnings.filterwarnings("ignore", message=".*`input_shape` is undefined")
            network = backbone.build(
                include_top=False,
                weights=None if weights == "random" else weights,
                input_tensor=scaling(colours),
                **({"alpha": width} if backbone.has_width else {}),
            )
    except Exception as error:  # Keras raises a bare Exception when a download fails
        if weights == "random":
            raise
        raise WeightsUnavailable(
            f"The weights {weights!r} of {name} (width {width:g}) are not available: {error}\n"
            "Either connect to the network once, or put the file into the folder models of your "
            "Keras cache (~/.keras/models) under the name that Keras gives it. Or choose others "
            "with the setting transfer.weights: the path of a file, or 'random' to try the "
            "notebooks without pretraining."
        ) from error
    features = layers.GlobalAveragePooling2D(name="features")(network.output)
    return keras.Model(images, features, name=name)


def settle_batch_norm(model: keras.Model, images: np.ndarray) -> None:
    """Set the statistics of every BatchNormalization layer to those of some images.

    Random weights need this: without it, the features would fade to a constant.

    Parameters
    ----------
    model : keras.Model
        Changed in place.
    images : np.ndarray, (N, H, W, 1), grey values 0–255

    Examples
    --------
    >>> settle_batch_norm(model, images)
    """
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    before = [(layer.trainable, layer.momentum) for layer in norms]
    for layer in norms:
        layer.trainable, layer.momentum = True, 0.0
    model(tf.cast(images, tf.float32), training=True)
    for layer, (trainable, momentum) in zip(norms, before, strict=True):
        layer.trainable, layer.momentum = trainable, momentum


def transfer_model(backbone: keras.Model, *, dropout: float) -> keras.Model:
    """Build one flat model of the backbone's layers, which are shared, and new ones on top.

    Parameters
    ----------
    backbone : keras.Model
        From `build_backbone`.
    dropout : float, in [0, 1)

    Returns
    -------
    keras.Model

    Examples
    --------
    >>> transfer_model(split_at(model, "features")[0], dropout=0.4).output_shape
    (None, 1)
    """
    logit = classification_head(backbone.output, dropout=dropout)
    return keras.Model(backbone.input, logit, name=f"transfer_{backbone.name}")


def transfer_head(features: int, *, dropout: float) -> keras.Model:
    """Build the new layers of `transfer_model` on their own, for cached features.

    Parameters
    ----------
    features : int
        Features of an image.
    dropout : float, in [0, 1)

    Returns
    -------
    keras.Model
        From (N, features) to (N, 1).

    Examples
    --------
    >>> transfer_head(256, dropout=0.4).count_params()
    16513
    """
    pooled = keras.Input((features,), name="pooled_features")
    return keras.Model(pooled, classification_head(pooled, dropout=dropout), name="transfer_head")


def split_at(model: keras.Model, layer: str) -> tuple[keras.Model, keras.Model]:
    """Split a flat model after a layer into two models that share its layers.

    Parameters
    ----------
    model : keras.Model
    layer : str

    Returns
    -------
    lower, upper : keras.Model
        From the input to the layer's output, and from there to the output.

    Raises
    ------
    ValueError
        No such layer, or what follows it needs more than its output (a skip connection).

    Examples
    --------
    >>> lower, upper = split_at(model, "features")
    >>> lower.output_shape, upper.input_shape
    ((None, 32), (None, 32))
    """
    cut = model.get_layer(layer).output
    try:
        upper = keras.Model(cut, model.output)
        # Old releases of Keras notice only here, and only for another shape than the cut's.
        upper.compute_output_spec(keras.KerasTensor((1, *cut.shape[1:])))
        return keras.Model(model.input, cut), upper
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{model.name} cannot be cut at {layer!r}: a connection bypasses it. "
            "Choose a layer at the end of a block."
        ) from error


def unfreeze_above(model: keras.Model, layer: str) -> int:
    """Make the layers above a layer trainable, and the others not.

    BatchNormalization layers stay frozen: a few small batches would replace their ImageNet
    statistics, and ``training=False`` is not enough to prevent it.

    Parameters
    ----------
    model : keras.Model
        Changed in place.
    layer : str

    Returns
    -------
    int
        Number of trainable weights.

    Examples
    --------
    >>> unfreeze_above(model, "features")
    2177
    """
    above = split_at(model, layer)[1].layers
    model.trainable = True
    for item in model.layers:
        item.trainable = item in above and not isinstance(item, layers.BatchNormalization)
    return sum(weight.shape.num_elements() for weight in model.trainable_weights)


# ---- outputs, features, descriptions ------------------------------------------------------------


def outputs(model: keras.Model, inputs: np.ndarray, *, amounts=None, seed: int = 0, title=None):
    """Compute a model's outputs in inference mode, batch by batch.

    Parameters
    ----------
    model : keras.Model
        One input, one output.
    inputs : np.ndarray, (N, ...)
        Images or features of any number type.
    amounts : Augmentation, optional
        Augment the images first, within these ranges.
    seed : int
        Seed of the augmentation.
    title : str, optional
        Show the progress under this title.

    Returns
    -------
    np.ndarray, float32 (N, ...)

    Examples
    --------
    >>> outputs(split_at(model, "features")[0], images).shape
    (24, 32)
    """
    parts, start, shown = [], time.perf_counter(), time.perf_counter()
    for first in range(0, len(inputs), BATCH):
        batch = tf.cast(inputs[first : first + BATCH], tf.float32)
        if amounts is not None:
            batch = augment(batch, amounts, tf.constant([seed, first], tf.int64))
        parts.append(model.predict_on_batch(batch))  # `predict` costs twice as much
        if title and time.perf_counter() - shown > 10:
            shown, done = time.perf_counter(), first + len(batch)
            left = (shown - start) / done * (len(inputs) - done)
            print(f"{title}: {done} of {len(inputs)}, {left:.0f} s left", flush=True)
    return np.concatenate(parts)


def logits(model: keras.Model, inputs: np.ndarray) -> np.ndarray:
    """Compute the scores of a model that ends in one logit.

    Parameters
    ----------
    model : keras.Model
    inputs : np.ndarray, (N, ...)
        Images or features.

    Returns
    -------
    np.ndarray, float32 (N,)

    Examples
    --------
    >>> logits(model, images[:5]).shape
    (5,)
    """
    return outputs(model, inputs)[:, 0]


def feature_copies(folder, lower, images, *, copies, amounts, seed) -> list[np.ndarray]:
    """Compute the features of images and of fixed augmented copies of them, each only once.

    Parameters
    ----------
    folder : Path
        Where the arrays are stored, one file per copy, so that an interrupted run continues with
        the next. Its name must distinguish the data, the size and the weights of ``lower``.
    lower : keras.Model
        The frozen layers.
    images : np.ndarray, uint8 (N, H, W, 1), grey values 0–255
    copies : int
        Augmented copies in addition to the images themselves.
    amounts : Augmentation
        Range of each transformation.
    seed : int
        Seed of the augmentation.

    Returns
    -------
    list of np.ndarray
        1 + ``copies`` arrays (N, ...), float16, mapped from disk.

    Examples
    --------
    >>> lower, amounts = split_at(model, "features")[0], settings.augmentation
    >>> len(feature_copies(run.cache, lower, images, copies=2, amounts=amounts, seed=0))
    3
    """

    def compute(number: int) -> np.ndarray:
        title = f"features, copy {number} of {copies}"
        change = amounts if number else None
        found = outputs(lower, images, amounts=change, seed=seed + number, title=title)
        return found.astype(np.float16)  # far finer than the noise of training, half the reading

    numbers = range(copies + 1)
    return [cached_array(folder / f"copy{n}.npy", partial(compute, n)) for n in numbers]


def layer_table(model: keras.Model) -> pd.DataFrame:
    """Describe a model, one row per layer from input to output.

    Parameters
    ----------
    model : keras.Model

    Returns
    -------
    pd.DataFrame
        Columns layer, kind, output (shape for one image), kernel (side, of convolutions) and
        parameters.

    Examples
    --------
    >>> layer_table(model)["layer"].iloc[-1]
    'logit'
    """
    rows = []
    for layer in model.layers:
        shape = " × ".join(map(str, layer.output.shape[1:]))
        kernel = layer.kernel_size[0] if isinstance(layer, layers.Conv2D) else None
        rows.append((layer.name, type(layer).__name__, shape, kernel, layer.count_params()))
    table = pd.DataFrame(rows, columns=["layer", "kind", "output", "kernel", "parameters"])
    return table.astype({"kernel": "Int64"})


def model_fingerprint(model: keras.Model) -> str:
    """Compute a hash of a model's architecture and weights.

    Parameters
    ----------
    model : keras.Model

    Returns
    -------
    str
        16 hexadecimal digits.

    Examples
    --------
    >>> model_fingerprint(model) == model_fingerprint(keras.models.clone_model(model))
    False
    """
    return fingerprint(model.get_config(), *model.get_weights())
