"""Drawn chest radiographs with known lung and lesion masks: the embedded default data set.

Phantoms test the software where no real image is available; models trained on them say nothing
about patients. The drawing follows the physics: along a ray the attenuations of the tissues add up,
so organs, lesions and markers are summed into one map of opacity, which the scanner then blurs,
exposes with photon noise and displays.

Three independent streams of random numbers draw the patient, the disease and the scanner. All that
a network could use as a shortcut (anatomy, exposure, noise, position, markers) is therefore
distributed alike in both classes, and the same seed without a severity gives the same patient in
health.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from covid_lab.phantom_anatomy import (
    add_fluid,
    add_letter,
    add_nodules,
    add_tag,
    add_wire,
    draw_lesions,
    draw_markers,
    draw_thorax,
    expose,
    largest_component,
)
from covid_project.data import CLASSES, PHANTOM_MARK, SPLITS, DataError

# one side patchy, both sides patchy, both sides extensive
SEVERITIES = ("mild", "moderate", "severe")
SMALLEST_SIZE = 32  # pixels; below it the mediastinum no longer separates the lungs
DRAWING = 1  # raise it whenever the same seed gives other pixels

KINDS = ("", "masks/lungs", "masks/lesions")  # folders of a set: images and their masks

_CONTRAST = (0.34, 0.7)  # opacity of a lesion at its densest; a lung's air subtracts about 0.4


@dataclass(frozen=True)
class Radiograph:
    """A drawn radiograph and its ground truth.

    Attributes
    ----------
    image : np.ndarray, uint8 (size, size)
        Bright where dense.
    lungs : np.ndarray, bool (size, size)
        The two lung fields without the heart's shadow.
    lesions : np.ndarray, bool (size, size)
        Inside the lungs; all False in NORMAL.
    severity : str or None
        One of `SEVERITIES`; None in NORMAL.
    """

    image: np.ndarray
    lungs: np.ndarray
    lesions: np.ndarray
    severity: str | None


def draw_radiograph(
    rng: np.random.Generator, size: int = 128, severity: str | None = None
) -> Radiograph:
    """Draw the frontal chest radiograph of a random patient.

    Parameters
    ----------
    rng : np.random.Generator
        Its seed sequence decides everything. Each call spawns new streams from it, so that a second
        call draws another patient.
    size : int, from 32
        Pixels along each side.
    severity : {"mild", "moderate", "severe"}, optional
        Of COVID: mild (one lung, patchy), moderate (both, patchy) or severe (both, extensive). None
        is NORMAL.

    Returns
    -------
    Radiograph

    Raises
    ------
    ValueError
        Size below 32 or unknown severity.

    Examples
    --------
    >>> drawn = draw_radiograph(np.random.default_rng(0), size=64, severity="mild")
    >>> drawn.image.shape, bool(drawn.lesions.any())
    ((64, 64), True)
    """
    _check_size(size)
    if severity is not None and severity not in SEVERITIES:
        raise ValueError(
            f"unknown severity {severity!r}; allowed: None (NORMAL), {', '.join(SEVERITIES)}"
        )
    patient, disease, scanner = rng.spawn(3)
    opacity, air = draw_thorax(patient, size)  # (size, size), (2, size, size)
    # (2, size, size): left half of the picture, right half
    lungs = np.stack([largest_component(field > 0.5) for field in air])
    lesions = np.zeros((size, size), bool)
    if severity is not None:
        shape, lesions = draw_lesions(disease, air, lungs, severity)
        opacity += np.exp(disease.uniform(*np.log(_CONTRAST))) * shape
    opacity += draw_markers(scanner, size)
    return Radiograph(expose(scanner, opacity), lungs.any(axis=0), lesions, severity)


QUESTIONS = ("letter", "tag", "wire", "nodules", "fluid", "mirrored", "dark")


def draw_examination(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a chest without COVID and state what is in the picture (see `covid_lab.pretraining`).

    Parameters
    ----------
    rng : np.random.Generator
        As for `draw_radiograph`.
    size : int, from 32
        Pixels along each side.

    Returns
    -------
    image : np.ndarray, uint8 (size, size)
    answers : np.ndarray, bool (len(QUESTIONS),)
        Whether there is a letter, a tag, a wire, nodules, fluid in a lung; whether the image is
        mirrored, and displayed too dark.

    Raises
    ------
    ValueError
        Size below 32.
    """
    _check_size(size)
    patient, chance, scanner = rng.spawn(3)
    answers = chance.random(len(QUESTIONS)) < 0.5
    present = dict(zip(QUESTIONS, answers, strict=True))
    opacity, air = draw_thorax(patient, size)
    for name, add in (("letter", add_letter), ("tag", add_tag), ("wire", add_wire)):
        if present[name]:
            add(chance, opacity)
    if present["nodules"]:
        add_nodules(chance, opacity, (air > 0.5).any(axis=0))
    if present["fluid"]:
        add_fluid(chance, opacity, air)
    image = expose(scanner, opacity)
    if present["mirrored"]:
        image = image[:, ::-1]
    if present["dark"]:
        image = np.uint8(255 * (image / 255) ** chance.uniform(1.5, 2.5))
    return image, answers


