"""NRRD files of every kind in use, against hand-written bytes and SimpleITK; bad ones by name."""

import gzip
import itertools

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
    "signed char": "i1",
    "uchar": "u1",
    "short": "i2",
    "unsigned short": "u2",
    "int": "i4",
    "uint32": "u4",
    "longlong": "i8",
    "uint64": "u8",
    "float": "f4",
    "double": "f8",
}
ROWS, COLUMNS = 3, 5


def nrrd_bytes(values, *, kind, sizes, encoding="raw", endian="little", extra=()):
    """An NRRD file written by hand from the format's definition (teem.sourceforge.net/nrrd)."""
    header = ["NRRD0004", "# by hand", f"type: {kind}", f"dimension: {len(sizes)}"]
    header += [f"sizes: {' '.join(map(str, sizes))}", f"encoding: {encoding}", *extra]
    if values.dtype.itemsize > 1:
        header.append(f"endian: {endian}")
    pixels = values.astype(values.dtype.newbyteorder("<" if endian == "little" else ">")).tobytes()
    if encoding == "gzip":
        pixels = gzip.compress(pixels)
    return "\n".join(header).encode() + b"\n\n", pixels


def written(path, values, **how):
    path.write_bytes(b"".join(nrrd_bytes(values, **how)))
    return path


def picture(code="i2"):
    """Different in every pixel, and negative where the type can be."""
    values = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    return (values if code.startswith("u") else values - 7).astype(code)


@pytest.mark.parametrize(
    ("kind", "encoding", "endian"),
    list(itertools.product(TYPES, ("raw", "gzip"), ("little", "big"))),
)
def test_every_type_encoding_and_byte_order(tmp_path, kind, encoding, endian):
    values = picture(TYPES[kind])
    path = written(tmp_path / "a.nrrd", values, kind=kind, sizes=(COLUMNS, ROWS),
                   encoding=encoding, endian=endian)  # fmt: skip
    found = read_nrrd(path).values
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype


@pytest.mark.parametrize("sizes", [(1, COLUMNS, ROWS), (COLUMNS, 1, ROWS), (COLUMNS, ROWS, 1)])
def test_a_single_slice_in_three_dimensions_and_its_spacing(tmp_path, sizes):
    lengths = {COLUMNS: 0.5, ROWS: 0.75, 1: 3.0}
    extra = [f"spacings: {' '.join(str(lengths[size]) for size in sizes)}"]
    path = written(tmp_path / "a.nrrd", picture(), kind="short", sizes=sizes, extra=extra)
    image = read_nrrd(path)
    np.testing.assert_array_equal(image.values, picture())
    assert image.spacing == (0.75, 0.5)  # rows, columns


def test_a_slice_of_a_single_row_keeps_two_axes(tmp_path):
    row = np.arange(COLUMNS, dtype=np.int16)
    path = written(tmp_path / "a.nrrd", row, kind="short", sizes=(COLUMNS, 1, 1))
    np.testing.assert_array_equal(read_nrrd(path).values, [row])


def test_spacing_of_directions_in_space_and_none_at_all(tmp_path):
    extra = ["space: left-posterior-superior", "space directions: (0.6,0,0) (0,0,-0.8) (0,2.5,0)"]
    path = written(tmp_path / "a.nrrd", picture(), kind="short", sizes=(COLUMNS, ROWS, 1),
                   extra=extra)  # fmt: skip
    assert read_nrrd(path).spacing == pytest.approx((0.8, 0.6))
    silent = written(tmp_path / "b.nrrd", picture(), kind="short", sizes=(COLUMNS, ROWS))
    assert read_nrrd(silent).spacing is None


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_a_detached_header_finds_its_pixels_beside_it(tmp_path, encoding):
    name = "a.raw.gz" if encoding == "gzip" else "a.raw"
    header, pixels = nrrd_bytes(picture(), kind="short", sizes=(COLUMNS, ROWS), encoding=encoding,
                                extra=[f"data file: {name}"])  # fmt: skip
    (tmp_path / "a.nhdr").write_bytes(header)
    with pytest.raises(DataError, match=r"a\.nhdr: .*a\.raw.* is missing"):
        read_nrrd(tmp_path / "a.nhdr")
    (tmp_path / name).write_bytes(pixels)
    np.testing.assert_array_equal(read_nrrd(tmp_path / "a.nhdr").values, picture())


