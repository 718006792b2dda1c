"""Anatomy of drawn chest radiographs (`covid_lab.phantoms`): tissues, lesions, markers, scanner.

Lengths are fractions of half the image's side, x points to the right, y down, (0, 0) is the centre.
Opacity has no unit: soft tissue is about 0.65, an air-filled lung about 0.25.
"""

import math
from functools import cache

import numpy as np
from scipy import ndimage

# number of blobs in a lung and their radius, as a fraction of half the image's side
_BLOBS = {
    "mild": ((3, 5), (0.06, 0.13)),
    "moderate": ((3, 5), (0.06, 0.13)),
    "severe": ((6, 9), (0.08, 0.16)),
}
_LESION_EDGE = 0.35  # the mask holds what exceeds this fraction of the lung's strongest opacity

_LETTERS = {
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
    "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
}


def draw_thorax(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a healthy chest.

    Parameters
    ----------
    rng : np.random.Generator
    size : int, from 32
        Pixels along each side.

    Returns
    -------
    opacity : np.ndarray, float32 (size, size)
    air : np.ndarray, float32 (2, size, size), 0–1
        Of the lung in the left and in the right half of the picture.
    """
    x, y = _patient_coordinates(rng, size)
    air, abdomen = zip(*(_draw_lung(rng, x, y, side) for side in (-1, 1)), strict=True)
    heart = _draw_heart(rng, x, y)
    air = np.stack(air) * (1 - heart)
    lungs = air.sum(axis=0)

    opacity = 0.62 + 0.1 * (1 - x**2) + 0.15 * np.maximum(sum(abdomen), heart)
    opacity += _draw_mediastinum(rng, x, y)
    depth = 0.6 + 0.4 * ndimage.uniform_filter(lungs, size // 6)  # thinner towards the edge
    opacity -= rng.uniform(0.29, 0.5) * lungs * depth
    opacity += _draw_vessels(rng, lungs)
    opacity += _draw_bones(rng, x, y)
    opacity += _draw_breasts(rng, x, y)
    opacity += rng.uniform(0.005, 0.02) * lungs * _texture(rng, size, coarsest=3, slope=1.0)
    opacity += 0.03 * _texture(rng, size, coarsest=1, slope=2.0)
    return opacity * _draw_body(rng, x, y), air


def _patient_coordinates(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """X and y (size, size) of a patient who is shifted, scaled and rotated in the picture."""
    pixels = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    angle = np.float32(rng.uniform(-0.08, 0.08))  # radians
    x, y = (pixels - np.float32(rng.uniform(-0.06, 0.06)) for _ in range(2))
    y = y[:, None]
    width, height = (np.float32(scale) for scale in rng.uniform(0.9, 1.05, 2))
    return (
        (np.cos(angle) * x + np.sin(angle) * y) / width,
        (np.cos(angle) * y - np.sin(angle) * x) / height,
    )


def _draw_lung(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Air of the lung on one side (−1 or 1) and tissue of the abdomen below it, both 0 to 1."""
    u = side * x  # distance from the midline
    inner, width = rng.uniform(0.11, 0.15), rng.uniform(0.55, 0.66)
    top, bottom = rng.uniform(-0.85, -0.74), rng.uniform(0.42, 0.62) + 0.03 * side
    depth = np.clip((y - top) / (bottom - top), 0, 1)  # 0 at the apex, 1 at the base
    lateral = inner + width * (1 - (1 - depth) ** rng.uniform(2.2, 3.0)) ** 0.55
    medial = inner + 0.2 * np.exp(-depth / 0.1)
    dome = bottom + rng.uniform(0.5, 0.9) * (u - inner - 0.4 * width) ** 2  # the diaphragm
    inside = np.minimum(np.minimum(lateral - u, u - medial), np.minimum(dome - y, y - top))
    return _soft(inside / 0.012), _soft((y - dome) / 0.03) * _soft(u / 0.05)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Remove the single pixels that the grid separates from a lung's sharp corners.

    Parameters
    ----------
    mask : np.ndarray, bool (size, size)
        Not empty.

    Returns
    -------
    np.ndarray, bool (size, size)
        The largest connected region.
    """
    components, _ = ndimage.label(mask)
    areas = np.bincount(components.ravel())
    return components == 1 + areas[1:].argmax()


def _draw_heart(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Shadow of heart and aortic knob, 0 to 1; most of it in the right half of the picture."""
    angle = rng.uniform(0.5, 0.9)
    cos, sin = math.cos(angle), math.sin(angle)
    dx, dy = x - rng.uniform(0.1, 0.16), y - rng.uniform(0.3, 0.42)
    dy = np.minimum(dy, 0.5 * dy)  # reaches below the diaphragm, so that it rests on it
    along = (cos * dx + sin * dy) / rng.uniform(0.4, 0.5)
    across = (cos * dy - sin * dx) / rng.uniform(0.25, 0.32)
    heart = _soft((1 - np.sqrt(along**2 + across**2)) / 0.04)
    knob = _soft((rng.uniform(0.08, 0.11) - np.hypot(x - 0.1, y + rng.uniform(0.2, 0.3))) / 0.02)
    return np.maximum(heart, knob)


def _draw_mediastinum(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Opacity of the great vessels and the spine with its discs, less the air of the trachea."""
    spine = _soft((0.085 - np.abs(x)) / 0.015)
    discs = 0.5 + 0.5 * np.cos(2 * np.pi * y / rng.uniform(0.13, 0.17))
    trachea = np.exp(-(((x - 0.01) / 0.045) ** 2)) * _soft((-0.3 - y) / 0.05)
    vessels = np.exp(-((x / 0.16) ** 2))
    return 0.1 * vessels + spine * (0.06 + 0.05 * discs) - 0.14 * trachea


def _draw_bones(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Opacity of ribs and clavicles.

    The ribs of one kind are the level lines of a periodic function, all drawn at once.
    """
    u = np.abs(x)
    cage = _soft((0.88 - u - 0.9 * np.maximum(-0.2 - y, 0) ** 2) / 0.03) * _soft((0.75 - y) / 0.1)
    spacing = rng.uniform(0.15, 0.19)
    strength = rng.uniform(0.06, 0.12)
    # behind: rising from the spine, then falling outwards; in front: falling towards the sternum
    behind = y - rng.uniform(0.8, 1.1) * (u - rng.uniform(0.2, 0.3)) ** 2
    in_front = y + rng.uniform(0.4, 0.6) * u - 0.2 * u**2
    ribs = _rib(behind / spacing + rng.uniform()) * _soft((u - 0.08) / 0.02)
    ribs += 0.45 * _rib(in_front / (1.2 * spacing) + rng.uniform()) * _soft((u - 0.3) / 0.06)
    ribs *= cage * _soft((y + 0.85) / 0.03)

    height, rise = rng.uniform(-0.68, -0.56), rng.uniform(0.1, 0.25)
    middle = height - rise * u - 0.05 * np.sin(6 * u)
    clavicles = np.exp(-(((y - middle) / 0.035) ** 2)) * _soft((u - 0.1) / 0.02)
    clavicles *= _soft((0.8 - u) / 0.03)
    return strength * ribs + 1.4 * strength * clavicles


def _rib(phase: np.ndarray) -> np.ndarray:
    """Cross-section of ribs at whole numbers of the phase: a band with denser rims, 0 to 1."""
    wave = np.cos(2 * np.pi * phase)
    return 0.7 * _soft((wave - 0.25) / 0.12) + 0.3 * np.exp(-(((wave - 0.25) / 0.2) ** 2))


def _draw_vessels(rng: np.random.Generator, lungs: np.ndarray) -> np.ndarray:
    """Opacity of the vessels that fan out from the two hila, thinner towards the edge."""
    size = len(lungs)
    steps = np.linspace(0, 1, size // 2)[:, None]  # (steps, 1)
    canvas = np.zeros((2, size, size), np.float32)
    for side in (-1, 1):
        number = rng.integers(14, 26)
        direction = rng.uniform(-1.3, 1.45, number)  # radians against the horizontal
        length = rng.uniform(0.3, 0.95, number)
        bend = rng.normal(0, 0.5, number)
        angle = direction + bend * steps  # (steps, number)
        start = rng.normal(0, 0.04, (2, number))
        px = 0.16 + start[0] + length * steps * np.cos(angle)
        py = 0.02 + start[1] + length * steps * np.sin(angle) * 0.9
        # from the picture's midline: the mediastinum hides by how much the patient is off it
        column = np.clip((side * px + 1) * size / 2, 0, size - 1).astype(int)
        row = np.clip((py + 1) * size / 2, 0, size - 1).astype(int)
        weight = np.broadcast_to(length * (1 - steps), px.shape)
        np.add.at(canvas[0], (row, column), weight * (steps < 0.5))
        np.add.at(canvas[1], (row, column), weight)
    radii = size / 60, size / 140
    thick, thin = (
        # blurring spreads a line of height 1 to this height
        math.sqrt(2 * math.pi) * radius * ndimage.gaussian_filter(line, radius)
        for radius, line in zip(radii, canvas, strict=True)
    )
    return rng.uniform(0.03, 0.09) * lungs * np.minimum(thick + thin, 2)


def _draw_breasts(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Opacity of breast tissue over the lung bases: at times strong, often almost nothing."""
    u = np.abs(x)
    distance = np.hypot((u - rng.uniform(0.4, 0.5)) / 0.36, (y - rng.uniform(0.2, 0.4)) / 0.3)
    return rng.uniform(0, 0.08) * _soft((1 - distance) / 0.15)


def _draw_body(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Outline of neck, shoulders and trunk against the air around it, 0 to 1."""
    neck, trunk = rng.uniform(0.24, 0.32), rng.uniform(0.92, 1.1)
    shoulder = _soft((y - rng.uniform(-0.85, -0.72)) / 0.06)
    return _soft((neck + (trunk - neck) * shoulder - np.abs(x)) / 0.015)


def _texture(rng: np.random.Generator, size: int, coarsest: float, slope: float) -> np.ndarray:
    """Correlated noise (size, size), mean 0 and standard deviation 1.

    Its amplitude falls with the spatial frequency to the power ``slope``, from ``coarsest`` cycles
    per image on.
    """
    white = np.fft.rfft2(rng.standard_normal((size, size), np.float32))
    noise = np.fft.irfft2(white * _amplitude(size, coarsest, slope), (size, size))
    return noise / noise.std()


@cache
def _amplitude(size: int, coarsest: float, slope: float) -> np.ndarray:
    """Amplitude of the correlated noise at each frequency of ``np.fft.rfft2``, float32."""
    cycles = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * size
    return np.where(cycles < coarsest, 0, np.maximum(cycles, 1) ** -slope).astype(np.float32)


def draw_lesions(
    rng: np.random.Generator, air: np.ndarray, lungs: np.ndarray, severity: str
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the lesions of COVID.

    Parameters
    ----------
    rng : np.random.Generator
    air : np.ndarray, float32 (2, size, size), 0–1
        From `draw_thorax`.
    lungs : np.ndarray, bool (2, size, size)
        Masks of the two lungs.
    severity : {"mild", "moderate", "severe"}

    Returns
    -------
    shape : np.ndarray, float32 (size, size), from 0
        Opacity relative to the densest place of each affected lung, which is 1.
    mask : np.ndarray, bool (size, size)
    """
    (fewest, most), radii = _BLOBS[severity]
    size = lungs.shape[-1]
    pixels = np.arange(size, dtype=np.float32)
    texture = np.clip(1 + 0.25 * _texture(rng, size, coarsest=4, slope=1.5), 0.2, None)
    shape, mask = np.zeros((size, size), np.float32), np.zeros((size, size), bool)
    for side in [rng.integers(2)] if severity == "mild" else (0, 1):
        rows, columns = np.nonzero(lungs[side])
        number = rng.integers(fewest, most + 1)
        # lower places are affected more often
        centre = rng.choice(len(rows), number, p=rows / rows.sum())
        radius = rng.uniform(*radii, (2, number, 1)) * size / 2
        # a sum of axis-parallel Gaussian blobs is one matrix product
        down = np.exp(-0.5 * ((pixels - rows[centre, None]) / radius[0]) ** 2)
        across = np.exp(-0.5 * ((pixels - columns[centre, None]) / radius[1]) ** 2)
        strength = rng.uniform(0.5, 1.0, (number, 1))
        blobs = (1 - np.exp(-2 * down.T @ (strength * across))) * texture * air[side]
        blobs /= blobs[lungs[side]].max()
        shape += blobs
        mask |= (blobs > _LESION_EDGE) & lungs[side]
    return shape, mask


def draw_markers(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a letter, a tag and a wire, each with its own probability.

    Parameters
    ----------
    rng : np.random.Generator
    size : int, from 32
        Pixels along each side.

    Returns
    -------
    np.ndarray, float32 (size, size)
        Opacity.
    """
    opacity = np.zeros((size, size), np.float32)
    for chance, add in ((0.6, add_letter), (0.2, add_tag), (0.25, add_wire)):
        if rng.random() < chance:
            add(rng, opacity)
    return opacity


def add_letter(rng: np.random.Generator, opacity: np.ndarray) -> None:
    """Add an L or R in the corner of the patient's side.

    Parameters
    ----------
    rng : np.random.Generator
    opacity : np.ndarray, float32 (size, size)
        Changed in place.
    """
    size = len(opacity)
    name = rng.choice(["L", "R"])
    letter = np.array([[int(dot) for dot in line] for line in _LETTERS[name]])
    letter = ndimage.zoom(letter, rng.uniform(0.07, 0.1) * size / 7, order=1)
    row = int(rng.uniform(0.03, 0.12) * size)
    column = int(rng.uniform(0.03, 0.12) * size)
    if name == "L":  # the patient's left is on the right
        column = size - column - letter.shape[1]
    opacity[row : row + letter.shape[0], column : column + letter.shape[1]] += letter


def add_tag(rng: np.random.Generator, opacity: np.ndarray) -> None:
    """Add a rectangular tag at the upper or lower edge.

    Parameters
    ----------
    rng : np.random.Generator
    opacity : np.ndarray, float32 (size, size)
        Changed in place.
    """
    size = len(opacity)
    row, column = rng.choice([0.02, 0.9]) * size, rng.uniform(0.02, 0.78) * size
    height, width = rng.uniform(0.03, 0.06) * size, rng.uniform(0.1, 0.2) * size
    opacity[int(row) : int(row + height), int(column) : int(column + width)] += 0.6


def add_wire(rng: np.random.Generator, opacity: np.ndarray) -> None:
    """Add a wire that crosses the picture in waves.

    Parameters
    ----------
    rng : np.random.Generator
    opacity : np.ndarray, float32 (size, size)
        Changed in place.
    """
    size = len(opacity)
    path = np.linspace(0, 1, 3 * size)
    row = rng.uniform(-0.1, 0.4) + path * rng.uniform(0.3, 0.9)
    column = rng.uniform(0.1, 0.9) + 0.15 * np.sin(rng.uniform(2, 6) * path + rng.uniform(0, 6))
    row, column = (row * size).astype(int), (column * size).astype(int)
    seen = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    opacity[row[seen], column[seen]] += 0.35


def add_nodules(rng: np.random.Generator, opacity: np.ndarray, lungs: np.ndarray) -> None:
    """Add a few small, round, sharp nodules to the lungs.

    Parameters
    ----------
    rng : np.random.Generator
    opacity : np.ndarray, float32 (size, size)
        Changed in place.
    lungs : np.ndarray, bool (size, size)
    """
    size = len(opacity)
    rows, columns = np.nonzero(lungs)
    pixels = np.arange(size)
    for place in rng.choice(len(rows), rng.integers(2, 6)):
        distance = np.hypot(pixels[:, None] - rows[place], pixels - columns[place])
        opacity += rng.uniform(0.15, 0.4) * _soft((rng.uniform(0.02, 0.04) * size - distance) / 1.0)


def add_fluid(rng: np.random.Generator, opacity: np.ndarray, air: np.ndarray) -> None:
    """Fill one lung with fluid up to a level.

    Parameters
    ----------
    rng : np.random.Generator
    opacity : np.ndarray, float32 (size, size)
        Changed in place.
    air : np.ndarray, float32 (2, size, size), 0–1
        From `draw_thorax`.
    """
    lung = air[rng.integers(2)]
    rows = np.nonzero((lung > 0.5).any(axis=1))[0]
    level = rows[0] + rng.uniform(0.6, 0.85) * (rows[-1] - rows[0])
    below = _soft((np.arange(len(opacity)) - level) / 2.0)[:, None]
    opacity += rng.uniform(0.2, 0.4) * below * lung


def expose(rng: np.random.Generator, opacity: np.ndarray) -> np.ndarray:
    """Turn opacity into the image of a scanner with its own blur, dose and display.

    Parameters
    ----------
    rng : np.random.Generator
    opacity : np.ndarray, float32 (size, size)

    Returns
    -------
    np.ndarray, uint8 (size, size)
    """
    size = len(opacity)
    opacity = ndimage.gaussian_filter(opacity, rng.uniform(0.3, 0.7) * size / 128)
    # N photons have the deviation √N, so that the log-signal has 1/√N, and fewer pass where it is
    # dense; the detector adds its own
    quantum, electronic = rng.uniform(0.004, 0.016), rng.uniform(0.002, 0.008)
    deviation = np.hypot(quantum * np.exp(opacity), electronic)
    opacity += deviation * rng.standard_normal(opacity.shape, np.float32)
    level, gain, gamma = rng.uniform(-0.08, 0.12), rng.uniform(0.65, 1.02), rng.uniform(0.75, 1.4)
    shown = np.clip(gain * (opacity - level), 0, 1) ** gamma
    return np.rint(255 * shown).astype(np.uint8)


def _soft(distance: np.ndarray) -> np.ndarray:
    """Step from 0 to 1 with a soft edge at 0."""
    return 0.5 + 0.5 * np.tanh(0.5 * distance)
