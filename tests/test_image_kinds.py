"""Every kind of image is read as grey, or refused with its reason."""

import pickle
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import (
    as_path,
    chunk,
    course_tree,
    encoded,
    grey_tiff,
    noise,
    png,
)
from PIL import Image

from covid_lab import datasets
from covid_lab.datasets import UnreadableImage, UnreadableImages, open_dataset
from covid_lab.explain.pictures import Picture
from covid_project.data import DataError
from covid_project.images import decode

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
    "grey gif": (encoded(Image.fromarray(GREY), "GIF"), GREY, 0),
    "grey tiff, lzw": (encoded(Image.fromarray(GREY), "TIFF", compression="tiff_lzw"), GREY, 0),
    "grey webp": (encoded(Image.fromarray(GREY), "WEBP", lossless=True), GREY, 1),
    "rgb": (encoded(Image.fromarray(RGB)), LUMINANCE, 1),
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


@settings(max_examples=100)
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
