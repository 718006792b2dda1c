import dataclasses

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import SHARED
from keras import layers, ops

from covid_lab.audit.controls import draw_phantoms, plant_border, write_phantoms
from covid_lab.audit.findings import worst
from covid_lab.audit.lung_regions import common_lungs, fill_with_mean, find_lungs
from covid_lab.audit.metadata import file_metadata
from covid_lab.audit.model_shortcuts import audit_model
from covid_lab.audit.shortcuts import (
    COLUMNS,
    LOADED,
    SIDE,
    _corners,
    _image_views,
    _known_sources,
    _Pictures,
    audit_shortcuts,
    judge,
)
from covid_lab.datasets import load_images, open_dataset
from covid_lab.masks import border
from covid_project.data import DataError

EACH = 60


def quiet(stage, done, total):
    pass


@pytest.fixture(scope="module")
def phantoms():
    return draw_phantoms(EACH, 96, seed=11)


@pytest.fixture(scope="module")
def dataset(phantoms, tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("drawn"), list(phantoms.images), phantoms)


@pytest.fixture(scope="module")
def planted(phantoms, tmp_path_factory):
    images = plant_border(phantoms, 60, np.random.default_rng(0))
    return write_phantoms(tmp_path_factory.mktemp("planted"), images, phantoms)


def pictures(images):
    kept = _Pictures(len(images))
    kept.fill(slice(None), images)
    return kept


def real(name, classes, per_class):
    path = SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"{name} is not at hand (../shared/data)")
    found = open_dataset(path, classes=classes)
    rows = found.table.groupby("label").head(per_class).index
    return dataclasses.replace(found, table=found.table.loc[rows].reset_index(drop=True))


# ---- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auc", "low", "null_high", "whole", "verdict"),
    [
        (0.55, 0.51, 0.52, 0.90, "pass"),  # not above chance
        (0.90, 0.50, 0.55, 0.90, "pass"),  # high, but of too few images
        (0.60, 0.56, 0.52, 0.90, "warn"),
        (0.76, 0.74, 0.52, 0.99, "fail"),  # three of four pairs
        (0.60, 0.56, 0.52, 0.62, "fail"),  # nearly all that the whole image gives
    ],
)
def test_verdicts(auc, low, null_high, whole, verdict):
    assert judge(auc, low, null_high, whole) == verdict


def by_check(findings):
    return {finding.check: finding for finding in findings}


@pytest.mark.parametrize("given", [True, False])
def test_phantoms_without_a_shortcut_pass(dataset, given):
    sources = [f"https://host-{number % 2}.org" for number in range(2 * EACH)]
    table = dataset.table.assign(source=sources)
    if not given:
        table = table.assign(mask="")
    found = audit_shortcuts(dataclasses.replace(dataset, table=table), progress=quiet)
    assert worst(found.findings) == "pass"
    assert by_check(found.findings)["label from the source alone"].verdict == "pass"
    table = found.table.set_index("view")
    assert table.loc["whole image", "low"] > 0.6  # the lesions are seen
    assert table.loc["lungs only", "low"] > 0.6
    assert tuple(found.table.columns) == COLUMNS
    origin = "as given" if given else "segmentation network"
    assert origin in found.findings[-1].found


def test_planted_shortcuts_fail_and_the_same_seed_gives_the_same_table(planted):
    sources = planted.table["label"].map("https://host-{}.org".format)
    told = dataclasses.replace(planted, table=planted.table.assign(source=sources))
    states = []
    found, again = (
        audit_shortcuts(told, seed=3, progress=lambda *state: states.append(state))
        for _ in range(2)
    )
    pd.testing.assert_frame_equal(found.table, again.table)
    views = [(done, total) for stage, done, total in states if stage == "shortcuts: views"]
    assert views == 2 * [(done, len(found.table)) for done in range(len(found.table) + 1)]
    best = found.table.groupby("kind")["auc"].max()
    headline = found.findings[-1]
    assert headline.value == pytest.approx(best["whole"] - best["lung-free"], abs=1e-12)
    assert headline.low <= headline.value <= headline.high
    assert headline.verdict == "fail"
    findings = by_check(found.findings)
    assert findings["label from the border alone"].verdict == "fail"
    assert findings["label from the source alone"].verdict == "fail"
    assert findings["label from the images' dimensions alone"].verdict == "pass"


def test_too_few_images_are_not_judged(dataset):
    rows = slice(EACH - 5, EACH + 10)
    few = dataclasses.replace(dataset, table=dataset.table.iloc[rows].reset_index(drop=True))
    found = audit_shortcuts(few, progress=quiet)
    assert [finding.verdict for finding in found.findings] == ["not applicable"]
    assert "5, 10" in found.findings[0].found
    assert found.table.empty


