import keras
import numpy as np
import pytest
from keras import layers

from covid_lab.explain import gradcam as lab
from covid_project.gradcam import (
    grad_cam,
    last_convolutional_layer,
    normalize_heatmaps,
    overlay,
    remove_final_activation,
    resize_heatmaps,
)
from covid_project.models import baseline_cnn, build_backbone, logits, transfer_model
from covid_project.normalization import normalization_layer


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 32, 32, 1), dtype=np.uint8)


def pooled_model(activation=None, weights=None, bias=0.0):
    """Convolution, ReLU, mean over the image, one dense layer: Grad-CAM has a closed form."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((32, 32, 1))
    x = layers.Conv2D(5, 3, padding="same", activation="relu", name="features")(inputs / 255)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(1, activation=activation, name="logit")(x))
    if weights is not None:
        model.get_layer("logit").set_weights([np.reshape(weights, (5, 1)), np.array([bias])])
    return model


WEIGHTS = np.array([0.5, -1.0, 2.0, -0.3, 0.1], np.float32)


def test_with_pooling_and_a_dense_layer_the_map_has_a_closed_form(images):
    model = pooled_model(weights=WEIGHTS)
    features = keras.Model(model.input, model.get_layer("features").output)(
        images.astype(np.float32)
    ).numpy()
    height, width, channels = features.shape[1:]
    # z = Σ_k w_k mean(A_k) + b, so ∂z/∂A_k = w_k / (h w) everywhere.
    expected = (features * WEIGHTS).sum(-1) / (height * width * channels)
    found = grad_cam(model, images, 1)
    np.testing.assert_allclose(found.raw, expected, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found.maps, normalize_heatmaps(expected), rtol=1e-3, atol=1e-5)
    assert found.layer == "features"


def test_the_class_without_an_output_has_the_opposite_map_and_score(images):
    model = pooled_model(weights=WEIGHTS)
    covid, normal = grad_cam(model, images, 1), grad_cam(model, images, 0)
    np.testing.assert_allclose(normal.raw, -covid.raw, rtol=1e-5)
    np.testing.assert_allclose(normal.scores, -logits(model, images), rtol=1e-5)
    np.testing.assert_allclose(normal.maps, normalize_heatmaps(-covid.raw), rtol=1e-4, atol=1e-6)


def test_by_default_the_predicted_class_is_explained(images):
    bias = -float(np.median(logits(pooled_model(weights=WEIGHTS), images)))
    model = pooled_model(weights=WEIGHTS, bias=bias)  # about half of the images on either side
    predicted = (logits(model, images) > 0).astype(int)
    assert 0 < predicted.sum() < len(images)
    found, named = grad_cam(model, images), grad_cam(model, images, predicted)
    np.testing.assert_array_equal(found.target, predicted)
    np.testing.assert_array_equal(found.maps, named.maps)
    assert (found.scores >= 0).all()


def test_a_final_sigmoid_is_removed_and_changes_nothing(images):
    plain, saturated = pooled_model(weights=WEIGHTS), pooled_model("sigmoid", weights=WEIGHTS)
    without = remove_final_activation(saturated)
    np.testing.assert_allclose(logits(without, images), logits(plain, images), rtol=1e-5)
    np.testing.assert_allclose(
        grad_cam(saturated, images, 1).maps, grad_cam(plain, images, 1).maps, atol=1e-5
    )
    assert remove_final_activation(plain) is plain
    activated = keras.Model(plain.input, layers.Activation("sigmoid")(plain.output))
    np.testing.assert_allclose(
        logits(remove_final_activation(activated), images), logits(plain, images), rtol=1e-5
    )
    assert saturated.layers[-1].activation is keras.activations.sigmoid  # as it was


def test_a_batch_equals_a_loop_and_any_batch_size(images):
    keras.utils.set_random_seed(3)
    model = baseline_cnn(32, normalization_layer("fixed", None), filters=4, dropout=0.2)
    batch = grad_cam(model, images, batch_size=3)
    loop = [grad_cam(model, image[None]) for image in images]
    np.testing.assert_allclose(batch.raw, np.concatenate([one.raw for one in loop]), atol=1e-7)


def test_it_agrees_with_the_labs_grad_cam(images):
    keras.utils.set_random_seed(3)
    model = baseline_cnn(32, normalization_layer("sample", None), filters=4, dropout=0.2)
    ours, theirs = grad_cam(model, images), lab.grad_cam(model, images, "predicted")
    assert ours.layer == theirs.layer
    np.testing.assert_allclose(ours.maps, theirs.maps, atol=1e-4)
    np.testing.assert_array_equal(ours.status, theirs.status)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("MobileNetV2", "out_relu"), ("ResNet50V2", "post_relu"), ("MobileNet", "conv_pw_13_relu")],
)
def test_the_last_convolutional_layer_is_the_one_after_its_activation(name, layer):
    model = transfer_model(build_backbone(name, 64, weights="random"), dropout=0.1)
    assert last_convolutional_layer(model) == layer


def test_a_model_without_feature_maps_is_refused():
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match="no convolutional layer"):
        grad_cam(model, np.zeros((1, 8, 8, 1)))


def test_blank_maps_have_a_reason(images):
    silent = pooled_model(weights=WEIGHTS)
    silent.get_layer("features").bias.assign(np.full(5, -100.0))
    assert set(grad_cam(silent, images, 1).status) == {"zero features"}
    blind = pooled_model(weights=np.zeros(5))
    assert set(grad_cam(blind, images, 1).status) == {"zero gradient"}
    against = pooled_model(weights=-np.abs(WEIGHTS))
    found = grad_cam(against, images, 1)
    assert set(found.status) == {"all negative"}
    assert not found.maps.any()


def test_bad_requests_are_refused(images):
    model = pooled_model(weights=WEIGHTS)
    with pytest.raises(ValueError, match=r"target is \[2\]; allowed: 0, 1 or None"):
        grad_cam(model, images, 2)
    two = keras.Model(model.input, layers.Dense(2)(model.get_layer("features").output[:, 0, 0]))
    with pytest.raises(ValueError, match=r"allowed: one of shape \(N, 1\)"):
        grad_cam(two, images)
    model.get_layer("logit").kernel.assign(np.full((5, 1), np.nan))
    with pytest.raises(ValueError, match="not finite"):
        grad_cam(model, images, 1)


def test_heatmaps_are_enlarged_bilinearly():
    enlarged = resize_heatmaps(np.array([[[0.0, 1.0]]]), (1, 4))
    np.testing.assert_allclose(enlarged[0, 0], [0, 0.25, 0.75, 1])


def test_the_overlay_is_the_image_plus_the_coloured_heat_times_the_weight():
    image = np.full((1, 2, 2, 1), 100, np.uint8)
    cold = overlay(image, np.zeros((1, 2, 2)))
    blue = np.array([0, 0, 127.5])  # the first colour of jet
    np.testing.assert_allclose(cold[0, 0, 0], (100 + 0.4 * blue) / 1.4, atol=1)
    with pytest.raises(ValueError, match="do not fit"):
        overlay(image, np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="allowed: 0 to 255"):
        overlay(image.astype(float) - 200, np.zeros((1, 2, 2)))
