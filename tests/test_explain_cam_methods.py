"""The variants of Grad-CAM against their equations and another library; blank maps."""

import keras
import numpy as np
import pytest
from cam_models import SIZE, closed_form, features_of, flattened_model, pooled_model
from keras import layers

from covid_lab.explain.gradcam import (
    METHODS,
    grad_cam,
)


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(7)


@pytest.fixture
def images():
    return np.random.default_rng(3).integers(0, 256, (7, SIZE, SIZE, 1), dtype=np.uint8)


# Grad-CAM++, and another library


@pytest.mark.parametrize("target", [0, 1])
def test_grad_cam_plus_plus_equals_equation_19_written_out(target):
    """The derivatives of Y = exp(z) for a dense layer on the features, in float64 and loops."""
    inputs = keras.Input((6, 6, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(3, 3, activation="relu", name="features")(x)
    model = keras.Model(inputs, layers.Dense(1, name="top")(layers.Flatten()(x)))
    images = np.random.default_rng(0).uniform(0, 255, (2, 6, 6, 1)).astype(np.float32)
    found = grad_cam(model, images, target, method="grad-cam++")

    sign = 1 if target == 1 else -1
    kernel, bias = (w.astype(np.float64) for w in model.get_layer("top").get_weights())
    gradient = sign * kernel.reshape(4, 4, 3)
    for n, features in enumerate(features_of(model, "features", images).astype(np.float64)):
        score = (gradient * features).sum() + sign * bias[0]
        expected = np.zeros((4, 4))
        for k in range(3):
            total = sum(features[a, b, k] for a in range(4) for b in range(4))
            weight = 0.0
            for i in range(4):
                for j in range(4):
                    first = np.exp(score) * gradient[i, j, k]
                    second = np.exp(score) * gradient[i, j, k] ** 2
                    third = np.exp(score) * gradient[i, j, k] ** 3
                    alpha = second / (2 * second + total * third)
                    weight += alpha * max(first, 0)
            expected += weight * features[:, :, k]
        np.testing.assert_allclose(found.raw[n], expected / np.exp(score), rtol=1e-4)
        np.testing.assert_allclose(found.maps[n], expected / expected.max(), rtol=1e-4)


def test_grad_cam_plus_plus_stays_finite_where_exp_would_overflow(images):
    model = pooled_model()
    kernel, bias = model.get_layer("top").get_weights()
    model.get_layer("top").set_weights([np.abs(kernel) * 1e5, bias])
    heatmaps = grad_cam(model, images, 1, method="grad-cam++")
    assert heatmaps.scores.min() > 1000
    assert set(heatmaps.status) == {"ok"}


@pytest.mark.parametrize("classes", [1, 3])
def test_another_library_agrees(images, classes):
    from tf_keras_vis.gradcam import Gradcam

    model = flattened_model(classes)
    target = 1 if classes == 1 else 2
    theirs = Gradcam(model, model_modifier=None)(
        lambda logits: logits[:, 0 if classes == 1 else target],
        images.astype(np.float32),
        penultimate_layer="relu",
        seek_penultimate_conv_layer=False,
        activation_modifier=None,
        expand_cam=False,
        normalize_cam=False,
    )
    ours = grad_cam(model, images, target).raw
    assert np.abs(ours).max() > 0
    np.testing.assert_allclose(ours, np.squeeze(theirs), rtol=1e-4, atol=1e-7)


# HiResCAM, LayerCAM, Eigen-CAM


def dense_model():
    """One dense layer on the features: the gradient is its kernel, place by place."""
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(3, 3, strides=3, activation="relu", name="features")(x)
    return keras.Model(inputs, layers.Dense(1, name="top")(layers.Flatten()(x)))


def dense_terms(model, images):
    """Kernel (h, w, K) and features (N, h, w, K) in float64."""
    features = features_of(model, "features", images).astype(np.float64)
    kernel = model.get_layer("top").get_weights()[0].astype(np.float64)
    return kernel.reshape(features.shape[1:]), features


@pytest.mark.parametrize("target", [0, 1])
def test_hirescam_is_gradient_times_feature_and_sums_to_the_score(images, target):
    model = dense_model()
    model.get_layer("top").bias.assign([0.7])
    kernel, features = dense_terms(model, images)
    sign = 1 if target == 1 else -1
    found = grad_cam(model, images, target, method="hirescam")
    expected = sign * (kernel * features).sum(axis=-1)
    np.testing.assert_allclose(found.raw, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.raw.sum(axis=(1, 2)), found.scores - sign * 0.7, atol=1e-5)


def test_hirescam_equals_grad_cam_where_pooling_makes_all_gradients_equal(images):
    model = pooled_model()
    np.testing.assert_allclose(
        grad_cam(model, images, 1, method="hirescam").raw, closed_form(model, images), atol=1e-7
    )


@pytest.mark.parametrize("target", [0, 1])
def test_layercam_keeps_the_positive_gradients(images, target):
    model = dense_model()
    kernel, features = dense_terms(model, images)
    gradient = kernel if target == 1 else -kernel
    expected = (np.where(gradient > 0, gradient, 0) * features).sum(axis=-1)
    found = grad_cam(model, images, target, method="layercam").raw
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_another_librarys_layercam_agrees(images):
    from tf_keras_vis.layercam import Layercam

    model = flattened_model()
    theirs = Layercam(model, model_modifier=None)(
        lambda logits: logits[:, 0],
        images.astype(np.float32),
        penultimate_layer="relu",
        seek_penultimate_conv_layer=False,
        activation_modifier=None,
        expand_cam=False,
        normalize_cam=False,
    )
    ours = grad_cam(model, images, 1, method="layercam").raw
    assert np.abs(ours).max() > 0
    np.testing.assert_allclose(ours, np.squeeze(theirs), rtol=1e-4, atol=1e-7)


def test_eigen_cam_is_the_projection_on_the_largest_eigenvector(images):
    """The oracle diagonalises AᵀA in float64 instead of decomposing A."""
    model = flattened_model()
    for layer in ("relu", "norm"):  # features without, and with, negative values
        found = grad_cam(model, images, 1, layer, method="eigen-cam")
        for raw, features in zip(found.raw, features_of(model, layer, images), strict=True):
            matrix = features.reshape(-1, features.shape[-1]).astype(np.float64)
            _, vectors = np.linalg.eigh(matrix.T @ matrix)
            projected = matrix @ vectors[:, -1]
            projected *= np.sign(projected.sum())
            expected = projected.reshape(raw.shape)
            np.testing.assert_allclose(raw, expected, atol=1e-4 * np.abs(expected).max())
            if layer == "relu":
                assert raw.min() > -1e-6


def test_eigen_cam_knows_no_class(images):
    model = flattened_model()
    normal, covid = (grad_cam(model, images, target, method="eigen-cam") for target in (0, 1))
    np.testing.assert_array_equal(normal.raw, covid.raw)
    np.testing.assert_array_equal(normal.scores, -covid.scores)


# Blank and flat maps


@pytest.mark.parametrize("method", METHODS)
def test_a_blank_map_says_that_the_layer_is_silent(images, method):
    model = pooled_model()
    model.get_layer("features").set_weights([np.zeros((3, 3, 1, 6)), -np.ones(6)])
    heatmaps = grad_cam(model, images, 1, method=method)
    assert set(heatmaps.status) == {"zero features"}
    assert not heatmaps.maps.any()


def test_layercam_is_blank_where_all_gradients_are_negative(images):
    model = pooled_model()
    kernel, bias = model.get_layer("top").get_weights()
    model.get_layer("top").set_weights([-np.abs(kernel), bias])
    heatmaps = grad_cam(model, images, 1, method="layercam")
    assert set(heatmaps.status) == {"all negative"}


def test_a_model_that_does_not_look_at_the_image_gives_a_flat_map(images):
    model = pooled_model()
    model.get_layer("features").set_weights([np.zeros((3, 3, 1, 6)), np.ones(6)])
    model.get_layer("top").set_weights([np.full((6, 1), 0.5), np.zeros(1)])
    heatmaps = grad_cam(model, images, 1)
    np.testing.assert_array_equal(heatmaps.maps, 1)
    assert set(heatmaps.status) == {"ok"}


def test_a_blank_map_says_that_all_evidence_is_against_the_class(images):
    model = pooled_model()
    kernel, bias = model.get_layer("top").get_weights()
    model.get_layer("top").set_weights([-np.abs(kernel), bias])
    blank, opposite = grad_cam(model, images, 1), grad_cam(model, images, 0)
    assert set(blank.status) == {"all negative"}
    assert not blank.maps.any()
    assert blank.raw.min() < 0
    assert set(opposite.status) == {"ok"}


@pytest.mark.parametrize("method", ["grad-cam", "grad-cam++"])
def test_a_blank_map_says_that_the_score_does_not_react(images, method):
    model = pooled_model()
    model.get_layer("top").set_weights([np.zeros((6, 1)), np.ones(1)])
    heatmaps = grad_cam(model, images, 1, method=method)
    assert set(heatmaps.status) == {"zero gradient"}
    assert not heatmaps.maps.any()


def test_status_is_given_image_by_image():
    """One channel sees bright images, the other dark ones; they speak for opposite classes."""
    model = pooled_model()
    kernel = np.zeros((3, 3, 1, 6))
    kernel[..., 0], kernel[..., 1] = 1, -1
    model.get_layer("features").set_weights([kernel, np.array([-4.5, 4.5, 0, 0, 0, 0])])
    model.get_layer("top").set_weights([np.array([[1.0], [-1], [0], [0], [0], [0]]), np.zeros(1)])
    images = np.stack([np.full((SIZE, SIZE, 1), value, np.uint8) for value in (250, 5)])
    assert grad_cam(model, images, 1).status.tolist() == ["ok", "all negative"]
    assert grad_cam(model, images, 0).status.tolist() == ["all negative", "ok"]
