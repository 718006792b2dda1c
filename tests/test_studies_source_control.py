"""The control of two sources: no group on both sides, measures against their definitions."""

import keras
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from covid_lab.studies.source_control import out_of_fold, source_measures


def first_value(rows):
    """A model whose logit is its only input minus one half; its training rows do not matter."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.set_weights([np.ones((1, 1)), np.array([-0.5])])
    return model


@pytest.fixture
def mixture(rng):
    groups = np.repeat(np.arange(30), 3)
    sources = np.repeat([0] * 20 + [1] * 10, 3)
    return sources[:, None] + rng.normal(0, 0.4, (90, 1)), sources, groups


def test_a_group_is_never_learned_and_held_out_at_once(mixture):
    inputs, sources, groups = mixture
    seen = []

    def train(rows):
        seen.append(rows)
        return first_value(rows)

    own, further = out_of_fold(train, inputs, sources, groups, inputs[:7], folds=3, seed=1)
    assert len(seen) == 3
    for rows in seen:
        held_out = np.setdiff1d(np.arange(90), rows)
        assert not set(groups[rows]) & set(groups[held_out])
        assert len(np.unique(sources[held_out])) == 2
    np.testing.assert_allclose(own, inputs[:, 0] - 0.5, atol=1e-5)
    np.testing.assert_allclose(further, np.tile(inputs[:7, 0] - 0.5, (3, 1)), atol=1e-5)


def test_the_measures_are_those_of_scikit_learn(mixture):
    inputs, sources, groups = mixture
    own = inputs[:, 0] - 0.5
    further = np.array([[1.0, -1, -1, -1], [1, 1, -1, -1]])
    found = source_measures(own, sources, groups, further, [0, 0, 1, 2]).set_index("metric")
    called = (own > 0).astype(int)
    wanted = {
        "accuracy": accuracy_score(sources, called),
        "majority class": 2 / 3,
        "sensitivity": recall_score(sources, called),
        "specificity": recall_score(sources, called, pos_label=0),
        "AUC": roc_auc_score(sources, own),
        "others called positive": 3 / 8,
    }
    for name, value in wanted.items():
        assert found.loc[name, "value"] == pytest.approx(value), name
        assert found.loc[name, "low"] <= value <= found.loc[name, "high"]
    assert found.loc["accuracy", ["n", "groups"]].tolist() == [90, 30]
    assert found.loc["others called positive", ["n", "groups"]].tolist() == [4, 3]


def test_a_network_that_reads_the_source_calls_no_stranger_of_the_same_source(rng):
    """The finding is in the second value; the first value tells the source and is learned."""
    sources = np.repeat([0, 1], 60)
    inputs = np.stack([sources + rng.normal(0, 0.1, 120), rng.normal(0, 0.1, 120)], axis=1)
    strangers = np.stack([rng.normal(0, 0.1, 50), np.ones(50)], axis=1)

    def train(rows):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.2), keras.losses.BinaryCrossentropy(from_logits=True))
        model.fit(inputs[rows], sources[rows], epochs=15, verbose=0)
        return model

    groups = np.arange(120)
    own, further = out_of_fold(train, inputs, sources, groups, strangers, folds=2)
    found = source_measures(own, sources, groups, further, np.arange(50)).set_index("metric")
    assert found.loc["accuracy", "value"] > 0.97
    assert found.loc["others called positive", "value"] < 0.1
