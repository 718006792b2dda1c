"""CT slices in two folders: who belongs together, prepared copies, edges, lesion boxes."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps
from skimage.feature import canny

from covid_lab.datasets import each_image
from covid_project.data import DataError, Dataset, decode, resize
from covid_project.files import whole_file

SIZES = (64, 512)  # pixels along a side, smallest and largest


# ---- who belongs together -----------------------------------------------------------------------


def slice_groups(paths: Iterable[str]) -> np.ndarray:
    """Group of each slice from its file's name, str (N,): slices that may show one patient.

    In COVID-CT the name holds the article and the figure that a slice was cut from
    (``2020.02.10.20021584-p6-52%3``: panel 3 of picture 52 on page 6): an article is one group, as
    its figures often show one patient. Slices that are only numbered were saved in the order of
    their series: those of one folder whose numbers follow each other are one group.
    """
    paths = list(paths)
    groups = np.array([_article(path) for path in paths], dtype=object)
    numbered = {}
    for row, path in enumerate(paths):
        name = PurePosixPath(path)
        if name.stem.isdecimal():
            numbered.setdefault(str(name.parent), []).append((int(name.stem), row))
    for folder, slices in numbered.items():
        first = before = None
        for number, row in sorted(slices):
            first = number if before is None or number > before + 1 else first
            groups[row], before = f"{folder}/from {first}", number
    return groups


def _article(path: str) -> str:
    """Folder and name without panel, page, picture and count."""
    name = PurePosixPath(path)
    stem = re.sub(r"%\d+$", "", name.stem)
    stem = re.sub(r"-p\d+-.*$", "", stem)
    return f"{name.parent}/{re.sub(r'(_\d+)+$', '', stem)}"


# ---- prepared copies ----------------------------------------------------------------------------


def prepared(image: np.ndarray, size: int, *, equalize: bool) -> np.ndarray:
    """Resize a grey image and spread its grey values: uint8 (H, W) → uint8 (size, size).

    Parameters
    ----------
    image : np.ndarray, uint8 (H, W)
    size : int
        Pixels along each side, within `SIZES`.
    equalize : bool
        Whether the grey values are then made equally frequent (histogram equalisation).
    """
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"size is {size}; allowed: {SIZES[0]} to {SIZES[1]}")
    small = resize(image, (size, size))
    return np.asarray(ImageOps.equalize(Image.fromarray(small))) if equalize else small


def prepared_images(dataset: Dataset, size: int, *, equalize: bool) -> np.ndarray:
    """All images of a data set, `prepared`: uint8 (N, size, size, 1), in the table's order.

    Raises
    ------
    DataError
        Names every image that cannot be read.
    """
    images, unreadable = each_image(dataset, lambda grey: prepared(grey, size, equalize=equalize))
    if unreadable:
        listed = "; ".join(f"{path}: {reason}" for path, reason in unreadable.items())
        raise DataError(f"{len(unreadable)} image(s) cannot be read: {listed}")
    return np.stack(images)[..., None]


def save_copies(folder: Path, paths: Iterable[str], images: np.ndarray) -> int:
    """Write prepared images as PNG files under the names of their originals; return how many.

    A file that is there already with the same pixels is left alone, so that a second run writes
    nothing.

    Parameters
    ----------
    folder
        Where to write; the paths count from it, with ``.png`` for their suffix.
    images
        uint8 (N, H, W, 1).

    Raises
    ------
    DataError
        Two originals differ in nothing but their suffix, or a file with other pixels is there:
        nothing is ever overwritten. Then nothing at all is written.
    """
    targets = [Path(folder) / PurePosixPath(path).with_suffix(".png") for path in paths]
    if len(set(targets)) < len(targets):
        twice = next(target for target in targets if targets.count(target) > 1)
        raise DataError(f"two images would both be saved as {twice}: rename one of them")
    waiting = []
    for target, image in zip(targets, images[..., 0], strict=True):
        if target.is_file():
            found = decode(target.read_bytes(), str(target))
            if not np.array_equal(found, image):
                raise DataError(
                    f"{target} holds other pixels and is not overwritten: choose another folder"
                )
        else:
            waiting.append((target, image))
    for target, image in waiting:
        with whole_file(target) as part:
            Image.fromarray(image).save(part, format="PNG")
    return len(waiting)


def edges(images: np.ndarray, sigma: float = 2.0) -> np.ndarray:
    """Canny's edges, bool (N, H, W), of images uint8 (N, H, W, 1).

    One pair of thresholds for all images, so that edges can be compared between classes: 10 and 20
    grey levels per pixel, after smoothing by ``sigma`` pixels (Canny 1986).
    """
    return np.stack(
        [
            canny(image.astype(np.float64), sigma=sigma, low_threshold=10, high_threshold=20)
            for image in images[..., 0]
        ]
    )


# ---- lesion boxes -------------------------------------------------------------------------------


def read_boxes(dataset: Dataset) -> list[np.ndarray]:
    """Boxes of DeepLesion slices, from the ``.tru`` file beside each image.

    Returns
    -------
    For each image, in the table's order, float (K, 4): left, top, right, bottom, as shares of
    width and height; what ``explain.quality.localisation.box_masks`` takes.

    Raises
    ------
    DataError
        An image without its file, or a line that is not ``type x1 y1 x2 y2``.
    """
    boxes = []
    for path in dataset.table["path"]:
        file = dataset.root.joinpath(str(PurePosixPath(path).with_suffix(".tru")))
        if not file.is_file():
            raise DataError(f"{path} has no .tru file beside it: boxes are needed for every image")
        lines = file.read_text(encoding="utf-8").splitlines()
        boxes.append(np.array([_box(line, path) for line in lines if line.strip()]))
    return boxes


def _box(line: str, path: str) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (float(value) for value in line.split()[1:])
    except ValueError:
        raise DataError(f"{path}: a box is 'type x1 y1 x2 y2', found {line!r}") from None
    return left, top, right, bottom
