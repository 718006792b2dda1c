import keras
import numpy as np
import pytest
from keras import layers

from covid_lab.explain.quality import (
    area,
    deletion,
    faithfulness,
    impute,
    insertion,
    probability_function,
    road,
)

SIZE = 6


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, SIZE, SIZE, 1), dtype=np.uint8)


@pytest.fixture
def weights(rng):
    return rng.normal(0, 0.002, (SIZE, SIZE))


def linear(weights):
    """A "probability" that is linear in the pixels, which the functions may not mind."""
    return lambda images, target: (images[..., 0] * weights).sum(axis=(1, 2))


def ones(images):
    return np.ones(len(images), int)


# The probability


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


# Deletion and insertion


def test_deletion_of_a_model_that_sees_one_pixel_has_a_closed_form(images):
    weights = np.zeros((SIZE, SIZE))
    weights[2, 3] = 0.003
    maps = np.repeat((weights > 0).astype(np.float32)[None], 3, axis=0)
    curve = deletion(linear(weights), images, maps, ones(images), steps=SIZE**2)
    whole, gone = 0.003 * images[:, 2, 3, 0], 0.003 * images.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(curve[:, 0], whole, rtol=1e-5)
    np.testing.assert_allclose(curve[:, 1:], np.repeat(gone[:, None], SIZE**2, axis=1), rtol=1e-5)
    expected = ((whole + gone) / 2 + (SIZE**2 - 1) * gone) / SIZE**2
    np.testing.assert_allclose(area(curve), expected, rtol=1e-5)


@pytest.mark.parametrize("function", [deletion, insertion])
def test_curves_equal_a_naive_loop(images, weights, function, rng):
    maps = rng.random((3, SIZE, SIZE), np.float32)
    curve = function(
        linear(weights), images, maps, ones(images), steps=9, fill="mean", batch_size=4
    )
    for image, heat, found in zip(images[..., 0], maps, curve, strict=True):
        order = sorted(np.ndindex(SIZE, SIZE), key=lambda place: -heat[place])
        mean = np.full((SIZE, SIZE), image.mean())
        start, end = (image.astype(float), mean) if function is deletion else (mean, image)
        for step in range(10):
            picture = start.copy()
            for place in order[: 4 * step]:
                picture[place] = end[place]
            np.testing.assert_allclose(found[step], (picture * weights).sum(), atol=1e-5)


def test_insertion_ends_where_deletion_begins_and_the_blur_hides_small_things(images, weights):
    images[:] = 100
    images[:, 3, 3] = 250
    maps = np.ones((3, SIZE, SIZE), np.float32)
    case = linear(np.eye(SIZE)), images, maps, ones(images)
    down, up = deletion(*case), insertion(*case)
    np.testing.assert_allclose(up[:, -1], down[:, 0], rtol=1e-6)
    assert (up[:, 0] < up[:, -1]).all()


def test_the_perfect_ranking_has_the_smallest_area_and_the_largest_when_inserted(images, rng):
    images[:] = rng.integers(50, 200, images.shape)
    weights = rng.normal(0, 0.002, (SIZE, SIZE))
    effect = (images - images.mean(axis=(1, 2), keepdims=True))[..., 0] * weights
    perfect = effect - effect.min()
    best = area(deletion(linear(weights), images, perfect, ones(images), fill="mean"))
    most = area(insertion(linear(weights), images, perfect, ones(images), fill="mean"))
    for _ in range(20):
        maps = rng.random((3, SIZE, SIZE), np.float32)
        case = linear(weights), images, maps, ones(images), 10, "mean"
        assert (best < area(deletion(*case))).all()
        assert (most > area(insertion(*case))).all()


def test_equal_heat_is_ranked_at_random_but_always_the_same_way(images, weights):
    flat = np.ones((3, SIZE, SIZE), np.float32)
    first, again = (deletion(linear(weights), images, flat, ones(images)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    rows = np.repeat(np.arange(SIZE, 0, -1, np.float32)[:, None], SIZE, axis=1) * flat
    by_rows = deletion(linear(weights), images, rows, ones(images))
    assert np.abs(first - by_rows).max() > 1e-3


def test_blank_maps_have_no_curve(images, weights):
    maps = np.ones((3, SIZE, SIZE), np.float32)
    maps[1] = 0
    case = linear(weights), images, maps, ones(images)
    for found in (deletion(*case), insertion(*case), *road(*case)):
        np.testing.assert_array_equal(np.isnan(found).all(axis=1), [False, True, False])
        assert not np.isnan(found[[0, 2]]).any()
    assert np.isnan(area(deletion(*case))).tolist() == [False, True, False]


def test_the_class_explained_is_passed_on(images):
    def which(images, target):
        return target

    maps, target = np.ones((3, SIZE, SIZE), np.float32), np.array([0, 1, 2])
    curve = deletion(which, images, maps, target, steps=4, batch_size=2)
    np.testing.assert_array_equal(curve, np.repeat(target[:, None], 5, axis=1))
    for found in road(which, images, maps, target, fractions=(0.5,), batch_size=2):
        np.testing.assert_array_equal(found[:, 0], target)


def test_no_images_give_empty_curves(weights):
    case = linear(weights), np.zeros((0, SIZE, SIZE, 1)), np.zeros((0, SIZE, SIZE)), np.zeros(0)
    assert deletion(*case).shape == (0, 11)
    assert road(*case)[0].shape == (0, 4)


def test_an_unknown_fill_is_refused(images, weights):
    maps = np.ones((3, SIZE, SIZE), np.float32)
    with pytest.raises(ValueError, match=r"'black'.*mean.*blurred"):
        deletion(linear(weights), images, maps, ones(images), fill="black")


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


def test_a_hole_in_a_slope_is_filled_as_if_nothing_had_been_taken():
    slope = (np.arange(20)[:, None] * 3.0 + np.arange(20) * 5)[None, ..., None]
    missing = np.zeros((1, 20, 20), bool)
    missing[0, 4:15, 6:17] = True
    np.testing.assert_allclose(impute(slope, missing, noise=0), slope, atol=0.05)


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
    most, least = road(
        linear(weights), images, maps, ones(images), (0.25, 0.5), noise=0, batch_size=2
    )
    for n, (image, heat) in enumerate(zip(images[..., 0], maps, strict=True)):
        by_heat = np.sort(heat.ravel())
        for column, count in enumerate((9, 18)):
            for found, missing in (
                (most, heat >= by_heat[-count]),
                (least, heat <= by_heat[count - 1]),
            ):
                expected = (dense_imputation(image, missing) * weights).sum()
                np.testing.assert_allclose(found[n, column], expected, atol=1e-3)


@pytest.mark.parametrize("fraction", [0, 1, 1.5])
def test_road_refuses_shares_that_leave_nothing_to_do_or_nothing_at_all(images, weights, fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        road(linear(weights), images, np.ones((3, SIZE, SIZE)), ones(images), (0.5, fraction))
