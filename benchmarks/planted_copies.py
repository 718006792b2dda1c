"""Twelve kinds of planted copies of a radiograph, from resizing to rotation."""

import io

import numpy as np
from PIL import Image, ImageFilter


def _resized(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Resize to half to twice the size, with any interpolation except the nearest pixel."""
    factor = 2 ** rng.uniform(-1, 1)
    filters = [f for f in Image.Resampling if f != Image.Resampling.NEAREST]
    size = tuple(max(8, round(factor * side)) for side in image.shape[::-1])
    return np.asarray(Image.fromarray(image).resize(size, filters[rng.integers(len(filters))]))


def _encoded(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Encode as JPEG of quality 10 to 40."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(rng.integers(10, 41)))
    return np.asarray(Image.open(file))


def _cropped_by_5(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Crop up to 5 % of each side."""
    varied = rng.random() < 0.5
    return _cut(image, rng.uniform(0, 0.05, 4) if varied else 0.05 * _some_sides(rng))


def _cropped_by_10(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Crop up to 10 % of each side."""
    varied = rng.random() < 0.5
    return _cut(image, rng.uniform(0.05, 0.1, 4) if varied else 0.1 * _some_sides(rng))


def _brightened(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change gamma (0.5 to 2), contrast (0.7 to 1.3) and brightness (±30)."""
    changed = 255 * (image / 255) ** (2 ** rng.uniform(-1, 1))
    return _grey((changed - 128) * rng.uniform(0.7, 1.3) + 128 + rng.uniform(-30, 30))


def _mirrored(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exchange left and right."""
    return image[:, ::-1].copy()


def _rotated(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotate by 3 to 10 degrees."""
    angle = rng.uniform(3, 10) * rng.choice([-1, 1])
    fill = int(rng.choice([0, 0, int(image.mean()), 255]))
    expand = bool(rng.random() < 0.25)
    how = {"fillcolor": fill, "expand": expand, "resample": Image.Resampling.BICUBIC}
    return np.asarray(Image.fromarray(image).rotate(angle, **how))


def _inverted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exchange black and white."""
    return 255 - image


def _bordered(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add a black or white frame of 3 to 12 % of the size, with equal or unequal sides."""
    value = int(rng.choice([0, 255]))
    equal = rng.random() >= 0.5
    widths = np.full(4, rng.uniform(0.03, 0.12)) if equal else rng.uniform(0.03, 0.12, 4)
    top, bottom, left, right = _pixels(image, widths)
    return np.pad(image, ((top, bottom), (left, right)), constant_values=value)


def _noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise of 5 to 20 grey values."""
    return _grey(image + rng.normal(0, rng.uniform(5, 20), image.shape))


def _blurred(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur with a Gaussian, σ of 0.5 to 2 pixels at a height of 256 pixels."""
    sigma = rng.uniform(0.5, 2) * image.shape[0] / 256
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def _rotated_and_brightened(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotate, then change gamma, contrast and brightness."""
    return _brightened(_rotated(image, rng), rng)


KINDS = {
    kind.__name__[1:].replace("_", " "): kind
    for kind in (
        _resized, _encoded, _cropped_by_5, _cropped_by_10, _brightened, _mirrored, _rotated,
        _inverted, _bordered, _noisy, _blurred, _rotated_and_brightened,
    )
}  # fmt: skip


def _some_sides(rng: np.random.Generator) -> np.ndarray:
    chosen = rng.integers(0, 2, 4)
    return chosen if chosen.any() else np.ones(4, int)


def _pixels(image: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    height, width = image.shape
    return np.round(fractions * [height, height, width, width]).astype(int)


def _cut(image: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    top, bottom, left, right = _pixels(image, fractions)
    return image[top : image.shape[0] - bottom, left : image.shape[1] - right]


def _grey(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
