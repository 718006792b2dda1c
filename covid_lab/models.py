"""Builders of the networks: flat (no nested sub-model), uncompiled, ending in one logit.

Input: grey values 0–255, float32 (N, H, W, 1); normalisation is the first layer. Output: (N, 1),
the logit of the positive class; the sigmoid is applied where a probability is wanted. `resnet18`
alone also takes colours and has one logit per class.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import keras
import numpy as np
import pandas as pd
from keras import layers

from covid_project.devices import replicas
from covid_project.storage import fingerprint

DENSE_UNITS = 64  # of the fully connected part


def baseline_cnn(
    image_size: int, normalization: layers.Layer, *, filters: int, dropout: float
) -> keras.Model:
    """Convolutional network for images (N, image_size, image_size, 1).

    A strided stem and pooling bring the image to a quarter of its side before the 3×3
    convolutions begin: at full resolution these would cost most of the time and add nothing.

    Parameters
    ----------
    normalization
        Layer from ``normalization.normalization_layer``; it becomes part of the model.
    filters
        Feature maps of the stem; the three stages have 2, 4 and 8 times as many.
    dropout
        Share of the fully connected layer's units left out in training, 0 to 1.
    """
    images = keras.Input((image_size, image_size, 1), name="images")
    x = _convolution(normalization(images), filters, kernel=5, strides=2, name="stem")
    for stage, width in enumerate((2 * filters, 4 * filters, 8 * filters), start=1):
        x = layers.MaxPooling2D(name=f"stage{stage}_pool")(x)
        x = _convolution(x, width, name=f"stage{stage}_1")
        x = _convolution(x, width, name=f"stage{stage}_2")
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(images, classification_head(x, dropout=dropout), name="baseline")


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
    x = _convolution(
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
    convolution = partial(_convolution, filters=filters, momentum=_RESNET18_MOMENTUM)
    change = convolution(x, strides=strides, name=f"{name}_1")
    change = convolution(change, activation=False, name=f"{name}_2")
    if strides > 1:
        x = convolution(x, kernel=1, strides=strides, activation=False, name=f"{name}_shortcut")
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
    x = layers.BatchNormalization(momentum=0.95, synchronized=replicas() > 1, name="hidden_norm")(x)
    x = layers.ReLU(name="hidden_relu")(x)
    x = layers.Dropout(dropout, name="hidden_dropout")(x)
    return keras.Model(images, classification_head(x, dropout=dropout), name="mlp")


def shift_threshold(model: keras.Model, threshold: float) -> None:
    """Move the logit's offset so that what scored ``threshold`` scores 0, the threshold of all."""
    bias = model.get_layer("logit").bias
    bias.assign(bias - threshold)


def _convolution(
    x,
    filters: int,
    *,
    name: str,
    kernel: int = 3,
    strides: int = 1,
    activation: bool = True,
    momentum: float = 0.95,
):
    """Convolution, BatchNorm, ReLU; the BatchNorm's offset takes the bias' place."""
    x = layers.Conv2D(
        filters,
        kernel,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_convolution",
    )(x)
    # Of a batch that devices share, each would otherwise only see the statistics of its own part.
    x = layers.BatchNormalization(
        momentum=momentum, synchronized=replicas() > 1, name=f"{name}_norm"
    )(x)
    return layers.ReLU(name=f"{name}_relu")(x) if activation else x


def classification_head(features, *, dropout: float):
    """Apply the fully connected part to features (N, D); gives the logit (N, 1)."""
    x = layers.Dense(DENSE_UNITS, activation="relu", name="dense")(features)
    x = layers.Dropout(dropout, name="dropout")(x)
    return layers.Dense(1, dtype="float32", name="logit")(x)


# How a backbone wants its colour channels, from grey values 0–255.
CONVENTIONS = {
    "scaled": "−1 to 1",
    "centred": "blue, green, red, each less its mean over ImageNet",
    "raw": "0 to 255: the network scales them itself",
}
IMAGENET_MEANS = (103.939, 116.779, 123.68)  # blue, green, red, in grey levels


