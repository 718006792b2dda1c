"""DICOM files as grey images, and patient and device from their headers.

`DicomRoot` wraps a folder or an archive so that its DICOM files read as BMP images. Code that reads
images can then read DICOM too.
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

# Columns of `header` that may reveal the label, and their DICOM keywords.
COVARIATES = {
    "manufacturer": ("Manufacturer",),
    "model": ("ManufacturerModelName",),
    "view": ("ViewPosition",),
    "pixel_spacing": ("PixelSpacing", "ImagerPixelSpacing"),
}


def is_dicom(content: bytes) -> bool:
    """Tell whether a file begins like a DICOM file (DICOM PS3.10, 7.1).

    Parameters
    ----------
    content : bytes
        At least the first 132 bytes of the file.

    Returns
    -------
    bool
        True where "DICM" follows the preamble of 128 bytes.

    Examples
    --------
    >>> is_dicom(bytes(128) + b"DICM"), is_dicom(b"DICM")
    (True, False)
    """
    return content[MAGIC] == b"DICM"


def decode_dicom(content: bytes, name: str) -> np.ndarray:
    """Decode a DICOM image of one frame to grey values.

    The modality rescaling is applied first. Then grey values follow from the file's first VOI
    window or table, or otherwise from the range of its values. MONOCHROME1 is inverted, so that
    dense tissue is white (DICOM PS3.3, C.7.6.3.1.2 and C.11.2; PS3.14).

    Parameters
    ----------
    content : bytes
        The whole file.
    name : str
        Name of the file, for messages.

    Returns
    -------
    np.ndarray, uint8 (height, width)
        Grey values, 0 (black) to 255 (white).

    Raises
    ------
    DataError
        The file has no image, several frames, more than 64 million pixels, or a compression that no
        installed package decodes.
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
        grey = _window(values, _first(file.WindowCenter), _first(file.WindowWidth), function)
    elif file.get("BitsStored") == 8 and not file.get("PixelRepresentation"):
        grey = values / 255.0
    else:
        low, high = float(values.min()), float(values.max())
        grey = (values - low) / max(high - low, 1e-9)
    if file.get("PhotometricInterpretation") == "MONOCHROME1":
        grey = 1 - grey
    return np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8)


def _window(
    values: np.ndarray, centre: float, width: float, function: str = "LINEAR"
) -> np.ndarray:
    """Map values to grey through a window (DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3)."""
    values = values.astype(np.float64)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _first(value: object) -> float:
    """Return the value of the first of several windows."""
    values = value if hasattr(value, "__iter__") else [value]
    return float(next(iter(values)))


def header(content: bytes, name: str) -> dict[str, str]:
    """Read patient and covariates from a DICOM header.

    Parameters
    ----------
    content : bytes
        The whole file, or at least its header.
    name : str
        Name of the file, for messages.

    Returns
    -------
    dict of str to str
        "patient" (PatientID, "" if absent) and the keys of `COVARIATES`.

    Raises
    ------
    DataError
        The file is damaged or not DICOM.
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

    It has those methods of `pathlib.Path` that the readers of images use.

    Parameters
    ----------
    place : Path or zipfile.Path
        The folder, archive or file.
    """

    def __init__(self, place: Root):
        self.place = place

    @property
    def name(self) -> str:
        """Name of the folder or file.

        Returns
        -------
        str
            The last part of the path.
        """
        return self.place.name

    def joinpath(self, *parts: str) -> "DicomRoot":
        """Return a place below this one.

        Parameters
        ----------
        *parts : str
            Parts of the path.

        Returns
        -------
        DicomRoot
            The place.
        """
        return DicomRoot(self.place.joinpath(*parts))

    def is_file(self) -> bool:
        """Tell whether the place is a regular file.

        Returns
        -------
        bool
            True for a file.
        """
        return self.place.is_file()

    def iterdir(self) -> Iterator["DicomRoot"]:
        """List the contents of the folder.

        Returns
        -------
        iterator of DicomRoot
            The files and folders.
        """
        return (DicomRoot(place) for place in self.place.iterdir())

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Open the file for reading; DICOM as a grey BMP image.

        Parameters
        ----------
        mode : str
            Only "rb" is supported.

        Returns
        -------
        io.BytesIO
            Content of the file, or of the BMP image.

        Raises
        ------
        DataError
            A DICOM file cannot be decoded, see `decode_dicom`.
        """
        with self.place.open(mode) as stream:
            content = stream.read()
        if is_dicom(content):
            grey = decode_dicom(content, PurePosixPath(self.place.name).name)
            stream = io.BytesIO()
            Image.fromarray(grey).save(stream, "BMP")
            content = stream.getvalue()
        return io.BytesIO(content)
