import json
from functools import cache

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from covid_lab import phantoms
from covid_lab.phantoms import SEVERITIES, draw_radiograph, write_dataset

COUNTS = {"train": 4, "val": 2, "test": 3}
KINDS = (None, *SEVERITIES)


def draw(seed, severity=None, size=64):
    return draw_radiograph(np.random.default_rng(seed), size, severity)


@cache
def many(severity, number=60):
    """The same patients for every severity: their seeds are equal."""
    return [draw(seed, severity) for seed in range(number)]


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


# one radiograph


@pytest.mark.parametrize("severity", KINDS)
@pytest.mark.parametrize("size", [32, 45, 128])
def test_arrays_have_the_stated_shape_and_type(size, severity):
    radiograph = draw(3, severity, size)
    assert radiograph.severity == severity
    for array, dtype in (
        (radiograph.image, np.uint8),
        (radiograph.lungs, bool),
        (radiograph.lesions, bool),
    ):
        assert array.shape == (size, size)
        assert array.dtype == dtype


def test_an_image_spans_the_grey_range_without_drowning_in_white():
    for radiograph in many(None):
        assert radiograph.image.min() < 40
        assert radiograph.image.max() > 130
        assert np.mean(radiograph.image == 255) < 0.3


@pytest.mark.parametrize("severity", KINDS)
def test_the_same_seed_draws_the_same_radiograph(severity):
    one, two, other = draw(5, severity), draw(5, severity), draw(6, severity)
    for name in ("image", "lungs", "lesions"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert (one.image != other.image).mean() > 0.5


def test_one_generator_draws_a_new_patient_at_each_call():
    rng = np.random.default_rng(5)
    one, two = draw_radiograph(rng, 64), draw_radiograph(rng, 64)
    assert (one.lungs != two.lungs).any()


@pytest.mark.parametrize("size", [32, 64, 128])
def test_lungs_are_two_components_one_in_each_half(size):
    diagonal_too = np.ones((3, 3))
    for seed in range(60):
        components, number = ndimage.label(draw(seed, size=size).lungs, diagonal_too)
        assert number == 2
        columns = [ndimage.center_of_mass(components == label)[1] for label in (1, 2)]
        assert min(columns) < size / 2 < max(columns)


def test_lungs_are_darker_than_the_rest_of_the_trunk():
    for radiograph in many(None):
        middle = np.zeros_like(radiograph.lungs)
        middle[20:44, 12:52] = True
        image, lungs = radiograph.image, radiograph.lungs
        assert image[middle & lungs].mean() < image[middle & ~lungs].mean()


def test_the_heart_takes_more_from_the_lung_in_the_right_half():
    areas = [[half.sum() for half in np.hsplit(r.lungs, 2)] for r in many(None)]
    left, right = np.mean(areas, axis=0)
    assert right < left


# lesions


def test_normal_has_no_lesions():
    assert not any(radiograph.lesions.any() for radiograph in many(None))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_lesions_lie_inside_the_lungs_on_as_many_sides_as_the_severity_says(severity):
    struck_halves = set()
    for radiograph in many(severity):
        assert not (radiograph.lesions & ~radiograph.lungs).any()
        components, _ = ndimage.label(radiograph.lungs)
        struck = set(np.unique(components[radiograph.lesions]))
        assert len(struck) == (1 if severity == "mild" else 2)
        struck_halves |= struck
    assert struck_halves == {1, 2}  # mild does not always strike the same side


def test_lesions_grow_with_severity():
    mild, moderate, severe = (
        np.mean([r.lesions.sum() / r.lungs.sum() for r in many(severity)])
        for severity in SEVERITIES
    )
    assert mild < moderate < severe


@pytest.mark.parametrize("severity", SEVERITIES)
def test_lesions_are_brighter_than_the_same_patient_in_health(severity):
    for ill, well in zip(many(severity), many(None), strict=True):
        np.testing.assert_array_equal(ill.lungs, well.lungs)
        rise = ill.image.astype(float) - well.image
        assert rise[ill.lesions].mean() > 3
        assert rise[ill.lesions].mean() > 2 * np.abs(rise[~ill.lungs]).mean()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_far_from_the_lungs_disease_changes_no_pixel(severity):
    """Exposure, noise, position and markers are drawn without a look at the disease."""
    for ill, well in zip(many(severity), many(None), strict=True):
        # blur (at most 0.35 pixel here, cut at 4 deviations) and the soft edge of the lung
        far = ~ndimage.binary_dilation(ill.lungs, iterations=8)
        assert far.mean() > 0.2
        np.testing.assert_array_equal(ill.image[far], well.image[far])


def test_the_border_carries_no_label():
    """Between different patients: class means differ by less than four standard errors."""
    edge = np.ones((64, 64), bool)
    edge[6:-6, 6:-6] = False
    normal = np.array([draw([1, k]).image[edge] for k in range(150)])
    covid = np.array([draw([2, k], SEVERITIES[k % 3]).image[edge] for k in range(150)])
    for summary in (np.mean, np.std):
        one, two = summary(normal, axis=1), summary(covid, axis=1)
        error = np.sqrt(one.var() / len(one) + two.var() / len(two))
        assert abs(one.mean() - two.mean()) < 4 * error


def test_markers_are_drawn_at_times():
    """What is white beside the neck, in the air above the shoulders, is a marker."""
    marked = [(r.image[:5, :16] > 150).any() for r in many(None)]
    assert 0.05 < np.mean(marked) < 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 31}, "size .* 32, found 31"),
        ({"size": 64.0}, "size .* found 64.0"),
        ({"size": True}, "size .* found True"),
        ({"severity": "serious"}, "'serious'; allowed: .*mild, moderate, severe"),
        ({"severity": ""}, "unknown severity ''"),
    ],
)
def test_bad_arguments_of_a_radiograph_are_refused(rng, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_radiograph(rng, **arguments)


# a data set


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("drawn") / "set", COUNTS, 32, 7)


