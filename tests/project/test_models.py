from functools import cache

import keras
import numpy as np
import pytest

from covid_project import models
from covid_project.augmentation import augment
from covid_project.gradcam import grad_cam
from covid_project.models import (
    BACKBONES,
    Backbone,
    WeightsUnavailable,
    baseline_cnn,
    build_backbone,
    feature_copies,
    layer_table,
    logits,
    model_fingerprint,
    outputs,
    settle_batch_norm,
    split_at,
    transfer_head,
    transfer_model,
    unfreeze_above,
)
from covid_project.normalization import normalization_layer
from covid_project.settings import Augmentation
from covid_project.training import set_seed

SOME = Augmentation(flip=True, rotation=5, zoom=0.1, shift=0.1, brightness=0.1, contrast=0.1)
APPLICATIONS = {
    "ResNet50V2": keras.applications.resnet_v2,
    "MobileNetV2": keras.applications.mobilenet_v2,
    "MobileNet": keras.applications.mobilenet,
    "VGG19": keras.applications.vgg19,
    "ResNet50": keras.applications.resnet,
    "EfficientNetB0": keras.applications.efficientnet,
}
IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 1)).astype(np.float32)


def baseline(seed=0):
    set_seed(seed)
    return baseline_cnn(32, normalization_layer("fixed", None), filters=4, dropout=0.5)


@cache
def random_backbone(name):
    set_seed(0)
    return build_backbone(name, 32, weights="random")


@pytest.fixture
def transfer():
    backbone = random_backbone("MobileNetV2")
    backbone.trainable = False
    return transfer_model(backbone, dropout=0.2)


def test_the_baseline_is_flat_and_ends_in_one_logit():
    model = baseline()
    assert model.output_shape == (None, 1)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    assert model.layers[-1].activation is keras.activations.linear
    table = layer_table(model)
    assert {"Conv2D", "Dense", "Dropout"} <= set(table["kind"])
    assert table["parameters"].sum() == model.count_params()
    assert table.set_index("layer").loc["stem_convolution", "kernel"] == 5
    assert model_fingerprint(model) == model_fingerprint(baseline())
    assert model_fingerprint(model) != model_fingerprint(baseline(seed=1))


