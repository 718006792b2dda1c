"""DICOM files as grey images, and what their headers say of patient and device.

`DicomRoot` wraps a folder or an archive so that its DICOM files read as BMP images: whatever reads
images then reads DICOM as well.
"""

import io
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from covid_project.data import DataError, Root
from covid_project.images import MAX_PIXELS

SUFFIXES = {".dcm", ".dicom", ".dic"}
MAGIC = slice(128, 132)  # "DICM" after the preamble

# Columns of `header` that may give the label away, and the DICOM keywords behind them.
COVARIATES = {
    "manufacturer": ("Manufacturer",),
    "model": ("ManufacturerModelName",),
    "view": ("ViewPosition",),
    "pixel_spacing": ("PixelSpacing", "ImagerPixelSpacing"),
}


def is_dicom(content: bytes) -> bool:
    """Whether a file's content begins as DICOM's part 10 has it."""
    return content[MAGIC] == b"DICM"


def decode_dicom(content: bytes, name: str) -> np.ndarray:
    """Decode a DICOM image of one frame to grey values.

    Modality rescaling is applied, then the first VOI window or table of the file, or else the range
    from its smallest to its largest value; MONOCHROME1 is inverted, so that dense tissue is white
    (DICOM PS3.3, C.7.6.3.1.2 and C.11.2; PS3.14).

    Parameters
    ----------
    content : bytes
        The whole file.
    name : str
        For messages.

    Returns
    -------
    np.ndarray, uint8 (height, width)
        0 (black) to 255 (white).

    Raises
    ------
    DataError
        No image, several frames, colours that are not grey, a compression that no installed
        package decodes, or more than 64 million pixels.
    """
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    file = _read(content, name)
    if "PixelData" not in file:
        raise DataError(f"{name}: DICOM without an image")
    if int(file.get("NumberOfFrames") or 1) != 1:
        raise DataError(f"{name}: {file.NumberOfFrames} frames; allowed: one")
    if file.Rows * file.Columns > MAX_PIXELS:
        raise DataError(f"{name}: more than {MAX_PIXELS // 10**6} million pixels")
    try:
        stored = file.pixel_array
    except Exception as error:
        raise DataError(
            f"{name}: its pixels cannot be decoded ({error}). JPEG Lossless and JPEG-LS need the "
            "packages pylibjpeg and pylibjpeg-libjpeg"
        ) from None
    if stored.ndim == 3:  # colours: of a screenshot or an ultrasound image
        return np.asarray(Image.fromarray(stored).convert("L"))
    values = apply_modality_lut(stored, file)
    tables = file.get("VOILUTSequence")
    if tables:
        _, _, bits = tables[0].LUTDescriptor
        grey = apply_voi_lut(values.astype(np.int64), file, index=0) / (2.0**bits - 1)
    elif file.get("WindowWidth") is not None and file.get("WindowCenter") is not None:
        function = file.get("VOILUTFunction") or "LINEAR"
        grey = window(values, _first(file.WindowCenter), _first(file.WindowWidth), function)
    elif file.get("BitsStored") == 8 and not file.get("PixelRepresentation"):
        grey = values / 255.0
    else:
        low, high = float(values.min()), float(values.max())
        grey = (values - low) / max(high - low, 1e-9)
    if file.get("PhotometricInterpretation") == "MONOCHROME1":
        grey = 1 - grey
    return np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8)


def window(values: np.ndarray, centre: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Map values to grey through a window (DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3).

    Parameters
    ----------
    values : np.ndarray, (h, w)
        After modality rescaling.
    centre, width : float
        Of the window, in the units of the values.
    function : str
        "LINEAR", "LINEAR_EXACT" or "SIGMOID".

    Returns
    -------
    np.ndarray, float64 (h, w), 0–1
    """
    values = values.astype(np.float64)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _first(value: object) -> float:
    """Value of the first of several windows."""
    values = value if hasattr(value, "__iter__") else [value]
    return float(next(iter(values)))


def header(content: bytes, name: str) -> dict[str, str]:
    """Read patient and covariates from a DICOM header.

    Returns
    -------
    dict of str
        "patient" (PatientID, "" if absent) and the keys of `COVARIATES`.

    Raises
    ------
    DataError
        Not DICOM, or damaged.
    """
    file = _read(content, name, stop_before_pixels=True)
    found = {"patient": str(file.get("PatientID") or "").strip()}
    for column, keywords in COVARIATES.items():
        values = (file.get(keyword) for keyword in keywords)
        value = next((value for value in values if value not in (None, "")), "")
        found[column] = _text(value)
    return found


def _text(value: object) -> str:
    if isinstance(value, str):
        return value.strip()
    try:
        return " x ".join(f"{float(part):.3f}" for part in value)
    except (TypeError, ValueError):
        return str(value).strip()


def _read(content: bytes, name: str, **how):
    try:
        import pydicom
    except ImportError:
        raise DataError(f"{name} is DICOM: pip install pydicom to read it") from None
    try:
        return pydicom.dcmread(io.BytesIO(content), **how)
    except Exception as error:  # damaged files raise errors of many kinds
        raise DataError(f"{name}: damaged DICOM, or none ({error})") from None


class DicomRoot:
    """A folder, an archive, or a file in one of them, whose DICOM files read as BMP images.

    Has the part of `pathlib.Path` that reading images takes.

    Parameters
    ----------
    place : Path or zipfile.Path
    """

    def __init__(self, place: Root):
        self.place = place

    @property
    def name(self) -> str:
        """Name of the folder or file."""
        return self.place.name

    def joinpath(self, *parts: str) -> "DicomRoot":
        """Return a place below this one."""
        return DicomRoot(self.place.joinpath(*parts))

    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.place.is_file()

    def iterdir(self) -> Iterator["DicomRoot"]:
        """Yield what is in the folder."""
        return (DicomRoot(place) for place in self.place.iterdir())

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Open the file for reading; DICOM as a grey BMP image."""
        with self.place.open(mode) as stream:
            content = stream.read()
        if is_dicom(content):
            grey = decode_dicom(content, PurePosixPath(self.place.name).name)
            stream = io.BytesIO()
            Image.fromarray(grey).save(stream, "BMP")
            content = stream.getvalue()
        return io.BytesIO(content)
