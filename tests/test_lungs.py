import io
import zipfile

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

from covid_lab.lungs import implausible, segment_lungs
from covid_lab.phantoms import draw_radiograph


def overlap(found, true):
    """Dice and IoU of masks (N, S, S), by counting."""
    both = (found & true).sum(axis=(1, 2))
    either = (found | true).sum(axis=(1, 2))
    return 2 * both / (both + either), both / either


@pytest.mark.parametrize(
    ("severity", "expected"),
    [(None, 0.94), ("mild", 0.89), ("moderate", 0.82), ("severe", 0.76)],
)
def test_phantom_lungs_are_found_as_the_docstring_says(severity, expected):
    drawn = [draw_radiograph(np.random.default_rng((7, n)), 128, severity) for n in range(30)]
    images, lungs = (np.stack([getattr(one, name) for one in drawn]) for name in ("image", "lungs"))
    dice, _ = overlap(segment_lungs(images), lungs)
    assert dice.mean() == pytest.approx(expected, abs=0.06)


def test_real_lungs_are_found_as_the_docstring_says():
    path = SHARED / "data" / "shenzhen_masks.zip"
    if not path.is_file():
        pytest.skip("shenzhen_masks.zip is not at hand (../shared/data)")
    images, masks = [], []
    with zipfile.ZipFile(path) as archive:
        for number in range(1, 11):
            name = f"CHNCXR_{number:04d}_0"
            for kind, out in ((f"images/{name}.png", images), (f"masks/{name}_mask.png", masks)):
                with Image.open(io.BytesIO(archive.read(f"shenzhen_masks/{kind}"))) as image:
                    small = image.convert("L").resize((128, 128), Image.Resampling.BILINEAR)
                    out.append(np.asarray(small))
    images, masks = np.stack(images), np.stack(masks) >= 128
    found = segment_lungs(images)
    dice, iou = overlap(found, masks)
    assert dice.mean() == pytest.approx(0.84, abs=0.01)
    assert iou.mean() == pytest.approx(0.72, abs=0.01)
    assert dice.min() > 0.75
    assert (implausible(found) == "").all()
    assert (implausible(masks) == "").all()


def test_size_of_the_image_hardly_matters():
    image = draw_radiograph(np.random.default_rng(3), 240).image
    half = np.asarray(Image.fromarray(image).resize((120, 120), Image.Resampling.BILINEAR))
    large, small = segment_lungs(image[None]), segment_lungs(half[None])
    dice, _ = overlap(large[:, ::2, ::2], small)
    assert dice > 0.95


def test_a_patient_off_the_middle_is_found():
    drawn = draw_radiograph(np.random.default_rng(5), 128)
    image, lungs = (np.roll(part, 9, axis=1)[None] for part in (drawn.image, drawn.lungs))
    dice, _ = overlap(segment_lungs(image), lungs)
    assert dice > 0.85


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_an_empty_image_has_no_lungs_and_says_so(grey):
    found = segment_lungs(np.full((2, 64, 64), grey, np.uint8))
    assert not found.any()
    assert implausible(found).tolist() == ["0% of the image"] * 2


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


@pytest.mark.parametrize("images", [np.zeros((2, 8, 8)), np.zeros((8, 8), np.uint8)])
def test_other_arrays_are_refused(images):
    with pytest.raises(ValueError, match="uint8 \\(N, S, S\\)"):
        segment_lungs(images)
