import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_lab.audit import controls
from covid_lab.audit.controls import (
    COLUMNS,
    CONTROLS,
    _plant_marker,
    _plant_size,
    controls_table,
    draw_phantoms,
    plant_border,
    weakest_caught,
    write_phantoms,
)


@pytest.fixture(scope="module")
def phantoms():
    return draw_phantoms(4, 96, seed=1)


@pytest.mark.parametrize(
    ("plant", "pixels"), [(_plant_marker, 8 * 8), (plant_border, 96**2 - 90**2)]
)
def test_only_positive_images_get_brighter_and_only_there(phantoms, plant, pixels, rng):
    planted = np.stack(plant(phantoms, 10, rng)).astype(int)
    gained = planted - phantoms.images
    assert not gained[phantoms.labels == 0].any()
    expected = np.minimum(phantoms.images.astype(int) + 10, 255) - phantoms.images
    changed = gained[phantoms.labels == 1] == expected[phantoms.labels == 1]
    places = (gained[phantoms.labels == 1] > 0).any(axis=0)
    assert places.sum() == pixels
    assert changed[:, places].all()
    np.testing.assert_array_equal(np.stack(plant(phantoms, 0, rng)), phantoms.images)


def test_sizes_follow_one_law_and_the_positive_ones_are_enlarged(phantoms):
    def sides(strength):
        return np.array([len(i) for i in _plant_size(phantoms, strength, np.random.default_rng(2))])

    before, after = sides(0), sides(50)
    assert before.min() >= 86
    assert before.max() <= 106
    np.testing.assert_array_equal(after[:4], before[:4])
    np.testing.assert_allclose(after[4:], 1.5 * before[4:], atol=1)


def test_written_phantoms_are_the_drawn_ones(phantoms, tmp_path):
    dataset = write_phantoms(tmp_path, list(phantoms.images), phantoms)
    assert dataset.table["label"].tolist() == phantoms.labels.tolist()
    for number, row in enumerate(dataset.table.itertuples()):
        with Image.open(tmp_path / row.path) as image, Image.open(tmp_path / row.mask) as mask:
            np.testing.assert_array_equal(np.asarray(image), phantoms.images[number])
            np.testing.assert_array_equal(np.asarray(mask) > 0, phantoms.lungs[number])


def test_planted_shortcuts_fail_in_their_row_and_none_passes(monkeypatch):
    # The strongest and strength 0 of each, on few phantoms; `audit --controls` runs them all.
    monkeypatch.setattr(controls, "PER_CLASS", 60)
    monkeypatch.setattr(controls, "REPEATS", 1)
    few = {name: (*how[:2], (0, how[2][-1]), how[3]) for name, how in CONTROLS.items()}
    monkeypatch.setattr(controls, "CONTROLS", few)
    states = []
    table = controls_table(seed=5, progress=lambda *state: states.append(state))
    assert tuple(table.columns) == COLUMNS
    assert states == [("controls: audits", done, 7) for done in range(8)]
    assert len(table) == 7
    planted = table["strength"] > 0
    assert (table.loc[planted, "verdict"] == "fail").all()
    assert (table.loc[~planted, "verdict"] == "pass").all()
    assert (table["caught"] == planted).all()
    assert (table.loc[planted, "auc"] > 0.85).all()


def test_weakest_caught_is_the_one_above_which_none_is_missed():
    rows = [("none", 0, False), *[("marker", s, s in (2, 8, 16)) for s in (0, 2, 4, 8, 16)]]
    rows += [("size", 1, False), ("size", 2, False)]
    table = pd.DataFrame(rows, columns=["control", "strength", "caught"]).assign(unit="levels")
    found = weakest_caught(table)
    assert found["control"].tolist() == ["marker", "size"]
    assert found["strength"].tolist()[0] == 8
    assert np.isnan(found["strength"].iloc[1])
