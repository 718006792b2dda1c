"""Benchmark of the perturbations: a whole batch, against the package imagecorruptions.

The peer takes one image at a time, and converts a grey one to three channels first, as it does for
its users. The images are smooth noise: their content does not change the time.
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.runner import Benchmark
from covid_lab.studies.perturbations import perturbed

SEVERITY = 3
PROMISED = 5
PACKAGE = "imagecorruptions"
PEERS = {  # names in the package
    "gaussian noise": "gaussian_noise",
    "speckle": "speckle_noise",
    "motion blur": "motion_blur",
    "contrast": "contrast",
    "brightness": "brightness",
}
# Grey levels: the package truncates fractions, which we round. The difference is half a level on
# average, and at most one.
CUT_OFF = 1.001


@dataclass(frozen=True)
class Scale:
    """Scale of the benchmarks: the promised one by default, or tiny to test them."""

    images: int = 64
    size: int = 224  # pixels, at which both sides have the same constants
    repeats: int = 5


def benchmarks(scale: Scale | None = None) -> Iterator[Benchmark]:
    """Measure each perturbation of a batch of grey and of a batch of colour images.

    Parameters
    ----------
    scale : Scale, optional
        Scale of the benchmarks; None: as promised.

    Yields
    ------
    Benchmark
        One perturbation.

    Raises
    ------
    ImportError
        The package imagecorruptions is not installed; see ``requirements-bench.txt``.
    """
    scale = scale or Scale()
    peer = importlib.import_module(PACKAGE)
    rng = np.random.default_rng(0)
    for kind, channels in {"grey": 1, "colour": 3}.items():
        # Far from black and white, so that clipping does not change the mean of the noise.
        shape = (scale.images, scale.size, scale.size, channels)
        images = rng.integers(100, 140, shape, np.uint8)
        for perturbation, name in PEERS.items():
            yield Benchmark(
                name=f"{perturbation}, {scale.images} {kind} images, {scale.size} px",
                against=f"{PACKAGE}.corrupt",
                ours=lambda images=images, perturbation=perturbation: perturbed(
                    images, perturbation, SEVERITY
                ),
                peer=lambda images=images, name=name: np.stack(
                    [peer.corrupt(image, SEVERITY, name) for image in images]
                ),
                promised=PROMISED,
                agreement=_mean_difference,
                tolerance=CUT_OFF,
                repeats=scale.repeats,
            )


def _mean_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the difference of the means, in grey levels, as each side draws its own noise."""
    return abs(float(ours.mean() - theirs.mean()))
