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
    without,
)
from PIL import Image

from covid_lab import datasets
from covid_lab.datasets import open_dataset
from covid_project import data
from covid_project.data import CLASSES, DataError
from covid_project.images import decode

COURSE_ZIP = Path(__file__).resolve().parents[2] / "shared" / "data" / "covid_xray.zip"


# ---- layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("outer", ["", "covid_xray/", "a/b/"])
@pytest.mark.parametrize(
    "spelled",
    [{}, {"COVID": "covid", "NORMAL": "Normal", "val": "Validation"}, {"val": "valid"}],
    ids=["as given", "other case", "valid"],
)
def test_course_layout_is_read_from_folder_and_zip(tmp_path, form, outer, spelled):
    files = course_tree(outer, spelled)
    dataset = open_dataset(as_path(files, tmp_path, form))
    table = dataset.table
    counts = table.groupby(["split", "label"]).size().to_dict()
    assert counts == {(split, label): n for split, n in COURSE.items() for label in (0, 1)}
    for row in table.itertuples():  # the label comes from the name, and the path leads to the file
        assert Path(row.path).name.startswith(CLASSES[row.label])
        assert dataset.root.joinpath(row.path).read_bytes() == files[outer + row.path]
    assert not dataset.is_phantom
    assert (table["mask"] == "").all()


def test_rows_are_sorted_by_split_label_and_path_and_covid_is_one(tmp_path):
    table = open_dataset(as_folder(course_tree(), tmp_path)).table
    order = {"train": 0, "val": 1, "test": 2}
    keys = [(order[row.split], row.label, row.path) for row in table.itertuples()]
    assert keys == sorted(keys)
    assert list(table.index) == list(range(len(table)))
    assert list(table.columns) == ["path", "label", "split", "source", "group", "mask"]
    assert table["path"][table["label"] == 1].str.contains("COVID").all()


def test_rows_of_a_split_number_the_table(tmp_path):
    dataset = open_dataset(as_folder(course_tree(), tmp_path))
    assert dataset.rows("train").tolist() == [0, 1, 2, 3, 4, 5]
    assert dataset.rows("test").tolist() == [10, 11, 12, 13]
    with pytest.raises(DataError, match="no split dev"):
        dataset.rows("dev")


def test_the_same_data_have_one_fingerprint_wherever_they_lie(tmp_path):
    files = course_tree()
    wrapped = {f"covid_xray/{name}": content for name, content in files.items()}
    backwards = dict(reversed(list(wrapped.items())))
    prints = {
        open_dataset(as_folder(files, tmp_path / "folder")).fingerprint,
        open_dataset(as_zip(backwards, tmp_path / "a.zip")).fingerprint,
        open_dataset(as_zip(wrapped, tmp_path / "b.zip", zipfile.ZIP_STORED)).fingerprint,
    }
    assert len(prints) == 1
    assert re.fullmatch("[0-9a-f]{16}", prints.pop())


def test_fingerprint_changes_with_content_name_label_and_split(tmp_path):
    files = course_tree()
    changed = {
        "same": dict(files),
        "content": files | {"train/COVID/COVID-0.png": grey_png(99)},
        "name": {k.replace("train/COVID/COVID-0", "train/COVID/x"): v for k, v in files.items()},
        "label": {k.replace("train/COVID/COVID-0", "train/NORMAL/x"): v for k, v in files.items()},
        "split": {k.replace("train/COVID/COVID-0", "val/COVID/x"): v for k, v in files.items()},
    }
    prints = {open_dataset(as_folder(f, tmp_path / k)).fingerprint for k, f in changed.items()}
    assert len(prints) == len(changed)
    swapped = open_dataset(tmp_path / "same", classes=("COVID", "NORMAL"))
    assert swapped.fingerprint not in prints


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
    lungs = np.zeros((12, 10), np.uint8)
    lungs[:, :5] = 255
    masks = {
        name.replace("phantoms/", "phantoms/masks/lungs/"): encoded(Image.fromarray(lungs))
        for name in files
    }
    files = files | masks | {"phantoms/phantoms.json": b"{}"}
    dataset = open_dataset(as_path(files, tmp_path, form))
    assert dataset.is_phantom
    assert list(dataset.table["mask"]) == [f"masks/lungs/{path}" for path in dataset.table["path"]]
    np.testing.assert_array_equal(
        datasets.load_masks(dataset, 10)[0], [[True] * 5 + [False] * 5] * 10
    )


