"""Nodules as PNG crops with masks and several readers' ratings, a common form of LIDC-IDRI.

A folder or zip archive holds, at any depth:

    nodule/<name>.png    masks/nodule/<name>.png    labels.csv: name, malignancy, patient, …

The pixels are grey values, each image in a window of its own: **not Hounsfield units**. Optional
columns of the table are ``pixel_spacing`` (mm) and ``malignancies``, the ratings of all readers
separated by spaces.
"""

from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from scipy import ndimage
from skimage.measure import regionprops

from covid_lab.reading.manifests import read_table
from covid_lab.studies.nrrd_slices import Image, checked_labels
from covid_project.data import DataError, Dataset, file_hashes, listed, open_root, read_bytes
from covid_project.files import fingerprint
from covid_project.images import decode

NEEDED = ("name", "malignancy", "patient")  # columns of the table
MARGIN = 20  # pixels around the nodule: the report's smallest cut-outs, 44 × 45, are 4 + 40
SPACING = 0.7  # mm per pixel where the table has none: LIDC-IDRI's median
OUTLINE = ("log_area", "log_diameter", "log_perimeter", "solidity", "eccentricity", "circularity")
GREY = ("mean", "deviation", "contrast", "edge", "surroundings", "texture")


def holds_images(path: Path) -> bool:
    """Tell whether a path is a zip archive, or a folder of nodules in PNG files.

    Parameters
    ----------
    path : Path

    Returns
    -------
    bool
    """
    path = Path(path).expanduser()
    return path.suffix.lower() == ".zip" or any(path.glob("**/nodule/*.png"))


def open_nodules(path: Path) -> Dataset:
    """Open a folder or archive of PNG crops, their masks and the label table; decode nothing.

    Parameters
    ----------
    path : Path
        Folder or zip archive.

    Returns
    -------
    Dataset
        As `nrrd_slices.open_slices`, with the columns nodule (path of the crop), mask (path of the
        mask), spacing (mm per pixel) and ratings (of all readers, text).

    Raises
    ------
    DataError
        Not exactly one ``labels.csv``; a nodule without label, crop or mask, named.
    """
    root, names = open_root(Path(path).expanduser())
    tables = [name for name in names if PurePosixPath(name).name.lower() == "labels.csv"]
    if len(tables) != 1:
        raise DataError(f"{path} must hold one labels.csv, found {listed(tables) or 'none'}")
    found = read_table(read_bytes(root, tables[0]), tables[0])
    lacking = [column for column in NEEDED if column not in found]
    if lacking:
        raise DataError(f"{path}: labels.csv has no column {listed(lacking)}")
    spacing = pd.to_numeric(found.get("pixel_spacing", str(SPACING)))
    table = checked_labels(found[list(NEEDED)], Path(tables[0]))
    table = table.assign(spacing=spacing, ratings=found.get("malignancies", ""))
    table = table.sort_values("name", ignore_index=True)
    outer = tables[0][: -len("labels.csv")]
    table["nodule"] = outer + "nodule/" + table["name"] + ".png"
    table["mask"] = outer + "masks/nodule/" + table["name"] + ".png"
    missing = sorted({*table["nodule"], *table["mask"]} - set(names))
    crops = {n for n in names if n.startswith(f"{outer}nodule/") and n.lower().endswith(".png")}
    extra = sorted(crops - set(table["nodule"]))
    if missing or extra:
        raise DataError(
            f"{path}: crops, masks and labels do not match; missing: {listed(missing) or 'none'}; "
            f"without a label: {listed(extra) or 'none'}"
        )
    table = table.assign(
        path=table["nodule"], label=table["malignancy"] - 1, split="", source="",
        group=table["patient"],
    )  # fmt: skip
    hashes = file_hashes(root, [*table["nodule"], *table["mask"]])
    rows = zip(table["name"], table["malignancy"].astype(str), table["patient"], strict=True)
    identity = fingerprint(*(value for row in rows for value in row), *hashes)
    columns = ["path", "label", "split", "source", "group", "mask", "name", "nodule"]
    return Dataset(table[[*columns, "spacing", "ratings"]], root, tuple("12345"), identity)


def read_nodule(dataset: Dataset, row: int) -> tuple[Image, np.ndarray]:
    """Read one nodule, cut out `MARGIN` pixels around its mask, as far as the crop reaches.

    Parameters
    ----------
    dataset : Dataset
        From `open_nodules`.
    row : int
        Of its table.

    Returns
    -------
    image : Image
        Grey values uint8 (H, W), in the unit "grey".
    mask : np.ndarray, bool (H, W)

    Raises
    ------
    DataError
        A file that cannot be read, an empty mask, or a mask of another size.
    """
    one = dataset.table.iloc[row]
    grey, mask = (
        decode(read_bytes(dataset.root, name), name) for name in (one["nodule"], one["mask"])
    )
    mask = mask > 0
    if grey.shape != mask.shape or not mask.any():
        raise DataError(f"{one['name']}: the mask is empty or {mask.shape}, the crop {grey.shape}")
    window = tuple(
        slice(max(0, box.start - MARGIN), box.stop + MARGIN)
        for box in ndimage.find_objects(mask.astype(np.uint8))[0]
    )
    return Image(grey[window], (one["spacing"], one["spacing"]), "grey"), mask[window]


# ---- measures -----------------------------------------------------------------------------------


def outline_measures(mask: np.ndarray, spacing: float) -> np.ndarray:
    """Compute the six `OUTLINE` measures of a nodule's mask.

    Parameters
    ----------
    mask : np.ndarray, bool (H, W)
        Not empty; of several parts the largest counts.
    spacing : float
        mm per pixel.

    Returns
    -------
    np.ndarray, float64 (6,)
        Logarithms of area (mm²), largest Feret diameter (mm) and perimeter (mm); solidity,
        eccentricity and circularity 4π · area / perimeter², without unit.
    """
    parts, _ = ndimage.label(mask)
    part = max(regionprops(parts), key=lambda found: found.area)
    area = part.area * spacing**2
    perimeter = max(part.perimeter, 1.0) * spacing
    lengths = np.log([area, part.feret_diameter_max * spacing, perimeter])
    circularity = 4 * np.pi * area / perimeter**2
    return np.array([*lengths, part.solidity, part.eccentricity, circularity])


def grey_measures(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Compute the six `GREY` measures of a nodule, in grey levels.

    Parameters
    ----------
    image : np.ndarray, uint8 (H, W)
    mask : np.ndarray, bool (H, W)
        Not empty.

    Returns
    -------
    np.ndarray, float64 (6,)
        Mean and standard deviation inside; mean inside minus mean of a ring 3 to 5 pixels outside;
        mean gradient on the outline; mean of the ring; standard deviation of the ring.
    """
    grey = np.asarray(image, float)
    wide = ndimage.binary_dilation(mask, iterations=5)
    ring = wide & ~ndimage.binary_dilation(mask, iterations=2)
    around = grey[ring] if ring.any() else grey[mask]
    outline = ndimage.binary_dilation(mask) & ~ndimage.binary_erosion(mask)
    gradient = ndimage.gaussian_gradient_magnitude(grey, 1)
    inside = grey[mask]
    return np.array([
        inside.mean(), inside.std(), inside.mean() - around.mean(), gradient[outline].mean(),
        around.mean(), around.std(),
    ])  # fmt: skip
