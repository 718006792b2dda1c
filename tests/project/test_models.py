import hashlib
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

from covid_project.augmentation import augment
from covid_project.gradcam import grad_cam
from covid_project.models import (
    BACKBONES,
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


def baseline(size=32, filters=4, seed=0):
    set_seed(seed)
    return baseline_cnn(
        size, normalization_layer("fixed", np.zeros((1, 1, 1, 1))), filters=filters, dropout=0.5
    )


@pytest.fixture(scope="module")
def transfer():
    set_seed(0)
    backbone = build_backbone("MobileNetV2", 32, weights="random")
    backbone.trainable = False
    return transfer_model(backbone, dropout=0.2)


def nested(model):
    return [layer for layer in model.layers if isinstance(layer, keras.Model)]


@pytest.mark.parametrize("size", [32, 64, 100])
def test_the_baseline_is_flat_and_ends_in_one_logit(size):
    model = baseline(size)
    assert model.output_shape == (None, 1)
    assert not nested(model)
    assert model.layers[-1].activation is keras.activations.linear
    kinds = [type(layer).__name__ for layer in model.layers]
    assert {"Conv2D", "Dense", "Dropout"} <= set(kinds)


def test_the_transfer_model_is_flat_and_only_its_head_is_trainable(transfer):
    assert not nested(transfer)
    assert transfer.output_shape == (None, 1)
    # dense 1280 → 64 and dense 64 → 1, with biases
    trainable = sum(w.shape.num_elements() for w in transfer.trainable_weights)
    assert trainable == 1280 * 64 + 64 + 64 + 1


@pytest.mark.parametrize("name", BACKBONES)
def test_the_proposed_cut_exists_and_can_be_cut(name):
    backbone = build_backbone(name, 32, weights="random")
    below, above = split_at(backbone, BACKBONES[name].frozen_up_to)
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 1)).astype(np.float32)
    np.testing.assert_allclose(above(below(x)), backbone(x), rtol=1e-4, atol=1e-5)


APPLICATIONS = {
    "ResNet50V2": keras.applications.resnet_v2,
    "MobileNetV2": keras.applications.mobilenet_v2,
    "MobileNet": keras.applications.mobilenet,
    "VGG19": keras.applications.vgg19,
    "ResNet50": keras.applications.resnet,
    "EfficientNetB0": keras.applications.efficientnet,
}


@pytest.mark.parametrize("name", BACKBONES)
def test_the_grey_image_reaches_the_backbone_as_keras_prepares_it(name):
    backbone = build_backbone(name, 32, weights="random")
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 1)).astype(np.float32)
    channels = keras.Model(backbone.input, backbone.get_layer("scaling").output)(x)
    expected = APPLICATIONS[name].preprocess_input(np.repeat(x, 3, axis=-1).copy())
    np.testing.assert_allclose(channels, expected, atol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_whole_backbone_computes_what_keras_own_does(name):
    """With the same weights, on the channels that Keras prepares: nothing is scaled twice."""
    ours = build_backbone(name, 32, weights="random")
    whole = getattr(keras.applications, name)
    theirs = whole(include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg")
    theirs.set_weights(ours.get_weights())
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 1)).astype(np.float32)
    prepared = APPLICATIONS[name].preprocess_input(np.repeat(x, 3, axis=-1).copy())
    np.testing.assert_allclose(ours(x), theirs(prepared), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["VGG19", "ResNet50", "EfficientNetB0"])
def test_every_backbone_survives_saving_and_is_explained(name, tmp_path):
    model = transfer_model(build_backbone(name, 64, weights="random"), dropout=0.1)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    x = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 1)).astype(np.float32)
    np.testing.assert_allclose(again(x), model(x), rtol=1e-4, atol=1e-5)
    side = 4 if name == "VGG19" else 2  # its last convolutions lie before the fifth pooling
    assert grad_cam(again, x, 1).maps.shape == (2, side, side)


SOME = Augmentation(flip=True, rotation=5, zoom=0.1, shift=0.1, brightness=0.1, contrast=0.1)


def test_outputs_are_those_of_the_model_in_inference_mode(rng):
    model, images = baseline(), rng.integers(0, 256, (70, 32, 32, 1), dtype=np.uint8)
    expected = np.concatenate(
        [model(image[None].astype(np.float32), training=False) for image in images]
    )
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
    with pytest.raises(ValueError, match="has no layer 'nowhere'"):
        split_at(transfer, "nowhere")


def test_unfreezing_spares_what_lies_below_and_every_batchnorm(transfer):
    set_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 1), dtype=np.uint8)
    backbone = build_backbone("MobileNetV2", 64, weights="random")
    settle_batch_norm(backbone, images)
    model = transfer_model(backbone, dropout=0.2)
    cut = "block_12_add"
    assert unfreeze_above(model, cut) > 0
    before = {w.path: w.numpy() for w in model.weights}
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(images.astype(np.float32), np.tile([[0.0], [1.0]], (4, 1)), epochs=2, verbose=0)
    above = {w.path for layer in split_at(model, cut)[1].layers for w in layer.weights}
    for weight in model.weights:
        same = np.array_equal(before[weight.path], weight.numpy())
        is_batchnorm = "BN" in weight.path or "bn" in weight.path
        if weight.path not in above or is_batchnorm:
            assert same, weight.path
    assert not np.array_equal(
        before["block_16_project/kernel"], model.get_layer("block_16_project").kernel
    )