def test_names_with_spaces_newlines_and_other_scripts(tmp_path):
    names = {f"train/COVID/{name}.png": grey_png(50 + i) for i, name in enumerate(
        ["two words", "线\nbreak", "рентген", "COVID-19 (1)", "100%, “x”"]
    )}  # fmt: skip
    for form in ("folder", "zip"):
        dataset = open_dataset(as_path(course_tree() | names, tmp_path, form))
        assert set(names) < set(dataset.table["path"])
        assert datasets.load_images(dataset, 8).shape == (19, 8, 8, 1)


# ---- the Kaggle tree ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("images", ["images/", ""], ids=["images and masks", "older"])
def test_kaggle_tree_is_dealt_80_10_10_in_each_class(tmp_path, form, images):
    dataset = open_dataset(as_path(kaggle_tree(20, images), tmp_path, form))
    counts = dataset.table.groupby(["split", "label"]).size().to_dict()
    assert counts == {
        (split, label): n
        for split, n in {"train": 16, "val": 2, "test": 2}.items()
        for label in (0, 1)
    }
    assert set(dataset.table["source"]) == {"COVID", "Normal"}
    if images:
        expected = dataset.table["path"].str.replace("/images/", "/masks/")
        pd.testing.assert_series_equal(dataset.table["mask"], expected, check_names=False)
        masks = datasets.load_masks(dataset, 4)
        np.testing.assert_array_equal(masks[7], [[False, False, True, True]] * 4)
    else:
        assert (dataset.table["mask"] == "").all()
        assert not datasets.load_masks(dataset, 4).any()


def metadata_of(folder: str, names: list[str], url: str) -> dict[str, bytes]:
    rows = "".join(f"{name},PNG,256*256,{url}\n" for name in names)
    table = f"FILE NAME,FORMAT,SIZE,URL\n{rows}".encode()
    return {f"COVID-19_Radiography_Dataset/{folder}.metadata.csv": table}


def test_kaggle_sources_come_from_the_metadata(tmp_path):
    files = kaggle_tree(20)
    covid = metadata_of("COVID", [f"COVID-{k}" for k in range(20)], "https://a.example")
    normal = metadata_of("Normal", [f"NORMAL-{k}" for k in range(19)], "https://b.example")
    dataset = open_dataset(as_zip(files | covid | normal, tmp_path / "k.zip"), as_found=True)
    source = dict(zip(dataset.table["path"], dataset.table["source"], strict=True))
    assert source.pop("Normal/images/Normal-19.png") == "Normal"  # one in twenty is not named
    assert set(source.values()) == {"https://a.example", "https://b.example"}
    assert any("Normal.metadata.csv names 19 of 20 images" in note for note in dataset.notes)


@pytest.mark.parametrize("named", [0, 18, None])
def test_sources_are_unknown_where_metadata_do_not_match(tmp_path, named):
    extra = metadata_of("COVID", [f"COVID-{k}" for k in range(20)], "https://a.example")
    if named is not None:
        names = [f"Normal-{k}" for k in range(named)] or ["NORMAL 1"]
        extra |= metadata_of("Normal", names, "https://b.example")
    dataset = open_dataset(as_zip(kaggle_tree(20) | extra, tmp_path / "k.zip"), as_found=True)
    assert set(dataset.table["source"]) == {"COVID", "Normal"}
    assert any("sources are unknown" in note for note in dataset.notes)


def test_metadata_of_another_shape_are_refused(tmp_path):
    extra = {"COVID-19_Radiography_Dataset/COVID.metadata.csv": b"a,b\n1,2\n"}
    with pytest.raises(DataError, match=r"COVID.metadata.csv .* FILE NAME and URL"):
        open_dataset(as_folder(kaggle_tree() | extra, tmp_path))


