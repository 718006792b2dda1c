import keras
import numpy as np
import pytest
from keras import layers
from lime.lime_image import LimeImageExplainer

from covid_lab.explain.lime import lime, segment


def linear_model(weights, bias=0.0):
    """One logit: Σ weights · image + bias, for grey images."""
    images = keras.Input((*weights.shape, 1))
    dense = layers.Dense(1)
    model = keras.Model(images, dense(layers.Flatten()(images)))
    dense.set_weights([weights.reshape(-1, 1).astype(np.float32), np.array([bias], np.float32)])
    return model


@pytest.fixture
def images(rng):
    blocks = rng.uniform(0, 255, (3, 4, 4, 1))
    return np.clip(
        np.kron(blocks, np.ones((1, 8, 8, 1))) + rng.normal(0, 6, (3, 32, 32, 1)), 0, 255
    )


@pytest.fixture
def network():
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((32, 32, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(6, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(1),
        ]
    )


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
    weights = np.zeros(segments.max() + 1)
    for superpixel, weight in found.local_exp[target]:
        weights[superpixel] = weight
    return weights, found.score


@pytest.mark.parametrize("target", [0, 1])
def test_weights_and_fit_are_the_librarys_on_equal_segments_and_seed(network, images, target):
    found = lime(network, images[:1], target, superpixels=16, samples=60, runs=1, seed=5)
    image = images[0].astype(np.float32)
    segments = segment(image, 16)
    weights, fit = library(network, image, segments, target, 60, 5)
    np.testing.assert_allclose(found.raw[0], weights[segments], atol=1e-5 * np.abs(weights).max())
    assert found.fit[0] == pytest.approx(fit, abs=1e-4)


def test_a_linear_model_is_found_with_its_weights(images, rng):
    # Of a linear model, switching a superpixel off costs Σ weights · (image − mean): the exact
    # coefficient, which the fit reaches but for the ridge's small pull towards zero.
    weights = rng.normal(0, 1e-2, (32, 32))
    model = linear_model(weights, bias=-3)
    found = lime(model, images, 1, superpixels=16, samples=800, runs=1)
    for image, raw in zip(images[..., 0], found.raw, strict=True):
        segments = segment(image[..., None], 16)
        exact = np.array(
            [
                (weights * (image - image[segments == k].mean()))[segments == k].sum()
                for k in range(segments.max() + 1)
            ]
        )
        np.testing.assert_allclose(raw, exact[segments], atol=0.05 * np.abs(exact).max())
    assert (found.fit > 0.99).all()


def test_class_0_is_minus_class_1(network, images):
    first, second = (lime(network, images, target, 16, 40) for target in (0, 1))
    np.testing.assert_allclose(first.raw, -second.raw, atol=1e-5 * np.abs(first.raw).max())
    np.testing.assert_allclose(first.scores, -second.scores, rtol=1e-5)


def test_several_logits_have_a_score_each(images):
    keras.utils.set_random_seed(0)
    three = keras.Sequential([keras.Input((32, 32, 1)), layers.Flatten(), layers.Dense(3)])
    kernel, bias = three.layers[-1].get_weights()
    second = linear_model(kernel[:, 1].reshape(32, 32), bias[1])
    np.testing.assert_allclose(
        lime(three, images, 1, 16, 40).raw,
        lime(second, images, 1, 16, 40).raw,
        rtol=1e-3,
        atol=1e-3,
    )


def test_an_image_has_the_same_map_alone_and_in_any_batch(network, images):
    together = lime(network, images, "predicted", 16, 30, batch_size=7)
    for image, raw, target in zip(images, together.raw, together.target, strict=True):
        alone = lime(network, image[None], int(target), 16, 30, batch_size=32)
        np.testing.assert_allclose(alone.raw[0], raw, atol=1e-5 * np.abs(raw).max())


def test_more_samples_make_runs_agree_and_one_run_says_nothing_of_it(network, images):
    few, many = (lime(network, images, 1, 16, samples).stability.mean() for samples in (20, 600))
    assert few < many
    assert many > 0.9
    assert np.isnan(lime(network, images, 1, 16, 20, runs=1).stability).all()


def test_the_seed_decides_the_samples(network, images):
    one, again, other = (lime(network, images, 1, 16, 30, seed=seed).raw for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_score_that_nothing_changes_gives_a_blank_map_with_its_reason(images):
    found = lime(linear_model(np.zeros((32, 32)), bias=2), images, 1, 16, 20)
    assert (found.status == "no change").all()
    assert not found.maps.any()
    assert np.isnan(found.stability).all()


def test_superpixels_cover_the_image_numbered_from_0_without_gaps(images):
    colour = np.repeat(images[0], 3, axis=-1)
    for image in (images[0], colour, np.full((32, 32, 1), 90)):
        segments = segment(image, 16)
        assert segments.shape == (32, 32)
        assert set(np.unique(segments)) == set(range(segments.max() + 1))
    assert 10 <= segment(images[0], 16).max() + 1 <= 22


def test_superpixels_follow_the_edges_of_an_image():
    image = np.zeros((32, 32, 1))
    image[:, 13:] = 255
    segments = segment(image, 16)
    assert not set(np.unique(segments[:, :13])) & set(np.unique(segments[:, 13:]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"samples": 1}, "samples is 1"),
        ({"runs": 0}, "runs 0"),
        ({"superpixels": 1}, "superpixels is 1"),
    ],
)
def test_arguments_out_of_range_are_refused(network, images, arguments, words):
    with pytest.raises(ValueError, match=words):
        lime(network, images, 1, **arguments)


def test_two_channels_are_refused(rng):
    model = keras.Sequential([keras.Input((8, 8, 2)), layers.Flatten(), layers.Dense(1)])
    with pytest.raises(ValueError, match="2 colour channels"):
        lime(model, rng.uniform(0, 255, (1, 8, 8, 2)), 1)


def test_no_images_give_no_maps(network):
    assert lime(network, np.zeros((0, 32, 32, 1)), 1).maps.shape == (0, 32, 32)