def write_dataset(folder: Path, counts: Mapping[str, int], size: int, seed: int) -> Path:
    """Draw a data set into a folder with the layout of the course's.

    Images are at ``{train,val,test}/{COVID,NORMAL}/phantom-<CLASS>-<nnnn>.png``, their masks (0 or
    255) under the same path in ``masks/lungs`` and ``masks/lesions``. ``phantoms.csv`` has one row
    per image (path, label_name, split, severity, seed): `draw_radiograph` with
    ``np.random.default_rng(seed)`` draws it again. The severities take turns. An image depends only
    on the seed, its split, class and number, not on how many are drawn.

    Parameters
    ----------
    folder : Path
        Missing, empty, or written by the same call before.
    counts : mapping of str to int, from 0
        Images per class in "train", "val" and "test".
    size : int, from 32
        Pixels along each side.
    seed : int, from 0

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        Size below 32.
    DataError
        The folder holds something else, or has lost a file.

    Examples
    --------
    >>> write_dataset(Path("drawn"), {"train": 2, "val": 1, "test": 1}, size=32, seed=0).name
    'drawn'
    """
    _check_size(size)
    counts = {split: int(counts[split]) for split in SPLITS}
    arguments = {"drawing": DRAWING, "size": int(size), "seed": int(seed), "counts": counts}
    table = pd.DataFrame(_rows(counts, seed), columns=_COLUMNS)

    def draw(drawn: Path) -> None:
        for kind, split, label_name in product(KINDS, SPLITS, CLASSES):
            (drawn / kind / split / label_name).mkdir(parents=True)
        for row in table.itertuples():
            one = draw_radiograph(np.random.default_rng(row.seed), size, row.severity)
            for kind, pixels in zip(KINDS, (one.image, one.lungs, one.lesions), strict=True):
                grey = pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels
                Image.fromarray(grey).save(drawn / kind / row.path, compress_level=1)
        table.to_csv(drawn / "phantoms.csv", index=False)

    drawn_once(folder, arguments, draw)
    for kind, path in product(KINDS, table["path"]):
        if not (folder / kind / path).is_file():
            raise DataError(
                f"{folder / kind / path} is missing from a complete set of phantoms. "
                f"Delete {folder} to have it drawn again."
            )
    return folder


_COLUMNS = ("path", "label_name", "split", "severity", "seed")


def _rows(counts: Mapping[str, int], seed: int) -> Iterator[tuple]:
    """Yield the row of each image in ``phantoms.csv``."""
    for (split_index, split), (label, label_name) in product(enumerate(SPLITS), enumerate(CLASSES)):
        for index in range(counts[split]):
            path = f"{split}/{label_name}/phantom-{label_name}-{index:04d}.png"
            severity = SEVERITIES[index % 3] if label_name == "COVID" else None
            sequence = np.random.SeedSequence(seed, spawn_key=(split_index, label, index))
            # 63 bits, so that a CSV reader finds a signed integer
            own_seed = int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
            yield path, label_name, split, severity, own_seed


def drawn_once(folder: Path, arguments: Mapping, draw: Callable[[Path], None]) -> None:
    """Draw a set into a folder, which appears when it is complete; keep the same set.

    Parameters
    ----------
    folder : Path
        Missing, empty, or drawn from the same arguments before.
    arguments : mapping
        What the set depends on; written to ``phantoms.json``.
    draw : callable
        Given an empty folder, draws the set into it.

    Raises
    ------
    DataError
        The folder holds something else.
    """
    record = json.dumps(arguments, indent=2) + "\n"
    if _holds(folder, record):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as part:
        drawn = Path(part) / "drawn"
        drawn.mkdir()
        draw(drawn)
        (drawn / PHANTOM_MARK).write_text(record, "utf-8")
        if not _holds(folder, record):  # else another run has drawn it meanwhile
            if folder.is_dir():
                folder.rmdir()  # empty, or it would have been refused
            drawn.rename(folder)


def _holds(folder: Path, record: str) -> bool:
    """Tell whether the folder holds the set already; refuse one that holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    path = folder / PHANTOM_MARK
    found = path.read_text("utf-8") if path.is_file() else f"no {PHANTOM_MARK}"
    if found != record:
        raise DataError(
            f"{folder} holds something else than these phantoms: found {' '.join(found.split())}, "
            f"asked for {' '.join(record.split())}. Delete the folder or name another one."
        )
    return True


def _check_size(size: int) -> None:
    if size < SMALLEST_SIZE:
        raise ValueError(f"size is {size}; allowed: {SMALLEST_SIZE} pixels and more")
