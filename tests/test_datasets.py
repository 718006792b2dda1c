"""Every layout, every refusal, and every kind of image against an expectation of its own."""

import io
import os
import pickle
import re
import stat
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from covid_lab import datasets
from covid_lab.datasets import UnreadableImage, UnreadableImages, open_dataset
from covid_lab.explain.pictures import Picture
from covid_lab.reading import roots
from covid_project import data
from covid_project.data import CLASSES, DataError
from covid_project.images import decode

COURSE_ZIP = Path(__file__).resolve().parents[2] / "shared" / "data" / "covid_xray.zip"
COURSE = {"train": 3, "val": 2, "test": 2}  # images per class of the small course tree


# ---- making files -------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def grey_png(seed: int, height: int = 12, width: int = 10) -> bytes:
    return encoded(Image.fromarray(noise(seed, height, width)))


def course_tree(outer: str = "", spelled: dict[str, str] | None = None) -> dict[str, bytes]:
    """Names and contents of a small course tree, every image different."""
    spelled = spelled or {}
    names = [
        f"{outer}{spelled.get(split, split)}/{spelled.get(name, name)}/{name}-{i}.png"
        for split, n in COURSE.items()
        for name in CLASSES
        for i in range(n)
    ]
    return {name: grey_png(seed) for seed, name in enumerate(names)}


def kaggle_tree(n: int = 20, images: str = "images/") -> dict[str, bytes]:
    outer = "COVID-19_Radiography_Dataset"
    files = {}
    for seed, name in enumerate(["COVID", "Normal", "Lung_Opacity", "Viral Pneumonia"]):
        for i in range(n):
            files[f"{outer}/{name}/{images}{name}-{i}.png"] = grey_png(1000 * seed + i)
            if images:
                files[f"{outer}/{name}/masks/{name}-{i}.png"] = encoded(
                    Image.fromarray(np.uint8([[0, 255], [0, 255]])).convert("RGB")
                )
    return files


def as_folder(files: dict[str, bytes], where: Path) -> Path:
    for name, content in files.items():
        path = where / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return where


