"""MedMNIST's files: small medical images with official splits, one ``.npz`` per set and size.

Yang et al., "MedMNIST v2", Scientific Data 2023. Pickled arrays are refused, so that a file cannot
run code.
"""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from covid_project.data import SPLITS, DataError, Dataset
from covid_project.files import fingerprint

CLASSES = {
    "breastmnist": ("malignant", "normal or benign"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("no retinopathy", "mild", "moderate", "severe", "proliferative"),
    "dermamnist": (
        "actinic keratosis",
        "basal cell carcinoma",
        "benign keratosis",
        "dermatofibroma",
        "melanoma",
        "melanocytic nevus",
        "vascular lesion",
    ),
}
# Published AUC and accuracy on the official test split (MedMNIST's own table): ResNet-18 at 28
# pixels, and the best network at 28 pixels where it is another one.
PUBLISHED = {
    "breastmnist": {"ResNet-18 (28)": (0.901, 0.863), "best at 28": (0.919, 0.861)},
    "pneumoniamnist": {"ResNet-18 (28)": (0.944, 0.854), "best at 28": (0.991, 0.946)},
    "retinamnist": {"ResNet-18 (28)": (0.717, 0.524)},
    "dermamnist": {"ResNet-18 (28)": (0.917, 0.735)},
}


@dataclass(frozen=True, eq=False)
class MedMNIST:
    """One file of MedMNIST.

    Attributes
    ----------
    name : str, key of `CLASSES`
        Name of the set.
    images : np.ndarray, uint8 (N, H, W, 1) or (N, H, W, 3)
        Training, validation and test images, each in the order of the file.
    labels : np.ndarray, int64 (N,)
        Index in ``classes``.
    splits : np.ndarray, str (N,)
        "train", "val" or "test".
    classes : tuple of str
        Names of the labels.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    classes: tuple[str, ...]

    def as_dataset(self, folder: Path) -> Dataset:
        """Convert to the data set of a run; the paths are ``<split>/<number>``.

        Parameters
        ----------
        folder : Path
            Root of the data set; no image is written to it.

        Returns
        -------
        Dataset
            Table and fingerprint of the images.
        """
        numbers = pd.Series(self.splits).groupby(self.splits).cumcount()
        paths = [f"{split}/{n:05}" for split, n in zip(self.splits, numbers, strict=True)]
        table = pd.DataFrame({"path": paths, "label": self.labels, "split": self.splits})
        table = table.assign(source=self.name, group=paths, mask="")
        identity = fingerprint(self.images, self.labels, "|".join(self.splits), *self.classes)
        return Dataset(table, Path(folder), self.classes, identity)


def read(path: Path) -> MedMNIST:
    """Read a MedMNIST file, such as ``breastmnist.npz`` or ``dermamnist_64.npz``.

    The name of the file gives the set; labels may be (N,) or (N, 1). A name without a suffix, such
    as ``breastmnist_64``, is a set in the cache of the ``medmnist`` package, which downloads it if
    needed.

    Parameters
    ----------
    path : Path
        The file, or the name of a set.

    Returns
    -------
    MedMNIST
        Images and labels.

    Raises
    ------
    DataError
        There is neither the file nor the package, the set is unknown, arrays are missing, pickled,
        damaged or of another shape, or labels are outside the set's classes.
    """
    path = Path(path)
    name, size = re.fullmatch(r"(.*?)(?:_(\d+))?", path.stem.lower()).groups()
    if not path.suffix and not path.exists() and name in CLASSES:
        path = _from_package(name, int(size or 28))
    if not path.is_file():
        raise DataError(f"no file {path}: give the path of a MedMNIST .npz")
    if path.suffix != ".npz" or name not in CLASSES:
        known = ", ".join(f"{known}.npz" for known in CLASSES)
        raise DataError(
            f"{path.name} is not a known set: the file's name must be one of {known}, or have a "
            "size, such as breastmnist_64.npz"
        )
    images, labels = [], []
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for split in SPLITS:
                for kind, parts in (("images", images), ("labels", labels)):
                    parts.append(_array(arrays, path, f"{split}_{kind}"))
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path.name} cannot be read: {error}") from None
    for split, pixels, found in zip(SPLITS, images, labels, strict=True):
        _check(path, split, pixels, found, images[0].shape[1:], len(CLASSES[name]))
    splits = np.repeat(SPLITS, [len(part) for part in labels])
    pixels = np.concatenate(images)
    return MedMNIST(
        name=name,
        images=pixels if pixels.ndim == 4 else pixels[..., None],
        labels=np.concatenate([part.reshape(-1) for part in labels]).astype(np.int64),
        splits=splits,
        classes=CLASSES[name],
    )


def _from_package(name: str, size: int) -> Path:
    """Return the file of a set in the ``medmnist`` package's cache, downloaded if missing."""
    file = f"{name}.npz" if size == 28 else f"{name}_{size}.npz"
    try:
        import medmnist
    except ImportError:
        raise DataError(
            f"{name} is not a file, and the package medmnist, which could load it, is missing: "
            f"give the path of {file}, or pip install medmnist"
        ) from None
    kind = getattr(medmnist, medmnist.INFO[name]["python_class"])
    if size not in kind.available_sizes:
        raise DataError(f"{name} of size {size}; allowed: {kind.available_sizes}")
    try:
        return Path(kind(split="train", download=True, size=size).root, file)
    except RuntimeError as error:  # it says what to download by hand, from where and to where
        raise DataError(f"{name}: the package medmnist failed: {error}") from error


def _array(arrays: np.lib.npyio.NpzFile, path: Path, key: str) -> np.ndarray:
    if key not in arrays:
        raise DataError(f"{path.name} has no array {key}; it holds {', '.join(arrays)}")
    return arrays[key]


def _check(
    path: Path, split: str, images: np.ndarray, labels: np.ndarray, shape: tuple, classes: int
) -> None:
    """Refuse a split whose arrays do not fit the set."""
    kind = f"{path.name}, {split}_images: {images.dtype} {images.shape}"
    square = images.ndim in (3, 4) and images.shape[1] == images.shape[2]
    grey_or_rgb = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not (square and grey_or_rgb) or len(images) == 0:
        raise DataError(f"{kind}; expected uint8 (N, size, size) or (N, size, size, 3), N > 0")
    if images.shape[1:] != shape:
        raise DataError(f"{kind}; the training images are {shape}")
    title = f"{path.name}, {split}_labels: {labels.dtype} {labels.shape}"
    if labels.shape not in ((len(images),), (len(images), 1)) or labels.dtype.kind not in "iu":
        raise DataError(f"{title}; expected whole numbers ({len(images)},) or ({len(images)}, 1)")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"{title} from {labels.min()} to {labels.max()}; allowed: 0 to {classes - 1}"
        )
