"""Deletion, insertion and ROAD against naive loops and the paper's equations."""

import keras
import numpy as np
import pytest
from keras import layers
from scipy.ndimage import gaussian_filter

from covid_lab.explain.quality import faithfulness
from covid_lab.explain.quality.faithfulness import (
    FRACTIONS,
    deletion,
    impute,
    insertion,
    probability_function,
    road,
)

SIZE = 6
ONES = np.ones(3, int)  # the class of three images


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, SIZE, SIZE, 1), dtype=np.uint8)


@pytest.fixture
def weights(rng):
    return rng.normal(0, 0.002, (SIZE, SIZE))


def linear(weights):
    """A "probability" that is linear in the pixels, which the functions may not mind."""
    return lambda images, target: (images[..., 0] * weights).sum(axis=(1, 2))


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_one_logit_gives_the_sigmoid_of_the_class_score(images, activation):
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 1)),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(1, activation=activation),
        ]
    )
    logits = model(images.astype(np.float32)).numpy()[:, 0].astype(float)
    expected = logits if activation else 1 / (1 + np.exp(-logits))
    found = probability_function(model)(images, np.array([1, 0, 1]))
    np.testing.assert_allclose(found, [expected[0], 1 - expected[1], expected[2]], rtol=1e-5)


def test_several_logits_give_the_softmax(images):
    model = keras.Sequential(
        [keras.Input((SIZE, SIZE, 1)), layers.Rescaling(0.01), layers.Flatten(), layers.Dense(3)]
    )
    exponentials = np.exp(model(images.astype(np.float32)).numpy().astype(float))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    found = probability_function(model)(images, np.array([2, 0, 1]))
    np.testing.assert_allclose(found, expected[[0, 1, 2], [2, 0, 1]], rtol=1e-5)


@pytest.mark.parametrize("function", [deletion, insertion])
def test_curves_equal_a_naive_loop(images, weights, function, rng):
    maps = rng.random((3, SIZE, SIZE), np.float32)
    curve = function(linear(weights), images, maps, ONES, steps=9, batch_size=4)
    blurred = gaussian_filter(images[..., 0].astype(float), (0, 0.1 * SIZE, 0.1 * SIZE))
    for image, blur, heat, found in zip(images[..., 0], blurred, maps, curve, strict=True):
        order = sorted(np.ndindex(SIZE, SIZE), key=lambda place: -heat[place])
        mean = np.full((SIZE, SIZE), image.mean())
        start, end = (image.astype(float), mean) if function is deletion else (blur, image)
        for step in range(10):
            picture = start.copy()
            for place in order[: 4 * step]:
                picture[place] = end[place]
            np.testing.assert_allclose(found[step], (picture * weights).sum(), atol=1e-5)


def test_the_perfect_ranking_has_the_smallest_area_and_the_largest_when_inserted(images, rng):
    images[:] = rng.integers(50, 200, images.shape)
    weights = rng.normal(0, 0.002, (SIZE, SIZE))
    mean = images.mean(axis=(1, 2), keepdims=True)
    blurred = gaussian_filter(images.astype(float), (0, 0.1 * SIZE, 0.1 * SIZE, 0))
    for function, filled, sign in ((deletion, mean, 1), (insertion, blurred, -1)):
        effect = (images - filled)[..., 0] * weights
        best = function(linear(weights), images, effect - effect.min(), ONES)
        for _ in range(10):
            other = function(linear(weights), images, rng.random(effect.shape), ONES)
            assert (sign * best.sum(axis=1) < sign * other.sum(axis=1)).all()


