"""PNG nodules: reading, refusals, and measures against shapes whose measures are known."""

import io
import zipfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
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
from covid_project.settings import PROJECT

LIDC = PROJECT.parent / "shared" / "data" / "lidc_nodules.zip"


def disc(radius, size=64, centre=32):
    rows, columns = np.indices((size, size))
    return (rows - centre) ** 2 + (columns - centre) ** 2 <= radius**2


def png(values):
    stream = io.BytesIO()
    Picture.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def files_of(rng, count=4):
    """Names and contents of a small data set."""
    rows, found = [], {}
    for number in range(count):
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


def test_folder_and_archive_are_the_same_data(rng, tmp_path):
    files = files_of(rng)
    folder = folder_of(files, tmp_path / "folder")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    first, second = open_nodules(folder), open_nodules(tmp_path / "a.zip")
    assert holds_images(folder)
    assert holds_images(tmp_path / "a.zip")
    assert not holds_images(tmp_path / "folder" / "set" / "nodule")
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
    ("gone", "said"),
    [
        ("set/masks/nodule/p0_n1.png", "missing: set/masks/nodule/p0_n1.png"),
        ("set/labels.csv", "one labels.csv, found none"),
    ],
)
def test_what_does_not_match_is_named(rng, tmp_path, gone, said):
    files = files_of(rng)
    del files[gone]
    with pytest.raises(DataError, match=said):
        open_nodules(folder_of(files, tmp_path))


def test_a_crop_without_a_label_and_an_empty_mask_are_refused(rng, tmp_path):
    files = files_of(rng)
    files["set/nodule/extra.png"] = files["set/nodule/p0_n0.png"]
    with pytest.raises(DataError, match=r"without a label: set/nodule/extra\.png"):
        open_nodules(folder_of(files, tmp_path / "a"))
    files = files_of(rng)
    files["set/masks/nodule/p0_n0.png"] = png(np.zeros((64, 64), np.uint8))
    with pytest.raises(DataError, match="p0_n0: the mask is empty"):
        read_nodule(open_nodules(folder_of(files, tmp_path / "b")), 0)


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
    assert found["mean"] == 150
    assert found["deviation"] == found["texture"] == 0
    assert found["contrast"] == 110
    assert found["surroundings"] == 40
    assert found["edge"] > 20
    assert np.isfinite(grey_measures(image, np.ones_like(mask))).all()


def test_the_study_sees_one_view_and_can_remove_the_surroundings(rng, tmp_path):
    dataset = open_nodules(folder_of(files_of(rng), tmp_path))
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
