"""`explain` on inputs from public bug reports (../shared/cases), each with its right outcome."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_lab.__main__ import main

CASES = Path(__file__).parents[2] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is not there")


def case(number):
    found = sorted(CASES.glob(f"{number}_*"))
    if not found:
        pytest.skip(f"no case {number} in {CASES}")
    return found[0]


@pytest.fixture
def explain(tmp_path, capsys):
    def run(model, images, *options):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        status = main(["explain", str(model), str(images), "--out", str(out), *options])
        table = out / "explanations.csv"
        said = capsys.readouterr()
        assert (status == 0) == table.is_file()
        return pd.read_csv(table) if status == 0 else None, said.out, said.err

    return run


@pytest.fixture
def few(tmp_path):
    """Six of case F02's images of COVID, in a folder that names no class."""
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    for file in sorted((case("F02") / "test" / "COVID").glob("*.png"))[:6]:
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("name", ["preprocess_input", "div255", "ops_sigmoid"])
def test_f01_arithmetic_in_the_graph_is_loaded(explain, name):
    table, out, _ = explain(case("F01") / f"{name}.keras", case("F01") / "a.png")
    assert len(table) == 1
    assert "input range: 0..255 (" in out


def test_f02_labels_say_that_a_network_was_trained_on_0_to_1_and_contradict_another(explain):
    model, images = case("F02") / "zero_one.keras", case("F02") / "test"
    table, out, err = explain(model, images)
    assert "input range: 0..1 (the class folders of" in out
    assert "57 of 80" in out
    assert table["score"].abs().max() < 20
    assert "warning" not in err
    _, out, err = explain(model, images, "--input-range", "0..255")
    assert "which points to 0..1" in err
    assert "every image is predicted as COVID" in err
    assert "in agreement with their folders: 40 of 80" in out


def test_f02_without_labels_nothing_is_explained_until_the_range_is_given(explain, few):
    model = case("F02") / "zero_one.keras"
    table, _, err = explain(model, few)
    assert table is None
    for words in ("be determined", "--input-range", "zero_one.keras", "0..255: 0 NORMAL, 6 COVID"):
        assert words in err
    _, out, _ = explain(model, few, "--input-range", "0..1")
    assert "input range: 0..1 (given by --input-range)" in out


def test_f03_a_probability_behind_any_wrapper_is_no_logit(explain, few):
    names = ("end_sigmoid", "end_average", "end_flatten", "end_linear_cast")
    scores = [
        explain(case("F03") / f"{name}.keras", few, "--target", "COVID")[0]["score"]
        for name in names
    ]
    assert scores[0].min() < 0  # no probability is
    for found in scores[1:]:
        np.testing.assert_allclose(found, scores[0], rtol=1e-3, atol=1e-4)


def test_classes_in_the_wrong_order_are_warned_of(explain):
    model, images = case("F03") / "end_sigmoid.keras", case("F02") / "test"
    _, out, err = explain(model, images, "--classes", "COVID,NORMAL")
    assert "in agreement with their folders: 23 of 80" in out
    assert "try --classes NORMAL,COVID" in err


def test_f04_and_f05_networks_inside_are_opened(explain):
    layers = {}
    models = [case("F04") / "wrapped_as_advised.keras", *sorted(case("F05").glob("*.keras"))]
    for model in models:
        table, _, _ = explain(model, case("F01") / "a.png")
        layers[model.stem] = table["layer"][0]
    assert layers["pooling_avg"] == "mobilenetv2_0.35_96/out_relu"
    assert layers["wrapped_as_advised"].startswith("functional/conv2d")
    assert layers["wrapped_uncompiled"].startswith("functional/conv2d")
    assert "/" in layers["ensemble_uncompiled"]


def test_f06_colours_are_kept_and_folders_that_are_no_classes_warned_of(explain, tmp_path):
    model, images = case("F06") / "colour.keras", case("F06") / "images"
    table, out, _ = explain(model, images, "--classes", "benign,erythema")
    assert "60 of 60" in out
    assert "in colour" in out
    assert (table["predicted"] == [Path(name).parent.name for name in table["image"]]).all()
    (folder,) = tmp_path.glob("out*")
    row = table[table["predicted"] == "erythema"].iloc[0]
    made = np.asarray(Image.open(folder / row["overlay"])).astype(int)
    original = np.asarray(Image.open(row["image"]).convert("RGB")).astype(int)
    # The heat adds (1 + 0.4) times less than it hides: the image's own colours remain.
    own, given = ((x - x.mean(-1, keepdims=True)).ravel() for x in (made, original))
    assert np.corrcoef(own, given)[0, 1] > 0
    _, _, err = explain(model, images)
    assert "none of the folders benign, erythema is named as a class (NORMAL, COVID)" in err


def test_f07_a_file_of_keras_2_is_refused_with_the_way_out_or_trusted(explain):
    model, image = case("F07") / "keras2.keras", case("F01") / "a.png"
    table, _, err = explain(model, image)
    assert table is None
    for words in ("keras2.keras", "Keras 2", "--trust", "save("):
        assert words in err
    table, _, _ = explain(model, image, "--trust")
    assert table["layer"][0] == "conv2d"


def test_f12_a_stray_picture_beside_the_splits_is_passed_over(explain):
    table, out, _ = explain(case("F13") / "m.keras", case("F12") / "stray.zip")
    assert len(table) == 36
    assert "images: 36 (18 NORMAL, 18 COVID)" in out
    assert "outside the class folders: 1 (covid_xray/overview.png)" in out


def test_f13_appledouble_files_and_masks_are_passed_over(explain):
    model = case("F13") / "m.keras"
    table, out, _ = explain(model, case("F13") / "mac")
    assert len(table) == 2
    assert "hidden: 2 (COVID/._a.png, COVID/._b.png)" in out
    table, out, _ = explain(model, case("F13") / "kaggle")
    assert len(table) == 4
    assert "lung masks: 4" in out
    assert (table["lungs"] == "mask").all()
    options = ["--target", "true"]
    table, _, _ = explain(model, case("F13") / "kaggle" / "COVID" / "images", *options)
    assert table["target"].tolist() == ["COVID", "COVID"]


def test_f14_masks_are_found_by_name_and_f15_blanks_in_class_names_do_not_count(explain):
    model, image = case("F13") / "m.keras", case("F13") / "mac" / "COVID" / "a.png"
    for masks in ("m1", "m2", "m.zip"):
        options = ["--masks", str(case("F14") / masks), "--classes", "NORMAL, COVID"]
        table, _, _ = explain(model, image, *options, "--target", "COVID")
        assert table["lungs"].tolist() == ["mask"]
        assert table["target"].tolist() == ["COVID"]
    table, _, err = explain(model, image, "--masks", str(case("F14") / "no_such_folder"))
    assert table is None
    assert "no_such_folder" in err