def test_equal_heat_is_ranked_at_random_but_always_the_same_way(images, weights):
    flat = np.ones((3, SIZE, SIZE), np.float32)
    first, again = (deletion(linear(weights), images, flat, ONES) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    rows = np.repeat(np.arange(SIZE, 0, -1, np.float32)[:, None], SIZE, axis=1) * flat
    assert np.abs(first - deletion(linear(weights), images, rows, ONES)).max() > 1e-3


def test_blank_maps_and_no_images_have_no_curve(images, weights):
    maps = np.ones((3, SIZE, SIZE), np.float32)
    maps[1] = 0
    case = linear(weights), images, maps, ONES
    for found in (deletion(*case), insertion(*case), *road(*case)):
        np.testing.assert_array_equal(np.isnan(found).all(axis=1), [False, True, False])
        assert not np.isnan(found[[0, 2]]).any()
    case = linear(weights), images[:0], maps[:0], ONES[:0]
    assert deletion(*case).shape == (0, 11)
    assert road(*case)[0].shape == (0, 4)


def test_the_class_explained_is_passed_on(images):
    maps, target = np.ones((3, SIZE, SIZE), np.float32), np.array([0, 1, 2])
    for curve in (
        deletion(lambda images, target: target, images, maps, target, steps=4, batch_size=2),
        *road(lambda images, target: target, images, maps, target, batch_size=2),
    ):
        np.testing.assert_array_equal(curve - target[:, None], 0)


# ROAD


def dense_imputation(image, missing):
    """The paper's linear equations of one channel, written out and solved as they stand."""
    places = [tuple(place) for place in np.argwhere(missing)]
    matrix, right = np.zeros((len(places), len(places))), np.zeros(len(places))
    for row, (i, j) in enumerate(places):
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                there = i + di, j + dj
                if (di, dj) == (0, 0) or not all(
                    0 <= k < side for k, side in zip(there, image.shape, strict=True)
                ):
                    continue
                weight = 1 / 6 if di == 0 or dj == 0 else 1 / 12
                matrix[row, row] += weight
                if missing[there]:
                    matrix[row, places.index(there)] -= weight
                else:
                    right[row] += weight * image[there]
    filled = image.astype(float)
    filled[missing] = np.linalg.solve(matrix, right)
    return filled


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_imputed_pixels_solve_the_papers_equations(rng, share):
    images = rng.integers(0, 256, (3, 9, 7, 2), dtype=np.uint8)
    missing = rng.random((3, 9, 7)) < share
    missing[:, 4, 2] = False
    missing[2, :, :5] = True  # a hole at the edge
    missing[2, 3, 6] = False
    found = impute(images, missing, noise=0)
    for n in range(3):
        for channel in range(2):
            expected = dense_imputation(images[n, ..., channel], missing[n])
            np.testing.assert_allclose(found[n, ..., channel], expected, atol=0.02)
    assert found.dtype == np.float32


def test_large_images_are_imputed_on_a_coarser_grid_with_nearly_the_same_result(monkeypatch, rng):
    y, x = np.mgrid[:130, :121] / 130
    images = (120 + 60 * np.sin(5 * x) + 40 * np.cos(4 * y))[None, ..., None]
    missing = np.zeros((1, 130, 121), bool)
    missing[0, 20:75, 30:100] = True
    missing[0] |= rng.random((130, 121)) < 0.3
    coarse = impute(images, missing, noise=0)
    np.testing.assert_array_equal(coarse[~missing], images[~missing].astype(np.float32))
    monkeypatch.setattr(faithfulness, "IMPUTED_SIDE", 200)
    exact = impute(images, missing, noise=0)
    assert np.abs(exact - images).max() > 10  # the hole is large enough to matter
    assert np.abs(coarse - exact).mean() < 1
    assert np.abs(coarse - exact).max() < 5


def test_noise_has_the_stated_deviation_and_stays_in_the_range_and_off_known_pixels():
    images = np.full((2, 60, 60, 1), 100, np.uint8)
    images[1] = 255
    missing = np.zeros((2, 60, 60), bool)
    missing[:, 5:55, 5:55] = True
    found = impute(images, missing, noise=8, seed=3)
    np.testing.assert_array_equal(found[~missing], images[~missing])
    noise = found[0][missing[0]] - 100
    assert abs(noise.mean()) < 4 * 8 / 50
    assert abs(noise.std() - 8) < 0.5
    assert found.max() == 255
    np.testing.assert_array_equal(found, impute(images, missing, noise=8, seed=3))
    assert (found != impute(images, missing, noise=8, seed=4)).any()


def test_an_image_without_any_pixel_left_is_refused(images):
    with pytest.raises(ValueError, match="no pixel left"):
        impute(images, np.ones((3, SIZE, SIZE), bool))


def test_road_removes_the_most_or_the_least_relevant_pixels(images, weights, rng):
    maps = rng.random((3, SIZE, SIZE), np.float32)
    found = road(linear(weights), images, maps, ONES, seed=2, batch_size=3)
    by_heat = np.sort(maps.reshape(3, -1), axis=1)[:, :, None]
    for column, fraction in enumerate(FRACTIONS):
        count = round(fraction * SIZE**2)
        for values, missing in zip(
            found,
            (maps >= by_heat[:, -count][:, None], maps <= by_heat[:, count - 1][:, None]),
            strict=True,
        ):
            expected = linear(weights)(impute(images, missing, seed=2), ONES)
            np.testing.assert_allclose(values[:, column], expected, atol=1e-4)
