"""How much of a heatmap is on the nodule, compared with two kinds of chance."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from covid_lab.explain.quality.localisation import energy_inside, pointing_game
from covid_lab.studies.ct_preprocessing import resized
from covid_lab.studies.nodule_evaluation import mean_over_patients


def heat_table(maps: np.ndarray, masks: Sequence[np.ndarray], size: int) -> pd.DataFrame:
    """Measure where the heat of each map is.

    Parameters
    ----------
    maps : np.ndarray, (N, h, w)
        Heatmaps of any resolution.
    masks : sequence of np.ndarray, bool (H, W)
        Nodules, in pictures of any sizes.
    size : int
        Pixels along each side of the pictures that the network saw.

    Returns
    -------
    pd.DataFrame
        One row per map: area (the nodule's fraction of the picture, what an even map would have
        inside), inside (fraction of the heat in the nodule), other (fraction of another nodule's
        heat in this nodule, what a map that only knows the centre would have), ratio (inside /
        area) and pointing (1 where the hottest pixel is in the nodule).
    """
    small = np.stack([_small(mask, size) for mask in masks])
    area, inside = small.mean(axis=(1, 2)), energy_inside(maps, small)
    other = energy_inside(np.roll(maps, 1, axis=0), small)
    return pd.DataFrame(
        {
            "area": area,
            "inside": inside,
            "other": other,
            "ratio": inside / area,
            "pointing": pointing_game(maps, small),
        }
    )


def _small(mask: np.ndarray, size: int) -> np.ndarray:
    """Resize a mask; one that is not empty keeps at least one pixel."""
    small = resized(mask.astype(np.float32), (size, size))
    return small >= min(0.5, small.max()) if small.any() else small > 0


def heat_summary(table: pd.DataFrame, groups: np.ndarray, seed: int) -> pd.DataFrame:
    """Summarise a `heat_table`; its rows of blank maps are left out.

    Parameters
    ----------
    table : pd.DataFrame
    groups : np.ndarray, (N,)
        Patients, which the bootstrap resamples.
    seed : int

    Returns
    -------
    pd.DataFrame
        Columns measure, value, low, high, n: means of the columns, and of the paired differences
        "inside − area" and "inside − other", with 95 % intervals over patients.
    """
    known = table["inside"].notna() & table["other"].notna()
    values = {name: table[name] for name in ("area", "inside", "other", "ratio", "pointing")}
    for chance in ("area", "other"):
        values[f"inside − {chance}"] = table["inside"] - table[chance]
    rows = [
        (name, *mean_over_patients(column[known].to_numpy(float), groups[known], seed))
        for name, column in values.items()
    ]
    return pd.DataFrame(rows, columns=["measure", "value", "low", "high", "n"])
