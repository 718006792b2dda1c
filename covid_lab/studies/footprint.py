"""Cost of a model: bytes on disk, compressed bytes, and seconds per image."""

import gzip
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

WARM_UP = 3  # calls that are not timed; the first one traces the graph


def weight_bytes(model: keras.Model) -> tuple[int, int]:
    """Measure the size of the saved weights (``.weights.h5``).

    Zeros take as much room as other numbers until they are compressed. Pruning therefore shows only
    in the compressed size.

    Parameters
    ----------
    model : keras.Model
        The model.

    Returns
    -------
    plain : int
        Bytes of the file.
    packed : int
        Bytes after gzip.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.weights.h5"
        model.save_weights(path)
        content = path.read_bytes()
    return len(content), packed_bytes(content)


def packed_bytes(content: bytes) -> int:
    """Measure the size of a file's content after gzip.

    Parameters
    ----------
    content : bytes
        Content of the file.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> packed_bytes(bytes(1000)) < 50
    True
    """
    return len(gzip.compress(content, compresslevel=9, mtime=0))


def seconds_per_image(
    predict: Callable[[np.ndarray], object], images: np.ndarray, batch_size: int, repeats: int = 20
) -> dict[str, float]:
    """Measure the time of a model per image, after warm-up.

    Parameters
    ----------
    predict : callable
        Takes a batch (B, ...) and returns when it is finished.
    images : np.ndarray, (N, ...)
        Images, of which the first ``batch_size`` are used, repeated where N is smaller.
    batch_size : int, from 1
        Images per batch.
    repeats : int, from 1
        Calls to time.

    Returns
    -------
    dict of str to float
        "median", and the quartiles "low" and "high", over the calls, in seconds per image.
    """
    batch = np.resize(images, (batch_size, *images.shape[1:]))
    for _ in range(WARM_UP):
        predict(batch)
    seconds = np.empty(repeats)
    for call in range(repeats):
        start = time.perf_counter()
        predict(batch)
        seconds[call] = time.perf_counter() - start
    low, median, high = np.quantile(seconds / batch_size, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def compiled(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Compile a model's forward pass for `seconds_per_image`.

    ``predict`` would include its own bookkeeping, which takes longer than a small network.

    Parameters
    ----------
    model : keras.Model
        The model.

    Returns
    -------
    callable
        Takes images (B, ...) and returns outputs as a NumPy array.
    """
    call = tf.function(lambda images: model(images, training=False))
    return lambda images: call(tf.constant(images, tf.float32)).numpy()
