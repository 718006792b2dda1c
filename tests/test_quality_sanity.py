"""Sanity and stability, and the similarity that both rest on."""

import itertools
import random

import keras
import numpy as np
import pytest
from keras import layers
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity

from covid_lab.explain.gradcam import grad_cam
from covid_lab.explain.gradients import integrated_gradients, saliency
from covid_lab.explain.heatmaps import Heatmaps
from covid_lab.explain.quality import (
    across_seeds,
    blocks,
    noisy,
    randomisations,
    randomised,
    rank_correlation,
    similarity,
    similarity_of_pairs,
    ssim,
    under_noise,
)
from covid_project.models import baseline_cnn
from covid_project.normalization import normalization_layer

SIZE = 32


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(2)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (5, SIZE, SIZE, 1), dtype=np.uint8)


@pytest.fixture
def model(images):
    """The baseline with weights that no initialiser gives."""
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


# Similarity


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


@pytest.mark.parametrize("count", [0, 1])
def test_without_two_images_there_is_no_reference(count):
    found = similarity_of_pairs(heatmaps_of(np.ones((count, 4, 4))))
    assert all(np.isnan(value) for value in found.values())


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
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="a")])
    assert blocks(model) == [["a"]]
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(2, name="a"), layers.ReLU(), layers.Dense(1, name="b")]
    )
    assert blocks(model) == [["b"], ["a"]]


def test_named_layers_start_anew_and_all_others_keep_their_weights_byte_for_byte(model):
    before = [weight.copy() for weight in model.get_weights()]
    chosen = ["logit", "stage2_1_convolution", "stage2_1_norm"]
    copy = randomised(model, chosen, seed=1)
    for layer in model.layers:
        new = copy.get_layer(layer.name).get_weights()
        for old, weight in zip(layer.get_weights(), new, strict=True):
            if layer.name in chosen:
                assert not np.isclose(old, weight).any()
            else:
                assert old.tobytes() == weight.tobytes()
    for old, weight in zip(before, model.get_weights(), strict=True):
        assert old.tobytes() == weight.tobytes()


def test_layers_start_by_their_own_initialisers():
    inputs = keras.Input((8, 8, 20))
    x = layers.Conv2D(60, 3, kernel_initializer="he_normal", bias_initializer="ones")(inputs)
    x = layers.BatchNormalization(gamma_initializer="zeros")(x)
    x = layers.DepthwiseConv2D(3)(x)
    x = layers.Dense(1, kernel_initializer=keras.initializers.Constant(0.25))(layers.Flatten()(x))
    model = keras.Model(inputs, x)
    model.set_weights([weight + 5 for weight in model.get_weights()])
    convolution, norm, depthwise, dense = (
        layer.get_weights()
        for layer in randomised(model, [*itertools.chain(*blocks(model))]).layers
        if layer.weights
    )
    deviation = np.sqrt(2 / (9 * 20))  # He et al. 2015, equation 10
    np.testing.assert_allclose(convolution[0].std(), deviation, rtol=0.05)
    assert np.abs(convolution[0]).max() < 2.3 * deviation  # a truncated normal
    np.testing.assert_array_equal(convolution[1], 1)
    for weight, value in zip(norm, (0, 0, 0, 1), strict=True):  # scale, offset, mean, variance
        np.testing.assert_array_equal(weight, value)
    assert 0 < np.abs(depthwise[0]).max() < 1
    np.testing.assert_array_equal(dense[0], 0.25)
    np.testing.assert_array_equal(dense[1], 0)


def test_the_seed_alone_decides_the_new_weights_and_nobody_elses_chance_is_touched(model):
    random.seed(11)
    expected = random.random()
    random.seed(11)
    first = randomised(model, ["logit"], seed=3).get_layer("logit").get_weights()[0]
    assert random.random() == expected
    more = randomised(model, ["logit", "dense"], seed=3).get_layer("logit").get_weights()[0]
    other = randomised(model, ["logit"], seed=4).get_layer("logit").get_weights()[0]
    np.testing.assert_array_equal(first, more)
    assert not np.isclose(first, other).any()


