"""What can happen to an image on its way: noise, motion blur, contrast and brightness, graded.

Five of the corruptions of ImageNet-C (Hendrycks & Dietterich, ICLR 2019) at their severities 1–5.
How strong a severity is depends on the image's size, as in the published sets: ImageNet-C for 224
columns, Tiny ImageNet-C for 64, CIFAR-10-C for 32; an image takes the constants of the size that is
nearest by its ratio. Values are rounded, where the published code cuts off the fraction.
"""

from collections.abc import Callable

import numpy as np

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 20  # pixels along a side: the longest blur of the smallest size moves by 18
_CHUNK = 2**19  # pixels perturbed at once: what the processor's cache holds

# Perturbation → published size in pixels → what severities 1–5 take. Noise: the standard deviation,
# as a share of the grey range (of the pixel's own value for speckle). Motion blur: radius and
# standard deviation in pixels. Contrast: the factor. Brightness: what is added, as a share.
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
    """Images after one perturbation, uint8 (N, H, W, C) → uint8 (N, H, W, C).

    Parameters
    ----------
    images
        Grey (C = 1) or colour (C = 3), with sides of at least ``SMALLEST`` pixels.
    perturbation
        One of ``PERTURBATIONS``.
    severity
        1 (mild) to 5 (strong).
    seed
        Of the noise and of each image's direction of motion; the same seed gives the same images.

    Raises
    ------
    ValueError
        For anything else, naming what was found and what is allowed.
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
    """What a severity means for images of so many columns (see ``CONSTANTS``)."""
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
    """Rounded to the nearest of 0–255, in place until the last step."""
    values += 0.5
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def _gaussian_noise(images: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(images.shape, np.float32)
    noise *= np.float32(255 * share)
    noise += images
    return _as_grey_values(noise)


def _speckle(images: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(images.shape, np.float32)
    noise *= np.float32(share)
    noise += 1
    noise *= images
    return _as_grey_values(noise)


def _motion_blur(
    images: np.ndarray, shape: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    return motion_blurred(images, *shape, rng.uniform(-45, 45, len(images)))


def motion_blurred(images: np.ndarray, radius: int, sigma: float, angles: np.ndarray) -> np.ndarray:
    """Each image blurred along its own direction, uint8 (N, H, W, C) → uint8.

    The mean of 2 radius + 1 copies, each moved by one pixel more, with the falling half of a normal
    curve for weights (ImageMagick's motion blur, of which ImageNet-C is made); the edge is repeated
    outwards.

    Parameters
    ----------
    radius, sigma
        In pixels.
    angles
        Directions (N,), in degrees; 0 looks along the rows.
    """
    height, width = images.shape[1:3]
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    turned = np.deg2rad(angles)[:, None]
    # Moved left (up) by so many pixels, half a pixel counting downwards, as ImageMagick has it.
    right = np.ceil(steps * np.cos(turned) - 0.5).astype(int)  # (N, steps)
    down = np.ceil(steps * np.sin(turned) - 0.5).astype(int)
    above, left = -down.min(initial=0), -right.min(initial=0)
    below, beyond = down.max(initial=0), right.max(initial=0)
    padded = np.pad(images, ((0, 0), (above, below), (left, beyond), (0, 0)), "edge")
    padded = padded.astype(np.float32)
    total = np.zeros(images.shape, np.float32)
    for step, weight in enumerate(weights):
        places = np.stack([down[:, step], right[:, step]], axis=1)
        for y, x in np.unique(places, axis=0):  # images that move alike here, all at once
            alike = np.flatnonzero((places == (y, x)).all(axis=1))
            moved = padded[alike, above + y : above + y + height, left + x : left + x + width]
            moved *= weight
            total[alike] += moved
    return _as_grey_values(total)


def _contrast(images: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    means = images.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    values = images * np.float32(factor)
    values += means * np.float32(1 - factor)
    return _as_grey_values(values)


def _brightness(images: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Add to the value of HSV, the largest channel, and keep hue and saturation."""
    added = 255 * share
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
