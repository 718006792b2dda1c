import keras
import numpy as np
import pytest
from keras import layers
from scipy.ndimage import map_coordinates

from covid_lab.explain.scorecam import score_cam, score_cam_function

SIZE = 12


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(5)


@pytest.fixture
def images():
    return np.random.default_rng(3).integers(0, 256, (4, SIZE, SIZE, 1), dtype=np.uint8)


def small_model(classes=1, activation=None, strides=2):
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(5, 3, strides, padding="same", activation="relu", name="first")(x)
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="second")(x)
    return keras.Model(
        inputs, layers.Dense(classes, activation=activation, name="top")(layers.Flatten()(x))
    )


def features_of(model, layer, image):
    network = keras.Model(model.inputs[0], model.get_layer(layer).output)
    return network(image[None].astype(np.float32)).numpy()[0].astype(np.float64)


def algorithm_1(model, layer, image, target):
    """Wang et al.'s algorithm 1 on the signed logit: map and weights, in loops and float64."""

    def score(picture):
        logits = model(picture[None].astype(np.float32)).numpy()[0].astype(np.float64)
        return logits[target] if len(logits) > 1 else (1 if target == 1 else -1) * logits[0]

    features = features_of(model, layer, image)
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
    heatmaps = score_cam(model, images, target, layer="first")
    assert heatmaps.layer == "first"
    assert heatmaps.maps.dtype == heatmaps.raw.dtype == heatmaps.scores.dtype == np.float32
    for image, raw, found in zip(images, heatmaps.raw, heatmaps.maps, strict=True):
        expected, _ = algorithm_1(model, "first", image, target)
        np.testing.assert_allclose(raw, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found, expected / expected.max(), rtol=1e-4, atol=1e-6)


def test_a_single_sigmoid_output_does_not_give_equal_weights(images):
    model, fused = small_model(), small_model(activation="sigmoid")
    fused.set_weights(model.get_weights())
    _, weights = algorithm_1(model, "second", images[0], 1)
    assert weights.max() > 1.01 * weights.min()
    found = score_cam(fused, images[:1], 1)
    assert found.layer == "second"
    np.testing.assert_allclose(found.raw, score_cam(model, images[:1], 1).raw, rtol=1e-5, atol=1e-7)
    mean = features_of(model, "second", images[0]).mean(axis=-1)
    assert np.abs(found.raw[0] - mean).max() > 0.01 * mean.max()


def test_another_library_agrees_when_it_is_given_the_exponential_of_the_logit(images):
    """It takes the softmax over classes: for logits z and 0, p₀ / p₁ is exp(z), and its weights
    are ours but for the sum over the channels. Features have the image's size, since it enlarges
    in another way.
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


def test_batches_layers_and_target_do_not_depend_on_each_other(images):
    model = small_model(3)
    explain = score_cam_function(model, ["second", "first"])
    predicted = model(images.astype(np.float32)).numpy().argmax(axis=1)
    whole, parts = explain(images, "predicted"), explain(images, predicted, batch_size=3)
    assert list(whole) == ["second", "first"]
    for layer in whole:
        np.testing.assert_array_equal(whole[layer].target, predicted)
        np.testing.assert_allclose(parts[layer].raw, whole[layer].raw, rtol=1e-4, atol=1e-6)
    alone = score_cam(model, images[:1], predicted[0], "first")
    np.testing.assert_allclose(alone.raw, whole["first"].raw[:1], rtol=1e-4, atol=1e-6)


def test_a_score_that_no_mask_changes_gives_a_blank_map(images):
    model = small_model()
    kernel, _ = model.get_layer("top").get_weights()
    model.get_layer("top").set_weights([0 * kernel, np.ones(1)])
    heatmaps = score_cam(model, images, 1)
    assert set(heatmaps.status) == {"no change"}
    assert not heatmaps.raw.any()


def test_silent_features_and_black_images_give_a_blank_map(images):
    model = small_model()
    black = 0 * images[:1]
    assert score_cam(model, black, 1).status.tolist() == ["zero features"]
    model.get_layer("second").bias.assign([0.1, 0.2, 0.3, 0.4])
    assert score_cam(model, black, 1).status.tolist() == ["no change"]


def test_no_images_give_empty_heatmaps(images):
    heatmaps = score_cam(small_model(), images[:0], 1)
    assert heatmaps.maps.shape == (0, 6, 6)
    assert heatmaps.status.shape == (0,)


def test_bad_input_is_refused(images):
    model = small_model()
    with pytest.raises(ValueError, match=r"third.*first.*second"):
        score_cam(model, images, 1, layer="third")
    with pytest.raises(ValueError, match="not a class of this model"):
        score_cam(model, images, 2)
    with pytest.raises(ValueError, match=r"\(12, 12, 1\)"):
        score_cam(model, images[:, :8], 1)
    with pytest.raises(ValueError, match=r"expected 0\.\.255"):
        score_cam(model, images / 255, 1)
    with pytest.raises(ValueError, match=r"\[0, 1, 2, 3\] hold NaN"):
        score_cam(model, images * np.nan, 1)
    flat = keras.Sequential([keras.Input((SIZE, SIZE, 1)), layers.Flatten(), layers.Dense(1)])
    with pytest.raises(ValueError, match="no spatial feature map"):
        score_cam(flat, images, 1)
