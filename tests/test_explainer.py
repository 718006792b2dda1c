"""``python -m covid_lab explain``, as a user calls it."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_lab.__main__ import main
from covid_lab.explain.gradcam import grad_cam
from covid_lab.phantoms import draw_radiograph
from covid_project.gradcam import overlay
from covid_project.images import decode
from covid_project.models import baseline_cnn
from covid_project.normalization import normalization_layer
from covid_project.settings import PROJECT


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = baseline_cnn(32, normalization_layer("fixed", None), filters=4, dropout=0.0)
    path = tmp_path_factory.mktemp("model") / "baseline.keras"
    model.save(path)
    return path


@pytest.fixture
def images(tmp_path):
    """Two phantoms of each class in folders of their names, one image not square, with masks."""
    for number, severity in enumerate((None, None, "severe", "severe")):
        drawn = draw_radiograph(np.random.default_rng(number), 64, severity)
        folder = "COVID" if severity else "NORMAL"
        for kind, pixels in (("images", drawn.image), ("lungs", np.uint8(255) * drawn.lungs)):
            path = tmp_path / kind / folder / f"{number % 2}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (64, 48) if number == 1 else (64, 64)
            Image.fromarray(pixels[:, : shape[1]]).save(path)
    return tmp_path / "images"


def explain(model_path, images, out, *options):
    status = main(["explain", str(model_path), str(images), "--out", str(out), *options])
    table = out / "explanations.csv"
    return status, pd.read_csv(table) if table.is_file() else None


def test_a_folder_gives_overlays_of_the_original_size_and_a_table(
    model_path, images, tmp_path, capsys
):
    status, table = explain(model_path, images, tmp_path / "out")
    assert status == 0
    assert table["method"].tolist() == ["grad-cam"] * 4
    assert (table["layer"] == "stage3_2_relu").all()
    for row in table.itertuples():
        with Image.open(row.image) as original, Image.open(tmp_path / "out" / row.overlay) as made:
            assert made.size == original.size
            assert made.mode == "RGB"
    assert "images explained: 4 of 4" in capsys.readouterr().out


def test_what_is_written_is_what_grad_cam_gives(model_path, images, tmp_path):
    _, table = explain(model_path, images, tmp_path / "out", "--target", "covid")
    file = images / "COVID" / "0.png"
    row = table[table["image"] == str(file)].iloc[0]
    original = decode(file.read_bytes(), "")
    small = np.asarray(Image.fromarray(original).resize((32, 32), Image.Resampling.BILINEAR))
    model = keras.saving.load_model(model_path)
    found = grad_cam(model, small[None, ..., None], 1)
    assert row["score"] == pytest.approx(found.scores[0], rel=1e-4, abs=1e-6)
    assert row["status"] == found.status[0]
    expected = overlay(original[None, ..., None], found.maps)[0].astype(int)
    made = np.asarray(Image.open(tmp_path / "out" / row["overlay"])).astype(int)
    assert np.abs(made - expected).max() <= 1


def test_the_classes_of_two_targets_are_opposite(model_path, images, tmp_path):
    tables = [
        explain(model_path, images, tmp_path / name, "--target", name)[1]
        for name in ("NORMAL", "COVID")
    ]
    np.testing.assert_allclose(tables[0]["score"], -tables[1]["score"], rtol=1e-4)
    _, true = explain(model_path, images, tmp_path / "true", "--target", "true")
    assert true["target"].tolist() == [
        "COVID" if "COVID" in image else "NORMAL" for image in true["image"]
    ]
    _, predicted = explain(model_path, images, tmp_path / "predicted")
    assert (predicted["score"] >= 0).all()


def test_several_methods_make_a_sheet_for_each_image(model_path, images, tmp_path):
    options = ["--method", "GradCAM", "--method", "saliency", "--method", "hirescam"]
    status, table = explain(model_path, images, tmp_path / "out", *options)
    assert status == 0
    assert len(table) == 12
    assert set(table["layer"]) == {"stage3_2_relu", "pixels"}
    assert len(list((tmp_path / "out" / "sheets").glob("*.png"))) == 4
    assert table["overlay"].is_unique


def test_the_share_of_heat_in_the_lungs_is_that_of_the_masks(model_path, images, tmp_path):
    options = ["--method", "occlusion", "--masks", str(images.parent / "lungs")]
    _, table = explain(model_path, images, tmp_path / "out", *options)
    shown = table[table["status"] == "ok"]
    assert len(shown)
    assert (shown["lungs"] == "mask").all()
    assert shown["lung_share"].between(0, 1).all()
    for row in table.itertuples():
        mask = images.parent / "lungs" / Path(row.image).relative_to(images)
        assert row.lung_area == pytest.approx((np.asarray(Image.open(mask)) > 127).mean(), abs=1e-6)


def test_an_image_without_a_mask_is_counted_and_masks_of_others_are_refused(
    model_path, images, tmp_path, capsys
):
    masks = images.parent / "lungs"
    (masks / "COVID" / "1.png").unlink()
    _, table = explain(model_path, images, tmp_path / "out", "--masks", str(masks))
    assert table["lungs"].tolist().count("mask") == 3
    assert table.loc[table["lungs"] == "none", "lung_share"].isna().all()
    assert "lung masks: for 3 of 4 images" in capsys.readouterr().out
    for number, mask in enumerate(sorted(masks.rglob("*.png"))):
        mask.rename(masks / f"other{number}.png")
    status, table = explain(model_path, images, tmp_path / "none", "--masks", str(masks))
    assert status == 1
    assert table is None
    assert "no mask in" in capsys.readouterr().err


def test_each_target_has_a_map_and_the_table_says_what_is_predicted(model_path, images, tmp_path):
    options = ["--target", "COVID", "--target", "normal", "--target", "predicted"]
    status, table = explain(model_path, images, tmp_path / "out", *options)
    assert status == 0
    assert len(table) == 12
    assert table["overlay"].is_unique
    assert len(list((tmp_path / "out" / "sheets").glob("*.png"))) == 4
    for _, rows in table.groupby("image"):
        covid, normal, predicted = rows["score"]
        assert covid == pytest.approx(-normal, rel=1e-4)
        assert predicted == pytest.approx(max(covid, normal), rel=1e-4)
        assert set(rows["predicted"]) == {"COVID" if covid > 0 else "NORMAL"}


def test_without_masks_the_lungs_are_segmented_and_the_table_says_so(model_path, images, tmp_path):
    _, table = explain(model_path, images, tmp_path / "out", "--method", "occlusion")
    found = table[table["lungs"] == "segmented"]
    assert len(found)
    assert found["lung_area"].between(0.06, 0.6).all()
    assert set(table["lungs"]) <= {"segmented", "none"}


def test_on_one_scale_only_the_strongest_map_keeps_its_heat(model_path, images, tmp_path):
    options = ["--method", "saliency"]
    _, own = explain(model_path, images, tmp_path / "own", *options)
    explain(model_path, images, tmp_path / "one", "--one-scale", *options)
    for image, share in zip(own["overlay"], own["strength"] / own["strength"].max(), strict=True):
        alone, together = (
            np.asarray(Image.open(tmp_path / folder / image)).astype(int)
            for folder in ("own", "one")
        )
        assert np.array_equal(alone, together) == (share == 1)


def test_feature_maps_are_drawn_on_request(model_path, images, tmp_path):
    status, _ = explain(
        model_path, images, tmp_path / "out", "--feature-maps", "--layer", "stem_relu"
    )
    assert status == 0
    assert len(list((tmp_path / "out" / "feature_maps").glob("*.png"))) == 4


def test_files_of_one_name_do_not_overwrite_each_other(model_path, images, tmp_path):
    _, table = explain(model_path, images, tmp_path / "out")
    assert len(list((tmp_path / "out" / "overlays").glob("*.png"))) == len(table)


def test_an_unreadable_file_is_listed_and_the_others_are_explained(
    model_path, images, tmp_path, capsys
):
    (images / "COVID" / "broken.png").write_bytes(b"not an image")
    status, table = explain(model_path, images, tmp_path / "out")
    assert status == 1
    broken = table[table["image"].str.endswith("broken.png")]
    assert broken["status"].str.startswith("unreadable: not an image").all()
    assert len(table) == 5
    assert "unreadable" in capsys.readouterr().err


def test_a_console_of_few_letters_does_not_stop_an_explanation(model_path, images, tmp_path):
    (images / "COVID" / "рентген.png").write_bytes(b"not an image")
    command = [sys.executable, "-m", "covid_lab", "explain", model_path, images, "--out", tmp_path]
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        encoding="cp1252",
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "images explained: 5 of 5" in done.stdout
    assert "unreadable" in done.stderr
    table = pd.read_csv(tmp_path / "explanations.csv", encoding="utf-8")
    assert table["image"].str.endswith("рентген.png").sum() == 1


def test_pipes_and_devices_are_refused(model_path, images, tmp_path, capsys):
    os.mkfifo(images / "COVID" / "pipe.png")  # once it was waited for, without end
    (images / "COVID" / "device.png").symlink_to("/dev/zero")
    (images / "COVID" / "folder.png").mkdir()
    status, table = explain(model_path, images, tmp_path / "out")
    assert status == 1
    assert table is None
    words = "devices or pipes among the files: COVID/device.png, COVID/pipe.png"
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "gradcamera"], "Unknown method 'gradcamera'; the methods are grad-cam"),
        (["--layer", "conv9"], "no spatial layer named ['conv9']; it has ['normalization"),
        (["--target", "TUBERCULOSIS"], "none of the classes NORMAL, COVID"),
        (["--classes", "A,B,C"], "distinguishes 2 classes, but 3 are named"),
        (["--target", "true", "--classes", "A,B"], "is in the folder 'COVID'"),
    ],
)
def test_what_cannot_be_explained_is_refused_and_nothing_written(
    model_path, images, tmp_path, capsys, options, words
):
    status, table = explain(model_path, images, tmp_path / "out", *options)
    assert status == 1
    assert table is None
    assert words in capsys.readouterr().err


def test_missing_paths_and_finished_folders_are_refused(model_path, images, tmp_path, capsys):
    out = tmp_path / "out"
    for model, picture in ((tmp_path / "no.keras", images), (model_path, tmp_path / "nowhere")):
        assert main(["explain", str(model), str(picture), "--out", str(out)]) == 1
        assert "error: " in capsys.readouterr().err
    assert explain(model_path, images, out)[0] == 0
    capsys.readouterr()
    assert explain(model_path, images, out)[0] == 1
    assert "exists already" in capsys.readouterr().err