@pytest.mark.parametrize("place", ["../a.raw", "/etc/hostname", "sub/a.raw", "LIST"])
def test_a_detached_header_may_not_point_elsewhere(tmp_path, place):
    header, _ = nrrd_bytes(picture(), kind="short", sizes=(COLUMNS, ROWS),
                           extra=[f"data file: {place}"])  # fmt: skip
    (tmp_path / "a.nhdr").write_bytes(header)
    with pytest.raises(DataError, match=r"a\.nhdr"):
        read_nrrd(tmp_path / "a.nhdr")


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
    path = written(tmp_path / "a.nrrd", values, kind="short", sizes=(3, 2),
                   extra=['sample units: "HU"'])  # fmt: skip
    image = read_hounsfield(path)
    np.testing.assert_array_equal(image.values, values.astype(np.float32))
    assert image.values.dtype == np.float32


AIR = np.full((ROWS, COLUMNS), -1000, np.int16)


def bad(path, what):
    """One file with one fault."""
    header, pixels = nrrd_bytes(AIR, kind="short", sizes=(COLUMNS, ROWS))
    packed = b"".join(nrrd_bytes(AIR, kind="short", sizes=(COLUMNS, ROWS), encoding="gzip"))
    floats = AIR.astype(np.float32)
    floats[1, 2] = np.nan
    contents = {
        "cut off": header + pixels[:-3],
        "cut off, gzip": packed[:-14],
        "header cut off": header[:30],
        "empty": b"",
        "another format": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "wrong size": header.replace(b"sizes: 5 3", b"sizes: 6 3") + pixels,
        "too many sizes": header.replace(b"sizes: 5 3", b"sizes: 5 3 1") + pixels,
        "unknown type": header.replace(b"type: short", b"type: half") + pixels,
        "block type": header.replace(b"type: short", b"type: block\nblock size: 2") + pixels,
        "unknown encoding": header.replace(b"encoding: raw", b"encoding: zip") + pixels,
        "volume": b"".join(nrrd_bytes(AIR, kind="short", sizes=(COLUMNS, ROWS, 2))) + pixels,
        "huge": header.replace(b"sizes: 5 3", b"sizes: 50000 50000") + pixels,
        "NaN": b"".join(nrrd_bytes(floats, kind="float", sizes=(COLUMNS, ROWS))),
        "grey values": b"".join(nrrd_bytes(picture("u1"), kind="uchar", sizes=(COLUMNS, ROWS))),
        "no rescaling": b"".join(nrrd_bytes(AIR + 1024, kind="short", sizes=(COLUMNS, ROWS))),
        "out of range": b"".join(
            nrrd_bytes(AIR.astype("i4") * 1000, kind="int", sizes=(COLUMNS, ROWS))
        ),
        "another unit": b"".join(
            nrrd_bytes(AIR, kind="short", sizes=(COLUMNS, ROWS), extra=['sample units: "1/cm"'])
        ),
    }
    path.write_bytes(contents[what])
    return path


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("cut off", "damaged, cut off"),
        ("cut off, gzip", "damaged, cut off"),
        ("header cut off", "no field 'dimension'"),
        ("empty", "is empty"),
        ("another format", "damaged, cut off or no NRRD"),
        ("wrong size", "does not equal the product"),
        ("too many sizes", "cannot be read"),
        ("unknown type", "no type 'half'"),
        ("block type", "holds no numbers"),
        ("unknown encoding", "encoding"),
        ("volume", "5 × 3 × 2 .*a single slice"),
        ("huge", "pixels; allowed: 1 to"),
        ("NaN", "1 of 15 pixels are NaN"),
        ("grey values", "none as dark as a lung"),
        ("no rescaling", "rescale"),
        ("out of range", "-1e\\+06"),
        ("another unit", "its unit is '\"?1/cm"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path, what, said):
    with pytest.raises(DataError, match=f"(?s)bad.nrrd.*{said}"):
        read_hounsfield(bad(tmp_path / "bad.nrrd", what))


