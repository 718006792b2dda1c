"""Occlusion against a naive loop and closed forms; its fast path has tests of its own."""

import keras
import numpy as np
import pytest
from keras import layers

from covid_lab.explain.occlusion import occlusion

SIZE = 10


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(13)


@pytest.fixture
def images():
    return np.random.default_rng(3).integers(0, 256, (3, SIZE, SIZE, 1), dtype=np.uint8)


def linear_model(channels=1):
    inputs = keras.Input((SIZE, SIZE, channels))
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, layers.Dense(1, name="top")(x))


def kernel_of(model):
    kernel = model.get_layer("top").get_weights()[0].astype(np.float64) / 255
    return kernel.reshape(model.inputs[0].shape[1:])


def naive(model, image, logit, corners, patch, fill):
    """Patch by patch, pixel by pixel: the mean fall over the patches that cover each pixel."""

    def score(picture):
        return float(model(picture[None].astype(np.float32))[0, logit])

    total, coverage = np.zeros((2, *image.shape[:2]))
    for top, left in corners:
        square = slice(top, top + patch), slice(left, left + patch)
        covered = image.astype(np.float64)
        covered[square] = fill
        total[square] += score(image) - score(covered)
        coverage[square] += 1
    return total / coverage


def test_equals_a_naive_loop_and_the_last_patch_ends_at_the_edge():
    inputs = keras.Input((9, SIZE, 1))
    x = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 255)(inputs))
    x = layers.Dense(8, activation="tanh")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    images = np.random.default_rng(1).integers(0, 256, (2, 9, SIZE, 1), dtype=np.uint8)
    given = images.astype(np.float32)
    found = occlusion(model, given, [2, 0], patch=4, stride=3, fill=20, batch_size=7)
    corners = [(top, left) for top in (0, 3, 5) for left in (0, 3, 6)]
    for raw, image, logit in zip(found.raw, images, (2, 0), strict=True):
        expected = naive(model, image, logit, corners, 4, 20)
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(raw, expected, atol=1e-5)
    np.testing.assert_array_equal(given, images)  # not changed in place


def test_patches_side_by_side_give_a_linear_models_sum_under_each(images):
    model = linear_model()
    found = occlusion(model, images, 1, patch=5, stride=5, fill=0)
    terms = (kernel_of(model) * images)[..., 0].reshape(3, 2, 5, 2, 5)
    expected = np.kron(terms.sum(axis=(2, 4)), np.ones((5, 5)))
    np.testing.assert_allclose(found.raw, expected, atol=1e-5)


def test_the_default_fill_is_each_images_mean_by_channel():
    model = linear_model(channels=3)
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    found = occlusion(model, images, 1, patch=1, stride=1)
    mean = images.mean(axis=(1, 2), keepdims=True)
    expected = (kernel_of(model) * (images - mean)).sum(axis=-1)
    np.testing.assert_allclose(found.raw, expected, atol=1e-5)


def test_status_is_given_image_by_image(images):
    model = linear_model()
    model.get_layer("top").set_weights([np.ones((SIZE**2, 1)), np.ones(1)])
    shown = np.stack([images[0], np.full_like(images[0], 70), 0 * images[0]])
    found = occlusion(model, shown, 1, patch=2, stride=2)
    assert found.status.tolist() == ["ok", "no change", "no change"]
    assert not found.maps[1:].any()
    brighter = occlusion(model, shown, 1, patch=2, stride=2, fill=255)
    assert set(brighter.status) == {"all negative"}
