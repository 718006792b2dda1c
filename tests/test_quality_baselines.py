import keras
import numpy as np
import pytest
from keras import layers
from scipy.ndimage import correlate

from covid_lab.explain.quality import BASELINES, baseline, baseline_maps


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, 12, 10, 1), dtype=np.uint8)


@pytest.mark.parametrize("kind", BASELINES)
def test_maps_have_the_images_size_and_1_as_their_maximum(images, kind):
    maps = baseline_maps(images, kind)
    assert maps.shape == (3, 12, 10)
    assert maps.dtype == np.float32
    assert maps.min() >= 0
    np.testing.assert_array_equal(maps.max(axis=(1, 2)), 1)


def test_random_maps_depend_on_seed_and_image_number_alone(images):
    maps = baseline_maps(images, "random", seed=4)
    np.testing.assert_array_equal(maps[:2], baseline_maps(255 - images[:2], "random", seed=4))
    assert (maps[0] != maps[1]).mean() > 0.9
    assert (maps != baseline_maps(images, "random", seed=5)).mean() > 0.9


def test_random_maps_are_uniform():
    values = baseline_maps(np.zeros((4, 64, 64, 1)), "random").ravel()
    np.testing.assert_allclose(np.quantile(values, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02)


def test_the_gaussian_is_centred_with_a_quarter_of_each_side_as_its_deviation(images):
    found = baseline_maps(images, "centred Gaussian")[2]
    y, x = np.mgrid[:12, :10]
    bell = np.exp(-(((y - 5.5) / 3) ** 2 + ((x - 4.5) / 2.5) ** 2) / 2)
    np.testing.assert_allclose(found, bell / bell.max(), rtol=1e-5)


def test_edges_are_sobels_magnitude_of_the_mean_over_the_channels(rng):
    images = rng.integers(0, 256, (2, 9, 9, 3), dtype=np.uint8)
    kernel = np.outer([1, 2, 1], [1, 0, -1])
    for image, found in zip(images, baseline_maps(images, "edges"), strict=True):
        grey = image.mean(axis=-1)
        magnitude = np.hypot(correlate(grey, kernel), correlate(grey, kernel.T))
        np.testing.assert_allclose(found, magnitude / magnitude.max(), rtol=1e-4, atol=1e-6)


def test_a_constant_image_has_no_edges_and_the_map_is_blank_with_a_status():
    images = np.stack([np.full((8, 8, 1), 90), np.arange(64).reshape(8, 8, 1)])
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(1)])
    found = baseline("edges")(model, images, 1)
    assert not found.maps[0].any()
    assert found.status[0] != "ok"
    assert found.status[1] == "ok"
    assert found.layer == "pixels"
    assert np.isnan(found.scores).all()
    np.testing.assert_array_equal(found.target, 1)


def test_an_unknown_baseline_is_refused(images):
    with pytest.raises(ValueError, match=r"'canny'.*random.*edges"):
        baseline_maps(images, "canny")
