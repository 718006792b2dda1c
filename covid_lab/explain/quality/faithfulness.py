"""Does the heat show where the model finds its evidence? Remove the hot pixels and measure.

The pixels of each image are ranked by its map, resized bilinearly to the image. Ties are ranked at
random, in the same way for every method. All measures use the probability of the class explained.
An image whose map is blank has no ranking: its values are NaN.

References
----------
Petsiuk, Das & Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC
2018 (deletion and insertion). Rong et al., "A Consistent and Efficient Evaluation Strategy for
Attribution Methods", ICML 2022 (ROAD): a constant fill shows the model the outline of what was cut
out, a smooth fill does not.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from scipy.ndimage import gaussian_filter

from covid_lab.explain.class_score import batch_signature, class_score, image_variant_pairs
from covid_lab.explain.outputs import remove_final_activation
from covid_project.gradcam import resize_heatmaps

FRACTIONS = (0.2, 0.4, 0.6, 0.8)  # of the pixels that ROAD removes
BLUR = 0.1  # standard deviation as a fraction of the image's side: no finding remains visible
NOISE = 2.55  # grey levels: 0.01 of the range, as in the ROAD paper
IMPUTED_SIDE = 112  # pixels; larger images are imputed on a coarser grid

# (images (P, H, W, C) in 0..255, classes (P,)) → probabilities (P,)
Probability = Callable[[np.ndarray, np.ndarray], np.ndarray]


def probability_function(model: keras.Model) -> Probability:
    """Compile a function from images to the probability of a class.

    The probability is the sigmoid of the class score where the model has one logit, and the softmax
    over its logits otherwise.

    Parameters
    ----------
    model : keras.Model
        As for `grad_cam`.

    Returns
    -------
    Probability
        (images (P, H, W, C), target (P,)) → probability (P,) float32.
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
    batch_size: int = 32,
) -> np.ndarray:
    """Deletion curve: the probability as the hottest pixels are replaced, from none to all.

    They are replaced by the image's mean in each channel. The sooner the curve falls, the smaller
    the area under it, and the better the map (Petsiuk et al. 2018).

    Parameters
    ----------
    probability : Probability
        See `probability_function`.
    images : np.ndarray, (N, H, W, C), uint8 or float, 0..255
        Images.
    maps : np.ndarray, (N, h, w), float32, [0, 1]
        Maps of these images.
    target : np.ndarray, (N,), int
        The classes explained.
    steps : int, 1 or more
        Steps of the curve; each replaces a fraction 1 / steps of the pixels.
    batch_size : int
        Changed images per forward pass.

    Returns
    -------
    np.ndarray, (N, steps + 1), float64, [0, 1]
        Probabilities; NaN for a blank map.
    """
    mean = np.broadcast_to(images.mean((1, 2), np.float32, keepdims=True), images.shape)
    return _curve(probability, images, mean, maps, target, steps, batch_size)


def insertion(
    probability: Probability,
    images: np.ndarray,
    maps: np.ndarray,
    target: np.ndarray,
    steps: int = 10,
    batch_size: int = 32,
) -> np.ndarray:
    """Insertion curve: the probability as the hottest pixels are restored, from none to all.

    The reverse of `deletion`, from the image after a Gaussian blur with a tenth of its side. The
    sooner the curve rises, the larger the area under it, and the better the map.

    Parameters
    ----------
    probability, images, maps, target, steps, batch_size : as for `deletion`

    Returns
    -------
    np.ndarray, (N, steps + 1), float64, [0, 1]
        Probabilities; NaN for a blank map.
    """
    height, width = images.shape[1:3]
    blurred = gaussian_filter(images.astype(np.float32), (0, BLUR * height, BLUR * width, 0))
    return _curve(probability, blurred, images, maps, target, steps, batch_size)


