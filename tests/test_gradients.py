"""Saliency, SmoothGrad and Integrated Gradients against closed forms and naive loops."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from covid_lab.explain.gradients import integrated_gradients, saliency, smooth_grad

SIZE = 8


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(11)


@pytest.fixture
def images():
    return np.random.default_rng(3).integers(0, 256, (3, SIZE, SIZE, 1), dtype=np.uint8)


def power_model(power, classes=1, channels=1):
    """S = Σ w (I / 255)^power + b: every gradient and integral has a closed form."""
    inputs = keras.Input((SIZE, SIZE, channels))
    x = scaled = layers.Rescaling(1 / 255)(inputs)
    for _ in range(power - 1):
        x = layers.Multiply()([x, scaled])
    return keras.Model(inputs, layers.Dense(classes, name="top")(layers.Flatten()(x)))


def kernel_of(model, logit=0):
    """The weights w of `power_model` for one logit, (H, W, C) float64."""
    kernel = model.get_layer("top").get_weights()[0][:, logit].astype(np.float64)
    return kernel.reshape(model.inputs[0].shape[1:])


def curved_model(classes=1):
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(layers.Rescaling(1 / 255)(inputs))
    x = layers.BatchNormalization(moving_mean_initializer="random_normal")(x)
    x = layers.Dense(8, activation="tanh")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(classes)(layers.Dropout(0.5)(x)))


def gradient_at(model, image, logit=0):
    """∂ logit / ∂ image of one image (H, W, C), on its own."""
    image = tf.constant(image[None], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(image)
        score = model(image, training=False)[0, logit]
    return tape.gradient(score, image).numpy()[0].astype(np.float64)


# Saliency


def test_saliency_of_a_colour_image_is_the_weight_of_the_strongest_channel():
    model = power_model(1, classes=3, channels=3)
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    found = saliency(model, images, [2, 0])
    for raw, shown, logit in zip(found.raw, found.maps, (2, 0), strict=True):
        kernel = kernel_of(model, logit) / 255
        for i, j in np.ndindex(SIZE, SIZE):
            np.testing.assert_allclose(raw[i, j], max(kernel[i, j], key=abs), rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(shown, np.abs(raw) / np.abs(raw).max(), rtol=1e-4)


@pytest.mark.parametrize("classes", [1, 3])
def test_another_librarys_saliency_agrees(images, classes):
    from tf_keras_vis.saliency import Saliency

    model, logit = curved_model(classes), classes - 1
    theirs = Saliency(model, model_modifier=None)(
        lambda logits: logits[:, logit], images.astype(np.float32), normalize_map=False
    )
    found = saliency(model, images, max(logit, 1))
    np.testing.assert_allclose(np.abs(found.raw), theirs, rtol=1e-4, atol=1e-9)


# SmoothGrad


def test_smooth_grad_of_a_square_is_the_gradient_at_the_mean_point(images):
    model = power_model(2)
    found = smooth_grad(model, images, 1, samples=6, noise=0.2, seed=4)
    deviates = np.random.default_rng(4).standard_normal((6, SIZE, SIZE, 1), dtype=np.float32)
    for raw, image in zip(found.raw, images.astype(np.float64), strict=True):
        point = image + 0.2 * np.ptp(image) * deviates.mean(axis=0)
        expected = 2 * kernel_of(model) * point / 255**2
        np.testing.assert_allclose(raw, expected[..., 0], rtol=1e-3, atol=1e-8)
    still = smooth_grad(model, images, 1, samples=2, noise=0)
    np.testing.assert_allclose(still.raw, saliency(model, images, 1).raw, atol=1e-8)


def test_smooth_grad_equals_a_naive_loop(images):
    model = curved_model()
    found = smooth_grad(model, images[:2], 0, samples=5, noise=0.1, seed=9, batch_size=4)
    deviates = np.random.default_rng(9).standard_normal((5, SIZE, SIZE, 1), dtype=np.float32)
    for raw, image in zip(found.raw, images[:2].astype(np.float64), strict=True):
        sigma = 0.1 * np.ptp(image)
        gradients = [-gradient_at(model, image + sigma * noise) for noise in deviates]
        expected = np.mean(gradients, axis=0)[..., 0]
        np.testing.assert_allclose(raw, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


# Integrated Gradients


@pytest.mark.parametrize("steps", [1, 7])
def test_integrated_gradients_of_a_linear_model_are_exact(images, steps):
    model = power_model(1)
    found = integrated_gradients(model, images, 0, baseline=30, steps=steps)
    expected = -kernel_of(model) * (images.astype(np.float64) - 30) / 255
    np.testing.assert_allclose(found.raw, expected[..., 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.residual, 0, atol=1e-5)
    baseline = model(np.full((1, SIZE, SIZE, 1), 30, np.float32)).numpy()[0, 0]
    np.testing.assert_allclose(found.baseline_scores, -baseline, rtol=1e-5)


def test_integrated_gradients_of_a_square_are_exact_for_any_baseline_image_and_sum_the_channels():
    model = power_model(2, channels=3)
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    found = integrated_gradients(model, images[1:], 1, baseline=images[0], steps=3)
    square = (images[1:] / 255) ** 2 - (images[0] / 255) ** 2
    expected = (kernel_of(model) * square).sum(axis=-1)
    np.testing.assert_allclose(found.raw, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.residual, 0, atol=1e-5)


def test_the_residual_of_a_cube_is_that_of_the_midpoint_rule(images):
    """The mean of α² over m midpoints is 1/3 − 1/(12 m²), so a fraction 1/(4 m²) is missing."""
    model = power_model(3)
    for steps in (1, 2, 4):
        found = integrated_gradients(model, images, 1, steps=steps)
        cube = kernel_of(model) * (images / 255) ** 3
        expected = cube[..., 0] * (1 - 1 / (4 * steps**2))
        np.testing.assert_allclose(found.raw, expected, rtol=1e-3, atol=1e-6)
        missing = -cube.sum(axis=(1, 2, 3)) / (4 * steps**2)
        np.testing.assert_allclose(found.residual, missing, rtol=1e-2, atol=1e-5)


def test_integrated_gradients_equal_a_naive_loop_and_are_complete(images):
    model = curved_model(3)
    found = integrated_gradients(model, images[:2], [2, 0], steps=40, batch_size=16)
    for raw, image, logit in zip(found.raw, images[:2].astype(np.float64), (2, 0), strict=True):
        points = [(step + 0.5) / 40 * image for step in range(40)]
        mean = np.mean([gradient_at(model, point, logit) for point in points], axis=0)
        expected = (image * mean)[..., 0]
        np.testing.assert_allclose(raw, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    change = np.abs(found.scores - found.baseline_scores)
    assert (np.abs(found.residual) < 0.02 * change + 0.01).all()


def test_a_blank_map_of_integrated_gradients_has_its_own_reasons(images):
    model = power_model(1)
    model.get_layer("top").set_weights([-np.ones((SIZE**2, 1)), np.zeros(1)])
    shown = np.stack([0 * images[0], images[1]])
    found = integrated_gradients(model, shown, 1)
    assert found.status.tolist() == ["equals baseline", "all negative"]
    assert set(saliency(model, shown, 1).status) == {"ok"}  # magnitudes
