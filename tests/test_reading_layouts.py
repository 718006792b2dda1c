"""Layouts that users bring: each is read whole, or refused with what was found."""

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from image_files import grey_png, tree, write
from PIL import Image

from covid_lab.datasets import described, open_dataset
from covid_lab.reading.layouts import find_classes, masks_among
from covid_project.data import DataError


def read(path: Path, **options) -> tuple[dict, set[str]]:
    """Number of images by split and class name, and the patients of several images or folders."""
    dataset = open_dataset(path, **{"classes": None, "as_found": True, **options})
    table = dataset.table.assign(name=[dataset.classes[label] for label in dataset.table["label"]])
    counts = table.groupby(["split", "name"]).size().to_dict()
    named = table[table["group"] != table["path"]]
    return counts, set(named["group"])


PAIR = {("", "A"): 3, ("", "B"): 3}
COURSE = {(s, c): 3 for s in ("train", "val", "test") for c in ("NORMAL", "COVID")}


def crossed(splits: tuple[str, ...], classes: tuple[str, ...] = ("NORMAL", "COVID")) -> list[str]:
    return tree(*(f"{split}/{name}" for split in splits for name in classes))


LAYOUTS = {
    "class folders": (tree("A", "B"), PAIR),
    "outer folders": (tree("x/y/A", "x/y/B"), PAIR),
    "images inside the classes": (tree("A/images", "B/images"), PAIR),
    "masks beside images": (tree("A/images", "A/masks", "B/images", "B/masks"), PAIR),
    "masks of two kinds": (
        tree("x/A/images", "x/A/lung masks", "x/A/infection masks", "x/B/images", "x/B/lung masks"),
        PAIR,
    ),
    "masks by name": ([*tree("A", "B"), *(f"A/{k}_mask.png" for k in range(3))], PAIR),
    "course": (crossed(("train", "val", "test")), COURSE),
    "other names of splits, any case": (
        crossed(("Training", "DEV", "testing"), ("normal", "Covid")), COURSE,
    ),
    "valid": (crossed(("train", "valid", "test")), COURSE),
    "validation": (crossed(("train", "validation", "test")), COURSE),
    "splits inside the classes": (crossed(("NORMAL", "COVID"), ("train", "val", "test")), COURSE),
    "train and test only": (
        crossed(("train", "test"), ("A", "B")),
        {(s, c): 3 for s in ("train", "test") for c in "AB"},
    ),
    "a picture beside the splits": (
        ["x/overview.png", *tree(*(f"x/{s}/{c}" for s in ("train", "val") for c in "AB"), each=9)],
        {(s, c): 9 for s in ("train", "val") for c in "AB"},
    ),
    "three classes": (tree("A", "B", "C"), {**PAIR, ("", "C"): 3}),
    "Kaggle's four, of which the course's": (
        tree("COVID/images", "Normal/images", "Lung_Opacity/images", "COVID/masks"),
        {("", "COVID"): 3, ("", "NORMAL"): 3},
    ),
    "a second copy further inside": (tree("set/A", "set/B", "set/set/A", "set/set/B"), PAIR),
    "hidden files": ([*tree("A", "B"), "A/._0.png", "__MACOSX/A/._1.png", ".git/x.png"], PAIR),
    "suffixes in capitals": ([f"{c}/{k}.PNG" for c in "AB" for k in range(3)], PAIR),
    "brackets and blanks": ([f"{c}/Covid ({k}).png" for c in "AB" for k in range(3)], PAIR),
    "patients inside the classes": (
        tree(*(f"{c}/{c}patient{p:03}" for c in "AB" for p in range(3)), each=2),
        {("", "A"): 6, ("", "B"): 6},
    ),
    "classes inside patients": (
        tree(*(f"patient{p:03}/{c}" for p in range(6) for c in "AB"), each=2),
        {("", "A"): 12, ("", "B"): 12},
    ),
    "patients inside splits": (
        tree(*(f"{s}/{c}/p{p:04}" for s in ("train", "test") for c in "AB" for p in range(4)),
             each=2),
        {(s, c): 8 for s in ("train", "test") for c in "AB"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYOUTS)
def test_layouts_are_read_and_every_file_is_used_or_counted(tmp_path, kind):
    names, expected = LAYOUTS[kind]
    path = write(tmp_path / "set", names, README__txt="x", notes__md="x")
    assert read(path)[0] == expected
    dataset = open_dataset(path, classes=None, as_found=True)
    counted = sum(map(len, dataset.passed_over.values()))
    assert len(dataset.table) + counted == len(names) + 2
    line = described(dataset, "set")
    assert all(f"{reason}: {len(n)}" in line for reason, n in dataset.passed_over.items())
    prints = {dataset.fingerprint}
    for form in ("zip", "gztar"):
        archive = Path(shutil.make_archive(tmp_path / "set", form, tmp_path, "set"))
        packed = open_dataset(archive, classes=None, as_found=True)
        pd.testing.assert_frame_equal(packed.table, dataset.table)
        prints.add(packed.fingerprint)
    assert len(prints) == 1


def test_patients_are_folders(tmp_path):
    names, _ = LAYOUTS["patients inside the classes"]
    assert read(write(tmp_path / "a", names))[1] == {
        f"{c}patient{p:03}" for c in "AB" for p in range(3)
    }
    names, _ = LAYOUTS["classes inside patients"]
    assert read(write(tmp_path / "b", names))[1] == {f"patient{p:03}" for p in range(6)}
    # 1, 2, 3 are numbered from 1 in each class.
    names = [f"{c}/{p}/{k}.png" for c in "AB" for p in range(3) for k in range(2)]
    found = read(write(tmp_path / "c", names), classes=("A", "B"))[1]
    assert found == {f"{c}/{p}" for c in "ab" for p in range(3)}


def test_large_folders_are_no_patients(tmp_path):
    names = [f"{c}/batch{p}/{k}.png" for c in "AB" for p in range(3) for k in range(31)]
    dataset = open_dataset(write(tmp_path, names), classes=("A", "B"), as_found=True)
    assert (dataset.table["group"] == dataset.table["path"]).all()
    assert "6 folders (batch0, batch1, batch2) are not taken for patients" in described(
        dataset, "x"
    )


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (crossed(("train", "holdout")), "6 of 12 files .* would be left out"),
        (crossed(("x", "y")), r"several data sets side by side: x, y"),
        ([*tree("A", "B"), "A/8.heic", "A/9.heic"], "of an unknown kind: 2"),
        (["1.png", "2.png"], "no class folders with images"),
        ([], "no images"),
    ],
    ids=["a split of unknown name", "side by side", "unknown files", "no folders", "no images"],
)
def test_what_would_be_left_out_is_refused(tmp_path, names, reason):
    with pytest.raises(DataError, match=reason):
        read(write(tmp_path / "set", names, **({} if names else {"a__txt": "x"})))


