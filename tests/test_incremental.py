"""Every test compares with the plain way: cover each image with each patch, run the whole model."""

import keras
import numpy as np
import pytest
from keras import layers

from covid_lab.explain import incremental
from covid_lab.explain.occlusion import occlusion
from covid_project.models import baseline_cnn
from covid_project.normalization import normalization_layer

TOLERANCE = 1e-5  # of the scores' scale


@pytest.fixture(autouse=True)
def _always_in_windows(monkeypatch):
    monkeypatch.setattr(incremental, "LARGEST_SHARE", 1.0)
    keras.utils.set_random_seed(11)


def pictures(height, width, channels=3, count=2):
    """Smooth grey values with structure everywhere, so that every patch hides something."""
    coarse = np.random.default_rng(5).uniform(0, 255, (count, 6, 6, channels))
    fine = np.random.default_rng(6).uniform(-40, 40, (count, height, width, channels))
    scale = (-(-height // 6), -(-width // 6))
    large = coarse.repeat(scale[0], axis=1).repeat(scale[1], axis=2)[:, :height, :width]
    return np.clip(large + fine, 0, 255).astype(np.float32)


def settled(model, images):
    """The model with lively BatchNorm weights, and statistics under which signals do not fade."""
    generator = np.random.default_rng(7)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for layer in norms:
        layer.trainable, layer.momentum = True, 0.0
        layer.gamma.assign(generator.uniform(0.7, 1.3, layer.gamma.shape))
        layer.beta.assign(generator.normal(0, 0.3, layer.beta.shape))
    model(images, training=True)
    return model


def corners_of(height, width, patch, stride):
    """All that `stride` gives, the last ones at the edges, and two that fit no stride at all."""
    rows = sorted({*range(0, height - patch, stride), height - patch})
    columns = sorted({*range(0, width - patch, stride), width - patch})
    odd = [(1, 2), (height - patch - 1, 3)]
    return np.array([(row, column) for row in rows for column in columns] + odd)


def check(model, images, patch=4, stride=5, least=1):
    """Compare with whole covered images; `least` layers must have been computed in windows."""
    settled(model, images)
    corners = corners_of(*images.shape[1:3], patch, stride)
    steps, _ = incremental._plan(model, corners, patch)
    assert len(steps) >= least
    look, covered_scores = incremental.covered_scores_functions(model, corners, patch)
    fills = np.random.default_rng(8).uniform(0, 255, (len(images), images.shape[-1]))
    fills = fills.astype(np.float32)
    target = np.ones(len(images), np.int32)
    scores, target, maps = look(images, target)
    order = np.random.default_rng(9).permutation(len(images) * len(corners)).astype(np.int32)
    image, place = np.divmod(order, np.int32(len(corners)))
    found = covered_scores(maps, fills, target, image, place).numpy()
    covered = images[image]
    for picture, i, (top, left) in zip(covered, image, corners[place], strict=True):
        picture[top : top + patch, left : left + patch] = fills[i]
    expected = model.predict_on_batch(covered)[:, -1]
    scale = np.abs(expected).max()
    assert np.ptp(expected) > 1e-3 * scale
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale)
    whole = model(images, training=False)[:, -1]
    np.testing.assert_allclose(scores, whole, rtol=0, atol=TOLERANCE * scale)


def classifier(inputs, features, flat=False):
    pooled = layers.Flatten() if flat else layers.GlobalAveragePooling2D()
    return keras.Model(inputs, layers.Dense(1)(pooled(features)))


def test_the_pneumonia_network():
    model = keras.Sequential([keras.Input((48, 48, 3)), layers.Rescaling(1 / 255)])
    for filters in (4, 6, 8, 10):
        model.add(layers.Conv2D(filters, 3, activation="relu", padding="same"))
        model.add(layers.MaxPooling2D())
        model.add(layers.BatchNormalization())
    for layer in (layers.Flatten(), layers.Dense(12, "relu"), layers.Dropout(0.5), layers.Dense(1)):
        model.add(layer)
    check(model, pictures(48, 48), patch=6, stride=7, least=10)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("strides", "size"), [(1, (19, 25)), (2, (24, 24)), (3, (25, 31))])
