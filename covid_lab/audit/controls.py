"""Tests of the shortcut audit: it must find planted shortcuts, and nothing without one.

The phantoms of both classes follow the same distribution, except for the lesions in the lungs. A
shortcut of increasing strength is planted into the positive ones, and each strength is audited.
Drawn images test the audit; they say nothing about patients.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from covid_lab.audit.findings import Finding, worst
from covid_lab.audit.shortcuts import CHECKS, audit_shortcuts
from covid_lab.phantoms import SEVERITIES, draw_radiograph
from covid_lab.progress import tracked
from covid_project.data import CLASSES, Dataset
from covid_project.images import resize

COLUMNS = ("control", "strength", "unit", "auc", "low", "high", "verdict", "caught")
NONE = "none"  # the control without a shortcut
REPEATS = 3  # audits without a shortcut, each with other phantoms

PER_CLASS = 200
SIDE = 96  # pixels
# Where size is the shortcut, the sides of the stored images vary by this fraction in both classes.
SPREAD = 0.1


@dataclass(frozen=True, eq=False)
class Phantoms:
    """Drawn images in memory.

    Attributes
    ----------
    images : np.ndarray, uint8 (N, S, S)
        Grey values.
    lungs : np.ndarray, bool (N, S, S)
        True inside the lungs.
    labels : np.ndarray, int (N,)
        0 (NORMAL) or 1 (COVID).
    """

    images: np.ndarray
    lungs: np.ndarray
    labels: np.ndarray


Plant = Callable[[Phantoms, float, np.random.Generator], list[np.ndarray]]


def _plant_marker(
    phantoms: Phantoms, strength: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Brighten a small square near the upper left corner of the positive images."""
    side = phantoms.images.shape[1]
    place = slice(side // 24, side // 24 + side // 12)
    where = np.zeros((side, side), bool)
    where[place, place] = True
    return _brightened(phantoms, where, strength)


def plant_border(phantoms: Phantoms, strength: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Brighten a frame, 1/32 of the side wide, of the positive images.

    Parameters
    ----------
    phantoms : Phantoms
        Images without a shortcut.
    strength : float, from 0
        Grey levels to add.
    rng : np.random.Generator
        Not used.

    Returns
    -------
    list of np.ndarray, N images, uint8 (S, S)
        Negative images are unchanged.
    """
    side = phantoms.images.shape[1]
    inside = np.zeros((side - 2 * (side // 32),) * 2, bool)
    where = np.pad(inside, side // 32, constant_values=True)
    return _brightened(phantoms, where, strength)


def _plant_size(phantoms: Phantoms, strength: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Vary the size of all images by up to `SPREAD`, then enlarge the positive ones."""
    side = phantoms.images.shape[1]
    sides = side * rng.uniform(1 - SPREAD, 1 + SPREAD, len(phantoms.labels))
    sides *= 1 + phantoms.labels * strength / 100
    return [
        resize(image, (size, size))
        for image, size in zip(phantoms.images, np.rint(sides).astype(int), strict=True)
    ]


# Control → how it is planted, unit, strengths from weak to strong, and the view that must fail.
CONTROLS: dict[str, tuple[Plant, str, tuple[float, ...], str]] = {
    "marker": (_plant_marker, "grey levels", (0, 4, 8, 16, 32, 64), "corners"),
    "border": (plant_border, "grey levels", (0, 1, 2, 4, 8, 16), "border"),
    "size": (_plant_size, "% of the side", (0, 1, 2, 4, 8, 16), "dimensions"),
}


def controls_table(
    seed: int = 0, progress: Callable[[str, int, int], None] | None = None
) -> pd.DataFrame:
    """Run the audit without a shortcut, and with each shortcut at every strength.

    Parameters
    ----------
    seed : int, from 0
        Of the phantoms and of the audits.
    progress : callable, optional
        Called with (stage, done, total); None: `covid_lab.progress.Progress`.

    Returns
    -------
    pd.DataFrame
        One row per audit: control, strength, unit, auc with its 95 % interval (low, high), verdict,
        caught (bool).

    Notes
    -----
    For a planted shortcut, AUC and verdict are those of the view that should reveal it. The
    shortcut is caught where that view fails. The control "none" (strength 0) is repeated `REPEATS`
    times with other phantoms. Its AUC is the highest of the views without lungs, its verdict the
    worst of all, and "caught" says that this verdict is not "pass": a false alarm.
    """
    total = REPEATS + sum(len(strengths) for _, _, strengths, _ in CONTROLS.values())
    rows = tracked(_rows(seed), "controls: audits", total, progress)
    return pd.DataFrame(rows, columns=COLUMNS)


def weakest_caught(table: pd.DataFrame) -> pd.DataFrame:
    """Find the weakest strength of each shortcut from which all stronger ones are caught.

    Parameters
    ----------
    table : pd.DataFrame
        From `controls_table`.

    Returns
    -------
    pd.DataFrame
        One row per planted shortcut: control, strength (NaN where the strongest was missed), unit.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"control": "border", "strength": [1, 2, 4, 8], "unit": "grey levels"})
    >>> weakest_caught(table.assign(caught=[True, False, True, True]))
      control  strength         unit
    0  border         4  grey levels
    """
    rows = []
    for control, tried in table[table["control"] != NONE].groupby("control", sort=False):
        tried = tried.sort_values("strength", ascending=False)
        from_here = tried["strength"][tried["caught"].astype(bool).cummin()]
        rows.append((control, from_here.min(), tried["unit"].iloc[0]))
    return pd.DataFrame(rows, columns=["control", "strength", "unit"])


def draw_phantoms(per_class: int, side: int, seed: int) -> Phantoms:
    """Draw equally many healthy and diseased phantoms, each of another patient.

    Parameters
    ----------
    per_class : int, from 1
        Images of each class.
    side : int
        Pixels along a side.
    seed : int, from 0
        Of all images; each has a random generator of its own.

    Returns
    -------
    Phantoms
        Healthy ones first.
    """
    labels = np.repeat([0, 1], per_class)
    drawn = [
        draw_radiograph(
            np.random.default_rng((seed, number)), side, SEVERITIES[number % 3] if label else None
        )
        for number, label in enumerate(labels)
    ]
    images, lungs = ([getattr(one, name) for one in drawn] for name in ("image", "lungs"))
    return Phantoms(np.stack(images), np.stack(lungs), labels)


def write_phantoms(folder: Path, images: list[np.ndarray], phantoms: Phantoms) -> Dataset:
    """Write images as PNG files with the phantoms' lungs as masks.

    Parameters
    ----------
    folder : Path
        Where to write; it need not exist.
    images : list of np.ndarray, N images, uint8
        They may differ in size.
    phantoms : Phantoms
        Give the lungs and the labels.

    Returns
    -------
    Dataset
        N images without a split.
    """
    rows = []
    for number, (image, lungs, label) in enumerate(
        zip(images, phantoms.lungs, phantoms.labels, strict=True)
    ):
        path = f"{CLASSES[label]}/phantom-{number:04d}.png"
        for name, pixels in ((path, image), (f"masks/{path}", np.uint8(255) * lungs)):
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file, compress_level=1)
        rows.append((path, label, "", CLASSES[label], path, f"masks/{path}"))
    columns = ["path", "label", "split", "source", "group", "mask"]
    return Dataset(pd.DataFrame(rows, columns=columns), folder, CLASSES, "phantoms")


def _rows(seed: int) -> Iterator[dict[str, object]]:
    for repeat in range(REPEATS):
        phantoms = draw_phantoms(PER_CLASS, SIDE, seed=seed + 1 + repeat)
        findings = _audit(list(phantoms.images), phantoms, seed)
        free = [findings[CHECKS[view]] for view in ("border", "corners", "lungs removed")]
        yield {
            **{"control": NONE, "strength": 0, "unit": ""},
            **_figures(max(free, key=lambda finding: finding.value)),
            "verdict": worst(findings.values()),
            "caught": worst(findings.values()) != "pass",
        }
    phantoms = draw_phantoms(PER_CLASS, SIDE, seed)
    for control, (plant, unit, strengths, view) in CONTROLS.items():
        for strength in strengths:
            images = plant(phantoms, strength, np.random.default_rng(seed))
            finding = _audit(images, phantoms, seed)[CHECKS[view]]
            yield {
                **{"control": control, "strength": strength, "unit": unit},
                **_figures(finding),
                "verdict": finding.verdict,
                "caught": finding.verdict == "fail",
            }


def _audit(images: list[np.ndarray], phantoms: Phantoms, seed: int) -> dict[str, Finding]:
    """Audit images for shortcuts: findings by check."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_phantoms(Path(folder), images, phantoms)
        found = audit_shortcuts(dataset, seed=seed, progress=lambda *_: None).findings
    return {finding.check: finding for finding in found}


def _figures(finding: Finding) -> dict[str, float | None]:
    return {"auc": finding.value, "low": finding.low, "high": finding.high}


def _brightened(phantoms: Phantoms, where: np.ndarray, strength: float) -> list[np.ndarray]:
    """Brighten some pixels of the positive images by ``strength`` grey levels."""
    added = strength * where * phantoms.labels[:, None, None]
    return list(np.clip(phantoms.images + added, 0, 255).round().astype(np.uint8))
