"""``python -m covid_lab explain``, as a user calls it."""

import io
import os
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


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = baseline_cnn(32, normalization_layer("fixed", None), filters=4, dropout=0.0)
    path = tmp_path_factory.mktemp("model") / "baseline.keras"
    model.save(path)
    return path


@pytest.fixture
def images(tmp_path):
    return draw(tmp_path)


def draw(folder, numbers=range(4)):
    """Phantoms of each class in folders of their names, one image not square, with masks."""
    for number in numbers:
        severity = "severe" if number > 1 else None
        drawn = draw_radiograph(np.random.default_rng(number), 64, severity)
        name = "COVID" if severity else "NORMAL"
        for kind, pixels in (("images", drawn.image), ("lungs", np.uint8(255) * drawn.lungs)):
            path = folder / kind / name / f"{number % 2}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (64, 48) if number == 1 else (64, 64)
            Image.fromarray(pixels[:, : shape[1]]).save(path)
    return folder / "images"


def explain(model_path, images, out, *options):
    status = main(["explain", str(model_path), str(images), "--out", str(out), *options])
    table = out / "explanations.csv"
    return status, pd.read_csv(table) if table.is_file() else None


@pytest.fixture(scope="module")
def whole(model_path, tmp_path_factory):
    """The images explained by three methods, for each class and the predicted one."""
    folder = tmp_path_factory.mktemp("whole")
    pictures = draw(folder, numbers=(1, 2))
    options = [word for name in ("GradCAM", "saliency") for word in ("--method", name)]
    options += [word for name in ("covid", "NORMAL", "predicted") for word in ("--target", name)]
    status, table = explain(
        model_path, pictures, folder / "out", *options, "--masks", str(folder / "lungs"),
        "--feature-maps",
    )  # fmt: skip
    assert status == 0
    return folder, table


def test_methods_and_targets_give_overlays_of_the_original_size_sheets_and_feature_maps(whole):
    folder, table = whole
    assert len(table) == 2 * 2 * 3
    assert set(table["layer"]) == {"stage3_2_relu", "pixels"}
    assert table["overlay"].is_unique
    for row in table.itertuples():
        with Image.open(row.image) as original, Image.open(folder / "out" / row.overlay) as made:
            assert made.size == original.size
            assert made.mode == "RGB"
    for kind, count in (("overlays", 12), ("sheets", 2), ("feature_maps", 2)):
        assert len(list((folder / "out" / kind).glob("*.png"))) == count


def test_the_two_classes_are_opposite_and_the_larger_score_is_predicted(whole):
    _, table = whole
    for _, rows in table.groupby(["image", "method"]):
        covid, normal, predicted = rows["score"]
        assert covid == pytest.approx(-normal, rel=1e-4)
        assert predicted == pytest.approx(max(covid, normal), rel=1e-4)
        assert set(rows["predicted"]) == {"COVID" if covid > 0 else "NORMAL"}


def test_what_is_written_is_what_grad_cam_gives(whole, model_path):
    folder, table = whole
    file = folder / "images" / "COVID" / "0.png"
    row = table[(table["image"] == str(file)) & (table["method"] == "grad-cam")].iloc[0]
    original = decode(file.read_bytes(), "")
    small = np.asarray(Image.fromarray(original).resize((32, 32), Image.Resampling.BILINEAR))
    found = grad_cam(keras.saving.load_model(model_path), small[None, ..., None], 1)
    assert row["score"] == pytest.approx(found.scores[0], rel=1e-4, abs=1e-6)
    assert row["status"] == found.status[0]
    expected = overlay(original[None, ..., None], found.maps)[0].astype(int)
    made = np.asarray(Image.open(folder / "out" / row["overlay"])).astype(int)
    assert np.abs(made - expected).max() <= 1


def test_the_share_of_heat_in_the_lungs_is_that_of_the_masks(whole):
    folder, table = whole
    shown = table[table["status"] == "ok"]
    assert (shown["lungs"] == "mask").all()
    assert shown["lung_share"].between(0, 1).all()
    for row in shown.itertuples():
        mask = folder / "lungs" / Path(row.image).relative_to(folder / "images")
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


def test_an_unreadable_file_is_listed_on_a_console_of_few_letters_and_the_others_are_explained(
    model_path, images, tmp_path, monkeypatch
):
    (images / "COVID" / "рентген.png").write_bytes(b"not an image")
    consoles = [io.TextIOWrapper(io.BytesIO(), encoding="cp1252") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", consoles[0])
    monkeypatch.setattr(sys, "stderr", consoles[1])
    status, table = explain(model_path, images, tmp_path / "out", "--target", "true")
    for console in consoles:
        console.flush()
    said, warned = (console.buffer.getvalue().decode("cp1252") for console in consoles)
    assert status == 1
    assert "images explained: 5 of 5" in said
    assert "unreadable" in warned
    broken = table[table["image"].str.endswith("рентген.png")]
    assert broken["status"].str.startswith("unreadable: not an image").all()
    assert len(table) == 5
    known = table.dropna(subset="target")
    assert (known["target"] == [Path(image).parent.name for image in known["image"]]).all()


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
