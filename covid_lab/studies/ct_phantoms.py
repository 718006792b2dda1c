"""Drawn axial CT slices of the chest in Hounsfield units, with their ground truth.

The slices test the software where no real ones are available. Nothing learned from them is true of
patients. Each slice has a body with fat, muscle, ribs and spine, a table under it, and two lungs
with vessels and one nodule. Some have arms beside the body, lungs that touch in front of the heart,
or a nodule on the pleura. A scanner adds blur and noise.

The malignancy, 1 to 5, shifts the size, outline and calcium of a nodule, with much overlap.
Everything else (patient, noise, size of the nodule view) has the same distribution for all five.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from covid_lab.phantoms import drawn_once
from covid_lab.progress import tracked

DRAWING = 1  # raise it whenever the same seed gives other pixels
GRADES = (1, 2, 3, 4, 5)
# The published imbalance: Table 2 of the report gives the weights 1.929, 1.053, 0.426, 1.149 and
# 3.176. With five classes, the weight w belongs to the fraction 1 / (5 w).
SHARES = (0.104, 0.190, 0.469, 0.174, 0.063)
VIEW_PIXELS = (44, 124)  # shortest and longest side of a nodule view, in slices of 512 pixels
SMALLEST_SIZE = 128  # pixels of a slice; below it a wall between the lungs is lost
NOISY = 0.04  # fraction of slices with several times the usual noise

AIR, FAT, MUSCLE, BONE, LUNG = -1000.0, -100.0, 50.0, 450.0, -860.0  # Hounsfield units
_DIAMETERS = {1: (4, 9), 2: (5, 12), 3: (6, 16), 4: (9, 22), 5: (12, 30)}  # mm


@dataclass(frozen=True)
class Slice:
    """A drawn slice and its ground truth.

    Attributes
    ----------
    hounsfield : np.ndarray, int16 (S, S), −1024 to 3071
        Hounsfield units.
    lungs : np.ndarray, bool (S, S)
        The two lung fields with their vessels and the nodule.
    nodule : np.ndarray, bool (S, S)
        The nodule, inside the lungs.
    view : tuple of slice
        Rows and columns of the nodule view.
    spacing : float
        Millimetres per pixel.
    """

    hounsfield: np.ndarray
    lungs: np.ndarray
    nodule: np.ndarray
    view: tuple[slice, slice]
    spacing: float


def draw_slice(
    patient: np.random.Generator,
    rng: np.random.Generator,
    *,
    malignancy: int | None = 3,
    size: int = 512,
    touching: bool | None = None,
    pleural: bool | None = None,
) -> Slice:
    """Draw one axial slice.

    Parameters
    ----------
    patient : np.random.Generator
        Draws the anatomy; the same seed gives the same patient.
    rng : np.random.Generator
        Draws the slice: its nodule and its noise.
    malignancy : int, 1–5, or None
        Malignancy of the nodule; None for a slice without a nodule (its view is then in the
        middle).
    size : int, from 128
        Pixels along each side.
    touching : bool, optional
        Whether the lungs touch in front of the heart; None: in one third of the patients.
    pleural : bool, optional
        Whether the nodule is on the pleura; None: for one third of the nodules.

    Returns
    -------
    Slice
        The slice and its ground truth.

    Raises
    ------
    ValueError
        Size or malignancy is out of range.

    Examples
    --------
    >>> drawn = draw_slice(np.random.default_rng(0), np.random.default_rng(1), size=128)
    >>> drawn.hounsfield.shape, bool(drawn.nodule.any())
    ((128, 128), True)
    """
    if size < SMALLEST_SIZE:
        raise ValueError(f"size is {size}; allowed: {SMALLEST_SIZE} pixels and more")
    if malignancy is not None and malignancy not in GRADES:
        raise ValueError(f"malignancy is {malignancy!r}; allowed: 1 to 5, or None")
    width, depth = patient.uniform(125, 140), patient.uniform(92, 108)  # half axes, mm
    has_arms = patient.uniform() < 0.4
    field = 400.0 if has_arms else patient.uniform(320, 380)  # mm across the picture
    touch = patient.uniform() < 1 / 3 if touching is None else touching
    spacing = float(field / size)
    place = (np.arange(size) + 0.5) * spacing - field / 2
    x = (place - patient.uniform(-4, 4)).astype(np.float32)[None]
    y = (place - patient.uniform(-4, 4)).astype(np.float32)[:, None]

    picture = np.full((size, size), AIR, np.float32)
    body = _oval(x, y, width, depth)  # 1 at its rim, less inside
    _draw_outside(picture, patient, x, y, width, depth, has_arms)
    _draw_body(picture, patient, x, y, body, width, depth)
    lungs = _lung_fields(patient, x, y, width, depth, touch)
    picture[lungs] = LUNG + patient.uniform(-40, 40)
    picture += lungs * (0.5 * (y + 20))  # denser towards the back: the patient lies on it
    _draw_vessels(picture, rng, lungs, spacing)
    nodule = np.zeros((size, size), bool)
    centre = (size // 2, size // 2)
    if malignancy is not None:
        on_pleura = rng.uniform() < 1 / 3 if pleural is None else pleural
        nodule, centre = _draw_nodule(picture, rng, lungs, spacing, malignancy, on_pleura)
    view = _nodule_view(rng, centre, size)
    return Slice(_scanned(picture, rng, size), lungs, nodule, view, spacing)


def write_dataset(folder: Path, slices: int, per_patient: int, size: int, seed: int) -> Path:
    """Draw a folder of NRRD files with a table of labels.

    The views ``full/<name>.nrrd`` and ``nodule/<name>.nrrd`` are int16 Hounsfield units with their
    spacing. Masks, uint8, have the same names: the nodule in ``masks/full`` and ``masks/nodule``,
    the lungs in ``masks/lungs``. ``labels.csv`` has one row per slice (name, patient, malignancy),
    and ``phantoms.json`` marks the folder as drawn. The folder appears when it is complete. A
    folder that already has the same set is kept.

    Parameters
    ----------
    folder : Path
        Folder to write.
    slices : int, from 25
        Number of slices. The fractions of the malignancies are `SHARES`, with at least 5 slices
        each.
    per_patient : int, from 1
        Slices of one patient, each with another nodule.
    size : int, from 128
        Pixels along each side.
    seed : int, from 0
        Seed of the drawing.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        There are too few slices.
    DataError
        The folder contains something else.
    """
    counts = {"slices": slices, "per_patient": per_patient}
    asked = {"drawing": DRAWING, "kind": "CT slices", **counts, "size": size, "seed": seed}
    grades = np.random.default_rng([seed, 1]).permutation(graded(slices))

    def draw(drawn: Path) -> None:
        for kind in ("full", "nodule", "masks/lungs", "masks/full", "masks/nodule"):
            (drawn / kind).mkdir(parents=True)
        rows = []
        for number, grade in enumerate(tracked(grades, "drawn CT slices")):
            patient = number // per_patient
            one = draw_slice(
                np.random.default_rng([seed, 2, patient]),
                np.random.default_rng([seed, 3, number]),
                malignancy=int(grade),
                size=size,
            )
            name = f"phantom-{patient:04d}-{number:05d}"
            pictures = {
                "full": one.hounsfield,
                "nodule": one.hounsfield[one.view],
                "masks/lungs": one.lungs.astype(np.uint8),
                "masks/full": one.nodule.astype(np.uint8),
                "masks/nodule": one.nodule[one.view].astype(np.uint8),
            }
            for kind, picture in pictures.items():
                _write_slice(drawn / kind / f"{name}.nrrd", picture, one.spacing)
            rows.append((name, f"patient-{patient:04d}", int(grade)))
        table = pd.DataFrame(rows, columns=["name", "patient", "malignancy"])
        table.to_csv(drawn / "labels.csv", index=False)

    drawn_once(folder, asked, draw)
    return folder


def graded(slices: int) -> np.ndarray:
    """Return the malignancies of a number of slices, in the proportions of `SHARES`.

    Parameters
    ----------
    slices : int, from 25
        Number of slices.

    Returns
    -------
    np.ndarray, int (slices,), 1–5
        Malignancies in rising order, each at least five times.

    Raises
    ------
    ValueError
        There are fewer than 25 slices, too few to split and learn.

    Examples
    --------
    >>> np.bincount(graded(100))[1:].tolist()
    [10, 19, 48, 17, 6]
    """
    if slices < 25:
        raise ValueError(f"slices is {slices}; allowed: 25 and more")
    counts = np.maximum(np.floor(np.multiply(SHARES, slices)).astype(int), 5)
    counts[np.argmax(counts)] += slices - counts.sum()  # the rest has the most frequent malignancy
    return np.repeat(GRADES, counts)


def _write_slice(path: Path, values: np.ndarray, spacing: float) -> None:
    """Write a slice as a gzipped NRRD file."""
    # pynrrd would write the time of day into the file. Here equal slices give equal files.
    height, width = values.shape
    header = [
        "NRRD0004",
        f"type: {values.dtype.name}",
        "dimension: 2",
        f"sizes: {width} {height}",
        f"spacings: {spacing!r} {spacing!r}",
        'units: "mm" "mm"',
        "endian: little",
        "encoding: gzip",
    ]
    pixels = values.astype(values.dtype.newbyteorder("<")).tobytes()
    packed = gzip.compress(pixels, compresslevel=1, mtime=0)
    path.write_bytes("\n".join(header).encode() + b"\n\n" + packed)


# Anatomy. Lengths in mm; x to the right, y down (to the back), (0, 0) is the middle of the body.


def _oval(x: np.ndarray, y: np.ndarray, width: float, depth: float) -> np.ndarray:
    """Return a superellipse: below 1 inside. Like a chest, it is between ellipse and rectangle."""
    return (np.abs(x / width) ** 2.4 + np.abs(y / depth) ** 2.4) ** (1 / 2.4)


def _draw_outside(picture, patient, x, y, width: float, depth: float, has_arms: bool) -> None:
    """Draw the table under the back and the arms at the sides."""
    curve = depth + patient.uniform(1, 4) - 0.0012 * x**2  # of the table's top
    shell = (np.abs(x) < 0.95 * width) & (y > curve) & (y < curve + 14)
    foam = shell & (y > curve + 2.5) & (y < curve + 11.5)
    picture[shell], picture[foam] = patient.uniform(0, 150), -850
    if has_arms:
        for side in (-1, 1):
            radius = patient.uniform(19, 23)
            away = np.hypot(x - side * (width + radius + 5), y - patient.uniform(-20, 30))
            picture[away < radius] = FAT
            picture[away < radius - 4] = MUSCLE
            picture[away < 8] = BONE


def _draw_body(picture, patient, x, y, body, width: float, depth: float) -> None:
    """Draw fat, muscle, ribs, spine, heart and aorta."""
    picture[body < 1] = FAT
    picture[body < patient.uniform(0.88, 0.95)] = MUSCLE
    angle = np.arctan2(y / depth, x / width)
    ribs = (np.abs(body - 0.855) < 0.022) & (np.sin(9 * angle + patient.uniform(0, 6)) > 0.1)
    picture[ribs] = patient.uniform(300, 600)
    spine = np.hypot(x / 20, (y - 0.58 * depth) / 17)
    picture[spine < 1] = patient.uniform(200, 350)
    picture[np.hypot(x / 9, (y - 0.58 * depth - 24) / 8) < 1] = 30.0  # spinal canal
    picture[np.hypot(x / 22, (y + 0.8 * depth) / 5) < 1] = BONE  # sternum
    picture[np.hypot(x + 4, y - 0.3 * depth) < 12] = patient.uniform(40, 250)  # aorta


def _lung_fields(patient, x, y, width: float, depth: float, touch: bool) -> np.ndarray:
    """Return two lung fields, bool (S, S), around the heart; a thin wall separates them."""
    cage = _oval(x, y, 0.81 * width, 0.81 * depth) < 1
    heart = np.hypot((x - 14) / patient.uniform(42, 52), (y + 0.05 * depth) / 46)
    middle = np.maximum(
        np.exp(-(((y - 0.58 * depth) / 34) ** 2)) * 30, 17 + patient.uniform(0, 8)
    )  # half width of the mediastinum, wider at the spine
    wall = 0.9  # half of it, mm
    if touch:  # a tongue of each lung reaches the midline in front of the heart
        front = y < -0.42 * depth
        middle = np.where(front, wall, middle)
        heart = np.where(front, 9.0, heart)
    fields = cage & (heart > 1) & (np.abs(x) > middle)
    # rounded corners, and no splinters beside the heart
    rounded = ndimage.gaussian_filter(fields.astype(np.float32), 3 * len(y) / 512) > 0.5
    if touch:
        rounded &= np.abs(x) > wall
    kept, count = ndimage.label(rounded)
    areas = ndimage.sum_labels(rounded, kept, range(1, count + 1))
    return np.isin(kept, 1 + np.flatnonzero(areas > 0.2 * areas.max()))


def _draw_vessels(picture, rng, lungs: np.ndarray, spacing: float) -> None:
    """Draw bright branches and dots, thicker towards the middle."""
    inside = ndimage.distance_transform_edt(lungs) * spacing
    places = np.argwhere(inside > 6)
    half = len(lungs) / 2
    for row, column in places[rng.integers(0, len(places), 60)]:
        medial = 1 - abs(column - half) / half
        radius = rng.uniform(0.6, 0.8 + 1.8 * medial) / spacing
        angle, length = rng.uniform(0, np.pi), rng.uniform(0, 14) / spacing
        steps = np.linspace(-length / 2, length / 2, max(int(length), 1))
        for step in steps:
            r, c = row + step * np.sin(angle), column + step * np.cos(angle)
            reach = int(np.ceil(radius)) + 1
            rows = slice(max(int(r) - reach, 0), int(r) + reach + 2)
            columns = slice(max(int(c) - reach, 0), int(c) + reach + 2)
            yy, xx = np.mgrid[rows, columns]
            spot = (np.hypot(yy - r, xx - c) <= radius) & lungs[rows, columns]
            picture[rows, columns][spot] = rng.uniform(-20, 60)


def _draw_nodule(
    picture, rng, lungs: np.ndarray, spacing: float, malignancy: int, pleural: bool
) -> tuple[np.ndarray, tuple[int, int]]:
    """Draw one nodule; return its mask, bool (S, S), and its centre (row, column)."""
    low, high = np.log(_DIAMETERS[malignancy])
    radius = np.exp(rng.uniform(low, high)) / 2 / spacing  # pixels
    depth = ndimage.distance_transform_edt(lungs)
    if pleural:
        # On the outer pleura: farther from the midline than most of the lung.
        lateral = np.abs(np.arange(len(lungs)) - len(lungs) / 2)
        outer = lateral > 0.62 * lateral[lungs.any(axis=0)].max()
        fits = lungs & outer & (np.abs(depth - 0.75 * radius) < 1)
    else:
        fits = depth > radius + 2 / spacing
    places = np.argwhere(fits)
    if not len(places):  # a nodule larger than the lung is deep
        places = np.argwhere(depth >= 0.9 * depth.max())
    row, column = places[rng.integers(len(places))]
    yy, xx = np.ogrid[: len(lungs), : len(lungs)]
    angle = np.arctan2(yy - row, xx - column)
    # An outline that becomes lobulated and then spiculated with malignancy.
    lobes, spikes = rng.uniform(0, 0.05 * malignancy), rng.uniform(0, 0.035 * malignancy)
    outline = 1 + lobes * np.cos(rng.integers(2, 5) * angle + rng.uniform(0, 6))
    outline = outline + spikes * np.cos(rng.integers(9, 15) * angle + rng.uniform(0, 6))
    away = np.hypot(yy - row, xx - column) / (radius * outline)
    nodule = (away <= 1) & lungs
    solid = rng.uniform() > 0.25
    density = rng.uniform(-20, 80) if solid else rng.uniform(-550, -250)  # or ground glass
    picture[nodule] = density
    if rng.uniform() < 0.5 - 0.1 * malignancy:  # calcium speaks against malignancy
        picture[nodule & (away < 0.5)] = rng.uniform(250, 600)
    return nodule, (int(row), int(column))


def _nodule_view(rng: np.random.Generator, centre: Sequence[int], size: int) -> tuple[slice, slice]:
    """Return rows and columns around the nodule; their size is independent of the nodule's."""
    shortest, longest = (round(side * size / 512) for side in VIEW_PIXELS)
    side = np.exp(rng.uniform(np.log(shortest), np.log(longest)))
    view = []
    for place in centre:
        length = int(np.clip(round(side * rng.uniform(0.88, 1.12)), shortest, longest))
        start = int(np.clip(place - length // 2 + rng.integers(-2, 3), 0, size - length))
        view.append(slice(start, start + length))
    return view[0], view[1]


def _scanned(picture: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Add the scanner's blur and noise; return int16 Hounsfield units."""
    blurred = ndimage.gaussian_filter(picture, 0.7 * size / 512)
    noise = rng.normal(size=picture.shape).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, rng.uniform(0.4, 0.9))
    deviation = rng.uniform(90, 140) if rng.uniform() < NOISY else rng.uniform(10, 35)  # HU
    blurred += deviation * smooth / smooth.std()
    return np.clip(np.rint(blurred), -1024, 3071).astype(np.int16)
