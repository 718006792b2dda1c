"""Lung masks of frontal chest radiographs, from a small U-Net whose weights are shipped.

`segment_lungs` finds the lungs, opaque ones included, and `implausible` names masks that cannot be
two lungs. `covid_lab.lungs.training` trained the network; its record beside the weights holds the
Dice coefficients on held-out images: 0.940 (95 % CI 0.934–0.945, n = 259) for the lung fields of
adults from another hospital, 0.937 (0.926–0.946, n = 100) for the lungs of adults with pneumonia,
with the part behind the heart. `classical` needs neither weights nor TensorFlow.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from covid_lab.lungs.classical import checked_images
from covid_project.images import resize

WEIGHTS = Path(__file__).with_name("unet.weights.h5")
RECORD = Path(__file__).with_name("unet.json")
LEAST_AREA, MOST_AREA = 0.06, 0.6  # of the image, both lungs together
LEAST_BALANCE = 0.25  # area of the smaller lung as a fraction of the larger
_SIDE = 128  # pixels of the network's images
_CHUNK = 256  # images at once, which limits the memory

# Images uint8 (N, 128, 128) → float32 (N, 128, 128, 3), see `network.compile_probabilities`.
Probabilities = Callable[[np.ndarray], np.ndarray]


def segment_lungs(images: np.ndarray, *, behind_heart: bool = False) -> np.ndarray:
    """Segment the lungs of frontal chest radiographs.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, S, S)
        Grey values, bright where dense. Each image is resized to 128 × 128 pixels for the network,
        and its mask is resized back.
    behind_heart : bool
        Where a lung ends: False, at the border of the heart (the lung fields); True, at the spine.

    Returns
    -------
    np.ndarray, bool (N, S, S)
        The one or two largest regions, without holes; none in an image without lungs. See
        `implausible`.

    Raises
    ------
    ValueError
        Another dtype or shape.
    FileNotFoundError
        The weights are missing.

    Examples
    --------
    >>> from covid_lab.phantoms import draw_radiograph
    >>> image = draw_radiograph(np.random.default_rng(0), size=128).image
    >>> masks = segment_lungs(image[None])
    >>> implausible(masks).tolist()
    ['']
    """
    return masks_from(network_probabilities(), checked_images(images), behind_heart)


def implausible(masks: np.ndarray) -> np.ndarray:
    """Name the masks that cannot be two lungs, with the reason.

    A mask covers too little or too much of the image, or one side of it is much smaller than the
    other. A patient with one missing or very small lung is named as well.

    Parameters
    ----------
    masks : np.ndarray, bool (N, S, S)

    Returns
    -------
    np.ndarray, str (N,)
        "" where the mask is plausible.
    """
    reasons = []
    for mask in np.asarray(masks):
        share = mask.mean()
        columns = np.flatnonzero(mask.any(axis=0))
        middle = (columns[0] + columns[-1] + 1) // 2 if len(columns) else 0
        smaller, larger = sorted((mask[:, :middle].sum(), mask[:, middle:].sum()))
        if not LEAST_AREA <= share <= MOST_AREA:
            reasons.append(f"{share:.0%} of the image")
        elif smaller < LEAST_BALANCE * larger:
            reasons.append("one lung only")
        else:
            reasons.append("")
    return np.array(reasons, dtype="U32")


def masks_from(probabilities: Probabilities, images: np.ndarray, behind_heart: bool) -> np.ndarray:
    """Segment images with a given network.

    Parameters
    ----------
    probabilities : callable
        See `covid_lab.lungs.network.compile_probabilities`.
    images : np.ndarray, uint8 (N, S, S)
    behind_heart : bool
        See `segment_lungs`.

    Returns
    -------
    np.ndarray, bool (N, S, S)
    """
    masks = np.empty(images.shape, bool)
    for first in range(0, len(images), _CHUNK):
        chunk = images[first : first + _CHUNK]
        small = np.stack([resize(image, (_SIDE, _SIDE)) for image in chunk])
        outside, _, field = np.moveaxis(probabilities(small), -1, 0)
        for row, lung in enumerate(1 - outside if behind_heart else field):
            masks[first + row] = resize(_cleaned(lung), images.shape[1:]) >= 128
    return masks


@cache
def network_probabilities() -> Probabilities:
    """Load the shipped network once; TensorFlow is imported only here.

    Returns
    -------
    callable
        See `covid_lab.lungs.network.compile_probabilities`.

    Raises
    ------
    FileNotFoundError
        The weights are missing.
    """
    if not WEIGHTS.is_file():
        raise FileNotFoundError(
            f"{WEIGHTS} is missing: restore it, train it (`python -m covid_lab.lungs.training`) "
            "or use `covid_lab.lungs.classical.segment_lungs_classically`, which needs no weights"
        )
    from covid_lab.lungs import network

    return network.compile_probabilities(network.load_network(WEIGHTS))


def _cleaned(probability: np.ndarray) -> np.ndarray:
    """Keep the two largest regions and fill their holes; uint8 (S, S), 128 at the lung's edge."""
    regions, count = ndimage.label(probability >= 0.5)
    sizes = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    kept = np.isin(regions, 1 + np.argsort(sizes)[-2:]) if count else np.zeros(regions.shape, bool)
    filled = ndimage.binary_fill_holes(kept)
    levels = np.rint(255 * np.where(kept | (regions == 0), probability, 0))
    return np.where(filled & ~kept, 255, levels).astype(np.uint8)