def test_data_set_has_the_course_layout_with_masks_beside_it(dataset):
    expected = {"phantoms.csv", "phantoms.json"}
    for split, count in COUNTS.items():
        for name in ("COVID", "NORMAL"):
            for k in range(count):
                image = f"{split}/{name}/phantom-{name}-{k:04d}.png"
                expected |= {image, f"masks/lungs/{image}", f"masks/lesions/{image}"}
    assert set(contents(dataset)) == expected


def test_table_draws_every_image_and_mask_again(dataset):
    table = pd.read_csv(dataset / "phantoms.csv", keep_default_na=False)
    assert list(table) == ["path", "label_name", "split", "severity", "seed"]
    assert len(table) == 2 * sum(COUNTS.values())
    assert table["seed"].is_unique
    for row in table.itertuples():
        assert row.path.startswith(f"{row.split}/{row.label_name}/")
        assert (row.severity == "") == (row.label_name == "NORMAL")
        again = draw(row.seed, row.severity or None, 32)
        np.testing.assert_array_equal(pixels(dataset / row.path), again.image)
        for kind in ("lungs", "lesions"):
            mask = pixels(dataset / "masks" / kind / row.path)
            assert mask.dtype == np.uint8
            np.testing.assert_array_equal(mask, np.where(getattr(again, kind), 255, 0))


def test_severities_are_equally_frequent(tmp_path):
    folder = write_dataset(tmp_path / "set", {"train": 6, "val": 0, "test": 0}, 32, 0)
    table = pd.read_csv(folder / "phantoms.csv")
    assert table["severity"].value_counts().to_dict() == dict.fromkeys(SEVERITIES, 2)
    assert (folder / "val" / "COVID").is_dir()


def test_an_image_does_not_depend_on_how_many_are_drawn(dataset, tmp_path):
    fewer = contents(write_dataset(tmp_path / "set", {"train": 2, "val": 1, "test": 3}, 32, 7))
    all_of_them = contents(dataset)
    images = [name for name in fewer if name.endswith(".png")]
    assert len(images) == 3 * 2 * 6
    assert all(fewer[name] == all_of_them[name] for name in images)


