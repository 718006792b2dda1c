"""Features from the middle of an ImageNet network, where its weights are at hand."""

import dataclasses

import numpy as np
import pytest
from conftest import SHARED, write_images
from PIL import Image

from covid_lab.audit import network_features
from covid_lab.audit.network_features import image_features
from covid_lab.datasets import open_dataset

KERAS = SHARED / "keras"


@pytest.mark.skipif(
    not (KERAS / "models" / network_features.WEIGHTS).is_file(),
    reason="no MobileNetV2 weights at hand",
)
def test_network_features_are_the_means_of_quarters_and_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(KERAS))
    monkeypatch.setattr(network_features, "AT_ONCE", 3)
    folder = write_images(tmp_path / "set", {"train": 3, "val": 1, "test": 1}, size=64)
    dataset = open_dataset(folder, classes=None, as_found=True)
    dataset = dataclasses.replace(dataset, table=dataset.table.iloc[:6])
    features, seen = image_features(dataset, tmp_path / "cache", lambda *_: None)
    assert seen == "MobileNetV2 features"
    assert features.shape == (6, 640)

    import keras

    network = keras.applications.MobileNetV2(
        include_top=False,
        weights=str(KERAS / "models" / network_features.WEIGHTS),
        input_shape=(224, 224, 3),
    )
    grey = Image.open(folder / dataset.table["path"].iloc[5]).resize(
        (224, 224), Image.Resampling.BILINEAR
    )
    inputs = np.repeat(np.asarray(grey, np.float32)[None, ..., None], 3, axis=3) / 127.5 - 1
    outputs = [network.get_layer(name).output for name in network_features.LAYERS]
    maps = [np.asarray(part)[0] for part in keras.Model(network.input, outputs)(inputs)]
    halves = (slice(0, 7), slice(7, 14))
    expected = [part[y, x].mean((0, 1)) for part in maps for y in halves for x in halves]
    np.testing.assert_allclose(features[5], np.concatenate(expected), atol=1e-3)

    monkeypatch.setattr(
        network_features, "_quarter_means", lambda *_: 1 / 0
    )  # kept features need no network
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    again, seen = image_features(dataset, tmp_path / "cache", lambda *_: None)
    np.testing.assert_array_equal(again, features)
    assert seen == "MobileNetV2 features"