def test_head_alone_and_head_of_the_whole_model_agree(transfer):
    head = transfer_head(1280, dropout=0.2)
    split_at(transfer, "features")[1].set_weights(head.get_weights())
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 1)).astype(np.float32)
    features = keras.Model(transfer.input, transfer.get_layer("features").output)(x)
    np.testing.assert_allclose(transfer(x), head(features), rtol=1e-5, atol=1e-6)


def test_a_new_model_from_the_same_seed_is_the_same_and_from_another_is_not():
    assert model_fingerprint(baseline(seed=1)) == model_fingerprint(baseline(seed=1))
    assert model_fingerprint(baseline(seed=1)) != model_fingerprint(baseline(seed=2))


def test_width_is_refused_where_the_backbone_has_none():
    with pytest.raises(ValueError, match="ResNet50V2 has no width"):
        build_backbone("ResNet50V2", 32, width=0.5, weights="random")


def test_a_random_backbone_still_tells_images_apart(rng):
    images = rng.integers(0, 256, (16, 64, 64, 1), dtype=np.uint8)
    backbone = build_backbone("MobileNet", 64, width=0.25, weights="random")
    settle_batch_norm(backbone, images)
    features = backbone(images.astype(np.float32)).numpy()
    assert features.std(axis=0).mean() > 0.1 * features.mean()


# Weights: nothing outside this machine is asked. The download goes to a server on the loopback.


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    """An empty Keras cache."""
    monkeypatch.setattr(keras.src.backend.config, "_KERAS_DIR", str(tmp_path / "keras"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    (tmp_path / "keras").mkdir()  # where it is missing, Keras turns to a folder of its own
    return tmp_path / "keras"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine, where Keras now looks for MobileNet's weights."""
    folder = tmp_path / "server"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    server = HTTPServer(("127.0.0.1", 0), handler)
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr("keras.src.applications.mobilenet.BASE_WEIGHT_PATH", address)
    yield folder
    server.shutdown()


def mobilenet_weights(path, seed=3):
    """Write a file of random weights in the form that Keras downloads, and return the weights."""
    keras.utils.set_random_seed(seed)
    body = keras.applications.MobileNet(
        alpha=0.25, include_top=False, weights=None, input_shape=(224, 224, 3)
    )
    save_as_published(body, path)
    return body.get_weights()


def save_as_published(body, path):
    """Save in the old HDF5 form, in which the published weights of Keras come."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, body)


NAME = "mobilenet_2_5_224_tf_no_top.h5"


def body_weights(model):
    return [w for layer in model.layers for w in layer.get_weights()]


def test_weights_are_downloaded_into_the_cache(keras_home, server):
    expected = mobilenet_weights(server / NAME)
    model = build_backbone("MobileNet", 224, width=0.25)
    np.testing.assert_array_equal(body_weights(model)[0], expected[0])
    assert (keras_home / "models" / NAME).is_file()


def test_weights_in_the_cache_need_no_server(keras_home, monkeypatch):
    monkeypatch.setattr("keras.src.applications.mobilenet.BASE_WEIGHT_PATH", "http://127.0.0.1:9/")
    expected = mobilenet_weights(keras_home / "models" / NAME)
    model = build_backbone("MobileNet", 224, width=0.25)
    np.testing.assert_array_equal(body_weights(model)[0], expected[0])


def test_a_weights_file_can_be_named(tmp_path):
    expected = mobilenet_weights(tmp_path / "mine.h5")
    path = str(tmp_path / "mine.h5")
    model = build_backbone("MobileNet", 224, width=0.25, weights=path)
    np.testing.assert_array_equal(body_weights(model)[0], expected[0])


def test_resnet_takes_a_prepared_cache_file(keras_home, monkeypatch):
    keras.utils.set_random_seed(1)
    body = keras.applications.ResNet50V2(include_top=False, weights=None)
    name = "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5"
    save_as_published(body, keras_home / "models" / name)
    digest = hashlib.md5((keras_home / "models" / name).read_bytes()).hexdigest()
    hashes = dict(keras.src.applications.resnet.WEIGHTS_HASHES, resnet50v2=("", digest))
    monkeypatch.setattr("keras.src.applications.resnet.WEIGHTS_HASHES", hashes)
    monkeypatch.setattr("keras.src.applications.resnet.BASE_WEIGHTS_PATH", "http://127.0.0.1:9/")
    model = build_backbone("ResNet50V2", 64)
    np.testing.assert_array_equal(body_weights(model)[0], body.get_weights()[0])


def test_without_weights_the_two_ways_out_are_named(keras_home, server):
    with pytest.raises(WeightsUnavailable, match="not available") as error:
        build_backbone("MobileNet", 224, width=0.25)
    assert ".keras/models" in str(error.value)
    assert "random" in str(error.value)


def test_layers_and_parameters_are_counted_as_keras_counts_them():
    model = baseline()
    table = layer_table(model)
    assert table["parameters"].sum() == model.count_params()
    assert table.set_index("layer").loc["stem_convolution", "kernel"] == 5
    assert table["output"].iloc[-1] == "1"
