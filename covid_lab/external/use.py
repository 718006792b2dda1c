"""What a model uses in external images: the parts that suffice, and the location of its heat."""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from covid_lab.datasets import open_root
from covid_lab.explain.quality.localisation import box_masks, energy_inside
from covid_lab.external.models import FinalModel, channels
from covid_lab.lungs import implausible, segment_lungs
from covid_lab.masks import marked_pixels, resized_mask
from covid_lab.statistics import mean_interval
from covid_project.data import DataError, read_bytes
from covid_project.files import read_csv
from covid_project.gradcam import grad_cam, resize_heatmaps
from covid_project.images import decode, resize

RESAMPLES = 9999  # of the bootstrap of heat
OPACITIES, IMAGES = "masks_opacity", "images"  # folders of an archive of drawn opacities
BOXES = "labels.csv"  # columns img (name of the file, without suffix) and boxes_fraction


@dataclass(frozen=True, eq=False)
class Marked:
    """Images in which radiologists marked the opacities.

    Attributes
    ----------
    name : str
        Name of the data.
    images : np.ndarray, uint8 (N, S, S, 1), 0–255
        Grey values.
    lesions : np.ndarray, bool (N, S, S)
        Pixels of the opacities.
    """

    name: str
    images: np.ndarray
    lesions: np.ndarray


def marked_by_masks(path: Path, size: int) -> Marked:
    """Read images with drawn opacities.

    Parameters
    ----------
    path : Path
        Folder or archive with the folders ``images`` and ``masks_opacity``, whose files have the
        same names without suffix.
    size : int, from 1
        Pixels along each side of the result.

    Returns
    -------
    Marked
        The images with a mask. A pixel of a mask is an opacity above half of the mask's maximum.

    Raises
    ------
    DataError
        No image has a mask of opacities, or a file cannot be read.
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
    lesions = np.stack([resized_mask(marked_pixels(load(mask)), (size, size)) for _, mask in pairs])
    return Marked(Path(path).name, images[..., None], lesions)


def read_boxes(path: Path) -> dict[str, np.ndarray]:
    """Read boxes of opacities from the ``labels.csv`` of a folder or an archive.

    Parameters
    ----------
    path : Path
        A folder or a zip file.

    Returns
    -------
    dict of str to np.ndarray, float (K, 4), in [0, 1]
        Name of the image without suffix → its boxes: left, top, right, bottom as fractions of width
        and height. Images without a box are left out. Empty where there is no such table.
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
    """Combine images with boxes of their opacities.

    Parameters
    ----------
    name : str
        Name of the data.
    images : np.ndarray, uint8 (N, S, S, 1), 0–255
        Grey values.
    boxes : list of np.ndarray, float (K, 4), in [0, 1]
        Boxes of each image: left, top, right, bottom as fractions of width and height.

    Returns
    -------
    Marked
        The images, with the union of its boxes as the lesions of each.

    Raises
    ------
    ValueError
        A box extends beyond the image or is empty.
    """
    return Marked(name, images, box_masks(boxes, images.shape[1:3]))


def heat_on_lesions(tested: FinalModel, marked: Marked, seed: int = 0) -> dict[str, object]:
    """Measure the fraction of the heat for COVID that is on marked opacities, compared with chance.

    There are two reference values. Heat spread evenly over the image is on opacities with their
    fraction of the area; heat spread evenly inside the lungs, with their fraction of the lungs. The
    heat is that of Grad-CAM (Selvaraju et al. 2017, ICCV).

    Parameters
    ----------
    tested : FinalModel
        The model.
    marked : Marked
        Images of the size that the model takes.
    seed : int, from 0
        Seed of the bootstrap over images.

    Returns
    -------
    dict of str to object
        images (name of the data), n (images with heat and opacities), blank (images without heat),
        value (mean fraction of the heat on opacities) with low and high, area (mean fraction of the
        image that opacities cover), gain (value minus area) with gain_low and gain_high. The same
        inside the lungs, for images with opacities inside plausible lungs: lungs_value, lungs_low,
        lungs_high, lungs_area, lungs_gain, lungs_gain_low, lungs_gain_high, lungs_n. Intervals are
        95 %.
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
    value, value_low, value_high, _ = mean_interval(inside, seed, RESAMPLES)
    gain, gain_low, gain_high, _ = mean_interval(inside - area, seed, RESAMPLES)
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
