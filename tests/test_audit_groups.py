"""Groups and splits against naive loops."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covid_lab.audit.groups import clusters, grouped_split, groups_across_splits, joined_groups
from covid_project.data import DataError

# ---- groups -------------------------------------------------------------------------------------


def test_groups_across_splits_are_those_of_a_naive_count():
    table = pd.DataFrame(
        {
            "group": ["b", "a", "a", "c", "b", "b", "d"],
            "split": ["test", "train", "train", "val", "train", "train", "test"],
        }
    )
    found = groups_across_splits(table)
    assert found.to_dict("records") == [
        {"group": "b", "images": 3, "splits": "test, train", "test": 1, "train": 2, "val": 0}
    ]
    assert groups_across_splits(table.iloc[1:3]).empty
    with pytest.raises(DataError, match="split"):
        groups_across_splits(table[["group"]])


def naive_components(n, edges):
    """Give every image the smallest number that reaches it, until nothing changes."""
    found = list(range(n))
    for _ in range(n):
        for a, b in edges:
            found[a] = found[b] = min(found[a], found[b])
    return found


def same_partition(a, b):
    return pd.factorize(np.asarray(a))[0].tolist() == pd.factorize(np.asarray(b))[0].tolist()


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(
    st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=12)
)))  # fmt: skip
def test_clusters_are_what_pairs_connect(drawn):
    n, edges = drawn
    pairs = pd.DataFrame(edges, columns=["first", "second"], dtype=int)
    assert same_partition(clusters(n, pairs), naive_components(n, edges))


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abcdef")), min_size=1, max_size=15))
def test_joined_groups_connect_through_either_grouping(images):
    first, second = zip(*images, strict=True)
    n = len(images)
    edges = [
        (a, b) for a in range(n) for b in range(a) if first[a] == first[b] or second[a] == second[b]
    ]
    found = joined_groups(first, second)
    assert same_partition(found, naive_components(n, edges))
    assert found[0] == 0


def test_groupings_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="same images"):
        joined_groups([1, 2], [1])
    with pytest.raises(DataError, match="at least one"):
        joined_groups()
    with pytest.raises(DataError, match="missing"):
        joined_groups(["a", None])
    with pytest.raises(DataError, match="beyond"):
        clusters(2, pd.DataFrame({"first": [0], "second": [2]}))


# ---- the split ----------------------------------------------------------------------------------


@settings(max_examples=10)
@given(st.integers(0, 2**16))
def test_a_grouped_split_parts_no_group_and_keeps_shares_and_classes(seed):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(300), rng.integers(1, 6, 300))
    patients_label = rng.random(300) < 0.3
    labels = patients_label[groups].astype(int)
    split = grouped_split(labels, groups, seed=seed)
    table = pd.DataFrame({"group": groups, "split": split, "label": labels})
    assert groups_across_splits(table).empty
    shares = pd.crosstab(table["split"], table["label"], normalize="columns")
    for name, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        np.testing.assert_allclose(shares.loc[name], share, atol=0.02)


def test_a_grouped_split_repeats_with_its_seed_and_not_with_another():
    groups = np.arange(200)
    labels = groups % 2
    first = grouped_split(labels, groups, seed=3)
    np.testing.assert_array_equal(first, grouped_split(labels, groups, seed=3))
    # The names of the groups do not matter, only who shares one.
    np.testing.assert_array_equal(first, grouped_split(labels, [f"p{g}" for g in groups], seed=3))
    assert (first != grouped_split(labels, groups, seed=4)).any()


def test_a_grouped_split_holds_patients_and_clusters_together():
    patients = np.arange(100) // 2
    pairs = pd.DataFrame({"first": [0, 10, 50], "second": [99, 51, 60]})
    groups = joined_groups(patients, clusters(100, pairs))
    shares = {"fit": 0.5, "check": 0.5}
    split = grouped_split(np.arange(100) // 2 % 2, groups, shares)
    for a, b in ((0, 99), (1, 98), (10, 51), (11, 50), (10, 61)):
        assert split[a] == split[b]
    assert 40 <= (split == "fit").sum() <= 60


@pytest.mark.parametrize(
    ("labels", "groups", "shares", "reason"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], None, "too few groups"),
        ([0, 1], [0, 1], {"train": 0.5, "test": 0.4}, "add up to 1"),
        ([0, 1], [0, 1], {"train": 1.0, "test": 0.0}, "positive"),
        ([0, 1], [0, 1, 2], None, "labels"),
    ],
)
def test_splits_that_cannot_be_are_refused(labels, groups, shares, reason):
    with pytest.raises(DataError, match=reason):
        grouped_split(labels, groups, shares)
