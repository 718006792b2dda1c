"""Folders and damaged archives that are refused, each with its reason."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import as_folder, as_path, as_zip, course_tree, grey_png

from covid_lab import datasets
from covid_lab.datasets import UnreadableImages, open_dataset
from covid_project.data import DataError


def without(*words: str) -> dict[str, bytes]:
    """Return a course tree without the names that hold all the words."""
    return {k: v for k, v in course_tree().items() if not all(word in k for word in words)}


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
def test_gaps_are_named_with_what_was_found(tmp_path, files, message):
    for form in ("folder", "zip"):
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
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", "x" * 5000):
        with pytest.raises(DataError, match="no such path"):
            open_dataset(path)
    with pytest.raises(DataError, match="neither a folder nor a file"):
        open_dataset(tmp_path / "pipe")


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
    with pytest.raises(UnreadableImages) as caught:
        datasets.load_images(open_dataset(root), 8)
    unreadable = dict(caught.value.unreadable)
    assert {Path(name).stem for name in unreadable} == {"broken", "circle"}
    assert all("no regular file" in reason for reason in unreadable.values())
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
