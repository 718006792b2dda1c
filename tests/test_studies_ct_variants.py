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


def test_each_variant_differs_from_the_base_in_one_thing(settings):
    found = ct_variants.variants(settings)
    base = found.pop(ct_variants.base_name(settings))
    assert list(found) == [
        *("kernel 5", "kernel 7", "batch 16", "batch 32", "batch 64", "batch 128"),
        *("64 px", "256 px", "not equalised"),
    ]
    for name, one in found.items():
        changed = [
            one.network.kernel != base.network.kernel,
            one.network.batch_size != base.network.batch_size,
            one.image_size != base.image_size,
            one.equalize != base.equalize,
        ]
        assert sum(changed) == 1, name
        same = replace(one.network, kernel=base.network.kernel, batch_size=base.network.batch_size)
        assert same == base.network


def test_the_groups_show_every_variant_and_the_base_in_each(settings):
    base, groups = ct_variants.base_name(settings), ct_variants.groups(settings)
    shown = [name for values in groups.values() for name in values.values()]
    assert set(shown) == set(ct_variants.variants(settings))
    assert all(base in values.values() for values in groups.values())
    assert groups["kernel side (pixels)"] == {"3": base, "5": "kernel 5", "7": "kernel 7"}
    assert list(groups["image side (pixels)"]) == ["64", "128", "256"]


def test_a_base_that_the_lists_do_not_name_is_shown(settings):
    other = replace(settings, image_sizes=(64,), batch_sizes=(16,))
    base = ct_variants.base_name(other)
    assert ct_variants.groups(other)["image side (pixels)"] == {"64": "64 px", "128": base}


def test_a_network_with_one_answer_did_not_train(rng):
    assert not ct_variants.has_trained(np.full(30, -0.133, np.float32))
    assert ct_variants.has_trained(rng.normal(0, 0.01, 30))


def test_dead_networks_are_counted_and_left_out():
    trials = pd.DataFrame(
        {
            "variant": ["a", "a", "b", "b", "b"],
            "trained": [True, False, True, True, True],
            "val_loss": [0.5, 0.7, 0.4, 0.5, 0.6],
            "val_accuracy": [0.8, 0.5, 0.7, 0.8, 0.9],
            "val_AUC": [0.9, 0.5, 0.7, 0.8, 0.9],
            "best_epoch": [3, 30, 4, 5, 6],
            "epoch_seconds": 1.0,
        }
    )
    found = ct_variants.variant_summary(trials).set_index("variant")
    assert found.loc["a", ["trained", "untrained", "val_loss", "val_AUC"]].tolist() == [
        1,
        1,
        0.5,
        0.9,
    ]
    assert found.loc["b", "val_loss"] == pytest.approx(0.5)
    assert found.loc["b", ["val_AUC_lowest", "val_AUC_highest"]].tolist() == [0.7, 0.9]


def test_a_history_takes_the_place_of_an_earlier_one(tmp_path):
    path = tmp_path / "histories.csv"
    history = pd.DataFrame({"epoch": [1, 2], "val_loss": [0.7, 0.6], "seconds": 1.0})
    ct_variants.keep_history(path, history, "kernel 5", 7)
    ct_variants.keep_history(path, history, "kernel 5", 8)
    ct_variants.keep_history(path, history[:1].assign(val_loss=0.1), "kernel 5", 7)
    found = read_csv(path)
    assert found[["training_seed", "epoch", "val_loss"]].to_numpy().tolist() == [
        [8, 1, 0.7],
        [8, 2, 0.6],
        [7, 1, 0.1],
    ]
    assert "seconds" not in found
