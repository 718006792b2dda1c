"""Heatmaps: normalisation, status and strength; and the feature maps of a layer."""

import keras
import numpy as np
import pytest
from keras import layers

from covid_lab.explain.feature_maps import feature_maps
from covid_lab.explain.heatmaps import Heatmaps

RAW = np.array([[[1.0, -4.0], [2.0, 0.0]], [[8.0, 4.0], [0.0, 2.0]], [[-1.0, 0], [0, -2]]])


def heatmaps(raw, reasons=None, **options):
    count = len(raw)
    return Heatmaps.from_raw(
        "relu", raw, np.zeros(count), np.zeros(count), reasons or {}, **options
    )


def test_each_map_is_scaled_by_its_own_maximum_which_is_its_strength():
    found = heatmaps(RAW)
    np.testing.assert_allclose(
        found.maps, [[[0.5, 0], [1, 0]], [[1, 0.5], [0, 0.25]], [[0, 0], [0, 0]]]
    )
    np.testing.assert_array_equal(found.strength, [2, 8, 0])


def test_maps_and_strength_show_other_evidence_where_it_is_given():
    raw = np.array([[[-4.0, 2.0]]])
    found = heatmaps(raw, evidence=np.abs(raw))
    np.testing.assert_array_equal(found.maps, [[[1, 0.5]]])
    np.testing.assert_array_equal(found.strength, [4])


def test_a_blank_map_is_given_the_first_reason_that_holds():
    raw = np.array([[[1.0, -2.0]], [[0, 0]], [[0, 0]], [[-1, -2]], [[0, 0]]], np.float32)
    found = heatmaps(
        raw,
        {
            "zero features": np.array([True, True, False, False, False]),
            "zero gradient": np.array([True, True, True, False, False]),
        },
    )
    blank = ["zero features", "zero gradient", "all negative", "all negative"]
    assert found.status.tolist() == ["ok", *blank]


def test_maps_that_are_not_finite_are_refused_by_layer_and_image():
    raw = np.zeros((3, 2, 2))
    raw[2, 0, 1] = np.inf
    with pytest.raises(ValueError, match=r"'relu'.*\[2\]"):
        heatmaps(raw)


def test_the_strongest_feature_maps_come_first_as_the_layer_gives_them(rng):
    network = keras.Sequential([
        keras.Input((12, 12, 1)), layers.Conv2D(5, 3, activation="relu", name="features"),
        layers.GlobalAveragePooling2D(), layers.Dense(1),
    ])  # fmt: skip
    images = rng.uniform(0, 255, (4, 12, 12, 1)).astype(np.float32)
    maps, channels = feature_maps(network, images, "features", count=3, batch_size=3)
    every = network.get_layer("features")(images).numpy()
    for own, numbers, expected in zip(maps, channels, every, strict=True):
        order = np.argsort(-np.abs(expected).mean(axis=(0, 1)), kind="stable")[:3]
        np.testing.assert_array_equal(numbers, order)
        np.testing.assert_allclose(
            own, expected[..., order].transpose(2, 0, 1), rtol=1e-5, atol=1e-4
        )
    assert feature_maps(network, images, "features")[0].shape == (4, 5, 10, 10)  # all of them
    with pytest.raises(ValueError, match="count is 0"):
        feature_maps(network, images, "features", count=0)
