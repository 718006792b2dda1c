import numpy as np
import pandas as pd
import pytest

from covid_lab.audit.predictability import TooFewGroups
from covid_lab.studies.sources import source_table, views


def pictures(rng, n=80):
    images = rng.integers(60, 190, (n, 64, 64, 1)).astype(np.uint8)
    sizes = pd.DataFrame({"width": 200, "height": 200, "bytes": rng.integers(9000, 9900, n)})
    return images, sizes, np.arange(n) % 2


def test_a_planted_border_is_found_where_it_is(rng):
    images, sizes, which = pictures(rng)
    images[which == 1, :3] = 0  # a dark line along the upper edge
    table = source_table(views(images, sizes), which, np.arange(80)).set_index("view")
    assert table.loc["border alone", "auc"] > 0.99
    assert table.loc["whole image", "auc"] > 0.9
    assert table.loc["file size and dimensions", "low"] < 0.5
    assert (table["low"] <= table["auc"]).all()
    assert (table["auc"] <= table["high"]).all()


def test_planted_file_sizes(rng):
    images, sizes, which = pictures(rng)
    sizes.loc[which == 1, "bytes"] += 2000
    table = source_table(views(images, sizes), which, np.arange(80)).set_index("view")
    assert table.loc["file size and dimensions", "auc"] > 0.99
    assert table.loc["border alone", "low"] < 0.5


def test_views_hold_what_they_say(rng):
    images, sizes, _ = pictures(rng, 3)
    found = views(images, sizes)
    np.testing.assert_allclose(found["grey histogram alone"].sum(axis=1), 1)
    # Pixels of the middle do not reach the border's view.
    changed = images.copy()
    changed[:, 4:-4, 4:-4] = 0
    same = views(changed, sizes)["border alone"]
    np.testing.assert_array_equal(found["border alone"], same)
    assert found["border alone"].shape == (3, 32**2 - 28**2)
    np.testing.assert_allclose(found["whole image"][0, 0], images[0, :2, :2].mean())


def test_too_few_groups(rng):
    images, sizes, which = pictures(rng, 10)
    with pytest.raises(TooFewGroups):
        source_table(views(images, sizes), which, which)