def test_a_layer_that_is_not_there_is_refused(model):
    with pytest.raises(ValueError, match=r"no layers with weights \['dropout', 'top'\].*'logit'"):
        randomised(model, ["top", "dropout", "logit"])


def test_an_input_without_a_name_is_no_hindrance():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(1, name="b")(layers.Dense(2, name="a")(inputs)))
    copy = randomised(model, ["b"])
    np.testing.assert_array_equal(
        copy.get_layer("a").get_weights()[0], model.get_layer("a").get_weights()[0]
    )


def test_randomisations_cascade_and_then_take_each_group_alone(model):
    groups = blocks(model, 4)
    steps = [
        (order, name, copy.get_weights()) for order, name, copy in randomisations(model, groups)
    ]
    assert [order for order, *_ in steps] == 4 * ["cascading"] + 4 * ["independent"]
    assert [name for _, name, _ in steps[:4]] == [f"{k} {g[-1]}" for k, g in enumerate(groups, 1)]
    sets = [list(itertools.chain(*groups[: k + 1])) for k in range(4)] + groups
    for (_, _, weights), layer_names in zip(steps, sets, strict=True):
        for weight, expected in zip(
            weights, randomised(model, layer_names).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize("method", [grad_cam, saliency, integrated_gradients])
def test_what_was_compiled_for_a_model_sees_its_new_weights(images, method):
    """One model's weights change from step to step; a new model with them must say the same."""
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    trained = method(model, images, 1)
    for _, _, copy in itertools.islice(randomisations(model, blocks(model)), 2):
        fresh = keras.models.clone_model(copy)
        fresh.set_weights(copy.get_weights())
        found, expected = method(copy, images, 1), method(fresh, images, 1)
        np.testing.assert_allclose(found.raw, expected.raw, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
        assert not np.allclose(found.scores, trained.scores, rtol=0.01)


# Stability


def test_noise_has_the_stated_deviation_and_keeps_to_the_range():
    images = np.full((4, 50, 50, 1), 128, np.uint8)
    images[3] = 0
    found = noisy(images, 6, seed=1)
    assert abs(found[:3].std() - 6) < 0.2
    assert found.min() == 0
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, noisy(images, 6, seed=1))
    assert (found != noisy(images, 6, seed=2)).any()
    np.testing.assert_array_equal(noisy(images, 0), images)
    with pytest.raises(ValueError, match="deviation is -1"):
        noisy(images, -1)


def test_without_noise_and_with_the_same_model_maps_stay(model, images):
    found = grad_cam(model, images, 1)
    shown = found.status == "ok"
    assert shown.any()
    for values in (
        under_noise(grad_cam, model, images, found, 0),
        across_seeds(grad_cam, randomised(model, []), images, found),
    ):
        for value in values.values():
            np.testing.assert_allclose(value[shown], 1, atol=1e-3)


def test_the_saliency_of_a_linear_model_minds_no_noise_and_a_curved_ones_does(model, images):
    linear = keras.Sequential(
        [keras.Input((SIZE, SIZE, 1)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(1)]
    )
    still = under_noise(saliency, linear, images, saliency(linear, images, 1), 20)
    np.testing.assert_allclose(still["SSIM"], 1, atol=1e-4)
    moved = under_noise(saliency, model, images, saliency(model, images, 1), 20)
    assert moved["SSIM"].max() < 0.999


def test_the_class_explained_is_that_of_the_given_heatmaps(model, images):
    asked = []

    def method(model, images, target):
        asked.append(target)
        return heatmaps_of(np.ones((len(images), 4, 4)))

    heatmaps = grad_cam(model, images, [0, 1, 0, 1, 1])
    under_noise(method, model, images, heatmaps, 5)
    across_seeds(method, model, images, heatmaps)
    for target in asked:
        np.testing.assert_array_equal(target, [0, 1, 0, 1, 1])
