"""`covid_lab.explain.gradcam` against closed forms and another library."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cam_models import SIZE, closed_form, features_of, flattened_model, pooled_model, residual_model
from keras import layers

from covid_lab.explain.gradcam import (
    METHODS,
    grad_cam,
    heatmap_function,
    last_spatial_layer,
    remove_final_activation,
    spatial_layers,
)


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(7)


@pytest.fixture
def images():
    return np.random.default_rng(3).integers(0, 256, (7, SIZE, SIZE, 1), dtype=np.uint8)


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


def test_class_0_of_a_single_logit_is_minus_class_1(images):
    model = flattened_model()
    normal, covid = grad_cam(model, images, 0), grad_cam(model, images, 1)
    assert np.abs(covid.raw).max() > 0
    np.testing.assert_array_equal(normal.raw, -covid.raw)
    np.testing.assert_array_equal(normal.scores, -covid.scores)


@pytest.mark.parametrize("classes", [1, 3])
def test_predicted_target_is_the_class_with_the_largest_score(images, classes):
    model = pooled_model(classes)
    logits = model(images.astype(np.float32)).numpy()
    if classes == 1:  # move the bias so that both classes are predicted
        model.get_layer("top").bias.assign([-np.median(logits)])
        logits = logits - np.median(logits)
        predicted = np.where(logits[:, 0] > 0, 1, 0)
        assert set(predicted) == {0, 1}
    else:
        predicted = logits.argmax(axis=1)
    heatmaps = grad_cam(model, images, "predicted")
    np.testing.assert_array_equal(heatmaps.target, predicted)
    np.testing.assert_array_equal(heatmaps.raw, grad_cam(model, images, predicted).raw)


@pytest.mark.parametrize("method", METHODS)
def test_batches_equal_single_images_and_the_last_batch_may_be_partial(images, method):
    explain = heatmap_function(flattened_model(), ["relu"], method)
    target = np.arange(len(images)) % 2
    whole = explain(images, target)["relu"]
    partial = explain(images, target, batch_size=3)["relu"]
    np.testing.assert_allclose(partial.raw, whole.raw, atol=1e-7, rtol=1e-5)
    for i in range(len(images)):
        single = explain(images[i : i + 1], target[i])["relu"]
        np.testing.assert_allclose(single.raw[0], whole.raw[i], atol=1e-7, rtol=1e-5)
        assert single.status[0] == whole.status[i]


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


def test_no_images_give_empty_heatmaps(images):
    heatmaps = grad_cam(pooled_model(), images[:0], 1)
    assert heatmaps.maps.shape == heatmaps.raw.shape == (0, 7, 7)
    assert heatmaps.scores.shape == heatmaps.target.shape == heatmaps.status.shape == (0,)


def test_sequential_equals_functional(images):
    functional, sequential = pooled_model(), pooled_model(kind="sequential")
    sequential.set_weights(functional.get_weights())
    expected, found = grad_cam(functional, images, 1), grad_cam(sequential, images, 1)
    assert found.layer == expected.layer == "features"
    np.testing.assert_array_equal(found.raw, expected.raw)


def test_uint8_equals_float32(images):
    model = flattened_model()
    np.testing.assert_array_equal(
        grad_cam(model, images, 1).raw, grad_cam(model, images.astype(np.float32), 1).raw
    )


def test_dropout_is_off_and_batch_normalisation_uses_its_moving_statistics(images):
    model = flattened_model()
    moving = model.get_layer("norm").get_weights()
    first, second = grad_cam(model, images, 1), grad_cam(model, images, 1)
    np.testing.assert_array_equal(first.raw, second.raw)
    for before, after in zip(moving, model.get_layer("norm").get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_augmentation_inside_the_model_is_off(images):
    plain = pooled_model()
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.RandomContrast(0.9)(layers.RandomTranslation(0.4, 0.4)(inputs))
    for layer in plain.layers[1:]:
        x = layer(x)
    augmented = keras.Model(inputs, x)
    np.testing.assert_allclose(
        grad_cam(augmented, images, 1).raw, closed_form(plain, images), rtol=1e-4, atol=1e-7
    )


# Removing the final activation


@pytest.mark.parametrize("kind", ["functional", "sequential"])
@pytest.mark.parametrize(("classes", "activation"), [(1, "sigmoid"), (3, "softmax")])
def test_a_final_activation_changes_nothing(images, kind, classes, activation):
    fused = pooled_model(classes, activation, kind)
    logit = pooled_model(classes, None, kind)
    logit.set_weights(fused.get_weights())
    separate = keras.Model(logit.inputs, layers.Activation(activation)(logit.outputs[0]))
    expected = grad_cam(logit, images, "predicted")
    for model in (fused, separate):
        found = grad_cam(model, images, "predicted")
        np.testing.assert_allclose(found.raw, expected.raw, atol=1e-8)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


def test_a_saturated_sigmoid_still_has_a_map(images):
    model = pooled_model(activation="sigmoid")
    kernel, _ = model.get_layer("top").get_weights()
    model.get_layer("top").set_weights([np.abs(kernel), np.array([200.0])])
    assert (model(images.astype(np.float32)).numpy() == 1).all()
    assert set(grad_cam(model, images, 1).status) == {"ok"}


def test_removing_the_final_activation_leaves_the_given_model_as_it_was(images):
    model = pooled_model(activation="sigmoid")
    values = images.astype(np.float32)
    probability, config = model(values).numpy(), model.get_config()
    logit = remove_final_activation(model)(values).numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-logit)), probability, rtol=1e-5)
    np.testing.assert_array_equal(model(values).numpy(), probability)
    assert model.get_config() == config


def test_a_nested_model_that_ends_in_a_sigmoid_is_opened(images):
    flat = pooled_model(activation="sigmoid")
    nested = keras.Sequential([keras.Input((SIZE, SIZE, 1)), layers.ReLU(name="same"), flat])
    values = images.astype(np.float32)
    probability = nested(values).numpy()
    logit = remove_final_activation(nested)(values).numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-logit)), probability, rtol=1e-5)
    assert np.ptp(logit) > 0
    scores = grad_cam(nested, images, 1, layer="same").scores
    np.testing.assert_allclose(scores, logit[:, 0], rtol=1e-5)


def test_a_model_that_ends_in_a_logit_is_returned_as_it_is():
    model = pooled_model()
    assert remove_final_activation(model) is model


# The layer


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


def test_a_backbone_in_one_piece_is_opened(images):
    flat = pooled_model()
    inputs = keras.Input((SIZE, SIZE, 1))
    backbone = keras.Model(flat.inputs, flat.get_layer("features").output, name="backbone")
    x = layers.GlobalAveragePooling2D()(backbone(inputs))
    x = layers.Dense(1, name="nested_top")(x)
    nested = keras.Model(inputs, x)
    nested.get_layer("nested_top").set_weights(flat.get_layer("top").get_weights())
    found = grad_cam(nested, images, 1)
    assert found.layer == "backbone/features"
    np.testing.assert_allclose(found.raw, closed_form(flat, images), rtol=1e-4, atol=1e-7)
    for name in ("backbone", "features"):  # short for it, where nothing else is meant
        np.testing.assert_array_equal(grad_cam(nested, images, 1, layer=name).raw, found.raw)


@pytest.mark.parametrize(
    ("backbone", "layer"),
    [(keras.applications.MobileNetV2, "out_relu"), (keras.applications.ResNet50V2, "post_relu")],
)
def test_flat_backbones_are_explained_at_their_last_activation(backbone, layer):
    inputs = keras.Input((64, 64, 1))
    x = layers.Concatenate()([inputs] * 3)
    base = backbone(include_top=False, weights=None, input_tensor=x)
    x = layers.GlobalAveragePooling2D()(base.output)
    assert last_spatial_layer(keras.Model(inputs, layers.Dense(1)(x))) == layer


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


@pytest.mark.parametrize("method", METHODS)
def test_several_layers_in_one_pass_equal_one_by_one(images, method):
    model = residual_model()
    chosen = ["out_b", "stem", "branch_a", "linear_b", "add_a"]
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


def test_an_unknown_layer_is_refused_and_the_candidates_named(images):
    with pytest.raises(ValueError, match=r"relu9.*conv.*norm.*relu.*pool"):
        grad_cam(flattened_model(), images, 1, layer="relu9")


def test_a_layer_that_is_not_spatial_is_refused(images):
    with pytest.raises(ValueError, match=r"'drop'.*'features'"):
        grad_cam(pooled_model(), images, 1, layer="drop")


def test_a_model_without_spatial_features_is_refused(images):
    inputs = keras.Input((SIZE, SIZE, 1))
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match="no spatial feature map"):
        grad_cam(model, images, 1)


@pytest.mark.parametrize(
    ("classes", "target"), [(1, 2), (1, -1), (3, 3), (3, 0.5), (1, "covid"), (3, [0] * 6 + [7])]
)
def test_a_class_that_the_model_has_not_is_refused(images, classes, target):
    with pytest.raises(ValueError, match=r"not a class of this model.*0 to"):
        grad_cam(pooled_model(classes), images, target)


def test_a_target_of_another_length_is_refused(images):
    with pytest.raises(ValueError, match=r"\(7,\)"):
        grad_cam(pooled_model(), images, [1, 0])


def test_an_unknown_method_is_refused(images):
    with pytest.raises(ValueError, match=r"grad-cam\+\+"):
        grad_cam(pooled_model(), images, 1, method="cam")


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, SIZE, SIZE, 3), (SIZE, SIZE, 1)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(16, 16, 1\)"):
        grad_cam(pooled_model(), np.zeros(shape, np.float32), 1)


def test_images_that_are_not_finite_are_named(images):
    values = images.astype(np.float32)
    values[4, 2, 3] = np.nan
    values[6, 0, 0] = np.inf
    with pytest.raises(ValueError, match=r"\[4, 6\]"):
        grad_cam(pooled_model(), values, 1, batch_size=4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("method", "layer"), [("grad-cam", "top"), ("eigen-cam", "features")])
def test_weights_that_are_not_finite_are_reported(images, method, layer, value):
    # Some processors' fused kernels give ReLU(NaN) = 0, and the maps would be finite.
    model = pooled_model()
    kernel, bias = model.get_layer(layer).get_weights()
    model.get_layer(layer).set_weights([np.full_like(kernel, value), bias])
    with pytest.raises(ValueError, match=rf"NaN or infinite weights: {layer}/kernel"):
        grad_cam(model, images, 1, method=method)


@pytest.mark.parametrize("change", [lambda x: x / 255, lambda x: x / 127.5 - 1, lambda x: x * 2.0])
def test_images_of_another_range_are_refused(images, change):
    with pytest.raises(ValueError, match=r"expected 0\.\.255"):
        grad_cam(pooled_model(), change(images), 1)


def test_a_map_of_class_scores_per_pixel_is_refused(images):
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Conv2D(2, 3, activation="relu")(inputs)
    model = keras.Model(inputs, layers.Conv2D(2, 1)(x))
    with pytest.raises(ValueError, match="expected one input"):
        grad_cam(model, images, 1)
