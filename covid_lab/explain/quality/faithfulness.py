"""Does the heat lie where the model finds its evidence? Take the hot pixels away, and see.

The pixels of each image are ranked by its map, resized bilinearly to the image; places of equal
heat are ranked at random, the same way for every method. What is looked at is the probability of
the class explained. An image whose map is blank has no ranking: NaN.

References
----------
Petsiuk, Das & Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC
2018 (deletion and insertion). Rong et al., "A Consistent and Efficient Evaluation
Strategy for Attribution Methods", ICML 2022 (ROAD): a constant fill shows the model the outline of
what was cut out, a smooth one does not.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from scipy.ndimage import gaussian_filter

from covid_lab.explain.class_score import batch_signature, class_score, image_variant_pairs
from covid_lab.explain.outputs import remove_final_activation
from covid_project.gradcam import resize_heatmaps

FILLS = ("mean", "blurred")
BLUR = 0.1  # standard deviation as a share of the image's side: no finding is left to be seen
NOISE = 2.55  # grey levels: 0.01 of the range, as the authors of ROAD have it
IMPUTED_SIDE = 112  # pixels; larger images are imputed on a coarser grid

# (images (P, H, W, C) in 0..255, classes (P,)) → probabilities (P,)
Probability = Callable[[np.ndarray, np.ndarray], np.ndarray]


def probability_function(model: keras.Model) -> Probability:
    """Compile (images (P, H, W, C), target (P,)) → probability (P,) float32 of the target class.

    The sigmoid of the class score where the model has one logit, else the softmax over its logits.
    """
    model = remove_final_activation(model)

    @tf.function(input_signature=batch_signature(model))
    def probability(images, target):
        logits = model(images, training=False)
        if logits.shape[-1] == 1:
            return tf.sigmoid(class_score(logits, target)[0])
        return tf.exp(class_score(tf.nn.log_softmax(tf.cast(logits, tf.float32)), target)[0])

    return lambda images, target: probability(
        np.asarray(images, np.float32), np.asarray(target, np.int32)
    ).numpy()


def deletion(
    probability: Probability,
    images: np.ndarray,
    maps: np.ndarray,
    target: np.ndarray,
    steps: int = 10,
    fill: str = "mean",
    batch_size: int = 32,
) -> np.ndarray:
    """Probability (N, steps + 1) float64 as the hottest pixels are replaced, from none to all.

    Petsiuk et al. 2018: the sooner it falls, the smaller the `area`, the better the map.

    Parameters
    ----------
    probability : see `probability_function`.
    images : (N, H, W, C) in 0..255.
    maps : (N, h, w) in [0, 1].
    target : (N,), the classes explained.
    steps : the share of replaced pixels grows by 1 / steps.
    fill : what replaces them: "mean", the image's mean by channel, or "blurred", the image under a
        Gaussian of a tenth of its side.
    batch_size : changed images looked at together.
    """
    filled = _filled(images, fill)
    return _curve(probability, images, filled, maps, target, steps, batch_size)


def insertion(
    probability: Probability,
    images: np.ndarray,
    maps: np.ndarray,
    target: np.ndarray,
    steps: int = 10,
    fill: str = "blurred",
    batch_size: int = 32,
) -> np.ndarray:
    """Probability (N, steps + 1) as the hottest pixels are put back, from none to all.

    As `deletion`, the other way round: the sooner it rises, the larger the `area`, the better.
    """
    filled = _filled(images, fill)
    return _curve(probability, filled, images, maps, target, steps, batch_size)


def area(curve: np.ndarray) -> np.ndarray:
    """Area (N,) in [0, 1] under curves (N, steps + 1) over the share of pixels (trapezoids)."""
    return np.trapezoid(curve, dx=1 / (curve.shape[1] - 1), axis=1)


def road(
    probability: Probability,
    images: np.ndarray,
    maps: np.ndarray,
    target: np.ndarray,
    fractions: Sequence[float] = (0.2, 0.4, 0.6, 0.8),
    noise: float = NOISE,
    seed: int = 0,
    batch_size: int = 32,
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, each (N, F), when the most and when the least relevant pixels are removed.

    Rong et al. 2022: MoRF (most relevant first) should fall far, LeRF (least relevant first)
    little. Removed pixels are imputed by `impute`. The paper looks at the accuracy over a data set;
    here it is the probability, which says something about each image.

    Parameters
    ----------
    fractions : shares of removed pixels, each in (0, 1).
    noise : standard deviation of the noise on imputed pixels, in grey levels.
    """
    if not all(0 < fraction < 1 for fraction in fractions):
        raise ValueError(f"fractions are {list(fractions)}; expected shares between 0 and 1.")
    ranks, blank = _ranks(maps, images.shape[1:3])
    pixels = images.shape[1] * images.shape[2]
    most_first, least_first = np.full((2, len(images), len(fractions)), np.nan)
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        for column, fraction in enumerate(fractions):
            count = round(fraction * pixels)
            for found, missing in (
                (most_first, ranks[rows] < count),
                (least_first, ranks[rows] >= pixels - count),
            ):
                imputed = impute(images[rows], missing, noise, seed)
                found[rows, column] = probability(imputed, target[rows])
    most_first[blank] = least_first[blank] = np.nan
    return most_first, least_first


