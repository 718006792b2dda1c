"""Find copies with another package: ``PYTHON benchmarks/copies_by_peers.py TOOL FOLDER``.

The packages need other versions of NumPy and PyTorch than this project, so `near_copies` runs this
file with the Python of another environment. It imports nothing of the project and prints one line
of JSON: version, setting and pairs (two file names and a score, larger if more alike).
"""

import json
import sys
import tempfile
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

LOOSEST_HASH = 16  # bits of 64 that may differ; the default is 10
LOOSEST_COSINE = 0.8  # of fastdup; its default is 0.9


def _imagededup(folder: Path) -> dict:
    """Find copies by perceptual hash; the score is 1 − bits / 64."""
    from imagededup.methods import PHash

    found = PHash(verbose=False).find_duplicates(
        image_dir=folder, max_distance_threshold=LOOSEST_HASH, scores=True
    )
    pairs = {
        (*sorted((name, other)), 1 - bits / 64) for name in found for other, bits in found[name]
    }
    return {"setting": 1 - 10 / 64, "pairs": sorted(pairs)}


def _cleanvision(folder: Path) -> dict:
    """Find sets of exact and near duplicates; every score is 1."""
    from cleanvision import Imagelab

    lab = Imagelab(data_path=str(folder), verbose=False)
    lab.find_issues({"exact_duplicates": {}, "near_duplicates": {}}, verbose=False)
    sets = [one for kind in ("exact", "near") for one in lab.info[f"{kind}_duplicates"]["sets"]]
    pairs = {
        (*sorted((Path(a).name, Path(b).name)), 1.0)
        for one in sets
        for a, b in combinations(one, 2)
    }
    return {"setting": 1.0, "pairs": sorted(pairs)}


def _fastdup(folder: Path) -> dict:
    """Find copies by the cosine similarity of a network's features."""
    import fastdup as package

    with tempfile.TemporaryDirectory() as work:
        run = package.create(work_dir=work, input_dir=str(folder))
        run.run(ccthreshold=0.9, threshold=LOOSEST_COSINE, nearest_neighbors_k=6, verbose=False)
        table = run.similarity()
    pairs = {
        (*sorted((Path(row.filename_from).name, Path(row.filename_to).name)), float(row.distance))
        for row in table.itertuples()
    }
    return {"setting": 0.9, "pairs": sorted(pairs)}


TOOLS = {"imagededup": _imagededup, "cleanvision": _cleanvision, "fastdup": _fastdup}

if __name__ == "__main__":
    tool, folder = sys.argv[1:]
    print(json.dumps({"version": version(tool), **TOOLS[tool](Path(folder))}))
