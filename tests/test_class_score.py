import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from covid_lab.explain.class_score import (
    PREDICTED,
    by_batches,
    checked_images,
    checked_target,
    class_score,
    image_variant_pairs,
    score_change,
)


def model(classes, shape=(4, 4, 1)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(inputs)))


def test_the_score_is_the_logit_with_the_sign_of_the_class():
    logits = tf.constant([[2.0], [-3.0], [2.0], [-3.0]])
    scores, target = class_score(logits, tf.constant([0, 0, 1, 1]))
    np.testing.assert_array_equal(scores, [-2, 3, 2, -3])
    np.testing.assert_array_equal(target, [0, 0, 1, 1])


def test_each_of_several_logits_is_a_score():
    logits = tf.constant([[2.0, 5.0, -1.0], [4.0, 0.0, 3.0]], tf.float16)
    scores, _ = class_score(logits, tf.constant([2, 0]))
    np.testing.assert_array_equal(scores, [-1, 4])
    assert scores.dtype == tf.float32


@pytest.mark.parametrize(
    ("logits", "classes", "scores"),
    [([[2.0], [-3.0], [0.0]], [1, 0, 0], [2, 3, 0]), ([[1.0, 4.0], [0.0, -1.0]], [1, 0], [4, 0])],
)
def test_the_predicted_class_has_the_largest_score(logits, classes, scores):
    wanted = checked_target(model(len(logits[0])), PREDICTED, len(logits))
    found, target = class_score(tf.constant(logits), tf.constant(wanted))
    np.testing.assert_array_equal(target, classes)
    np.testing.assert_array_equal(found, scores)


def test_one_class_stands_for_all_images():
    found = checked_target(model(3), 2, 4)
    np.testing.assert_array_equal(found, [2, 2, 2, 2])
    assert found.dtype == np.int32


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_images_in_range_pass_black_ones_and_none_too(dtype):
    for images in (np.full((2, 4, 4, 1), 255, dtype), np.zeros((1, 4, 4, 1), dtype)):
        assert checked_images(model(1), images) is images
    assert checked_images(model(1), np.zeros((0, 4, 4, 1), dtype)).shape == (0, 4, 4, 1)


def test_a_model_of_any_size_takes_images_of_any_size():
    images = np.zeros((2, 6, 3, 1))
    assert checked_images(model(1, (None, None, 1)), images) is images
    with pytest.raises(ValueError, match=r"\(None, None, 1\)"):
        checked_images(model(1, (None, None, 1)), np.zeros((2, 6, 3, 3)))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite_are_named(wrong):
    images = np.zeros((5, 4, 4, 1))
    images[[1, 3], 2, 2] = wrong
    with pytest.raises(ValueError, match=r"\[1, 3\]"):
        checked_images(model(1), images)


@pytest.mark.parametrize("values", [(-1, 200), (0, 256), (0.0, 1.0), (0.2, 0.9)])
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
    assert found["twice"].dtype == np.float32
    np.testing.assert_array_equal(found["both"][0], np.arange(5))
    assert by_batches(double, images[:0], np.arange(0), 2)["twice"].shape == (0, 2, 2, 1)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_pairs_are_all_variants_of_all_images_in_order(batch_size):
    passes = list(image_variant_pairs(3, 5, batch_size))
    image, variant = (np.concatenate(part) for part in zip(*passes, strict=True))
    np.testing.assert_array_equal(image, np.repeat(np.arange(3), 5))
    np.testing.assert_array_equal(variant, np.tile(np.arange(5), 3))
    assert all(len(indices) == min(batch_size, 15) for indices, _ in passes[:-1])
    assert not list(image_variant_pairs(0, 5, batch_size))


def test_scores_that_differ_by_rounding_alone_have_not_changed():
    others = np.array([5.0, 5, 5, 0, -1000], np.float32)
    scores = np.array([5.000001, 5.1, 5, 1e-5, -1000.0005], np.float32)
    found = score_change(scores, others)
    np.testing.assert_allclose(found, [0, 0.1, 0, 1e-5, 0], rtol=1e-4)
    assert found.dtype == np.float32
    assert np.isnan(score_change([np.nan], [1.0])).all()
