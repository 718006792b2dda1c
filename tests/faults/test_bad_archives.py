"""Archives that would escape, burst or deceive: refused before anything is written."""

import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from image_files import as_zip, encoded, patched

from covid_lab.__main__ import main
from covid_lab.datasets import UnreadableImages, load_images, open_dataset
from covid_lab.reading import roots
from covid_project import data
from covid_project.data import DataError, ImageFiles

SEED = 21
PLACES = [f"{split}/{name}" for split in ("train", "val", "test") for name in ("COVID", "NORMAL")]
PLAIN_PATHS = "refused, nothing was unpacked.*not plain relative paths"
NO_ZIP = "cannot be read as a zip archive.*damaged"


def whole_set(rng) -> dict[str, bytes]:
    return {f"{place}/0.png": encoded(rng.integers(0, 256, (8, 8), np.uint8)) for place in PLACES}


def packed(path: Path, files: dict[str, bytes], *more: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    with zipfile.ZipFile(as_zip(files, path), "a", zipfile.ZIP_DEFLATED) as archive:
        for info, content in more:
            archive.writestr(info, content)
    content = path.read_bytes()
    path.unlink()
    return content


def escapes(rng, path: Path) -> Iterator[tuple[str, bytes, str]]:
    """Every way out of a folder, at a random depth: the way, an archive, and the reason."""
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
    for way, place in ways.items():
        info = zipfile.ZipInfo("placeholder")
        info.filename = info.orig_filename = place
        yield way, packed(path, whole_set(rng), (info, b"x")), PLAIN_PATHS
    for way, kind in {"link": stat.S_IFLNK, "device": stat.S_IFCHR, "pipe": stat.S_IFIFO}.items():
        info = zipfile.ZipInfo(f"train/COVID/{name}")
        info.external_attr = (kind | 0o777) << 16
        yield way, packed(path, whole_set(rng), (info, b"/etc/passwd")), "links or devices"
    other_case = rng.choice(["TRAIN/COVID/0.png", "train/covid/0.PNG", "Train/Covid/0.Png"])
    files = whole_set(rng) | {other_case: b"x"}
    yield "names that differ in case", packed(path, files), "same name"


def others(rng, path: Path) -> Iterator[tuple[str, bytes, str]]:
    files = whole_set(rng)
    whole = packed(path, files)
    bomb = packed(path, files | {"train/COVID/0.png": bytes(51_000_000)})
    yield "bomb by ratio", bomb, r"more than 200 : 1, as a bomb is: train/COVID/0\.png"
    encrypted = patched(whole, 8, 6, b"\x01\x00")
    yield "encrypted", encrypted, r"encrypted members: test/NORMAL/0\.png"
    yield "states more than 20 GB", many(path, 10), "bytes unpacked, more than 20,000,000,000"
    yield "cut off", whole[: rng.integers(1, len(whole) - 22)], NO_ZIP
    nested = packed(path, {"set.zip": whole, "inner/again.zip": whole})
    yield "nested", nested, "no images at all"
    alone = packed(path, {"train/COVID/0.png": whole})
    yield "archive alone in an archive", alone, "no images of NORMAL"
    yield "no archive", rng.bytes(2000), NO_ZIP
    yield "empty file", b"", NO_ZIP
    yield "empty archive", packed(path, {}), "no images at all"


def many(path: Path, members: int) -> bytes:
    """Stored members that state more than 20 GB together and hold nothing."""
    content = bytearray(packed(path, {f"train/COVID/{n}.png": b"x" for n in range(members)}))
    at = -1
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:
        struct.pack_into("<II", content, at + 20, 2**31, 2**31)  # packed and unpacked
    return bytes(content)


def everything_in(folder: Path) -> list[tuple[str, bytes]]:
    return sorted(
        (str(path), path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")
    )


@pytest.mark.parametrize("times", [1, pytest.param(50, marks=pytest.mark.long)])
def test_bad_archives_are_refused_and_leave_nothing(tmp_path, record, times):
    for seed in range(SEED, SEED + times):
        try_all(tmp_path, record, seed)


def try_all(tmp_path: Path, record, seed: int) -> None:
    """The lab refuses; the course only reads: it unpacks no archive, so that nothing escapes."""
    rng = np.random.default_rng(seed)
    path = tmp_path / "archive.zip"
    for fault, content, reason in [*escapes(rng, path), *others(rng, path)]:
        path.write_bytes(content)
        before = everything_in(tmp_path)
        with pytest.raises(DataError, match=rf"(?s)archive\.zip.*{reason}|{reason}.*archive\.zip"):
            open_dataset(path, splits_file=tmp_path / "results" / "splits.csv")
        assert everything_in(tmp_path) == before
        record("bad archive", fault, "refused with its reason, nothing written", SEED)
        try:
            dataset = data.open_dataset(path)
            ImageFiles(dataset, dataset.rows("train"), 8)[:]
        except DataError:  # anything else fails
            pass
        assert everything_in(tmp_path) == before


def test_too_many_members_and_other_packing_are_refused(tmp_path, record, monkeypatch):
    files = whole_set(np.random.default_rng(SEED))
    with pytest.raises(DataError, match=r"neither stored nor deflated: .* and 1 more"):
        open_dataset(as_zip(files, tmp_path / "lzma.zip", zipfile.ZIP_LZMA))
    monkeypatch.setattr(roots, "MAX_MEMBERS", 5)
    with pytest.raises(DataError, match="6 members, more than 5"):
        open_dataset(as_zip(files, tmp_path / "archive.zip"))
    record("bad archive", "bomb by count", "refused with its reason, nothing written", SEED)


def test_several_faults_are_named_together(tmp_path):
    files = whole_set(np.random.default_rng(SEED)) | {"../a.png": b"a", "/b.png": b"b"}
    files["TRAIN/covid/0.png"] = b"c"
    with pytest.raises(DataError, match=r"relative paths: \.\./a.png, /b.png; .*same name"):
        open_dataset(as_zip(files, tmp_path / "bad.zip"))


def test_the_audit_refuses_and_leaves_no_results(tmp_path, record, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "archive.zip"
    for fault, content, reason in escapes(np.random.default_rng(SEED), path):
        path.write_bytes(content)
        assert main(["audit", "--data", str(path), "--out", "r"]) == 2
        assert reason.rpartition(".*")[2] in capsys.readouterr().err
        assert os.listdir(tmp_path) == ["archive.zip"]
        record("bad archive", f"audit, {fault}", "refused, nothing left behind", SEED)


def test_a_member_that_lies_about_its_size_is_not_unpacked(tmp_path, record, monkeypatch):
    monkeypatch.setattr(data, "MAX_FILE_BYTES", 10_000)
    files = whole_set(np.random.default_rng(SEED))
    files["train/COVID/big.png"] = b"x" * 20_000
    files["train/COVID/liar.png"] = files["train/COVID/0.png"] + bytes(20_000_000)
    path = tmp_path / "archive.zip"
    path.write_bytes(patched(packed(path, files), 24, 22, struct.pack("<I", 300)))
    unpacked, read = [], zipfile.ZipExtFile.read

    def counted(member, n=-1):
        content = read(member, n)
        unpacked.append(len(content))
        return content

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    with pytest.raises(UnreadableImages) as caught:
        load_images(open_dataset(path), 8)
    reasons = dict(caught.value.unreadable)
    assert "larger than" in reasons["train/COVID/big.png"]
    assert "CRC" in reasons["train/COVID/liar.png"]
    assert max(unpacked) <= data.MAX_FILE_BYTES + 1
    record("bad archive", "member that states 300 bytes", "listed by name, not unpacked", SEED)