def test_levels_that_cross_are_asked_about():
    folders = [["site1", "A"], ["site1", "B"], ["site2", "A"], ["site2", "B"]]
    with pytest.raises(DataError, match=r"\(site1, site2\) or \(A, B\): name them with --classes"):
        find_classes(folders)


def test_masks_are_what_is_wanted_where_there_is_nothing_else():
    assert masks_among(["lung_masks/a/1.png", "lung_masks/b/2.png"]) == set()
    assert masks_among(["x/masks/1.png", "x/images/1.png"]) == {"x/masks/1.png"}


# ---- names and links ----------------------------------------------------------------------------


def test_unicode_forms_are_the_same_name(tmp_path):
    path = write(tmp_path, tree("Lungenentzu\u0308ndung", "Normal"))
    counts, _ = read(path, classes=("Normal", "Lungenentz\u00fcndung"))
    assert counts == {("", "Normal"): 3, ("", "Lungenentz\u00fcndung"): 3}


@pytest.mark.parametrize("encoding", ["gb18030", "utf-8"])
def test_zips_whose_names_do_not_say_how_they_are_encoded(tmp_path, encoding):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for number, name in enumerate(tree("正常", "新冠")):
            info = Cp437(name.encode(encoding).decode("cp437"))
            archive.writestr(info, grey_png(number, 6, 6))
    counts, _ = read(tmp_path / "set.zip", classes=("正常", "新冠"))
    assert counts == {("", "正常"): 3, ("", "新冠"): 3}


class Cp437(zipfile.ZipInfo):
    """A member whose name is written in code page 437, as by programs before UTF-8."""

    __slots__ = ()

    def _encodeFilenameFlags(self):
        return self.filename.encode("cp437"), self.flag_bits & ~0x800


def test_a_linked_folder_at_home(tmp_path, monkeypatch):
    write(tmp_path / "real", tree("A", "B"))
    (tmp_path / "set").symlink_to(tmp_path / "real")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(Path("~/set"))[0] == PAIR


# ---- archives -----------------------------------------------------------------------------------


def test_tar_archives_cannot_write_elsewhere(tmp_path):
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        info = tarfile.TarInfo("../outside.png")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(DataError, match="cannot be read as a tar archive"):
        open_dataset(tmp_path / "bad.tar", as_found=True)
    assert not (tmp_path.parent / "outside.png").exists()
    link = tarfile.TarInfo("A/link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        archive.addfile(link)
    with pytest.raises(DataError, match=r"A/link.png is a link or a device"):
        open_dataset(tmp_path / "link.tar", as_found=True)


def test_a_cut_off_tar_archive_is_refused(tmp_path):
    write(tmp_path / "set", tree("A", "B"))
    archive = Path(shutil.make_archive(tmp_path / "cut", "gztar", tmp_path, "set"))
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cut.tar.gz cannot be read as a tar archive"):
        open_dataset(archive, as_found=True)


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((4, 5, 6), ("{s}_images", "{s}_labels")),
        ((4, 5, 6, 1), ("x_{s}", "y_{s}")),
        ((4, 5, 6, 3), ("x_{s}", "y_{s}")),
    ],
)
def test_numpy_files_are_read(tmp_path, shape, names):
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[names[0].format(s=split)] = rng.integers(0, 256, shape, dtype=np.uint8)
        arrays[names[1].format(s=split)] = np.array([[0], [1], [1], [0]])
    np.savez(tmp_path / "set.npz", **arrays)
    dataset = open_dataset(tmp_path / "set.npz", classes=None, as_found=True)
    assert dataset.classes == ("0", "1")
    assert dataset.table.groupby(["split", "label"]).size().to_dict() == {
        (split, label): 2 for split in ("train", "val", "test") for label in (0, 1)
    }
    first = dataset.root.joinpath(dataset.table["path"][0])
    with Image.open(first) as image:
        np.testing.assert_array_equal(
            np.asarray(image), arrays[names[0].format(s="train")][0].squeeze()
        )


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"a": np.zeros(3)}, "no pair of images and labels. Found: a"),
        ({"images": np.zeros((2, 3, 3), np.int16), "labels": np.zeros(2, int)}, "values int16"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": np.zeros((2, 5), int)}, r"\(2, 5\)"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, reason):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=reason):
        open_dataset(tmp_path / "set.npz", classes=None, as_found=True)
