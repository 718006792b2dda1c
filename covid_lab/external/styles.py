"""Random styles: how the same radiograph could look if it came from another hospital.

Where each class comes from its own collection, every trace of a scanner, a display or a file format
predicts the label. `restyle` draws these traces at random, from the same distribution for both
classes, and borrows grey values from images of either class. What remains predictive is the
appearance of the patient's chest.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image
from scipy import ndimage


@dataclass(frozen=True)
class Styles:
    """Probability or largest size of each change; 0 leaves the change out.

    Attributes
    ----------
    histogram : float, in [0, 1]
        Probability that an image gets the grey-value histogram of another one.
    spectrum : float, in [0, 1]
        Probability that the amplitudes of the lowest spatial frequencies are mixed with those of
        another image (Yang & Soatto 2020, CVPR, eq. 3).
    gamma : float, from 0
        Largest absolute natural logarithm of the exponent of the grey values.
    contrast : float, in [0, 1]
        Largest relative change of the spread about the middle grey.
    brightness : float, from 0
        Largest shift, in grey levels.
    rotation : float, from 0
        Largest angle, in degrees.
    zoom : float, from 0
        Largest absolute natural logarithm of the scale.
    stretch : float, from 0
        Largest absolute natural logarithm of the height relative to the width.
    shift : float, in [0, 1]
        Largest shift, as a fraction of the side.
    flip : float, in [0, 1]
        Probability of a mirrored image.
    blur : float, in [0, 1]
        Probability that an image is reduced to 27 to 78 % of its side and enlarged again.
    sharpen : float, in [0, 1]
        Probability of an unsharp mask; only images that are not blurred get one.
    noise : float, in [0, 1]
        Probability of Gaussian noise with a standard deviation of 1 to 9 grey levels.
    jpeg : float, in [0, 1]
        Probability of JPEG compression with a quality of 40 to 95.
    """

    histogram: float = 0.5
    spectrum: float = 0.3
    gamma: float = 0.5
    contrast: float = 0.3
    brightness: float = 30.0
    rotation: float = 8.0
    zoom: float = 0.2
    stretch: float = 0.07
    shift: float = 0.06
    flip: float = 0.5
    blur: float = 0.4
    sharpen: float = 0.2
    noise: float = 0.4
    jpeg: float = 0.7


def restyle(
    image: np.ndarray, references: np.ndarray, rng: np.random.Generator, styles: Styles = Styles()
) -> np.ndarray:
    """Change the style of one radiograph at random, and its geometry a little.

    Parameters
    ----------
    image : np.ndarray, uint8 (S, S), 0–255
        Grey values.
    references : np.ndarray, uint8 (M, S, S), 0–255
        Images of either class from which histogram and spectrum may be borrowed.
    rng : np.random.Generator
        Source of all random numbers.
    styles : Styles
        Probability and size of each change.

    Returns
    -------
    np.ndarray, uint8 (S, S), 0–255
        The restyled image.
    """
    other = references[rng.integers(len(references))]
    grey = image.astype(np.float32)
    if rng.random() < styles.histogram:
        grey = match_histogram(image, other)
    if rng.random() < styles.spectrum:
        grey = _mix_spectra(grey, other, rng.uniform(0.005, 0.03), rng.uniform(0.2, 0.8))
    grey = _recolour(np.clip(grey, 0, 255), rng, styles)
    image = _resample(_move(_whole(grey), rng, styles), rng, styles)
    if rng.random() < styles.noise:
        image = _whole(image + rng.normal(0, rng.uniform(1, 9), image.shape))
    if rng.random() < styles.jpeg:
        image = _compress(image, int(rng.uniform(40, 95)))
    return image


def match_histogram(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Map grey values so that their distribution is that of another image.

    Histogram matching (Gonzalez & Woods, Digital Image Processing, "histogram specification").

    Parameters
    ----------
    image : np.ndarray, uint8 (S, S), 0–255
        Grey values to map.
    other : np.ndarray, uint8, any shape, 0–255
        One or more images whose distribution is wanted.

    Returns
    -------
    np.ndarray, float32 (S, S), 0–255
        A monotonic function of the image's grey values.
    """
    own, wanted = (np.cumsum(np.bincount(one.ravel(), minlength=256)) for one in (image, other))
    levels = np.interp(own / own[-1], wanted / wanted[-1], np.arange(256))
    return levels.astype(np.float32)[image]


