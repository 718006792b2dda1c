"""Features of images from the middle of an ImageNet network, where its weights are available."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from covid_lab.datasets import load_images
from covid_project.data import Dataset
from covid_project.files import cached_array, fingerprint

NETWORK, PIXELS = "MobileNetV2", 224
WEIGHTS = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"
# Blocks in the middle of the network: the last ones represent objects rather than textures.
LAYERS = ("block_9_add", "block_12_add")
AT_ONCE = 4  # images per call; larger batches spend their time on allocating memory


def image_features(
    dataset: Dataset, cache: Path | None, progress: Callable[[str, int, int], None]
) -> tuple[np.ndarray | None, str]:
    """Compute features of an ImageNet network, or give the reason why this is impossible.

    Parameters
    ----------
    dataset : Dataset
        N images.
    cache : Path or None
        Folder in which the features are kept; None: they are not kept.
    progress : callable
        Called with (stage, done, total).

    Returns
    -------
    features : np.ndarray, float32 (N, 640), or None
        Means of the feature maps of `LAYERS` over the four quarters of the image. None without
        TensorFlow or without the weights in the Keras cache. Nothing is downloaded.
    seen : str
        The features in words, or the reason why they are missing.

    Raises
    ------
    DataError
        An image that cannot be read.
    """
    words = f"{NETWORK} features"
    identity = fingerprint(dataset.fingerprint, "\n".join(dataset.table["path"]), " ".join(LAYERS))
    kept = None if cache is None else Path(cache) / f"label-features-{identity}.npy"
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()  # Keras's default
    weights = home / "models" / WEIGHTS
    compute = partial(_quarter_means, dataset, weights, progress)
    if kept is not None and kept.is_file():
        return cached_array(kept, compute), words
    if not weights.is_file():
        return None, f"the weights of {NETWORK} are not in the Keras cache"
    if find_spec("tensorflow") is None:
        return None, "TensorFlow is not installed"
    from covid_project.models import WeightsUnavailable  # TensorFlow, which takes seconds to load

    try:
        return compute() if kept is None else cached_array(kept, compute), words
    except WeightsUnavailable:
        return None, f"the weights of {NETWORK} in the Keras cache cannot be loaded"


def _quarter_means(dataset: Dataset, weights: Path, progress: Callable) -> np.ndarray:
    """Compute `image_features`."""
    import keras
    import tensorflow as tf

    from covid_project.models import build_backbone

    network = build_backbone(NETWORK, PIXELS, weights=str(weights))
    maps = [network.get_layer(name).output for name in LAYERS]
    quarters = [
        keras.layers.Flatten()(keras.layers.AveragePooling2D(maps_.shape[1] // 2)(maps_))
        for maps_ in maps
    ]
    model = keras.Model(network.input, keras.layers.Concatenate()(quarters))
    call = tf.function(lambda images: model(images, training=False))
    parts = []
    for start in range(0, len(dataset.table), AT_ONCE):
        part = replace(dataset, table=dataset.table.iloc[start : start + AT_ONCE])
        parts.append(call(load_images(part, PIXELS).astype(np.float32)).numpy())
        progress("labels: network features", start + len(part.table), len(dataset.table))
    return np.concatenate(parts)
