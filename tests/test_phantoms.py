import json
from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from covid_lab import phantom_anatomy, phantoms
from covid_lab.phantoms import SEVERITIES, draw_radiograph, write_dataset

COUNTS = {"train": 4, "val": 2, "test": 3}
KINDS = ("image", "lungs", "lesions")


def draw(seed, severity=None, size=64):
    return draw_radiograph(np.random.default_rng(seed), size, severity)


@cache
def many(severity):
    """The same patients for every severity: their seeds are equal."""
    return [draw(seed, severity) for seed in range(40)]


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# ---- one radiograph -----------------------------------------------------------------------------


def test_the_seed_decides_and_a_second_call_draws_another_patient():
    one, again = draw(5, "mild"), draw(5, "mild")
    for name, kind in zip(KINDS, (np.uint8, bool, bool), strict=True):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
        assert getattr(one, name).dtype == kind
    rng = np.random.default_rng(5)
    first, second = draw_radiograph(rng, 64), draw_radiograph(rng, 64)
    assert (first.image != second.image).mean() > 0.5


@pytest.mark.parametrize("size", [32, 64, 128])
def test_lungs_are_two_components_one_in_each_half(size):
    for seed in range(30):
        lungs = draw(seed, size=size).lungs
        components, number = ndimage.label(lungs, np.ones((3, 3)))  # diagonal neighbours too
        assert number == 2
        columns = [ndimage.center_of_mass(components == label)[1] for label in (1, 2)]
        assert min(columns) < size / 2 < max(columns)


def test_bones_only_add_opacity():
    y, x = np.meshgrid(*[np.linspace(-1, 1, 64)] * 2, indexing="ij")
    bones = [phantom_anatomy._draw_bones(np.random.default_rng(k), x, y) for k in range(20)]
    assert min(one.min() for one in bones) >= 0
    assert min(one.max() for one in bones) > 0.05


def test_grey_values_are_those_of_a_chest():
    middle = np.zeros((64, 64), bool)
    middle[20:44, 12:52] = True
    for one in many(None):
        assert one.image.min() < 40
        assert one.image.max() > 130
        assert np.mean(one.image == 255) < 0.3
        assert one.image[middle & one.lungs].mean() < one.image[middle & ~one.lungs].mean()
        assert not one.lesions.any()
    left, right = np.mean([one.lungs.reshape(64, 2, 32).sum((0, 2)) for one in many(None)], axis=0)
    assert right < left  # the heart
    # What is white beside the neck, in the air above the shoulders, is a marker.
    assert 0.05 < np.mean([(one.image[:5, :16] > 150).any() for one in many(None)]) < 0.6


@pytest.mark.parametrize("severity", SEVERITIES)
def test_lesions_are_bright_inside_the_lungs_and_change_nothing_elsewhere(severity):
    """Exposure, noise, position and markers are drawn without a look at the disease."""
    struck_halves = set()
    for ill, well in zip(many(severity), many(None), strict=True):
        assert ill.severity == severity
        assert not (ill.lesions & ~ill.lungs).any()
        struck = set(np.unique(ndimage.label(ill.lungs)[0][ill.lesions]))
        assert len(struck) == (1 if severity == "mild" else 2)
        struck_halves |= struck
        np.testing.assert_array_equal(ill.lungs, well.lungs)
        rise = ill.image.astype(float) - well.image
        assert rise[ill.lesions].mean() > max(3, 2 * np.abs(rise[~ill.lungs]).mean())
        # blur (at most 0.35 pixel here, cut at 4 deviations) and the soft edge of the lung
        far = ~ndimage.binary_dilation(ill.lungs, iterations=8)
        assert far.mean() > 0.2
        assert not rise[far].any()
    assert struck_halves == {1, 2}  # mild does not always strike the same side


def test_lesions_grow_with_severity():
    areas = [np.mean([one.lesions.sum() / one.lungs.sum() for one in many(s)]) for s in SEVERITIES]
    assert areas == sorted(areas)


