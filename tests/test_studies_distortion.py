"""Augmentation of the nodules: each distortion alone by its geometry, and both ways of using it."""

import numpy as np
import tensorflow as tf
from scipy import ndimage

from covid_lab.studies.distortion import distorted, distorted_batches, distorted_copies

NONE = {"rotation": 0.0, "shear": 0.0, "zoom": 0.0, "flips": False}


def blob(size=41):
    yy, xx = np.mgrid[:size, :size] - size // 2
    return (255 * np.exp(-((xx / 4) ** 2) - (yy / 9) ** 2))[..., None].astype(np.float32)


def many(seed=0, count=200, **amounts):
    images = np.repeat(blob()[None], count, axis=0)
    return distorted(images, tf.constant([seed, 1]), **{**NONE, **amounts}).numpy()[..., 0]


def moments(image):
    """Second moments about the centre: across, along, mixed."""
    yy, xx = np.mgrid[: len(image), : len(image)] - len(image) // 2
    total = image.sum()
    return [(image * part).sum() / total for part in (xx * xx, yy * yy, xx * yy)]


def test_nothing_changes_without_amounts():
    np.testing.assert_allclose(many(count=2), np.repeat(blob()[None, ..., 0], 2, 0), atol=1e-3)


def test_rotation_keeps_the_size_and_reaches_its_limit():
    found = np.array([moments(one) for one in many(rotation=30)])
    xx, yy, xy = found.T
    angle = np.degrees(0.5 * np.arctan2(2 * xy, yy - xx))
    assert 27 < np.abs(angle).max() < 31
    assert abs(angle.mean()) < 4
    np.testing.assert_allclose(xx + yy, np.mean(xx + yy), rtol=0.08)  # cut at the border


def test_shear_moves_sideways_in_proportion_to_the_height():
    _, yy, xy = np.array([moments(one) for one in many(shear=0.2)]).T
    assert 0.18 < np.abs(xy / yy).max() < 0.21
    np.testing.assert_allclose(yy, yy.mean(), rtol=0.03)


def test_zoom_scales_both_ways():
    areas = np.array([np.sqrt(np.prod(moments(one)[:2])) for one in many(zoom=0.2)])
    whole = np.sqrt(np.prod(moments(blob()[..., 0])[:2]))
    assert 1.35 < areas.max() / whole < 1.47  # 1.2²
    assert 0.68 < areas.min() / whole < 0.75


def test_flips_go_both_ways(rng):
    image = rng.uniform(0, 255, (9, 9, 1)).astype(np.float32)
    out = distorted(np.repeat(image[None], 64, 0), tf.constant([3, 1]), **{**NONE, "flips": True})
    kinds = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]
    counts = [sum(np.allclose(one, kind, atol=1e-2) for one in out.numpy()) for kind in kinds]
    assert sum(counts) == 64
    assert min(counts) >= 6


def test_copies_and_batches_come_from_the_same_law_and_the_seed(rng):
    images = np.stack([ndimage.gaussian_filter(rng.uniform(0, 255, (16, 16, 1)), 1)] * 10)
    images = images.astype(np.uint8)
    copies = distorted_copies(images, 2, seed=4)
    assert copies.shape == (20, 16, 16, 1)
    assert copies.dtype == np.uint8
    np.testing.assert_array_equal(copies, distorted_copies(images, 2, seed=4))
    assert not np.array_equal(copies[:10], copies[10:])
    assert len(distorted_copies(images, 0, seed=4)) == 0
    labels = np.arange(10)
    batches = distorted_batches(images, labels, 4, seed=1)
    epochs = [list(batches.as_numpy_iterator()) for _ in range(2)]
    for epoch in epochs:
        seen = np.concatenate([labels[:, 0] for _, labels in epoch])
        assert sorted(seen) == list(range(10))
    assert not np.array_equal(epochs[0][0][0], epochs[1][0][0])  # newly drawn
    again = next(iter(distorted_batches(images, labels, 4, seed=1)))
    np.testing.assert_array_equal(epochs[0][0][0], again[0])
    assert epochs[0][0][1].shape == (4, 1)
    assert epochs[0][0][0].max() <= 255