def test_the_transfer_model_is_flat_and_only_its_head_is_trainable(transfer):
    assert not any(isinstance(layer, keras.Model) for layer in transfer.layers)
    # dense 1280 → 64 and dense 64 → 1, with biases
    trainable = sum(w.shape.num_elements() for w in transfer.trainable_weights)
    assert trainable == 1280 * 64 + 64 + 64 + 1


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_computes_what_keras_own_does_and_can_be_cut_where_proposed(name, tmp_path):
    """With the same weights, on the channels that Keras prepares: nothing is scaled twice."""
    ours = random_backbone(name)
    whole = getattr(keras.applications, name)
    theirs = whole(include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg")
    theirs.set_weights(ours.get_weights())
    prepared = APPLICATIONS[name].preprocess_input(np.repeat(IMAGES, 3, axis=-1).copy())
    channels = keras.Model(ours.input, ours.get_layer("scaling").output)(IMAGES)
    np.testing.assert_allclose(channels, prepared, atol=1e-4)
    expected = ours(IMAGES).numpy()
    np.testing.assert_allclose(expected, theirs(prepared), rtol=1e-3, atol=1e-5)
    below, above = split_at(ours, BACKBONES[name].frozen_up_to)
    np.testing.assert_allclose(above(below(IMAGES)), expected, rtol=1e-4, atol=1e-5)
    ours.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(again(IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_a_backbone_without_batch_normalisation_is_explained():
    model = transfer_model(random_backbone("VGG19"), dropout=0.1)
    maps = grad_cam(model, IMAGES, 1).maps
    assert maps.shape == (2, 2, 2)  # its last convolutions are before the fifth pooling


def test_outputs_are_those_of_the_model_in_inference_mode(rng):
    model, images = baseline(), rng.integers(0, 256, (70, 32, 32, 1), dtype=np.uint8)
    expected = model(images.astype(np.float32), training=False)
    np.testing.assert_allclose(outputs(model, images), expected, atol=1e-5)
    np.testing.assert_allclose(logits(model, images), expected[:, 0], atol=1e-5)


def test_feature_copies_are_the_models_outputs_and_are_not_computed_again(rng, tmp_path):
    model, images = baseline(), rng.integers(0, 256, (8, 32, 32, 1), dtype=np.uint8)
    lower = keras.Model(model.input, model.get_layer("features").output)
    arguments = {"copies": 2, "amounts": SOME, "seed": 5}
    first = feature_copies(tmp_path, lower, images, **arguments)
    assert len(first) == 3
    np.testing.assert_allclose(first[0], outputs(lower, images), rtol=1e-3)  # float16
    changed = augment(images, SOME, np.array([5 + 2, 0])).numpy()
    np.testing.assert_allclose(first[2], outputs(lower, changed), rtol=2e-3, atol=1e-3)
    assert not np.allclose(first[1], first[2])
    kernel = lower.get_layer("stem_convolution").kernel
    kernel.assign(kernel * 0)
    again = feature_copies(tmp_path, lower, images, **arguments)
    np.testing.assert_array_equal(again[1], first[1])


def test_a_cut_inside_a_residual_block_is_refused(transfer):
    with pytest.raises(ValueError, match="bypasses it"):
        split_at(transfer, "block_2_expand")
    with pytest.raises(ValueError, match="No such layer: nowhere"):
        split_at(transfer, "nowhere")


def test_unfreezing_spares_what_lies_below_and_every_batchnorm():
    set_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), dtype=np.uint8)
    backbone = build_backbone("MobileNet", 32, width=0.25, weights="random")
    settle_batch_norm(backbone, images)
    model = transfer_model(backbone, dropout=0.2)
    cut = "conv_pw_11_relu"
    assert unfreeze_above(model, cut) > 0
    before = {w.path: w.numpy() for w in model.weights}
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(images.astype(np.float32), np.tile([[0.0], [1.0]], (4, 1)), verbose=0)
    above = {w.path for layer in split_at(model, cut)[1].layers for w in layer.weights}
    changed = {w.path for w in model.weights if not np.array_equal(before[w.path], w.numpy())}
    assert "conv_pw_13/kernel" in changed
    assert changed <= above
    assert not [path for path in changed if "_bn" in path]


def test_the_new_layers_alone_and_in_the_whole_model_agree(transfer):
    head = transfer_head(1280, dropout=0.2)
    split_at(transfer, "features")[1].set_weights(head.get_weights())
    features = keras.Model(transfer.input, transfer.get_layer("features").output)(IMAGES)
    np.testing.assert_allclose(transfer(IMAGES), head(features), rtol=1e-5, atol=1e-6)


def test_a_random_backbone_still_tells_images_apart(rng):
    images = rng.integers(0, 256, (16, 64, 64, 1), dtype=np.uint8)
    backbone = build_backbone("MobileNet", 64, width=0.25, weights="random")
    settle_batch_norm(backbone, images)
    features = backbone(images.astype(np.float32)).numpy()
    assert features.std(axis=0).mean() > 0.1 * features.mean()
    with pytest.raises(ValueError, match="ResNet50V2 has no width"):
        build_backbone("ResNet50V2", 32, width=0.5, weights="random")


def test_a_weights_file_can_be_named(tmp_path):
    network = keras.applications.MobileNet(
        alpha=0.25, include_top=False, weights=None, input_shape=(32, 32, 3)
    )
    path = tmp_path / "mine.weights.h5"
    network.save_weights(path)
    model = build_backbone("MobileNet", 32, width=0.25, weights=str(path))
    for ours, theirs in zip(model.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_without_weights_the_two_ways_out_are_named(monkeypatch):
    def failing_download(**_):
        raise Exception("URL fetch failure")  # as Keras does

    monkeypatch.setitem(models.BACKBONES, "MobileNet", Backbone(failing_download, ""))
    with pytest.raises(WeightsUnavailable, match="not available: URL fetch failure") as error:
        build_backbone("MobileNet", 32)
    assert ".keras/models" in str(error.value)
    assert "random" in str(error.value)
