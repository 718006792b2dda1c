import gzip
import time

import keras
import numpy as np
import pytest
from keras import layers

from covid_lab.studies.footprint import compiled, seconds_per_image, weight_bytes


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((64,)), layers.Dense(256), layers.Dense(1)])


def test_zeros_show_in_the_packed_size_only(model, tmp_path):
    sparse = keras.models.clone_model(model)
    weights = model.get_weights()
    limits = [np.quantile(np.abs(one), 0.8) for one in weights]
    pairs = zip(weights, limits, strict=True)
    sparse.set_weights([np.where(np.abs(one) < limit, 0, one) for one, limit in pairs])
    model.save_weights(tmp_path / "m.weights.h5")
    content = (tmp_path / "m.weights.h5").read_bytes()
    (plain, packed), (sparse_plain, sparse_packed) = weight_bytes(model), weight_bytes(sparse)
    assert plain == sparse_plain == len(content)
    assert packed == pytest.approx(len(gzip.compress(content)), rel=0.01)
    assert sparse_packed < 0.4 * packed


def test_warm_up_does_not_count():
    calls = []

    def predict(batch):
        time.sleep(0.1 if len(calls) < 3 else 0.004)
        calls.append(batch.shape)

    found = seconds_per_image(predict, np.zeros((3, 5)), 4, repeats=5)
    assert calls == [(4, 5)] * 8
    assert 0.001 <= found["low"] <= found["median"] < 0.02
    assert found["median"] <= found["high"]


def test_compiled_gives_what_the_model_gives(model, rng):
    images = rng.normal(size=(5, 64))
    np.testing.assert_allclose(compiled(model)(images), model(images), atol=1e-5)
