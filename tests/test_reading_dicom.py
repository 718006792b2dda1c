"""DICOM: grey values against pydicom's own windowing, headers as patients and covariates."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.pixels import apply_windowing
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from covid_lab.audit.controls import draw_phantoms
from covid_lab.audit.shortcuts import audit_shortcuts
from covid_lab.datasets import described, each_image, load_images, open_dataset
from covid_lab.reading.arrange import arrange, is_course_data
from covid_lab.reading.dicom import _window, decode_dicom, header
from covid_project import data as course_data
from covid_project.data import DataError

REAL = Path(__file__).parents[2] / "shared" / "data" / "dicom"


def dicom(pixels: np.ndarray, **fields) -> bytes:
    """Write a minimal secondary capture."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    bits = pixels.dtype.itemsize * 8
    values = {"SOPClassUID": SecondaryCaptureImageStorage, "SOPInstanceUID": "1.2.3"}
    values |= {"Rows": pixels.shape[0], "Columns": pixels.shape[1], "SamplesPerPixel": 1}
    values |= {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
    values["PixelRepresentation"] = int(pixels.dtype.kind == "i")
    values |= {"PhotometricInterpretation": "MONOCHROME2", "PixelData": pixels.tobytes(), **fields}
    file = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    for name, value in values.items():
        setattr(file, name, value)
    stream = io.BytesIO()
    file.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


WORDS = np.random.default_rng(0).integers(0, 4096, (9, 7)).astype(np.uint16)


def test_eight_bits_are_unchanged_and_monochrome1_is_inverted():
    grey = (WORDS // 16).astype(np.uint8)
    np.testing.assert_array_equal(decode_dicom(dicom(grey), "x"), grey)
    inverted = dicom(grey, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(decode_dicom(inverted, "x"), 255 - grey)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2, -1024)])
def test_windows_are_those_of_pydicom(function, slope, intercept):
    windows = {"WindowCenter": [900, 40], "WindowWidth": [1500, 80], "VOILUTFunction": function}
    scale = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    content = dicom(WORDS, BitsStored=12, HighBit=11, **windows, **scale)
    file = pydicom.dcmread(io.BytesIO(content))
    low, high = intercept, slope * 4095 + intercept  # pydicom maps the window to this range
    theirs = apply_windowing(WORDS.astype(int) * slope + intercept, file, index=0)
    expected = 255 * (theirs - low) / (high - low)
    np.testing.assert_allclose(decode_dicom(content, "x"), expected, atol=0.51)


def test_a_window_is_dicoms_formula():
    # PS3.3, C.11.2.1.2.1: centre 2048 and width 4096 map 0 to 0 and 4095 to the largest value.
    values = np.array([[0.0, 4095.0, -5.0, 9999.0, 2047.5]])
    np.testing.assert_allclose(_window(values, 2048, 4096), [[0, 1, 0, 1, 0.5]])


def test_without_a_window_the_values_fill_the_scale():
    grey = decode_dicom(dicom(WORDS, BitsStored=12, HighBit=11), "x").astype(float)
    span = WORDS.max() - WORDS.min()
    np.testing.assert_allclose(grey, 255.0 * (WORDS - WORDS.min()) / span, atol=0.51)
    signed = (WORDS.astype(np.int32) - 1024).astype(np.int16)
    np.testing.assert_array_equal(decode_dicom(dicom(signed), "x"), grey)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no DICOM", "damaged DICOM, or none"),
        (dicom(WORDS)[:150], "DICOM without an image|damaged"),
        (dicom(WORDS, NumberOfFrames=3), "3 frames"),
        (dicom(WORDS, PixelData=b"12"), "its pixels cannot be decoded"),
    ],
)
def test_what_is_no_image_is_refused(content, reason):
    with pytest.raises(DataError, match=rf"x\.dcm: .*({reason})"):
        decode_dicom(content, "x.dcm")


def test_dicom_files_are_arranged_as_pictures_of_the_same_grey_values(tmp_path):
    greys = {}
    for number, name in enumerate(("COVID", "NORMAL") * 12):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        grey = np.random.default_rng(number).integers(0, 256, (32, 32)).astype(np.uint8)
        path = tmp_path / "set" / name / f"{number}.dcm"
        path.write_bytes(dicom(grey, SOPInstanceUID=f"1.2.{number}"))
        greys[str(number)] = grey
    dataset = open_dataset(tmp_path / "set", classes=None, as_found=True)
    assert not is_course_data(dataset, tmp_path / "set")
    arrange(dataset, tmp_path / "arranged.zip", source="set")
    arranged = course_data.open_dataset(tmp_path / "arranged.zip")
    for row, path in enumerate(arranged.table["path"]):
        number = Path(path).stem.split("_")[1]
        image = course_data.ImageFiles(arranged, np.array([row]), 32)[:][0, ..., 0]
        np.testing.assert_array_equal(image, greys[number])


def collection(folder: Path) -> Path:
    """Draw two hospitals: one has the positive class, its own device, and no file suffixes."""
    phantoms = draw_phantoms(24, 64, seed=3)
    for number, (pixels, label) in enumerate(zip(phantoms.images, phantoms.labels, strict=True)):
        facts = {
            "PatientID": f"P{number // 2 % 12:03}{label}",
            "Manufacturer": ("Acme", "Bravo")[label],
            "ViewPosition": "PA",
            "PixelSpacing": [0.2, 0.2],
        }
        name = f"{('NORMAL', 'COVID')[label]}/{number:03}{'' if label else '.dcm'}"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dicom(np.ascontiguousarray(pixels), **facts))
    return folder


def test_folders_of_dicom_are_data_sets_whose_headers_are_audited(tmp_path):
    dataset = open_dataset(collection(tmp_path), classes=None, as_found=True)
    assert dataset.table["label"].value_counts().to_dict() == {0: 24, 1: 24}
    assert dataset.table["group"].nunique() < 48
    assert set(dataset.table["manufacturer"]) == {"Acme", "Bravo"}
    assert set(dataset.table["pixel_spacing"]) == {"0.200 x 0.200"}
    assert "DICOM's PatientID, in 48 of 48 images" in described(dataset, "x")
    row = dataset.table.iloc[0]
    stored = pydicom.dcmread(tmp_path / row["path"]).pixel_array
    np.testing.assert_array_equal(load_images(dataset, 64)[0, ..., 0], stored)
    found = {f.check: f for f in audit_shortcuts(dataset, progress=lambda *_: None).findings}
    finding = found["label from the DICOM header alone"]
    assert finding.verdict == "fail"
    assert finding.value > 0.99
    (tmp_path / "NORMAL" / "000.dcm").write_bytes(b"no DICOM")
    again = open_dataset(tmp_path, classes=None, as_found=True)
    assert len(again.table) == 48
    _, unreadable = each_image(again, np.mean)
    assert list(unreadable) == ["NORMAL/000.dcm"]


@pytest.mark.skipif(not REAL.is_dir(), reason="shared/data/dicom is not here")
def test_real_radiographs():
    names = ("ap_target0.dcm", "pa.dcm", "pa_monochrome1.dcm")
    found = {name: decode_dicom((REAL / name).read_bytes(), name) for name in names}
    assert {grey.shape for grey in found.values()} == {(1024, 1024)}
    # The third has the pixels of the second, and says that they are inverted.
    np.testing.assert_array_equal(found["pa_monochrome1.dcm"], 255 - found["pa.dcm"])
    facts = header((REAL / names[0]).read_bytes(), names[0])
    assert facts["view"] == "AP"
    assert facts["pixel_spacing"] == "0.168 x 0.168"