@dataclass(frozen=True)
class Backbone:
    """A network of ``keras.applications``, and the input that its weights were trained on."""

    build: Callable[..., keras.Model]
    takes_width: bool
    frozen_up_to: str  # end of a block: what comes after it is fine-tuned by default
    convention: str = "scaled"  # one of CONVENTIONS


BACKBONES = {
    "ResNet50V2": Backbone(keras.applications.ResNet50V2, False, "conv5_block1_out"),
    "MobileNetV2": Backbone(keras.applications.MobileNetV2, True, "block_12_add"),
    "MobileNet": Backbone(keras.applications.MobileNet, True, "conv_pw_11_relu"),
    "VGG19": Backbone(keras.applications.VGG19, False, "block4_pool", "centred"),
    "ResNet50": Backbone(keras.applications.ResNet50, False, "conv5_block1_out", "centred"),
    "EfficientNetB0": Backbone(keras.applications.EfficientNetB0, False, "block6d_add", "raw"),
}


class WeightsUnavailable(RuntimeError):
    """The pretrained weights are neither in the Keras cache nor to be downloaded."""


def build_backbone(
    name: str, image_size: int, *, width: float = 1.0, weights: str = "imagenet"
) -> keras.Model:
    """Backbone from images (N, image_size, image_size, 1) to pooled features (N, D), frozen.

    Parameters
    ----------
    name
        One of ``BACKBONES``.
    width
        Multiplier of the number of filters (``alpha``), for the MobileNets.
    weights
        "imagenet" (the Keras cache, else a download), "random", or the path of a weights file
        without top.

    Raises
    ------
    WeightsUnavailable
        With the two ways out.
    """
    backbone = BACKBONES[name]
    if width != 1 and not backbone.takes_width:
        raise ValueError(f"{name} has no width multiplier: width is {width}, allowed: 1")
    images = keras.Input((image_size, image_size, 1), name="images")
    x = _channels(images, backbone.convention)
    try:
        with warnings.catch_warnings():
            # Without top there are only convolutions, whose weights fit images of any size.
            warnings.filterwarnings("ignore", message=".*`input_shape` is undefined")
            body = backbone.build(
                include_top=False,
                weights=None if weights == "random" else weights,
                input_tensor=x,
                **({"alpha": width} if backbone.takes_width else {}),
            )
    # Keras raises a bare Exception when a download fails.
    except Exception as error:
        if weights == "random":
            raise
        raise WeightsUnavailable(
            f"{name} (width {width:g}) with weights {weights!r} is not to be had: {error}\n"
            "Two ways out: put the weights file into the folder keras/models of your Keras home "
            "(~/.keras, or $KERAS_HOME) under the name that Keras gives it, or connect to the "
            "network once; or choose other weights: the path of a file, or 'random' to try the "
            "machinery without pretraining (transfer.weights)."
        ) from error
    features = layers.GlobalAveragePooling2D(name="features")(body.output)
    model = keras.Model(images, features, name=name)
    model.trainable = False
    return model


def _channels(images, convention: str):
    """Three colour channels of grey images 0–255, as the convention wants them."""
    if convention == "scaled":
        images = layers.Rescaling(1 / 127.5, offset=-1.0, name="normalization")(images)
    x = layers.Concatenate(name="rgb")([images] * 3)  # the grey image in each colour channel
    if convention == "centred":
        offset = [-mean for mean in IMAGENET_MEANS]
        x = layers.Rescaling(1.0, offset=offset, name="normalization")(x)
    return x


