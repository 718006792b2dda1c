"""Radiographs with lung masks: what trains, validates and tests the lung segmentation.

The masks follow two conventions. Those of adults (JSRT) end at the border of the heart, as do those
of the test set wingspan. Those of children (V7 Labs) reach the spine and include the lung behind
the heart, as do those of the test set covid_lesions. The label of a pixel is therefore the set of
the classes that its mask allows.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage
from sklearn.model_selection import GroupShuffleSplit

from covid_lab.lungs.augmentation import SURELY_OUTSIDE, add_opacities
from covid_lab.lungs.network import FIELD, HEART, SIDE
from covid_lab.phantoms import SEVERITIES, draw_radiograph
from covid_lab.studies.ct_phantoms import draw_slice
from covid_project.images import decode, resize

ARCHIVES = ("lung_masks.zip", "chest_xray.zip", "chest_xray_lung_masks.zip")  # for training
PHANTOMS, NO_CHEST = 1500, 200  # drawn images
VALIDATION = {"adults": 0.19, "children": 0.1}  # fraction of the patients
SURE = 0.8  # probability from which a label is decided by another network

# Sets of the classes that a pixel may have, one bit per class.
FIELD_ONLY, HEART_ONLY = np.uint8(1 << FIELD), np.uint8(1 << HEART)
FIELD_OR_HEART = FIELD_ONLY | HEART_ONLY
OUTSIDE_OR_HEART = SURELY_OUTSIDE | HEART_ONLY

# person1000_virus_1681.jpeg, IM-0433-0001-0002.jpeg, NORMAL2-IM-0374-0001-0001.jpeg
_CHILD = r"/(person\d+|(?:NORMAL2-)?IM-\d+)[-_]"


@dataclass(frozen=True, eq=False)
class Masks:
    """Radiographs with lung masks.

    Attributes
    ----------
    images : np.ndarray, uint8 (N, S, S)
    masks : np.ndarray, bool (N, S, S)
    patients : np.ndarray, str (N,)
        Images of one patient share it.
    """

    images: np.ndarray
    masks: np.ndarray
    patients: np.ndarray

    def __getitem__(self, rows) -> "Masks":
        return Masks(self.images[rows], self.masks[rows], self.patients[rows])


# Held-out sets, neither trained on nor used for choices: archive, folder, and whether their masks
# reach the spine. ``folder/images`` and ``folder/masks`` are in the archive.
TEST_SETS = {
    "wingspan": ("lung_masks.zip", "lung_masks/wingspan", False),
    "covid_lesions": ("covid_lesions.zip", "covid_lesions", True),
}


def read_pairs(archive: Path, folder: str, side: int = 256) -> Masks:
    """Read all images of ``folder/images`` and the masks of the same names in ``folder/masks``.

    Parameters
    ----------
    archive : Path
        Zip file.
    folder : str
        Folder in it.
    side : int
        Pixels to which images and masks are resized.

    Returns
    -------
    Masks
        In the order of the names; each image is its own patient.
    """
    with zipfile.ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if name.startswith(f"{folder}/images/"))
        names = [name for name in names if not name.endswith("/")]
        masks = [name.replace("/images/", "/masks/") for name in names]
        return Masks(
            _read(file, names, side),
            _read(file, masks, side) >= 128,
            np.array([Path(name).stem for name in names]),
        )


def _read_children(data: Path, side: int) -> tuple[Masks, np.ndarray]:
    """Children's radiographs whose mask surely belongs to them, and whether each has pneumonia."""
    # The masks' names were recovered by alignment: a margin above 1 and test/NORMAL are safe.
    masks = "chest_xray_lung_masks"
    with (
        zipfile.ZipFile(data / "chest_xray.zip") as images,
        zipfile.ZipFile(data / f"{masks}.zip") as file,
    ):
        table = pd.read_csv(file.open(f"{masks}/masks.csv")).sort_values("image")
        table = table[(table["margin"] > 1) | table["image"].str.contains("test/NORMAL")]
        found = Masks(
            _read(images, table["image"], side),
            _read(file, f"{masks}/" + table["mask"], side) >= 128,
            table["image"].str.extract(_CHILD)[0].to_numpy(str),
        )
    return found, table["image"].str.contains("/PNEUMONIA/").to_numpy()


def _read(file: zipfile.ZipFile, names, side: int) -> np.ndarray:
    """Decode and resize images of an archive, uint8 (N, side, side)."""
    return np.stack([resize(decode(file.read(name), name), (side, side)) for name in names])


def _draw_phantoms(count: int, seed: int) -> Masks:
    """Chests of 128 × 128 pixels in health and of each severity in turn."""
    kinds = (None, *SEVERITIES)
    drawn = [
        draw_radiograph(np.random.default_rng((seed, k)), SIDE, kinds[k % len(kinds)])
        for k in range(count)
    ]
    return Masks(
        np.stack([one.image for one in drawn]),
        np.stack([one.lungs for one in drawn]),
        np.arange(count).astype(str),
    )


