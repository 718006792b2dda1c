"""Memory for explaining some images: ``python -m benchmarks.memory METHOD COUNT SIZE``.

It prints the largest growth of the process in MiB, beyond the images and the maps themselves. It
runs in its own process because the peak of a process never falls.
"""

import sys
from pathlib import Path

import numpy as np

from covid_lab.explain.gradcam import grad_cam
from covid_lab.explain.occlusion import occlusion
from covid_project.models import build_backbone, transfer_model

BATCH = 8
METHODS = {
    "grad_cam": lambda model, images: grad_cam(model, images, 1, batch_size=BATCH),
    "occlusion": lambda model, images: occlusion(
        model, images, 1, patch=20, stride=20, batch_size=BATCH
    ),
}


def main(method: str, count: int, size: int) -> None:
    """Explain images with MobileNetV2 and print the memory in MiB.

    Parameters
    ----------
    method : str, key of `METHODS`
        How to explain.
    count : int, from 1
        Number of images.
    size : int, from 32
        Pixels along each side.
    """
    model = transfer_model(build_backbone("MobileNetV2", size, weights="random"), dropout=0.0)
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 1), dtype=np.uint8)
    before = peak()
    heatmaps = METHODS[method](model, images)
    kept = heatmaps.maps.nbytes + heatmaps.raw.nbytes
    print((peak() - before - kept) / 2**20)


def peak() -> int:
    """Return the largest memory of this process so far.

    Returns
    -------
    int
        Bytes.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        # Not `ru_maxrss`, which on Linux begins with the peak of the process that started this one.
        peak = next(text for text in status.read_text().splitlines() if text.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
