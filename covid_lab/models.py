"""Networks of the studies, built like those of `covid_project.models`.

They end in one logit, except `resnet18`, which has one logit per class and also takes colours.
"""

from collections.abc import Sequence
from functools import partial

import keras
import numpy as np
from keras import layers

from covid_project.models import (
    WeightsUnavailable,
    build_backbone,
    convolution,
    settle_batch_norm,
)


def slice_cnn(
    image_size: int,
    normalization: layers.Layer,
    *,
    filters: Sequence[int],
    kernel: int = 3,
    dense: int,
    dropout: float,
) -> keras.Model:
    """Build a plain network of one or a few convolutions, for grey images.

    Each convolution keeps the image's size and is followed by ReLU and 2×2 pooling. Dropout follows
    the first pooling. One fully connected layer takes all remaining values.

    Parameters
    ----------
    image_size : int
        Pixels along each side.
    normalization : keras.layers.Layer
        From ``normalization.normalization_layer``; becomes part of the model.
    filters : sequence of int
        Feature maps of each convolution in turn.
    kernel : int, from 1
        Side of the convolutions' kernels, in pixels.
    dense : int, from 1
        Units of the fully connected layer.
    dropout : float, 0–1
        Fraction of the first pooling's values that are left out in training.

    Returns
    -------
    keras.Model
        Images (N, image_size, image_size, 1) → logits (N, 1).

    Examples
    --------
    >>> options = {"filters": (4, 8), "kernel": 3, "dense": 8, "dropout": 0.5}
    >>> slice_cnn(32, keras.layers.Rescaling(1 / 255), **options).output_shape
    (None, 1)
    """
    images = keras.Input((image_size, image_size, 1), name="images")
    x = normalization(images)
    for number, width in enumerate(filters, start=1):
        x = layers.Conv2D(
            width, kernel, padding="same", activation="relu", name=f"convolution{number}"
        )(x)
        x = layers.MaxPooling2D(name=f"pool{number}")(x)
        if number == 1:
            x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Dense(dense, activation="relu", name="dense")(layers.Flatten(name="features")(x))
    return keras.Model(images, layers.Dense(1, dtype="float32", name="logit")(x), name="slice_cnn")


# Ends of the eight residual blocks of `resnet18`, after their activation, from input to output.
RESNET18_BLOCKS = tuple(f"block{stage}_{number}" for stage in (1, 2, 3, 4) for number in (1, 2))
# Largest image side → kernel and stride of the stem, and whether pooling follows, which would leave
# nothing of a small image for the first block.
_STEMS = {32: (3, 1, False), 64: (3, 2, False), 512: (7, 2, True)}

# Of the running statistics per step, as in the published network. An epoch of a small set has few
# steps: slower statistics would be those of outdated weights.
_RESNET18_MOMENTUM = 0.9


def resnet18(
    image_size: int, normalization: layers.Layer, *, classes: int, channels: int = 1
) -> keras.Model:
    """Build ResNet18 with one logit per class, for grey or colour images.

    He et al. 2016, "Deep Residual Learning for Image Recognition", CVPR, table 1, 18 layers. Its
    stem suits images of 224 pixels and is used from 65 pixels on. Up to 64 pixels the stem is a 3×3
    convolution with stride 2, up to 32 pixels with stride 1, both without pooling, as is usual for
    small images.

    Parameters
    ----------
    image_size : int, 16–512
        Pixels along each side.
    normalization : keras.layers.Layer
        From ``normalization.normalization_layer``; becomes part of the model.
    classes : int, from 2
        Number of logits, for softmax.
    channels : {1, 3}
        Grey or colour.

    Returns
    -------
    keras.Model
        Images (N, image_size, image_size, channels) → logits (N, classes). The outputs of the
        residual blocks are layers named as in `RESNET18_BLOCKS`.

    Raises
    ------
    ValueError
        A number out of range.

    Examples
    --------
    >>> resnet18(32, keras.layers.Rescaling(1 / 255), classes=2, channels=1).output_shape
    (None, 2)
    """
    if classes < 2 or channels not in (1, 3):
        raise ValueError(
            f"classes is {classes}, channels {channels}; allowed: 2 classes or more, "
            "1 or 3 channels"
        )
    if not 16 <= image_size <= max(_STEMS):
        raise ValueError(f"image_size is {image_size}; allowed: 16 to {max(_STEMS)} pixels")
    kernel, strides, pooled = next(stem for side, stem in _STEMS.items() if image_size <= side)
    images = keras.Input((image_size, image_size, channels), name="images")
    x = convolution(
        normalization(images),
        64,
        kernel=kernel,
        strides=strides,
        momentum=_RESNET18_MOMENTUM,
        name="stem",
    )
    if pooled:
        x = layers.MaxPooling2D(3, strides=2, padding="same", name="stem_pool")(x)
    for name in RESNET18_BLOCKS:
        stage, number = int(name[5]), int(name[7])
        halved = stage > 1 and number == 1
        x = _residual_block(x, 32 * 2**stage, strides=2 if halved else 1, name=name)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(
        images, layers.Dense(classes, dtype="float32", name="logits")(x), name="resnet18"
    )