def _draw_no_chests(count: int, seed: int) -> np.ndarray:
    """Draw images without a frontal chest: CT slices, smooth noise and even grey."""
    images = []
    for k in range(count):
        rng = np.random.default_rng((seed, k))
        if k % 4 < 2:
            values = draw_slice(*rng.spawn(2), size=SIDE).hounsfield
            centre, width = rng.choice([(-600, 1500), (40, 400), (0, 2000)])
            grey = (values - centre) / width + 0.5
        elif k % 4 == 2:
            noise = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), rng.uniform(0, 20))
            grey = (noise - noise.min()) / np.ptp(noise)
        else:
            grey = np.full((SIDE, SIDE), rng.random())
        images.append(np.uint8(255 * grey.clip(0, 1)))
    return np.stack(images)


def adult_labels(masks: np.ndarray) -> np.ndarray:
    """Label pixels by masks that end at the heart.

    In the mask a pixel is lung field. Between the lungs, row by row, it is outside or behind the
    heart; elsewhere it is outside.

    Parameters
    ----------
    masks : np.ndarray, bool (N, S, S)

    Returns
    -------
    np.ndarray, uint8 (N, S, S)
        Sets of classes, bit k for class k.
    """
    right_of, left_of = (np.maximum.accumulate(part, 2) for part in (masks, masks[..., ::-1]))
    between = right_of & left_of[..., ::-1]
    return np.where(masks, FIELD_ONLY, np.where(between, OUTSIDE_OR_HEART, SURELY_OUTSIDE))


def decide_heart(labels: np.ndarray, lung: np.ndarray) -> np.ndarray:
    """Decide open labels between the lungs where another network is sure.

    Parameters
    ----------
    labels : np.ndarray, uint8 (N, S, S)
        As from `adult_labels`.
    lung : np.ndarray, float32 (N, S, S), 0–1
        Probability of lung or lung behind the heart.

    Returns
    -------
    np.ndarray, uint8 (N, S, S)
    """
    is_open = labels == OUTSIDE_OR_HEART
    labels = np.where(is_open & (lung > SURE), HEART_ONLY, labels)
    return np.where(is_open & (lung < 1 - SURE), SURELY_OUTSIDE, labels)


def child_labels(masks: np.ndarray) -> np.ndarray:
    """Label pixels by masks that reach the spine.

    In the mask a pixel is lung field or behind the heart; elsewhere it is outside.

    Parameters
    ----------
    masks : np.ndarray, bool (N, S, S)

    Returns
    -------
    np.ndarray, uint8 (N, S, S)
        Sets of classes, bit k for class k.
    """
    return np.where(masks, FIELD_OR_HEART, SURELY_OUTSIDE)


def _split_patients(
    patients: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and for validation; no patient is in both."""
    splitter = GroupShuffleSplit(1, test_size=fraction, random_state=seed)
    return next(splitter.split(patients, groups=patients))


def read_all(
    data: Path, seed: int
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, tuple[Masks, bool]]]:
    """Read and draw everything that is used for training and validation.

    Parameters
    ----------
    data : Path
        Folder of the `ARCHIVES`.
    seed : int
        Of the split and of the drawings.

    Returns
    -------
    sources : dict
        For "adults", "children", "phantoms" and "no chest" the images and the labels, both uint8
        (N, 128, 128).
    validation : dict
        Name of each set → its `Masks`, and whether these reach the spine.
    """
    adults = read_pairs(data / "lung_masks.zip", "lung_masks/jsrt", SIDE)
    children, pneumonia = _read_children(data, SIDE)
    phantoms, no_chest = _draw_phantoms(PHANTOMS, seed), _draw_no_chests(NO_CHEST, seed)
    learned, kept = _split_patients(adults.patients, VALIDATION["adults"], seed)
    children_learned, children_kept = _split_patients(
        children.patients, VALIDATION["children"], seed
    )
    sources = {
        "adults": (adults.images[learned], adult_labels(adults.masks[learned])),
        "children": (
            children.images[children_learned],
            child_labels(children.masks[children_learned]),
        ),
        "phantoms": (phantoms.images, adult_labels(phantoms.masks)),
        "no chest": (no_chest, np.full_like(no_chest, SURELY_OUTSIDE)),
    }
    healthy = children_kept[~pneumonia[children_kept]]
    validation = {
        "JSRT": (adults[kept], False),
        "JSRT with drawn opacities": (_with_opacities(adults[kept], seed), False),
        "children, NORMAL": (children[healthy], True),
        "children, PNEUMONIA": (children[np.setdiff1d(children_kept, healthy)], True),
    }
    return sources, validation


def _with_opacities(found: Masks, seed: int) -> Masks:
    """Draw strong opacities into the lungs of every image."""
    images = []
    for k, (image, mask) in enumerate(zip(found.images, found.masks, strict=True)):
        rng = np.random.default_rng((seed, k))
        grey = add_opacities(image.astype(np.float32) / 255, mask, rng)
        images.append(np.rint(255 * add_opacities(grey, mask, rng)))
    return Masks(np.uint8(images), found.masks, found.patients)