def test_the_split_is_dealt_once_and_then_read(tmp_path):
    archive, splits = as_zip(kaggle_tree(), tmp_path / "k.zip"), tmp_path / "results/splits.csv"
    first = open_dataset(archive, splits_file=splits, seed=1)
    written = pd.read_csv(splits)
    assert list(written.columns) == ["path", "label", "split", "fingerprint"]
    assert set(written["fingerprint"]) == {first.fingerprint}
    again = open_dataset(archive, splits_file=splits, seed=2)
    pd.testing.assert_frame_equal(first.table, again.table)
    assert first.fingerprint == again.fingerprint
    other = open_dataset(archive, seed=2)
    assert not other.table["path"].equals(first.table["path"])
    same = open_dataset(archive, seed=1)
    pd.testing.assert_frame_equal(first.table, same.table)


def change_content(archive: Path, splits: Path) -> Path:
    files = kaggle_tree()
    name = next(iter(files))
    return as_zip(files | {name: grey_png(77)}, archive.with_name("other.zip"))


def add_an_image(archive: Path, splits: Path) -> Path:
    return as_zip(kaggle_tree(21), archive.with_name("other.zip"))


def change_the_split(archive: Path, splits: Path) -> Path:
    splits.write_text(splits.read_text().replace("test", "val", 1))
    return archive


def write_another_table(archive: Path, splits: Path) -> Path:
    splits.write_text("name,part\na,train\n")
    return archive


def write_no_table(archive: Path, splits: Path) -> Path:
    splits.write_bytes(b"\xff\x00\xfe")
    return archive


@pytest.mark.parametrize(
    "change",
    [change_content, add_an_image, change_the_split, write_another_table, write_no_table],
    ids=lambda change: change.__name__,
)
def test_a_split_of_other_data_is_refused_and_left_alone(tmp_path, change):
    archive, splits = as_zip(kaggle_tree(), tmp_path / "k.zip"), tmp_path / "splits.csv"
    open_dataset(archive, splits_file=splits)
    archive = change(archive, splits)
    before = splits.read_bytes()
    with pytest.raises(DataError, match="split of other data"):
        open_dataset(archive, splits_file=splits)
    assert splits.read_bytes() == before


def test_the_data_set_is_that_of_the_course(tmp_path):
    for form, files in (("folder", course_tree()), ("zip", kaggle_tree())):
        path = as_path(files, tmp_path, form)
        ours, courses = open_dataset(path, seed=3), data.open_dataset(path, seed=3)
        pd.testing.assert_frame_equal(ours.table[["path", "label", "split"]], courses.table)
        assert ours.fingerprint == courses.fingerprint
        assert ours.left_out == courses.left_out


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("train/PNEUMONIA/person1000_bacteria_2931.jpeg", "person1000_bacteria"),
        ("Person7_virus_1.png", "person7_virus"),
        ("a/person7_12.png", "person7"),
        ("images_001/00000013_005.png", "00000013"),
        ("a/100000013_005.png", "a/100000013_005.png"),
        ("train/COVID/COVID-100.png", "train/COVID/COVID-100.png"),
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
    files = without("val")
    files["test/COVID/again.png"] = files["train/COVID/COVID-1.png"]
    path = as_zip(files, tmp_path / "set.zip")
    with pytest.raises(DataError, match="split val: no images of NORMAL or COVID"):
        open_dataset(path)
    table = open_dataset(path, as_found=True).table
    assert table.groupby(["split", "label"]).size().to_dict() == {
        ("train", 0): 3, ("train", 1): 3, ("test", 0): 2, ("test", 1): 3,
    }  # fmt: skip
    assert list(table["split"].unique()) == ["train", "test"]