def test_the_border_carries_no_label():
    """Between different patients: class means differ by less than four standard errors."""
    edge = np.ones((64, 64), bool)
    edge[6:-6, 6:-6] = False
    normal = np.array([draw([1, k]).image[edge] for k in range(100)])
    covid = np.array([draw([2, k], SEVERITIES[k % 3]).image[edge] for k in range(100)])
    for summary in (np.mean, np.std):
        one, two = summary(normal, axis=1), summary(covid, axis=1)
        error = np.sqrt(one.var() / len(one) + two.var() / len(two))
        assert abs(one.mean() - two.mean()) < 4 * error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"size": 31}, "size is 31"), ({"severity": "bad"}, "'bad'; allowed")],
)
def test_bad_arguments_are_refused(rng, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_radiograph(rng, **arguments)


# ---- a data set ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("drawn") / "set", COUNTS, 32, 7)


def test_the_table_draws_every_image_and_mask_again(dataset):
    table = pd.read_csv(dataset / "phantoms.csv", keep_default_na=False)
    assert list(table) == ["path", "label_name", "split", "severity", "seed"]
    assert len(table) == 2 * sum(COUNTS.values())
    assert table["seed"].is_unique
    folders = {"image": "", "lungs": "masks/lungs/", "lesions": "masks/lesions/"}
    expected = {"phantoms.csv", "phantoms.json"}
    expected |= {folder + path for folder, path in product(folders.values(), table["path"])}
    assert set(contents(dataset)) == expected
    for row in table.itertuples():
        assert row.path.startswith(f"{row.split}/{row.label_name}/phantom-{row.label_name}-0")
        assert (row.severity == "") == (row.label_name == "NORMAL")
        again = draw(row.seed, row.severity or None, 32)
        for kind, folder in folders.items():
            drawn = getattr(again, kind)
            stored = np.asarray(Image.open(dataset / (folder + row.path)))
            np.testing.assert_array_equal(stored, drawn if kind == "image" else 255 * drawn)
    train = table.query("split == 'train' and label_name == 'COVID'")["severity"].tolist()
    assert train == [*SEVERITIES, "mild"]  # in turns


def test_an_image_depends_on_the_seed_and_not_on_how_many_are_drawn(dataset, tmp_path):
    known = contents(dataset)
    fewer = contents(write_dataset(tmp_path / "a", {"train": 2, "val": 0, "test": 3}, 32, 7))
    images = [name for name in fewer if name.endswith(".png")]
    assert len(images) == 3 * 2 * 5
    assert all(fewer[name] == known[name] for name in images)
    other = contents(write_dataset(tmp_path / "b", {"train": 1, "val": 1, "test": 1}, 32, 8))
    assert not any(other[name] == known[name] for name in other if name[:5] in ("train", "test/"))


def test_a_complete_set_is_kept_and_an_empty_folder_filled(tmp_path, monkeypatch):
    folder = write_dataset(tmp_path, COUNTS, 32, 7)
    record = {"drawing": phantoms.DRAWING, "size": 32, "seed": 7, "counts": COUNTS}
    assert json.loads((folder / "phantoms.json").read_text()) == record
    before = contents(folder)
    monkeypatch.setattr(phantoms, "draw_radiograph", lambda *_: pytest.fail("drawn again"))
    assert write_dataset(folder, dict(reversed(COUNTS.items())), np.int64(32), 7) == folder
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("counts", "size", "seed", "drawing"),
    [(COUNTS | {"val": 3}, 32, 7, 0), (COUNTS, 33, 7, 0), (COUNTS, 32, 8, 0), (COUNTS, 32, 7, 1)],
)
def test_another_set_is_refused_and_kept(dataset, counts, size, seed, drawing, monkeypatch):
    before = contents(dataset)
    monkeypatch.setattr(phantoms, "DRAWING", phantoms.DRAWING + drawing)
    with pytest.raises(ValueError, match=r"holds something else.*Delete the folder"):
        write_dataset(dataset, counts, size, seed)
    assert contents(dataset) == before


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(ValueError, match=r"holds something else.*no phantoms\.json"):
            write_dataset(place, COUNTS, 32, 7)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize("kind", ["", "masks/lungs", "masks/lesions"])
def test_a_set_that_lost_a_file_is_refused_by_name(tmp_path, kind):
    counts = {"train": 1, "val": 0, "test": 0}
    folder = write_dataset(tmp_path / "set", counts, 32, 7)
    (folder / kind / "train/COVID/phantom-COVID-0000.png").unlink()
    with pytest.raises(ValueError, match=r"phantom-COVID-0000\.png is missing"):
        write_dataset(folder, counts, 32, 7)


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    drawn = []

    def stop_at_the_fifth(*arguments):
        if len(drawn) == 4:
            raise KeyboardInterrupt
        drawn.append(draw_radiograph(*arguments))
        return drawn[-1]

    monkeypatch.setattr(phantoms, "draw_radiograph", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "deep" / "set", COUNTS, 32, 7)
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_set_that_another_run_has_drawn_meanwhile_is_taken(tmp_path, monkeypatch):
    counts, folder = {"train": 1, "val": 1, "test": 1}, tmp_path / "set"

    def draw_and_be_overtaken(*arguments):
        monkeypatch.setattr(phantoms, "draw_radiograph", draw_radiograph)
        write_dataset(folder, counts, 32, 0)
        return draw_radiograph(*arguments)

    monkeypatch.setattr(phantoms, "draw_radiograph", draw_and_be_overtaken)
    assert write_dataset(folder, counts, 32, 0) == folder
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
