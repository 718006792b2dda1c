"""Where the heat is, against masks drawn by hand and real ones; and the maps of no model."""

import io
import zipfile

import keras
import numpy as np
import pytest
from conftest import SHARED
from keras import layers
from PIL import Image
from scipy.ndimage import correlate, gaussian_filter

from covid_lab.explain.quality.baselines import baseline
from covid_lab.explain.quality.localisation import (
    box_masks,
    energy_inside,
    iou_at_otsu,
    pointing_game,
)
from covid_lab.explain.quality_terms import BASELINES
from covid_lab.statistics import mean_interval

MEASURES = (energy_inside, pointing_game, iou_at_otsu)


def baseline_maps(images, kind, seed=0):
    inputs = keras.Input(images.shape[1:])
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(inputs)))
    return baseline(kind, seed)(model, images, 1).maps


def archive(name):
    path = SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"{name} is not at hand (../shared/data)")
    return zipfile.ZipFile(path)


def grey(folder, name, size=128):
    with Image.open(io.BytesIO(folder.read(name))) as image:
        return np.asarray(image.convert("L").resize((size, size), Image.Resampling.BILINEAR))


@pytest.fixture
def masks(rng):
    masks = np.zeros((4, 20, 16), bool)
    for mask, (top, left) in zip(masks, rng.integers(0, 10, (4, 2)), strict=True):
        mask[top : top + 7, left : left + 5] = True
    return masks


@pytest.mark.parametrize("measure", MEASURES)
def test_a_map_that_is_the_mask_is_perfect_and_one_beside_it_is_worthless(masks, measure):
    np.testing.assert_array_equal(measure(masks.astype(np.float32), masks), 1)
    np.testing.assert_array_equal(measure((~masks).astype(np.float32), masks), 0)


@pytest.mark.parametrize("measure", MEASURES)
def test_nothing_is_said_of_blank_maps_and_empty_masks(masks, measure):
    maps = masks.astype(np.float32)
    maps[1] = 0
    masks[2] = False
    assert np.isnan(measure(maps, masks)).tolist() == [False, True, True, False]


def test_energy_is_the_share_of_the_heat(rng):
    maps, masks = rng.random((3, 5, 6), np.float32), rng.random((3, 5, 6)) < 0.4
    for found, heat, mask in zip(energy_inside(maps, masks), maps, masks, strict=True):
        inside = sum(heat[i, j] for i in range(5) for j in range(6) if mask[i, j])
        np.testing.assert_allclose(found, inside / heat.sum(), rtol=1e-5)


def test_a_map_that_is_the_same_everywhere_stands_at_chance(masks):
    maps = np.ones(masks.shape, np.float32)
    share = masks.mean(axis=(1, 2))
    np.testing.assert_allclose(energy_inside(maps, masks), share)
    np.testing.assert_allclose(pointing_game(maps, masks), share)
    assert np.isnan(iou_at_otsu(maps, masks)).all()  # it has no threshold


def test_the_tolerance_is_a_distance_in_pixels():
    masks = np.zeros((1, 9, 9), bool)
    masks[0, 4, 4] = True
    for place, distance in (((4, 6), 2), ((6, 6), np.sqrt(8)), ((4, 4), 0)):
        maps = np.full((1, 9, 9), 0.1, np.float32)
        maps[0][place] = 1
        assert pointing_game(maps, masks, tolerance=distance + 1e-6) == 1
        if distance:
            assert pointing_game(maps, masks, tolerance=distance - 1e-6) == 0


def test_iou_counts_pixels_above_the_threshold_that_parts_them_best(rng):
    masks = np.zeros((1, 10, 10), bool)
    masks[0, :, :5] = True
    maps = 0.1 * rng.random((1, 10, 10), np.float32)
    maps[0, :, 3:6] += 0.9  # 30 hot pixels, of which 20 lie inside the 50
    np.testing.assert_allclose(iou_at_otsu(maps, masks), 20 / 60)


def test_small_maps_are_enlarged_to_the_masks():
    maps = np.zeros((1, 4, 4), np.float32)
    maps[0, 1, 2] = 1
    masks = np.zeros((1, 32, 32), bool)
    masks[0, 8:16, 16:24] = True
    assert pointing_game(maps, masks) == 1
    # Bilinear: half of the heat in each direction stays within the place's own square, 3/4 of it.
    np.testing.assert_allclose(energy_inside(maps, masks), (3 / 4) ** 2, atol=0.01)


def test_boxes_cover_the_pixels_whose_centres_they_hold():
    boxes = [[(0.25, 0.5, 0.75, 1.0)], [], [(0.0, 0.0, 0.1, 0.1), (0.9, 0.9, 1.0, 1.0)]]
    masks = box_masks(boxes, (4, 8))
    expected = np.zeros((4, 8), bool)
    expected[2:, 2:6] = True
    np.testing.assert_array_equal(masks[0], expected)
    assert not masks[1].any()
    assert np.argwhere(masks[2]).tolist() == [[0, 0], [3, 7]]  # smaller than a pixel, not lost


