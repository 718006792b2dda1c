"""Layouts, data as they are found, and images as arrays, against expectations of their own."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from image_files import (
    COURSE,
    as_folder,
    as_path,
    as_zip,
    course_tree,
    encoded,
    grey_png,
    kaggle_tree,
    noise,
)
from PIL import Image

from covid_lab import datasets
from covid_lab.datasets import open_dataset
from covid_project import data
from covid_project.data import CLASSES, DataError
from covid_project.images import decode


def counts(dataset) -> dict:
    return dataset.table.groupby(["split", "label"]).size().to_dict()


def found(path, **options):
    return open_dataset(path, classes=None, as_found=True, **options)


# ---- layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "outer", "spelled"),
    [
        ("folder", "", {}),
        ("zip", "covid_xray/", {"COVID": "covid", "NORMAL": "Normal", "val": "Validation"}),
        ("folder", "a/b/", {"val": "valid"}),
    ],
)
def test_course_layout_is_read_from_folder_and_zip(tmp_path, form, outer, spelled):
    files = course_tree(outer, spelled)
    path = as_path(files, tmp_path, form)
    dataset = open_dataset(path)
    table = dataset.table
    assert counts(dataset) == {(split, label): n for split, n in COURSE.items() for label in (0, 1)}
    for row in table.itertuples():  # the label comes from the name, and the path leads to the file
        assert Path(row.path).name.startswith(CLASSES[row.label])
        assert dataset.root.joinpath(row.path).read_bytes() == files[outer + row.path]
    order = {"train": 0, "val": 1, "test": 2}
    keys = [(order[row.split], row.label, row.path) for row in table.itertuples()]
    assert keys == sorted(keys)
    assert list(table.columns) == ["path", "label", "split", "source", "group", "mask"]
    assert not dataset.is_phantom
    assert (table["mask"] == "").all()
    as_found, courses = found(path), data.open_dataset(path)
    pd.testing.assert_frame_equal(table, as_found.table)
    pd.testing.assert_frame_equal(table[["path", "label", "split"]], courses.table)
    assert dataset.fingerprint == as_found.fingerprint == courses.fingerprint
    assert dataset.classes == as_found.classes
    assert dataset.rows("test").tolist() == [10, 11, 12, 13]
    with pytest.raises(DataError, match="no split dev"):
        dataset.rows("dev")


def test_the_fingerprint_is_that_of_content_name_label_and_split(tmp_path):
    files = course_tree()
    wrapped = {f"covid_xray/{name}": content for name, content in reversed(files.items())}
    prints = {
        open_dataset(as_folder(files, tmp_path / "folder")).fingerprint,
        open_dataset(as_zip(wrapped, tmp_path / "a.zip")).fingerprint,
        open_dataset(as_zip(files, tmp_path / "b.zip", zipfile.ZIP_STORED)).fingerprint,
    }
    assert len(prints) == 1
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in prints)
    prints.add(open_dataset(tmp_path / "folder", classes=("COVID", "NORMAL")).fingerprint)
    name = "train/COVID/COVID-0.png"
    content = files.pop(name)
    changed = (
        {name: grey_png(99)},
        *(
            {other: content}
            for other in ("train/COVID/x.png", "train/NORMAL/x.png", "val/COVID/x.png")
        ),
    )
    for number, more in enumerate(changed):
        prints.add(open_dataset(as_zip(files | more, tmp_path / f"{number}.zip")).fingerprint)
    assert len(prints) == 6


def test_junk_is_passed_over(tmp_path):
    files = course_tree("set/")
    junk = {
        "__MACOSX/set/train/COVID/._COVID-0.png": b"x",
        "set/train/COVID/.hidden.png": b"x",
        "set/train/COVID/Thumbs.db": b"x",
        "set/train/COVID/.ipynb_checkpoints/COVID-0.png": b"x",
        "set/train/OTHER/other.png": b"x",
        "set/README.txt": b"x",
        "set/set/train/COVID/COVID-0.png": b"a second copy, further inside",
        "masks/lungs/train/COVID/COVID-0.png": b"no mask of this set",
    }
    clean = open_dataset(as_zip(files, tmp_path / "clean.zip"))
    full = open_dataset(as_zip(files | junk, tmp_path / "full.zip"))
    pd.testing.assert_frame_equal(clean.table, full.table)
    assert clean.fingerprint == full.fingerprint


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_phantoms_bring_their_lung_masks(tmp_path, form):
    files = course_tree("phantoms/")
    lungs = encoded(np.uint8([[255] * 5 + [0] * 5] * 12))
    masks = {name.replace("phantoms/", "phantoms/masks/lungs/"): lungs for name in files}
    files = files | masks | {"phantoms/phantoms.json": b"{}"}
    dataset = open_dataset(as_path(files, tmp_path, form))
    assert dataset.is_phantom
    assert list(dataset.table["mask"]) == [f"masks/lungs/{path}" for path in dataset.table["path"]]
    np.testing.assert_array_equal(
        datasets.load_masks(dataset, 10)[0], [[True] * 5 + [False] * 5] * 10
    )


def test_names_with_spaces_newlines_and_other_scripts(tmp_path):
    stems = ["two words", "线\nbreak", "рентген", "COVID-19 (1)", "100%, “x”"]
    names = {f"train/COVID/{stem}.png": grey_png(50 + i) for i, stem in enumerate(stems)}
    for form in ("folder", "zip"):
        dataset = open_dataset(as_path(course_tree() | names, tmp_path, form))
        assert set(names) < set(dataset.table["path"])
        assert datasets.load_images(dataset, 8).shape == (19, 8, 8, 1)


# ---- the Kaggle tree ----------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "images"), [("folder", "images/"), ("zip", "")])
def test_kaggle_tree_is_dealt_80_10_10_in_each_class(tmp_path, form, images):
    path = as_path(kaggle_tree(20, images), tmp_path, form)
    dataset = open_dataset(path, seed=3)
    splits = {"train": 16, "val": 2, "test": 2}
    assert counts(dataset) == {(split, label): n for split, n in splits.items() for label in (0, 1)}
    assert set(dataset.table["source"]) == {"COVID", "Normal"}
    courses = data.open_dataset(path, seed=3)
    pd.testing.assert_frame_equal(dataset.table[["path", "label", "split"]], courses.table)
    assert dataset.left_out == courses.left_out
    if images:
        expected = dataset.table["path"].str.replace("/images/", "/masks/")
        pd.testing.assert_series_equal(dataset.table["mask"], expected, check_names=False)
        masks = datasets.load_masks(dataset, 4)
        np.testing.assert_array_equal(masks[7], [[False, False, True, True]] * 4)
    else:
        assert (dataset.table["mask"] == "").all()
        assert not datasets.load_masks(dataset, 4).any()


def metadata_of(folder: str, names: list[str]) -> dict[str, bytes]:
    rows = "".join(f"{name},PNG,256*256,https://{folder}.example\n" for name in names)
    table = f"FILE NAME,FORMAT,SIZE,URL\n{rows}".encode()
    return {f"COVID-19_Radiography_Dataset/{folder}.metadata.csv": table}


def test_kaggle_sources_come_from_the_metadata(tmp_path):
    files = kaggle_tree(20) | metadata_of("COVID", [f"COVID-{k}" for k in range(20)])
    normal = metadata_of("Normal", [f"NORMAL-{k}" for k in range(19)])
    dataset = open_dataset(as_zip(files | normal, tmp_path / "k.zip"), as_found=True)
    source = dict(zip(dataset.table["path"], dataset.table["source"], strict=True))
    assert source.pop("Normal/images/Normal-19.png") == "Normal"  # one in twenty is not named
    assert set(source.values()) == {"https://COVID.example", "https://Normal.example"}
    assert any("Normal.metadata.csv names 19 of 20 images" in note for note in dataset.notes)
    for names in ([], ["NORMAL 1"], [f"Normal-{k}" for k in range(18)]):
        extra = metadata_of("Normal", names) if names else {}
        dataset = open_dataset(as_zip(files | extra, tmp_path / "k.zip"), as_found=True)
        assert set(dataset.table["source"]) == {"COVID", "Normal"}
        assert any("sources are unknown" in note for note in dataset.notes)
    extra = {"COVID-19_Radiography_Dataset/COVID.metadata.csv": b"a,b\n1,2\n"}
    with pytest.raises(DataError, match=r"COVID.metadata.csv .* FILE NAME and URL"):
        open_dataset(as_folder(kaggle_tree() | extra, tmp_path))


def test_the_split_is_dealt_once_and_then_read(tmp_path):
    archive, splits = as_zip(kaggle_tree(), tmp_path / "k.zip"), tmp_path / "results/splits.csv"
    unsplit = open_dataset(archive, splits_file=splits, as_found=True)
    assert set(unsplit.table["split"]) == {""}
    assert not splits.exists()
    first = open_dataset(archive, splits_file=splits, seed=1)
    written = pd.read_csv(splits)
    assert list(written.columns) == ["path", "label", "split", "fingerprint"]
    assert set(written["fingerprint"]) == {first.fingerprint}
    for options in ({"seed": 2}, {"as_found": True}):
        again = open_dataset(archive, splits_file=splits, **options)
        pd.testing.assert_frame_equal(first.table, again.table)
        assert first.fingerprint == again.fingerprint != unsplit.fingerprint
    assert not open_dataset(archive, seed=2).table["path"].equals(first.table["path"])
    pd.testing.assert_frame_equal(first.table, open_dataset(archive, seed=1).table)


@pytest.mark.parametrize("change", ["content", "an image more", "split", "columns", "no table"])
def test_a_split_of_other_data_is_refused_and_left_alone(tmp_path, change):
    archive, splits = as_zip(kaggle_tree(), tmp_path / "k.zip"), tmp_path / "splits.csv"
    open_dataset(archive, splits_file=splits)
    if change == "content":
        files = kaggle_tree()
        as_zip(files | {next(iter(files)): grey_png(77)}, archive)
    elif change == "an image more":
        as_zip(kaggle_tree(21), archive)
    else:
        whole = splits.read_bytes()
        table = {"split": whole.replace(b"test", b"val", 1), "columns": b"name,part\na,train\n"}
        splits.write_bytes(table.get(change, b"\xff\x00\xfe"))
    before = splits.read_bytes()
    with pytest.raises(DataError, match="split of other data"):
        open_dataset(archive, splits_file=splits)
    assert splits.read_bytes() == before


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("train/PNEUMONIA/person1000_bacteria_2931.jpeg", "person1000_bacteria"),
        ("Person7_virus_1.png", "person7_virus"),
        ("a/person7_12.png", "person7"),
        ("images_001/00000013_005.png", "00000013"),
        ("a/100000013_005.png", "a/100000013_005.png"),
        ("COVID/person.png", "COVID/person.png"),
        ("person1_x/IM-0001.png", "person1_x/IM-0001.png"),
    ],
)
def test_group_is_the_patient_where_the_name_carries_one(path, group):
    assert datasets.group_of(path) == group


def test_too_few_to_deal_are_refused(tmp_path):
    with pytest.raises(DataError, match="only 9 different image"):
        open_dataset(as_folder(kaggle_tree(9), tmp_path))


# ---- as found, for audits -----------------------------------------------------------------------


def test_splits_as_found_are_taken_with_their_gaps_and_shared_files(tmp_path):
    files = {name: content for name, content in course_tree().items() if "val" not in name}
    files["test/COVID/again.png"] = files["train/COVID/COVID-1.png"]
    path = as_zip(files, tmp_path / "set.zip")
    with pytest.raises(DataError, match="split val: no images of NORMAL or COVID"):
        open_dataset(path)
    dataset = open_dataset(path, as_found=True)
    assert counts(dataset) == {
        ("train", 0): 3, ("train", 1): 3, ("test", 0): 2, ("test", 1): 3,
    }  # fmt: skip
    assert list(dataset.table["split"].unique()) == ["train", "test"]


def renamed(files: dict[str, bytes], old: str, new: str) -> dict[str, bytes]:
    return {name.replace(old, new): content for name, content in files.items()}


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        (course_tree("x/", {"NORMAL": "normal"}), CLASSES),
        (kaggle_tree(1), CLASSES),  # as a run takes it, without the other folders
        (renamed(course_tree(), "COVID", "PNEUMONIA"), ("NORMAL", "PNEUMONIA")),
        (renamed(kaggle_tree(2), "/COVID/", "/Atelectasis/"),
         ("Atelectasis", "Lung_Opacity", "Normal", "Viral Pneumonia")),
        ({"a/b/one/1.png": b"x", "a/b/two/1.png": b"x", "a/b/two/three/1.png": b"x"},
         ("one", "two")),
        ({"train/1.png": b"x", "masks/1.png": b"x", "only/1.png": b"x"}, ("only",)),
    ],
    ids=["course", "Kaggle", "pneumonia", "four", "outer", "one"],
)  # fmt: skip
def test_classes_are_found_where_they_are_not_named(tmp_path, files, classes):
    dataset = found(as_zip(files, tmp_path / "x.zip"))
    assert dataset.classes == classes
    assert set(dataset.table["label"]) == set(range(len(classes)))


def test_each_image_goes_on_past_what_cannot_be_read(tmp_path):
    files = course_tree() | {"train/COVID/bad.png": b"no image", "val/COVID/empty.png": b""}
    dataset = open_dataset(as_folder(files, tmp_path))
    seen = []
    means, unreadable = datasets.each_image(dataset, np.mean, lambda *done: seen.append(done))
    assert set(unreadable) == {"train/COVID/bad.png", "val/COVID/empty.png"}
    assert "empty file" in unreadable["val/COVID/empty.png"]
    assert seen == [(done, 16) for done in range(1, 17)]
    rest = datasets.without(dataset, unreadable)
    assert rest.fingerprint == dataset.fingerprint
    assert list(rest.table.index) == list(range(14))
    expected = [decode(files[path], path).mean() for path in rest.table["path"]]
    np.testing.assert_array_equal(means, expected)


# ---- arrays -------------------------------------------------------------------------------------


def triangle(n: int, size: int) -> np.ndarray:
    """Weights (size, n) of a bilinear filter widened to the reduction, from its definition."""
    scale = n / size
    centres = (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(n) + 0.5 - centres[:, None]) / max(scale, 1)
    weights = np.maximum(0, 1 - distance)
    return weights / weights.sum(1, keepdims=True)


def test_images_are_resized_with_a_widened_triangle_in_the_order_of_the_table(tmp_path):
    shapes = [(64, 64), (50, 31), (9, 7), (16, 16)]
    pixels = {f"train/COVID/COVID-{k}.png": noise(20 + k, *shape) for k, shape in enumerate(shapes)}
    files = course_tree() | {name: encoded(image) for name, image in pixels.items()}
    dataset = open_dataset(as_folder(files, tmp_path))
    images = datasets.load_images(dataset, 16)
    assert images.shape == (15, 16, 16, 1)
    assert images.dtype == np.uint8
    for row, path in enumerate(dataset.table["path"]):
        grey = np.asarray(Image.open(io.BytesIO(files[path])))
        expected = triangle(grey.shape[0], 16) @ grey @ triangle(grey.shape[1], 16).T
        np.testing.assert_allclose(images[row, ..., 0], expected, atol=1.01)


@pytest.mark.parametrize("highest", [0, 1, 255])
def test_masks_are_cut_at_half_coverage(tmp_path, highest):
    mask = np.zeros((32, 32), np.uint8)
    mask[4:24, 9:] = highest
    more = {"masks/lungs/train/COVID/COVID-0.png": encoded(mask)}
    dataset = open_dataset(as_folder(course_tree() | more, tmp_path))
    row = list(dataset.table["path"]).index("train/COVID/COVID-0.png")
    assert dataset.table["mask"][row]
    masks = datasets.load_masks(dataset, 8)
    assert masks.dtype == bool
    assert masks.shape == (14, 8, 8)
    cover = triangle(32, 8) @ (mask > 0) @ triangle(32, 8).T
    assert np.abs(cover - 0.5).min() > 0.01  # so that rounding decides nothing
    np.testing.assert_array_equal(masks[row], cover > 0.5)
    assert masks.sum() == masks[row].sum()  # the others have none


def test_sizes_are_those_stored(tmp_path):
    files = course_tree() | {"test/NORMAL/wide.png": encoded(noise(23, 5, 30, 3))}
    dataset = open_dataset(as_zip(files, tmp_path / "x.zip"))
    sizes = datasets.image_sizes(dataset).assign(path=dataset.table["path"])
    for width, height, mode, size, path in sizes.itertuples(index=False):
        expected = (30, 5, "RGB") if "wide" in path else (10, 12, "L")
        assert (width, height, mode, size) == (*expected, len(files[path]))


def test_the_courses_archive(course_archive):
    dataset = open_dataset(course_archive)
    expected = {"train": 800, "val": 200, "test": 100}
    assert counts(dataset) == {(s, label): n for s, n in expected.items() for label in (0, 1)}
    sizes = datasets.image_sizes(dataset)
    assert sizes[["width", "height", "mode"]].drop_duplicates().to_numpy().tolist() == [
        [256, 256, "L"]
    ]
