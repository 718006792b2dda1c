"""One image file: opened, decoded to 8-bit grey values, and resized, in one way for everything."""

import contextlib
import io
import struct

import numpy as np
from PIL import Image, ImageChops, ImageOps

IMAGE_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k"),
    *(".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm"),
}
# Kinds of the content, whatever the suffix.
FORMATS = ("PNG", "JPEG", "JPEG2000", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 64_000_000  # of one image; a chest radiograph has at most about 16 million
BITS = (8, 10, 12, 14, 15, 16)  # of grey values that are stored in 16


class DataError(ValueError):
    """The data cannot be used; the message says what was found, what is allowed, what to do."""


def open_image(content: bytes, name: str) -> Image.Image:
    """Open an image file at its first frame, without decoding its pixels.

    Further frames are allowed in a TIFF where they have less than a quarter of the first one's
    pixels (thumbnails), and in a JPEG of several views (MPO).

    Parameters
    ----------
    content : bytes
        The whole file. Its kind is found from the content, not from its suffix.
    name : str
        For messages.

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    DataError
        No bytes, not an image, damaged, several frames of one size, or more than 64 million pixels.
    """
    if not content:
        raise DataError(f"{name}: empty file")
    giant = DataError(f"{name}: more than {MAX_PIXELS // 10**6} million pixels")
    try:
        image = Image.open(io.BytesIO(_without_comments(content)), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise giant
        frames = _frames(image)
    except (DataError, Image.DecompressionBombError):
        raise giant from None
    except Image.UnidentifiedImageError:
        raise DataError(
            f"{name}: not an image of the kinds {', '.join(FORMATS)}, or damaged"
        ) from None
    except Exception as error:  # Pillow raises whatever damaged bytes lead it to
        raise DataError(f"{name}: damaged or cut off ({error})") from None
    if frames != 1:
        raise DataError(f"{name}: {frames} frames or pages; allowed: one")
    return image


def _frames(image: Image.Image) -> int:
    """Return the number of frames, without thumbnails."""
    frames = getattr(image, "n_frames", 1)
    if frames == 1 or image.format == "MPO":
        return 1
    size, same = image.size, 1
    if image.format == "TIFF":  # the frames of other kinds have one size
        for number in range(1, frames):
            image.seek(number)
            same += image.width * image.height * 4 > size[0] * size[1]
        image.seek(0)
        return same
    return frames


def _without_comments(content: bytes) -> bytes:
    """Leave out a PNG's texts and colour profile, which Pillow refuses where they are long."""
    start = 8
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    kept = [content[:start]]
    while start + 12 <= len(content):
        (length,) = struct.unpack(">I", content[start : start + 4])
        end = start + 12 + length
        if content[start + 4 : start + 8] not in (b"iTXt", b"zTXt", b"tEXt", b"iCCP"):
            kept.append(content[start:end])
        start = end
    return b"".join([*kept, content[start:]])


def decode(content: bytes, name: str) -> np.ndarray:
    """Decode an image file to grey values.

    8-bit grey is unchanged. Colours become luminance (ITU-R 601-2); of LAB, the lightness is taken.
    Transparent pixels become black, unless all are transparent. An EXIF orientation is applied.
    16-bit grey is scaled from the range of the fewest bits in `BITS` that hold its largest value,
    so that 12-bit values in a 16-bit file use the whole range.

    Parameters
    ----------
    content : bytes
    name : str
        As for `open_image`.

    Returns
    -------
    np.ndarray, uint8 (height, width)
        0 (black) to 255 (white).

    Raises
    ------
    DataError
        See `open_image`; also negative, 32-bit or float values, whose range is unknown.
    """
    image = open_image(content, name)
    try:
        image.load()
    except Exception as error:
        raise DataError(f"{name}: damaged or cut off ({error})") from None
    with contextlib.suppress(Exception):  # a damaged entry is no reason to refuse the picture
        ImageOps.exif_transpose(image, in_place=True)  # a copy would lose a TIFF's tags
    tags = getattr(image, "tag_v2", {})  # only a TIFF has them
    if image.mode == "I" and tags.get(258) == (16,):  # BitsPerSample: signed
        values = np.asarray(image)
        if values.min() < 0:
            raise DataError(f"{name}: negative grey values, whose range is unknown")
        return _grey_of_16_bits(values.astype(np.uint16), image)
    if image.mode in ("I", "F"):
        raise DataError(f"{name}: 32-bit or float grey values, whose range is unknown")
    if image.mode.startswith("I;16"):
        return _grey_of_16_bits(np.asarray(image, np.uint16), image)
    if image.mode == "LAB":
        return np.asarray(image.getchannel("L"))
    if not image.has_transparency_data:
        return np.asarray(image.convert("L"))
    colours = image.convert("RGBA")
    opacity = colours.getchannel("A")
    if opacity.getextrema()[1] == 0:
        return np.asarray(colours.convert("RGB").convert("L"))
    # Over black, a pixel's luminance is its own times its opacity.
    return np.asarray(ImageChops.multiply(colours.convert("L"), opacity))


def _grey_of_16_bits(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """Return 8-bit grey levels of 16-bit values (h, w)."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, (16,))[0]  # BitsPerSample: 16, or 12 in 16
    if bits == 16:
        bits = next(bits for bits in BITS if values.max() < 2**bits)
    highest = 2**bits - 1
    every = np.minimum(np.arange(2**16), highest)
    if tags.get(262) == 0:  # PhotometricInterpretation: white is zero
        every = highest - every
    levels = ((every * 255 + highest // 2) // highest).astype(np.uint8)
    if image.info.get("transparency") is not None:
        levels[image.info["transparency"]] = 0
    return levels[values]


def resize(grey: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize a grey image with Pillow's bilinear filter.

    The filter is a triangle that widens with the reduction: every pixel counts, so that nothing
    aliases, and no value leaves the range of its neighbours.

    Parameters
    ----------
    grey : np.ndarray, uint8 (h, w)
    shape : tuple of int
        Height and width to make, in pixels.

    Returns
    -------
    np.ndarray, uint8 (height, width)

    Examples
    --------
    >>> resize(np.array([[0, 0, 200, 200]], np.uint8), (1, 2))
    array([[ 29, 171]], dtype=uint8)
    """
    height, width = shape
    return np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR))
