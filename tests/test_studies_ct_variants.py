"""Variants of model A: names, what changed, networks that did not train, the histories kept."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from covid_lab.studies import ct_variants
from covid_lab.studies.ct_lesions import load_settings
from covid_project.files import read_csv


@pytest.fixture(scope="module")
def settings():
    return load_settings("ct_lesions", data="covid_ct.zip")


def test_each_variant_differs_from_the_base_in_one_thing_and_every_group_shows_the_base(settings):
    found, base_name = ct_variants.variants(settings), ct_variants.base_name(settings)
    groups = ct_variants.groups(settings)
    shown = {name for values in groups.values() for name in values.values()}
    assert shown == set(found)
    assert all(base_name in values.values() for values in groups.values())
    assert groups["kernel side (pixels)"] == {"3": base_name, "5": "kernel 5", "7": "kernel 7"}
    base = found.pop(base_name)
    names = ["kernel 5", "kernel 7", "batch 16", "batch 32", "batch 64", "batch 128", "64 px"]
    assert list(found) == [*names, "256 px", "not equalised"]
    flat = {name: {**vars(one), **vars(one.network), "network": 0} for name, one in found.items()}
    usual = {**vars(base), **vars(base.network), "network": 0}
    for name, values in flat.items():
        assert sum(values[key] != usual[key] for key in usual) == 1, name


def test_a_base_that_the_lists_do_not_name_is_shown(settings):
    other = replace(settings, image_sizes=(64,), batch_sizes=(16,))
    base = ct_variants.base_name(other)
    assert ct_variants.groups(other)["image side (pixels)"] == {"64": "64 px", "128": base}


def test_dead_networks_are_known_counted_and_left_out(rng):
    assert not ct_variants.has_trained(np.full(30, -0.133, np.float32))
    assert ct_variants.has_trained(rng.normal(0, 0.01, 30))
    trials = pd.DataFrame(
        {"variant": list("aabbb"), "trained": [True, False, True, True, True],
         "val_loss": [0.5, 0.7, 0.4, 0.5, 0.6], "val_accuracy": [0.8, 0.5, 0.7, 0.8, 0.9],
         "val_AUC": [0.9, 0.5, 0.7, 0.8, 0.9], "best_epoch": [3, 30, 4, 5, 6],
         "epoch_seconds": 1.0}
    )  # fmt: skip
    found = ct_variants.variant_summary(trials).set_index("variant")
    columns = ["trained", "untrained", "val_loss", "val_AUC_lowest", "val_AUC_highest"]
    expected = [[1, 1, 0.5, 0.9, 0.9], [3, 0, 0.5, 0.7, 0.9]]
    np.testing.assert_allclose(found[columns].astype(float), expected)


def test_a_history_takes_the_place_of_an_earlier_one(tmp_path):
    path = tmp_path / "histories.csv"
    history = pd.DataFrame({"epoch": [1, 2], "val_loss": [0.7, 0.6], "seconds": 1.0})
    for part, seed in ((history, 7), (history, 8), (history[:1].assign(val_loss=0.1), 7)):
        ct_variants.keep_history(path, part, "kernel 5", seed)
    found = read_csv(path)
    rows = found[["training_seed", "epoch", "val_loss"]].to_numpy().tolist()
    assert rows == [[8, 1, 0.7], [8, 2, 0.6], [7, 1, 0.1]]
    assert "seconds" not in found