def test_another_seed_draws_other_images(dataset, tmp_path):
    other = contents(write_dataset(tmp_path / "set", COUNTS, 32, 8))
    same = [name for name, data in contents(dataset).items() if other[name] == data]
    assert not [name for name in same if name.endswith(".png") and "masks" not in name]


def test_a_complete_set_is_returned_untouched(tmp_path, monkeypatch):
    folder = write_dataset(tmp_path / "set", COUNTS, 32, 7)
    before = contents(folder)

    def refuse(*_):
        raise AssertionError("drawn again")

    monkeypatch.setattr(phantoms, "draw_radiograph", refuse)
    assert write_dataset(folder, dict(reversed(COUNTS.items())), np.int64(32), 7) == folder
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("counts", "size", "seed"), [(COUNTS | {"val": 3}, 32, 7), (COUNTS, 33, 7), (COUNTS, 32, 8)]
)
def test_another_set_in_the_folder_is_refused_and_kept(dataset, counts, size, seed):
    before = contents(dataset)
    with pytest.raises(ValueError, match=r"holds something else.*Delete the folder") as refusal:
        write_dataset(dataset, counts, size, seed)
    assert str(dataset) in str(refusal.value)
    assert contents(dataset) == before


def test_pixels_of_an_earlier_drawing_are_refused(dataset, monkeypatch):
    monkeypatch.setattr(phantoms, "DRAWING", phantoms.DRAWING + 1)
    with pytest.raises(ValueError, match='"drawing": '):
        write_dataset(dataset, COUNTS, 32, 7)


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"no phantoms\.json"):
        write_dataset(tmp_path, COUNTS, 32, 7)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}
    with pytest.raises(ValueError, match="holds something else"):
        write_dataset(tmp_path / "thesis.txt", COUNTS, 32, 7)


@pytest.mark.parametrize("kind", ["", "masks/lungs", "masks/lesions"])
def test_a_set_that_lost_a_file_is_refused_by_name(tmp_path, kind):
    counts = {"train": 1, "val": 0, "test": 0}
    folder = write_dataset(tmp_path / "set", counts, 32, 7)
    (folder / kind / "train/COVID/phantom-COVID-0000.png").unlink()
    with pytest.raises(ValueError, match=r"phantom-COVID-0000\.png is missing"):
        write_dataset(folder, counts, 32, 7)


def test_an_empty_folder_is_filled(tmp_path):
    assert json.loads((write_dataset(tmp_path, COUNTS, 32, 7) / "phantoms.json").read_text()) == {
        "drawing": phantoms.DRAWING,
        "size": 32,
        "seed": 7,
        "counts": COUNTS,
    }


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
    assert len(drawn) == 4
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize(
    ("counts", "size", "seed", "message"),
    [
        (COUNTS, 16, 0, "size .* found 16"),
        (COUNTS | {"val": -1}, 32, 0, "counts must give .*'val': -1"),
        (COUNTS | {"val": 1.5}, 32, 0, "counts must give .*'val': 1.5"),
        (COUNTS | {"extra": 1}, 32, 0, "train, val, test; found .*'extra'"),
        ({"train": 1}, 32, 0, "train, val, test; found"),
        (COUNTS, 32, -1, "seed must be .* found -1"),
        (COUNTS, 32, 0.5, "seed must be .* found 0.5"),
    ],
)
def test_bad_arguments_of_a_data_set_write_nothing(tmp_path, counts, size, seed, message):
    with pytest.raises(ValueError, match=message):
        write_dataset(tmp_path / "set", counts, size, seed)
    assert list(tmp_path.iterdir()) == []


def test_a_set_that_another_run_has_drawn_meanwhile_is_taken(tmp_path, monkeypatch):
    counts = {"train": 1, "val": 1, "test": 1}
    folder = phantoms.write_dataset(tmp_path / "set", counts, 32, 0)
    really, asked = phantoms._holds_set, []

    def not_yet(*arguments):
        asked.append(arguments)
        return len(asked) > 1 and really(*arguments)

    monkeypatch.setattr(phantoms, "_holds_set", not_yet)
    assert phantoms.write_dataset(tmp_path / "set", counts, 32, 0) == folder
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
