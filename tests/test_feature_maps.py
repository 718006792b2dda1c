import keras
import numpy as np
import pytest
from keras import layers

from covid_lab.explain.feature_maps import feature_maps


@pytest.fixture
def network():
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Conv2D(5, 3, activation="relu", name="features"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(1),
        ]
    )


def test_the_strongest_maps_come_first_as_the_layer_gives_them(network, rng):
    images = rng.uniform(0, 255, (4, 12, 12, 1)).astype(np.float32)
    maps, channels = feature_maps(network, images, "features", count=3, batch_size=3)
    every = network.get_layer("features")(images).numpy()
    for own, numbers, expected in zip(maps, channels, every, strict=True):
        order = np.argsort(-np.abs(expected).mean(axis=(0, 1)), kind="stable")[:3]
        np.testing.assert_array_equal(numbers, order)
        np.testing.assert_allclose(
            own, expected[..., order].transpose(2, 0, 1), rtol=1e-5, atol=1e-4
        )


def test_a_layer_with_fewer_maps_gives_all(network, rng):
    maps, channels = feature_maps(network, rng.uniform(0, 255, (1, 12, 12, 1)), "features")
    assert maps.shape == (1, 5, 10, 10)
    assert sorted(channels[0]) == [0, 1, 2, 3, 4]


def test_bad_arguments_are_refused(network):
    images = np.zeros((1, 12, 12, 1))
    with pytest.raises(ValueError, match="count is 0"):
        feature_maps(network, images, "features", count=0)
    with pytest.raises(ValueError, match=r"it has \['features'\]"):
        feature_maps(network, images, "conv")
