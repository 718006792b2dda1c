"""`explain` on inputs from public bug reports (../shared/cases), each with its right outcome."""

import zipfile
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
        return status, pd.read_csv(table) if table.is_file() else None, said.out, said.err

    return run


@pytest.mark.parametrize("name", ["preprocess_input", "div255", "ops_sigmoid"])
def test_f01_arithmetic_in_the_graph_is_loaded(explain, name):
    status, table, out, _ = explain(case("F01") / f"{name}.keras", case("F01") / "a.png")
    assert status == 0
    assert len(table) == 1
    assert "input range: 0..255 (" in out


def test_f02_labels_say_that_a_network_was_trained_on_0_to_1(explain):
    status, table, out, err = explain(case("F02") / "zero_one.keras", case("F02") / "test")
    assert status == 0
    assert "input range: 0..1 (the class folders of" in out
    assert "57 of 80" in out
    assert table["score"].abs().max() < 20
    assert "warning" not in err


def test_f02_without_labels_nothing_is_explained_until_the_range_is_given(explain, tmp_path):
    (tmp_path / "unlabelled").mkdir()
    for file in sorted((case("F02") / "test" / "COVID").glob("*.png"))[:6]:
        (tmp_path / "unlabelled" / file.name).write_bytes(file.read_bytes())
    model = case("F02") / "zero_one.keras"
    status, table, _, err = explain(model, tmp_path / "unlabelled")
    assert status == 1
    assert table is None
    for words in ("be determined", "--input-range", "zero_one.keras", "0..255: 0 NORMAL, 6 COVID"):
        assert words in err
    status, table, out, _ = explain(model, tmp_path / "unlabelled", "--input-range", "0..1")
    assert status == 0
    assert "input range: 0..1 (given by --input-range)" in out


def test_f02_a_wrong_range_is_not_silent(explain):
    status, _, out, err = explain(
        case("F02") / "zero_one.keras", case("F02") / "test", "--input-range", "0..255"
    )
    assert status == 0
    assert "which points to 0..1" in err
    assert "every image is predicted as COVID" in err
    assert "in agreement with their folders: 40 of 80" in out


def test_f03_a_probability_behind_any_wrapper_is_no_logit(explain):
    images = case("F02") / "test"
    _, expected, _, _ = explain(case("F03") / "end_sigmoid.keras", images, "--target", "COVID")
    for name in ("end_average", "end_flatten", "end_linear_cast"):
        status, table, out, _ = explain(case("F03") / f"{name}.keras", images, "--target", "COVID")
        assert status == 0
        assert "57 of 80" in out
        np.testing.assert_allclose(table["score"], expected["score"], rtol=1e-3, atol=1e-4)
    assert expected["score"].min() < 0  # no probability is


def test_classes_in_the_wrong_order_are_warned_of(explain):
    model, images = case("F03") / "end_sigmoid.keras", case("F02") / "test"
    _, _, out, err = explain(model, images, "--classes", "COVID,NORMAL")
    assert "in agreement with their folders: 23 of 80" in out
    assert "try --classes NORMAL,COVID" in err


def test_f04_and_f05_networks_inside_are_opened(explain):
    layers = {}
    models = [case("F04") / "wrapped_as_advised.keras", *sorted(case("F05").glob("*.keras"))]
    for model in models:
        status, table, _, _ = explain(model, case("F01") / "a.png")
        assert status == 0
        layers[model.stem] = table["layer"][0]
    assert layers["pooling_avg"] == "mobilenetv2_0.35_96/out_relu"
    assert layers["wrapped_as_advised"].startswith("functional/conv2d")
    assert layers["wrapped_uncompiled"].startswith("functional/conv2d")
    assert "/" in layers["ensemble_uncompiled"]


def test_f06_colours_are_kept_for_a_network_of_colours(explain):
    model, images = case("F06") / "colour.keras", case("F06") / "images"
    status, table, out, _ = explain(model, images, "--classes", "benign,erythema")
    assert status == 0
    assert "60 of 60" in out
    assert "in colour" in out
    assert (table["predicted"] == [Path(name).parent.name for name in table["image"]]).all()


