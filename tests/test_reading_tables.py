"""Labels from tables, as users, NIH and Stanford write them."""

import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import write

from covid_lab.datasets import described, open_dataset
from covid_lab.reading.manifests import match_images, read_table
from covid_lab.reading.patients import _is_date, groups_from_names, groups_from_table
from covid_project.data import DataError

ROWS = [
    ("a/1.png", "COVID", "p1", "train"),
    ("a/2.png", "NORMAL", "p2", "train"),
    ("b/3.png", "COVID", "p1", "val"),
    ("b/4.png", "NORMAL", "p3", "test"),
]
NAMES = [row[0] for row in ROWS]


def table(separator: str = ",", header: str = "path,label,patient,split") -> str:
    lines = [header.replace(",", separator), *(separator.join(row) for row in ROWS)]
    return "\n".join(lines) + "\n"


def opened(path: Path, **options):
    return open_dataset(path, **{"classes": None, "as_found": True, **options})


def check(dataset) -> None:
    found = dataset.table.sort_values("path")
    assert dataset.classes == ("NORMAL", "COVID")
    assert found["path"].tolist() == NAMES
    assert found["label"].tolist() == [1, 0, 1, 0]
    assert found["split"].tolist() == ["train", "train", "val", "test"]
    assert found["group"].tolist() == ["p1", "p2", "p1", "p3"]


WRITTEN = {
    "comma": table().encode(),
    "semicolon": table(";").encode(),
    "tab": table("\t").encode(),
    "bar": table("|").encode(),
    "byte order mark": b"\xef\xbb\xbf" + table(";").encode(),
    "utf-16": table("\t").encode("utf-16"),
    "lines of windows": table().replace("\n", "\r\n").encode(),
    "blanks around": table().replace(",", " , ").encode(),
    "empty rows, columns": (table(header="path,label,patient,split,,") + ",,,,,\n,,,\n").encode(),
    "quoted": "\n".join(f'"{line.replace(",", chr(34) + "," + chr(34))}"'
                        for line in table().splitlines()).encode(),
    "other usual names": table(header="Image Path,Class,Patient ID,Set").encode(),
    "backslashes": table().replace("a/", "a\\").replace("b/", ".\\b\\").encode(),
    "absolute paths": table().replace("a/", "/home/x/a/").replace("b/", "C:\\x\\b\\").encode(),
    "names without suffix": table().replace(".png", "").encode(),
    "names in capitals": table().replace(".png", ".PNG").encode(),
    "words for splits": table().replace(",train", ",Training").replace(",val", ",valid").encode(),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN)
def test_tables_are_read_whatever_wrote_them(tmp_path, kind):
    data = write(tmp_path / "set", NAMES)
    (tmp_path / "labels.csv").write_bytes(WRITTEN[kind])
    check(opened(data, table=tmp_path / "labels.csv"))


def test_spreadsheets_are_read(tmp_path):
    pytest.importorskip("openpyxl")
    data = write(tmp_path / "set", NAMES)
    pd.read_csv(io.StringIO(table())).to_excel(tmp_path / "labels.xlsx", index=False)
    check(opened(data, table=tmp_path / "labels.xlsx"))


def test_the_images_may_be_in_no_folder(tmp_path):
    data = write(tmp_path / "set", ["1.png", "2.png"], labels__csv="path,label\n1,a\n2,b\n")
    found = opened(data, table=data / "labels.csv").table
    assert found[["path", "source", "mask"]].to_numpy().tolist() == [
        [name, "", ""] for name in ("1.png", "2.png")
    ]


def test_columns_may_have_any_name(tmp_path):
    data = write(tmp_path / "set", NAMES, labels__csv=table(header="wo,was,wer,teil"))
    with pytest.raises(DataError, match=r"which column is the path and the label\? .* wo, was"):
        opened(data, table=data / "labels.csv")
    columns = {"path": "wo", "label": "was", "patient": "wer", "split": "teil"}
    check(opened(data, table=data / "labels.csv", columns=columns))
    with pytest.raises(DataError, match=r"no column 'nichts'"):
        opened(data, table=data / "labels.csv", columns={**columns, "label": "nichts"})


@pytest.mark.parametrize("one", ["1", "1.0", "1,0", " 1 "])
def test_numbers_as_spreadsheets_write_them(tmp_path, one):
    rows = f'path;label\na/1.png;"{one}"\na/2.png;0\nb/3.png;1\nb/4.png;0,0\n'
    data = write(tmp_path / "set", NAMES, labels__csv=rows)
    dataset = opened(data, table=data / "labels.csv")
    assert dataset.classes == ("0", "1")
    assert dataset.table.sort_values("path")["label"].tolist() == [1, 0, 1, 0]