def test_three_classes_are_told_one_from_the_rest(phantoms, tmp_path):
    images = [image.copy() for image in phantoms.images]
    labels = np.arange(len(images)) % 3
    for image, label in zip(images, labels, strict=True):
        image[:5, :5] = 200 * (label == 2)
    dataset = write_phantoms(tmp_path, images, phantoms)
    dataset = dataclasses.replace(
        dataset, table=dataset.table.assign(label=labels), classes=("A", "B", "C")
    )
    found = by_check(audit_shortcuts(dataset, progress=quiet).findings)
    corner = found["label from the corners alone"]
    assert corner.verdict == "fail"
    # C against the rest is certain, A and B against the rest half so: (1 + 0.75 + 0.75) / 3.
    assert corner.value == pytest.approx(2.5 / 3, abs=0.07)
    assert found["label from the files' encoding alone"].verdict == "pass"


# ---- real images --------------------------------------------------------------------------------


def test_two_sources_are_told_apart_by_their_files():
    """The positive control: every normal is square, nearly every COVID image is not."""
    dataset = real("covid_two_sources.zip", ("NORMAL", "COVID"), 150)
    square = file_metadata(dataset)["aspect"] == 1
    labels = dataset.table["label"]
    assert square[labels == 0].all()
    found = audit_shortcuts(dataset, progress=quiet)
    table = found.table.set_index("view")
    assert max(table.loc["file metadata", "auc"], table.loc["dimensions", "auc"]) >= 0.95
    # Squareness alone, by counting: half of the square COVID images are ordered by chance.
    alone = 1 - square[labels == 1].mean() / 2
    assert table.loc["dimensions", "auc"] >= alone - 0.01
    findings = by_check(found.findings)
    for what in ("files' metadata", "images' dimensions", "border"):
        assert findings[f"label from the {what} alone"].verdict == "fail"


def test_the_courses_border_predicts_its_label():
    dataset = real("covid_xray.zip", ("NORMAL", "COVID"), 150)
    table = audit_shortcuts(dataset, progress=quiet).table.set_index("view")
    assert table.loc["border", "low"] > 0.7  # 0.84 by logistic regression on all 2200
    assert table.loc["dimensions", "auc"] == 0.5  # all are 256 by 256


def test_ct_slices_have_no_frontal_lungs():
    dataset = real("covid_ct.zip", ("CT_NonCOVID", "CT_COVID"), 20)
    lungs, said = find_lungs(dataset, [load_images(dataset, LOADED)[..., 0]], progress=quiet)
    assert lungs is None
    assert "no frontal chest radiographs" in said


# ---- views --------------------------------------------------------------------------------------