def as_zip(files: dict[str, bytes], path: Path, kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def as_path(files: dict[str, bytes], where: Path, form: str) -> Path:
    return as_folder(files, where / "set") if form == "folder" else as_zip(files, where / "set.zip")


def png(width: int, height: int, bits: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """Return a PNG written by hand; colour 0: grey, 2: RGB; each row starts with a zero."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def grey_tiff(width: int, bits: int, white_is_zero: bool, row: bytes) -> bytes:
    """Return an uncompressed TIFF of one row, written by hand."""
    entries = {256: width, 257: 1, 258: bits, 259: 1, 262: 0 if white_is_zero else 1}
    entries |= {273: 8 + 2 + 8 * 12 + 4, 277: 1, 279: len(row)}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + fields + struct.pack("<I", 0) + row


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


# ---- refusals of a tree -------------------------------------------------------------------------


def without(*words: str) -> dict[str, bytes]:
    """Return a course tree without the names that hold all the words."""
    return {k: v for k, v in course_tree().items() if not all(word in k for word in words)}


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        (without("COVID"), r"split train: no images of COVID\..*train/NORMAL \(3\)"),
        (without("val"), "split val: no images of NORMAL or COVID"),
        (without("t"), "split train: no images of NORMAL or COVID"),
        (without("val", "COVID"), r"split val: no images of COVID\..*val/NORMAL \(2\)"),
        (
            without("val", "COVID") | {"val/COVID/notes.txt": b"x"},
            r"split val: no images of COVID\.",
        ),
        ({"notes.txt": b"x"}, "no class folder NORMAL or COVID.*no images at all"),
        ({"cats/1.png": b"x"}, r"no class folder NORMAL or COVID.*cats \(1\)"),
        ({"inner.zip": b"PK"}, "no class folder NORMAL or COVID.*no images at all"),
        (course_tree("a/") | course_tree("b/"), "several data sets side by side: a, b"),
    ],
    ids=["class", "split", "splits", "empty class", "no image in class", "nothing", "other classes",
         "nested zip", "two sets"],
)  # fmt: skip
def test_gaps_are_named_with_what_was_found(tmp_path, form, files, message):
    with pytest.raises(DataError, match=message):
        open_dataset(as_path(files, tmp_path, form))


def test_a_file_in_two_splits_is_named_and_refused_unless_allowed(tmp_path):
    files = course_tree()
    files["test/COVID/again.png"] = files["train/COVID/COVID-1.png"]
    files["train/COVID/twice.png"] = files["train/COVID/COVID-2.png"]  # in one split: no leak
    files["val/NORMAL/empty.png"] = files["test/NORMAL/empty.png"] = b""  # no content to share
    path = as_zip(files, tmp_path / "x.zip")
    with pytest.raises(DataError) as caught:
        open_dataset(path)
    assert "1 file(s)" in str(caught.value)
    assert "test/COVID/again.png = train/COVID/COVID-1.png" in str(caught.value)
    assert "twice" not in str(caught.value)
    assert len(open_dataset(path, allow_shared_files=True).table) == 18


def test_no_such_path_and_no_archive(tmp_path):
    text, pipe = tmp_path / "notes.zip", tmp_path / "pipe"
    text.write_text("hello")
    os.mkfifo(pipe)
    with pytest.raises(DataError, match=r"no such path: .*missing"):
        open_dataset(tmp_path / "missing")
    with pytest.raises(DataError, match="no such path"):
        open_dataset("x" * 5000)
    with pytest.raises(DataError, match="cannot be read as a zip archive"):
        open_dataset(text)
    with pytest.raises(DataError, match="neither a folder nor a file"):
        open_dataset(pipe)


def test_linked_folders_are_read_and_loops_are_not(tmp_path):
    root = as_folder(course_tree(), tmp_path / "set")
    outside = as_folder(
        {"COVID/extra.png": grey_png(60), "alone.png": grey_png(61)}, tmp_path / "out"
    )
    (root / "train/loop").symlink_to(root)
    (root / "train/COVID/self").symlink_to(root / "train/COVID")
    (root / "valid").symlink_to(outside)  # a folder elsewhere: followed
    (root / "train/COVID/file.png").symlink_to(outside / "alone.png")  # one file: followed
    dataset = open_dataset(root)
    linked = {"train/COVID/file.png", "valid/COVID/extra.png"}
    assert set(dataset.table["path"]) == {*course_tree(), *linked}
    (root / "train/COVID/broken.png").symlink_to("nowhere")
    (root / "train/COVID/circle.png").symlink_to("circle.png")
    dataset = open_dataset(root)
    with pytest.raises(UnreadableImages) as caught:
        datasets.load_images(dataset, 8)
    unreadable = dict(caught.value.unreadable)
    assert {Path(name).stem for name in unreadable} == {"broken", "circle"}
    assert all("not a regular file" in reason for reason in unreadable.values())
    (root / "train/COVID/device.png").symlink_to("/dev/zero")
    os.mkfifo(root / "train/COVID/pipe.png")
    with pytest.raises(DataError, match=r"devices or pipes .*device\.png, .*pipe\.png"):
        open_dataset(root)


def test_a_file_name_that_is_no_text_is_refused(tmp_path):
    root = as_folder(course_tree(), tmp_path)
    try:
        Path(os.fsdecode(os.fsencode(root / "train/COVID") + b"/\xff.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes only valid names")
    with pytest.raises(DataError, match="not valid UTF-8"):
        open_dataset(root)


# ---- refusals of an archive ---------------------------------------------------------------------


def member(name: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    ("info", "fault"),
    [
        (member("/etc/x.png"), "not plain relative paths: /etc/x.png"),
        (member("../x.png"), "not plain relative paths"),
        (member("train/COVID/../../../x.png"), "not plain relative paths"),
        (member("C:/x.png"), "not plain relative paths: C:/x.png"),
        (member("..\\x.png"), "not plain relative paths"),
        (member("train//x.png"), "not plain relative paths"),
        (member("train/COVID/link.png", stat.S_IFLNK | 0o777), "links or devices"),
        (member("train/COVID/device.png", stat.S_IFCHR | 0o666), "links or devices"),
        (member("train/COVID/COVID-0.png"), "same name"),
        (member("TRAIN/covid/covid-0.PNG"), "same name"),
    ],
    ids=["absolute", "up", "up inside", "drive", "backslash", "empty part", "link", "device",
         "same name", "other case"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_a_tampered_archive_are_refused(tmp_path, info, fault):
    path = as_zip(course_tree(), tmp_path / "bad.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, grey_png(70))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=rf"bad.zip is refused, nothing was unpacked.*{fault}"):
        open_dataset(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_several_faults_are_named_together(tmp_path):
    files = course_tree() | {"../a.png": b"a", "/b.png": b"b", "TRAIN/covid/COVID-0.png": b"c"}
    with pytest.raises(DataError, match=r"relative paths: \.\./a.png, /b.png; .*same name"):
        open_dataset(as_zip(files, tmp_path / "bad.zip"))


def patched(path: Path, central: int, local: int, value: bytes) -> Path:
    """Overwrite a field of the last member, at these offsets in its two headers."""
    content = bytearray(path.read_bytes())
    start = content.rindex(b"PK\x01\x02")
    content[start + central : start + central + len(value)] = value
    start = content.rindex(b"PK\x03\x04")
    content[start + local : start + local + len(value)] = value
    path.write_bytes(content)
    return path


def test_encrypted_and_strangely_packed_members_are_refused(tmp_path):
    path = patched(as_zip(course_tree(), tmp_path / "a.zip"), 8, 6, b"\x01\x00")
    with pytest.raises(DataError, match=r"encrypted members: test/COVID/COVID-1\.png"):
        open_dataset(path)
    path = as_zip(course_tree(), tmp_path / "b.zip", zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match=r"neither stored nor deflated: .* and 9 more"):
        open_dataset(path)


def test_bombs_are_refused_by_their_declaration(tmp_path, monkeypatch):
    ratio = as_zip(course_tree() | {"train/COVID/0.png": bytes(51_000_000)}, tmp_path / "ratio.zip")
    with pytest.raises(DataError, match=r"more than 200 : 1, as a bomb is: train/COVID/0\.png"):
        open_dataset(ratio)
    for limit, value, message in [
        ("MAX_MEMBERS", 13, "14 members, more than 13"),
        ("MAX_UNPACKED_BYTES", 1000, "bytes unpacked, more than 1,000"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(roots, limit, value)
            path = as_zip(course_tree(), tmp_path / "x.zip")
            with pytest.raises(DataError, match=message):
                open_dataset(path)


def test_a_member_that_lies_about_its_size_is_listed_and_never_unpacked_whole(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("covid_project.data.MAX_FILE_BYTES", 10_000)
    files = course_tree() | {"train/COVID/big.png": b"x" * 20_000}
    files["train/COVID/liar.png"] = grey_png(80) + bytes(20_000_000)
    path = as_zip(files, tmp_path / "x.zip")
    patched(path, 24, 22, struct.pack("<I", 300))
    dataset = open_dataset(path)
    tracemalloc.start()
    with pytest.raises(UnreadableImages) as caught:
        datasets.load_images(dataset, 8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000
    reasons = dict(caught.value.unreadable)
    assert "larger than" in reasons["train/COVID/big.png"]
    assert "CRC" in reasons["train/COVID/liar.png"]


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_archive_is_refused_or_names_its_damaged_images(tmp_path_factory, choose):
    whole = as_zip(course_tree(), tmp_path_factory.mktemp("zip") / "x.zip")
    content = bytearray(whole.read_bytes())
    at = choose.draw(st.integers(0, len(content) - 1))
    if choose.draw(st.booleans()):
        del content[at:]
    else:
        content[at] ^= choose.draw(st.integers(1, 255))
    whole.write_bytes(content)
    try:
        images = datasets.load_images(open_dataset(whole), 8)
    except DataError:  # anything else fails
        return
    assert images.dtype == np.uint8


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_off_archive_is_refused(tmp_path, share):
    path = as_zip(course_tree(), tmp_path / "cut.zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"cut.zip cannot be read as a zip archive.*damaged"):
        open_dataset(path)


# ---- kinds of images ----------------------------------------------------------------------------

RGB = noise(1, 9, 7, 3)
LUMINANCE = RGB @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2
GREY = noise(2, 9, 7)
ALPHA = noise(3, 9, 7)
WORDS = np.random.default_rng(4).integers(0, 2**16, (9, 7), dtype=np.uint16)
CMYK = noise(5, 9, 7, 4)
BITS = noise(6, 9, 7) > 127


def rgb_of_cmyk() -> np.ndarray:
    ink = CMYK.astype(float) / 255
    return 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])


def palette_image(transparent: int | None = None) -> bytes:
    image = Image.frombytes("P", (7, 9), (GREY // 64).tobytes())
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 90, 90, 90])
    return encoded(image, **({} if transparent is None else {"transparency": transparent}))


PALETTE = np.array([0.299 * 255, 0.587 * 255, 0.114 * 255, 90.0])[GREY // 64]
TWO_BITS = png(8, 1, 2, 0, b"\0" + bytes([0b00011011, 0b11100100]))
MARKED = chunk(b"tRNS", struct.pack(">H", 50000))  # 16-bit grey 50000 is transparent
TWELVE = bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x00])  # 0, 4095, 2048, 0 in 12 bits each

READABLE = {
    "grey": (encoded(Image.fromarray(GREY)), GREY, 0),
    "grey bmp": (encoded(Image.fromarray(GREY), "BMP"), GREY, 0),
    "grey gif": (encoded(Image.fromarray(GREY), "GIF"), GREY, 0),
    "grey tiff": (encoded(Image.fromarray(GREY), "TIFF"), GREY, 0),
    "grey tiff, lzw": (
        encoded(Image.fromarray(GREY), "TIFF", compression="tiff_lzw"),
        GREY,
        0,
    ),
    "grey webp": (encoded(Image.fromarray(GREY), "WEBP", lossless=True), GREY, 1),
    "rgb": (encoded(Image.fromarray(RGB)), LUMINANCE, 1),
    "rgb bmp": (encoded(Image.fromarray(RGB), "BMP"), LUMINANCE, 1),
    "rgb tiff": (encoded(Image.fromarray(RGB), "TIFF"), LUMINANCE, 1),
    "rgb webp": (encoded(Image.fromarray(RGB), "WEBP", lossless=True), LUMINANCE, 1),
    "rgb, 16 bit": (
        png(7, 9, 16, 2, b"".join(b"\0" + row.tobytes() for row in RGB.astype(">u2") * 257)),
        LUMINANCE,
        1,
    ),
    "palette": (palette_image(), PALETTE, 1),
    "palette with a transparent colour": (palette_image(1), PALETTE * (GREY // 64 != 1), 1),
    "rgb and alpha": (
        encoded(Image.fromarray(np.dstack([RGB, ALPHA]))),
        LUMINANCE * ALPHA / 255,
        1.5,
    ),
    "grey and alpha": (
        encoded(Image.fromarray(np.dstack([GREY, ALPHA]))),
        GREY * (ALPHA / 255),
        1,
    ),
    "grey with a transparent value": (
        encoded(Image.fromarray(GREY), transparency=int(GREY[0, 0])),
        GREY * np.not_equal(GREY, GREY[0, 0]),
        0,
    ),
    "cmyk tiff": (
        encoded(Image.frombytes("CMYK", (7, 9), CMYK.tobytes()), "TIFF"),
        rgb_of_cmyk() @ np.array([0.299, 0.587, 0.114]),
        1.5,
    ),
    "1 bit": (encoded(Image.fromarray(BITS)), 255 * BITS, 0),
    "1 bit tiff": (
        encoded(Image.fromarray(BITS), "TIFF", compression="group4"),
        255 * BITS,
        0,
    ),
    "2 bits": (TWO_BITS, np.array([[0, 85, 170, 255, 255, 170, 85, 0]]), 0),
    "16 bits": (encoded(Image.fromarray(WORDS)), np.round(WORDS / 257.0), 0),
    "16 bits tiff": (encoded(Image.fromarray(WORDS), "TIFF"), np.round(WORDS / 257.0), 0),
    "16 bits with a transparent value": (
        png(3, 1, 16, 0, b"\0" + struct.pack(">HHH", 40000, 50000, 65535), MARKED),
        np.array([[156, 0, 255]]),
        0,
    ),
    "16 bits, white is zero": (
        grey_tiff(3, 16, True, struct.pack("<HHH", 0, 65535, 257)),
        np.array([[255, 0, 254]]),
        0,
    ),
    "12 bits": (grey_tiff(4, 12, False, TWELVE), np.array([[0, 255, 128, 0]]), 0),
    "wrong suffix": (encoded(Image.fromarray(GREY), "BMP"), GREY, 0),
}


@pytest.mark.parametrize("kind", READABLE)
def test_kinds_of_images_become_grey_as_expected(kind):
    content, expected, tolerance = READABLE[kind]
    pixels = decode(content, f"{kind}.png")
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels, expected, atol=tolerance)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_is_read_through_its_colours(mode):
    # Smooth colours, so that what the compression loses is little.
    ramp = np.add.outer(np.arange(64), np.arange(48))[..., None] * np.array([2, 1, 0.5])
    image = Image.fromarray(ramp.astype(np.uint8)).convert(mode)
    expected = ramp.astype(np.uint8) @ np.array([0.299, 0.587, 0.114])
    pixels = decode(encoded(image, "JPEG", quality=100, subsampling=0), "x.jpg")
    np.testing.assert_allclose(pixels, expected, atol=4)


UPRIGHT = GREY[:8, :6]
STORED = {  # EXIF orientation: how the camera stores what is upright
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: UPRIGHT.T[::-1],
    7: UPRIGHT.T[::-1, ::-1],
    8: UPRIGHT.T[:, ::-1],
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    np.testing.assert_array_equal(decode(encoded(image, kind, exif=exif), "x"), UPRIGHT)


def frames(kind: str) -> bytes:
    more = [Image.fromarray(noise(seed, 9, 7)) for seed in (8, 9)]
    return encoded(Image.fromarray(GREY), kind, save_all=True, append_images=more)


UNREADABLE = {
    "empty": (b"", "empty file"),
    "text": (b"not an image at all", "not an image"),
    "pdf": (b"%PDF-1.4\n" + bytes(100), "not an image"),
    "no pixels": (png(0, 5, 8, 0, b""), "not an image"),
    "giant": (png(50_000, 50_000, 8, 0, b""), "pixels"),
    "large": (png(8001, 8000, 8, 0, b""), "more than 64 million pixels"),
    "warned of by Pillow": (png(10_000, 10_000, 8, 0, b""), "more than 64 million pixels"),
    "gif of three": (frames("GIF"), "3 frames"),
    "png of three": (frames("PNG"), "3 frames"),
    "webp of three": (frames("WEBP"), "3 frames"),
    "tiff of three": (frames("TIFF"), "3 frames"),
    "float": (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "float"),
    "32 bits": (encoded(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"), "32-bit"),
    "broken check sum": (
        READABLE["grey"][0].replace(b"IDAT", b"IDAT\x00", 1),
        "damaged",
    ),
} | {
    f"{kind} cut at {share}": (content[: int(share * len(content))], "damaged")
    for share in (0.2, 0.5, 0.9)
    for kind, content in {
        "png": encoded(Image.fromarray(noise(7, 40, 40))),
        "jpeg": encoded(Image.fromarray(noise(7, 40, 40)), "JPEG"),
        "bmp": encoded(Image.fromarray(noise(7, 40, 40)), "BMP"),
        "gif": encoded(Image.fromarray(noise(7, 40, 40)), "GIF"),
        "tiff": encoded(Image.fromarray(noise(7, 40, 40)), "TIFF"),
        "tiff lzw": encoded(Image.fromarray(noise(7, 40, 40)), "TIFF", compression="tiff_lzw"),
        "webp": encoded(Image.fromarray(noise(7, 40, 40)), "WEBP"),
    }.items()
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_says_why_without_a_warning(tmp_path, kind):
    content, reason = UNREADABLE[kind]
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        with pytest.raises(UnreadableImage, match=reason) as caught:
            Picture(path, None, tmp_path, path.name).grey()
    assert not leaked
    assert caught.value.name == str(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}"


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_all_unreadable_images_of_a_set_are_named_at_once(tmp_path, form):
    bad = {f"train/COVID/{kind}.png": content for kind, (content, _) in UNREADABLE.items()}
    dataset = open_dataset(as_path(course_tree() | bad, tmp_path, form))
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        with pytest.raises(DataError) as caught:
            datasets.load_images(dataset, 8)
    assert not leaked
    assert [name for name, _ in caught.value.unreadable] == sorted(bad)
    assert f"{len(bad)} image(s) cannot be read" in str(caught.value)
    for name, reason in caught.value.unreadable:
        assert UNREADABLE[Path(name).stem][1] in reason
    first, reason = caught.value.unreadable[0]
    assert f"{first}: {reason}" in str(caught.value)


def test_a_long_list_is_cut_and_counted():
    error = UnreadableImages([(f"{i}.png", "empty") for i in range(72)])
    assert "72 image(s)" in str(error)
    assert "19.png: empty\n… and 52 more" in str(error)
    assert "20.png" not in str(error)
    assert len(error.unreadable) == 72


@pytest.mark.parametrize(
    "error", [UnreadableImage("a", "b"), UnreadableImages([("a", "b")]), DataError("c")]
)
def test_errors_survive_the_way_to_another_process(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))


WHOLE = {
    "png": encoded(Image.fromarray(noise(10, 20, 16, 3))),
    "jpeg": encoded(Image.fromarray(noise(11, 20, 16, 3)), "JPEG"),
}


@settings(max_examples=150)
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), max_size=6),
    st.integers(1, 10_000),
)
def test_mutated_files_are_read_or_refused_and_nothing_else(kind, flips, length):
    content = bytearray(WHOLE[kind][:length])
    for at, mask in flips:
        content[at % len(content)] ^= mask
    try:
        pixels = decode(bytes(content), kind)
    except DataError:  # anything else fails
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 2


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


def test_warning_filters_are_left_as_they_were(tmp_path):
    before = list(warnings.filters)
    datasets.load_images(open_dataset(as_folder(course_tree(), tmp_path)), 8)
    decode(READABLE["grey"][0], "x")
    assert list(warnings.filters) == before


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
        Image.open(io.BytesIO(datasets._read(dataset.root, dataset.table["path"][0])))
    )
    expected = triangle(256, 128) @ first @ triangle(256, 128).T
    np.testing.assert_allclose(images[0, ..., 0], expected, atol=1.01)
