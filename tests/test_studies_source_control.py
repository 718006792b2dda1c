"""The control of two sources: no group on both sides, measures against their definitions."""

import keras
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from covid_lab.studies.source_control import out_of_fold, source_measures


@pytest.fixture
def mixture(rng):
    groups = np.repeat(np.arange(30), 3)
    sources = np.repeat([0] * 20 + [1] * 10, 3)
    return sources[:, None] + rng.normal(0, 0.4, (90, 1)), sources, groups


def test_a_group_is_never_learned_and_held_out_at_once(mixture):
    inputs, sources, groups = mixture
    seen = []

    def train(rows):
        """Return a model whose logit is its only input minus one half."""
        seen.append(rows)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.set_weights([np.ones((1, 1)), np.array([-0.5])])
        return model

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
    wanted = {
        "accuracy": accuracy_score(sources, own > 0),
        "majority class": 2 / 3,
        "sensitivity": recall_score(sources, own > 0),
        "specificity": recall_score(sources, own > 0, pos_label=0),
        "AUC": roc_auc_score(sources, own),
        "others called positive": 3 / 8,
    }
    assert found["value"].to_dict() == pytest.approx(wanted)
    assert (found["low"] <= found["value"]).all()
    assert (found["value"] <= found["high"]).all()
    assert found.loc["accuracy", ["n", "groups"]].tolist() == [90, 30]
    assert found.loc["others called positive", ["n", "groups"]].tolist() == [4, 3]
