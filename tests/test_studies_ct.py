import numpy as np
import pytest
from PIL import Image
from skimage.exposure import equalize_hist

from covid_lab.datasets import open_dataset
from covid_lab.studies.ct import (
    edges,
    prepared,
    prepared_images,
    read_boxes,
    save_copies,
    slice_groups,
)
from covid_project.data import DataError
from covid_project.images import decode


def test_slices_of_an_article_or_a_series_are_one_group():
    paths = [
        "CT_COVID/2020.02.10.20021584-p6-52%3.jpg",
        "CT_COVID/2020.02.10.20021584-p6-52%11.jpg",
        "CT_COVID/2020.02.10.20021584-p7-60.jpg",  # another figure of it
        "CT_COVID/2020.02.11.20021493-p16-109%1.jpg",  # another article
        "CT_COVID/2020.02.26.20026989-p34-114_1%0.jpg",
        "CT_COVID/2020.02.26.20026989-p34-114_2%1.jpg",
        "CT_COVID/2020.03.16.20035105-p6-64-3.jpg",
        "CT_COVID/2020.03.16.20035105-p6-64-4.jpg",
        "CT_COVID/PIIS0140673620301549_0%0.jpg",
        "CT_COVID/PIIS0140673620301549_2.jpg",
        "CT_COVID/PIIS0140673620302117_1.jpg",
        "CT_NonCOVID/39%0.jpg",
        "CT_NonCOVID/39%8.jpg",
        "CT_NonCOVID/40%0.jpg",
        "CT_NonCOVID/1047.jpg",  # numbered in sequence
        "CT_NonCOVID/1046.jpg",
        "CT_NonCOVID/1048.jpg",
        "CT_NonCOVID/1050.jpg",  # a gap: another series
        "CT_COVID/1048.jpg",  # another folder
    ]
    groups = slice_groups(paths)
    expected = [0, 0, 0, 1, 2, 2, 3, 3, 4, 4, 5, 6, 6, 7, 8, 8, 8, 9, 10]
    assert np.unique(groups).size == 11
    for i, first in enumerate(expected):
        for j, second in enumerate(expected):
            assert (groups[i] == groups[j]) == (first == second), (paths[i], paths[j])


def test_prepared_is_resized_then_equalised(rng):
    image = (rng.normal(90, 20, (300, 410)).clip(0, 255)).astype(np.uint8)
    plain = prepared(image, 256, equalize=False)
    expected = Image.fromarray(image).resize((256, 256), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(plain, np.asarray(expected))
    equal = prepared(image, 256, equalize=True)
    assert equal.dtype == np.uint8
    # A pixel's new value is the share of darker ones among all but the brightest.
    counts = np.bincount(plain.ravel(), minlength=256)
    darker = (np.cumsum(counts) - counts) / (plain.size - counts[plain.max()])
    assert np.abs(equal - 255 * darker[plain]).max() < 1.5
    # Another library agrees but for counting a value's own pixels as darker.
    assert np.corrcoef(equal.ravel(), equalize_hist(plain, nbins=256).ravel())[0, 1] > 0.999
    shares = np.histogram(equal, bins=4, range=(0, 256))[0] / equal.size
    np.testing.assert_allclose(shares, 0.25, atol=0.02)


@pytest.mark.parametrize("size", [63, 513])
def test_sizes_out_of_range(size):
    with pytest.raises(ValueError, match="64 to 512"):
        prepared(np.zeros((9, 9), np.uint8), size, equalize=False)


@pytest.fixture
def two_folders(tmp_path, rng):
    for name in ("lesion", "nolesion"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 255, (40 + number, 50)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"scan {number}.png")
    return open_dataset(tmp_path / "data", classes=("nolesion", "lesion"), as_found=True)


def test_copies_are_whole_and_never_overwritten(two_folders, tmp_path):
    images = prepared_images(two_folders, 64, equalize=True)
    assert images.shape == (6, 64, 64, 1)
    paths, folder = two_folders.table["path"], tmp_path / "clean"
    assert save_copies(folder, paths, images) == 6
    for path, image in zip(paths, images, strict=True):
        np.testing.assert_array_equal(decode((folder / path).read_bytes(), path), image[..., 0])
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.png")}
    assert save_copies(folder, paths, images) == 0
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")
            if file.is_file()} == before  # fmt: skip
    (folder / paths[5]).unlink()
    with pytest.raises(DataError, match="not overwritten"):
        save_copies(folder, paths, 255 - images)
    assert not (folder / paths[5]).exists(), "after a refusal nothing is written"
    assert {f: f.stat().st_mtime_ns for f in folder.rglob("*.png")}.items() <= before.items()


def test_two_originals_of_one_name(tmp_path):
    with pytest.raises(DataError, match="rename one"):
        save_copies(tmp_path, ["a/1.png", "a/1.jpg"], np.zeros((2, 4, 4, 1), np.uint8))
    assert not list(tmp_path.iterdir())


def test_unreadable_images_are_named(two_folders):
    (two_folders.root / two_folders.table["path"][2]).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 image\(s\).*scan 2"):
        prepared_images(two_folders, 64, equalize=False)


def test_edges_of_a_square():
    images = np.zeros((2, 64, 64, 1), np.uint8)
    images[0, 20:44, 20:44] = 200
    images[1, 20:44, 20:44] = 5  # below the thresholds that hold for all images
    found = edges(images)
    assert not found[1].any()
    y, x = np.nonzero(found[0])
    distance = np.maximum(np.abs(y - 31.5), np.abs(x - 31.5))
    assert len(y) > 70
    np.testing.assert_allclose(distance, 12, atol=2.1)


def test_boxes(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / split / "000001_01.png")
    (tmp_path / "train" / "000001_01.tru").write_text("5 0.1 0.2 0.3 0.4\n 5 0.5 0.5 0.6 0.7\n")
    dataset = open_dataset(tmp_path, classes=("train", "test"), as_found=True)
    with pytest.raises(DataError, match=r"test/000001_01\.png has no \.tru"):
        read_boxes(dataset)
    (tmp_path / "test" / "000001_01.tru").write_text("5 0.1 0.2 0.3\n")
    with pytest.raises(DataError, match="type x1 y1 x2 y2"):
        read_boxes(dataset)
    (tmp_path / "test" / "000001_01.tru").write_text("5 0.0 0.0 1.0 1.0\n")
    boxes = dict(zip(dataset.table["path"], read_boxes(dataset), strict=True))
    np.testing.assert_array_equal(
        boxes["train/000001_01.png"], [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.6, 0.7]]
    )
    assert boxes["test/000001_01.png"].shape == (1, 4)
