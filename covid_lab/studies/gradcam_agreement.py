"""Why the Grad-CAM++ of tf-keras-vis differs from ours, measured image by image.

Both weight the positive gradients g of a channel with features A by α = 1 / (2 + g ΣA), which is
equation 19 of Chattopadhay et al. 2018 for the exponential of a logit. tf-keras-vis then divides
the α of a channel by their sum over all places, those with a negative gradient included. There the
denominator 2 + g ΣA can be near 0 or negative, and so can the sum: the channel then counts with any
factor and any sign. Where the gradient is the same at all places, as after global average pooling,
the division does no more than cancel α, so that the map is Grad-CAM with positive weights.

When the maps are enlarged, tf-keras-vis puts the centres of the outer places onto the corners of
the image; ours leaves them where they are. With 7 × 7 places this is up to 16 pixels of 224.
"""

from collections.abc import Sequence

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus

from covid_project.gradcam import resize_heatmaps

LIBRARY = "tf-keras-vis"
ENLARGED = "tf-keras-vis, enlarged"
POSITIVE = "divided by the sum over g > 0"
UNDIVIDED = "not divided"
COMPARED = (ENLARGED, LIBRARY, POSITIVE, UNDIVIDED)


def _library_maps(
    model: keras.Model, images: np.ndarray, signs: np.ndarray, layer: str, *, enlarged: bool
) -> np.ndarray:
    """Return the Grad-CAM++ maps of tf-keras-vis, of the layer's or of the images' size."""
    maps = GradcamPlusPlus(model, clone=True)(
        lambda output: output[:, 0] * signs,
        images.astype(np.float32),
        penultimate_layer=layer,
        seek_penultimate_conv_layer=False,
        expand_cam=enlarged,
        normalize_cam=False,
    )
    return np.asarray(maps)


def _features_and_gradients(
    model: keras.Model, images: np.ndarray, signs: np.ndarray, layer: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return a layer's features and the gradient of the signed logit, both (N, h, w, K)."""
    parts = keras.Model(model.input, [model.get_layer(layer).output, model.output])
    with tf.GradientTape() as tape:
        features, logit = parts(images.astype(np.float32), training=False)
        score = logit[:, 0] * signs.astype(np.float32)
    gradients = tape.gradient(score, features)
    return features.numpy().astype(np.float64), gradients.numpy().astype(np.float64)


def _divisors(features: np.ndarray, gradients: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return Σ α of each channel over the counted places (N, 1, 1, K); 1 for a channel without."""
    total = _alpha(features, gradients, counted).sum(axis=(1, 2), keepdims=True)
    return np.where(total == 0, 1.0, total)


def _weighted_maps(features: np.ndarray, gradients: np.ndarray, variant: str) -> np.ndarray:
    """Return the maps of tf-keras-vis from its formula, or with one part of it left out."""
    counted = gradients > 0 if variant == POSITIVE else gradients != 0
    alpha = _alpha(features, gradients, counted)
    if variant != UNDIVIDED:
        alpha = alpha / _divisors(features, gradients, counted)
    weights = (np.maximum(gradients, 0) * alpha).sum(axis=(1, 2), keepdims=True)
    return np.maximum((weights * features).sum(axis=-1), 0)


def _alpha(features: np.ndarray, gradients: np.ndarray, counted: np.ndarray) -> np.ndarray:
    total = features.sum(axis=(1, 2), keepdims=True)
    denominator = np.where(counted, 2 + gradients * total, 1)
    return np.where(counted, 1 / denominator, 0.0)


def correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of each pair of maps.

    Parameters
    ----------
    first, second : np.ndarray, float (N, h, w)
        Maps.

    Returns
    -------
    np.ndarray, float (N,)
        NaN where a map is the same everywhere, such as a blank one.
    """
    return np.array(
        [
            np.corrcoef(a.ravel(), b.ravel())[0, 1] if np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan
            for a, b in zip(first, second, strict=True)
        ]
    )


def agreement(
    model: keras.Model,
    images: np.ndarray,
    signs: np.ndarray,
    layer: str,
    ours: np.ndarray,
    paths: Sequence[str],
) -> pd.DataFrame:
    """Correlate our maps with those of tf-keras-vis, and with parts of its formula left out.

    Parameters
    ----------
    model : keras.Model
        Has one logit.
    images : np.ndarray, (N, H, W, 1), 0–255
        Images.
    signs : np.ndarray, (N,), 1 or −1
        Factor of the logit: 1 to explain class 1, −1 to explain class 0.
    layer : str
        Name of a layer with spatial features.
    ours : np.ndarray, float (N, h, w)
        Our maps of the same layer.
    paths : sequence of str, (N,)
        Names of the images.

    Returns
    -------
    pd.DataFrame
        One row per image and entry of `COMPARED`: path, compared, correlation with our map (NaN
        where a map is the same everywhere), formula (correlation of tf-keras-vis with its formula
        computed here; the explanation holds where it is 1), negative_divisors (fraction of the
        channels with a positive gradient whose sum of α is negative).
    """
    features, gradients = _features_and_gradients(model, images, signs, layer)
    theirs = _library_maps(model, images, signs, layer, enlarged=False)
    large = _library_maps(model, images, signs, layer, enlarged=True)
    formula = correlations(theirs, _weighted_maps(features, gradients, LIBRARY))
    used = (gradients > 0).any(axis=(1, 2))
    divisors = _divisors(features, gradients, gradients != 0)[:, 0, 0]
    negative = (used & (divisors < 0)).sum(1) / np.maximum(used.sum(1), 1)
    shared = {"path": list(paths), "formula": formula, "negative_divisors": negative}
    found = {
        ENLARGED: correlations(resize_heatmaps(ours, images.shape[1:3]), large),
        LIBRARY: correlations(ours, theirs),
    }
    for name in (POSITIVE, UNDIVIDED):
        found[name] = correlations(ours, _weighted_maps(features, gradients, name))
    parts = [
        pd.DataFrame({**shared, "compared": name, "correlation": values})
        for name, values in found.items()
    ]
    return pd.concat(parts, ignore_index=True)
