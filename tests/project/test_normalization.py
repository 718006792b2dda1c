import keras
import numpy as np
import pytest

from covid_project.normalization import STRATEGIES, normalization_layer, pixel_statistics


@pytest.fixture
def images(rng):
    images = rng.integers(0, 256, (20, 6, 5, 1), dtype=np.uint8)
    images[:, 0, 0] = 7  # a pixel that never changes
    return images


def oracle(strategy, training, x):
    training, x = training.astype(np.float64), x.astype(np.float64)
    if strategy == "fixed":
        return x / 127.5 - 1
    if strategy == "dataset":
        return (x - training.mean()) / training.std()
    if strategy == "pixel":
        return (x - training.mean(axis=0)) / np.maximum(training.std(axis=0), 1)
    return np.stack([(image - image.mean()) / max(image.std(), 1) for image in x])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_layers_compute_their_formula(strategy, images, rng):
    x = rng.integers(0, 256, (3, 6, 5, 1), dtype=np.uint8).astype(np.float32)
    layer = normalization_layer(strategy, images)
    np.testing.assert_allclose(layer(x).numpy(), oracle(strategy, images, x), atol=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_constant_pixels_and_images_do_not_blow_up(strategy, images):
    layer = normalization_layer(strategy, images)
    assert np.abs(layer(np.full((1, 6, 5, 1), 255, np.float32)).numpy()).max() < 300


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_saved_model_normalizes_the_same(strategy, images, tmp_path):
    inputs = keras.Input((6, 5, 1))
    model = keras.Model(inputs, normalization_layer(strategy, images)(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    x = images[:4].astype(np.float32)
    np.testing.assert_array_equal(again(x), model(x))


def test_pixel_statistics_equal_numpys(images):
    mean, deviation = pixel_statistics(images)
    np.testing.assert_allclose(mean, images.mean(axis=0))
    np.testing.assert_allclose(deviation, images.std(axis=0), atol=1e-9)


def test_unknown_strategy_lists_the_known(images):
    with pytest.raises(ValueError, match="fixed, dataset, pixel, sample"):
        normalization_layer("none", images)
