"""What is explained: the score of a class, for images and targets that have been checked.

A scalar output needs one care: with a single logit z, the score of class 1 is z and the score of
class 0 is -z, so the evidence for one class is exactly the evidence against the other.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from covid_lab.explain.network import fold_normalization

PREDICTED = "predicted"
ROUNDING = 1e-6  # of a score in float32, with some room
_ANY = -1  # stands for the predicted class among class indices

# Keeps what was compiled for the last models: tracing a large backbone takes seconds. Weights are
# read at each call, so that the same model with other weights need not be traced again.
keep_compiled = lru_cache(maxsize=8)


def class_score(logits: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Scores (N,) float32 of the target classes, and these classes (N,) int32.

    The score is the class's logit, or ±z where z is the only one. Logits have shape (N, 1) or
    (N, K); targets come from `checked_target`, and the predicted class is filled in here.
    """
    logits = tf.cast(logits, tf.float32)
    if logits.shape[-1] == 1:
        z = logits[:, 0]
        target = tf.where(target == _ANY, tf.cast(z > 0, tf.int32), target)
        return tf.where(target == 1, z, -z), target
    predicted = tf.argmax(logits, axis=-1, output_type=tf.int32)
    target = tf.where(target == _ANY, predicted, target)
    return tf.gather(logits, target, batch_dims=1), target


@keep_compiled
def score_function(model: keras.Model) -> Callable:
    """Compile (images (N, H, W, C) float32, target (N,)) → scores (N,), target (N,).

    The model ends in logits; dropout is off and batch normalisation at its moving statistics.
    """
    network = fold_normalization(model)

    @tf.function(input_signature=batch_signature(model))
    def score(images, target):
        return class_score(network(images, training=False), target)

    return score


def score_change(scores: ArrayLike, others: ArrayLike) -> np.ndarray:
    """`scores` − `others`, (P,) float32; 0 where they differ by no more than rounding.

    The same image can have scores that differ in their last digits in batches of another size, and
    a map of such differences, once normalised, would look like evidence.
    """
    scores, others = np.asarray(scores), np.asarray(others)
    change = scores - others
    return np.where(np.abs(change) <= ROUNDING * (1 + np.abs(others)), 0, change)


def batch_signature(model: keras.Model) -> list[tf.TensorSpec]:
    """What a compiled function of images and targets takes, for any number of images."""
    # The batch size is left open, so that the last, smaller batch runs the same compiled graph.
    return [
        tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32),
        tf.TensorSpec((None,), tf.int32),
    ]


def checked_images(model: keras.Model, images: ArrayLike) -> np.ndarray:
    """The images as an array (N, H, W, C), after a look at their shape and values.

    Raises
    ------
    ValueError : for a shape that the model does not take, values that are not finite, lie outside
        0..255, or are fractions that never exceed 1: images that somebody has already scaled.
    """
    images, image_shape = np.asarray(images), model.inputs[0].shape[1:]
    if images.ndim != 1 + len(image_shape) or any(
        wanted not in (None, found)
        for wanted, found in zip(image_shape, images.shape[1:], strict=True)
    ):
        raise ValueError(
            f"Images have shape {images.shape}; this model takes (N, H, W, channels) with "
            f"(H, W, channels) = {image_shape}."
        )
    low, high = images.min(initial=255), images.max(initial=0)  # NaN, where there is one
    if not np.isfinite([low, high]).all():
        bad = [i for i, image in enumerate(images) if not np.isfinite(image).all()]
        raise ValueError(f"Images {bad} hold NaN or infinite values; leave them out.")
    scaled = np.issubdtype(images.dtype, np.floating) and 0 < high <= 1
    if low < 0 or high > 255 or scaled:
        raise ValueError(
            f"Image values lie in {low:g}..{high:g}; expected 0..255. Where a model takes another "
            "range, put a layer in front of it that converts (keras.layers.Rescaling)."
        )
    return images


def checked_target(model: keras.Model, target: ArrayLike, count: int) -> np.ndarray:
    """The classes to explain, (count,) int32, for a model that ends in logits.

    Parameters
    ----------
    target : one class index, `count` of them, or "predicted". A model with one logit has the
        classes 0 and 1.

    Raises
    ------
    ValueError : for a class that the model has not, or another number of classes than `count`.
    """
    if isinstance(target, str) and target == PREDICTED:
        return np.full(count, _ANY, np.int32)
    indices, classes = np.asarray(target), max(model.outputs[0].shape[-1], 2)
    if indices.shape not in ((), (count,)):
        raise ValueError(f"Target has shape {indices.shape}; expected one class or ({count},).")
    allowed = np.isin(indices, np.arange(classes))
    if not allowed.all():
        raise ValueError(
            f"Target {np.unique(indices[~allowed]).tolist()} is not a class of this model; its "
            f"classes are 0 to {classes - 1}, or '{PREDICTED}'."
        )
    return np.broadcast_to(indices, (count,)).astype(np.int32)


def by_batches(
    function: Callable, images: np.ndarray, target: np.ndarray, batch_size: int
) -> tuple | dict:
    """What `function(images, target)` gives for all images, computed `batch_size` at a time.

    The function takes float32 images and gives a nest of arrays (N, …), which are joined along N.
    """
    count = len(images)
    if count == 0:  # TensorFlow's fused kernels refuse empty batches: one image stands in
        images, target = np.zeros((1, *images.shape[1:])), np.zeros(1, np.int32)
    parts = [
        function(images[batch].astype(np.float32), target[batch])
        for batch in (
            slice(start, start + batch_size) for start in range(0, len(images), batch_size)
        )
    ]
    return tf.nest.map_structure(lambda *arrays: np.concatenate(arrays)[:count], *parts)


def image_variant_pairs(
    images: int, variants: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices (image, variant) of every variant of every image, `batch_size` pairs at a time.

    All passes but the last are full, for one image with many variants as for many images.
    """
    pairs = images * variants
    for start in range(0, pairs, batch_size):
        yield np.divmod(np.arange(start, min(start + batch_size, pairs)), variants)
