"""The promise of the perturbations: a whole batch, against the package imagecorruptions.

The peer takes one image after the other, and turns a grey one into three channels first, as whoever
gives it a grey image lets it do. The images are smooth noise: what is on them costs no time.
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
PEERS = {  # names there
    "gaussian noise": "gaussian_noise",
    "speckle": "speckle_noise",
    "motion blur": "motion_blur",
    "contrast": "contrast",
    "brightness": "brightness",
}
# Grey levels: the package cuts off fractions, which we round. Half a level on average, a whole one
# where all fractions are one half.
CUT_OFF = 1.001


@dataclass(frozen=True)
class Scale:
    """How large the benchmarks are: as promised, or tiny to test them."""

    images: int = 64
    size: int = 224  # pixels, at which both sides have the same constants
    repeats: int = 5


class PeerMissing(RuntimeError):
    """The outside package is not installed; the message says how to get it."""


def benchmarks(scale: Scale | None = None) -> Iterator[Benchmark]:
    """Each perturbation of a batch of grey and of a batch of colour images."""
    scale = scale or Scale()
    try:
        peer = importlib.import_module(PACKAGE)
    except ImportError as error:
        raise PeerMissing(
            f"{PACKAGE} cannot be imported ({error}): pip install -r requirements-bench.txt"
        ) from None
    rng = np.random.default_rng(0)
    for kind, channels in {"grey": 1, "colour": 3}.items():
        # Far from black and white, so that clipping leaves the mean of the noise alone.
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
    """Difference of the means, in grey levels: neither side draws the other's noise."""
    return abs(float(ours.mean() - theirs.mean()))
