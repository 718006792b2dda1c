"""Inputs made after public bug reports (``shared/cases``): each has its right outcome."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from image_files import grey_png, tree, write

from covid_lab.__main__ import main
from covid_lab.datasets import described, each_image, open_dataset
from covid_lab.reading.arrange import RECORD, arrange, is_course_data
from covid_lab.runs import runner
from covid_project import data
from covid_project.data import DataError
from covid_project.images import decode

PROJECT = Path(__file__).parents[1]
CASES = PROJECT.parent / "shared" / "cases"


def case(name: str) -> Path:
    found = sorted(CASES.glob(f"{name}_*"))
    if not found:
        pytest.skip("shared/cases is not here")
    return found[0]


def opened(path: Path, **options):
    return open_dataset(path, **{"classes": None, "as_found": True, **options})


def test_f12_a_picture_beside_the_splits():
    dataset = opened(case("F12") / "stray.zip")
    assert dataset.classes == ("NORMAL", "COVID")
    assert len(dataset.table) == 36
    assert "outside the class folders: 1 (covid_xray/overview.png)" in described(dataset, "x")


@pytest.mark.parametrize("kind", ["both_unmatched", "one_unmatched", "only_covid"])
def test_f17_metadata_that_match_no_image_judge_no_source(tmp_path, kind):
    for place in ("set", kind):
        shutil.copytree(case("F17") / place, tmp_path / kind, dirs_exist_ok=True)
    dataset = opened(tmp_path / kind)
    assert "sources are unknown" in described(dataset, kind)
    assert set(dataset.table["source"].str.upper()) == {"COVID", "NORMAL"}


def test_f18_dates_are_no_patients():
    table = opened(case("F18") / "dates").table
    assert (table["group"] == table["path"]).all()


def test_f19_suffixes_of_images():
    dataset = opened(case("F19") / "suf")
    assert dataset.table["label"].value_counts().to_dict() == {0: 12, 1: 12}
    assert each_image(dataset, np.mean)[1] == {}


def test_f21_names_in_other_letters():
    dataset = opened(case("F21") / "nfd", classes=("Normal", "Lungenentz\u00fcndung"))
    assert dataset.table["label"].value_counts().to_dict() == {0: 12, 1: 12}
    assert opened(case("F21") / "gbk.zip").classes == ("新冠", "正常")


def test_f22_whole_images_are_read_as_the_plain_one():
    folder = case("F22") / "images"
    plain = decode((folder / "plain.png").read_bytes(), "plain.png").astype(int)
    for path in sorted(folder.iterdir()):
        grey = decode(path.read_bytes(), path.name).astype(int)
        tolerance = 3 if path.name == "mpo.jpg" else 1  # what JPEG loses
        assert np.abs(grey - plain).mean() < tolerance, path.name


@pytest.mark.parametrize(
    ("study", "data", "message"),
    [
        ("ct_lesions", "F26/ct_numbered", "numbered in sequence were taken for one patient"),
        ("pneumonia", "F28/pn_notest", "no test split"),
    ],
)
def test_f26_f28_studies_say_at_once_what_they_cannot_use(tmp_path, capsys, study, data, message):
    number, _, folder = data.partition("/")
    arguments = ["--data", str(case(number) / folder), "--results", str(tmp_path)]
    assert main(["run", "--profile", study, "--study", study, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_f30_patients_of_both_classes_stay_together(tmp_path):
    dataset = opened(case("F30") / "nih")
    assert dataset.table["group"].nunique() == 12
    assert not is_course_data(dataset, case("F30") / "nih")
    said = arrange(dataset, tmp_path / "a.zip", source="nih")
    assert said == ["split 80 : 10 : 10; patients and equal files stay together"]
    table = data.open_dataset(tmp_path / "a.zip").table
    patients = table["path"].str.extract(r"_(\d{8})_", expand=False)
    assert len(table) == 24
    of_patient = table.groupby(patients)[["split", "label"]].nunique()
    assert (of_patient == [1, 2]).all(axis=None)


# ---- arranged as the course takes them ----------------------------------------------------------


def test_course_data_are_taken_as_they_are(tmp_path):
    splits = ("train", "val", "test")
    places = [f"x/{s}/{c}" for s in splits for c in ("normal", "COVID")]
    course = write(tmp_path / "a", tree(*places))
    assert is_course_data(opened(course), course)
    kaggle = write(tmp_path / "b", tree("COVID/images", "Normal/images"))
    assert is_course_data(opened(kaggle), kaggle)
    for number, places in enumerate((["COVID/p001", "NORMAL/p002"], ["A", "B"], ["dev/COVID"])):
        other = write(tmp_path / f"c{number}", tree(*places))
        assert not is_course_data(opened(other, classes=None), other)


def test_archives_whose_names_are_mended_are_arranged(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for number, name in enumerate(tree("COVID", "NORMAL", each=12)):
            archive.writestr(name.replace("/", "\\"), grey_png(number, 6, 6))
    dataset = opened(tmp_path / "set.zip")
    assert not is_course_data(dataset, tmp_path / "set.zip")
    arrange(dataset, tmp_path / "a.zip", source="set.zip")
    assert len(data.open_dataset(tmp_path / "a.zip").table) == 24


@pytest.mark.parametrize("splits", [("train", "val", "test"), ("train", "test"), ()])
def test_arranged_data_hold_the_same_images(tmp_path, splits):
    places = [f"{s}/{c}/p{p:04}" for s in splits or ("",) for c in "AB" for p in range(20)]
    source = write(tmp_path / "set", [p.strip("/") for p in tree(*places, each=2)])
    dataset = opened(source, classes=("A", "B"))
    said = arrange(dataset, tmp_path / "a.zip", source="set")
    assert any("call A NORMAL and B COVID" in line for line in said)
    table = data.open_dataset(tmp_path / "a.zip").table
    assert set(table["split"]) == {"train", "val", "test"}
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        record = json.loads(archive.read(RECORD))
        held = {archive.read(name) for name in table["path"]}
    assert held == {path.read_bytes() for path in source.rglob("*.png")}
    assert record["classes"] == {"NORMAL": "A", "COVID": "B"}
    assert record["fingerprint"] == dataset.fingerprint
    numbers = table["path"].str.extract(r"/(\d+)_", expand=False).astype(int)
    came_from = pd.Series(record["paths"]).iloc[numbers].reset_index(drop=True)
    patients = came_from.str.extract(r"(.*)/", expand=False)
    assert len(set(zip(patients, table["split"], strict=True))) == patients.nunique()
    if splits:
        kept = came_from.str.split("/").str[0]
        assert (table["split"][kept == "test"] == "test").all()
        assert (table["split"][kept == "train"] != "test").all()


def test_a_run_asks_which_class_is_positive(tmp_path, capsys):
    source = write(tmp_path / "set", tree("COVID-19", "Normal", each=12))
    options = ["run", "--profile", "smoke", "--data", str(source), "--results", str(tmp_path / "r")]
    assert main(options) == 1
    assert "COVID-19, Normal is the positive one?" in capsys.readouterr().err


def test_three_classes_cannot_be_arranged(tmp_path):
    dataset = opened(write(tmp_path / "set", tree("A", "B", "C")))
    with pytest.raises(DataError, match=r"two classes, and set has 3: A, B, C"):
        arrange(dataset, tmp_path / "a.zip", source="set")
    assert not (tmp_path / "a.zip").exists()


def test_some_splits_without_others_cannot_be_arranged(tmp_path):
    dataset = opened(write(tmp_path / "set", tree("train/A", "train/B", "val/A", "val/B")))
    with pytest.raises(DataError, match="needs train, val and test; missing: test"):
        arrange(dataset, tmp_path / "a.zip", source="set")
    assert not (tmp_path / "a.zip").exists()


# ---- other Pythons -------------------------------------------------------------------------------


def test_f24_the_kernel_is_this_python(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", str(case("F24") / "jp"))  # has a python3 of another Python
    monkeypatch.setattr(runner, "PROJECT", tmp_path)
    sources = ["DATA = None", f"import sys\nassert sys.executable == {sys.executable!r}"]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "one.ipynb")
    runner.run_notebooks(["one"], {"DATA": "x"}, tmp_path / "results")


def test_f31_an_older_python_is_told_in_one_line():
    code = "import sys; sys.version_info = (3, 11, 7); sys.version = '3.11.7'; import covid_lab"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 1
    assert done.stderr == "Python 3.12 is needed; this is 3.11.7\n"
