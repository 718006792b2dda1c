"""Every answer to imbalance: counts, what is kept, what is new, and never beyond training."""

import numpy as np
import pytest
from imblearn.over_sampling import SMOTE
from sklearn.utils.class_weight import compute_class_weight

from covid_lab.studies.imbalance import METHODS, NotTraining, balance
from covid_lab.training import class_weights

COUNTS = [4, 9, 20, 7, 3]


@pytest.fixture
def data(rng):
    """Features of five classes, each about its own place; and labels in mixed order."""
    labels = rng.permutation(np.repeat(np.arange(5), COUNTS))
    return labels[:, None] + 0.1 * rng.normal(size=(len(labels), 6)), labels


def generator(label, count, seed):
    return np.full((count, 6), 100.0 + label + seed)


def balanced(method, data, **how):
    how = {"seed": 3, "generate": generator, "splits": ["train"] * len(data[1])} | how
    return balance(method, *data, how.pop("splits"), **how)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("other", ["val", "test", ""])
def test_anything_but_training_data_is_refused(method, other, data):
    splits = ["train"] * (len(data[1]) - 1) + [other]
    with pytest.raises(NotTraining, match="only training data"):
        balanced(method, data, splits=splits)


@pytest.mark.parametrize(
    ("method", "counts"),
    [("none", COUNTS), ("class_weights", COUNTS), ("undersample", [3] * 5),
     ("oversample", [20] * 5), ("smote", [20] * 5), ("cgan", [20] * 5)],
)  # fmt: skip
def test_counts_and_what_stays(method, counts, data):
    found = balanced(method, data)
    assert np.bincount(found.labels).tolist() == counts
    assert len(found.inputs) == len(found.labels) == len(found.synthetic)
    originals = {row.tobytes(): label for row, label in zip(*data, strict=True)}
    real = found.inputs[~found.synthetic]
    for row, label in zip(real, found.labels[~found.synthetic], strict=True):
        assert originals[row.tobytes()] == label
    assert found.synthetic.sum() == {"smote": 57, "cgan": 57}.get(method, 0)
    if method != "undersample":
        np.testing.assert_array_equal(found.inputs[: len(data[1])], data[0])
    else:
        assert len(np.unique(real, axis=0)) == 15  # none twice


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides(method, data):
    first, again = balanced(method, data), balanced(method, data)
    np.testing.assert_array_equal(first.inputs, again.inputs)
    if method not in ("none", "class_weights"):
        assert not np.array_equal(first.inputs, balanced(method, data, seed=4).inputs)


def test_class_weights_are_scikit_learn_s_balanced(data):
    wanted = compute_class_weight("balanced", classes=np.arange(5), y=data[1])
    found = balanced("class_weights", data)
    np.testing.assert_allclose(list(found.weights.values()), wanted)
    np.testing.assert_allclose(found.sample_weights, wanted[data[1]])
    assert found.sample_weights.mean() == pytest.approx(1)
    assert set(balanced("none", data).weights.values()) == {1.0}


def test_the_published_weights_follow_from_the_published_counts():
    labels = np.repeat(np.arange(5), [245, 449, 1109, 411, 149])  # 2363
    found = list(class_weights(labels).values())
    np.testing.assert_allclose(found, [1.929, 1.053, 0.426, 1.149, 3.176], atol=0.006)
    two = list(class_weights(labels >= 3).values())
    np.testing.assert_allclose(two, [0.655, 2.109], atol=0.002)


def test_smote_lies_between_two_of_its_class_and_equals_imbalanced_learn(data):
    found = balanced("smote", data)
    peer, of = SMOTE(random_state=3, k_neighbors=2).fit_resample(*data)
    np.testing.assert_allclose(found.inputs, peer)
    np.testing.assert_array_equal(found.labels, of)
    for row, label in zip(
        found.inputs[found.synthetic], found.labels[found.synthetic], strict=True
    ):
        own = data[0][data[1] == label]
        between = False
        for a in own:
            for b in own:
                if (length := np.dot(b - a, b - a)) > 0:
                    share = np.clip(np.dot(row - a, b - a) / length, 0, 1)
                    between |= np.allclose(a + share * (b - a), row, atol=1e-9)
        assert between


def test_smote_on_pixels_stays_in_their_type_and_shape(rng):
    images = rng.integers(0, 256, (43, 6, 5, 1), dtype=np.uint8)
    labels = np.repeat(np.arange(5), COUNTS)
    found = balance("smote", images, labels, ["train"] * 43, seed=0)
    assert found.inputs.dtype == np.uint8
    assert found.inputs.shape == (100, 6, 5, 1)
    smallest = found.inputs[found.synthetic & (found.labels == 4)].astype(int)
    own = images[labels == 4].astype(int)
    assert (smallest <= own.max(axis=0)).all()
    assert (smallest >= own.min(axis=0)).all()


def test_what_cannot_be_balanced_says_why(data):
    few = np.concatenate([data[0][data[1] != 4], np.zeros((1, 6))])
    labels = np.append(data[1][data[1] != 4], 4)
    with pytest.raises(ValueError, match="two samples of each class"):
        balanced("smote", (few, labels))
    with pytest.raises(ValueError, match="unknown method 'adasyn'; allowed: none"):
        balanced("adasyn", data)
    with pytest.raises(ValueError, match="needs a generator"):
        balanced("cgan", data, generate=None)
    with pytest.raises(ValueError, match=r"gave \(16, 2\), wanted \(16, 6\)"):
        balanced("cgan", data, generate=lambda label, count, seed: np.zeros((count, 2)))
    with pytest.raises(ValueError, match="one class only"):
        balanced("none", (data[0], 0 * data[1]))
    with pytest.raises(ValueError, match="43 inputs, 43 labels and 2 splits"):
        balanced("none", data, splits=["train"] * 2)


def test_smote_doubles_a_class_at_most_and_a_gan_may_exceed_the_largest(data):
    found = balanced("smote", data, most=2)
    assert np.bincount(found.labels).tolist() == [8, 18, 20, 14, 6]
    found = balanced("cgan", data, height=1.2)
    assert np.bincount(found.labels).tolist() == [24] * 5
    assert found.synthetic.sum() == 5 * 24 - sum(COUNTS)
