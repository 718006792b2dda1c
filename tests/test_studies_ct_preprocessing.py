"""Preprocessing of CT slices, each step against a closed form, a naive loop or the drawn truth."""

import numpy as np
import pandas as pd
import pytest

from covid_lab.masks import dice
from covid_lab.studies.ct_phantoms import AIR, MUSCLE, draw_slice
from covid_lab.studies.ct_preprocessing import (
    as_grey,
    clahe,
    gamma_corrected,
    laplacian_variance,
    lung_mask,
    no_lungs,
    noise_table,
    resized,
    standard_size,
    to_unit,
    too_noisy,
    without_background,
)


def test_hounsfield_units_become_fractions_of_the_bounds_and_gamma_is_a_power(rng):
    stored = np.array([[-3024, -1000, -300], [400, 3071, 50]], np.int16)
    values = to_unit(stored, (-1000, 400))
    np.testing.assert_allclose(values, [[0, 0, 0.5], [1, 1, 0.75]])
    assert values.dtype == np.float32
    image = rng.uniform(size=(5, 7)).astype(np.float32)
    np.testing.assert_allclose(gamma_corrected(image, 1.35), image**1.35, rtol=1e-5)
    for step in (lambda one: gamma_corrected(one, 2), lambda one: clahe(one, 2, (8, 8)), as_grey):
        with pytest.raises(ValueError, match="allowed: 0 to 1"):
            step(image * 300)


def test_clahe_at_the_middle_of_a_tile_is_the_tile_s_own_clipped_equalisation(rng):
    """Where no interpolation takes part, against the histogram cut and spread out by hand."""
    image = rng.beta(2, 5, (8 * 33, 8 * 33)).astype(np.float32)
    image[0, :2] = 0, 1  # nothing is left to stretch
    found = clahe(image, 2.5, (8, 8))
    for row in range(2, 6):
        for column in range(2, 6):
            tile = image[row * 33 : (row + 1) * 33, column * 33 : (column + 1) * 33]
            levels = np.floor(tile * 255.999).astype(int)
            counts = np.bincount(levels.ravel(), minlength=256).astype(float)
            limit = 2.5 / 256 * tile.size
            excess = np.maximum(counts - limit, 0).sum()
            mapped = np.cumsum(np.minimum(counts, limit) + excess / 256) / tile.size
            # scikit-image spreads the excess in whole counts
            value = mapped[levels[16, 16]]
            assert found[row * 33 + 16, column * 33 + 16] == pytest.approx(value, abs=0.03)


def test_clahe_raises_local_contrast_but_by_no_more_than_its_limit(rng):
    quiet = (0.5 + 0.01 * rng.normal(size=(256, 256))).astype(np.float32)
    quiet[:2, :2], quiet[-2:, -2:] = 0, 1
    inner = np.s_[64:-64, 64:-64]
    gain = clahe(quiet, 2.5, (8, 8))[inner].std() / quiet[inner].std()
    assert 1.5 < gain < 4  # equalisation without a limit would give about 29
    flat = np.full((40, 40), 0.3, np.float32)
    np.testing.assert_array_equal(clahe(flat, 2.5, (8, 8)), flat)


def test_the_standard_size_is_the_mean_of_the_majority():
    sizes = [(60, 60)] * 5 + [(70, 72)] * 3 + [(44, 45)] * 1 + [(124, 108)] * 1
    assert standard_size(sizes) == (60, 60)  # half of the images already
    # One more: (5 · 60 + 3 · 70) / 8, (5 · 60 + 3 · 72) / 8.
    assert standard_size([*sizes, (10, 10)]) == (64, 64)
    for equal in ([(10, 10), (20, 20)], [(20, 20), (10, 10)]):  # equally frequent: in any order
        assert standard_size(equal) == (15, 15)


