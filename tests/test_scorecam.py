"""Score-CAM against its algorithm written out, and against another library."""

import keras
import numpy as np
import pytest
from keras import layers
from scipy.ndimage import map_coordinates

from covid_lab.explain.scorecam import score_cam

SIZE = 12


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(5)


@pytest.fixture
def images():
    return np.random.default_rng(3).integers(0, 256, (2, SIZE, SIZE, 1), dtype=np.uint8)


def small_model(classes=1, strides=2):
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(5, 3, strides, padding="same", activation="relu", name="first")(x)
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="second")(x)
    return keras.Model(inputs, layers.Dense(classes, name="top")(layers.Flatten()(x)))


def algorithm_1(model, layer, image, target):
    """Wang et al.'s algorithm 1 on the signed logit: map and weights, in loops and float64."""

    def score(picture):
        logits = model(picture[None].astype(np.float32)).numpy()[0].astype(np.float64)
        return logits[target] if len(logits) > 1 else (1 if target == 1 else -1) * logits[0]

    network = keras.Model(model.inputs[0], model.get_layer(layer).output)
    features = network(image[None].astype(np.float32)).numpy()[0].astype(np.float64)
    centres = (np.arange(SIZE) + 0.5) * len(features) / SIZE - 0.5
    grid = np.meshgrid(centres, centres, indexing="ij")
    increase = []
    for k in range(features.shape[-1]):
        enlarged = map_coordinates(features[..., k], grid, order=1, mode="nearest")
        mask = enlarged - enlarged.min()
        if mask.max() > 0:
            mask /= mask.max()
        increase.append(score(image * mask[..., None]) - score(0.0 * image))
    weights = np.exp(increase) / np.exp(increase).sum()
    return features @ weights, weights


@pytest.mark.parametrize(("classes", "target"), [(1, 0), (1, 1), (3, 2)])
def test_the_map_is_that_of_algorithm_1(images, classes, target):
    model = small_model(classes)
    heatmaps = score_cam(model, images, target, layer="first", batch_size=3)
    for image, raw, found in zip(images, heatmaps.raw, heatmaps.maps, strict=True):
        expected, weights = algorithm_1(model, "first", image, target)
        assert weights.max() > 1.01 * weights.min()  # also for the only logit
        np.testing.assert_allclose(raw, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found, expected / expected.max(), rtol=1e-4, atol=1e-6)


def test_another_library_agrees_when_it_is_given_the_exponential_of_the_logit(images):
    """It takes the softmax over classes: for logits z and 0, p₀ / p₁ is exp(z), and its weights
    are ours except for the sum over the channels. Features have the image's size, since it
    enlarges in another way.
    """
    from tf_keras_vis.scorecam import Scorecam

    model = small_model(classes=2, strides=1)
    kernel, bias = model.get_layer("top").get_weights()
    model.get_layer("top").set_weights([kernel * [1, 0], bias])
    theirs = Scorecam(model, model_modifier=None)(
        lambda probabilities: probabilities[:, 0] / probabilities[:, 1],
        images.astype(np.float32),
        penultimate_layer="second",
        seek_penultimate_conv_layer=False,
        activation_modifier=None,
        expand_cam=False,
        normalize_cam=False,
    )
    theirs = np.squeeze(theirs)
    ours = score_cam(model, images, 0).maps
    np.testing.assert_allclose(
        ours, theirs / theirs.max(axis=(1, 2), keepdims=True), rtol=1e-3, atol=1e-5
    )


def test_silent_features_and_black_images_give_a_blank_map(images):
    model = small_model()
    black = 0 * images[:1]
    assert score_cam(model, black, 1).status.tolist() == ["zero features"]
    model.get_layer("second").bias.assign([0.1, 0.2, 0.3, 0.4])
    assert score_cam(model, black, 1).status.tolist() == ["no change"]
