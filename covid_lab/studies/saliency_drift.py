"""Drift of a saliency map when its image is perturbed, and a flag made from it.

The map of the original image is compared with that of the perturbed one, each for the class that
the network predicts there. There are four measures, because the root mean square error alone
confuses the scale of a map with its place.
"""

import gzip
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from covid_lab.explain.gradcam import heatmap_function
from covid_lab.explain.quality.similarities import rank_correlation, ssim
from covid_lab.models import RESNET18_BLOCKS
from covid_lab.progress import tracked
from covid_lab.studies.perturbations import PERTURBATIONS, SEVERITIES, perturbed
from covid_project.files import read_csv, whole_file
from covid_project.gradcam import resize_heatmaps
from covid_project.models import outputs

MEASURES = ("rmse", "ssim", "spearman", "centroid_shift")
METHOD = "grad-cam++"
ORIGINAL = "none"  # the perturbation of the images as they are, with severity 0
SETS = ((ORIGINAL, 0), *product(PERTURBATIONS, SEVERITIES))  # the 26 versions of a split


# ---- measures -----------------------------------------------------------------------------------


def _as_grey_levels(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return maps in [0, 1] as 8-bit images (N, H, W) of another size."""
    return np.rint(255 * np.clip(resize_heatmaps(maps, size), 0, 1)).astype(np.uint8)


def drift(before: np.ndarray, after: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Measure how far each map moved.

    Parameters
    ----------
    before, after : np.ndarray, float (N, h, w) in [0, 1]
        Maps of the original and of the perturbed images.
    size : tuple of int
        Height and width (H, W) of the images.

    Returns
    -------
    dict of str to np.ndarray, float64 (N,)
        For each of `MEASURES`. "rmse": root mean square error of the maps as 8-bit images of the
        images' size, in grey levels (0–255). "ssim" (Wang et al. 2004) and "spearman": 1 for equal
        maps. "centroid_shift": distance of the centres of mass, in pixels of the image. All but
        rmse are NaN where a map is blank (for spearman, constant).
    """
    first, second = _as_grey_levels(before, size), _as_grey_levels(after, size)
    difference = first.astype(np.float64) - second
    return {
        "rmse": np.sqrt((difference**2).mean(axis=(1, 2))),
        "ssim": ssim(before, after),
        "spearman": rank_correlation(before, after),
        "centroid_shift": np.hypot(*(_centroids(first) - _centroids(second)).T),
    }


def _centroids(maps: np.ndarray) -> np.ndarray:
    """Return rows and columns (N, 2) of the centres of mass, in pixels; NaN for a blank map."""
    mass = maps.astype(np.float64)
    total = mass.sum(axis=(1, 2))
    rows = mass.sum(axis=2) @ np.arange(maps.shape[1])
    columns = mass.sum(axis=1) @ np.arange(maps.shape[2])
    centre = np.stack([rows, columns], axis=1)
    return np.divide(
        centre, total[:, None], np.full(centre.shape, np.nan), where=total[:, None] > 0
    )


# ---- the grid -----------------------------------------------------------------------------------


def grid(
    model: keras.Model,
    images: np.ndarray,
    folder: Path,
    *,
    layers: Sequence[str] = RESNET18_BLOCKS,
    seed: int = 0,
    progress: str = "drift",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return predictions and drift of a split under every perturbation and severity.

    Each of the 26 versions of the split has its own files in ``folder``, complete or absent. A run
    that was interrupted resumes with the first missing version. The maps of all layers of a version
    come from one pass.

    Parameters
    ----------
    model : keras.Model
        Ends in one logit per class.
    images : np.ndarray, uint8 (N, H, W, C)
    folder : Path
        Its name must identify the model, the images and the seed.
    layers : sequence of str
        Names of spatial layers.
    seed : int
        Of the perturbations.
    progress : str
        Name of the grid in its lines of progress.

    Returns
    -------
    scores : pd.DataFrame
        One row per image, perturbation and severity, where "none" and 0 are the original. Columns
        image (number, from 0), perturbation, severity, logit_0, logit_1, …
    drifts : pd.DataFrame
        One row per image, perturbation, severity and layer. Columns image, perturbation, severity,
        layer and `MEASURES`.
    """
    folder = Path(folder)
    explain = heatmap_function(model, list(layers), METHOD)
    size = images.shape[1:3]
    missing = [
        which for which in SETS if not all(path.is_file() for path in _parts(folder, *which))
    ]
    before = explain(images, "predicted") if missing else None
    for perturbation, severity in tracked(missing, progress):
        version = _version(images, perturbation, severity, seed)
        scores_path, *drift_path = _parts(folder, perturbation, severity)
        rows = pd.DataFrame({"image": np.arange(len(images))})
        rows = rows.assign(perturbation=perturbation, severity=severity)
        if perturbation != ORIGINAL:
            after = explain(version, "predicted")
            moved = [
                rows.assign(layer=layer, **drift(before[layer].maps, after[layer].maps, size))
                for layer in layers
            ]
            write_table(drift_path[0], pd.concat(moved).sort_values("image", kind="stable"))
        logits = pd.DataFrame(outputs(model, version)).add_prefix("logit_")
        write_table(scores_path, pd.concat([rows, logits], axis=1))
    parts = [_parts(folder, *which) for which in SETS]
    scores, drifts = [part[0] for part in parts], [part[1] for part in parts[1:]]
    return tuple(pd.concat(map(read_csv, paths), ignore_index=True) for paths in (scores, drifts))


def _version(images: np.ndarray, perturbation: str, severity: int, seed: int) -> np.ndarray:
    if perturbation == ORIGINAL:
        return images
    # Every version draws its own noise.
    key = (seed, PERTURBATIONS.index(perturbation), severity)
    return perturbed(images, perturbation, severity, key)


def _parts(folder: Path, perturbation: str, severity: int) -> list[Path]:
    """Return the files of one version: scores and, except for the original, drift."""
    name = f"{perturbation.replace(' ', '-')}-{severity}.csv.gz"
    kinds = ("scores",) if perturbation == ORIGINAL else ("scores", "drift")
    return [folder / f"{kind}-{name}" for kind in kinds]


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as a compressed CSV; the same rows give the same file.

    Parameters
    ----------
    path : Path
        Ends in .csv.gz.
    table : pd.DataFrame
    """
    with whole_file(path) as part:
        # Neither a date nor the temporary name inside.
        part.write_bytes(gzip.compress(table.to_csv(index=False).encode(), mtime=0))


# ---- the flag -----------------------------------------------------------------------------------


def flag(scores: np.ndarray, wrong: np.ndarray, false_alarms: float) -> float:
    """Return the threshold above which a prediction is flagged as untrustworthy.

    Parameters
    ----------
    scores : np.ndarray, float (N,)
        Of validation predictions, higher where an error is more likely.
    wrong : np.ndarray, bool (N,)
        Whether each of these predictions is wrong.
    false_alarms : float, 0 to 1
        Highest expected fraction of right predictions that are flagged.

    Returns
    -------
    float
        The k-th smallest score of the n right predictions, k = ⌈(n + 1)(1 − false_alarms)⌉. For
        further predictions like these, the expected fraction of false alarms is at most the chosen
        one (split conformal prediction; Vovk et al. 2005). Infinite where n is too small for that.

    Raises
    ------
    ValueError
        Scores that are not finite, or a fraction outside of 0 to 1.
    """
    scores, wrong = np.asarray(scores, float), np.asarray(wrong, bool)
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores are not finite")
    if not 0 < false_alarms < 1:
        raise ValueError(f"false_alarms is {false_alarms}; allowed: between 0 and 1")
    right = np.sort(scores[~wrong])
    place = math.ceil((len(right) + 1) * (1 - false_alarms))
    return float(right[place - 1]) if place <= len(right) else math.inf
