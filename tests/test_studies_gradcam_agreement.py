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


@pytest.mark.parametrize("pooled", [True, False])
def test_the_formula_is_that_of_tf_keras_vis_and_without_the_division_ours(rng, pooled):
    images = rng.uniform(0, 255, (5, 12, 12, 1)).astype(np.float32)
    signs = np.array([1.0, -1, 1, -1, 1])
    model = network(pooled)
    ours = grad_cam(model, images, (signs > 0).astype(int), "features", method="grad-cam++")
    table = both.agreement(model, images, signs, "features", ours.maps, list("abcde"))
    assert table["path"].tolist() == list("abcde") * len(both.COMPARED)
    assert set(table["compared"]) == set(both.COMPARED)
    assert table["formula"].dropna().min() > 0.999
    undivided = table.loc[table["compared"] == both.UNDIVIDED, "correlation"].dropna()
    assert len(undivided)
    assert undivided.min() > 0.9999


def test_a_sum_over_gradients_of_both_signs_turns_the_map_round():
    """By hand: α of the negative gradient is 1 / (2 − 2.1) = −10, so that their sum is negative.

    The features are the image, and the gradients the weights of the logit.
    """
    images = np.array([[1.0, 0.05], [0.0, 0.0]]).reshape(1, 2, 2, 1)
    pixels = keras.Input((2, 2, 1))
    x = layers.Conv2D(1, 1, use_bias=False, name="features")(pixels)
    model = keras.Model(pixels, layers.Dense(1)(layers.Flatten()(x)))
    logit = np.array([[1.0], [-2.0], [0.0], [0.0]])
    model.set_weights([np.ones((1, 1, 1, 1)), logit, np.zeros(1)])
    table = both.agreement(model, images, np.ones(1), "features", images[..., 0], ["a"])
    assert (table["negative_divisors"] == 1).all()
    found = table.set_index("compared")["correlation"]
    assert np.isnan(found[both.LIBRARY])  # blank
    features = found[[both.POSITIVE, both.UNDIVIDED]].to_numpy()
    np.testing.assert_allclose(features, 1)


def test_blank_maps_have_no_correlation():
    first = np.stack([np.eye(3), np.zeros((3, 3)), np.eye(3)])
    found = both.correlations(first, np.stack([np.eye(3), np.eye(3), 1 - np.eye(3)]))
    np.testing.assert_allclose(found, [1, np.nan, -1])
