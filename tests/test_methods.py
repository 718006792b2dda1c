"""What holds for every method of explanation: one signature, the same checks of its input."""

import keras
import numpy as np
import pytest
from keras import layers

from covid_lab.explain.methods import LAYERED, METHODS, method_named

SIZE = 12
QUICK = {"smooth-grad": {"samples": 4}, "integrated-gradients": {"steps": 4}}
QUICK |= {"occlusion": {"patch": 4, "stride": 4}, "lime": {"superpixels": 8, "samples": 30}}
LINEAR = set(METHODS) - {"grad-cam++", "layercam", "eigen-cam", "score-cam"}  # in the score


def explain(name, model, images, target, **options):
    return METHODS[name](model, images, target, **QUICK.get(name, {}), **options)


def network(classes):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(4, 3, activation="relu", name="features")(x)
    x = layers.BatchNormalization(moving_mean_initializer="random_normal")(x)
    x = layers.Dense(6, activation="tanh")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(classes, name="top")(layers.Dropout(0.5)(x)))


@pytest.fixture(scope="module")
def single():
    return network(1)


@pytest.fixture(scope="module")
def triple():
    return network(3)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (4, SIZE, SIZE, 1)).astype(np.uint8)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", METHODS)
def test_maps_are_of_the_predicted_class_and_at_the_layer_or_the_pixels(triple, images, name):
    logits = triple(images.astype(np.float32)).numpy()
    found, again = (explain(name, triple, images, t) for t in ("predicted", logits.argmax(axis=1)))
    assert found.layer == ("features" if name in LAYERED else "pixels")
    side = SIZE - 2 if name in LAYERED else SIZE
    assert found.maps.shape == found.raw.shape == (4, side, side)
    assert found.maps.dtype == found.raw.dtype == found.scores.dtype == np.float32
    assert found.maps.min() >= 0
    np.testing.assert_allclose(found.maps.max(axis=(1, 2)), found.status == "ok")
    np.testing.assert_array_equal(found.target, logits.argmax(axis=1))
    np.testing.assert_allclose(found.scores, logits.max(axis=1), rtol=1e-4)
    assert_close(again.raw, found.raw)


@pytest.mark.parametrize("name", METHODS)
def test_an_image_has_the_same_map_alone_and_in_any_batch(triple, images, name):
    target = np.arange(4) % 3
    whole = explain(name, triple, images, target)
    assert np.abs(whole.raw).max() > 0
    assert_close(explain(name, triple, images.astype(float), target, batch_size=3).raw, whole.raw)
    alone = explain(name, triple, images[3:], target[3])
    assert_close(alone.raw[0], whole.raw[3])
    empty = explain(name, triple, images[:0], 1)
    assert empty.maps.shape == empty.raw.shape == (0, *whole.raw.shape[1:])
    assert empty.scores.shape == empty.target.shape == empty.status.shape == (0,)


@pytest.mark.parametrize("name", METHODS)
def test_the_two_classes_of_one_logit_are_opposite_and_a_sigmoid_changes_nothing(
    single, images, name
):
    normal, covid = (explain(name, single, images, target) for target in (0, 1))
    np.testing.assert_allclose(normal.scores, -covid.scores, rtol=1e-5)
    if name in LINEAR:
        assert_close(normal.raw, -covid.raw)
    bias = single.get_layer("top").bias
    fused = keras.Model(single.inputs, layers.Activation("sigmoid")(single.outputs[0]))
    bias.assign([200.0])  # saturates
    try:
        assert (fused(images.astype(np.float32)).numpy() == 1).all()
        saturated = explain(name, fused, images, 1)
    finally:
        bias.assign([0.0])
    np.testing.assert_allclose(saturated.scores, covid.scores + 200, rtol=1e-5)
    if name != "lime":  # its weights inherit the rounding of the large scores
        np.testing.assert_allclose(
            saturated.raw, covid.raw, rtol=1e-2, atol=1e-3 * np.abs(covid.raw).max()
        )


@pytest.mark.parametrize("name", METHODS)
def test_bad_images_classes_and_weights_are_refused(single, images, name):
    broken = images.astype(np.float32)
    broken[2, 1, 1] = np.nan
    for given, target, words in (
        (images, 2, "not a class of this model"),
        (images[:, :4], 1, r"\(12, 12, 1\)"),
        (images / 255, 1, r"expected 0\.\.255"),
        (broken, 1, r"\[2\] hold NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            explain(name, single, given, target)
    model = network(1)
    kernel, bias = model.get_layer("top").get_weights()
    model.get_layer("top").set_weights([kernel * np.nan, bias])
    with pytest.raises(ValueError, match="NaN or infinite weights: top/kernel"):
        explain(name, model, images, 1)


@pytest.mark.parametrize("name", METHODS)
def test_a_score_that_does_not_depend_on_the_image_gives_a_blank_map_and_says_why(images, name):
    model = network(1)
    model.get_layer("top").set_weights([np.zeros((6, 1)), np.ones(1)])
    found = explain(name, model, images, 1)
    by_change = name in ("score-cam", "occlusion", "lime")
    if name != "eigen-cam":  # knows no class
        assert set(found.status) == {"no change" if by_change else "zero gradient"}
        assert not found.maps.any()


@pytest.mark.parametrize("name", ["saliency", "smooth-grad", "integrated-gradients"])
def test_an_integer_input_has_no_gradient(images, name):
    inputs = keras.Input((SIZE, SIZE, 1), dtype="uint8")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    with pytest.raises(ValueError, match="of type uint8"):
        explain(name, keras.Model(inputs, layers.Dense(1)(x)), images, 1)


@pytest.mark.parametrize("name", LAYERED)
def test_an_unknown_layer_is_refused_and_the_candidates_named(single, images, name):
    with pytest.raises(ValueError, match=r"'third'.*'features'"):
        explain(name, single, images, 1, layer="third")


@pytest.mark.parametrize("name", ["smooth-grad", "lime"])
def test_the_seed_decides(single, images, name):
    one, again, other = (explain(name, single, images, 1, seed=seed).raw for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("smooth-grad", {"samples": 0}, "samples is 0"),
        ("smooth-grad", {"noise": -0.1}, r"noise -0\.1"),
        ("integrated-gradients", {"steps": 0}, "steps is 0"),
        ("integrated-gradients", {"baseline": np.zeros((8, 8))}, r"shape \(8, 8\)"),
        ("occlusion", {"patch": 0, "stride": 1}, "patch is 0"),
        ("occlusion", {"patch": 13}, "patch is 13"),
        ("occlusion", {"patch": 3, "stride": 4}, "patch is 3, stride 4"),
        ("occlusion", {"patch": 3, "stride": 3, "fill": np.nan}, "fill is nan"),
        ("lime", {"samples": 1}, "samples is 1"),
        ("lime", {"runs": 0}, "runs 0"),
        ("lime", {"superpixels": 1}, "superpixels is 1"),
    ],
)
def test_options_out_of_range_are_refused(single, images, name, options, words):
    with pytest.raises(ValueError, match=words):
        METHODS[name](single, images, 1, **options)


def test_methods_are_found_in_any_spelling():
    assert method_named("GradCAM") == "grad-cam"
    assert method_named("grad_cam++") == "grad-cam++"
    assert method_named("Integrated Gradients") == "integrated-gradients"
    with pytest.raises(ValueError, match="Unknown method 'cam'"):
        method_named("cam")
