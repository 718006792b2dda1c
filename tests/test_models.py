import hashlib
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

from covid_project.explain.gradcam import grad_cam
from covid_project.models import (
    BACKBONES,
    RESNET18_BLOCKS,
    WeightsUnavailable,
    available_backbone,
    baseline_cnn,
    build_backbone,
    layer_table,
    mlp,
    model_fingerprint,
    parameter_counts,
    resnet18,
    shift_threshold,
    slice_cnn,
    split_at,
    transfer_head,
    transfer_model,
    unfreeze_above,
)
from covid_project.normalization import normalization_layer
from covid_project.training import set_seed


def baseline(size=32, filters=4, seed=0):
    set_seed(seed)
    return baseline_cnn(
        size, normalization_layer("fixed", np.zeros((1, 1, 1, 1))), filters=filters, dropout=0.5
    )


@pytest.fixture(scope="module")
def transfer():
    set_seed(0)
    return transfer_model(build_backbone("MobileNetV2", 32, weights="random"), dropout=0.2)


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
    last = "rgb" if BACKBONES[name].convention != "centred" else "normalization"
    channels = keras.Model(backbone.input, backbone.get_layer(last).output)(x)
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


def test_a_cut_inside_a_residual_block_is_refused(transfer):
    with pytest.raises(ValueError, match="passes it by"):
        split_at(transfer, "block_2_expand")
    with pytest.raises(ValueError, match="has no layer 'nowhere'"):
        split_at(transfer, "nowhere")


def test_unfreezing_spares_what_lies_below_and_every_batchnorm(transfer):
    set_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 1), dtype=np.uint8)
    backbone, _ = available_backbone("MobileNetV2", images, weights="random")
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
    backbone, _ = available_backbone("MobileNet", images, width=0.25, weights="random")
    features = backbone(images.astype(np.float32)).numpy()
    assert features.std(axis=0).mean() > 0.1 * features.mean()
    assert not backbone.trainable_weights


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
    with pytest.raises(WeightsUnavailable, match="Two ways out") as error:
        build_backbone("MobileNet", 224, width=0.25)
    assert "keras/models" in str(error.value)
    assert "random" in str(error.value)


def test_without_weights_the_demo_goes_on_loudly_and_the_course_stops(keras_home, server, capsys):
    images = np.zeros((2, 224, 224, 1), np.uint8)
    arguments = {"width": 0.25, "weights": "imagenet"}
    _, weights = available_backbone("MobileNet", images, without_weights="random", **arguments)
    assert weights == "random"
    assert "RANDOM" in capsys.readouterr().out
    with pytest.raises(WeightsUnavailable):
        available_backbone("MobileNet", images, without_weights="stop", **arguments)


def test_layers_and_parameters_are_counted_as_keras_counts_them():
    model = baseline()
    table = layer_table(model)
    counts = parameter_counts(model)
    assert table["parameters"].sum() == counts["parameters"] == model.count_params()
    moving = sum(2 * layer.gamma.shape[0] for layer in model.layers if hasattr(layer, "gamma"))
    assert counts["trained_parameters"] == counts["parameters"] - moving
    assert table.set_index("layer").loc["stem_convolution", "kernel"] == 5
    assert table["output"].iloc[-1] == "1"


