"""Image files, trees of them and archives, made by hand for the tests of reading."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from covid_project.data import CLASSES

COURSE = {"train": 3, "val": 2, "test": 2}  # images per class of the small course tree


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def grey_png(seed: int, height: int = 12, width: int = 10) -> bytes:
    return encoded(noise(seed, height, width))


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
    mask = encoded(Image.fromarray(np.uint8([[0, 255], [0, 255]])).convert("RGB"))
    files = {}
    for seed, name in enumerate(["COVID", "Normal", "Lung_Opacity", "Viral Pneumonia"]):
        for i in range(n):
            files[f"{outer}/{name}/{images}{name}-{i}.png"] = grey_png(1000 * seed + i)
            if images:
                files[f"{outer}/{name}/masks/{name}-{i}.png"] = mask
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


def tree(*places: str, each: int = 3) -> list[str]:
    return [f"{place}/{number}.png" for place in places for number in range(each)]


def write(folder: Path, names: list[str], **texts: str) -> Path:
    """Write an image for each name, and text files (``labels__csv`` is ``labels.csv``)."""
    folder.mkdir(exist_ok=True)
    contents = {name.replace("__", "."): text.encode() for name, text in texts.items()}
    images = {name: grey_png(number, 6, 6) for number, name in enumerate(names)}
    return as_folder(images | contents, folder)


def png(width: int, height: int, bits: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """Return a PNG written by hand; colour 0: grey, 2: RGB; each row starts with a zero."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows, 1))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def grey_tiff(width: int, bits: int, white_is_zero: bool, row: bytes) -> bytes:
    """Return an uncompressed TIFF of one row, written by hand."""
    entries = {256: width, 257: 1, 258: bits, 259: 1, 262: 0 if white_is_zero else 1}
    entries |= {273: 8 + 2 + 8 * 12 + 4, 277: 1, 279: len(row)}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + fields + struct.pack("<I", 0) + row


def patched(archive: bytes, central: int, local: int, value: bytes) -> bytes:
    """Overwrite a field of the last member of a zip, at these offsets in its two headers."""
    content = bytearray(archive)
    for mark, offset in ((b"PK\x01\x02", central), (b"PK\x03\x04", local)):
        start = content.rindex(mark) + offset
        content[start : start + len(value)] = value
    return bytes(content)
