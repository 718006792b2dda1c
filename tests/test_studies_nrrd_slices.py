"""NRRD files of every kind in use, against hand-written bytes and SimpleITK; bad ones by name."""

import gzip

import numpy as np
import pandas as pd
import pytest

from covid_lab.studies.nrrd_slices import (
    load_slices,
    open_slices,
    read_hounsfield,
    read_labels,
    read_nrrd,
)
from covid_project.data import DataError

# Names of the types in NRRD's definition, and NumPy's.
TYPES = {
    "signed char": "i1", "uchar": "u1", "short": "i2", "unsigned short": "u2", "int": "i4",
    "uint32": "u4", "longlong": "i8", "uint64": "u8", "float": "f4", "double": "f8",
}  # fmt: skip
ROWS, COLUMNS = 3, 5
AIR = np.full((ROWS, COLUMNS), -1000, np.int16)


def nrrd_bytes(values, kind="short", sizes=(COLUMNS, ROWS), encoding="raw", endian="<", extra=()):
    """Header and pixels by hand from the format's definition (teem.sourceforge.net/nrrd)."""
    header = ["NRRD0004", "# by hand", f"type: {kind}", f"dimension: {len(sizes)}"]
    header += [f"sizes: {' '.join(map(str, sizes))}", f"encoding: {encoding}", *extra]
    header += [f"endian: {'little' if endian == '<' else 'big'}"] * (values.dtype.itemsize > 1)
    pixels = values.astype(values.dtype.newbyteorder(endian)).tobytes()
    pixels = gzip.compress(pixels) if encoding == "gzip" else pixels
    return "\n".join(header).encode() + b"\n\n", pixels


def written(path, values, **how):
    path.write_bytes(b"".join(nrrd_bytes(values, **how)))
    return path


def picture(code="i2"):
    """Different in every pixel, and negative where the type can be."""
    values = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    return (values if code.startswith("u") else values - 7).astype(code)


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_encoding_and_byte_order(tmp_path, kind):
    values = picture(TYPES[kind])
    for encoding, endian in (("raw", "<"), ("raw", ">"), ("gzip", "<"), ("gzip", ">")):
        how = {"kind": kind, "encoding": encoding, "endian": endian}
        found = read_nrrd(written(tmp_path / "a.nrrd", values, **how)).values
        np.testing.assert_array_equal(found, values)
        assert found.dtype == values.dtype


@pytest.mark.parametrize("sizes", [(1, COLUMNS, ROWS), (COLUMNS, 1, ROWS), (COLUMNS, ROWS, 1)])
def test_a_single_slice_in_three_dimensions_and_its_spacing(tmp_path, sizes):
    lengths = {COLUMNS: 0.5, ROWS: 0.75, 1: 3.0}
    extra = [f"spacings: {' '.join(str(lengths[size]) for size in sizes)}"]
    image = read_nrrd(written(tmp_path / "a.nrrd", picture(), sizes=sizes, extra=extra))
    np.testing.assert_array_equal(image.values, picture())
    assert image.spacing == (0.75, 0.5)  # rows, columns
    row = np.arange(COLUMNS, dtype=np.int16)  # a slice of a single row keeps two axes
    one = read_nrrd(written(tmp_path / "b.nrrd", row, sizes=(COLUMNS, 1, 1)))
    np.testing.assert_array_equal(one.values, [row])


def test_spacing_of_directions_in_space_and_none_at_all(tmp_path):
    extra = ["space: left-posterior-superior", "space directions: (0.6,0,0) (0,0,-0.8) (0,2.5,0)"]
    path = written(tmp_path / "a.nrrd", picture(), sizes=(COLUMNS, ROWS, 1), extra=extra)
    assert read_nrrd(path).spacing == pytest.approx((0.8, 0.6))
    assert read_nrrd(written(tmp_path / "b.nrrd", picture())).spacing is None


def test_a_detached_header_finds_its_pixels_beside_it_and_nowhere_else(tmp_path):
    for encoding, name in (("raw", "a.raw"), ("gzip", "a.raw.gz")):
        header, pixels = nrrd_bytes(picture(), encoding=encoding, extra=[f"data file: {name}"])
        (tmp_path / "a.nhdr").write_bytes(header)
        with pytest.raises(DataError, match=r"a\.nhdr: .*a\.raw.* is missing"):
            read_nrrd(tmp_path / "a.nhdr")
        (tmp_path / name).write_bytes(pixels)
        np.testing.assert_array_equal(read_nrrd(tmp_path / "a.nhdr").values, picture())
    for place in ("../a.raw", "/etc/hostname", "sub/a.raw", "LIST"):
        header, _ = nrrd_bytes(picture(), extra=[f"data file: {place}"])
        (tmp_path / "b.nhdr").write_bytes(header)
        with pytest.raises(DataError, match=r"b\.nhdr"):
            read_nrrd(tmp_path / "b.nhdr")