def road(
    probability: Probability,
    images: np.ndarray,
    maps: np.ndarray,
    target: np.ndarray,
    seed: int = 0,
    batch_size: int = 32,
) -> tuple[np.ndarray, np.ndarray]:
    """ROAD: probabilities when the most and when the least relevant pixels are removed.

    After removal of the most relevant pixels first (MoRF) the probability should fall far, and
    after removal of the least relevant first (LeRF) little. Removed pixels are filled in by
    `impute`. Rong et al. 2022 report the accuracy over a data set. Here it is the probability,
    which is defined for each image.

    Parameters
    ----------
    probability, images, maps, target : as for `deletion`
    seed : int
        Seed of the noise on imputed pixels.
    batch_size : int
        Images per forward pass.

    Returns
    -------
    most_first : np.ndarray, (N, F), float64, [0, 1]
        Probabilities without each of the `FRACTIONS` of the most relevant pixels; NaN for a blank
        map.
    least_first : np.ndarray, (N, F), float64, [0, 1]
        Probabilities without the least relevant pixels.
    """
    ranks, blank = _ranks(maps, images.shape[1:3])
    pixels = images.shape[1] * images.shape[2]
    most_first, least_first = np.full((2, len(images), len(FRACTIONS)), np.nan)
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        for column, fraction in enumerate(FRACTIONS):
            count = round(fraction * pixels)
            for found, missing in (
                (most_first, ranks[rows] < count),
                (least_first, ranks[rows] >= pixels - count),
            ):
                imputed = impute(images[rows], missing, seed=seed)
                found[rows, column] = probability(imputed, target[rows])
    most_first[blank] = least_first[blank] = np.nan
    return most_first, least_first


def impute(
    images: np.ndarray, missing: np.ndarray, noise: float = NOISE, seed: int = 0
) -> np.ndarray:
    """Fill in missing pixels by noisy linear imputation (Rong et al. 2022).

    Each missing pixel is the weighted mean of its eight neighbours, including missing ones, with
    weight 1/6 for direct and 1/12 for diagonal neighbours. At the image's edge, the weights of the
    existing neighbours are scaled to the same sum. Gaussian noise is added, and the result is
    clipped to 0..255.

    Parameters
    ----------
    images : np.ndarray, (N, H, W, C), uint8 or float, 0..255
        Images.
    missing : np.ndarray, (N, H, W), bool
        Pixels to fill in.
    noise : float, 0 or more
        Standard deviation of the noise in grey levels.
    seed : int
        Seed of the noise.

    Returns
    -------
    np.ndarray, (N, H, W, C), float32
        Images without missing pixels.

    Raises
    ------
    ValueError
        All pixels of an image are missing.

    Notes
    -----
    The equations are sparse, symmetric and positive definite, and are solved to a relative residual
    of 1e-5. For images with a side above 112 pixels, they are set up on a grid of k by k pixels,
    with the smallest k that gives at most 112 cells per side. The value of a cell is the mean of
    its known pixels, and the values found for the other cells are enlarged bilinearly.
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

    With D the sum of a pixel's weights and W u the weighted sum over its neighbours, solves D u − W
    u = 0 at the missing pixels by conjugate gradients (Hestenes & Stiefel 1952), for all images at
    once, each with its own step lengths. It uses plain sums of arrays: SciPy's solver calls a
    matrix library for every product, whose threads wait for one another on few and busy cores.
    """
    if missing.all(axis=(1, 2)).any():
        raise ValueError("An image has no pixel left from which the others can be imputed.")
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
    """Sums (N, ⌈H/k⌉, ⌈W/k⌉, C) float32 over cells of k by k pixels; the last may be cut off."""
    sums = np.add.reduceat(values, np.arange(0, values.shape[1], k), axis=1, dtype=np.float32)
    return np.add.reduceat(sums, np.arange(0, values.shape[2], k), axis=2)


def _neighbour_sums(values: np.ndarray) -> np.ndarray:
    """Sum of each pixel's neighbours in (…, H, W), direct ones times 1/6, diagonal ones 1/12."""
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
    """Probabilities (N, steps + 1) as one image is changed to another, hottest pixels first."""
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