def test_the_perceptron_is_its_matrices(rng):
    set_seed(0)
    model = mlp(8, normalization_layer("fixed", np.zeros((1, 1, 1, 1))), units=5, dropout=0.5)
    images = rng.uniform(0, 255, (3, 8, 8, 1)).astype(np.float32)
    weights = {layer.name: layer.get_weights() for layer in model.layers}
    x = (images / 127.5 - 1).reshape(3, -1) @ weights["hidden"][0]
    scale, offset, mean, variance = weights["hidden_norm"]
    x = np.maximum((x - mean) / np.sqrt(variance + 1e-3) * scale + offset, 0)
    x = np.maximum(x @ weights["dense"][0] + weights["dense"][1], 0)
    expected = x @ weights["logit"][0] + weights["logit"][1]
    np.testing.assert_allclose(model(images).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_shifted_threshold_becomes_zero(rng):
    model = baseline()
    images = rng.uniform(0, 255, (4, 32, 32, 1)).astype(np.float32)
    before = model(images).numpy()
    shift_threshold(model, 1.5)
    np.testing.assert_allclose(model(images).numpy(), before - 1.5, atol=1e-5)


@pytest.mark.parametrize("filters", [[4], [4, 6]])
@pytest.mark.parametrize("kernel", [3, 5])
def test_slice_cnn_is_flat_and_counts_as_by_hand(filters, kernel):
    model = slice_cnn(
        32,
        normalization_layer("fixed", None),
        filters=filters,
        kernel=kernel,
        dense=10,
        dropout=0.2,
    )
    assert not any(hasattr(layer, "layers") for layer in model.layers)
    assert model.output_shape == (None, 1)
    assert model.layers[-1].activation is keras.activations.linear
    expected, channels, side = 0, 1, 32
    for width in filters:
        expected += kernel**2 * channels * width + width
        channels, side = width, side // 2
    expected += side**2 * channels * 10 + 10 + 10 + 1
    assert model.count_params() == expected
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds.index("Dropout") == kinds.index("MaxPooling2D") + 1
    # Grey values go in as they are: normalisation is inside.
    assert kinds[1] == "Rescaling"


@pytest.mark.parametrize(
    ("image_size", "classes", "expected"),
    [
        (224, 1000, 11_689_512),  # He et al.'s network, as torchvision publishes its count
        (28, 10, 11_173_962),  # the one for small images, as published for CIFAR-10
    ],
)
def test_resnet18_has_the_known_number_of_parameters(image_size, classes, expected):
    model = resnet18(image_size, normalization_layer("fixed", None), classes=classes, channels=3)
    assert parameter_counts(model)["trained_parameters"] == expected


def test_the_running_statistics_of_resnet18_keep_nine_tenths_per_step(rng):
    """With few steps an epoch, slower ones are those of weights that are long gone."""
    images = rng.uniform(0, 255, (8, 28, 28, 1)).astype(np.float32)
    model = resnet18(28, normalization_layer("fixed", None), classes=2)
    stem = keras.Model(model.input, model.get_layer("stem_convolution").output)
    expected = 0.1 * stem(images).numpy().mean(axis=(0, 1, 2))
    model(images, training=True)
    np.testing.assert_allclose(
        model.get_layer("stem_norm").moving_mean.numpy(), expected, atol=1e-5
    )
    norms = [one for one in model.layers if isinstance(one, keras.layers.BatchNormalization)]
    assert {one.momentum for one in norms} == {0.9}


@pytest.mark.parametrize(
    ("image_size", "sides"),
    [(28, [28, 14, 7, 4]), (64, [32, 16, 8, 4]), (128, [32, 16, 8, 4]), (224, [56, 28, 14, 7])],
)
def test_the_blocks_of_resnet18_halve_the_image_from_stage_to_stage(image_size, sides):
    model = resnet18(image_size, normalization_layer("fixed", None), classes=2)
    shapes = [model.get_layer(name).output.shape[1:] for name in RESNET18_BLOCKS]
    expected = [(side, side, width) for side, width in zip(sides, (64, 128, 256, 512), strict=True)]
    assert shapes == [shape for shape in expected for _ in (1, 2)]
    assert model.output.shape == (None, 2)


def test_a_residual_block_adds_its_input():
    model = resnet18(28, normalization_layer("fixed", None), classes=2)
    for weight in model.get_layer("block3_2_2_norm").weights[:1]:  # the scale of what is added
        weight.assign(np.zeros(weight.shape))
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1)).astype(np.float32)
    both = keras.Model(
        model.input, [model.get_layer(name).output for name in ("block3_1", "block3_2")]
    )
    before, after = both(images, training=False)
    np.testing.assert_allclose(before, after, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"classes": 1}, "classes is 1"), ({"channels": 2}, "channels 2"), ({"size": 8}, "is 8")],
)
def test_resnet18_refuses_what_it_is_not_made_for(change, message):
    arguments = {"classes": 2, "channels": 1, "size": 28} | change
    with pytest.raises(ValueError, match=message):
        resnet18(arguments.pop("size"), normalization_layer("fixed", None), **arguments)
