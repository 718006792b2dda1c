"""Randomised weights, and the similarity of maps."""

import itertools
import random

import keras
import numpy as np
import pytest
from keras import layers
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity

from covid_lab.explain.gradcam import grad_cam
from covid_lab.explain.gradients import saliency
from covid_lab.explain.heatmaps import Heatmaps
from covid_lab.explain.quality.sanity import blocks, randomisations
from covid_lab.explain.quality.similarities import (
    rank_correlation,
    similarity,
    similarity_of_pairs,
    ssim,
)
from covid_project.models import baseline_cnn
from covid_project.normalization import normalization_layer

SIZE = 16


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, SIZE, SIZE, 1), dtype=np.uint8)


@pytest.fixture
def model(images):
    """The baseline with weights that no initialiser gives."""
    keras.utils.set_random_seed(2)
    model = baseline_cnn(SIZE, normalization_layer("dataset", images), filters=2, dropout=0.2)
    rng = np.random.default_rng(4)
    for layer in model.layers:
        if layer.weights and not isinstance(layer, layers.Normalization):
            layer.set_weights([w + rng.uniform(0.1, 0.3, w.shape) for w in layer.get_weights()])
    return model


def heatmaps_of(raw):
    count = len(raw)
    target, scores = np.ones(count, np.int32), np.zeros(count, np.float32)
    return Heatmaps.from_raw("pixels", raw.astype(np.float32), scores, target, {})


def test_similarities_agree_with_the_libraries_at_the_common_size(rng):
    first, second = rng.normal(size=(2, 3, 64, 64)).astype(np.float32)
    second += first
    found = similarity(heatmaps_of(first), heatmaps_of(second))
    for n in range(3):
        shown = [np.maximum(raw[n], 0) / raw[n].max() for raw in (first, second)]
        _, everywhere = structural_similarity(
            *shown, data_range=1, gaussian_weights=True, use_sample_covariance=False, full=True
        )
        inside = everywhere[5:-5, 5:-5]  # where the window of 11 places lies in the map
        np.testing.assert_allclose(found["SSIM"][n], inside.mean(), rtol=1e-3)
        expected = spearmanr(abs(first[n]).ravel(), abs(second[n]).ravel())[0]
        np.testing.assert_allclose(found["rank correlation"][n], expected, rtol=1e-6)
        expected = spearmanr(first[n].ravel(), second[n].ravel())[0]
        np.testing.assert_allclose(found["signed rank correlation"][n], expected, rtol=1e-6)


def test_ties_are_ranked_as_scipy_ranks_them(rng):
    first, second = rng.integers(0, 3, (2, 2, 64, 64)).astype(np.float32)
    for n, found in enumerate(rank_correlation(first, second)):
        expected = spearmanr(first[n].ravel().astype(float), second[n].ravel())[0]
        np.testing.assert_allclose(found, expected, atol=1e-7)


def test_larger_maps_shrink_without_losing_what_lies_between_the_places(rng):
    coarse = rng.random((2, 8, 8), np.float32)
    small, large = (np.kron(coarse, np.ones((1, k, k), np.float32)) for k in (8, 24))
    assert ssim(large, small).min() > 0.9  # its edges are softened
    assert rank_correlation(large, small).min() > 0.97
    # One place in two would be all or nothing; their means are the same everywhere.
    board = (np.indices((1, 128, 128)).sum(axis=0) % 2).astype(np.float32)
    np.testing.assert_allclose(ssim(board, np.ones((1, 128, 128))), 1, atol=0.02)


@pytest.mark.parametrize("side", [4, 7, 64, 200])
def test_a_map_is_like_itself_and_evidence_that_changes_sides_is_its_opposite(rng, side):
    raw = rng.normal(size=(3, side, side))
    same = similarity(heatmaps_of(raw), heatmaps_of(raw))
    opposite = similarity(heatmaps_of(raw), heatmaps_of(-raw))
    for values in same.values():
        np.testing.assert_allclose(values, 1)
    np.testing.assert_allclose(opposite["rank correlation"], 1)
    np.testing.assert_allclose(opposite["signed rank correlation"], -1)


def test_blank_maps_have_no_ssim_and_constant_ones_no_ranks():
    raw = np.stack([np.eye(8), -np.eye(8), np.zeros((8, 8))])
    found = similarity(heatmaps_of(raw), heatmaps_of(np.repeat(np.eye(8)[None], 3, axis=0)))
    assert np.isnan(found["SSIM"]).tolist() == [False, True, True]  # the second is all negative
    assert np.isnan(found["signed rank correlation"]).tolist() == [False, False, True]