def test_padding_and_strides(padding, strides, size):
    inputs = keras.Input((*size, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(5, (3, 2), strides=strides, padding=padding, activation="relu")(x)
    x = layers.MaxPooling2D((2, 3), strides=(1, 2), padding=padding)(x)
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(4, 2, padding=padding, use_bias=False, activation="tanh")(x)
    check(classifier(inputs, x, flat=True), pictures(*size), least=5)


@pytest.mark.parametrize("size", [28, 31])
def test_pooling_whose_windows_do_not_overlap(size):
    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(4, 3, padding="same")(layers.Rescaling(1 / 255)(inputs))
    x = layers.MaxPooling2D(3)(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.AveragePooling2D(2)(layers.Conv2D(4, 3, padding="same", activation="relu")(x))
    check(classifier(inputs, x, flat=True), pictures(size, size), least=7)


def test_dilation_and_a_mean_over_what_lies_inside():
    inputs = keras.Input((26, 26, 3))
    x = layers.Conv2D(4, 3, dilation_rate=2, padding="same")(layers.Rescaling(1 / 255)(inputs))
    x = layers.LeakyReLU()(x)
    x = layers.DepthwiseConv2D(3, dilation_rate=(2, 2), padding="valid")(x)
    x = layers.AveragePooling2D(3, 1, padding="same")(x)  # not known: runs as a whole
    check(classifier(inputs, x), pictures(26, 26), least=4)


def test_separable_blocks_with_skips_and_branches():
    """What the MobileNets and ResNets are made of, with branches of unequal reach."""
    inputs = keras.Input((33, 33, 3))
    x = layers.ZeroPadding2D(((0, 1), (2, 1)))(layers.Rescaling(1 / 255)(inputs))
    x = layers.Conv2D(6, 3, strides=2)(x)
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(layers.ReLU(6.0)(x))
    y = layers.BatchNormalization()(y)
    x = layers.Add()([x, layers.Conv2D(6, 1)(y)])
    y = layers.Conv2D(3, 5, padding="same", activation="relu")(x)
    x = layers.Concatenate()([y, layers.MaxPooling2D(3, 1, padding="same")(x), x])
    x = layers.DepthwiseConv2D(3, strides=2, padding="same")(x)
    x = layers.Multiply()([x, layers.Activation("sigmoid")(x)])
    check(classifier(inputs, x), pictures(33, 33), patch=5, stride=6, least=13)


def test_squeeze_and_excitation_looks_at_the_whole_map_from_there_on():
    inputs = keras.Input((24, 24, 3))
    x = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 255)(inputs))
    weights = layers.Dense(4, "sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    check(classifier(inputs, layers.Multiply()([x, weights]), flat=True), pictures(24, 24), least=2)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_windows_are_pasted_wherever_they_grow_too_large(share, monkeypatch):
    monkeypatch.setattr(incremental, "LARGEST_SHARE", share)
    inputs = keras.Input((30, 30, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    for _ in range(4):
        y = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
        x = layers.Concatenate()([x, y])
    check(classifier(inputs, x), pictures(30, 30), least=3)


@pytest.mark.parametrize("strategy", ["fixed", "dataset", "pixel", "sample"])
def test_the_baseline_with_every_normalisation(strategy):
    images = pictures(32, 32, channels=1)
    normalization = normalization_layer(strategy, images.astype(np.uint8))
    model = baseline_cnn(32, normalization, filters=4, dropout=0.3)
    # By its own statistics, a patch changes the whole image; statistics of each pixel run whole.
    check(model, images, patch=5, stride=9, least=0 if strategy in ("sample", "pixel") else 6)


@pytest.mark.parametrize(
    "unknown",
    [
        layers.Lambda(lambda x: x - keras.ops.mean(x, axis=(1, 2), keepdims=True)),
        layers.Activation(lambda x: x / keras.ops.max(x, axis=(1, 2), keepdims=True)),
        layers.LayerNormalization(axis=(1, 2, 3)),
        layers.UnitNormalization(axis=(1, 2)),
        layers.SeparableConv2D(3, 3, padding="same"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_are_not_known_run_as_a_whole(unknown):
    inputs = keras.Input((20, 20, 3))
    x = unknown(layers.Conv2D(4, 3, activation="softplus")(layers.Rescaling(1 / 255)(inputs)))
    check(classifier(inputs, layers.Conv2D(2, 3)(x)), pictures(20, 20), least=2)


def test_a_nested_model_and_a_layer_called_twice():
    inputs = keras.Input((20, 20, 3))
    twice = layers.Conv2D(3, 3, padding="same", activation="tanh")
    x = twice(twice(layers.Rescaling(1 / 255)(inputs)))
    inner = keras.Sequential([keras.Input((20, 20, 3)), layers.Conv2D(2, 3), layers.ReLU()])
    check(classifier(inputs, inner(x), flat=True), pictures(20, 20), least=3)


def test_a_model_for_images_of_any_size_whose_weights_change():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 255)(inputs))
    model = classifier(inputs, x)
    for height, width in ((18, 14), (12, 20), (18, 14)):
        images = pictures(height, width)
        for weight in model.weights:
            weight.assign(-weight)  # weights are read at each call
        found = occlusion(model, images, 1, patch=4, stride=4, fill=0)
        covered = images.copy()
        covered[:, :4, :4] = 0
        fall = model(images)[:, 0] - model(covered)[:, 0]
        np.testing.assert_allclose(found.raw[:, 0, 0], fall, atol=1e-5)
