"""LIME against the library itself and against a linear model's exact weights."""

import keras
import numpy as np
import pytest
from keras import layers
from lime.lime_image import LimeImageExplainer

from covid_lab.explain.lime import lime, segment


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.uniform(0, 255, (2, 4, 4, 1)), np.ones((1, 8, 8, 1)))
    return np.clip(blocks + rng.normal(0, 6, blocks.shape), 0, 255)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(3)
    return keras.Sequential([
        keras.Input((32, 32, 1)), layers.Rescaling(1 / 255),
        layers.Conv2D(6, 3, strides=2, activation="relu"),
        layers.GlobalAveragePooling2D(), layers.Dense(1),
    ])  # fmt: skip


def library(model, image, segments, target, samples, seed):
    """Weights (S,) and fit as the library finds them on two columns, from the colour image."""

    def two_columns(pictures):
        logit = np.asarray(model(pictures[..., :1].astype(np.float32)))[:, 0]
        return np.stack([-logit, logit], axis=1)

    found = LimeImageExplainer(random_state=seed).explain_instance(
        np.repeat(image, 3, axis=-1),
        two_columns,
        labels=(target,),
        top_labels=None,
        num_samples=samples,
        segmentation_fn=lambda _: segments,
        random_seed=0,
    )
    return np.array([weight for _, weight in sorted(found.local_exp[target])]), found.score


@pytest.mark.parametrize("target", [0, 1])
def test_weights_and_fit_are_the_librarys_on_equal_segments_and_seed(network, images, target):
    found = lime(network, images[:1], target, superpixels=16, samples=60, runs=1, seed=5)
    segments = segment(images[0], 16)
    weights, fit = library(network, images[0].astype(np.float32), segments, target, 60, 5)
    np.testing.assert_allclose(found.raw[0], weights[segments], atol=1e-5 * np.abs(weights).max())
    assert found.fit[0] == pytest.approx(fit, abs=1e-4)
    assert np.isnan(found.stability).all()  # of one run


def test_a_linear_model_is_found_with_its_weights(images):
    # Switching a superpixel off costs Σ weights · (image − mean): the exact coefficient, which the
    # fit reaches except for the ridge's small pull towards zero.
    weights = np.random.default_rng(1).normal(0, 1e-2, (32, 32))
    inputs = keras.Input((32, 32, 1))
    dense = layers.Dense(1)
    model = keras.Model(inputs, dense(layers.Flatten()(inputs)))
    dense.set_weights([weights.reshape(-1, 1), np.array([-3.0])])
    found = lime(model, images, 1, superpixels=16, samples=800, runs=1)
    for image, raw in zip(images[..., 0], found.raw, strict=True):
        segments = segment(image[..., None], 16)
        exact = np.array([
            (weights * (image - image[segments == k].mean()))[segments == k].sum()
            for k in range(segments.max() + 1)
        ])  # fmt: skip
        np.testing.assert_allclose(raw, exact[segments], atol=0.05 * np.abs(exact).max())
    assert (found.fit > 0.99).all()


def test_more_samples_make_runs_agree(network, images):
    few, many = (lime(network, images, 1, 16, samples).stability.mean() for samples in (20, 600))
    assert few < many
    assert many > 0.9


def test_superpixels_are_numbered_without_gaps_and_follow_edges(images):
    for image in (images[0], np.repeat(images[0], 3, axis=-1), np.full((32, 32, 1), 90)):
        segments = segment(image, 16)
        assert segments.shape == (32, 32)
        assert set(np.unique(segments)) == set(range(segments.max() + 1))
    assert 10 <= segment(images[0], 16).max() + 1 <= 22
    edge = np.zeros((32, 32, 1))
    edge[:, 13:] = 255
    segments = segment(edge, 16)
    assert not set(np.unique(segments[:, :13])) & set(np.unique(segments[:, 13:]))


def test_colours_are_explained_and_two_channels_refused(rng):
    for channels in (2, 3):
        layer = keras.Sequential([keras.Input((8, 8, channels)), layers.Flatten(), layers.Dense(1)])
        colours = rng.uniform(0, 255, (1, 8, 8, channels))
        if channels == 3:
            assert lime(layer, colours, 1, 4, 20).raw.any()
        else:
            with pytest.raises(ValueError, match="2 colour channels"):
                lime(layer, colours, 1)