def impute(
    images: np.ndarray, missing: np.ndarray, noise: float = NOISE, seed: int = 0
) -> np.ndarray:
    """Images (N, H, W, C) float32 whose missing pixels (N, H, W) bool have been filled in.

    Noisy linear imputation (Rong et al. 2022): each missing pixel is the weighted mean
    of its eight neighbours, missing ones among them, with 1/6 for direct and 1/12 for diagonal
    ones; at the image's edge the weights of those that exist are scaled to one sum. Gaussian
    noise is added, and the result clipped to 0..255.

    The equations are sparse, symmetric and positive definite, and are solved to a
    hundred-thousandth of their right side. Where a side has more than 112 pixels they are set up
    on a grid of k by k pixels, k as small as that allows: a cell is known by the mean of its known
    pixels, and what was found for the others is enlarged bilinearly.
    """
    height, width = images.shape[1:3]
    images = images.astype(np.float32)
    k = -(-max(height, width) // IMPUTED_SIDE)
    if k == 1:
        found = _harmonic(images, missing)
    else:
        known = ~missing[..., None]
        counts, sums = _cell_sums(known, k), _cell_sums(images * known, k)
        means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
        coarse = _harmonic(means, counts[..., 0] == 0)
        enlarged = tf.image.resize(coarse, [k * side for side in coarse.shape[1:3]]).numpy()
        found = enlarged[:, :height, :width]
    found = found + np.random.default_rng(seed).normal(0, noise, images.shape)
    return np.where(missing[..., None], np.clip(found, 0, 255), images).astype(np.float32)


def _harmonic(images: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Images (N, H, W, C) float64 whose missing pixels are the weighted means of their neighbours.

    With D a pixel's sum of weights and W u the weighted sum over its neighbours, solves
    D u − W u = 0 at the missing pixels by conjugate gradients (Hestenes & Stiefel 1952), all images
    at once and each with its own steps. In plain sums of arrays: on few and busy cores the threads
    of a matrix library, which scipy's solver calls for every product, wait for one another.
    """
    if missing.all(axis=(1, 2)).any():
        raise ValueError("An image has no pixel left from which the others could be imputed.")
    u = images.astype(np.float64).transpose(0, 3, 1, 2)  # (N, C, H, W)
    gone = np.broadcast_to(missing[:, None], u.shape)
    sums = _neighbour_sums(np.ones(u.shape[2:]))  # D (H, W)
    known = np.where(gone, 0, u)
    tolerance = 1e-10 * _squares(np.where(gone, _neighbour_sums(known), 0))
    u = np.where(gone, u.mean(axis=(2, 3), where=~gone, keepdims=True), u)
    residual = np.where(gone, _neighbour_sums(u) - sums * u, 0)
    direction, size = residual, _squares(residual)
    while (size > tolerance).any():
        image = np.where(gone, sums * direction - _neighbour_sums(direction), 0)
        curvature = (direction * image).sum(axis=(2, 3), keepdims=True)
        step = np.divide(size, curvature, out=np.zeros_like(size), where=size > tolerance)
        u = u + step * direction
        residual = residual - step * image
        before, size = size, _squares(residual)
        ratio = np.divide(size, before, out=np.zeros_like(size), where=before > 0)
        direction = residual + ratio * direction
    return u.transpose(0, 2, 3, 1)


def _cell_sums(values: np.ndarray, k: int) -> np.ndarray:
    """Sums (N, ⌈H/k⌉, ⌈W/k⌉, C) float32 over cells of k by k places; the last may be cut off."""
    sums = np.add.reduceat(values, np.arange(0, values.shape[1], k), axis=1, dtype=np.float32)
    return np.add.reduceat(sums, np.arange(0, values.shape[2], k), axis=2)


def _neighbour_sums(values: np.ndarray) -> np.ndarray:
    """Sum of each place's neighbours in (…, H, W), direct ones times 1/6, diagonal ones 1/12."""
    # The weights are (1, 2, 1) by (1, 2, 1), divided by 12, without the 4 in their middle.
    rows = 2 * values
    rows[..., 1:, :] += values[..., :-1, :]
    rows[..., :-1, :] += values[..., 1:, :]
    total = 2 * rows - 4 * values
    total[..., 1:] += rows[..., :-1]
    total[..., :-1] += rows[..., 1:]
    return total / 12


def _squares(values: np.ndarray) -> np.ndarray:
    return (values**2).sum(axis=(2, 3), keepdims=True)


def _curve(
    probability: Probability,
    before: np.ndarray,
    after: np.ndarray,
    maps: np.ndarray,
    target: np.ndarray,
    steps: int,
    batch_size: int,
) -> np.ndarray:
    """Probabilities (N, steps + 1) on the way from one image to another, hottest pixels first."""
    ranks, blank = _ranks(maps, before.shape[1:3])
    changed = np.round(np.linspace(0, 1, steps + 1) * before.shape[1] * before.shape[2])
    curve = np.empty((len(before), steps + 1))
    for image, step in image_variant_pairs(*curve.shape, batch_size):
        done = (ranks[image] < changed[step, None, None])[..., None]
        mixed = np.where(done, after[image], before[image])
        curve[image, step] = probability(mixed, target[image])
    curve[blank] = np.nan
    return curve


def _ranks(maps: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each pixel (N, H, W), 0 for the hottest, and (N,) whether a map is blank."""
    if maps.shape[1:] != tuple(size):
        maps = resize_heatmaps(maps, size)
    pixels = size[0] * size[1]
    chance = np.random.default_rng(0).random(pixels)
    flat = maps.reshape(len(maps), pixels)
    ranks = np.empty(flat.shape, np.int64)
    for rank, heat in zip(ranks, flat, strict=True):
        rank[np.lexsort((chance, -heat))] = np.arange(pixels)
    return ranks.reshape(maps.shape), ~maps.any(axis=(1, 2))


def _filled(images: np.ndarray, fill: str) -> np.ndarray:
    """Images (N, H, W, C) float32 that hold nothing but their mean, or their coarsest shape."""
    images = images.astype(np.float32)
    if fill == "mean":
        return np.broadcast_to(images.mean(axis=(1, 2), keepdims=True), images.shape)
    if fill == "blurred":
        height, width = images.shape[1:3]
        return gaussian_filter(images, (0, BLUR * height, BLUR * width, 0))
    raise ValueError(f"Unknown fill '{fill}'; the fills are {list(FILLS)}.")