def test_no_split_is_dealt_where_the_data_are_wanted_as_found(tmp_path):
    archive, splits = as_zip(kaggle_tree(), tmp_path / "k.zip"), tmp_path / "splits.csv"
    found = open_dataset(archive, splits_file=splits, as_found=True)
    assert set(found.table["split"]) == {""}
    assert not splits.exists()
    dealt = open_dataset(archive, splits_file=splits)
    again = open_dataset(archive, splits_file=splits, as_found=True)
    pd.testing.assert_frame_equal(again.table, dealt.table)
    assert again.fingerprint == dealt.fingerprint != found.fingerprint


def test_a_whole_data_set_is_the_same_as_found(tmp_path):
    path = as_folder(course_tree(), tmp_path)
    strict, found = open_dataset(path), open_dataset(path, classes=None, as_found=True)
    pd.testing.assert_frame_equal(strict.table, found.table)
    assert (strict.fingerprint, strict.classes) == (found.fingerprint, found.classes)


def renamed(files: dict[str, bytes], *names: tuple[str, str]) -> dict[str, bytes]:
    for old, new in names:
        files = {name.replace(old, new): content for name, content in files.items()}
    return files


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        (course_tree("x/", {"NORMAL": "normal"}), ("NORMAL", "COVID")),
        (kaggle_tree(), ("NORMAL", "COVID")),  # as a run takes it, without the other folders
        (renamed(course_tree(), ("COVID", "PNEUMONIA")), ("NORMAL", "PNEUMONIA")),
        (
            renamed(kaggle_tree(2), ("/COVID/", "/Atelectasis/")),
            ("Atelectasis", "Lung_Opacity", "Normal", "Viral Pneumonia"),
        ),
        ({"a/b/one/1.png": b"x", "a/b/two/1.png": b"x", "a/b/two/three/1.png": b"x"},
         ("one", "two")),
        ({"train/1.png": b"x", "masks/1.png": b"x", "only/1.png": b"x"}, ("only",)),
    ],
    ids=["course", "Kaggle", "pneumonia", "four", "outer", "one"],
)  # fmt: skip
def test_classes_are_found_where_they_are_not_named(tmp_path, files, classes):
    dataset = open_dataset(as_zip(files, tmp_path / "x.zip"), classes=None, as_found=True)
    assert dataset.classes == classes
    assert set(dataset.table["label"]) == set(range(len(classes)))


def test_images_without_folders_have_no_classes(tmp_path):
    with pytest.raises(DataError, match="no class folders with images"):
        open_dataset(as_folder({"1.png": b"x"}, tmp_path), classes=None, as_found=True)


def test_each_image_goes_on_past_what_cannot_be_read(tmp_path):
    files = course_tree() | {"train/COVID/bad.png": b"no image", "val/COVID/empty.png": b""}
    dataset = open_dataset(as_folder(files, tmp_path))
    seen = []
    means, unreadable = datasets.each_image(
        dataset, lambda pixels: pixels.mean(), lambda *done: seen.append(done)
    )
    assert set(unreadable) == {"train/COVID/bad.png", "val/COVID/empty.png"}
    assert "empty file" in unreadable["val/COVID/empty.png"]
    assert seen[-1] == (16, 16)
    rest = datasets.without(dataset, unreadable)
    assert rest.fingerprint == dataset.fingerprint
    assert list(rest.table.index) == list(range(14))
    expected = [decode(files[path], path).mean() for path in rest.table["path"]]
    np.testing.assert_array_equal(means, expected)


# ---- arrays -------------------------------------------------------------------------------------


def one_image_set(tmp_path: Path, pixels: np.ndarray, mask: np.ndarray | None = None):
    files = course_tree()
    files["train/COVID/COVID-0.png"] = encoded(Image.fromarray(pixels))
    if mask is not None:
        files["masks/lungs/train/COVID/COVID-0.png"] = encoded(Image.fromarray(mask))
    dataset = open_dataset(as_folder(files, tmp_path))
    row = list(dataset.table["path"]).index("train/COVID/COVID-0.png")
    return dataset, row


def triangle(n: int, size: int) -> np.ndarray:
    """Weights (size, n) of a bilinear filter widened to the reduction, from its definition."""
    scale = n / size
    centres = (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(n) + 0.5 - centres[:, None]) / max(scale, 1)
    weights = np.maximum(0, 1 - distance)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("shape", [(64, 64), (50, 31), (9, 7), (16, 16)], ids=str)
