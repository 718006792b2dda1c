"""Where the lungs are in every image, from given masks or from the segmentation network."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from scipy import ndimage

from covid_lab.audit.blocks import blocks
from covid_lab.datasets import UnreadableImages, load_masks, open_root
from covid_lab.lungs import implausible, segment_lungs
from covid_lab.masks import match_masks
from covid_lab.progress import Progress
from covid_project.data import DataError, Dataset, listed
from covid_project.images import IMAGE_SUFFIXES

# Fraction of the lung masks; beyond it, the images are not frontal chest radiographs.
MOST_IMPLAUSIBLE = 0.2
STRAY_LUNG = 0.01  # fraction of the images that may show lung where the lungs are removed


def find_lungs(
    dataset: Dataset,
    parts: Iterable[np.ndarray],
    masks: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    square: int = 1,
) -> tuple[np.ndarray | None, str]:
    """Find the lungs in all images.

    An implausible mask is replaced by the region that is lung in more than half of the plausible
    masks.

    Parameters
    ----------
    dataset : Dataset
        N images. Its own masks are used where every image has one.
    parts : iterable of np.ndarray, uint8 (M, S, S)
        The images in the order of the table, some at a time.
    masks : Path, optional
        Folder or zip archive of masks, see `covid_lab.audit.shortcuts.audit_shortcuts`.
    progress : callable, optional
        Called with (stage, done, total); None: `covid_lab.progress.Progress`.
    square : int, 1–15
        Side in pixels of the squares in which lung pixels are counted; it divides S.

    Returns
    -------
    lungs : np.ndarray, uint8 (N, S / square, S / square), or None
        Number of lung pixels in each square (0 or 1 where ``square`` is 1). None where more than
        `MOST_IMPLAUSIBLE` of the masks are implausible: the images are not frontal chest
        radiographs.
    origin : str
        Where the masks come from, and how many are implausible.

    Raises
    ------
    DataError
        A mask that cannot be read, or an image without exactly one mask in ``masks``.
    """
    if masks is not None:
        dataset = _with_masks(dataset, Path(masks))
    table = dataset.table
    given = (table["mask"] != "").all()
    counts, faults, unreadable = [], [], []
    sound = 0  # in how many plausible masks each pixel is lung, (S, S)
    progress, stage = progress or Progress(), "shortcuts: images read and lungs found"
    done = 0
    progress(stage, done, len(table))
    for images in parts:
        rows = slice(done, done + len(images))
        done = rows.stop
        if given:
            part = dataclasses.replace(dataset, table=table.iloc[rows])
            try:
                found = load_masks(part, images.shape[1])
            except UnreadableImages as error:  # all of them are named at once
                unreadable += error.unreadable
                continue
        else:
            found = segment_lungs(images)
        faults.append(implausible(found) != "")
        sound = sound + found[~faults[-1]].sum(axis=0)
        counts.append(_counted(found, square))
        progress(stage, done, len(table))
    if unreadable:
        raise UnreadableImages(unreadable)
    lungs, faulty = np.concatenate(counts), np.concatenate(faults)
    origin = "lung masks as given" if given else "lung masks by the segmentation network"
    origin = f"{origin}, {faulty.sum()} of {len(faulty)} implausible"
    if faulty.mean() > MOST_IMPLAUSIBLE:
        return None, f"{origin}: no frontal chest radiographs, or other masks are needed"
    lungs[faulty] = _counted(sound[None] / (~faulty).sum() > 0.5, square)
    return lungs, origin


def common_lungs(lungs: np.ndarray) -> np.ndarray:
    """Find the region where more than `STRAY_LUNG` of the masks show lung, plus one pixel around.

    Parameters
    ----------
    lungs : np.ndarray, bool (N, S, S)
        One mask per image.

    Returns
    -------
    np.ndarray, bool (S, S)
        True inside the region.

    Examples
    --------
    >>> import numpy as np
    >>> lungs = np.zeros((2, 5, 5), bool)
    >>> lungs[0, 2, 2] = True
    >>> common_lungs(lungs).astype(int)
    array([[0, 0, 0, 0, 0],
           [0, 1, 1, 1, 0],
           [0, 1, 1, 1, 0],
           [0, 1, 1, 1, 0],
           [0, 0, 0, 0, 0]])
    """
    return ndimage.binary_dilation(lungs.mean(axis=0) > STRAY_LUNG, np.ones((3, 3)))


def fill_with_mean(images: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Replace the pixels outside a region by the mean of those inside.

    Parameters
    ----------
    images : np.ndarray, (N, H, W)
        Grey values.
    kept : np.ndarray, bool (N, H, W)
        Pixels that stay.

    Returns
    -------
    np.ndarray, float32 (N, H, W)
        An image of which nothing is kept becomes 0.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.array([[[10, 30], [80, 90]]])
    >>> fill_with_mean(images, images < 50)
    array([[[10., 30.],
            [20., 20.]]], dtype=float32)
    """
    filled = np.empty(images.shape, np.float32)
    for rows in blocks(len(images), images[0].size):
        image, inside = images[rows], kept[rows]
        number = inside.sum(axis=(1, 2), keepdims=True)
        total = (image * inside).sum(axis=(1, 2), keepdims=True, dtype=np.float32)
        filled[rows] = np.where(inside, image, total / np.maximum(number, 1))
    return filled


def _counted(masks: np.ndarray, square: int) -> np.ndarray:
    """Number of pixels of each square inside the masks bool (N, S, S), uint8."""
    n, side, _ = masks.shape
    squares = masks.reshape(n, side // square, square, side // square, square)
    return squares.sum(axis=(2, 4), dtype=np.uint8)


def _with_masks(dataset: Dataset, masks: Path) -> Dataset:
    """The data set with masks from another place; every image must have one."""
    root, names = open_root(masks)
    names = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    paths = dataset.table["path"]
    found = match_masks(paths, names)
    missing = [path for path in paths if path not in found]
    if missing:
        raise DataError(
            f"{masks} must hold exactly one mask for every image, under its path or its name; "
            f"{len(missing)} of {len(paths)} images have none or several: "
            f"{listed(missing, limit=5)}. Correct it, or leave it out to have the lungs found"
        )
    return dataclasses.replace(
        dataset, root=root, table=dataset.table.assign(mask=paths.map(found))
    )