def _residual_block(x, filters: int, *, strides: int, name: str):
    """Add two 3×3 convolutions to their input, which a 1×1 convolution fits to them."""
    build = partial(convolution, filters=filters, momentum=_RESNET18_MOMENTUM)
    change = build(x, strides=strides, name=f"{name}_1")
    change = build(change, activation=False, name=f"{name}_2")
    if strides > 1:
        x = build(x, kernel=1, strides=strides, activation=False, name=f"{name}_shortcut")
    return layers.ReLU(name=name)(layers.Add(name=f"{name}_add")([x, change]))


def mlp(
    image_size: int, normalization: layers.Layer, *, units: Sequence[int], dropout: float
) -> keras.Model:
    """Build a multilayer perceptron: every pixel is an input, without any notion of neighbourhood.

    Parameters
    ----------
    image_size : int
        Pixels along each side.
    normalization : keras.layers.Layer
        From ``normalization.normalization_layer``; becomes part of the model.
    units : sequence of int, from 1
        Units of each hidden layer, from the pixels on.
    dropout : float, 0–1
        Fraction of the units that are left out in training, in every hidden layer.

    Returns
    -------
    keras.Model
        Images (N, image_size, image_size, 1) → logits (N, 1).

    Examples
    --------
    >>> mlp(32, keras.layers.Rescaling(1 / 255), units=[8, 4], dropout=0.5).output_shape
    (None, 1)
    """
    images = keras.Input((image_size, image_size, 1), name="images")
    x = layers.Flatten(name="pixels")(normalization(images))
    for number, width in enumerate(units, 1):
        name = f"hidden_{number}"
        x = layers.Dense(width, use_bias=False, kernel_initializer="he_normal", name=name)(x)
        x = layers.BatchNormalization(momentum=0.95, name=f"{name}_norm")(x)
        x = layers.ReLU(name=f"{name}_relu")(x)
        x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
    logit = layers.Dense(1, name="logit")(x)
    return keras.Model(images, logit, name="mlp")


def shift_threshold(model: keras.Model, threshold: float) -> None:
    """Shift the logit of a model so that a given score becomes 0, the threshold of all models.

    Parameters
    ----------
    model : keras.Model
        Has a layer "logit" with a bias; changed in place.
    threshold : float
        The score.
    """
    bias = model.get_layer("logit").bias
    bias.assign(bias - threshold)


def available_backbone(
    name: str,
    images: np.ndarray,
    *,
    width: float = 1.0,
    weights: str = "imagenet",
    without_weights: str = "stop",
) -> tuple[keras.Model, str]:
    """Build a frozen backbone, with random weights where the wanted ones are unavailable.

    A random network takes its BatchNorm statistics from the images; otherwise its features would
    fade to a constant.

    Parameters
    ----------
    name : str
        A key of `covid_project.models.BACKBONES`.
    images : np.ndarray, (N, H, H, 1)
        Grey values 0–255; give the size, and BatchNorm's statistics.
    width : float, above 0
        Multiplies the number of channels, for backbones that allow it.
    weights : str
        "imagenet", "random", or a file of the project.
    without_weights : {"stop", "random"}
        Whether to stop or to continue with random weights, and say so.

    Returns
    -------
    model : keras.Model
    weights : str
        The weights that the model really has.

    Raises
    ------
    WeightsUnavailable
        The weights are unavailable, and ``without_weights`` is "stop".
    """
    size = images.shape[1]
    try:
        model = build_backbone(name, size, width=width, weights=weights)
    except WeightsUnavailable:
        if without_weights == "stop":
            raise
        print(f"WARNING: no {weights} weights for {name}: continuing with RANDOM weights.")
        weights = "random"
        model = build_backbone(name, size, width=width, weights=weights)
    if weights == "random":
        settle_batch_norm(model, images)
    model.trainable = False
    return model, weights


def parameter_counts(model: keras.Model) -> dict[str, int]:
    """Count the parameters of a model.

    Parameters
    ----------
    model : keras.Model

    Returns
    -------
    dict of str to int
        parameters (all), and trained_parameters (those that are trainable now).
    """
    trained = sum(weight.shape.num_elements() for weight in model.trainable_weights)
    return {"parameters": model.count_params(), "trained_parameters": trained}