def test_other_classes_and_images_without_a_row_are_counted(tmp_path):
    rows = table() + "c/5.png,Viral,p9,test\n"
    data = write(tmp_path / "set", [*NAMES, "c/5.png", "c/6.png"], labels__csv=rows)
    dataset = opened(data, table=data / "labels.csv")
    check(dataset)
    line = described(dataset, "set")
    assert "of other classes: Viral: 1 (c/5.png)" in line
    assert "without a row in the table: 1 (c/6.png)" in line
    assert "5 of 5 rows name an image, and 5 of 6 images have a row" in line


@pytest.mark.parametrize(
    ("names", "rows", "reason"),
    [
        (["x.png", "y.png", "a/1.png"], table(), r"1 of 4 rows .* Rows without an image: a/2.png"),
        (NAMES, table() + "a/1.png,NORMAL,p1,train\n", r"contradicts itself on a/1.png"),
        (
            [f"{k}.png" for k in range(30)],
            "path,label\n" + "".join(f"{k}.png,{k}.png\n" for k in range(30)),
            r"30 different values, .* more than 20 classes",
        ),
        (NAMES, table().replace(",train", ",fitting"), "column split: found fitting; allowed"),
        (NAMES, "path,label\n", "without rows"),
    ],
    ids=["other images", "contradiction", "names for labels", "unknown split", "no rows"],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, names, rows, reason):
    data = write(tmp_path / "set", names, labels__csv=rows)
    with pytest.raises(DataError, match=reason):
        opened(data, table=data / "labels.csv")


@given(st.lists(st.text("ab/.", min_size=1, max_size=6), max_size=6), st.text("ab/.", max_size=6))
def test_entries_are_matched_as_a_search_of_all_ends(names, value):
    names = sorted({"/".join(p for p in name.split("/") if p) for name in names} - {""})
    (found,) = match_images([value], names)
    parts = [part for part in value.split("/") if part not in ("", ".")]
    expected = None
    for start in range(len(parts)):
        tail = "/".join(parts[start:])
        fits = {n for n in names if f"/{n}".endswith(f"/{tail}")}
        if not fits:
            break  # names without suffix are tried too, which this search leaves out
        expected = fits.pop() if len(fits) == 1 else None
        break
    else:
        return
    if expected is not None:
        assert found == expected


# ---- NIH ChestX-ray14 and CheXpert --------------------------------------------------------------


NIH = """Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age
00000001_000.png,Cardiomegaly,0,1,58
00000001_001.png,Cardiomegaly|Effusion,1,1,58
00000002_000.png,No Finding,0,2,81
00000003_000.png,Effusion,0,3,20
00000004_000.png,No Finding,0,4,30
"""


def nih(folder: Path) -> Path:
    names = [f"images_00{1 + k % 2}/images/{row.split(',')[0]}"
             for k, row in enumerate(NIH.splitlines()[1:])]  # fmt: skip
    lists = {"train_val_list__txt": "00000001_000.png\n00000001_001.png\n00000002_000.png\n"}
    lists["test_list__txt"] = "00000003_000.png\n00000004_000.png\n"
    return write(folder, names, Data_Entry_2017__csv=NIH, **lists)


def test_nih_is_known_by_its_table(tmp_path):
    data = nih(tmp_path / "nih")
    with pytest.raises(
        DataError, match=r"--finding. Found: Cardiomegaly \(2\), Effusion \(2\), No Finding \(2\)"
    ):
        opened(data)
    dataset = opened(data, finding="Effusion")
    assert dataset.classes == ("no Effusion", "Effusion")
    rows = dataset.table.assign(name=dataset.table["path"].str[-16:]).sort_values("name")
    assert rows["label"].tolist() == [0, 1, 0, 1, 0]
    assert rows["group"].tolist() == ["1", "1", "2", "3", "4"]
    assert rows["split"].tolist() == ["train", "train", "train", "test", "test"]
    two = opened(data, classes=("No Finding", "Effusion"))
    assert two.table["label"].tolist().count(1) == 2
    assert "of other classes: Cardiomegaly: 1" in described(two, "nih")


def test_several_rows_for_an_image(tmp_path):
    rows = (
        "image_id,class_name\na/1,Nodule\na/1,Effusion\na/2,No finding\nb/3,Effusion\nb/4,Nodule\n"
    )
    data = write(tmp_path / "set", NAMES, labels__csv=rows)
    dataset = opened(data, table=data / "labels.csv", finding="Nodule")
    found = dataset.table.sort_values("path")
    assert found["path"].tolist() == NAMES
    assert found["label"].tolist() == [1, 0, 0, 1]
    with pytest.raises(DataError, match=r"contradicts itself on a/1\.png"):
        opened(data, table=data / "labels.csv", classes=("Effusion", "Nodule"))


