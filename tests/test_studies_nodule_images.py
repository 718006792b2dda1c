"""PNG nodules: reading, refusals, and measures against shapes whose measures are known."""

import io
import zipfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED
from PIL import Image as Picture

from covid_lab.studies import lung_nodules as study
from covid_lab.studies.nodule_images import (
    GREY,
    OUTLINE,
    grey_measures,
    holds_images,
    open_nodules,
    outline_measures,
    read_nodule,
)
from covid_lab.studies.nodule_preparation import prepared_nodules
from covid_project.data import DataError

LIDC = SHARED / "data" / "lidc_nodules.zip"


def disc(radius, size=64, centre=32):
    rows, columns = np.indices((size, size))
    return (rows - centre) ** 2 + (columns - centre) ** 2 <= radius**2


def png(values):
    stream = io.BytesIO()
    Picture.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def files(rng):
    """Names and contents of a small data set."""
    rows, found = [], {}
    for number in range(4):
        name, mask = f"p{number // 2}_n{number}", disc(4 + number)
        grey = rng.integers(0, 100, (64, 64), dtype=np.uint8)
        grey[mask] = 200
        found[f"set/nodule/{name}.png"] = png(grey)
        found[f"set/masks/nodule/{name}.png"] = png(255 * mask.astype(np.uint8))
        rows.append((name, f"p{number // 2}", 1 + number % 5, "1 2 3", 0.5, f"slice-{number}"))
    columns = ["name", "patient", "malignancy", "malignancies", "pixel_spacing", "slice"]
    found["set/labels.csv"] = pd.DataFrame(rows, columns=columns).to_csv(index=False).encode()
    return found


def folder_of(files, place):
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def test_folder_and_archive_are_the_same_data(files, tmp_path):
    folder, packed = folder_of(files, tmp_path / "folder"), tmp_path / "a.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert holds_images(folder)
    assert holds_images(packed)
    assert not holds_images(tmp_path / "folder" / "set" / "nodule")
    first, second = open_nodules(folder), open_nodules(packed)
    assert first.fingerprint == second.fingerprint
    assert first.table["label"].tolist() == [0, 1, 2, 3]
    assert first.table["group"].tolist() == ["p0", "p0", "p1", "p1"]
    for row in range(4):
        (one, mask), (other, _) = read_nodule(first, row), read_nodule(second, row)
        np.testing.assert_array_equal(one.values, other.values)
        side = 2 * (4 + row) + 1 + 40  # 20 pixels on each side of the nodule
        assert one.values.shape == mask.shape == (side, side)
        assert (one.values[mask] == 200).all()
        assert one.unit == "grey"
        assert one.spacing == (0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("set/masks/nodule/p0_n1.png", None, "missing: set/masks/nodule/p0_n1.png"),
        ("set/labels.csv", None, "one labels.csv, found none"),
        ("set/labels.csv", b"name,malignancy\na,1\n", "no column patient"),
        ("set/nodule/extra.png", b"", r"without a label: set/nodule/extra\.png"),
        ("set/masks/nodule/p0_n0.png", png(np.zeros((64, 64), np.uint8)), "p0_n0: the mask is emp"),
    ],
)
def test_what_does_not_match_is_named(files, tmp_path, name, content, said):
    files[name] = content
    present = {name: content for name, content in files.items() if content is not None}
    with pytest.raises(DataError, match=said):
        read_nodule(open_nodules(folder_of(present, tmp_path)), 0)


def test_outline_measures_of_a_disc_and_of_an_ellipse():
    found = dict(zip(OUTLINE, outline_measures(disc(20), 0.5), strict=True))
    assert np.exp(found["log_area"]) == pytest.approx(np.pi * 100, rel=0.02)
    assert np.exp(found["log_diameter"]) == pytest.approx(20, rel=0.06)
    assert np.exp(found["log_perimeter"]) == pytest.approx(20 * np.pi, rel=0.06)
    assert found["solidity"] > 0.95
    assert found["eccentricity"] < 0.1
    assert found["circularity"] == pytest.approx(1, abs=0.12)
    rows, columns = np.indices((64, 64))
    ellipse = ((rows - 32) / 10) ** 2 + ((columns - 32) / 20) ** 2 <= 1
    assert outline_measures(ellipse, 1.0)[4] == pytest.approx(np.sqrt(1 - 0.25), abs=0.02)
    two = disc(10) | disc(2, centre=60)  # the largest part counts
    np.testing.assert_allclose(outline_measures(two, 1.0), outline_measures(disc(10), 1.0))


def test_grey_measures_of_a_flat_disc():
    mask = disc(8)
    image = np.where(mask, 150, 40).astype(np.uint8)
    found = dict(zip(GREY, grey_measures(image, mask), strict=True))
    assert found.pop("edge") > 20
    expected = {"mean": 150, "deviation": 0, "contrast": 110, "surroundings": 40, "texture": 0}
    assert found == expected
    assert np.isfinite(grey_measures(image, np.ones_like(mask))).all()


def test_the_study_sees_one_view_and_can_remove_the_surroundings(files, tmp_path):
    dataset = open_nodules(folder_of(files, tmp_path))
    assert study.is_grey(dataset)
    assert study.views_of(dataset) == ("nodule",)
    shapes = study.load_view(dataset, "nodule", lambda image: image.values.shape)
    assert shapes == [mask.shape for mask in study.view_masks(dataset, "nodule")]
    assert [mask.sum() for mask in study.view_masks(dataset, "nodule", [2])] == [disc(6).sum()]
    settings = study.load_settings("lung_nodules_lidc", data=tmp_path, changes={"image_size": 32})
    run = SimpleNamespace(settings=settings, dataset=dataset)
    assert study.nodule_measures(run).shape == (4, 12)
    whole, alone = (
        prepared_nodules(run, dataset, (48, 48), {}, only_nodule=only) for only in (False, True)
    )
    assert whole.shape == alone.shape == (4, 32, 32, 1)
    assert (alone[:, 0] == 0).all()
    assert whole[:, 0].mean() > 5
    np.testing.assert_array_equal(whole[:, 15:17, 15:17], alone[:, 15:17, 15:17])


@pytest.mark.skipif(not LIDC.is_file(), reason=f"{LIDC.name} is not there")
def test_the_real_set():
    dataset = open_nodules(LIDC)
    assert dataset.table["label"].value_counts().sort_index().tolist() == [150, 157, 616, 240, 135]
    assert dataset.table["group"].nunique() == 671
    image, mask = read_nodule(dataset, 0)
    assert image.values.shape == mask.shape
    spacing = dataset.table["spacing"].iloc[0]
    area = np.exp(outline_measures(mask, spacing)[0])
    assert area == pytest.approx(mask.sum() * spacing**2, rel=0.02)