def _mix_spectra(image: np.ndarray, other: np.ndarray, radius: float, weight: float) -> np.ndarray:
    """Mix the amplitudes of the lowest spatial frequencies with those of another image.

    Fourier domain adaptation (Yang & Soatto 2020, CVPR, eq. 3), which replaces the amplitudes; a
    weight below 1 mixes them. The phases do not change.
    """
    own, theirs = np.fft.fft2(image), np.fft.fft2(other)
    low = np.abs(np.fft.fftfreq(len(image))) <= max(radius, 1 / len(image))
    amplitude = np.abs(own)
    mixed = (1 - weight) * amplitude + weight * np.abs(theirs)
    amplitude = np.where(low[:, None] & low, mixed, amplitude)
    return np.fft.ifft2(amplitude * np.exp(1j * np.angle(own))).real.astype(np.float32)


def mix_boxes(
    pixels: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Replace a random box of each image by the same box of another image.

    CutMix (Yun et al. 2019, ICCV, eq. 1 and 2). The area of the box before clipping at the border
    is uniform in [0, 1]; the label follows the area after clipping.

    Parameters
    ----------
    pixels : np.ndarray, uint8 (N, S, S), 0–255
        Grey values.
    labels : np.ndarray, (N,), in [0, 1]
        Labels of the images.
    rng : np.random.Generator
        Source of pairs and boxes.

    Returns
    -------
    pixels : np.ndarray, uint8 (N, S, S), 0–255
        Mixed images.
    labels : np.ndarray, float (N,), in [0, 1]
        Means of both labels, weighted by area.
    """
    side, mixed, found = pixels.shape[1], pixels.copy(), labels.astype(float)
    for row, other in enumerate(rng.permutation(len(pixels))):
        half = side * np.sqrt(rng.uniform()) / 2
        low, high = (np.rint(rng.uniform(0, side, 2) + move) for move in (-half, half))
        box = tuple(map(slice, *np.int64(np.clip([low, high], 0, side))))
        mixed[row][box] = pixels[other][box]
        part = mixed[row][box].size / side**2
        found[row] = (1 - part) * labels[row] + part * labels[other]
    return mixed, found


def _compress(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress an image as JPEG and decode it again."""
    stored = BytesIO()
    Image.fromarray(image).save(stored, "JPEG", quality=quality)
    return np.asarray(Image.open(stored))


def _recolour(grey: np.ndarray, rng: np.random.Generator, styles: Styles) -> np.ndarray:
    grey = 255 * (grey / 255) ** np.exp(rng.uniform(-styles.gamma, styles.gamma))
    contrast = 1 + rng.uniform(-styles.contrast, styles.contrast)
    return (grey - 127.5) * contrast + 127.5 + rng.uniform(-styles.brightness, styles.brightness)


def _move(image: np.ndarray, rng: np.random.Generator, styles: Styles) -> np.ndarray:
    """Rotate, scale, shift and mirror; pixels from outside the frame are black or mirrored."""
    angle = np.radians(rng.uniform(-styles.rotation, styles.rotation))
    width = np.exp(rng.uniform(-styles.zoom, styles.zoom))
    height = width * np.exp(rng.uniform(-styles.stretch, styles.stretch))
    turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix = turn / np.array([[height], [width]])
    centre = (len(image) - 1) / 2
    shift = rng.uniform(-styles.shift, styles.shift, 2) * len(image)
    outside = "constant" if rng.random() < 0.5 else "mirror"
    moved = ndimage.affine_transform(
        image, matrix, centre - matrix @ (centre + shift), order=1, mode=outside
    )
    return np.ascontiguousarray(moved[:, ::-1] if rng.random() < styles.flip else moved)


def _resample(image: np.ndarray, rng: np.random.Generator, styles: Styles) -> np.ndarray:
    """Blur by a lower resolution, or sharpen, or neither."""
    chance, side = rng.random(), len(image)
    if chance < styles.blur:
        small = int(side * rng.uniform(0.27, 0.78))
        picture = Image.fromarray(image).resize((small, small), Image.Resampling.BILINEAR)
        return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
    if chance < styles.blur + styles.sharpen:
        blurred = ndimage.gaussian_filter(image.astype(np.float32), rng.uniform(0.7, 2))
        return _whole(image + rng.uniform(0.3, 1.5) * (image - blurred))
    return image


def _whole(grey: np.ndarray) -> np.ndarray:
    return np.uint8(np.rint(np.clip(grey, 0, 255)))
