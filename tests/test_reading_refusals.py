"""Folders and archives that are refused, each with its reason."""

import os
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import (
    as_folder,
    as_path,
    as_zip,
    course_tree,
    grey_png,
    without,
)

from covid_lab import datasets
from covid_lab.datasets import UnreadableImages, open_dataset
from covid_lab.reading import roots
from covid_project.data import DataError

# ---- refusals of a tree -------------------------------------------------------------------------


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
    unpacked, read = [], zipfile.ZipExtFile.read

    def counted(member, n=-1):
        content = read(member, n)
        unpacked.append(len(content))
        return content

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    with pytest.raises(UnreadableImages) as caught:
        datasets.load_images(open_dataset(path), 8)
    assert max(unpacked) <= 10_001
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
