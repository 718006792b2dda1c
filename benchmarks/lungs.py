"""Benchmarks of the lung segmentation: its speed, and its errors against the classical method.

The images for the speed are drawn. Those for the errors are held-out radiographs, which are used
where ``../shared/data`` has them.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.runner import Benchmark
from covid_lab.lungs import segment_lungs
from covid_lab.lungs.classical import segment_lungs_classically
from covid_lab.lungs.data import TEST_SETS, Masks, read_pairs
from covid_lab.masks import dice
from covid_lab.phantoms import draw_radiograph

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
IMAGES_PER_SECOND = 40  # promised, at 128 px on two cores
DICE = {"wingspan": 0.95, "covid_lesions": 0.92}  # promised


@dataclass(frozen=True)
class Scale:
    """Scale of the benchmarks: the promised one by default, or tiny to test them."""

    images: int = 200
    repeats: int = 7


def benchmarks(scale: Scale | None = None, data: Path = DATA) -> Iterator[Benchmark]:
    """Measure the speed on drawn images, and the error 1 − Dice on held-out images.

    Parameters
    ----------
    scale : Scale, optional
        Scale of the benchmarks; None: as promised.
    data : Path
        Folder of the archives; sets that are missing are left out.

    Yields
    ------
    Benchmark
        One comparison.
    """
    scale = scale or Scale()
    drawn = [draw_radiograph(np.random.default_rng(k), 128).image for k in range(20)]
    images = np.stack(drawn * (scale.images // 20 + 1))[: scale.images]
    name = f"lungs in {scale.images} images, 128 px"
    promised = scale.images / IMAGES_PER_SECOND
    segment_lungs(images[:1])  # loads the network
    yield Benchmark(
        name=name,
        against=f"the {promised:g} seconds promised",
        ours=lambda: _seconds(lambda: segment_lungs(images)),
        peer=lambda: promised,
        promised=1,
        weights="shipped",
        repeats=scale.repeats,
        unit="seconds",
    )
    yield Benchmark(
        name=name,
        against="lungs_classical",
        ours=lambda: segment_lungs(images),
        peer=lambda: segment_lungs_classically(images),
        weights="shipped",
        repeats=scale.repeats,
    )
    for name, promise in DICE.items():
        archive, folder, behind_heart = TEST_SETS[name]
        if not (data / archive).is_file():
            continue
        found = read_pairs(data / archive, folder)
        peers = {
            f"the {1 - promise:g} promised": lambda promise=promise: 1 - promise,
            "lungs_classical": lambda found=found: _error(
                segment_lungs_classically(found.images), found
            ),
        }
        for against, peer in peers.items():
            yield Benchmark(
                name=f"1 − Dice on {name}, {len(found.images)} images",
                against=against,
                ours=lambda found=found, behind_heart=behind_heart: _error(
                    segment_lungs(found.images, behind_heart=behind_heart), found
                ),
                peer=peer,
                promised=1 if "promised" in against else np.nan,
                weights="shipped",
                repeats=1,
                unit="1 − Dice",
            )


def _error(masks: np.ndarray, found: Masks) -> float:
    """Return the mean of 1 − Dice over the images."""
    return float(1 - dice(masks, found.masks).mean())


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