CHEXPERT = """Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Pneumonia,Edema
CheXpert-v1.0-small/{s}/patient0000{k}/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,
CheXpert-v1.0-small/{s}/patient0000{k}/study2/view1_frontal.jpg,Female,87,Frontal,AP,,1.0,-1.0
CheXpert-v1.0-small/{s}/patient0001{k}/study1/view2_lateral.jpg,Male,83,Lateral,,,0.0,1.0
CheXpert-v1.0-small/{s}/patient0002{k}/study1/view1_frontal.jpg,Male,41,Frontal,AP,,-1.0,0.0
"""


def test_chexpert_is_known_by_its_tables(tmp_path):
    train, valid = CHEXPERT.format(s="train", k=1), CHEXPERT.format(s="valid", k=2)
    names = [line.split(",")[0] for text in (train, valid) for line in text.splitlines()[1:]]
    data = write(tmp_path, names)
    inner = data / "CheXpert-v1.0-small"
    (inner / "train.csv").write_text(train)
    (inner / "valid.csv").write_text(valid)
    with pytest.raises(DataError, match=r"--finding. Found: No Finding, Pneumonia, Edema"):
        opened(inner)
    dataset = opened(inner, finding="Pneumonia")
    counts = dataset.table.groupby(["split", "label"]).size().to_dict()
    assert counts == {(s, label): 3 - 1 - label for s in ("train", "val") for label in (0, 1)}
    assert "Pneumonia uncertain: 2" in described(dataset, "CheXpert")
    patients = {f"patient000{k}" for k in ("01", "02", "11", "12")}
    assert set(dataset.table["group"]) == patients


# ---- patients -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "pattern", "reason"),
    [
        (["a/x1.png", "a/x2.png"], r"p(\d+)", "matches none, of 2 images such as a/x1.png"),
        (["a/x1.png", "a/x2.png"], r"(x)", "finds one patient for all: 'x'"),
        (["a/x1.png", "a/x2.png"], r"x(\d)", "finds a patient of its own for each: 1, 2"),
        ([f"2020030{k}_{n}.png" for k in (1, 2) for n in (1, 2)], r"(\d{8})_", "finds dates"),
        (["a.png"], "(", "not a regular expression"),
    ],
)
def test_implausible_patterns_are_refused_by_name(paths, pattern, reason):
    with pytest.raises(DataError, match=reason) as caught:
        groups_from_names(paths, pattern)
    assert repr(pattern) in str(caught.value)


def test_dates_are_told_from_patient_numbers():
    assert _is_date("20200307")
    assert _is_date("2020-03-07")
    assert not any(map(_is_date, ["00013001", "20201307", "20200332", "2020030", "12345678"]))
    dates = [f"COVID/2020030{k}_00{n}.png" for k in range(1, 5) for n in range(3)]
    assert groups_from_names(dates).tolist() == dates  # NIH's numbers look alike, and are no dates


def test_patients_from_a_table_say_how_many_matched():
    rows = read_table(b"image;patient\n1.png;a\n2.png;a\n3.png;b\nother.png;c\n", "m.csv")
    groups, said = groups_from_table(["x/1.png", "x/2.png", "x/3.png"], rows)
    assert groups.tolist() == ["a", "a", "b"]
    assert said == "patients: 2, from a table, of 3 images"
    twice = read_table(b"image,patient\n1.png,a\n1.png,b\n", "m.csv")
    with pytest.raises(DataError, match=r"two patients of x/1\.png"):
        groups_from_table(["x/1.png"], twice)
    with pytest.raises(DataError, match=r"only 3 of 4 images, not of x/4.png"):
        groups_from_table([f"x/{k}.png" for k in range(1, 5)], rows)
    with pytest.raises(DataError, match="one patient for all images"):
        groups_from_table(["x/1.png", "x/2.png"], rows)
    with pytest.raises(DataError, match=r"which column is the patient\? Found: image, who"):
        groups_from_table(["1.png"], read_table(b"image,who\n1.png,a\n", "m.csv"))


def test_images_of_several_of_the_classes_are_left_out(tmp_path):
    rows = "path,label\na/1.png,A|B\na/2.png,A\nb/3.png,B|C\nb/4.png,C\n"
    data = write(tmp_path / "set", NAMES, labels__csv=rows)
    dataset = opened(data, table=data / "labels.csv", classes=("A", "B"))
    assert dataset.table["path"].tolist() == ["a/2.png", "b/3.png"]
    line = described(dataset, "x")
    assert "of several of the classes: 1 (a/1.png)" in line
    assert "of other classes: C: 1 (b/4.png)" in line
