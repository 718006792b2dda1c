"""NumPy files of images, such as MedMNIST's, written as a folder of images."""

from pathlib import Path

import numpy as np
from PIL import Image

from covid_project.data import SPLIT_FOLDERS, DataError

IMAGES = ("images", "image", "x", "data")
LABELS = ("labels", "label", "y", "targets", "target")


def write_arrays(path: Path, folder: Path) -> None:
    """Write the images of a ``.npz`` file as ``[split/]label/number.png``.

    Parameters
    ----------
    path : Path
        File with pairs of arrays: images, uint8 (N, H, W) or (N, H, W, 1 or 3), or floats 0–1; and
        labels, integer (N,) or (N, 1). Names are those of MedMNIST (``train_images``,
        ``train_labels``, …) or ``x_train``, ``y_train``; ``images`` and ``labels`` where there is
        no split.
    folder : Path
        An empty folder.

    Raises
    ------
    DataError
        The file is not a NumPy file, has no such pair, or has arrays of other shapes or values.
    """
    try:
        arrays = np.load(path, allow_pickle=False)
        names = list(arrays.files)
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path} cannot be read as a NumPy file of arrays ({error})") from None
    pairs = {}
    for name in names:
        role, split = _role(name)
        if role:
            pairs.setdefault(split, {})[role] = name
    pairs = {split: found for split, found in pairs.items() if len(found) == 2}
    if not pairs:
        raise DataError(
            f"{path} has no pair of images and labels. Found: {', '.join(names) or 'nothing'}. "
            "Allowed: train_images and train_labels, x_train and y_train, or images and labels"
        )
    for split, found in pairs.items():
        try:
            images, labels = arrays[found["images"]], arrays[found["labels"]]
        except (OSError, ValueError) as error:
            raise DataError(f"{path}, {split or 'images'}: cannot be read ({error})") from None
        _write(images, labels, folder / split, f"{path}, {found['images']}")


def _role(name: str) -> tuple[str, str]:
    """Tell images from labels, and the split, by an array's name; "" for neither."""
    parts = name.casefold().split("_")
    split = next((SPLIT_FOLDERS[part] for part in parts if part in SPLIT_FOLDERS), "")
    rest = "_".join(part for part in parts if part not in SPLIT_FOLDERS)
    role = "images" if rest in IMAGES else "labels" if rest in LABELS else ""
    return role, split


def _write(images: np.ndarray, labels: np.ndarray, folder: Path, name: str) -> None:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim not in (3, 4) or labels.shape != images.shape[:1]:
        raise DataError(
            f"{name}: images {images.shape} with labels {labels.shape}; allowed: (N, H, W) or "
            "(N, H, W, 3), and one label for each image"
        )
    if images.dtype.kind == "f" and images.size and 0 <= images.min() <= images.max() <= 1:
        images = np.round(images * 255).astype(np.uint8)
    if images.dtype != np.uint8 or labels.dtype.kind not in "iub":
        raise DataError(
            f"{name}: values {images.dtype} with labels {labels.dtype}; allowed: uint8, or floats "
            "from 0 to 1, and integer labels"
        )
    digits = len(str(len(images)))
    for label in np.unique(labels):
        (folder / str(int(label))).mkdir(parents=True, exist_ok=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(folder / str(int(label)) / f"{number:0{digits}}.png")
