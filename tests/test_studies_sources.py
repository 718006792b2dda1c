import numpy as np
import pandas as pd
import pytest

from covid_lab.audit.predictability import TooFewGroups
from covid_lab.studies.sources import source_table, views


@pytest.fixture
def pictures(rng):
    images = rng.integers(60, 190, (80, 64, 64, 1)).astype(np.uint8)
    sizes = pd.DataFrame({"width": 200, "height": 200, "bytes": rng.integers(9000, 9900, 80)})
    return images, sizes, np.arange(80) % 2


@pytest.mark.parametrize("planted", ["border alone", "file size and dimensions"])
def test_what_is_planted_is_found_where_it_is(pictures, planted):
    images, sizes, which = pictures
    if planted == "border alone":
        images[which == 1, :3] = 0  # a dark line along the upper edge
    else:
        sizes.loc[which == 1, "bytes"] += 2000
    table = source_table(views(images, sizes), which, np.arange(80)).set_index("view")
    assert table.loc[planted, "auc"] > 0.99
    (other,) = {"border alone", "file size and dimensions"} - {planted}
    assert table.loc[other, "low"] < 0.5
    assert (table["low"] <= table["auc"]).all()
    assert (table["auc"] <= table["high"]).all()
    with pytest.raises(TooFewGroups):
        source_table(views(images, sizes), which, which)


def test_views_hold_what_they_say(pictures):
    images, sizes, _ = pictures
    found = views(images, sizes)
    np.testing.assert_allclose(found["grey histogram alone"].sum(axis=1), 1)
    np.testing.assert_allclose(found["whole image"][0, 0], images[0, :2, :2].mean())
    # Pixels of the middle do not reach the border's view.
    changed = images.copy()
    changed[:, 4:-4, 4:-4] = 0
    same = views(changed, sizes)["border alone"]
    np.testing.assert_array_equal(found["border alone"], same)
    assert same.shape == (80, 32**2 - 28**2)
