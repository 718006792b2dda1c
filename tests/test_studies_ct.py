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
    groups = [
        ["CT_COVID/2020.02.10.20021584-p6-52%3.jpg", "CT_COVID/2020.02.10.20021584-p6-52%11.jpg",
         "CT_COVID/2020.02.10.20021584-p7-60.jpg"],  # another figure of the article
        ["CT_COVID/2020.02.11.20021493-p16-109%1.jpg"],
        ["CT_COVID/2020.02.26.20026989-p34-114_1%0.jpg",
         "CT_COVID/2020.02.26.20026989-p34-114_2%1.jpg"],
        ["CT_COVID/2020.03.16.20035105-p6-64-3.jpg", "CT_COVID/2020.03.16.20035105-p6-64-4.jpg"],
        ["CT_COVID/PIIS0140673620301549_0%0.jpg", "CT_COVID/PIIS0140673620301549_2.jpg"],
        ["CT_COVID/PIIS0140673620302117_1.jpg"],
        ["CT_NonCOVID/39%0.jpg", "CT_NonCOVID/39%8.jpg"],
        ["CT_NonCOVID/40%0.jpg"],
        ["CT_NonCOVID/1047.jpg", "CT_NonCOVID/1046.jpg", "CT_NonCOVID/1048.jpg"],  # in sequence
        ["CT_NonCOVID/1050.jpg"],  # after a gap
        ["CT_COVID/1048.jpg"],  # another folder
    ]  # fmt: skip
    found = slice_groups([path for paths in groups for path in paths])
    expected = np.repeat(np.arange(len(groups)), [len(paths) for paths in groups])
    np.testing.assert_array_equal(found[:, None] == found, expected[:, None] == expected)


def test_prepared_is_resized_then_equalised(rng):
    image = (rng.normal(90, 20, (300, 410)).clip(0, 255)).astype(np.uint8)
    plain, equal = (prepared(image, 256, equalize=equalize) for equalize in (False, True))
    expected = Image.fromarray(image).resize((256, 256), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(plain, np.asarray(expected))
    assert equal.dtype == np.uint8
    # A pixel's new value is the fraction of darker ones among all but the brightest.
    counts = np.bincount(plain.ravel(), minlength=256)
    darker = (np.cumsum(counts) - counts) / (plain.size - counts[plain.max()])
    assert np.abs(equal - 255 * darker[plain]).max() < 1.5
    # Another library agrees, except that it counts a value's own pixels as darker.
    assert np.corrcoef(equal.ravel(), equalize_hist(plain, nbins=256).ravel())[0, 1] > 0.999
    for size in (63, 513):
        with pytest.raises(ValueError, match="64 to 512"):
            prepared(image, size, equalize=False)


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
    (folder / paths[5]).unlink()
    with pytest.raises(DataError, match="not overwritten"):
        save_copies(folder, paths, 255 - images)
    del before[folder / paths[5]]  # after a refusal nothing is written
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.png")} == before
    with pytest.raises(DataError, match="rename one"):
        save_copies(tmp_path / "new", ["a/1.png", "a/1.jpg"], images[:2])
    assert not (tmp_path / "new").exists()


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
    assert len(y) > 70
    distance = np.maximum(np.abs(y - 31.5), np.abs(x - 31.5))
    np.testing.assert_allclose(distance, 12, atol=2.1)


def test_boxes(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / split / "1.png")
    (tmp_path / "train" / "1.tru").write_text("5 0.1 0.2 0.3 0.4\n 5 0.5 0.5 0.6 0.7\n")
    dataset = open_dataset(tmp_path, classes=("train", "test"), as_found=True)
    with pytest.raises(DataError, match=r"test/1\.png has no \.tru"):
        read_boxes(dataset)
    (tmp_path / "test" / "1.tru").write_text("5 0.1 0.2 0.3\n")
    with pytest.raises(DataError, match="type x1 y1 x2 y2"):
        read_boxes(dataset)
    (tmp_path / "test" / "1.tru").write_text("5 0.0 0.0 1.0 1.0\n")
    boxes = dict(zip(dataset.table["path"], read_boxes(dataset), strict=True))
    assert boxes["train/1.png"].tolist() == [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.6, 0.7]]
    assert boxes["test/1.png"].shape == (1, 4)
