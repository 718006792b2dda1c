"""Image files that are damaged, lie, or are merely unusual; all drawn from a seed."""

import io
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from image_files import encoded, png
from PIL import Image, ImageCms

READ, LISTED, EITHER, WHOLE = "read", "listed", "either", "as it was, or listed"
FORMATS = {"PNG": "png", "JPEG": "jpg", "BMP": "bmp", "GIF": "gif", "TIFF": "tif", "WEBP": "webp"}
NAMES = [
    "with spaces", "new\nline", "return\rin it", "tab\tin it", "рентген", "胸部X線", "صورة",
    "é" * 60, "$\\frac{1}$", "a_{b}^$", 'quote"d', "comma, semi;colon", "-rf", "100%", "{}",
    "n" * 240, "NA", "'",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A file, and what may come of it."""

    kind: str  # what was done to it
    make: Callable[[Path], None]  # writes it at a path
    allowed: str  # READ, LISTED, EITHER (no check sum would tell), or WHOLE (with these pixels)
    expected: np.ndarray | None = None  # grey values, uint8 (H, W), that reading must give
    tolerance: float = 0  # grey levels by which a value may differ
    stem: str = "x"
    suffix: str = "png"


def cases(number: int, seed: int) -> Iterator[Case]:
    """As many cases as asked for, the kinds in turn."""
    rng = np.random.default_rng(seed)
    for index in range(number):
        yield KINDS[index % len(KINDS)](rng)


def giants() -> list[Case]:
    """Files of a few hundred kilobytes whose pixels number just as many as are allowed."""
    cmyk = Image.new("CMYK", (8000, 8000), (10, 20, 30, 40))
    contents = {
        "RGBA": png(8000, 8000, 8, 6, bytes(1 + 4 * 8000) * 8000),
        "16 bits": png(8000, 8000, 16, 0, bytes(1 + 16000) * 8000),
        "grey": png(8000, 8000, 8, 0, bytes(1 + 8000) * 8000),
        "CMYK": encoded(cmyk, "TIFF", compression="tiff_lzw"),
    }
    return [written(f"largest allowed: {kind}", made, READ) for kind, made in contents.items()]


def every_name() -> list[Case]:
    """A plain image under each unusual name."""
    return [named(np.random.default_rng(number), stem) for number, stem in enumerate(NAMES)]


def dead_links() -> list[Case]:
    """Links that lead nowhere."""
    return [
        Case("link to itself", lambda path: os.symlink(path.name, path), LISTED),
        Case("broken link", lambda path: os.symlink("nowhere", path), LISTED),
    ]


def devices() -> list[Case]:
    """What may be read without end."""

    def bound(path: Path) -> None:
        where = os.getcwd()
        os.chdir(path.parent)  # a socket's path may be 107 bytes long
        try:
            with socket.socket(socket.AF_UNIX) as opened:
                opened.bind(path.name)
        finally:
            os.chdir(where)

    return [
        Case("named pipe", os.mkfifo, LISTED),
        Case("link to a device without end", lambda path: path.symlink_to("/dev/zero"), LISTED),
        Case("link to a device", lambda path: path.symlink_to("/dev/null"), LISTED),
        Case("socket", bound, LISTED),
    ]


def written(kind: str, content: bytes, allowed: str, **more) -> Case:
    return Case(kind, lambda path: path.write_bytes(content), allowed, **more)


def _grey(rng) -> np.ndarray:
    return rng.integers(0, 256, (rng.integers(6, 40), rng.integers(6, 40)), np.uint8)


def _smooth(rng, channels: int) -> np.ndarray:
    """Slow ramps, which survive a JPEG."""
    ramp = np.add.outer(np.arange(48), np.arange(40))[..., None] * rng.uniform(0.3, 2.0, channels)
    return np.minimum(ramp, 255).astype(np.uint8)


def _luminance(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2


def _any_format(rng) -> tuple[str, bytes, np.ndarray]:
    """Format, content and pixels as an undamaged file of it gives them."""
    kind = rng.choice(list(FORMATS))
    content = encoded(_grey(rng), kind)
    return kind, content, np.asarray(Image.open(io.BytesIO(content)).convert("L"))


def flipped(rng) -> Case:
    kind, content, _ = _any_format(rng)
    damaged = bytearray(content)
    for at in rng.integers(0, len(content), rng.integers(1, 9)):
        damaged[at] ^= 1 << rng.integers(0, 8)
    return written(f"flipped bits, {kind}", bytes(damaged), EITHER, suffix=FORMATS[kind])


def cut(rng) -> Case:
    kind, content, pixels = _any_format(rng)
    short = content[: rng.integers(1, len(content))]
    return written(f"cut off, {kind}", short, WHOLE, expected=pixels, suffix=FORMATS[kind])


def padded(rng) -> Case:
    kind, content, pixels = _any_format(rng)
    longer = content + rng.bytes(rng.integers(1, 5000))
    return written(
        f"rubbish at its end, {kind}", longer, WHOLE, expected=pixels, suffix=FORMATS[kind]
    )


def lying(rng) -> Case:
    """The header states other sides than the data have, with a right check sum."""
    grey = _grey(rng)
    height, width = grey.shape
    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    if rng.random() < 0.5:
        more = rng.integers(1, 5000)
        return written("header states more pixels, PNG",
                       png(width + more, height + more, 8, 0, rows), LISTED)  # fmt: skip
    content = bytearray(encoded(grey, "BMP"))
    struct.pack_into("<ii", content, 18, width, height + int(rng.integers(1, 5000)))
    return written("header states more pixels, BMP", bytes(content), LISTED, suffix="bmp")


def misnamed(rng) -> Case:
    kind = rng.choice(["PNG", "BMP", "TIFF"])
    suffix = rng.choice([own for other, own in FORMATS.items() if other != kind])
    grey = _grey(rng)
    content = encoded(grey, kind)
    return written("wrong extension", content, READ, expected=grey, suffix=suffix)


def bomb(rng) -> Case:
    kind = rng.choice(["PNG", "BMP", "GIF", "TIFF", "JPEG"])
    side = 50_000
    if kind == "PNG":
        content = png(side, side, 8, int(rng.choice([0, 2, 6])), bytes(10_000))
    else:
        content = bytearray(encoded(_grey(rng), kind))
        if kind == "BMP":
            struct.pack_into("<ii", content, 18, side, side)
        elif kind == "GIF":
            struct.pack_into("<HH", content, 6, side, side)
        elif kind == "JPEG":
            struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, side, side)
        else:
            for tag in (256, 257):  # ImageWidth, ImageLength
                for form in (3, 4):  # as short or long
                    at = content.find(struct.pack("<HHI", tag, form, 1))
                    if at >= 0:
                        struct.pack_into("<HHII", content, at, tag, 4, 1, side)
    return written(f"50,000 x 50,000 by its header, {kind}", bytes(content), LISTED)


def animated(rng) -> Case:
    kind = rng.choice(["GIF", "PNG", "WEBP", "TIFF"])
    shape = (12, 9)
    frames = [Image.fromarray(rng.integers(0, 256, shape, np.uint8)) for _ in range(3)]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    return written(f"three frames, {kind}", content, LISTED, suffix=FORMATS[kind])


def one_bit(rng) -> Case:
    bits = rng.random((17, 23)) < 0.5
    options = rng.choice([{"format": "PNG"}, {"format": "TIFF", "compression": "group4"}])
    content = encoded(bits, options.pop("format"), **options)
    return written("1 bit", content, READ, expected=np.uint8(255) * bits)


def sixteen_bits(rng) -> Case:
    words = rng.integers(0, 2**16, (11, 13), dtype=np.uint16)
    content = encoded(words, rng.choice(["PNG", "TIFF"]))
    expected = np.round(words / 257.0).astype(np.uint8)
    return written("16 bits", content, READ, expected=expected)


def floats(rng) -> Case:
    values = rng.normal(size=(9, 7)).astype(rng.choice(["float32", "int32"]))
    return written("float or 32 bits", encoded(values, "TIFF"), LISTED)


def cmyk(rng) -> Case:
    kind = rng.choice(["JPEG", "TIFF"])
    rgb = _smooth(rng, 3)
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    content = encoded(Image.fromarray(rgb).convert("CMYK"), kind, **options)
    expected = _luminance(rgb)
    return written(f"CMYK, {kind}", content, READ, expected=expected, tolerance=5)


def profiled(rng) -> Case:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if rng.random() < 0.5:
        profile = rng.bytes(500)  # no profile at all: it is not applied, so it cannot harm
    rgb = rng.integers(0, 256, (9, 11, 3), np.uint8)
    content = encoded(rgb, icc_profile=profile)
    return written("ICC profile", content, READ, expected=_luminance(rgb), tolerance=1)


def turned(rng) -> Case:
    orientation = int(rng.integers(2, 9))
    upright = _grey(rng)
    stored = {2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
              6: upright.T[::-1], 7: upright.T[::-1, ::-1], 8: upright.T[:, ::-1]}  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored[orientation]))
    content = encoded(image, rng.choice(["PNG", "TIFF"]), exif=exif)
    return written("turned by EXIF", content, READ, expected=upright)


def no_image(rng) -> Case:
    content = rng.choice([b"", b"GIF89a", b"%PDF-1.7\n", b"<svg/>", b"\xff\xd8\xff", b"\0" * 4096])
    kind = "empty file" if not content else "no image"
    return written(kind, bytes(content), LISTED)


def named(rng, stem: str | None = None) -> Case:
    grey = _grey(rng)
    stem = str(rng.choice(NAMES)) if stem is None else stem
    return written("unusual name", encoded(grey), READ, expected=grey, stem=stem)


KINDS = [flipped, cut, flipped, padded, lying, misnamed, flipped, bomb, animated, one_bit, cut,
         sixteen_bits, floats, cmyk, profiled, turned, flipped, no_image, named]  # fmt: skip