def test_simpleitk_reads_and_writes_the_same(tmp_path, rng):
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK, an independent peer, is missing")
    for code in TYPES.values():
        values = rng.integers(0, 100, (7, 4)).astype(code)
        for shape in ((7, 4), (1, 7, 4)):
            made = itk.GetImageFromArray(values.reshape(shape))
            made.SetSpacing((0.5, 0.75, 2.0)[: len(shape)])
            itk.WriteImage(made, str(tmp_path / "a.nrrd"), useCompression=len(shape) == 3)
            ours = read_nrrd(tmp_path / "a.nrrd")
            np.testing.assert_array_equal(ours.values, values)
            assert ours.values.dtype == values.dtype
            assert ours.spacing == pytest.approx((0.75, 0.5))


def test_hounsfield_units_are_single_precision(tmp_path):
    values = np.array([[-1000, -850, 0], [40, 400, 3071]], np.int16)
    path = written(tmp_path / "a.nrrd", values, sizes=(3, 2), extra=['sample units: "HU"'])
    image = read_hounsfield(path)
    np.testing.assert_array_equal(image.values, values.astype(np.float32))
    assert image.values.dtype == np.float32


HEADER, PIXELS = nrrd_bytes(AIR)
PACKED = b"".join(nrrd_bytes(AIR, encoding="gzip"))
WITH_NAN = AIR.astype(np.float32)
WITH_NAN[1, 2] = np.nan
FAULTS = {  # a part of the message: the file
    "damaged, cut off": HEADER + PIXELS[:-3],
    "The file is damaged, cut off": PACKED[:-14],
    "no field 'dimension'": HEADER[:30],
    "is empty": b"",
    "damaged, cut off or no NRRD": b"\x89PNG\r\n\x1a\n" + bytes(50),
    "does not equal the product": HEADER.replace(b"sizes: 5 3", b"sizes: 6 3") + PIXELS,
    "cannot be read": HEADER.replace(b"sizes: 5 3", b"sizes: 5 3 1") + PIXELS,
    "no type 'half'": HEADER.replace(b"type: short", b"type: half") + PIXELS,
    "holds no numbers": HEADER.replace(b"type: short", b"type: block\nblock size: 2") + PIXELS,
    "encoding": HEADER.replace(b"encoding: raw", b"encoding: zip") + PIXELS,
    "5 × 3 × 2 .*a single slice": b"".join(nrrd_bytes(AIR, sizes=(COLUMNS, ROWS, 2))) + PIXELS,
    "pixels; allowed: 1 to": HEADER.replace(b"sizes: 5 3", b"sizes: 50000 50000") + PIXELS,
    "1 of 15 pixels are NaN": b"".join(nrrd_bytes(WITH_NAN, kind="float")),
    "none as dark as a lung": b"".join(nrrd_bytes(picture("u1"), kind="uchar")),
    "rescale": b"".join(nrrd_bytes(AIR + 1024)),
    r"-1e\+06": b"".join(nrrd_bytes(AIR.astype("i4") * 1000, kind="int")),
    "its unit is '\"?1/cm": b"".join(nrrd_bytes(AIR, extra=['sample units: "1/cm"'])),
}


@pytest.mark.parametrize("said", FAULTS)
def test_a_bad_file_is_named_with_its_fault(tmp_path, said):
    (tmp_path / "bad.nrrd").write_bytes(FAULTS[said])
    with pytest.raises(DataError, match=f"(?s)bad.nrrd.*{said}"):
        read_hounsfield(tmp_path / "bad.nrrd")


# ---- labels and folders -------------------------------------------------------------------------


def folder_of(tmp_path, table=None, suffix=".csv"):
    for view in ("full", "nodule"):
        (tmp_path / view).mkdir()
        for number, name in enumerate("abc"):
            written(tmp_path / view / f"{name}.nrrd", AIR + np.int16(number))
    if table is None:
        table = pd.DataFrame({"name": list("abc"), "malignancy": 3, "patient": "p1"})
    if suffix == ".csv":
        table.to_csv(tmp_path / "labels.csv", index=False)
    else:
        table.to_excel(tmp_path / "labels.xlsx", index=False)
    return tmp_path


@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
def test_views_and_labels_are_joined_by_name_and_not_by_order(tmp_path, suffix):
    table = pd.DataFrame(
        {"File Name": ["c.nrrd", "a.nrrd", "b"], "Tumor_Class": [5, 1, 2], "PatientID": [7, 8, 7]}
    )
    dataset = open_slices(folder_of(tmp_path, table, suffix))
    assert dataset.table["path"].tolist() == ["full/a.nrrd", "full/b.nrrd", "full/c.nrrd"]
    assert dataset.table["label"].tolist() == [0, 1, 4]
    assert dataset.table["group"].tolist() == ["8", "7", "7"]
    assert not dataset.is_phantom
    lowest = load_slices(dataset, "nodule", lambda image: image.values.min(), progress="read")
    assert lowest == [-1000, -999, -998]


