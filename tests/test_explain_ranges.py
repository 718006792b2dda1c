"""The input range of a network: from its graph, labels, batch normalisation, and its scores."""

import keras
import numpy as np
import pytest
from keras import layers

from covid_lab.explain.input_range import RANGES, contradiction, conversion, find_input_range
from covid_lab.explain.network import flatten
from covid_project.normalization import SampleNormalization

SIZE = 16
CLASSES = ("a", "b")


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(11)


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (6, SIZE, SIZE, 3), np.uint8)


UNKNOWN = np.full(6, -1)


def network(preprocess=lambda x: x, bias=0.0, factor=1.0):
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 3, activation="relu")(preprocess(inputs))
    x = layers.Dense(1, name="top")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    kernel, _ = model.get_layer("top").get_weights()
    model.get_layer("top").set_weights([kernel * factor, np.array([bias])])
    return model


@pytest.mark.parametrize(
    ("preprocess", "expected"),
    [
        (layers.Rescaling(1 / 255), "0..255"),
        (layers.Rescaling(1 / 127.5, -1), "0..255"),
        (layers.Rescaling(2, -1), "0..1"),
        (layers.Rescaling(0.5, 0.5), "-1..1"),
        (lambda x: (x - 127.5) / 127.5, "0..255"),
        (lambda x: layers.RandomFlip()(layers.Rescaling(1 / 255)(x)), "0..255"),
        (layers.Normalization(mean=[120, 115, 100], variance=[3600, 3500, 3400]), "0..255"),
        (layers.Normalization(mean=[0.5, 0.5, 0.4], variance=[0.06, 0.06, 0.06]), "0..1"),
        (keras.applications.mobilenet_v2.preprocess_input, "0..255"),
        (keras.applications.densenet.preprocess_input, "0..255"),
        (keras.applications.vgg16.preprocess_input, "0..255"),
        (SampleNormalization(), "0..255"),
    ],
)
def test_preprocessing_in_the_network_decides(images, preprocess, expected):
    model = network(preprocess)
    found = find_input_range(model, images, UNKNOWN, CLASSES)
    assert (found.name, found.certain) == (expected, True)


def test_a_batch_normalisation_of_the_image_counts_as_preprocessing(images):
    norm = layers.BatchNormalization()
    model = network(norm)
    norm.set_weights([np.ones(3), np.zeros(3), np.full(3, 0.5), np.full(3, 0.08)])
    assert find_input_range(model, images, UNKNOWN, CLASSES).name == "0..1"


@pytest.mark.parametrize("trained", ["0..255", "0..1", "-1..1", "imagenet"])
def test_labels_decide_where_the_network_does_not(trained):
    """Bright images are of class b; the network is right in one range only."""
    random = np.random.default_rng(0)
    labels = np.arange(30) % 2
    images = random.integers(0, 128, (30, SIZE, SIZE, 3)) + 128 * labels[:, None, None, None]
    inputs = keras.Input((SIZE, SIZE, 3))
    model = keras.Model(
        inputs, layers.Dense(1, name="top")(layers.GlobalAveragePooling2D()(inputs))
    )
    low, high = conversion_of(np.array([96.0, 160.0]), trained)
    factor = 8 / (high - low)
    bias = np.array([-factor * (low + high) / 2])
    model.get_layer("top").set_weights([np.full((3, 1), factor / 3), bias])
    found = find_input_range(model, images.astype(np.uint8), labels, CLASSES)
    assert found.name == trained
    assert "class folders of 30 images: 1.00" in found.reason
    # Of 0..1 and standardised colours each separates bright from dark: certain is only 0..255.
    assert found.certain == (trained == "0..255")
    against = contradiction(model, images.astype(np.uint8), labels, "0..1")
    assert ("points to 0..255" in against) == found.certain


def test_labels_that_the_network_does_not_know_decide_nothing():
    labels = np.arange(20) % 2
    found = np.random.default_rng(3).integers(0, 256, (20, SIZE, SIZE, 3), np.uint8)
    model = network(factor=100)
    assert all(contradiction(model, found, labels, name) == "" for name in RANGES)


def conversion_of(grey, name):
    layer = conversion(name, 3)
    values = np.repeat(grey[:, None, None, None], 3, axis=-1).astype(np.float32)
    return np.asarray(layer(values) if layer else values).mean(axis=(1, 2, 3))


def test_batch_normalisation_remembers_what_it_saw(images):
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(8, 3)(inputs)
    features = keras.Model(inputs, x)
    norm = layers.BatchNormalization(name="norm")
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(norm(x)))
    model = keras.Model(inputs, layers.Dense(1)(x))
    seen = features.predict(images / 127.5 - 1, verbose=0)
    norm.set_weights([np.ones(8), np.zeros(8), seen.mean((0, 1, 2)), seen.var((0, 1, 2))])
    found = find_input_range(model, images, UNKNOWN, CLASSES)
    assert (found.name, found.certain) == ("-1..1", False)
    assert "batch normalisation norm" in found.reason


def test_only_one_plausible_range_is_a_guess_and_several_are_refused(images):
    grey = images[..., :1]
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Dense(1, name="top")(layers.Flatten()(inputs))
    model = keras.Model(inputs, x)
    kernel = np.random.default_rng(0).normal(size=(SIZE * SIZE, 1))
    model.get_layer("top").set_weights([kernel / 255, np.zeros(1)])
    found = find_input_range(model, grey, UNKNOWN, CLASSES)
    assert (found.name, found.certain) == ("0..255", False)
    model.get_layer("top").set_weights([kernel, np.zeros(1)])
    with pytest.raises(
        ValueError, match=r"cannot be determined.*--input-range.*0\.\.1: \d a, \d b, scor"
    ):
        find_input_range(model, grey, UNKNOWN, CLASSES)


def test_augmentation_alone_says_nothing_about_the_range(images):
    model = network(layers.RandomFlip())
    assert all(contradiction(model, images, UNKNOWN, name) == "" for name in RANGES)


@pytest.mark.parametrize("name", RANGES)
def test_conversions_are_those_of_keras(images, name):
    functions = {
        "0..255": lambda x: x,
        "0..1": lambda x: x / 255,
        "-1..1": keras.applications.mobilenet_v2.preprocess_input,
        "imagenet": keras.applications.densenet.preprocess_input,
        "caffe": keras.applications.resnet50.preprocess_input,
    }
    model = network()
    front = conversion(name, 3)
    ours = flatten(model, None, front) if front else model
    expected = model(functions[name](images.astype(np.float32)), training=False)
    found = ours(images.astype(np.float32), training=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_ranges_of_colours_are_refused_for_grey_networks():
    for name in ("imagenet", "caffe"):
        with pytest.raises(ValueError, match=r"3 colours.*1 channel"):
            conversion(name, 1)
    with pytest.raises(ValueError, match=r"'0-1'.*allowed: 0\.\.255"):
        conversion("0-1", 3)
