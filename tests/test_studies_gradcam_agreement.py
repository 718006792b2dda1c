"""Grad-CAM++ of tf-keras-vis: its formula computed again, and where it agrees with ours."""

import keras
import numpy as np
import pytest
from keras import layers

from covid_lab.explain.gradcam import grad_cam
from covid_lab.studies import gradcam_agreement as both


def network(pooled):
    """A small network with features after a rectifier, pooled or flattened before its logit."""
    keras.utils.set_random_seed(3)
    images = keras.Input((12, 12, 1))
    x = layers.Conv2D(6, 3, activation="relu", name="features")(layers.Rescaling(1 / 255)(images))
    x = layers.GlobalAveragePooling2D()(x) if pooled else layers.Flatten()(x)
    x = x if pooled else layers.Dense(5, activation="relu")(x)
    return keras.Model(images, layers.Dense(1)(x))


@pytest.fixture
def images(rng):
    return rng.uniform(0, 255, (5, 12, 12, 1)).astype(np.float32)


SIGNS = np.array([1.0, -1, 1, -1, 1])


@pytest.mark.parametrize("pooled", [True, False])
def test_the_formula_is_that_of_tf_keras_vis(images, pooled):
    model = network(pooled)
    features, gradients = both.features_and_gradients(model, images, SIGNS, "features")
    theirs = both.library_maps(model, images, SIGNS, "features")
    ours = both.weighted_maps(features, gradients, both.LIBRARY)
    assert theirs.shape == ours.shape == (5, 10, 10)
    for a, b in zip(theirs, ours, strict=True):  # a factor exp(logit) apart
        np.testing.assert_allclose(a / max(a.max(), 1e-9), b / max(b.max(), 1e-9), atol=1e-3)


def test_gradients_are_slopes_of_the_logit(images):
    """For a pooled network: the weight of the channel over the number of places."""
    model = network(pooled=True)
    _, gradients = both.features_and_gradients(model, images, SIGNS, "features")
    slopes = model.layers[-1].kernel.numpy()[:, 0] / 100
    np.testing.assert_allclose(gradients[0, 4, 4], slopes, rtol=1e-4)
    np.testing.assert_allclose(gradients[1, 0, 9], -slopes, rtol=1e-4)


def test_without_the_division_the_map_is_ours(images):
    for pooled in (True, False):
        model = network(pooled)
        target = (SIGNS > 0).astype(int)
        ours = grad_cam(model, images, target, "features", method="grad-cam++")
        table = both.agreement(model, images, SIGNS, "features", ours.maps, list("abcde"))
        undivided = table[table["compared"] == both.UNDIVIDED]["correlation"].dropna()
        assert len(undivided)
        assert undivided.min() > 0.9999
        assert table["formula"].dropna().min() > 0.999


def test_a_sum_over_gradients_of_both_signs_turns_the_map_round():
    """By hand: α of the negative gradient is 1 / (2 − 2.1) = −10, so that their sum is negative."""
    features = np.array([[1.0, 0.05], [0.0, 0.0]]).reshape(1, 2, 2, 1)
    gradients = np.array([[1.0, -2.0], [0.0, 0.0]]).reshape(1, 2, 2, 1)
    expected = 1 / (2 + 1.05) + 1 / (2 - 2 * 1.05)
    assert both.divisors(features, gradients)[0, 0] == pytest.approx(expected)
    assert expected < 0
    assert not both.weighted_maps(features, gradients, both.LIBRARY).any()
    kept = both.weighted_maps(features, gradients, both.POSITIVE)
    np.testing.assert_allclose(kept, features[..., 0])
    alone = both.weighted_maps(features, gradients, both.UNDIVIDED)
    np.testing.assert_allclose(alone, features[..., 0] / 3.05)


def test_blank_maps_have_no_correlation():
    first = np.stack([np.eye(3), np.zeros((3, 3)), np.eye(3)])
    found = both.correlations(first, np.stack([np.eye(3), np.eye(3), 1 - np.eye(3)]))
    np.testing.assert_allclose(found, [1, np.nan, -1])
