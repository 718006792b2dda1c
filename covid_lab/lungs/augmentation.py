"""Random changes to radiographs that train the lung segmentation (`covid_lab.lungs.training`).

The labelled lungs are mostly clear, and their images come from two hospitals. Drawn opacities,
tubes, marks and borders, and changes of grey values and geometry stand in for other patients and
other scanners.
"""

from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from covid_lab.lungs.network import FIELD, OUTSIDE

# A label is the set of classes that a pixel may have, one bit each.
SURELY_OUTSIDE, MAYBE_FIELD = np.uint8(1 << OUTSIDE), np.uint8(1 << FIELD)


def distort(
    image: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Change an image at random, and its labels with it.

    Parameters
    ----------
    image : np.ndarray, uint8 (S, S)
        Grey values.
    labels : np.ndarray, uint8 (S, S)
        Set of the classes that each pixel may have: bit k stands for class k of `network`.
    rng : np.random.Generator
        Decides everything.

    Returns
    -------
    image : np.ndarray, uint8 (S, S)
    labels : np.ndarray, uint8 (S, S)
        What comes in from beyond the frame is outside the lungs.
    """
    grey = image.astype(np.float32) / 255
    if rng.random() < 0.6:
        grey = add_opacities(grey, labels & MAYBE_FIELD > 0, rng)
    if rng.random() < 0.4:
        grey = _add_devices(grey, rng)
    grey, labels = _move(grey, labels, rng)
    grey = _change_grey_values(grey, rng)
    if rng.random() < 0.25:
        grey, labels = _add_border(grey, labels, rng)
    if rng.random() < 0.4:
        grey = _add_marks(grey, rng)
    return _saved(grey, rng), labels


def add_opacities(grey: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw opacities into the lungs: patches, fluid at the base, a veil over a lung or the image.

    Parameters
    ----------
    grey : np.ndarray, float32 (S, S), 0–1
    lungs : np.ndarray, bool (S, S)
    rng : np.random.Generator

    Returns
    -------
    np.ndarray, float32 (S, S), 0–1
        The edges of the opacities do not follow those of the lungs, which would give these away.
    """
    rows, columns = np.nonzero(lungs)
    if len(rows) == 0:
        return grey
    side = len(grey)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    clear = np.ones_like(grey)
    for _ in range(rng.integers(0, 9)):  # patches
        pixel = rng.integers(len(rows))
        radii = side * np.exp(rng.uniform(np.log(0.025), np.log(0.16), 2))
        distance = ((y - rows[pixel]) / radii[0]) ** 2 + ((x - columns[pixel]) / radii[1]) ** 2
        clear *= 1 - rng.uniform(0.3, 1) * np.exp(-(distance ** rng.uniform(0.8, 2)))
    left = x < columns.mean()
    for half in (left, ~left):
        kind = rng.random()
        if kind < 0.15:  # fluid
            level = rng.uniform(0.35, 0.95) * (rows.max() - rows.min()) + rows.min()
            depth = (y - level + rng.normal(0, 0.3) * (x - x[half].mean())) / rng.uniform(1, 10)
            clear *= 1 - rng.uniform(0.4, 1) * half / (1 + np.exp(-depth.clip(-30, 30)))
        elif kind < 0.35:  # a veil over the lung
            clear *= 1 - rng.uniform(0.1, 0.9) * half
    opacity = (1 - clear) * (1 - rng.uniform(0, 0.6) * _smooth_noise(side, rng).clip(0, 1))
    reach = ndimage.binary_dilation(lungs, iterations=rng.integers(1, 5)).astype(np.float32)
    opacity *= ndimage.gaussian_filter(reach, rng.uniform(1.5, 6))
    dense = np.quantile(grey, rng.uniform(0.6, 0.95))
    detail = rng.uniform(0, 1) * (grey - ndimage.gaussian_filter(grey, 4))
    return (grey + opacity * (np.maximum(dense - grey, 0) + detail * opacity)).clip(0, 1)


def _add_devices(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw tubes, wires, electrodes and a box."""
    side = len(grey)
    drawing = Image.new("L", (side, side))
    pen = ImageDraw.Draw(drawing)
    time = np.linspace(0, 1, 20)[:, None]
    for _ in range(rng.integers(0, 5)):  # quadratic Bézier curves
        start, middle, end = rng.uniform(-0.1, 1.1, (3, 2)) * side
        curve = (1 - time) ** 2 * start + 2 * time * (1 - time) * middle + time**2 * end
        pen.line([tuple(point) for point in curve], int(rng.integers(100, 256)), rng.integers(1, 3))
    for _ in range(rng.integers(0, 4)):
        centre, radius = rng.uniform(0, side, 2), rng.uniform(0.01, 0.04) * side
        pen.ellipse([*(centre - radius), *(centre + radius)], int(rng.integers(100, 256)))
    if rng.random() < 0.2:
        corner, size = rng.uniform(0, side, 2), rng.uniform(0.03, 0.15, 2) * side
        pen.rectangle([*corner, *(corner + size)], int(rng.integers(150, 256)))
    shown = ndimage.gaussian_filter(np.asarray(drawing, np.float32) / 255, rng.uniform(0.2, 0.8))
    return grey + shown * (rng.uniform(0.7, 1) - grey)


def _move(
    grey: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Turn, scale, shift, mirror and bend, with one interpolation."""
    side = len(grey)
    angle = np.radians(rng.normal(0, 6))
    scale = np.exp(rng.normal(0, 0.13) + rng.normal(0, 0.07, 2))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turn = turn / scale * [1, rng.choice([-1, 1])]
    centre = (side - 1) / 2
    places = np.mgrid[:side, :side].reshape(2, -1) - centre - rng.normal(0, 0.06, (2, 1)) * side
    places = turn @ places + centre
    bend = np.stack([_smooth_noise(side, rng, rng.integers(3, 7)) for _ in range(2)])
    places = (places + rng.uniform(0, 0.02) * side * bend.reshape(2, -1)).astype(np.float32)
    beyond = rng.choice([0, 0, 0, 1, rng.random()])
    moved = ndimage.map_coordinates(grey, places, order=1, mode="constant", cval=beyond)
    labels = ndimage.map_coordinates(labels, places, order=0, mode="constant", cval=SURELY_OUTSIDE)
    return moved.reshape(side, side), labels.reshape(side, side)


def _change_grey_values(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, gamma, contrast with saturation, equalisation, blur, sharpening, noise."""
    low, high = np.quantile(grey, [0.01, 0.99])
    grey = ((grey - low) / max(high - low, 0.02)).clip(0, 1)
    grey = grey ** np.exp(rng.normal(0, 0.4))
    if rng.random() < 0.2:
        order = np.argsort(grey, axis=None)
        equal = np.empty(grey.size, np.float32)
        equal[order] = np.linspace(0, 1, grey.size)
        grey = grey + rng.uniform(0, 1) * (equal.reshape(grey.shape) - grey)
    if rng.random() < 0.4:  # unequal exposure
        grey = grey * (1 + rng.uniform(0, 0.3) * _smooth_noise(len(grey), rng, 3))
    if rng.random() < 0.3:
        grey = ndimage.gaussian_filter(grey, rng.uniform(0.3, 1.6))
    elif rng.random() < 0.2:
        coarse = ndimage.gaussian_filter(grey, rng.uniform(1, 8))
        grey = grey + rng.uniform(0.3, 1.5) * (grey - coarse)
    contrast, middle = np.exp(rng.normal(0, 0.25)), rng.uniform(0.3, 0.7)
    grey = (grey - middle) * contrast + middle + rng.normal(0, 0.05)
    if rng.random() < 0.4:
        grey = grey + rng.normal(0, rng.uniform(0, 0.08), grey.shape)
    return grey.clip(0, 1).astype(np.float32)


def _add_border(
    grey: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cover the rim of the image evenly."""
    side = len(grey)
    top, bottom, left, right = ((rng.random(4) < 0.6) * rng.uniform(0, 0.12, 4) * side).astype(int)
    covered = np.ones(grey.shape, bool)
    covered[top : side - bottom, left : side - right] = False
    level = rng.choice([0, 1, rng.random()])
    return np.where(covered, np.float32(level), grey), np.where(covered, SURELY_OUTSIDE, labels)


def _add_marks(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Write letters near the rim, and cover small boxes, as where names were removed."""
    side = len(grey)
    drawing = Image.fromarray(np.uint8(255 * grey))
    pen = ImageDraw.Draw(drawing)
    for _ in range(rng.integers(1, 4)):
        place = rng.uniform(0, 0.9, 2) * side
        place[rng.integers(2)] = rng.choice([0.01, 0.85]) * side
        if rng.random() < 0.7:
            word = rng.choice(["R", "L", "PA", "AP", "SUPINE", "PORTABLE", "12:30"])
            pen.text(tuple(place), word, fill=int(rng.integers(180, 256)))
        else:
            size = rng.uniform(0.04, 0.2, 2) * side
            pen.rectangle([*place, *(place + size)], int(rng.choice([0, 255])))
    return np.asarray(drawing, np.float32) / 255


def _saved(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Round to 8 bits, sometimes through JPEG."""
    image = np.uint8(np.rint(255 * grey))
    if rng.random() < 0.15:
        file = BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(rng.integers(15, 80)))
        image = np.asarray(Image.open(file))
    return image


def _smooth_noise(side: int, rng: np.random.Generator, knots: int = 8) -> np.ndarray:
    """Noise float32 (side, side) with a standard deviation of about 1 and ``knots`` waves."""
    basis = _spline_basis(side, int(knots))
    return basis @ rng.normal(0, 1, (knots, knots)).astype(np.float32) @ basis.T


@cache
def _spline_basis(side: int, knots: int) -> np.ndarray:
    """Interpolate values at equidistant knots, float32 (side, knots)."""
    return ndimage.zoom(np.eye(knots, dtype=np.float32), (side / knots, 1), order=3)
