"""CT slices in two folders: groups of one patient, prepared copies, edges, lesion boxes."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps
from skimage.feature import canny

from covid_lab.datasets import each_image
from covid_project.data import DataError, Dataset
from covid_project.files import whole_file
from covid_project.images import decode, resize

SIZES = (64, 512)  # pixels along a side, smallest and largest


# ---- groups -------------------------------------------------------------------------------------


def slice_groups(paths: Iterable[str]) -> np.ndarray:
    """Return the group of each slice from its file's name: slices that may show one patient.

    In COVID-CT the name contains the article and the figure that a slice was cut from
    (``2020.02.10.20021584-p6-52%3``: panel 3 of picture 52 on page 6). An article is one group, as
    its figures often show one patient. Slices with only a number were saved in the order of their
    series: those of one folder with consecutive numbers are one group.

    Parameters
    ----------
    paths : iterable of str, (N,)
        POSIX paths.

    Returns
    -------
    np.ndarray, str (N,)
        Group of each slice.

    Examples
    --------
    >>> slice_groups(["covid/article-p6-52%3.png", "normal/7.png", "normal/8.png"]).tolist()
    ['covid/article', 'normal/from 7', 'normal/from 7']
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
    """Return folder and name without panel, page, picture and count."""
    name = PurePosixPath(path)
    stem = re.sub(r"%\d+$", "", name.stem)
    stem = re.sub(r"-p\d+-.*$", "", stem)
    return f"{name.parent}/{re.sub(r'(_\d+)+$', '', stem)}"


# ---- prepared copies ----------------------------------------------------------------------------


def prepared(image: np.ndarray, size: int, *, equalize: bool) -> np.ndarray:
    """Resize a grey image and optionally equalise its histogram.

    Parameters
    ----------
    image : np.ndarray, uint8 (H, W)
        Grey values.
    size : int, 64–512
        Pixels along each side.
    equalize : bool
        Whether to make the grey values equally frequent after resizing (histogram equalisation).

    Returns
    -------
    np.ndarray, uint8 (size, size)
        The prepared image.

    Raises
    ------
    ValueError
        The size is out of range.
    """
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"size is {size}; allowed: {SIZES[0]} to {SIZES[1]}")
    small = resize(image, (size, size))
    return np.asarray(ImageOps.equalize(Image.fromarray(small))) if equalize else small


def prepared_images(dataset: Dataset, size: int, *, equalize: bool) -> np.ndarray:
    """Prepare all images of a data set, see `prepared`.

    Parameters
    ----------
    dataset : Dataset
        The data.
    size : int, 64–512
        Pixels along each side.
    equalize : bool
        Whether to equalise the histograms.

    Returns
    -------
    np.ndarray, uint8 (N, size, size, 1)
        Images in the order of the data set's table.

    Raises
    ------
    DataError
        Names every image that cannot be read.
    ValueError
        The size is out of range.
    """
    images, unreadable = each_image(dataset, lambda grey: prepared(grey, size, equalize=equalize))
    if unreadable:
        listed = "; ".join(f"{path}: {reason}" for path, reason in unreadable.items())
        raise DataError(f"{len(unreadable)} image(s) cannot be read: {listed}")
    return np.stack(images)[..., None]


def save_copies(folder: Path, paths: Iterable[str], images: np.ndarray) -> int:
    """Write prepared images as PNG files under the names of their originals.

    A file that already has the same pixels is left as it is, so that a second run writes nothing.

    Parameters
    ----------
    folder : Path
        Folder to write.
    paths : iterable of str, (N,)
        Paths of the originals, which become paths under the folder with the suffix ``.png``.
    images : np.ndarray, uint8 (N, H, W, 1)
        Prepared images.

    Returns
    -------
    int
        Number of files written.

    Raises
    ------
    DataError
        Two originals differ only in their suffix, or a file with other pixels exists. Then nothing
        is written.
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
    """Find edges by Canny's method (Canny 1986).

    All images have the same thresholds, so that edges can be compared between classes: 10 and 20
    grey levels per pixel, after smoothing.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, H, W, 1)
        Grey values.
    sigma : float, above 0
        Standard deviation of the Gaussian, in pixels.

    Returns
    -------
    np.ndarray, bool (N, H, W)
        True on edges.
    """
    return np.stack(
        [
            canny(image.astype(np.float64), sigma=sigma, low_threshold=10, high_threshold=20)
            for image in images[..., 0]
        ]
    )


# ---- lesion boxes -------------------------------------------------------------------------------


def read_boxes(dataset: Dataset) -> list[np.ndarray]:
    """Read the boxes of DeepLesion slices from the ``.tru`` file beside each image.

    Parameters
    ----------
    dataset : Dataset
        The slices.

    Returns
    -------
    list of np.ndarray, float64 (K, 4), 0–1
        For each image, in the order of the table, K boxes: left, top, right and bottom as fractions
        of width and height. This is the form for
        `covid_lab.explain.quality.localisation.box_masks`.

    Raises
    ------
    DataError
        An image has no file, or a line is not ``type x1 y1 x2 y2``.
    """
    boxes = []
    for path in dataset.table["path"]:
        file = dataset.root.joinpath(str(PurePosixPath(path).with_suffix(".tru")))
        if not file.is_file():
            raise DataError(f"{path} has no .tru file beside it: every image needs its boxes")
        lines = file.read_text(encoding="utf-8").splitlines()
        boxes.append(np.array([_box(line, path) for line in lines if line.strip()]))
    return boxes


def _box(line: str, path: str) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (float(value) for value in line.split()[1:])
    except ValueError:
        raise DataError(f"{path}: a box is 'type x1 y1 x2 y2', found {line!r}") from None
    return left, top, right, bottom
