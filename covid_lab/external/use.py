"""What a model uses in external images: the parts that suffice, and where its heat is."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from covid_lab.datasets import open_root
from covid_lab.explain.quality.localisation import box_masks, energy_inside
from covid_lab.external.models import FinalModel, channels
from covid_lab.lungs import implausible, segment_lungs
from covid_project.data import DataError, read_bytes
from covid_project.files import read_csv
from covid_project.gradcam import grad_cam, resize_heatmaps
from covid_project.images import decode, resize

OPACITIES, IMAGES = "masks_opacity", "images"  # folders of an archive of drawn opacities
BOXES = "labels.csv"  # columns img (name of the file, without suffix) and boxes_fraction


@dataclass(frozen=True, eq=False)
class Marked:
    """Images in which radiologists marked the opacities.

    Attributes
    ----------
    name : str
    images : np.ndarray, uint8 (N, S, S, 1)
    lesions : np.ndarray, bool (N, S, S)
    """

    name: str
    images: np.ndarray
    lesions: np.ndarray


def marked_by_masks(path: Path, size: int) -> Marked:
    """Read images with drawn opacities: folders ``images`` and ``masks_opacity``, same names.

    Raises
    ------
    DataError
        No image has a mask of opacities.
    """
    root, names = open_root(path)
    by_stem = {
        PurePosixPath(name).stem: name
        for name in names
        if PurePosixPath(name).parent.name == OPACITIES
    }
    pairs = [
        (name, by_stem[PurePosixPath(name).stem])
        for name in names
        if PurePosixPath(name).parent.name == IMAGES and PurePosixPath(name).stem in by_stem
    ]
    if not pairs:
        raise DataError(
            f"{path} holds no opacities: folders {IMAGES} and {OPACITIES} with files of the same "
            "names are needed"
        )

    def load(name: str) -> np.ndarray:
        return decode(read_bytes(root, name), name)

    images = np.stack([resize(load(image), (size, size)) for image, _ in pairs])
    lesions = [load(mask) for _, mask in pairs]
    inside = [
        resize(np.uint8(255) * (grey > grey.max() / 2), (size, size)) >= 128 for grey in lesions
    ]
    return Marked(Path(path).name, images[..., None], np.stack(inside))


def read_boxes(path: Path) -> dict[str, np.ndarray]:
    """Read boxes of opacities from the ``labels.csv`` of a folder or an archive, if it has one.

    Returns
    -------
    dict
        Stem of the image's name → boxes (K, 4): left, top, right, bottom as fractions of width and
        height; only images with a box. Empty where there is no such table.
    """
    table = _boxes_table(Path(path))
    if not {"img", "boxes_fraction"} <= set(table.columns):
        return {}
    found = table.dropna(subset=["boxes_fraction"])
    boxes = {
        PurePosixPath(str(row.img)).stem: np.reshape(json.loads(row.boxes_fraction), (-1, 4))
        for row in found.itertuples()
    }
    return {name: places for name, places in boxes.items() if len(places)}


def _boxes_table(path: Path) -> pd.DataFrame:
    if path.is_dir():
        return read_csv(path / BOXES)
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if PurePosixPath(name).name == BOXES]
        return pd.read_csv(io.BytesIO(archive.read(names[0]))) if names else pd.DataFrame()


def marked_by_boxes(name: str, images: np.ndarray, boxes: list[np.ndarray]) -> Marked:
    """Return images uint8 (N, S, S, 1) with boxes (K, 4) each as `Marked`."""
    return Marked(name, images, box_masks(boxes, images.shape[1:3]))


def heat_on_lesions(tested: FinalModel, marked: Marked, seed: int = 0) -> dict[str, object]:
    """Measure how much of the heat for COVID is on marked opacities, against chance.

    Two kinds of chance: heat spread evenly over the image has the opacities' fraction of the area;
    heat spread evenly inside the lungs has their fraction of the lungs.

    Parameters
    ----------
    tested : FinalModel
    marked : Marked
        At the size that the model takes.
    seed : int
        Of the bootstrap over images.

    Returns
    -------
    dict
        images (name), n, blank (maps), value (mean fraction of the heat on opacities) with low and
        high; area (the opacities' mean fraction of the image), gain (value minus area) with
        gain_low, gain_high; and the same inside the lungs, where both were segmented:
        lungs_value, lungs_area, lungs_gain, lungs_gain_low, lungs_gain_high, lungs_n.
    """
    heat = resize_heatmaps(
        grad_cam(tested.model, channels(tested, marked.images), 1).maps, marked.images.shape[1:3]
    )
    inside = energy_inside(heat, marked.lesions)
    seen = np.isfinite(inside)
    area = marked.lesions.mean(axis=(1, 2))
    result: dict[str, object] = {"images": marked.name, "n": int(seen.sum())}
    result["blank"] = int((~heat.any(axis=(1, 2))).sum())
    result |= _against_chance("", inside[seen], area[seen], seed)
    lungs = segment_lungs(marked.images[..., 0])
    lungs[implausible(lungs) != ""] = False
    within = marked.lesions & lungs
    inside = energy_inside(heat * lungs, within)
    usable = seen & np.isfinite(inside)
    area = within.sum(axis=(1, 2)) / np.maximum(lungs.sum(axis=(1, 2)), 1)
    result |= _against_chance("lungs_", inside[usable], area[usable], seed)
    return result | {"lungs_n": int(usable.sum())}


def _against_chance(
    prefix: str, inside: np.ndarray, area: np.ndarray, seed: int
) -> dict[str, float]:
    value, value_low, value_high = mean_interval(inside, seed)
    gain, gain_low, gain_high = mean_interval(inside - area, seed)
    found = {
        "value": value,
        "low": value_low,
        "high": value_high,
        "area": float(area.mean()) if len(area) else np.nan,
        "gain": gain,
        "gain_low": gain_low,
        "gain_high": gain_high,
    }
    return {f"{prefix}{name}": number for name, number in found.items()}


def mean_interval(
    values: np.ndarray, seed: int = 0, statistic: Callable = np.mean
) -> tuple[float, float, float]:
    """Return the mean of values (N,) and its 95 % bootstrap interval; bounds from two values on."""
    if len(values) < 2:
        return float(np.mean(values)) if len(values) else np.nan, np.nan, np.nan
    found = bootstrap((values,), statistic, method="percentile", rng=seed).confidence_interval
    return float(statistic(values)), float(found.low), float(found.high)
