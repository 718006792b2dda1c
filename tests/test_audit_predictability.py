import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from covid_lab.audit.predictability import (
    PENALTIES,
    TooFewGroups,
    _indicators,
    macro_auc,
    predict,
    prepare,
    resample,
    ridge_scores,
    shuffle_labels,
)


@pytest.mark.parametrize("features", [8, 90])  # fewer and more than images
def test_ridge_is_scikit_learns_with_its_leave_one_out(rng, features):
    x, new = rng.normal(3, 2, (60, features)), rng.normal(3, 2, (25, features))
    signal = np.outer(x[:, 0], [1, 0, 5]) + rng.normal(size=(60, 3))
    targets = (signal > np.median(signal, axis=0)).astype(float)
    scaler = StandardScaler().fit(x)
    peer = RidgeCV(60 * np.array(PENALTIES), alpha_per_target=True)
    peer.fit(scaler.transform(x), targets)
    expected = peer.predict(scaler.transform(new)) - targets.mean(axis=0)
    test = np.arange(85) >= 60
    found = ridge_scores(np.vstack([x, new]), np.vstack([targets, np.ones((25, 3))]), test)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert not ridge_scores(np.full((85, 4), 7.0), np.ones((85, 2)), test).any()  # never vary


def test_auc_is_scikit_learns_with_ties_and_weights(rng):
    labels, scores = rng.integers(0, 2, 80), rng.integers(0, 9, 80) / 2
    weights = rng.integers(0, 4, (5, 80)).astype(np.float32)
    found = macro_auc(labels, scores[:, None], weights)
    expected = [roc_auc_score(labels, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_auc_of_several_classes_is_the_mean_of_one_against_the_rest(rng):
    labels, scores = rng.integers(0, 3, 90), rng.random((90, 3))
    scores /= scores.sum(axis=1, keepdims=True)
    expected = roc_auc_score(labels, scores, multi_class="ovr")
    np.testing.assert_allclose(macro_auc(labels, scores), expected, rtol=1e-12)


def test_numbers_become_steps_and_words_indicators():
    train = pd.DataFrame({"aspect": [1.0] * 18 + [0.8, 1.3], "mode": ["L"] * 15 + ["RGB"] * 5})
    test = pd.DataFrame({"aspect": [1.0, 0.9, 1.1], "mode": ["L", "RGB", "CMYK"]})
    unseen = _indicators(pd.concat([train, test]), np.arange(23) < 20)[20:]
    rows = {tuple(row) for row in unseen[:, :-2]}
    assert len(rows) == 3  # a square image differs from one that is narrower and one that is wider
    np.testing.assert_array_equal(unseen[:, -2:], [[1, 0], [0, 1], [0, 0]])


def test_a_group_is_never_learned_and_tested_at_once(rng):
    # Features say whose image it is, and nothing of the label: only a leak could predict it.
    groups = np.repeat(np.arange(60), 5)
    labels = rng.permuted(np.arange(60) % 2)[groups]
    features = rng.normal(size=(60, 40))[groups] + 0.01 * rng.normal(size=(300, 40))
    trial = prepare(labels, groups)
    assert pd.Series(trial.folds).groupby(groups).nunique().eq(1).all()
    leaking = prepare(labels, np.arange(300))
    assert predict(features, leaking).auc > 0.95
    found = predict(features, trial)
    assert found.low <= found.null_high


def test_shuffled_labels_keep_each_folds_classes(rng):
    labels, folds = rng.integers(0, 3, 70), rng.integers(0, 4, 70)
    shuffled = shuffle_labels(labels, np.arange(70), folds, rng)
    for fold in range(4):
        expected = np.sort(labels[folds == fold])
        assert (np.sort(shuffled[:, folds == fold], axis=1) == expected).all()
    assert (shuffled != labels).any(axis=1).all()


def test_shuffled_and_resampled_groups_stay_together(rng):
    groups = np.repeat(np.arange(20), 3)
    labels = groups % 2
    shuffled = shuffle_labels(labels, groups, np.zeros(60), rng).reshape(-1, 20, 3)
    weights = resample(labels, groups, rng).reshape(-1, 20, 3)
    for grouped in (shuffled, weights):
        assert (grouped == grouped[..., :1]).all()
    assert (weights[:, ::2, 0].sum(axis=1) == 10).all()  # each class as many groups as there are


def test_groups_of_several_labels_exchange_them_within(rng):
    labels, groups = np.tile([0, 0, 1], 30), np.repeat(np.arange(30), 3)
    groups, labels = groups[order := rng.permutation(90)], labels[order]
    shuffled = shuffle_labels(labels, groups, np.zeros(90), rng)
    for group in range(30):
        own = shuffled[:, groups == group]
        assert (own.sum(axis=1) == 1).all()  # each keeps its labels
        assert set(own.argmax(axis=1)) == {0, 1, 2}  # and any of its images may have any
    mixed = groups < 15
    labels = np.where(mixed, labels, groups % 2)
    shuffled = shuffle_labels(labels, groups, np.zeros(90), rng)
    pure = shuffled[:, ~mixed][:, np.argsort(groups[~mixed], kind="stable")].reshape(-1, 15, 3)
    assert (pure == pure[..., :1]).all()
    assert (pure[..., 0].sum(axis=1) == 8).all()  # groups 15, 17, … 29
    # Noise is within the null, and the null is within chance.
    found = predict(
        rng.normal(size=(90, 3)), prepare(np.tile([0, 1, 1], 30), np.repeat(np.arange(30), 3))
    )
    assert found.low < 0.5 < found.null_high < 0.75


def test_a_known_signal_is_measured_and_noise_is_not_above_its_null(rng):
    labels = np.arange(400) % 2
    trial = prepare(labels, np.arange(400))
    above = 0
    for _ in range(8):
        noise = predict(rng.normal(size=(400, 10)), trial)
        above += noise.low > noise.null_high
    assert above == 0  # expected once in some thousands
    # Two normal distributions one deviation apart: AUC = Φ(1 / √2) = 0.760.
    found = predict(rng.normal(size=(400, 1)) + labels[:, None], trial)
    assert found.low < 0.760 < found.high
    assert found.low > found.null_high
    assert abs(found.accuracy - 0.691) < 0.06  # Φ(1 / 2)


@pytest.mark.parametrize("labels", [np.zeros(40), np.r_[np.zeros(40), np.ones(9)]])
def test_too_few_groups_are_counted(labels):
    with pytest.raises(TooFewGroups, match="40"):
        prepare(labels, np.arange(len(labels)))
