"""What a model costs: bytes on disk, bytes when packed, and seconds per image."""

import gzip
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

WARM_UP = 3  # calls that are not timed: the first one traces the graph and fills the caches


def weight_bytes(model: keras.Model) -> tuple[int, int]:
    """Size of the saved weights (``.weights.h5``) as they are, and packed by gzip.

    Zeros take as much room as any other number until they are packed, so that pruning shows in
    the second figure alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.weights.h5"
        model.save_weights(path)
        content = path.read_bytes()
    return len(content), len(gzip.compress(content, compresslevel=9, mtime=0))


def seconds_per_image(
    predict: Callable[[np.ndarray], object], images: np.ndarray, batch_size: int, repeats: int = 20
) -> dict[str, float]:
    """Time that a model takes for an image, measured after warm-up.

    Parameters
    ----------
    predict
        Takes a batch (B, ...) and returns when it is done.
    images
        (N, ...); a batch of ``batch_size`` is taken from the front, repeated where N is smaller.
    repeats
        Timed calls.

    Returns
    -------
    median, low, high: median and quartiles over the calls, in seconds per image.
    """
    batch = np.resize(images, (batch_size, *images.shape[1:]))
    for _ in range(WARM_UP):
        predict(batch)
    seconds = np.empty(repeats)
    for call in range(repeats):
        begun = time.perf_counter()
        predict(batch)
        seconds[call] = time.perf_counter() - begun
    low, median, high = np.quantile(seconds / batch_size, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def compiled(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Compile a model's forward pass for `seconds_per_image`: images (B, ...) → outputs, NumPy.

    ``predict`` would time its own bookkeeping, which exceeds that of a small network.
    """
    call = tf.function(lambda images: model(images, training=False))
    return lambda images: call(tf.constant(images, tf.float32)).numpy()
