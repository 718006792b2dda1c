"""Grad-CAM and its variants against closed forms, written-out equations and another library."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from covid_lab.explain.features import last_spatial_layer, spatial_layers
from covid_lab.explain.gradcam import METHODS, grad_cam, heatmap_function
from covid_lab.explain.outputs import remove_final_activation

SIZE = 16


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(7)


@pytest.fixture
def images():
    return np.random.default_rng(3).integers(0, 256, (4, SIZE, SIZE, 1), dtype=np.uint8)


def pooled_model(classes=1):
    """Conv–ReLU–global pooling–dense, the case in which Grad-CAM has a closed form."""
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Rescaling(1 / 255, name="rescale")(inputs)
    x = layers.Conv2D(6, 3, strides=2, activation="relu", name="features")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.5, name="drop")(x)
    return keras.Model(inputs, layers.Dense(classes, name="top")(x))


def flattened_model(classes=1):
    """Conv–BN–ReLU–max pooling–dense: the gradient differs from place to place."""
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(4, 3, strides=2, name="conv")(x)
    x = layers.BatchNormalization(moving_mean_initializer="random_normal", name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Dense(8, activation="tanh")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(classes)(layers.Dropout(0.5)(x)))


def residual_model():
    """A stem and two residual blocks; `branch_*` lie beside a skip connection."""
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(4, 3, strides=2, activation="relu", name="stem")(x)
    for block in ("a", "b"):
        y = layers.Conv2D(4, 3, padding="same", activation="relu", name=f"branch_{block}")(x)
        y = layers.Conv2D(4, 3, padding="same", name=f"linear_{block}")(y)
        x = layers.ReLU(name=f"out_{block}")(layers.Add(name=f"add_{block}")([x, y]))
    x = layers.Dense(5, activation="tanh")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(3)(x))


def features_of(model, layer, images):
    output = model.get_layer(layer).output
    return keras.Model(model.inputs[0], output)(images.astype(np.float32), training=False).numpy()


def closed_form(model, images, logit=0):
    """Σ_k w_k A_k / (h w) for global average pooling and one dense layer, in float64."""
    features = features_of(model, "features", images).astype(np.float64)
    kernel = model.get_layer("top").get_weights()[0][:, logit].astype(np.float64)
    return (features @ kernel) / (features.shape[1] * features.shape[2])


def test_pooling_and_one_dense_layer_give_the_closed_form(images):
    model = pooled_model()
    kernel = np.array([[0.9], [-0.8], [0.7], [-0.6], [0.5], [0.4]])
    model.get_layer("top").set_weights([kernel, np.array([0.1])])
    heatmaps = grad_cam(model, images, target=1)
    expected = closed_form(model, images)
    np.testing.assert_allclose(heatmaps.raw, expected, rtol=1e-4, atol=1e-7)
    for found, signed in zip(heatmaps.maps, expected, strict=True):
        assert signed.max() > 0
        np.testing.assert_allclose(found, np.maximum(signed, 0) / signed.max(), atol=1e-5)
    assert heatmaps.layer == "features"
    assert heatmaps.maps.dtype == heatmaps.raw.dtype == heatmaps.scores.dtype == np.float32
    logits = model(images.astype(np.float32)).numpy()[:, 0]
    np.testing.assert_allclose(heatmaps.scores, logits, rtol=1e-5)


def test_each_of_several_logits_gives_its_own_closed_form(images):
    model = pooled_model(classes=4)
    target = np.arange(len(images)) % 4
    heatmaps = grad_cam(model, images, target)
    for i, logit in enumerate(target):
        expected = closed_form(model, images[i : i + 1], logit)[0]
        np.testing.assert_allclose(heatmaps.raw[i], expected, rtol=1e-4, atol=1e-7)
    logits = model(images.astype(np.float32)).numpy()
    np.testing.assert_allclose(heatmaps.scores, logits[np.arange(len(images)), target], rtol=1e-5)
    np.testing.assert_array_equal(heatmaps.target, target)


@pytest.mark.parametrize("method", ["grad-cam", "layercam"])
def test_another_library_agrees(images, method):
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.layercam import Layercam

    model = flattened_model(3)
    library = {"grad-cam": Gradcam, "layercam": Layercam}[method]
    theirs = library(model, model_modifier=None)(
        lambda logits: logits[:, 2],
        images.astype(np.float32),
        penultimate_layer="relu",
        seek_penultimate_conv_layer=False,
        activation_modifier=None,
        expand_cam=False,
        normalize_cam=False,
    )
    ours = grad_cam(model, images, 2, method=method).raw
    assert np.abs(ours).max() > 0
    np.testing.assert_allclose(ours, np.squeeze(theirs), rtol=1e-4, atol=1e-7)


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
def test_hirescam_sums_to_the_score_and_layercam_keeps_the_positive_gradients(images, target):
    model = dense_model()
    model.get_layer("top").bias.assign([0.7])
    kernel, features = dense_terms(model, images)
    sign = 1 if target == 1 else -1
    found = grad_cam(model, images, target, method="hirescam")
    expected = sign * (kernel * features).sum(axis=-1)
    np.testing.assert_allclose(found.raw, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.raw.sum(axis=(1, 2)), found.scores - sign * 0.7, atol=1e-5)
    expected = (np.maximum(sign * kernel, 0) * features).sum(axis=-1)
    found = grad_cam(model, images, target, method="layercam").raw
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


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


# Blank and flat maps


@pytest.mark.parametrize("method", METHODS)
def test_a_blank_map_says_that_the_layer_is_silent(images, method):
    model = pooled_model()
    model.get_layer("features").set_weights([np.zeros((3, 3, 1, 6)), -np.ones(6)])
    assert set(grad_cam(model, images, 1, method=method).status) == {"zero features"}


def test_a_model_that_does_not_look_at_the_image_gives_a_flat_map(images):
    model = pooled_model()
    model.get_layer("features").set_weights([np.zeros((3, 3, 1, 6)), np.ones(6)])
    model.get_layer("top").set_weights([np.full((6, 1), 0.5), np.zeros(1)])
    heatmaps = grad_cam(model, images, 1)
    np.testing.assert_array_equal(heatmaps.maps, 1)
    assert set(heatmaps.status) == {"ok"}


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


# The model, the layer and the pass


def test_batch_sizes_do_not_compile_the_model_again(images):
    passes_traced = []

    @keras.saving.register_keras_serializable("test")
    class Counting(layers.Layer):
        def call(self, x):
            passes_traced.append(x.shape)
            return x

    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Conv2D(2, 3, activation="relu", name="features")(Counting()(inputs))
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(x)))
    explain = heatmap_function(model, ["features"])
    before = len(passes_traced)
    explain(images, 1, batch_size=3)
    explain(images, 0, batch_size=2)
    assert len(passes_traced) == before + 1


def test_removing_the_final_activation_leaves_the_given_model_as_it_was(images):
    logits = pooled_model()
    model = keras.Model(logits.inputs, layers.Activation("sigmoid")(logits.outputs[0]))
    values = images.astype(np.float32)
    probability, config = model(values).numpy(), model.get_config()
    logit = remove_final_activation(model)(values).numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-logit)), probability, rtol=1e-5)
    np.testing.assert_array_equal(model(values).numpy(), probability)
    assert model.get_config() == config


def test_the_last_layer_is_the_activation_before_pooling():
    model = flattened_model()
    assert last_spatial_layer(model) == "relu"
    assert {"conv", "norm", "relu", "pool"} <= set(spatial_layers(model))
    assert spatial_layers(model)[-1] == "pool"


def test_the_last_layer_is_the_place_where_branches_meet():
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    branches = [layers.Conv2D(2, k, padding="same", activation="relu")(x) for k in (1, 3)]
    x = layers.Concatenate(name="meet")(branches)
    x = layers.GlobalAveragePooling2D()(layers.Dropout(0.1)(x))
    assert last_spatial_layer(keras.Model(inputs, layers.Dense(1)(x))) == "meet"


def test_repeating_a_grey_channel_does_not_count_as_a_meeting_of_branches():
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Concatenate(name="grey_to_colour")([inputs, inputs, inputs])
    x = layers.Conv2D(2, 3, name="linear")(x)
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(x)))
    with pytest.raises(ValueError, match="linear"):
        last_spatial_layer(model)


def test_layers_beside_a_skip_connection_get_their_true_gradient(images):
    """The oracle recomputes the rest of the network by hand, layer by layer."""
    model = residual_model()
    get = model.get_layer
    start = features_of(model, "out_a", images)
    branch = tf.constant(features_of(model, "branch_b", images))
    with tf.GradientTape() as tape:
        tape.watch(branch)
        x = tf.nn.relu(start + get("linear_b")(branch))
        z = model.layers[-1](model.layers[-2](tf.reduce_mean(x, axis=(1, 2))))[:, 2]
    gradient = tape.gradient(z, branch).numpy()
    expected = (gradient.mean(axis=(1, 2), keepdims=True) * branch.numpy()).sum(axis=-1)
    found = grad_cam(model, images, 2, layer="branch_b").raw
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("method", ["grad-cam", "eigen-cam"])
def test_several_layers_in_one_pass_equal_one_by_one(images, method):
    model = residual_model()
    chosen = ["out_b", "stem", "branch_a"]
    together = heatmap_function(model, chosen, method)(images, 1)
    assert list(together) == chosen
    for layer in chosen:
        alone = grad_cam(model, images, 1, layer, method)
        scale = np.abs(alone.raw).max()
        assert scale > 0
        np.testing.assert_allclose(together[layer].raw, alone.raw, atol=1e-5 * scale)


def test_frozen_layers_above_an_integer_image_have_a_gradient(images):
    inputs = keras.Input((SIZE, SIZE, 1), dtype="uint8")
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(6, 3, strides=2, activation="relu", name="features")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(1, name="top")(x))
    model.trainable = False
    found = grad_cam(model, images, 1).raw
    np.testing.assert_allclose(found, closed_form(model, images), rtol=1e-4, atol=1e-7)


# Bad input


def test_a_layer_that_is_not_spatial_is_refused(images):
    with pytest.raises(ValueError, match=r"'drop'.*'features'"):
        grad_cam(pooled_model(), images, 1, layer="drop")


def test_a_model_without_spatial_features_is_refused(images):
    inputs = keras.Input((SIZE, SIZE, 1))
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match="no spatial feature map"):
        grad_cam(model, images, 1)


def test_a_map_of_class_scores_per_pixel_is_refused(images):
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Conv2D(2, 3, activation="relu")(inputs)
    model = keras.Model(inputs, layers.Conv2D(2, 1)(x))
    with pytest.raises(ValueError, match="expected one input"):
        grad_cam(model, images, 1)
