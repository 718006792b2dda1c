import threading

import numpy as np
import pytest

from covid_project.augmentation import NONE
from covid_project.pipeline import evaluation_batches, feature_batches, training_batches
from covid_project.settings import Augmentation
from covid_project.training import set_seed

SOME = Augmentation(flip=True, rotation=5, zoom=0.1, shift=0.1, brightness=0.1, contrast=0.1)


@pytest.fixture
def numbered():
    """25 images, each filled with its own number, which is even for label 0."""
    images = np.arange(25, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    return images, np.arange(25) % 2


def collect(batches):
    parts = [(x.numpy(), y.numpy()) for x, y in batches]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def test_evaluation_keeps_order_and_values(numbered):
    images, labels = collect(evaluation_batches(*numbered, batch_size=4))
    np.testing.assert_array_equal(images, numbered[0])
    np.testing.assert_array_equal(labels[:, 0], numbered[1])
    assert images.dtype == labels.dtype == np.float32


def test_an_epoch_holds_every_image_once_with_its_label(numbered):
    batches = training_batches(*numbered, 4, NONE, seed=1)
    orders = []
    for _ in range(2):
        images, labels = collect(batches)
        number = images[:, 0, 0, 0].round().astype(int)
        assert sorted(number) == list(range(25))
        np.testing.assert_array_equal(labels[:, 0], number % 2)
        orders.append(number.tolist())
    assert orders[0] != orders[1]  # a new order in every epoch


def test_images_that_stay_on_disk_make_the_same_batches(tmp_path, rng):
    images = rng.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    labels = np.arange(20) % 2

    def epochs(images):
        set_seed(3)
        training = training_batches(images, labels, 6, NONE, seed=5)
        return [
            batch
            for batches in (training, training, evaluation_batches(images, labels, 6))
            for batch in batches.as_numpy_iterator()
        ]

    held = epochs(images)
    streamed = epochs(mapped)
    assert len(held) == len(streamed) == 12
    for one, other in zip(held, streamed, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_batches_hold_no_copy_of_the_images(numbered):
    images, labels = numbered
    batches = evaluation_batches(images, labels)
    images[3] = 200
    assert (collect(batches)[0][3] == 200).all()


def test_batches_are_read_side_by_side_though_all_is_deterministic():
    class Meeting(np.ndarray):
        """Whose rows are given to two that ask at the same time, and to nobody alone."""

        others = threading.Barrier(2, timeout=30)

        def __getitem__(self, rows):
            self.others.wait()
            return np.asarray(self)[rows]

    set_seed(0)
    images = np.zeros((8, 4, 4, 1), np.uint8).view(Meeting)
    assert len(list(training_batches(images, np.zeros(8), 4, NONE, seed=0))) == 2


def test_augmentations_are_new_in_every_epoch(rng):
    image = rng.integers(0, 256, (1, 16, 16, 1), dtype=np.uint8)
    batches = training_batches(image, np.zeros(1), 1, SOME, seed=1)
    assert not np.allclose(collect(batches)[0], collect(batches)[0])


def test_the_same_seed_gives_the_same_epochs(rng):
    set_seed(0)
    images = rng.integers(0, 256, (40, 16, 16, 1), dtype=np.uint8)

    def epochs(seed):
        batches = training_batches(images, np.arange(40) % 2, 8, SOME, seed)
        return np.stack([collect(batches)[0] for _ in range(3)])

    np.testing.assert_array_equal(epochs(5), epochs(5))
    assert not np.array_equal(epochs(5), epochs(6))


def test_feature_batches_draw_one_copy_of_every_image(rng):
    labels = np.arange(30) % 2
    # The feature tells image and copy: image + copy / 10.
    copies = [np.arange(30)[:, None] + number / 10 for number in range(3)]
    batches = feature_batches(copies, labels, 7, seed=1)
    seen = []
    for _ in range(30):
        features, drawn = collect(batches)
        image = np.floor(features[:, 0] + 1e-3).astype(int)
        assert sorted(image) == list(range(30))
        np.testing.assert_array_equal(drawn[:, 0], labels[image])
        seen.append(np.rint(10 * (features[:, 0] - image)).astype(int))
    share = np.bincount(np.concatenate(seen), minlength=3) / 900
    np.testing.assert_allclose(share, 1 / 3, atol=0.07)


def test_feature_batches_widen_half_precision(rng):
    maps = [rng.normal(size=(6, 2, 2, 3)).astype(np.float16)]
    features, _ = next(iter(feature_batches(maps, np.zeros(6), 6, seed=0)))
    assert features.dtype == np.float32
    assert features.shape == (6, 2, 2, 3)
