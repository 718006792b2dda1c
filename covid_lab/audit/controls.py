"""The shortcut audit tested: does it find what was planted, and nothing where nothing was planted.

Phantoms are drawn by one law for both classes, apart from the lesions in the lungs. Into the
positive ones a shortcut is planted, stronger and stronger, and the audit is asked each time. Drawn
images test the audit; they say nothing about patients.
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
REPEATS = 3  # of it, each with phantoms of its own

PER_CLASS = 200
SIDE = 96  # pixels
SPREAD = 0.1  # sides of the stored images vary by so much in both classes, where size is planted


@dataclass(frozen=True, eq=False)
class Phantoms:
    """Drawn images in memory.

    Attributes
    ----------
    images
        uint8 (N, S, S).
    lungs
        bool (N, S, S).
    labels
        int (N,), 0 (NORMAL) and 1 (COVID).
    """

    images: np.ndarray
    lungs: np.ndarray
    labels: np.ndarray


Plant = Callable[[Phantoms, float, np.random.Generator], list[np.ndarray]]


def plant_marker(phantoms: Phantoms, strength: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Brighten a small square near the upper left corner of the positive images, in grey levels."""
    side = phantoms.images.shape[1]
    place = slice(side // 24, side // 24 + side // 12)
    where = np.zeros((side, side), bool)
    where[place, place] = True
    return _brightened(phantoms, where, strength)


def plant_border(phantoms: Phantoms, strength: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Brighten a frame, 1/32 of the side wide, of the positive images, in grey levels."""
    side = phantoms.images.shape[1]
    inside = np.zeros((side - 2 * (side // 32),) * 2, bool)
    where = np.pad(inside, side // 32, constant_values=True)
    return _brightened(phantoms, where, strength)


def plant_size(phantoms: Phantoms, strength: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Enlarge the positive images by a share of their side, in per cent.

    The sides of all images vary by `SPREAD` to either side beforehand.
    """
    side = phantoms.images.shape[1]
    sides = side * rng.uniform(1 - SPREAD, 1 + SPREAD, len(phantoms.labels))
    sides *= 1 + phantoms.labels * strength / 100
    return [
        resize(image, (size, size))
        for image, size in zip(phantoms.images, np.rint(sides).astype(int), strict=True)
    ]


# control → how it is planted, unit, strengths from weak to strong, the view that must fail
CONTROLS: dict[str, tuple[Plant, str, tuple[float, ...], str]] = {
    "marker": (plant_marker, "grey levels", (0, 4, 8, 16, 32, 64), "corners"),
    "border": (plant_border, "grey levels", (0, 1, 2, 4, 8, 16), "border"),
    "size": (plant_size, "% of the side", (0, 1, 2, 4, 8, 16), "dimensions"),
}


def controls_table(
    seed: int = 0, progress: Callable[[str, int, int], None] | None = None
) -> pd.DataFrame:
    """Run the audit without a shortcut, and with each at every strength.

    Parameters
    ----------
    seed
        Of the phantoms and of all that is drawn in the audit.
    progress : callable, optional
        Called with (stage, done, total); None: `covid_lab.progress.Progress`.

    Returns
    -------
    Table, one row per audit: control, strength, unit, auc, low, high (95 %), verdict, caught. For a
    planted shortcut, AUC and verdict are those of the view that it was planted for, and it is
    caught where that view fails. For "none" (strength 0, as often as `REPEATS`, other phantoms each
    time) the AUC is that of the most telling view without lungs, the verdict the gravest of all.
    """
    total = REPEATS + sum(len(strengths) for _, _, strengths, _ in CONTROLS.values())
    rows = tracked(_rows(seed), "controls: audits", total, progress)
    return pd.DataFrame(rows, columns=COLUMNS)


def weakest_caught(table: pd.DataFrame) -> pd.DataFrame:
    """Weakest strength of each planted control from which on all stronger ones are caught.

    Parameters
    ----------
    table
        From `controls_table`.

    Returns
    -------
    Table: control, strength (NaN where the strongest was missed), unit.
    """
    rows = []
    for control, tried in table[table["control"] != NONE].groupby("control", sort=False):
        tried = tried.sort_values("strength", ascending=False)
        from_here = tried["strength"][tried["caught"].astype(bool).cummin()]
        rows.append((control, from_here.min(), tried["unit"].iloc[0]))
    return pd.DataFrame(rows, columns=["control", "strength", "unit"])


def draw_phantoms(per_class: int, side: int, seed: int) -> Phantoms:
    """Draw as many healthy as diseased phantoms, each another patient."""
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
    """Write images, each of its own size, with the phantoms' lungs as masks; no split."""
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
    """Findings of the shortcut audit, by check."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_phantoms(Path(folder), images, phantoms)
        found = audit_shortcuts(dataset, seed=seed, progress=lambda *_: None).findings
    return {finding.check: finding for finding in found}


def _figures(finding: Finding) -> dict[str, float | None]:
    return {"auc": finding.value, "low": finding.low, "high": finding.high}


def _brightened(phantoms: Phantoms, where: np.ndarray, strength: float) -> list[np.ndarray]:
    """Images with the positive ones brighter by ``strength`` grey levels at some pixels."""
    added = strength * where * phantoms.labels[:, None, None]
    return list(np.clip(phantoms.images + added, 0, 255).round().astype(np.uint8))