def test_every_mismatch_and_every_bad_slice_is_listed(tmp_path):
    table = pd.DataFrame({"name": ["a", "d", "e"], "malignancy": 1})
    folder = folder_of(tmp_path, table)
    (folder / "nodule" / "a.nrrd").rename(folder / "nodule" / "b.nhdr")
    with pytest.raises(DataError, match="more than one file for b"):
        open_slices(folder)
    (folder / "nodule" / "b.nhdr").unlink()
    with pytest.raises(DataError) as caught:
        open_slices(folder)
    for line in (
        "labels without a file in full/ (2): d, e",
        "files in full/ without a label (2): b, c",
        "labels without a file in nodule/ (3): a, d, e",
    ):
        assert line in str(caught.value)
    pd.DataFrame({"name": list("bc"), "malignancy": 1}).to_csv(folder / "labels.csv", index=False)
    (folder / "full" / "a.nrrd").unlink()
    dataset = open_slices(folder)
    for name in "bc":
        (folder / "full" / f"{name}.nrrd").write_bytes(HEADER + PIXELS[:-3])
    with pytest.raises(DataError, match=r"(?s)2 slice\(s\).*b\.nrrd.*c\.nrrd"):
        load_slices(dataset, "full")
    (folder / "full").rename(folder / "other")
    with pytest.raises(DataError, match="no folder 'full'"):
        open_slices(folder)
    with pytest.raises(DataError, match="is no folder"):
        open_slices(folder / "missing")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"name": ["a", "a"], "malignancy": [1, 2]}, "more than one row for a"),
        ({"name": ["a", ""], "malignancy": [1, 2]}, r"no name in row\(s\) 3"),
        ({"name": ["a", "b"], "malignancy": [0, 2]}, "found a: '0'"),
        ({"name": ["a", "b"], "malignancy": [1, "2.5"]}, "found b: '2.5'"),
        ({"name": ["a", "b"], "malignancy": [1, ""]}, "found b: ''"),
        ({"name": ["a", "b"], "grade": [1, 2]}, "one column for the malignancy"),
        ({"name": ["a"], "id": ["a"], "malignancy": [1]}, "one column for the name.*name, id"),
    ],
)
def test_a_wrong_label_table_says_what_is_wrong(tmp_path, table, said):
    pd.DataFrame(table).to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(DataError, match=f"labels.csv.*{said}"):
        read_labels(tmp_path / "labels.csv")


def test_other_tables_and_a_table_without_patients(tmp_path, capsys):
    (tmp_path / "labels.xlsx").write_bytes(b"no workbook")
    with pytest.raises(DataError, match=r"labels\.xlsx cannot be read"):
        read_labels(tmp_path / "labels.xlsx")
    with pytest.raises(DataError, match="is no label table"):
        read_labels(tmp_path / "labels.txt")
    (tmp_path / "labels.csv").write_text("name,malignancy\na,1\nb,2\n")
    with pytest.raises(DataError, match=r"one label table .*labels\.csv, labels\.xlsx"):
        open_slices(tmp_path)
    assert read_labels(tmp_path / "labels.csv")["patient"].tolist() == ["a", "b"]
    assert "no column of patients" in capsys.readouterr().out


def test_the_fingerprint_changes_with_a_pixel_and_with_a_label(tmp_path):
    folder = folder_of(tmp_path)
    before = open_slices(folder).fingerprint
    assert open_slices(folder).fingerprint == before
    table = pd.DataFrame({"name": list("abc"), "malignancy": [3, 3, 4], "patient": "p1"})
    table.to_csv(folder / "labels.csv", index=False)
    relabelled = open_slices(folder).fingerprint
    written(folder / "nodule" / "a.nrrd", AIR + 5)
    assert len({before, relabelled, open_slices(folder).fingerprint}) == 3


def test_hidden_files_and_habits_of_spreadsheets_are_passed_over(tmp_path):
    folder = folder_of(tmp_path)
    for view in ("full", "nodule"):
        (folder / view / "._a.nrrd").write_bytes(b"AppleDouble")
        (folder / view / ".DS_Store").write_bytes(b"x")
    rows = "\ufeffname;malignancy;patient;\na; 3;p1;\nb;3.0;p1;\n;;;\nc;3,0;p2;\n;;;\n"
    (folder / "labels.csv").write_text(rows, encoding="utf-8")
    dataset = open_slices(folder)
    assert dataset.table["label"].tolist() == [2, 2, 2]
    assert dataset.table["group"].tolist() == ["p1", "p1", "p2"]
