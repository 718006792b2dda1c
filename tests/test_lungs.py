"""Lung masks by the shipped network and by the classical method, against drawn and real masks."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import HOUSE, SHARED
from PIL import Image

from covid_lab.lungs import implausible, segment_lungs, segmentation
from covid_lab.lungs.classical import segment_lungs_classically
from covid_lab.phantoms import draw_radiograph

DATA = SHARED / "data"
METHODS = {"network": segment_lungs, "classical": segment_lungs_classically}


def overlap(found, true):
    """Dice and IoU of masks (N, S, S), by counting."""
    both = (found & true).sum(axis=(1, 2))
    either = (found | true).sum(axis=(1, 2))
    return 2 * both / (both + either), both / either


def phantoms(severity, count=12, size=128):
    drawn = [draw_radiograph(np.random.default_rng((7, n)), size, severity) for n in range(count)]
    return tuple(np.stack([getattr(one, name) for one in drawn]) for name in ("image", "lungs"))


@pytest.fixture(scope="module")
def healthy():
    return phantoms(None)[0]


@pytest.mark.parametrize(
    ("severity", "classical"), [(None, 0.94), ("moderate", 0.82), ("severe", 0.76)]
)
def test_drawn_lungs_are_found_with_their_opaque_parts(severity, classical):
    images, true = phantoms(severity)
    dice, _ = overlap(segment_lungs(images), true)
    assert dice.mean() > 0.94
    assert dice.min() > 0.85
    dice, _ = overlap(segment_lungs_classically(images), true)
    assert dice.mean() == pytest.approx(classical, abs=0.06)


def read_pairs(archive, folder):
    """Images and masks of a folder at their own size; masks may end in _mask."""
    if not (DATA / archive).is_file():
        pytest.skip(f"{archive} is not at hand (../shared/data)")
    images, masks = [], []
    with zipfile.ZipFile(DATA / archive) as file:
        names = set(file.namelist())
        for name in sorted(names):
            if name.startswith(f"{folder}/images/") and not name.endswith("/"):
                mask = name.replace("/images/", "/masks/")
                mask = mask if mask in names else mask.replace(".png", "_mask.png")
                for path, out in ((name, images), (mask, masks)):
                    with Image.open(io.BytesIO(file.read(path))) as image:
                        small = image.convert("L").resize((256, 256), Image.Resampling.BILINEAR)
                        out.append(np.asarray(small))
    return np.stack(images), np.stack(masks) >= 128


@pytest.mark.parametrize(
    ("name", "archive", "folder"),
    [
        ("wingspan", "lung_masks.zip", "lung_masks/wingspan"),
        ("covid_lesions", "covid_lesions.zip", "covid_lesions"),
    ],
)
def test_the_figures_of_the_record_are_measured_again(name, archive, folder):
    images, masks = read_pairs(archive, folder)
    expected = json.loads(segmentation.RECORD.read_text("utf-8"))["test"][name]
    found = segment_lungs(images, behind_heart=expected["behind_heart"])
    dice, _ = overlap(found, masks)
    network = expected["network"]
    assert len(dice) == network["n"]
    assert dice.mean() == pytest.approx(network["dice"], abs=5e-4)
    assert network["low"] < dice.mean() < network["high"]
    assert dice.min() == pytest.approx(network["lowest"], abs=0.005)
    assert (implausible(found) != "").mean() < 0.02
    classical, _ = overlap(segment_lungs_classically(images), masks)
    assert classical.mean() == pytest.approx(expected["classical"]["dice"], abs=5e-4)


def test_real_lungs_are_found_by_both_methods_as_the_docstrings_say():
    images, masks = read_pairs("shenzhen_masks.zip", "shenzhen_masks")
    assert len(images) == 10
    assert (implausible(masks) == "").all()
    found = segment_lungs_classically(images)
    dice, iou = overlap(found, masks)
    assert dice.mean() == pytest.approx(0.84, abs=0.01)
    assert iou.mean() == pytest.approx(0.73, abs=0.01)
    assert dice.min() > 0.75
    assert (implausible(found) == "").all()
    found = segment_lungs(images)
    dice, _ = overlap(found, masks)
    assert dice.mean() == pytest.approx(0.92, abs=0.01)
    assert (implausible(found) == "").all()


def test_lung_fields_are_part_of_the_lungs_and_mirrored_images_have_mirrored_masks(healthy):
    fields, whole = segment_lungs(healthy), segment_lungs(healthy, behind_heart=True)
    assert (fields & ~whole).sum() < 0.005 * fields.sum()
    assert 1 <= whole.sum() / fields.sum() < 1.6
    dice, _ = overlap(segment_lungs(healthy[:, :, ::-1])[:, :, ::-1], fields)
    assert dice.min() > 0.95


def test_a_batch_gives_what_single_images_give(healthy):
    images = np.concatenate([healthy] * 3)  # more than one batch
    single = np.concatenate([segment_lungs(image[None]) for image in images[[0, 34]]])
    assert (single != segment_lungs(images)[[0, 34]]).mean() < 1e-4
    for method in METHODS.values():
        found = method(np.empty((0, 50, 50), np.uint8))
        assert (found.shape, found.dtype) == ((0, 50, 50), bool)


def test_missing_weights_are_named_with_the_two_ways_out(monkeypatch, tmp_path):
    monkeypatch.setattr(segmentation, "WEIGHTS", tmp_path / "none.h5")
    segmentation.network_probabilities.cache_clear()
    try:
        with pytest.raises(FileNotFoundError, match="segment_lungs_classically"):
            segment_lungs(np.zeros((1, 32, 32), np.uint8))
    finally:
        segmentation.network_probabilities.cache_clear()


def test_tensorflow_is_imported_by_the_first_call_only():
    code = "import sys, covid_lab.lungs; print({'tensorflow', 'keras'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HOUSE, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_size_of_the_image_hardly_matters(method):
    image = draw_radiograph(np.random.default_rng(3), 240).image
    half = np.asarray(Image.fromarray(image).resize((120, 120), Image.Resampling.BILINEAR))
    large, small = method(image[None]), method(half[None])
    dice, _ = overlap(large[:, ::2, ::2], small)
    assert dice > 0.95


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_patient_off_the_middle_is_found(method):
    drawn = draw_radiograph(np.random.default_rng(5), 128)
    image, true = (np.roll(part, 9, axis=1)[None] for part in (drawn.image, drawn.lungs))
    dice, _ = overlap(method(image), true)
    assert dice > 0.85


@pytest.mark.parametrize("grey", [0, 128, 255])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_an_empty_image_has_no_lungs_and_says_so(method, grey):
    found = method(np.full((2, 64, 64), grey, np.uint8))
    assert not found.any()
    assert implausible(found).tolist() == ["0% of the image"] * 2


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("images", [np.zeros((2, 8, 8)), np.zeros((8, 8), np.uint8)])
def test_other_arrays_are_refused(method, images):
    with pytest.raises(ValueError, match="uint8 \\(N, S, S\\)"):
        method(images)


def test_implausible_masks_are_named():
    masks = np.zeros((4, 60, 60), bool)
    masks[0, 10:45, 8:25] = masks[0, 10:45, 35:52] = True  # two lungs
    masks[1, 10:45, 8:25] = masks[1, 30:35, 50:52] = True  # one, and a speck
    masks[2] = True
    masks[3, 30, 10] = masks[3, 30, 50] = True
    assert implausible(masks).tolist() == [
        "",
        "one lung only",
        "100% of the image",
        "0% of the image",
    ]