def test_folders_that_are_no_classes_are_warned_of(explain):
    _, table, _, err = explain(case("F06") / "colour.keras", case("F06") / "images")
    assert len(table) == 60
    assert "none of the folders benign, erythema is named as a class (NORMAL, COVID)" in err


def test_f07_a_file_of_keras_2_is_refused_with_the_way_out_or_trusted(explain):
    model, image = case("F07") / "keras2.keras", case("F01") / "a.png"
    status, _, _, err = explain(model, image)
    assert status == 1
    for words in ("keras2.keras", "Keras 2", "--trust", "save("):
        assert words in err
    status, table, _, _ = explain(model, image, "--trust")
    assert status == 0
    assert table["layer"][0] == "conv2d"


def test_f12_a_stray_picture_beside_the_splits_is_passed_over(explain, tmp_path):
    with zipfile.ZipFile(case("F12") / "stray.zip") as archive:
        archive.extractall(tmp_path / "stray")
    model = case("F13") / "m.keras"
    status, table, out, _ = explain(model, tmp_path / "stray")
    assert status == 0
    assert len(table) == 36
    assert "images: 36 (18 NORMAL, 18 COVID)" in out
    assert "outside the class folders: 1 (covid_xray/overview.png)" in out
    status, zipped, _, _ = explain(model, case("F12") / "stray.zip")
    assert status == 0
    assert zipped["score"].tolist() == table["score"].tolist()


def test_f13_appledouble_files_and_masks_are_passed_over(explain):
    model = case("F13") / "m.keras"
    status, table, out, _ = explain(model, case("F13") / "mac")
    assert status == 0
    assert len(table) == 2
    assert "hidden: 2 (COVID/._a.png, COVID/._b.png)" in out
    status, table, out, _ = explain(model, case("F13") / "kaggle")
    assert status == 0
    assert len(table) == 4
    assert "lung masks: 4" in out
    assert (table["lungs"] == "mask").all()
    options = ["--target", "true"]
    _, table, _, _ = explain(model, case("F13") / "kaggle" / "COVID" / "images", *options)
    assert table["target"].tolist() == ["COVID", "COVID"]


def test_f14_masks_are_found_by_name_in_folders_and_archives(explain):
    model, image = case("F13") / "m.keras", case("F13") / "mac" / "COVID" / "a.png"
    for masks in ("m1", "m2", "m.zip"):
        status, table, _, _ = explain(model, image, "--masks", str(case("F14") / masks))
        assert status == 0
        assert table["lungs"].tolist() == ["mask"]
    status, table, _, err = explain(model, image, "--masks", str(case("F14") / "no_such_folder"))
    assert status == 1
    assert table is None
    assert "no_such_folder" in err


def test_f15_blanks_between_the_names_of_classes_do_not_count(explain):
    image = case("F13") / "mac" / "COVID" / "a.png"
    options = ["--classes", "NORMAL, COVID", "--target", "COVID"]
    status, table, _, _ = explain(case("F13") / "m.keras", image, *options)
    assert status == 0
    assert table["target"].tolist() == ["COVID"]


def test_an_overlay_of_a_coloured_image_is_in_colour(explain, tmp_path):
    model = case("F06") / "colour.keras"
    image = sorted((case("F06") / "images" / "erythema").glob("*.png"))[0]
    explain(model, image, "--classes", "benign,erythema")
    (made,) = tmp_path.glob("out*/overlays/*.png")
    overlay = np.asarray(Image.open(made)).astype(int)
    original = np.asarray(Image.open(image).convert("RGB")).astype(int)
    # The heat adds (1 + 0.4) times less than it hides: the image's own colours remain.
    assert (
        np.corrcoef(
            (overlay - overlay.mean(-1, keepdims=True)).ravel(),
            (original - original.mean(-1, keepdims=True)).ravel(),
        )[0, 1]
        > 0
    )
