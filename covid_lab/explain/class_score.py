"""The score of a class, for images and targets that have been checked.

With a single logit z, the score of class 1 is z and the score of class 0 is −z: evidence for one
class is exactly the evidence against the other.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

PREDICTED = "predicted"
ROUNDING = 1e-6  # relative, of a score in float32, with some margin
_ANY = -1  # index of the predicted class, until it is known

# Caches what was compiled for the last models, because tracing a large backbone takes seconds.
# Weights are read at each call, so a model whose weights change is not traced again.
keep_compiled = lru_cache(maxsize=8)


def class_score(logits: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Scores of the target classes: the class's logit, or ±z where z is the only logit.

    Parameters
    ----------
    logits : tf.Tensor, (N, 1) or (N, K), float
        Outputs of a model that ends in logits.
    target : tf.Tensor, (N,), int32
        Classes from `checked`; "predicted" is resolved here.

    Returns
    -------
    scores : tf.Tensor, (N,), float32
        Scores of the classes.
    target : tf.Tensor, (N,), int32
        The classes.
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
    """Compile a function from images to class scores.

    Parameters
    ----------
    model : keras.Model
        Classifier that ends in logits. Its weights are read at each call.

    Returns
    -------
    callable
        (images (N, H, W, C) float32, target (N,) int32) → scores (N,), target (N,). Dropout is off,
        and batch normalisation uses its moving statistics.
    """

    @tf.function(input_signature=batch_signature(model))
    def score(images, target):
        return class_score(model(images, training=False), target)

    return score


def score_change(scores: ArrayLike, others: ArrayLike) -> np.ndarray:
    """Difference of scores, set to 0 where it does not exceed the rounding error.

    The same image can have scores that differ in their last digits in batches of another size. A
    normalised map of such differences would look like evidence.

    Parameters
    ----------
    scores : array_like, (P,), float32
        Scores.
    others : array_like, (P,), float32
        Scores to subtract.

    Returns
    -------
    np.ndarray, (P,), float32
        `scores` − `others`.
    """
    scores, others = np.asarray(scores), np.asarray(others)
    change = scores - others
    return np.where(np.abs(change) <= ROUNDING * (1 + np.abs(others)), 0, change)


def batch_signature(model: keras.Model) -> list[tf.TensorSpec]:
    """Input signature of a compiled function of images and targets, for any number of images.

    Parameters
    ----------
    model : keras.Model
        Model with one input.

    Returns
    -------
    list of tf.TensorSpec
        Images (None, H, W, C) float32 and targets (None,) int32.
    """
    # The batch size is left open, so that the last, smaller batch runs the same compiled graph.
    return [
        tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32),
        tf.TensorSpec((None,), tf.int32),
    ]


def checked(
    model: keras.Model, images: ArrayLike, target: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Return images and classes to explain as arrays after a check.

    Parameters
    ----------
    model : keras.Model
        Classifier that ends in logits. With one logit it has the classes 0 and 1.
    images : array_like, (N, H, W, C), uint8 or float, 0..255
        Images.
    target : int, array_like of int (N,), or "predicted"
        One class index, one per image, or the predicted class.

    Returns
    -------
    images : np.ndarray, (N, H, W, C)
        The images.
    target : np.ndarray, (N,), int32
        Class indices; −1 stands for the predicted class, see `class_score`.

    Raises
    ------
    ValueError
        The images are refused by `checked_images`, the model does not have a class, or the number
        of classes is neither 1 nor N.
    """
    images = checked_images(model, images)
    count = len(images)
    if isinstance(target, str) and target == PREDICTED:
        return images, np.full(count, _ANY, np.int32)
    indices, classes = np.asarray(target), max(model.outputs[0].shape[-1], 2)
    if indices.shape not in ((), (count,)):
        raise ValueError(f"Target has shape {indices.shape}; expected one class or ({count},).")
    allowed = np.isin(indices, np.arange(classes))
    if not allowed.all():
        raise ValueError(
            f"Target {np.unique(indices[~allowed]).tolist()} is not a class of this model; its "
            f"classes are 0 to {classes - 1}, or '{PREDICTED}'."
        )
    return images, np.broadcast_to(indices, (count,)).astype(np.int32)


def checked_images(model: keras.Model, images: ArrayLike) -> np.ndarray:
    """Return the images as an array after a check of their shape and values.

    Parameters
    ----------
    model : keras.Model
        Model with one input of shape (N, H, W, C).
    images : array_like, (N, H, W, C), uint8 or float, 0..255
        Images.

    Returns
    -------
    np.ndarray, (N, H, W, C)
        The images, not copied if they are an array already.

    Raises
    ------
    ValueError
        The model does not take this shape, or values are not finite, are outside 0..255, or never
        exceed 1 though they are floats, because then the images have probably been scaled already.
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
            f"Image values are in {low:g}..{high:g}; expected 0..255. Where a model takes another "
            "range, put a layer in front of it that converts them (keras.layers.Rescaling)."
        )
    return images


def by_batches(
    function: Callable, images: np.ndarray, target: np.ndarray, batch_size: int
) -> tuple | dict:
    """Apply a function to batches of images and concatenate the results.

    Parameters
    ----------
    function : callable
        (images (n, H, W, C) float32, target (n,)) → nest of arrays (n, …).
    images : np.ndarray, (N, H, W, C)
        Images. N may be 0.
    target : np.ndarray, (N,), int32
        Classes.
    batch_size : int
        Images per call.

    Returns
    -------
    tuple or dict
        The function's results for all images, concatenated along N.
    """
    count = len(images)
    if count == 0:  # TensorFlow's fused kernels refuse empty batches: use one image instead
        images, target = np.zeros((1, *images.shape[1:])), np.zeros(1, np.int32)
    parts = []
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        parts.append(function(images[batch].astype(np.float32), target[batch]))
    return tf.nest.map_structure(lambda *arrays: np.concatenate(arrays)[:count], *parts)


def image_variant_pairs(
    images: int, variants: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield every pair of image and variant, `batch_size` pairs at a time.

    All batches but the last are full, whether there are few images with many variants or the
    reverse.

    Parameters
    ----------
    images : int
        Number of images.
    variants : int
        Number of variants of each image.
    batch_size : int
        Pairs per batch.

    Yields
    ------
    image : np.ndarray, (P,), int64
        Indices of the images.
    variant : np.ndarray, (P,), int64
        Indices of the variants.
    """
    pairs = images * variants
    for start in range(0, pairs, batch_size):
        yield np.divmod(np.arange(start, min(start + batch_size, pairs)), variants)
