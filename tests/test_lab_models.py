import keras
import numpy as np
import pytest

from covid_lab import models
from covid_lab.models import (
    RESNET18_BLOCKS,
    available_backbone,
    mlp,
    parameter_counts,
    resnet18,
    shift_threshold,
    slice_cnn,
)
from covid_project.models import WeightsUnavailable, baseline_cnn, build_backbone
from covid_project.normalization import normalization_layer
from covid_project.training import set_seed


def baseline():
    set_seed(0)
    return baseline_cnn(32, normalization_layer("fixed", None), filters=4, dropout=0.5)


def test_the_perceptron_is_its_matrices(rng):
    set_seed(0)
    normalization = normalization_layer("fixed", np.zeros((1, 1, 1, 1)))
    model = mlp(8, normalization, units=(5, 4), dropout=0.5)
    images = rng.uniform(0, 255, (3, 8, 8, 1)).astype(np.float32)
    weights = {layer.name: layer.get_weights() for layer in model.layers}
    x = (images / 127.5 - 1).reshape(3, -1)
    for layer in ("hidden_1", "hidden_2"):
        scale, offset, mean, variance = weights[f"{layer}_norm"]
        x = (x @ weights[layer][0] - mean) / np.sqrt(variance + 1e-3) * scale + offset
        x = np.maximum(x, 0)
    expected = x @ weights["logit"][0] + weights["logit"][1]
    np.testing.assert_allclose(model(images).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_shifted_threshold_becomes_zero(rng):
    model = baseline()
    images = rng.uniform(0, 255, (4, 32, 32, 1)).astype(np.float32)
    before = model(images).numpy()
    shift_threshold(model, 1.5)
    np.testing.assert_allclose(model(images).numpy(), before - 1.5, atol=1e-5)


@pytest.mark.parametrize(("filters", "kernel"), [([4], 5), ([4, 6], 3)])
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
    [(64, [32, 16, 8, 4]), (128, [32, 16, 8, 4])],
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


def test_a_backbone_is_frozen_and_random_only_where_that_is_allowed(rng, monkeypatch, capsys):
    def offline(name, size, *, width, weights):
        if weights != "random":
            raise WeightsUnavailable("no network")
        return build_backbone(name, size, width=width, weights=weights)

    monkeypatch.setattr(models, "build_backbone", offline)
    images = rng.integers(0, 256, (8, 32, 32, 1)).astype(np.uint8)
    with pytest.raises(WeightsUnavailable):
        available_backbone("MobileNet", images, width=0.25)
    options = {"width": 0.25, "without_weights": "random"}
    network, weights = available_backbone("MobileNet", images, **options)
    assert weights == "random"
    assert "RANDOM weights" in capsys.readouterr().out
    assert network.trainable_weights == []
    spread = network(images.astype(np.float32), training=False).numpy().std(axis=0)
    assert (spread > 0).mean() > 0.5  # the normalisation fits the images