@pytest.mark.parametrize("box", [(0.5, 0, 0.5, 1), (-0.1, 0, 1, 1), (0, 0.4, 1, 1.2)])
def test_boxes_without_extent_or_out_of_the_image_are_refused(box):
    with pytest.raises(ValueError, match="expected 0 ≤ left < right ≤ 1"):
        box_masks([[box]], (4, 4))


@pytest.mark.parametrize("shape", [(3, 20, 16), (4, 20)])
def test_masks_that_do_not_fit_are_refused(masks, shape):
    with pytest.raises(ValueError, match="do not fit"):
        energy_inside(np.ones((4, 20, 16), np.float32), np.ones(shape, bool))
    with pytest.raises(ValueError, match="of type bool"):
        energy_inside(np.ones((4, 20, 16), np.float32), masks.astype(np.uint8))


# Real images


def test_lesion_boxes_of_ct_slices():
    with archive("deeplesion_samples.zip") as folder:
        names = sorted(name for name in folder.namelist() if name.endswith(".tru"))
        # One line per lesion: its type, then left, top, right, bottom as fractions.
        boxes = [
            np.array(folder.read(name).decode().split(), float).reshape(-1, 5)[:, 1:]
            for name in names
        ]
        images = np.stack([grey(folder, name.replace(".tru", ".jpg")) for name in names])[..., None]
    assert sum(map(len, boxes)) == 51
    masks = box_masks(boxes, (512, 512))
    sizes = [((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])).sum() for box in boxes]
    np.testing.assert_allclose(masks.mean(axis=(1, 2)), sizes, atol=0.002)
    masks = box_masks(boxes, (128, 128))
    blurred = np.array([gaussian_filter(mask.astype(np.float32), 6) for mask in masks])
    near = energy_inside(blurred, masks)
    for kind in BASELINES:
        gain, low, _, n = mean_interval(near - energy_inside(baseline_maps(images, kind), masks))
        assert n == 50
        assert gain > low > 0.05


def test_lung_share_of_radiographs():
    with archive("shenzhen_masks.zip") as folder:
        names = sorted(name for name in folder.namelist() if "/images/" in name)
        images = np.stack([grey(folder, name) for name in names])[..., None]
        paths = [name.replace("/images/", "/masks/")[:-4] + "_mask.png" for name in names]
        lungs = np.stack([grey(folder, path) >= 128 for path in paths])
    share = lungs.mean(axis=(1, 2))
    assert share.min() > 0.1
    random = energy_inside(baseline_maps(images, "random"), lungs)
    np.testing.assert_allclose(random, share, atol=0.02)
    assert (iou_at_otsu(baseline_maps(images, "random"), lungs) < 0.4).all()
    blurred = np.array([gaussian_filter(mask.astype(np.float32), 6) for mask in lungs])
    assert (iou_at_otsu(blurred, lungs) > 0.7).all()
    for kind in BASELINES:
        gain = energy_inside(blurred, lungs) - energy_inside(baseline_maps(images, kind), lungs)
        _, low, _, n = mean_interval(gain)
        assert n == 10
        assert low > 0.2


# Maps that are independent of the model


def test_random_maps_are_uniform_and_depend_on_seed_and_image_number_alone(rng):
    images = rng.integers(0, 256, (4, 48, 48, 1), dtype=np.uint8)
    maps = baseline_maps(images, "random", seed=4)
    np.testing.assert_array_equal(maps[:2], baseline_maps(255 - images[:2], "random", seed=4))
    assert (maps[0] != maps[1]).mean() > 0.9
    assert (maps != baseline_maps(images, "random", seed=5)).mean() > 0.9
    np.testing.assert_allclose(np.quantile(maps, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02)


def test_the_gaussian_is_centred_with_a_quarter_of_each_side_as_its_deviation():
    (found,) = baseline_maps(np.zeros((1, 12, 10, 1)), "centred Gaussian")
    y, x = np.mgrid[:12, :10]
    bell = np.exp(-(((y - 5.5) / 3) ** 2 + ((x - 4.5) / 2.5) ** 2) / 2)
    np.testing.assert_allclose(found, bell / bell.max(), rtol=1e-5)


def test_edges_are_sobels_magnitude_of_the_mean_over_the_channels(rng):
    images = rng.integers(0, 256, (3, 9, 9, 3), dtype=np.uint8)
    images[2] = 90  # no edges
    kernel = np.outer([1, 2, 1], [1, 0, -1])
    maps = baseline_maps(images, "edges")
    for image, found in zip(images[:2], maps, strict=False):
        shown = image.mean(axis=-1)
        magnitude = np.hypot(correlate(shown, kernel), correlate(shown, kernel.T))
        np.testing.assert_allclose(found, magnitude / magnitude.max(), rtol=1e-4, atol=1e-6)
    assert not maps[2].any()
