"""MedMNIST's files: what is read, and what is refused."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SHARED

from covid_lab.studies.medmnist import CLASSES, read
from covid_project.data import SPLITS, DataError

COUNTS = {"train": 6, "val": 3, "test": 4}
COLOUR = ("retinamnist", "dermamnist")


def drawn(folder, name, *, column=True, **changes):
    """A file of a set's shape with random pixels; a change of None leaves an array out."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in COUNTS.items():
        shape = (n, 28, 28, 3) if name.startswith(COLOUR) else (n, 28, 28)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, np.uint8)
        labels = rng.integers(0, len(CLASSES[name.split("_")[0]]), (n, 1), np.uint8)
        arrays[f"{split}_labels"] = labels if column else labels[:, 0]
    arrays |= changes
    path = folder / f"{name}.npz"
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return path, arrays


@pytest.mark.parametrize("name", [*CLASSES, "dermamnist_64"])
def test_images_labels_and_official_splits_are_kept(tmp_path, name):
    path, arrays = drawn(tmp_path, name, column=name != "breastmnist")
    found = read(path)
    assert found.name == name.split("_")[0]
    assert found.classes == CLASSES[found.name]
    assert found.images.dtype == np.uint8
    assert found.images.shape[1:] == (28, 28, 3 if found.name in COLOUR else 1)
    for split in SPLITS:
        here = found.splits == split
        images = arrays[f"{split}_images"]
        np.testing.assert_array_equal(found.images[here].reshape(images.shape), images)
        np.testing.assert_array_equal(found.labels[here], arrays[f"{split}_labels"].ravel())


def test_the_frame_of_a_run_knows_it(tmp_path):
    path, arrays = drawn(tmp_path, "breastmnist")
    found = read(path)
    dataset = found.as_dataset(tmp_path)
    assert not dataset.is_phantom
    assert dataset.table["path"].is_unique
    assert dataset.table["path"][6] == "val/00000"
    np.testing.assert_array_equal(dataset.table["label"], found.labels)
    other, _ = drawn(tmp_path, "breastmnist", train_images=arrays["train_images"] // 2)
    assert read(other).as_dataset(tmp_path).fingerprint != dataset.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_images": None}, "no array val_images; it holds train_images"),
        ({"test_labels": np.full(4, 2)}, "test_labels.* to 2; allowed: 0 to 1"),
        ({"test_labels": np.zeros(3, int)}, r"test_labels.*\(3,\); expected"),
        ({"val_images": np.zeros((3, 28, 28))}, "val_images: float64"),
        ({"val_images": np.zeros((3, 28, 27), np.uint8)}, "expected uint8"),
        ({"val_images": np.zeros((3, 64, 64), np.uint8)}, "the training images are"),
        ({"train_labels": np.array([None] * 6)}, "cannot be read.*allow_pickle=False"),
    ],
)
def test_what_is_not_such_a_file_is_refused(tmp_path, changes, message):
    path, _ = drawn(tmp_path, "breastmnist", **changes)
    with pytest.raises(DataError, match=message):
        read(path)


def test_missing_unknown_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no file"):
        read(tmp_path / "breastmnist.npz")
    path, _ = drawn(tmp_path, "breastmnist")
    with pytest.raises(DataError, match=r"tissue\.npz is not a known set.*dermamnist\.npz"):
        read(path.rename(tmp_path / "tissue.npz"))
    path.write_bytes((tmp_path / "tissue.npz").read_bytes()[:2000])
    with pytest.raises(DataError, match="cannot be read"):
        read(path)


def package(root):
    """What the package ``medmnist`` 3.0.2 shows of itself, without a network."""

    class BreastMNIST:
        available_sizes = (28, 64, 128, 224)

        def __init__(self, split, download, size):
            self.root = root
            if not (root / f"breastmnist{'' if size == 28 else f'_{size}'}.npz").is_file():
                raise RuntimeError("Automatic download failed! Please download it manually.")

    info = {"breastmnist": {"python_class": "BreastMNIST"}}
    return SimpleNamespace(INFO=info, BreastMNIST=BreastMNIST)


def test_a_bare_name_is_a_set_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "medmnist", package(tmp_path))
    for name in ("breastmnist", "breastmnist_64"):
        path, _ = drawn(tmp_path, name)
        np.testing.assert_array_equal(read(tmp_path / "elsewhere" / name).images, read(path).images)
    with pytest.raises(DataError, match="download it manually"):
        read("breastmnist_128")
    with pytest.raises(DataError, match=r"size 65; allowed: \(28, 64, 128, 224\)"):
        read("breastmnist_65")
    monkeypatch.setitem(sys.modules, "medmnist", None)  # as if it were not installed
    with pytest.raises(DataError, match=r"path of breastmnist_64\.npz, or pip install medmnist"):
        read("breastmnist_64")


@pytest.mark.parametrize(
    ("name", "counts"), [("breastmnist", (546, 78, 156)), ("pneumoniamnist", (4708, 524, 624))]
)
def test_the_real_files_have_the_official_splits(name, counts):
    path = SHARED / "data" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{name}.npz is not at hand (../shared/data)")
    found = read(path)
    assert tuple((found.splits == split).sum() for split in SPLITS) == counts
    assert set(found.labels) == {0, 1}
