import io
import threading

import numpy as np
import pytest
from PIL import Image

from covid_project.augmentation import NONE
from covid_project.data import DataError, ImageFiles, open_dataset
from covid_project.images import decode, resize
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


def test_no_batches_are_tuned_so_that_no_epoch_waits_for_the_tuning_thread(numbered):
    for batches in (
        training_batches(*numbered, 4, SOME, seed=1),
        evaluation_batches(*numbered),
        feature_batches([numbered[0]], numbered[1], 4, seed=1),
    ):
        assert batches.options().autotune.enabled is False


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


# ---- decoding -----------------------------------------------------------------------------------


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_grey_is_unchanged_and_colours_become_luminance(rng):
    grey = rng.integers(0, 256, (5, 7), dtype=np.uint8)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(grey)), "a"), grey)
    colours = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    found = decode(encoded(Image.fromarray(colours)), "a")
    expected = colours @ [0.299, 0.587, 0.114]  # ITU-R 601-2
    np.testing.assert_allclose(found, expected, atol=1)


def test_sixteen_bits_are_scaled_and_transparency_is_black():
    values = np.array([[0, 257, 65535]], np.uint16)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(values)), "a"), [[0, 1, 255]])
    transparent = np.array([[[200, 200, 200, 0], [200, 200, 200, 255]]], np.uint8)
    found = decode(encoded(Image.fromarray(transparent)), "a")
    np.testing.assert_array_equal(found, [[0, 200]])


def test_an_orientation_in_the_file_is_applied(rng):
    grey = rng.integers(0, 256, (4, 6), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # rotate by 90 degrees clockwise to view
    found = decode(encoded(Image.fromarray(grey), exif=turned), "a")
    np.testing.assert_array_equal(found, np.rot90(grey, -1))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty file"), (b"hello", "not an image"), (None, "damaged"), ("frames", "2 frames")],
)
def test_what_is_no_single_image_is_refused_by_name(content, reason):
    image = Image.new("L", (64, 64), 100)
    if content is None:
        content = encoded(image)[:-30]
    elif content == "frames":
        content = encoded(image, "GIF", save_all=True, append_images=[Image.new("L", (64, 64))])
    with pytest.raises(DataError, match=f"scan.png: .*{reason}"):
        decode(content, "scan.png")


def test_resizing_averages_over_all_pixels():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    small = resize(stripes, (16, 16))
    assert small.shape == (16, 16)
    assert np.abs(small[:, 1:-1].astype(int) - 127).max() <= 2  # plain bilinear would alias
    np.testing.assert_array_equal(resize(stripes, (64, 64)), stripes)


def test_image_files_are_the_same_data_as_arrays_and_as_batches(image_folder):
    dataset = open_dataset(image_folder)
    rows = dataset.rows("train", "val")
    files = ImageFiles(dataset, rows, 16)
    images = files[:]
    assert images.shape == files.shape == (36, 16, 16, 1)
    np.testing.assert_array_equal(files[[3, 1]], images[[3, 1]])
    paths = dataset.table["path"].to_numpy()[rows]
    alone = resize(decode((image_folder / paths[5]).read_bytes(), paths[5]), (16, 16))
    np.testing.assert_array_equal(images[5, ..., 0], alone)
    seen, _ = collect(evaluation_batches(files, np.zeros(36), 10))
    np.testing.assert_array_equal(seen, images)


def test_all_unreadable_images_are_named_at_once(image_folder):
    dataset = open_dataset(image_folder)
    for name in ("train/COVID/COVID-train-1.png", "val/NORMAL/NORMAL-val-0.png"):
        (image_folder / name).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"(?s)2 image\(s\).*COVID-train-1.*NORMAL-val-0"):
        ImageFiles(dataset, dataset.rows("train", "val"), 16)[:]
