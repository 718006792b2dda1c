"""Archives that would escape, burst or deceive: refused before anything is written."""

import io
import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covid_lab.__main__ import main
from covid_lab.datasets import load_images, open_dataset
from covid_lab.reading import roots
from covid_project import data
from covid_project.data import DataError, ImageFiles

SEED = 21
PLACES = [f"{split}/{name}" for split in ("train", "val", "test") for name in ("COVID", "NORMAL")]


def whole_set(rng) -> dict[str, bytes]:
    files = {}
    for place in PLACES:
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(stream, "PNG")
        files[f"{place}/0.png"] = stream.getvalue()
    return files


def packed(files: dict[str, bytes], *more: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for info, content in more:
            archive.writestr(info, content)
    return stream.getvalue()


def patched(archive: bytes, central: int, local: int, value: bytes) -> bytes:
    """Overwrite a field of the last member, at these offsets in its two headers."""
    content = bytearray(archive)
    for mark, offset in ((b"PK\x01\x02", central), (b"PK\x03\x04", local)):
        start = content.rindex(mark) + offset
        content[start : start + len(value)] = value
    return bytes(content)


def escapes(rng) -> Iterator[tuple[str, bytes]]:
    """Every way out of a folder, at a random depth."""
    inside = "/".join(rng.choice(["train", "x", "COVID"], rng.integers(0, 4)))
    name = f"f{rng.integers(1000)}.png"
    ways = {
        "absolute path": f"/tmp/{name}",
        "parent folder": f"{inside}/../../../../../{name}",
        "parent folder at the start": f"../{name}",
        "drive letter": f"C:/{inside}/{name}",
        "drive letter, backslashes": f"C:\\{name}",
        "share of a network": f"\\\\host\\share\\{name}",
        "backslashes": f"..\\..\\{name}",
        "empty part": f"train//{name}",
        "dot": f"train/./{name}",
        "zero byte": f"train/COVID/x.png\0{name}",
    }
    for way, path in ways.items():
        info = zipfile.ZipInfo("placeholder")
        info.filename = info.orig_filename = path
        yield way, packed(whole_set(rng), (info, b"x"))
    for way, kind in {"link": stat.S_IFLNK, "device": stat.S_IFCHR, "pipe": stat.S_IFIFO}.items():
        info = zipfile.ZipInfo(f"train/COVID/{name}")
        info.external_attr = (kind | 0o777) << 16
        yield way, packed(whole_set(rng), (info, b"/etc/passwd"))
    other_case = rng.choice(["TRAIN/COVID/0.png", "train/covid/0.PNG", "Train/Covid/0.Png"])
    yield "names that differ in case", packed(whole_set(rng) | {other_case: b"x"})


def others(rng) -> Iterator[tuple[str, bytes]]:
    files = whole_set(rng)
    whole = packed(files)
    yield "bomb by ratio", packed(files | {"train/COVID/0.png": bytes(51_000_000)})
    yield "encrypted", patched(whole, 8, 6, b"\x01\x00")
    yield "states more than 20 GB", many(10)
    yield "cut off", whole[: rng.integers(1, len(whole) - 22)]
    yield "nested", packed({"set.zip": whole, "inner/again.zip": whole})
    yield "archive alone in an archive", packed({"train/COVID/0.png": whole})
    yield "no archive", rng.bytes(2000)
    yield "empty file", b""
    yield "empty archive", packed({})


def many(members: int) -> bytes:
    """Stored members that state more than 20 GB together and hold nothing."""
    content = bytearray(packed({f"train/COVID/{n}.png": b"x" for n in range(members)}))
    at = -1
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:
        struct.pack_into("<II", content, at + 20, 2**31, 2**31)  # packed and unpacked
    return bytes(content)


def everything_in(folder: Path) -> list[tuple[str, bytes]]:
    return sorted(
        (str(path), path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")
    )


def try_all(tmp_path: Path, record, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number, (fault, content) in enumerate([*escapes(rng), *others(rng)]):
        place = tmp_path / f"{seed}-{number}"
        place.mkdir()
        path = place / "archive.zip"
        path.write_bytes(content)
        before = everything_in(place)
        with pytest.raises(DataError, match=r"archive\.zip") as caught:
            open_dataset(path, splits_file=place / "results" / "splits.csv")
        assert len(str(caught.value)) > 40  # a reason
        assert everything_in(place) == before
        record("bad archive", fault, "refused with its reason, nothing written", SEED)


def test_bad_archives_are_refused_and_leave_nothing(tmp_path, record):
    try_all(tmp_path, record, SEED)


@pytest.mark.long
def test_fifty_times_all_bad_archives(tmp_path, record):
    for seed in range(SEED, SEED + 50):
        try_all(tmp_path, record, seed)


def test_too_many_members_are_refused(tmp_path, record, monkeypatch):
    monkeypatch.setattr(roots, "MAX_MEMBERS", 2000)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(2001):
            archive.writestr(f"train/COVID/{number}.png", b"")
    (tmp_path / "archive.zip").write_bytes(stream.getvalue())
    with pytest.raises(DataError, match="2,001 members, more than 2,000"):
        open_dataset(tmp_path / "archive.zip")
    record("bad archive", "bomb by count", "refused with its reason, nothing written", SEED)


def test_the_course_only_reads_and_leaves_nothing(tmp_path, record):
    """The course package does not examine archives: it unpacks none, so that nothing escapes."""
    rng = np.random.default_rng(SEED)
    for number, (fault, content) in enumerate([*escapes(rng), *others(rng)]):
        place = tmp_path / str(number)
        place.mkdir()
        path = place / "archive.zip"
        path.write_bytes(content)
        before = everything_in(tmp_path)
        try:
            dataset = data.open_dataset(path)
            ImageFiles(dataset, dataset.rows("train"), 8)[:]
            outcome = "read"
        except DataError:
            outcome = "refused with its reason"
        assert everything_in(tmp_path) == before
        record("bad archive", f"course, {fault}", f"{outcome}, nothing written", SEED)


def test_the_audit_refuses_and_leaves_no_results(tmp_path, record, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, (fault, content) in enumerate(escapes(np.random.default_rng(SEED))):
        path = tmp_path / f"{number}.zip"
        path.write_bytes(content)
        assert main(["audit", "--data", str(path), "--out", "r"]) == 2
        assert f"{number}.zip" in capsys.readouterr().err
        path.unlink()
        assert os.listdir(tmp_path) == []
        record("bad archive", f"audit, {fault}", "refused, nothing left behind", SEED)


# ---- what an archive unpacks to -----------------------------------------------------------------


def test_a_member_that_lies_about_its_size_is_not_unpacked(tmp_path, record, monkeypatch):
    files = whole_set(np.random.default_rng(SEED))
    files["train/COVID/liar.png"] = files["train/COVID/0.png"] + bytes(700_000_000)
    path = tmp_path / "archive.zip"
    path.write_bytes(patched(packed(files), 24, 22, struct.pack("<I", 300)))
    unpacked, read = [], zipfile.ZipExtFile.read

    def counted(member, n=-1):
        content = read(member, n)
        unpacked.append(len(content))
        return content

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    with pytest.raises(DataError, match=r"liar\.png"):
        load_images(open_dataset(path), 8)
    assert max(unpacked) <= data.MAX_FILE_BYTES + 1
    record("bad archive", "member that states 300 bytes and holds 700 MB",
           "listed by name, not unpacked", SEED)  # fmt: skip