# ---- labels and folders -------------------------------------------------------------------------


def folder_of(tmp_path, names=("a", "b", "c"), table=None, suffix=".csv"):
    for view in ("full", "nodule"):
        (tmp_path / view).mkdir()
        for number, name in enumerate(names):
            values = AIR + np.int16(number)
            written(tmp_path / view / f"{name}.nrrd", values, kind="short", sizes=(COLUMNS, ROWS))
    if table is None:
        table = pd.DataFrame({"name": names, "malignancy": 3, "patient": "p1"})
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
    dataset = open_slices(folder_of(tmp_path, table=table, suffix=suffix))
    assert dataset.table["path"].tolist() == ["full/a.nrrd", "full/b.nrrd", "full/c.nrrd"]
    assert dataset.table["label"].tolist() == [0, 1, 4]
    assert dataset.table["group"].tolist() == ["8", "7", "7"]
    assert not dataset.is_phantom
    lowest = [image.values.min() for image in load_slices(dataset, "nodule")]
    assert lowest == [-1000, -999, -998]


def test_every_mismatch_is_listed(tmp_path):
    table = pd.DataFrame({"name": ["a", "d", "e"], "malignancy": 1})
    folder = folder_of(tmp_path, table=table)
    (folder / "nodule" / "a.nrrd").unlink()
    with pytest.raises(DataError) as caught:
        open_slices(folder)
    for line in (
        "labels without a file in full/ (2): d, e",
        "files in full/ without a label (2): b, c",
        "labels without a file in nodule/ (3): a, d, e",
    ):
        assert line in str(caught.value)


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


def test_a_damaged_table_and_two_tables_are_refused(tmp_path):
    (tmp_path / "labels.xlsx").write_bytes(b"no workbook")
    with pytest.raises(DataError, match=r"labels\.xlsx cannot be read"):
        read_labels(tmp_path / "labels.xlsx")
    (tmp_path / "labels.csv").write_text("name,malignancy\na,1\n")
    with pytest.raises(DataError, match=r"one label table .*labels\.csv, labels\.xlsx"):
        open_slices(tmp_path)


def test_a_table_without_patients_says_so(tmp_path, capsys):
    (tmp_path / "labels.csv").write_text("name,malignancy\na,1\nb,2\n")
    assert read_labels(tmp_path / "labels.csv")["patient"].tolist() == ["a", "b"]
    assert "no column of patients" in capsys.readouterr().out


def test_all_bad_slices_are_named_at_once(tmp_path):
    dataset = open_slices(folder_of(tmp_path))
    for name in ("a", "c"):
        bad(tmp_path / "full" / f"{name}.nrrd", "cut off")
    with pytest.raises(DataError, match=r"(?s)2 slice\(s\).*a\.nrrd.*c\.nrrd"):
        load_slices(dataset, "full")


def test_the_fingerprint_changes_with_a_pixel_and_with_a_label(tmp_path):
    folder = folder_of(tmp_path)
    before = open_slices(folder).fingerprint
    assert open_slices(folder).fingerprint == before
    pd.DataFrame({"name": list("abc"), "malignancy": [3, 3, 4], "patient": "p1"}).to_csv(
        folder / "labels.csv", index=False
    )
    relabelled = open_slices(folder).fingerprint
    written(folder / "nodule" / "a.nrrd", AIR + 5, kind="short", sizes=(COLUMNS, ROWS))
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