def test_border_and_corners_are_where_they_should_be():
    assert border(SIDE).mean() == pytest.approx(1 - 0.8**2)  # a tenth from each side
    assert _corners().mean() == pytest.approx(4 * 0.125**2)
    assert not border(SIDE)[SIDE // 2, SIDE // 2]
    np.testing.assert_array_equal(_corners(), np.rot90(_corners()))


def test_views_see_the_lungs_or_the_rest(dataset, rng):
    images = load_images(dataset, LOADED)[..., 0]
    lungs, _ = find_lungs(dataset, [images], progress=quiet)
    touched = np.repeat(np.repeat(lungs.reshape(-1, SIDE, 3, SIDE, 3).any((2, 4)), 3, 1), 3, 2)
    noise = rng.integers(0, 256, images.shape, np.uint8)
    counted, _ = find_lungs(dataset, [images], progress=quiet, square=LOADED // SIDE)
    before, inside, outside = (
        list(_image_views(pictures(some), counted))
        for some in (images, np.where(lungs, noise, images), np.where(touched, images, noise))
    )
    changed = {
        view.name: np.mean(view.features != other.features)
        for view, other in zip(before, inside, strict=True)
    }
    assert changed["lungs removed"] < 0.002
    assert changed["corners"] < 0.002
    assert changed["border"] < 0.01  # some lungs reach the outer tenth
    assert changed["whole image"] >= 0.95 * lungs.mean()
    for view in before[:3]:  # what is said is never more than what a change can reach
        assert view.lung <= changed[view.name] * 1.05
    np.testing.assert_allclose(before[-1].features, outside[-1].features, atol=1e-3)  # lungs only


def test_what_is_removed_is_the_same_for_all():
    lungs = np.zeros((200, 9, 9), bool)
    lungs[:100, 4, 4] = True
    lungs[:2, 0, 0] = True  # one in a hundred is not more than one in a hundred
    expected = np.zeros((9, 9), bool)
    expected[3:6, 3:6] = True
    np.testing.assert_array_equal(common_lungs(lungs), expected)


def test_filled_with_the_mean_of_what_is_kept(rng):
    images = rng.integers(0, 256, (200, 40, 40), np.uint8)  # several blocks
    kept = rng.random(images.shape) < 0.3
    kept[7] = False
    for image, inside, filled in zip(images, kept, fill_with_mean(images, kept), strict=True):
        mean = image[inside].mean() if inside.any() else 0
        np.testing.assert_allclose(filled, np.where(inside, image, mean), rtol=1e-6)


def test_a_source_that_repeats_the_folder_is_not_known():
    table = pd.DataFrame(
        {
            "path": ["COVID/images/a.png", "train/normal/b.png", "COVID/c.png"],
            "source": ["https://some.org", "NORMAL", "COVID"],
        }
    )
    assert _known_sources(table).tolist() == ["https://some.org", "", ""]


# ---- masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["{path}", "{stem}_mask.png"])
def test_masks_are_found_by_path_or_name(phantoms, dataset, tmp_path, layout):
    for row in dataset.table.itertuples():
        stem = row.path.rpartition("/")[2].removesuffix(".png")
        place = tmp_path / layout.format(path=row.path, stem=stem)
        place.parent.mkdir(exist_ok=True)
        place.write_bytes((dataset.root / row.mask).read_bytes())
    images = np.zeros((len(dataset.table), 96, 96), np.uint8)
    bare = dataclasses.replace(dataset, table=dataset.table.assign(mask=""))
    lungs, said = find_lungs(bare, [images], tmp_path)
    np.testing.assert_array_equal(lungs, phantoms.lungs)
    assert said == f"lung masks as given, 0 of {2 * EACH} implausible"
    next(file for file in tmp_path.rglob("*.png")).unlink()
    with pytest.raises(DataError, match=rf"1 of {2 * EACH} images have none or several"):
        find_lungs(bare, [images], tmp_path)


# ---- trained models -----------------------------------------------------------------------------


class Gate(layers.Layer):
    """Lets through what lies inside a mask."""

    def __init__(self, mask, **more):
        super().__init__(**more)
        self.mask = mask

    def call(self, images):
        return images * ops.cast(self.mask[None, ..., None], "float32")


def gated_model(mask, channels=1):
    """A model whose logit is the brightness inside a mask, less 50."""
    images = keras.Input((*mask.shape, channels))
    x = layers.ReLU(name="features")(Gate(mask)(images))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, layers.Dense(1)(x))
    model.layers[-1].set_weights([np.full((channels, 1), 1.0), np.array([-5.0])])
    return model


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_that_reads_the_border_fails(planted, channels):
    ring = np.ones((64, 64), bool)
    ring[4:-4, 4:-4] = False
    rows = np.arange(20, 100)
    found = by_check(audit_model(gated_model(ring, channels), planted, rows))
    assert {finding.n for finding in found.values()} == {80}
    judged = found["the model on the border alone"]
    assert judged.verdict == found["share of Grad-CAM inside the lungs"].verdict == "fail"
    # What it sees of the border, and of nothing else, is what it sees of the whole image.
    assert f"{judged.value:.3f} on the whole images" in judged.found


def test_a_model_that_reads_the_lungs_passes(phantoms, dataset):
    lungs = phantoms.lungs.mean(axis=0) > 0.9
    found = by_check(audit_model(gated_model(lungs), dataset, np.arange(2 * EACH)))
    for what in ("border", "image without lungs", "lungs"):
        assert found[f"the model on the {what} alone"].verdict == "pass"
    share = found["share of Grad-CAM inside the lungs"]
    assert share.verdict == "pass"
    assert share.value > 0.9


def test_models_that_do_not_fit_are_refused(dataset):
    ring = np.ones((64, 64), bool)
    with pytest.raises(ValueError, match="tells 2 classes apart"):
        audit_model(gated_model(ring), dataclasses.replace(dataset, classes=("A", "B", "C")), [0])
    with pytest.raises(ValueError, match=r"\(S, S, 1 or 3\) is needed"):
        audit_model(gated_model(ring[:, :32]), dataset, [0])


def test_a_model_is_not_judged_by_one_class(dataset):
    found = audit_model(gated_model(np.ones((64, 64), bool)), dataset, np.arange(50))
    assert [finding.verdict for finding in found] == ["not applicable"]
    assert found[0].found == "no images of COVID"