def test_the_reference_is_the_mean_over_pairs_of_different_images(rng):
    raw = rng.normal(size=(5, 64, 64))
    raw[4] = 0
    found = similarity_of_pairs(heatmaps_of(raw))
    pairs = list(itertools.combinations(range(4), 2))
    one, other = (raw[[pair[side] for pair in pairs]] for side in (0, 1))
    for name, values in similarity(heatmaps_of(one), heatmaps_of(other)).items():
        np.testing.assert_allclose(found[name], values.mean(), atol=1e-5)


def test_fifty_pairs_are_drawn_without_repetition(monkeypatch):
    raw = np.arange(1, 21)[:, None, None] * np.ones((20, 64, 64))
    drawn = []

    def note(first, second):
        drawn.append(list(zip(first[:, 0, 0], second[:, 0, 0], strict=True)))
        return np.zeros(len(first))

    monkeypatch.setattr("covid_lab.explain.quality.similarities.rank_correlation", note)
    similarity_of_pairs(heatmaps_of(raw), seed=1)
    pairs = {frozenset(pair) for pair in drawn[0]}
    assert len(pairs) == len(drawn[0]) == 50
    assert all(len(pair) == 2 for pair in pairs)
    similarity_of_pairs(heatmaps_of(raw), seed=2)
    assert drawn[-1] != drawn[0]


# Randomisation


def test_blocks_hold_every_layer_with_weights_once_from_the_logit_down(model):
    found = blocks(model, 5)
    names = list(itertools.chain(*found))
    weighted = [layer.name for layer in model.layers if layer.weights]
    assert names == [name for name in reversed(weighted) if name != "normalization"]
    assert len(found) == 5
    assert found[0] == ["logit"]
    assert max(map(len, found[1:])) - min(map(len, found[1:])) <= 1


def test_a_small_model_has_as_many_blocks_as_layers():
    a, b = layers.Dense(2, name="a"), layers.Dense(1, name="b")
    assert blocks(keras.Sequential([keras.Input((4,)), a])) == [["a"]]
    assert blocks(keras.Sequential([keras.Input((4,)), a, layers.ReLU(), b])) == [["b"], ["a"]]


def weights_after(model, groups, seed=0):
    """Order, name and weights by layer at each step."""
    return [
        (order, name, {layer.name: layer.get_weights() for layer in copy.layers if layer.weights})
        for order, name, copy in randomisations(model, groups, seed)
    ]


def test_groups_start_again_one_after_the_other_and_then_each_alone(model):
    groups = blocks(model, 4)
    before = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    steps = weights_after(model, groups)
    assert [order for order, *_ in steps] == 4 * ["cascading"] + 4 * ["independent"]
    assert [name for _, name, _ in steps[:4]] == [f"{k} {g[-1]}" for k, g in enumerate(groups, 1)]
    fresh = steps[3][2]
    sets = [list(itertools.chain(*groups[: k + 1])) for k in range(4)] + groups
    for (_, _, weights), chosen in zip(steps, sets, strict=True):
        for name, found in weights.items():
            expected = fresh if name in chosen else before
            for one, other, old in zip(found, expected[name], before[name], strict=True):
                assert one.tobytes() == other.tobytes()
                assert name not in chosen or not np.isclose(one, old).any()
    for layer in model.layers:  # the given model is left alone
        for one, old in zip(layer.get_weights(), before.get(layer.name, []), strict=True):
            assert one.tobytes() == old.tobytes()


def test_the_seed_alone_decides_the_new_weights_and_nobody_elses_chance_is_touched(model):
    random.seed(11)
    expected = random.random()
    random.seed(11)
    first, more, other = (
        weights_after(model, groups, seed)[0][2]["logit"][0]
        for groups, seed in (([["logit"]], 3), ([["logit", "dense"]], 3), ([["logit"]], 4))
    )
    assert random.random() == expected
    np.testing.assert_array_equal(first, more)
    assert not np.isclose(first, other).any()


@pytest.mark.parametrize("method", [grad_cam, saliency])
def test_what_was_compiled_for_a_model_sees_its_new_weights(images, method):
    """One model's weights change from step to step; a new model with them must say the same."""
    model = keras.Sequential([
        keras.Input((SIZE, SIZE, 1)), layers.Rescaling(1 / 255),
        layers.Conv2D(4, 3, strides=2, activation="relu"), layers.Flatten(), layers.Dense(1),
    ])  # fmt: skip
    trained = method(model, images, 1)
    for _, _, copy in itertools.islice(randomisations(model, blocks(model)), 2):
        fresh = keras.models.clone_model(copy)
        fresh.set_weights(copy.get_weights())
        found, expected = method(copy, images, 1), method(fresh, images, 1)
        np.testing.assert_allclose(found.raw, expected.raw, rtol=1e-3, atol=1e-6)
        assert not np.allclose(found.scores, trained.scores, rtol=0.01)