def available_backbone(
    name: str,
    images: np.ndarray,
    *,
    width: float = 1.0,
    weights: str = "imagenet",
    without_weights: str = "stop",
) -> tuple[keras.Model, str]:
    """Backbone for the size of some images (N, H, H, 1), and the weights that it really has.

    Where the wanted ``weights`` cannot be had, ``without_weights`` decides: "stop" raises
    ``WeightsUnavailable``, "random" goes on with random weights and says so. A random network
    takes its BatchNorm statistics from the images; without, its features would fade to a constant.
    """
    size = images.shape[1]
    if weights != "random":
        try:
            return build_backbone(name, size, width=width, weights=weights), weights
        except WeightsUnavailable:
            if without_weights == "stop":
                raise
        print(f"WARNING: no {weights} weights for {name}: going on with RANDOM weights.")
    model = build_backbone(name, size, width=width, weights="random")
    _settle_batchnorm(model, images)
    return model, "random"


def _settle_batchnorm(model: keras.Model, images: np.ndarray) -> None:
    """Set the moving statistics of every BatchNorm layer to those of the images."""
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.trainable, layer.momentum = True, 0.0
    model(images.astype(np.float32), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.trainable, layer.momentum = False, momentum


def transfer_model(backbone: keras.Model, *, dropout: float) -> keras.Model:
    """Flat model of the backbone's layers and a new classification head (layers are shared)."""
    logit = classification_head(backbone.output, dropout=dropout)
    return keras.Model(backbone.input, logit, name=f"transfer_{backbone.name}")


def transfer_head(features: int, *, dropout: float) -> keras.Model:
    """Build the classification head alone, on cached features (N, ``features``)."""
    pooled = keras.Input((features,), name="pooled_features")
    return keras.Model(pooled, classification_head(pooled, dropout=dropout), name="transfer_head")


def split_at(model: keras.Model, layer: str) -> tuple[keras.Model, keras.Model]:
    """Two models that share the layers of a flat one: images → layer's output → logit.

    Raises
    ------
    ValueError
        No such layer, or what follows it needs more than its output (a skip connection).
    """
    names = [item.name for item in model.layers]
    if layer not in names:
        raise ValueError(f"{model.name} has no layer {layer!r}; it has: {', '.join(names)}")
    cut = model.get_layer(layer).output
    try:
        head = keras.Model(cut, model.output)
        # Old releases of Keras notice only here, and only for another shape than the cut's.
        head.compute_output_spec(keras.KerasTensor((1, *cut.shape[1:])))
        return keras.Model(model.input, cut), head
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{model.name} cannot be cut at {layer!r}: a connection passes it by. "
            "Choose a layer at the end of a block."
        ) from error


def unfreeze_above(model: keras.Model, layer: str | None) -> int:
    """Make the layers above ``layer`` trainable, all of them for None; return how many weights.

    BatchNorm layers stay as they are: ``training=False`` would not keep them still, and their
    ImageNet statistics would be lost to a few small batches.
    """
    above = model.layers if layer is None else split_at(model, layer)[1].layers
    model.trainable = True
    for item in model.layers:
        item.trainable = item in above and not isinstance(item, layers.BatchNormalization)
    return sum(weight.shape.num_elements() for weight in model.trainable_weights)


def parameter_counts(model: keras.Model) -> dict[str, int]:
    """How many parameters a model has, and how many of them are trained as it stands."""
    trained = sum(weight.shape.num_elements() for weight in model.trainable_weights)
    return {"parameters": model.count_params(), "trained_parameters": trained}


def layer_table(model: keras.Model) -> pd.DataFrame:
    """One row per layer, from input to output: layer, kind, output (shape of one image's), kernel
    (side of a convolution's, else empty) and parameters.
    """
    rows = []
    for layer in model.layers:
        shape = " × ".join(str(size) for size in layer.output.shape[1:])
        kernel = layer.kernel_size[0] if isinstance(layer, layers.Conv2D) else None
        rows.append((layer.name, type(layer).__name__, shape, kernel, layer.count_params()))
    table = pd.DataFrame(rows, columns=["layer", "kind", "output", "kernel", "parameters"])
    return table.astype({"kernel": "Int64"})


def model_fingerprint(model: keras.Model) -> str:
    """Sixteen hexadecimal digits of the architecture and every weight.

    How the model was compiled does not count: it is the same model whichever way it was trained.
    """
    return fingerprint(model.get_config(), *model.get_weights())
