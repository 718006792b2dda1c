import gzip
import time

import keras
import numpy as np
import pytest
from keras import layers

from covid_lab.studies.footprint import compiled, packed_bytes, seconds_per_image, weight_bytes


def dense():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((64,)), layers.Dense(256), layers.Dense(1)])


def test_zeros_show_in_the_packed_size_alone():
    full, sparse = dense(), dense()
    for kernel in (layer.kernel for layer in sparse.layers):
        values = kernel.numpy()
        values[np.abs(values) < np.quantile(np.abs(values), 0.8)] = 0
        kernel.assign(values)
    (plain, packed), (sparse_plain, sparse_packed) = weight_bytes(full), weight_bytes(sparse)
    assert plain == sparse_plain > full.count_params() * 4
    assert sparse_packed < 0.4 * packed


def test_packed_size_is_gzip_of_the_file(tmp_path):
    model = dense()
    model.save_weights(tmp_path / "m.weights.h5")
    content = (tmp_path / "m.weights.h5").read_bytes()
    plain, packed = weight_bytes(model)
    assert plain == len(content)
    assert packed == pytest.approx(len(gzip.compress(content)), rel=0.01)


def test_packed_bytes_can_be_unpacked_and_do_not_change(rng):
    content = rng.integers(0, 4, 5000).astype(np.uint8).tobytes()
    packed = gzip.compress(content, compresslevel=9, mtime=0)
    assert gzip.decompress(packed) == content
    assert packed_bytes(content) == len(packed) < 2500


def test_warm_up_does_not_count():
    calls = []

    def predict(batch):
        time.sleep(0.2 if len(calls) < 3 else 0.004)
        calls.append(batch.shape)

    found = seconds_per_image(predict, np.zeros((3, 5)), 4, repeats=5)
    assert calls == [(4, 5)] * 8
    assert 0.001 <= found["low"] <= found["median"] < 0.02
    assert found["median"] <= found["high"]


def test_compiled_gives_what_the_model_gives(rng):
    model, images = dense(), rng.normal(size=(5, 64))
    np.testing.assert_allclose(compiled(model)(images), model.predict(images, verbose=0), atol=1e-5)
