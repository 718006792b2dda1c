"""Perturb images with noise, motion blur, contrast or brightness, at five severities.

The perturbations are five of the corruptions of ImageNet-C (Hendrycks & Dietterich, ICLR 2019).
The strength of a severity depends on the image's size, as in the published sets: ImageNet-C has
224 columns, Tiny ImageNet-C 64, and CIFAR-10-C 32. An image takes the constants of the size with
the nearest ratio to its own. Values are rounded; the published code cuts off the fraction.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.linalg.blas import saxpy
from scipy.stats import norm

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 20  # pixels along a side: the longest blur of the smallest size moves by 18
_CHUNK = 2**18  # grey values perturbed at once: what the processor's cache holds
_BLOCK = 9500  # values blurred at once: OpenBLAS starts threads above 10,000, which is slower here
# The standard normal distribution in steps of equal probability: as fine as grey values can show.
_QUANTILES = norm.ppf((np.arange(2**16) + 0.5) / 2**16)

# Perturbation → published size in pixels → constants of severities 1–5. Noise: standard deviation
# as a fraction of the grey range (for speckle, of the pixel's value). Motion blur: radius and
# standard deviation in pixels. Contrast: the factor. Brightness: the fraction that is added.
CONSTANTS = {
    "gaussian noise": {
        224: (0.08, 0.12, 0.18, 0.26, 0.38),
        64: (0.04, 0.08, 0.12, 0.15, 0.18),
        32: (0.04, 0.06, 0.08, 0.09, 0.10),
    },
    "speckle": {
        224: (0.15, 0.2, 0.35, 0.45, 0.6),
        64: (0.15, 0.2, 0.25, 0.3, 0.35),
        32: (0.06, 0.1, 0.12, 0.16, 0.2),
    },
    "motion blur": {
        224: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        64: ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        32: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    },
    "contrast": {
        224: (0.4, 0.3, 0.2, 0.1, 0.05),
        64: (0.4, 0.3, 0.2, 0.1, 0.05),
        32: (0.75, 0.5, 0.4, 0.3, 0.15),
    },
    "brightness": {
        224: (0.1, 0.2, 0.3, 0.4, 0.5),
        64: (0.1, 0.2, 0.3, 0.4, 0.5),
        32: (0.05, 0.1, 0.15, 0.2, 0.3),
    },
}
PERTURBATIONS = tuple(CONSTANTS)


def perturbed(
    images: np.ndarray, perturbation: str, severity: int, seed: int | tuple[int, ...] = 0
) -> np.ndarray:
    """Apply one perturbation to all images.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, H, W, C)
        Grey (C = 1) or colour (C = 3), with sides of at least `SMALLEST` pixels.
    perturbation : str
        One of `PERTURBATIONS`.
    severity : int
        1 (mild) to 5 (strong).
    seed : int or tuple of int
        Determines the noise and each image's direction of motion.

    Returns
    -------
    np.ndarray, uint8 (N, H, W, C)

    Raises
    ------
    ValueError
        For an unknown perturbation or severity, and for other shapes, types or sizes of images.
    """
    images = np.asarray(images)
    strength = constant(perturbation, severity, _checked(images).shape[2])
    rng = np.random.default_rng(seed)
    per_chunk = max(1, _CHUNK // images[0].size if len(images) else 1)
    found = np.empty_like(images)
    for first in range(0, len(images), per_chunk):
        chunk = slice(first, first + per_chunk)
        found[chunk] = _METHODS[perturbation](images[chunk], strength, rng)
    return found


def constant(perturbation: str, severity: int, columns: int) -> float | tuple[float, float]:
    """Return the strength of a severity for images of this width.

    Parameters
    ----------
    perturbation : str
        One of `PERTURBATIONS`.
    severity : int
        1 to 5.
    columns : int
        Width of the images in pixels.

    Returns
    -------
    float or tuple of float
        From `CONSTANTS`.

    Raises
    ------
    ValueError
        For an unknown perturbation or severity.
    """
    if perturbation not in CONSTANTS:
        raise ValueError(
            f"unknown perturbation {perturbation!r}; allowed: {', '.join(PERTURBATIONS)}"
        )
    if severity not in SEVERITIES:
        raise ValueError(f"severity is {severity!r}; allowed: 1 to 5")
    sizes = CONSTANTS[perturbation]
    nearest = min(sizes, key=lambda size: abs(np.log(size / columns)))
    return sizes[nearest][severity - 1]


def _checked(images: np.ndarray) -> np.ndarray:
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
        raise ValueError(
            f"images are {images.dtype} {shape}; expected uint8 (N, H, W, 1) or (N, H, W, 3)"
        )
    if min(shape[1:3]) < SMALLEST:
        raise ValueError(f"images are {shape[1]}×{shape[2]}; allowed: {SMALLEST} pixels and more")
    return images


def _as_grey_values(values: np.ndarray) -> np.ndarray:
    """Round to whole grey values, 0–255; the argument is overwritten."""
    values += 0.5
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def _normal(images: np.ndarray, rng: np.random.Generator, table: np.ndarray) -> np.ndarray:
    """Look up one random value per pixel in a table of 2¹⁶ equally likely ones."""
    return table[rng.integers(0, len(table), images.shape, np.uint16)]


def _gaussian_noise(images: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    # Grey values are whole: rounding the sum is rounding the noise.
    values = _normal(images, rng, np.rint(255 * fraction * _QUANTILES).astype(np.int16))
    values += images
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def _speckle(images: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    values = _normal(images, rng, (1 + fraction * _QUANTILES).astype(np.float32))
    values *= images
    return _as_grey_values(values)


def _motion_blur(
    images: np.ndarray, shape: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    return motion_blurred(images, *shape, rng.uniform(-45, 45, len(images)))


def motion_blurred(images: np.ndarray, radius: int, sigma: float, angles: np.ndarray) -> np.ndarray:
    """Blur each image along its own direction.

    A weighted mean of 2 radius + 1 copies, each shifted by one more pixel. The weights are the
    falling half of a normal curve, as in ImageMagick's motion blur, which ImageNet-C uses. Edge
    pixels are repeated outwards.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, H, W, C)
    radius : int
        In pixels.
    sigma : float
        Standard deviation of the normal curve, in pixels.
    angles : np.ndarray, float (N,)
        Directions in degrees; 0 is along the rows.

    Returns
    -------
    np.ndarray, uint8 (N, H, W, C)
    """
    height, width, channels = images.shape[1:]
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    turned = np.deg2rad(angles)[:, None]
    # How far to the right of a pixel, and below it, the copies are; rounded as in ImageMagick.
    right = np.ceil(steps * np.cos(turned) - 0.5).astype(int)  # (N, steps)
    down = np.ceil(steps * np.sin(turned) - 0.5).astype(int)
    above, left = -down.min(initial=0), -right.min(initial=0)
    below, beyond = down.max(initial=0), right.max(initial=0)
    # The additional row at the bottom keeps the shifted last row inside the array.
    edges = ((above, below + 1), (left, beyond), (0, 0))
    # In an array stored row after row, a shift in two directions is a single distance.
    row = (left + width + beyond) * channels
    distances = (above + down) * row + (left + right) * channels
    block = max(1, _BLOCK // row) * row
    found = np.empty_like(images)
    for image, places, out in zip(images, distances, found, strict=True):
        values = np.pad(image, edges, "edge").astype(np.float32).ravel()
        total = np.full(height * row, 0.5, np.float32)  # the last step cuts off the fraction
        places, copies = np.unique(places, return_inverse=True)  # some steps end on the same pixel
        shifts = list(zip(places.tolist(), np.bincount(copies, weights).tolist(), strict=True))
        for first in range(0, len(total), block):
            n = min(block, len(total) - first)
            for distance, weight in shifts:  # total[first:] += weight * values[first + distance:]
                saxpy(values, total, n, weight, first + distance, 1, first, 1)
        out[:] = total.reshape(height, -1, channels)[:, :width]
    return found


def _contrast(images: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Move every pixel towards the mean of its image's channel, with a table of 256 values."""
    levels = np.arange(256.0)
    found = np.empty_like(images)
    for image, out in zip(images, found, strict=True):
        picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
        counts = np.array(picture.histogram()).reshape(-1, 256)
        means = counts @ levels / counts[0].sum()
        tables = _as_grey_values(levels * factor + means[:, None] * (1 - factor))
        out[:] = np.asarray(picture.point(tables.ravel().tolist())).reshape(out.shape)
    return found


def _brightness(images: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Add to the value of HSV, the largest channel, and keep hue and saturation."""
    added = 255 * fraction
    if images.shape[3] == 1:
        return _as_grey_values(np.arange(256) + added)[images]
    value = images.max(axis=3, keepdims=True)
    levels = np.arange(256, dtype=np.float32)
    # All channels grow by the same factor; black has no hue, and becomes grey.
    factors = np.minimum(levels + added, 255) / np.maximum(levels, 1)
    values = images * factors.astype(np.float32)[value]
    np.copyto(values, added, where=value == 0)
    return _as_grey_values(values)


_METHODS: dict[str, Callable[[np.ndarray, object, np.random.Generator], np.ndarray]] = {
    "gaussian noise": _gaussian_noise,
    "speckle": _speckle,
    "motion blur": _motion_blur,
    "contrast": _contrast,
    "brightness": _brightness,
}
