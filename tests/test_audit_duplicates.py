"""Exact and near copies as tables: hashes, pairs, splits and labels."""

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.near_copies import KINDS, KNOWN, draw, score
from covid_lab.audit.duplicates import _exact_pairs, _hashes, duplicate_pairs, near_pairs
from covid_lab.audit.groups import clusters
from covid_lab.phantoms import draw_radiograph
from covid_project.data import DataError
from covid_project.images import decode

SIZE = 128


def phantoms(n, size=SIZE):
    return np.stack([draw_radiograph(np.random.default_rng(seed), size).image for seed in range(n)])


def at_size(image):
    """As the audit brings every image to one size."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def pair_set(pairs, columns=("first", "second")):
    return set(pairs[list(columns)].itertuples(index=False, name=None))


# ---- exact copies -------------------------------------------------------------------------------


def test_a_hash_is_of_the_pixels_whatever_the_file(rng):
    image = rng.integers(0, 256, (9, 7), np.uint8)
    files = []
    for kind, options in (("PNG", {"compress_level": 0}), ("PNG", {}), ("BMP", {})):
        file = io.BytesIO()
        Image.fromarray(image).save(file, kind, **options)
        files.append(file.getvalue())
    assert len(set(files)) == 3
    assert len(set(_hashes(decode(file, "x") for file in files))) == 1


def test_hashes_tell_shapes_and_single_grey_values_apart():
    flat = np.zeros((4, 9), np.uint8)
    other = flat.copy()
    other[3, 8] = 1
    assert len(set(_hashes([flat, flat.reshape(6, 6), flat.T, other]))) == 4
    assert len(set(_hashes([other, other[..., None], np.asfortranarray(other)]))) == 1
    with pytest.raises(DataError, match="float"):
        _hashes([np.zeros((3, 3))])


@given(st.lists(st.integers(0, 5), max_size=25))
def test_exact_pairs_are_those_of_a_naive_loop_and_connect_all_equal_images(contents):
    pairs = _exact_pairs(np.array(contents))
    naive = [
        (contents.index(value), row)
        for row, value in enumerate(contents)
        if contents.index(value) < row
    ]
    assert list(zip(pairs["first"], pairs["second"], strict=True)) == naive
    found = clusters(len(contents), pairs)
    for a, x in enumerate(contents):
        for b, y in enumerate(contents):
            assert (found[a] == found[b]) == (x == y)


# ---- near copies --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted():
    """40 phantoms and a copy of each kind, of the first twelve."""
    drawn, rng = phantoms(40, 256), np.random.default_rng(3)
    copies = [change(image, rng) for image, change in zip(drawn, KINDS.values(), strict=False)]
    return np.stack([at_size(image) for image in [*drawn, *copies]])


@pytest.fixture(scope="module")
def found(planted):
    return near_pairs(planted)


def test_a_copy_of_each_kind_is_found_and_no_other_pair(found):
    expected = {
        (place, 40 + place, "mirrored" if kind == "mirrored" else "near")
        for place, kind in enumerate(KINDS)
    }
    assert pair_set(found, ("first", "second", "kind")) == expected


def test_the_order_of_the_images_does_not_matter(planted, found):
    order = np.random.default_rng(0).permutation(len(planted))
    shuffled = near_pairs(planted[order])
    ends = np.sort(order[shuffled[["first", "second"]].to_numpy()], axis=1)
    shuffled = shuffled.assign(first=ends[:, 0], second=ends[:, 1])
    both = found.merge(shuffled, on=["first", "second", "kind"])
    assert len(both) == len(found) == len(shuffled)
    np.testing.assert_allclose(both["similarity_x"], both["similarity_y"], atol=0.05)


def test_copies_of_real_radiographs_are_found_and_no_other_pair(course_archive):
    # A smaller draw than the benchmark's, from images on which no constant was chosen. Promised
    # are a recall of 0.97 and a precision of 0.995.
    if not (course_archive.parent / "chest_xray.zip").is_file():
        pytest.skip("chest_xray.zip is not at hand (../shared/data)")
    drawn = draw(course_archive.parent, originals=240, copies=10, seed=7)
    table, others = score(drawn, near_pairs(drawn.small()))
    recall = table[table["measure"] == "recall"].set_index("kind")["value"]
    assert recall["all"] >= 0.97
    assert (recall >= 0.85).all()
    pairs = map(frozenset, zip(others["first"], others["second"], strict=True))
    assert len(set(pairs) - KNOWN) <= 1


def test_a_mirrored_and_inverted_copy_is_found():
    drawn = phantoms(12)
    pairs = near_pairs(np.concatenate([drawn, 255 - drawn[4:5, :, ::-1]]))
    assert pair_set(pairs, ("first", "second", "kind")) == {(4, 12, "mirrored")}


def test_two_images_are_enough_to_be_copies():
    one, other = phantoms(2)
    darker = (0.8 * one).astype(np.uint8)
    assert pair_set(near_pairs(np.stack([one, darker]))) == {(0, 1)}
    assert near_pairs(np.stack([one, other])).empty


def test_two_images_in_equal_frames_are_no_copies():
    drawn = phantoms(12)
    framed = np.pad(drawn[:, 12:-12, 12:-12], ((0, 0), (12, 12), (12, 12)), constant_values=255)
    assert near_pairs(framed).empty


def test_images_without_contrast_and_too_few_images_have_no_near_copies():
    grey = np.stack([np.full((32, 32), value, np.uint8) for value in (0, 0, 90, 255)])
    for images in (grey, grey[:1], grey[:0], phantoms(1), np.concatenate([grey, phantoms(1, 32)])):
        assert near_pairs(images).empty
    assert pair_set(_exact_pairs(_hashes(grey))) == {(0, 1)}


def test_a_thousand_equal_images_are_hashed_and_not_compared():
    images = np.repeat(phantoms(2, 32), [1000, 1], axis=0)
    table = pd.DataFrame({"split": ["train"] * 900 + ["test"] * 101, "label": 0})
    pairs = duplicate_pairs(images, table)
    assert len(pairs) == 999
    assert (pairs["split_first"] != pairs["split_second"]).sum() == 100


# ---- pairs with splits and labels ---------------------------------------------------------------


def test_duplicate_pairs_say_splits_and_label_conflicts():
    drawn = phantoms(5)
    images = np.concatenate([drawn, drawn[:2], drawn[2:3, :, ::-1]])  # 5 = 0, 6 = 1, 7 mirrors 2
    table = pd.DataFrame(
        {"split": ["train"] * 5 + ["train", "test", "val"], "label": [0, 0, 1, 1, 0, 1, 0, 1]}
    )
    pairs = duplicate_pairs(images, table)
    assert list(pairs) == [
        "first", "second", "kind", "similarity", "split_first", "split_second", "label_conflict"
    ]  # fmt: skip
    rows = [tuple(row) for row in pairs.drop(columns="similarity").to_numpy()]
    assert rows == [
        (0, 5, "exact", "train", "train", True),
        (1, 6, "exact", "train", "test", False),
        (2, 7, "mirrored", "train", "val", False),
    ]
    assert pairs["label_conflict"].dtype == bool


def test_images_that_only_resizing_made_equal_are_near_and_not_exact():
    images = phantoms(4)[[0, 1, 2, 3, 0]]
    table = pd.DataFrame({"split": "train", "label": [0] * 5})
    assert duplicate_pairs(images, table)["kind"].tolist() == ["exact"]
    pairs = duplicate_pairs(images, table, contents=np.array(list("abcde")))
    assert pairs["kind"].tolist() == ["near"]
    assert pairs["similarity"].item() == pytest.approx(1)


def test_nothing_found_is_an_empty_table_with_all_columns():
    pairs = duplicate_pairs(phantoms(3), pd.DataFrame({"split": ["train"] * 3, "label": 0}))
    assert pairs.empty
    assert "label_conflict" in pairs
    assert clusters(3, pairs).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 8, 8)), np.zeros((8, 8), np.uint8), np.zeros((2, 8, 8, 3), np.uint8),
     np.zeros((2, 0, 8), np.uint8)],
)  # fmt: skip
def test_other_arrays_are_refused(images):
    with pytest.raises(DataError, match="uint8"):
        near_pairs(images)


def test_a_table_of_other_images_is_refused():
    images = np.zeros((2, 8, 8), np.uint8)
    with pytest.raises(DataError, match="one row"):
        duplicate_pairs(images, pd.DataFrame({"split": ["train"], "label": [0]}))
    with pytest.raises(DataError, match=r"lacks.*label"):
        duplicate_pairs(images, pd.DataFrame({"split": ["train"] * 2}))