def test_resizing_keeps_the_range_and_a_plane():
    plane = np.add.outer(np.linspace(0, 0.5, 60), np.linspace(0, 0.5, 80)).astype(np.float32)
    larger = resized(plane, (120, 160))
    assert larger.dtype == np.float32
    sides = [((np.arange(2 * n) + 0.5) / 2 - 0.5) * 0.5 / (n - 1) for n in plane.shape]
    inner = np.s_[4:-4, 4:-4]
    np.testing.assert_allclose(larger[inner], np.add.outer(*sides)[inner], atol=1e-4)
    np.testing.assert_array_equal(resized(plane, plane.shape), plane)
    np.testing.assert_array_equal(as_grey(plane)[..., 0], np.rint(255 * plane).astype(np.uint8))


def test_laplacian_variance_by_a_naive_loop_and_for_known_noise(rng):
    image = rng.uniform(size=(9, 8))
    padded = np.pad(image, 1, mode="reflect")
    loop = [
        padded[r - 1, c] + padded[r + 1, c] + padded[r, c - 1] + padded[r, c + 1] - 4 * padded[r, c]
        for r in range(1, 10)
        for c in range(1, 9)
    ]
    assert laplacian_variance(image) == pytest.approx(np.var(loop))
    noise = 0.1 * rng.normal(size=(400, 400))
    assert laplacian_variance(noise) == pytest.approx(20 * 0.01, rel=0.03)  # 1+1+1+1+16


def test_noisy_images_are_counted_as_published_and_removed_from_training():
    """2363 different variances give the published Table 1."""
    noise = noise_table({"full": np.arange(2363.0)}).set_index("percentile")
    published = {99: 24, 98: 48, 97: 71, 96: 95, 95: 119, 94: 142, 93: 166, 92: 189, 91: 213}
    assert noise["full_removed"].loc[list(published)].to_dict() == published
    assert noise["full_removed"].loc[90] in (236, 237)
    assert noise["full_threshold"].is_monotonic_decreasing
    table = pd.DataFrame({"name": list("abcdef"), "split": ["train"] * 4 + ["val", "test"]})
    for others in (100, 0):  # what is not training changes nothing
        variances = {"full": np.array([1.0, 2, 3, 4, others, others])}
        removed = too_noisy(table, variances, percentile=70)
        assert removed["name"].tolist() == ["d"]
        assert removed["threshold"].tolist() == [np.percentile([1, 2, 3, 4], 70)]


@pytest.mark.parametrize("touching", [False, True])
@pytest.mark.parametrize("pleural", [False, True])
def test_lungs_of_drawn_slices_with_nodule_table_and_arms(touching, pleural):
    scores, kept = [], []
    for number in range(5):
        one = draw_slice(
            np.random.default_rng([1, number]), np.random.default_rng([2, number]),
            size=256, malignancy=5 - number, touching=touching, pleural=pleural,
        )  # fmt: skip
        mask = lung_mask(one.hounsfield, one.spacing)
        scores.append(dice(mask, one.lungs))
        kept.append((mask & one.nodule).sum() / one.nodule.sum())
    assert min(scores) >= 0.95
    assert min(kept) > 0.75
    assert np.mean(kept) > 0.9


def test_a_slice_without_lungs_has_an_empty_mask_and_says_so():
    yy, xx = np.mgrid[:256, :256] - 128
    belly = np.full((256, 256), AIR)
    belly[np.hypot(xx / 100, yy / 80) < 1] = MUSCLE
    belly[np.hypot(xx - 30, yy) < 6] = AIR  # gas in the bowel
    for picture in (belly, np.full((64, 64), AIR), np.full((64, 64), MUSCLE)):
        mask = lung_mask(picture, 1.4)
        assert mask.shape == picture.shape
        assert not mask.any()
        assert "no lungs" in no_lungs(mask)
    assert no_lungs(~mask) == ""


def test_background_is_zero_outside_the_lungs_only(rng):
    image, mask = rng.uniform(0.1, 1, (6, 6)).astype(np.float32), np.zeros((6, 6), bool)
    np.testing.assert_array_equal(without_background(image, mask), image)
    mask[2:4] = True
    np.testing.assert_array_equal(without_background(image, mask), image * mask)


def test_dice_by_counting():
    first, second = np.zeros((2, 4, 4), bool)
    assert dice(first, second) == 1
    first[0], second[0, :2] = True, True
    assert dice(first, second) == pytest.approx(2 * 2 / 6)
    assert dice(first, ~first) == 0
