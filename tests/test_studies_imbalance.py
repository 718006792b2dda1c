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


def balanced(method, data, **how):
    def generate(label, count, seed):
        return np.full((count, 6), 100.0 + label + seed)

    how = {"seed": 3, "generate": generate, "splits": ["train"] * len(data[1])} | how
    return balance(method, *data, how.pop("splits"), **how)


@pytest.mark.parametrize("method", METHODS)
def test_anything_but_training_data_is_refused(method, data):
    for other in ("val", "test", ""):
        with pytest.raises(NotTraining, match="only training data"):
            balanced(method, data, splits=["train"] * (len(data[1]) - 1) + [other])


@pytest.mark.parametrize(
    ("method", "counts", "new"),
    [("none", COUNTS, 0), ("class_weights", COUNTS, 0), ("undersample", [3] * 5, 0),
     ("oversample", [20] * 5, 0), ("smote", [20] * 5, 57), ("cgan", [20] * 5, 57)],
)  # fmt: skip
def test_counts_what_stays_and_the_seed(method, counts, new, data):
    found, again = balanced(method, data), balanced(method, data)
    np.testing.assert_array_equal(found.inputs, again.inputs)
    if method not in ("none", "class_weights"):
        assert not np.array_equal(found.inputs, balanced(method, data, seed=4).inputs)
    assert np.bincount(found.labels).tolist() == counts
    assert len(found.inputs) == len(found.labels) == len(found.synthetic)
    assert found.synthetic.sum() == new
    originals = {row.tobytes(): label for row, label in zip(*data, strict=True)}
    real = found.inputs[~found.synthetic]
    labels = [originals[row.tobytes()] for row in real]
    np.testing.assert_array_equal(found.labels[~found.synthetic], labels)
    if method != "undersample":
        np.testing.assert_array_equal(found.inputs[: len(data[1])], data[0])
    else:
        assert len(np.unique(real, axis=0)) == 15  # none twice


def test_class_weights_are_scikit_learn_s_balanced_and_the_published_ones(data):
    wanted = compute_class_weight("balanced", classes=np.arange(5), y=data[1])
    found = balanced("class_weights", data)
    np.testing.assert_allclose(list(found.weights.values()), wanted)
    np.testing.assert_allclose(found.sample_weights, wanted[data[1]])
    assert set(balanced("none", data).weights.values()) == {1.0}
    labels = np.repeat(np.arange(5), [245, 449, 1109, 411, 149])  # 2363
    five, two = (list(class_weights(one).values()) for one in (labels, labels >= 3))
    np.testing.assert_allclose(five, [1.929, 1.053, 0.426, 1.149, 3.176], atol=0.006)
    np.testing.assert_allclose(two, [0.655, 2.109], atol=0.002)


def test_smote_equals_imbalanced_learn_and_grows_a_class_by_a_limit(data):
    found = balanced("smote", data)
    peer, of = SMOTE(random_state=3, k_neighbors=2).fit_resample(*data)
    np.testing.assert_allclose(found.inputs, peer)
    np.testing.assert_array_equal(found.labels, of)
    assert np.bincount(balanced("smote", data, most=2).labels).tolist() == [8, 18, 20, 14, 6]


def test_smote_on_pixels_stays_in_their_type_shape_and_range(rng):
    images = rng.integers(0, 256, (43, 6, 5, 1), dtype=np.uint8)
    labels = np.repeat(np.arange(5), COUNTS)
    found = balance("smote", images, labels, ["train"] * 43, seed=0)
    assert found.inputs.dtype == np.uint8
    assert found.inputs.shape == (100, 6, 5, 1)
    new, own = found.inputs[found.synthetic & (found.labels == 4)], images[labels == 4]
    assert (new <= own.max(axis=0)).all()
    assert (new >= own.min(axis=0)).all()


def test_a_gan_may_exceed_the_largest_class(data):
    found = balanced("cgan", data, height=1.2)
    assert np.bincount(found.labels).tolist() == [24] * 5
    assert found.synthetic.sum() == 5 * 24 - sum(COUNTS)


def test_what_cannot_be_balanced_says_why(data):
    inputs, labels = data
    few = np.append(np.flatnonzero(labels != 4), np.flatnonzero(labels == 4)[0])

    def wrong(label, count, seed):
        return np.zeros((count, 2))

    for method, given, how, said in (
        ("smote", (inputs[few], labels[few]), {}, "two samples of each class"),
        ("adasyn", data, {}, "unknown method 'adasyn'; allowed: none"),
        ("cgan", data, {"generate": None}, "needs a generator"),
        ("cgan", data, {"generate": wrong}, r"gave \(16, 2\), wanted \(16, 6\)"),
        ("none", (inputs, 0 * labels), {}, "one class only"),
        ("none", data, {"splits": ["train"] * 2}, "43 inputs, 43 labels and 2 splits"),
    ):
        with pytest.raises(ValueError, match=said):
            balanced(method, given, **how)
