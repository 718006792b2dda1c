import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from covid_lab.explain.class_score import (
    PREDICTED,
    by_batches,
    checked,
    checked_images,
    class_score,
    image_variant_pairs,
    score_change,
)


def model(classes, shape=(4, 4, 1)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(inputs)))


@pytest.mark.parametrize(
    ("logits", "target", "classes", "scores"),
    [
        ([[2], [-3], [2], [-3]], [0, 0, 1, 1], [0, 0, 1, 1], [-2, 3, 2, -3]),
        ([[2], [-3], [0]], PREDICTED, [1, 0, 0], [2, 3, 0]),
        ([[2, 5, -1], [4, 0, 3]], [2, 0], [2, 0], [-1, 4]),
        ([[1, 4], [0, -1]], PREDICTED, [1, 0], [4, 0]),
        ([[1, 4], [0, -1]], 1, [1, 1], [4, -1]),
    ],
)
def test_the_score_is_the_logit_of_the_class_or_minus_the_only_logit(
    logits, target, classes, scores
):
    images = np.zeros((len(logits), 4, 4, 1))
    _, wanted = checked(model(len(logits[0])), images, target)
    found, explained = class_score(tf.constant(logits, tf.float16), tf.constant(wanted))
    np.testing.assert_array_equal(explained, classes)
    np.testing.assert_array_equal(found, scores)
    assert found.dtype == tf.float32


@pytest.mark.parametrize(
    ("classes", "target"), [(1, 2), (1, -1), (3, 3), (3, 0.5), (1, "covid"), (3, [0, 7])]
)
def test_a_class_that_the_model_does_not_have_is_refused(classes, target):
    with pytest.raises(ValueError, match=r"not a class of this model.*0 to"):
        checked(model(classes), np.zeros((2, 4, 4, 1)), target)
    with pytest.raises(ValueError, match=r"expected one class or \(2,\)"):
        checked(model(classes), np.zeros((2, 4, 4, 1)), [0, 0, 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_images_in_range_pass_black_ones_and_none_too(dtype):
    for images in (np.full((2, 4, 4, 1), 255, dtype), np.zeros((1, 4, 4, 1), dtype)):
        assert checked_images(model(1), images) is images
    assert checked_images(model(1), np.zeros((0, 4, 4, 1), dtype)).shape == (0, 4, 4, 1)
    any_size = np.zeros((2, 6, 3, 1))
    assert checked_images(model(1, (None, None, 1)), any_size) is any_size


@pytest.mark.parametrize(
    "shape", [(2, 8, 4, 1), (2, 4, 4, 3), (4, 4, 1)], ids=["height", "colours", "one image"]
)
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(4, 4, 1\)"):
        checked_images(model(1), np.zeros(shape))


@pytest.mark.parametrize("wrong", [np.nan, -np.inf])
def test_images_that_are_not_finite_are_named(wrong):
    images = np.zeros((5, 4, 4, 1))
    images[[1, 3], 2, 2] = wrong
    with pytest.raises(ValueError, match=r"\[1, 3\]"):
        checked_images(model(1), images)


@pytest.mark.parametrize("values", [(-1, 200), (0, 256), (0.0, 1.0)])
def test_images_of_another_range_are_refused(values):
    with pytest.raises(ValueError, match=r"expected 0\.\.255.*Rescaling"):
        checked_images(model(1), np.resize(values, (2, 4, 4, 1)))


def test_batches_are_joined_and_an_empty_one_keeps_its_shape():
    sizes = []

    def double(images, target):
        sizes.append(len(images))
        return {"twice": 2 * images, "both": (target, images.sum(axis=(1, 2, 3)))}

    images = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2, 1)
    found = by_batches(double, images, np.arange(5), 2)
    assert sizes == [2, 2, 1]
    np.testing.assert_array_equal(found["twice"], 2.0 * images)
    np.testing.assert_array_equal(found["both"][0], np.arange(5))
    assert by_batches(double, images[:0], np.arange(0), 2)["twice"].shape == (0, 2, 2, 1)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_pairs_are_all_variants_of_all_images_in_order(batch_size):
    passes = list(image_variant_pairs(3, 5, batch_size))
    image, variant = (np.concatenate(part) for part in zip(*passes, strict=True))
    np.testing.assert_array_equal(image, np.repeat(np.arange(3), 5))
    np.testing.assert_array_equal(variant, np.tile(np.arange(5), 3))
    assert all(len(indices) == min(batch_size, 15) for indices, _ in passes[:-1])


def test_scores_that_differ_by_rounding_alone_have_not_changed():
    others = np.array([5.0, 5, 5, 0, -1000], np.float32)
    scores = np.array([5.000001, 5.1, 5, 1e-5, -1000.0005], np.float32)
    np.testing.assert_allclose(score_change(scores, others), [0, 0.1, 0, 1e-5, 0], rtol=1e-4)
    assert np.isnan(score_change([np.nan], [1.0])).all()
