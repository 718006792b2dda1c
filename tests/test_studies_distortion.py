"""Augmentation of the nodules: each distortion alone by its geometry, and both ways of using it."""

import numpy as np
import tensorflow as tf

from covid_lab.studies.distortion import distorted, distorted_batches, distorted_copies

NONE = {"rotation": 0.0, "shear": 0.0, "zoom": 0.0, "flips": False}


def blob(size=41):
    yy, xx = np.mgrid[:size, :size] - size // 2
    return (255 * np.exp(-((xx / 4) ** 2) - (yy / 9) ** 2))[..., None].astype(np.float32)


def many(image=None, count=200, **amounts):
    images = np.repeat((blob() if image is None else image)[None], count, axis=0)
    return distorted(images, tf.constant([3, 1]), **{**NONE, **amounts}).numpy()[..., 0]


def moments(images):
    """Second moments about the centre of each image: across, along, mixed."""
    yy, xx = np.mgrid[: images.shape[1], : images.shape[2]] - images.shape[1] // 2
    total = images.sum(axis=(1, 2))
    return [(images * part).sum(axis=(1, 2)) / total for part in (xx * xx, yy * yy, xx * yy)]


def test_each_distortion_alone_reaches_its_limit():
    (plain,) = many(count=1)
    np.testing.assert_allclose(plain, blob()[..., 0], atol=1e-3)
    xx, yy, xy = moments(many(rotation=30))
    angle = np.degrees(0.5 * np.arctan2(2 * xy, yy - xx))
    assert 27 < np.abs(angle).max() < 31
    assert abs(angle.mean()) < 4
    np.testing.assert_allclose(xx + yy, np.mean(xx + yy), rtol=0.08)  # cut at the border
    _, yy, xy = moments(many(shear=0.2))
    assert 0.18 < np.abs(xy / yy).max() < 0.21
    np.testing.assert_allclose(yy, yy.mean(), rtol=0.03)
    areas, whole = (
        np.sqrt(np.prod(moments(one)[:2], axis=0)) for one in (many(zoom=0.2), plain[None])
    )
    assert 1.35 < areas.max() / whole[0] < 1.47  # 1.2²
    assert 0.68 < areas.min() / whole[0] < 0.75


def test_flips_go_both_ways(rng):
    image = rng.uniform(0, 255, (9, 9, 1)).astype(np.float32)
    found = many(image, 64, flips=True)
    kinds = [image[::down, ::across, 0] for down in (1, -1) for across in (1, -1)]
    counts = [sum(np.allclose(one, kind, atol=1e-2) for one in found) for kind in kinds]
    assert sum(counts) == 64
    assert min(counts) >= 6


def test_copies_and_batches_come_from_the_seed(rng):
    images = rng.integers(0, 256, (10, 16, 16, 1)).astype(np.uint8)
    copies = distorted_copies(images, 2, seed=4)
    assert copies.shape == (20, 16, 16, 1)
    assert copies.dtype == np.uint8
    np.testing.assert_array_equal(copies, distorted_copies(images, 2, seed=4))
    assert not np.array_equal(copies[:10], copies[10:])
    assert len(distorted_copies(images, 0, seed=4)) == 0
    batches = distorted_batches(images, np.arange(10), 4, seed=1)
    first, second = ([*batches.as_numpy_iterator()] for _ in range(2))
    for epoch in (first, second):
        assert sorted(np.concatenate([labels[:, 0] for _, labels in epoch])) == list(range(10))
    assert not np.array_equal(first[0][0], second[0][0])  # newly drawn
    again = next(iter(distorted_batches(images, np.arange(10), 4, seed=1)))
    np.testing.assert_array_equal(first[0][0], again[0])
    assert first[0][1].shape == (4, 1)
    assert first[0][0].max() <= 255
