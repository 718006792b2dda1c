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
    classification_head,
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
    """Plain network of one or a few convolutions, for images (N, image_size, image_size, 1).

    Each convolution keeps the image's size and is followed by ReLU and 2×2 pooling; Dropout comes
    after the first pooling, then one fully connected layer on all that is left.

    Parameters
    ----------
    normalization
        Layer from ``normalization.normalization_layer``; it becomes part of the model.
    filters
        Feature maps of each convolution in turn.
    kernel
        Side of the convolutions' kernels, in pixels.
    dense
        Units of the fully connected layer.
    dropout
        Share of the first pooling's values left out in training, 0 to 1.
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
# Kernel and stride of the stem by the largest image side that it is for, and whether pooling
# follows: small images would be gone before the first block.
_STEMS = {32: (3, 1, False), 64: (3, 2, False), 512: (7, 2, True)}

# Of the running statistics per step, as in the published networks. With the few steps that an epoch
# of a small set has, slower ones are those of weights that are long gone.
_RESNET18_MOMENTUM = 0.9


def resnet18(
    image_size: int, normalization: layers.Layer, *, classes: int, channels: int = 1
) -> keras.Model:
    """ResNet18 for images (N, image_size, image_size, channels), with a logit per class.

    He et al. 2016 ("Deep Residual Learning for Image Recognition", CVPR), table 1, 18 layers. Its
    stem suits images of 224 pixels and is kept from 65 pixels on; up to 64 it is a 3×3 convolution
    of stride 2, up to 32 one of stride 1, without pooling, as usual for small images.

    Parameters
    ----------
    normalization
        Layer from ``normalization.normalization_layer``; it becomes part of the model.
    classes
        Number of logits, 2 or more, for softmax.
    channels
        1 for grey, 3 for colour.

    Notes
    -----
    The outputs of the residual blocks are layers named as in ``RESNET18_BLOCKS``.
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
    """Two 3×3 convolutions, added to the input; a 1×1 convolution fits the input to them."""
    build = partial(convolution, filters=filters, momentum=_RESNET18_MOMENTUM)
    change = build(x, strides=strides, name=f"{name}_1")
    change = build(change, activation=False, name=f"{name}_2")
    if strides > 1:
        x = build(x, kernel=1, strides=strides, activation=False, name=f"{name}_shortcut")
    return layers.ReLU(name=name)(layers.Add(name=f"{name}_add")([x, change]))


def mlp(image_size: int, normalization: layers.Layer, *, units: int, dropout: float) -> keras.Model:
    """Multilayer perceptron: every pixel an input, no notion of neighbourhood.

    Parameters
    ----------
    normalization
        Layer from ``normalization.normalization_layer``; it becomes part of the model.
    units
        Units of the hidden layer before the classification head.
    dropout
        Share of the units left out in training, in both hidden layers, 0 to 1.
    """
    images = keras.Input((image_size, image_size, 1), name="images")
    x = layers.Flatten(name="pixels")(normalization(images))
    x = layers.Dense(units, use_bias=False, kernel_initializer="he_normal", name="hidden")(x)
    x = layers.BatchNormalization(momentum=0.95, name="hidden_norm")(x)
    x = layers.ReLU(name="hidden_relu")(x)
    x = layers.Dropout(dropout, name="hidden_dropout")(x)
    return keras.Model(images, classification_head(x, dropout=dropout), name="mlp")


def shift_threshold(model: keras.Model, threshold: float) -> None:
    """Move the logit's offset so that what scored ``threshold`` scores 0, the threshold of all."""
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
    """Build a frozen backbone for images (N, H, H, 1); also return the weights that it really has.

    Where the wanted ``weights`` are unavailable, ``without_weights`` decides: "stop" raises
    ``WeightsUnavailable``, "random" continues with random weights and says so. A random network
    takes its BatchNorm statistics from the images; otherwise its features would fade to a constant.
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
    """Return how many parameters a model has, and how many of them are trained as it stands."""
    trained = sum(weight.shape.num_elements() for weight in model.trainable_weights)
    return {"parameters": model.count_params(), "trained_parameters": trained}
