"""Metadata of image files: size, format, compression and further entries."""

import hashlib

import pandas as pd
from PIL import Image, JpegImagePlugin

from covid_lab.datasets import each_header
from covid_project.data import Dataset

# The columns by what they describe.
FIELDS = {
    "dimensions": ("width", "height", "aspect", "pixels"),
    "file size": ("bytes", "bytes_per_pixel"),
    "encoding": ("suffix", "format", "mode", "compression", "resolution", "entries"),
}


def file_metadata(dataset: Dataset) -> pd.DataFrame:
    """Read the metadata of every original file.

    Parameters
    ----------
    dataset : Dataset
        N images; no pixels are decoded.

    Returns
    -------
    pd.DataFrame
        N rows in the order of the data set's table, with the columns below.

    Raises
    ------
    UnreadableImages
        Names every file whose header cannot be read, with its reason.

    Notes
    -----
    The columns are

    - width, height (pixels), aspect (width / height), pixels (their number),
    - bytes, bytes_per_pixel,
    - suffix (of the name, in lower case), format (of the content), mode (Pillow's: channels and
      bits),
    - compression: of a JPEG, a fingerprint of its quantisation tables, with its chroma subsampling
      and whether it is progressive; of a PNG, bit depth, colour type, interlacing and the level
      that its stream declares; of a TIFF, its method; else "",
    - resolution (dots per inch, rounded, or ""),
    - entries: the kinds of further entries, such as exif, icc_profile or a comment.

    Examples
    --------
    >>> from covid_lab.datasets import open_dataset
    >>> file_metadata(open_dataset("covid_xray.zip", as_found=True))["format"].unique()
    array(['PNG'], dtype=object)
    """
    return pd.DataFrame(each_header(dataset, _describe))


def _describe(image: Image.Image, content: bytes, path: str) -> dict[str, object]:
    pixels = image.width * image.height
    return {
        "width": image.width,
        "height": image.height,
        "aspect": image.width / image.height,
        "pixels": pixels,
        "bytes": len(content),
        "bytes_per_pixel": len(content) / pixels,
        "suffix": path.rpartition(".")[2].lower(),
        "format": image.format,
        "mode": image.mode,
        "compression": _compression(image, content),
        "resolution": _resolution(image),
        "entries": ",".join(sorted(str(entry) for entry in image.info)),
    }


def _compression(image: Image.Image, content: bytes) -> str:
    if image.format == "JPEG":
        tables = repr(sorted(image.quantization.items())).encode()
        sampling = JpegImagePlugin.get_sampling(image)
        progressive = bool(image.info.get("progressive"))
        return f"{hashlib.sha256(tables).hexdigest()[:8]} {sampling} {progressive}"
    if image.format == "PNG":
        # IHDR comes first: bit depth, colour type and interlacing are bytes 24, 25 and 28. The
        # first IDAT begins with zlib's two bytes; the upper two bits of the second are the level.
        stream = content.find(b"IDAT")
        level = content[stream + 5] >> 6 if 0 < stream < len(content) - 5 else "?"
        return f"{content[24]} {content[25]} {content[28]} {level}"
    return str(image.info.get("compression", ""))


def _resolution(image: Image.Image) -> str:
    # A damaged entry is no reason to refuse a file whose picture can be read.
    try:
        return "x".join(str(round(float(value))) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        return ""