def test_images_are_resized_with_a_widened_triangle(tmp_path, shape):
    pixels = noise(20, *shape)
    dataset, row = one_image_set(tmp_path, pixels)
    images = datasets.load_images(dataset, 16)
    assert images.shape == (14, 16, 16, 1)
    assert images.dtype == np.uint8
    expected = triangle(shape[0], 16) @ pixels @ triangle(shape[1], 16).T
    np.testing.assert_allclose(images[row, ..., 0], expected, atol=1.01)


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_images_come_in_the_order_of_the_table(tmp_path, form):
    files = course_tree()
    dataset = open_dataset(as_path(files, tmp_path, form))
    images = datasets.load_images(dataset, 10)
    for row, path in enumerate(dataset.table["path"]):
        alone = Image.open(io.BytesIO(files[path])).resize((10, 10), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(images[row, ..., 0], alone)


def test_progress_counts_every_image(tmp_path):
    seen = []
    dataset = open_dataset(as_folder(course_tree(), tmp_path))
    datasets.load_images(dataset, 8, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 14) for i in range(1, 15)]


@pytest.mark.parametrize("highest", [1, 255])
def test_masks_are_cut_at_half_coverage(tmp_path, highest):
    mask = np.zeros((32, 32), np.uint8)
    mask[4:24, 9:] = highest
    dataset, row = one_image_set(tmp_path, noise(21, 32, 32), mask)
    masks = datasets.load_masks(dataset, 8)
    assert masks.dtype == bool
    assert masks.shape == (14, 8, 8)
    cover = triangle(32, 8) @ (mask > 0) @ triangle(32, 8).T
    assert np.abs(cover - 0.5).min() > 0.01  # so that rounding decides nothing
    np.testing.assert_array_equal(masks[row], cover > 0.5)
    assert masks.sum() == masks[row].sum()  # the others have none


def test_an_empty_mask_holds_nothing(tmp_path):
    dataset, row = one_image_set(tmp_path, noise(22, 8, 8), np.zeros((8, 8), np.uint8))
    assert dataset.table["mask"][row]
    assert not datasets.load_masks(dataset, 8).any()


def test_sizes_are_those_stored(tmp_path):
    files = course_tree()
    files["test/NORMAL/wide.png"] = encoded(Image.fromarray(noise(23, 5, 30, 3)))
    dataset = open_dataset(as_zip(files, tmp_path / "x.zip"))
    sizes = datasets.image_sizes(dataset)
    row = list(dataset.table["path"]).index("test/NORMAL/wide.png")
    assert sizes.loc[row].tolist() == [30, 5, "RGB", len(files["test/NORMAL/wide.png"])]
    others = sizes.drop(index=row)
    assert others[["width", "height", "mode"]].drop_duplicates().to_numpy().tolist() == [
        [10, 12, "L"]
    ]
    assert sizes["bytes"].tolist() == [len(files[path]) for path in dataset.table["path"]]


@pytest.mark.skipif(not COURSE_ZIP.exists(), reason=f"needs the course's data, {COURSE_ZIP}")
def test_the_courses_archive():
    dataset = open_dataset(COURSE_ZIP)
    counts = dataset.table.groupby(["split", "label"]).size().to_dict()
    expected = {"train": 800, "val": 200, "test": 100}
    assert counts == {(split, label): n for split, n in expected.items() for label in (0, 1)}
    sizes = datasets.image_sizes(dataset)
    assert sizes[["width", "height", "mode"]].drop_duplicates().to_numpy().tolist() == [
        [256, 256, "L"]
    ]
    images = datasets.load_images(dataset, 128)
    first = np.asarray(
        Image.open(io.BytesIO(data.read_bytes(dataset.root, dataset.table["path"][0])))
    )
    expected = triangle(256, 128) @ first @ triangle(256, 128).T
    np.testing.assert_allclose(images[0, ..., 0], expected, atol=1.01)
