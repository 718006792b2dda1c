"""How many planted copies of radiographs are found: ``python -m benchmarks.near_copies``.

The benchmark draws 1,100 radiographs and 720 copies of twelve kinds from images on which no
constant of `covid_lab.audit.near_copies` was chosen. A planted copy is found if it is paired with
its original. A pair is false if its images come from two originals, unless these two were seen to
be the same radiograph (`KNOWN`). With ``--peers PYTHON``, packages that this other Python can
import are measured as well: ``pip install imagededup cleanvision fastdup`` in an environment of
their own. The result is ``results/near_copies.csv``.
"""

import argparse
import io
import json
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.copies_by_peers import TOOLS
from benchmarks.planted_copies import KINDS
from benchmarks.runner import Benchmark, machine
from covid_lab.audit.duplicates import near_pairs
from covid_project.evaluation import wilson_interval
from covid_project.files import write_csv

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIDE = 128  # pixels at which copies are sought
ORIGINALS, COPIES = 1100, 60  # copies of each kind
RECALL, PRECISION = 0.97, 0.995  # promised
CHOSEN_ON = 800  # images of the course's training split on which constants were chosen

# Pairs of originals that were seen to be the same radiograph, cropped or with another contrast. Two
# radiographs of one patient are not copies and count as false.
KNOWN = {
    frozenset(f"{folder}/{name}" for name in names)
    for folder, *names in (
        ("covid_xray", "train/COVID/COVID-559.png", "val/COVID/COVID-1209.png"),
        ("covid_xray", "train/COVID/COVID-603.png", "val/COVID/COVID-1356.png"),
        ("covid_xray", "val/COVID/COVID-1197.png", "val/COVID/COVID-1535.png"),
        (
            "chest_xray/train/PNEUMONIA",
            "person258_bacteria_1207.jpeg",
            "person258_bacteria_1209.jpeg",
        ),
        (
            "chest_xray/train/PNEUMONIA",
            "person1349_bacteria_3436.jpeg",
            "person1349_bacteria_3437.jpeg",
        ),
    )
}


# ---- the draw -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Draw:
    """Originals and planted copies.

    Attributes
    ----------
    images : list of np.ndarray, uint8 (H, W)
        The originals, then the copies.
    names : np.ndarray, str (N,)
        File of each image's original.
    kinds : np.ndarray, str (N,)
        Kind of each copy; "" for an original.
    originals : np.ndarray, int (N,)
        Row of each image's original.
    """

    images: list[np.ndarray]
    names: np.ndarray
    kinds: np.ndarray
    originals: np.ndarray

    def small(self) -> np.ndarray:
        """Resize all images to the size at which the audit compares them.

        Returns
        -------
        np.ndarray, uint8 (N, SIDE, SIDE)
            Grey values.
        """
        size = (SIDE, SIDE)
        return np.stack(
            [
                np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
                for image in self.images
            ]
        )


def draw(
    data: Path = DATA, *, originals: int = ORIGINALS, copies: int = COPIES, seed: int = 2024
) -> Draw:
    """Draw radiographs of two collections on which no constant was chosen, and copies of some.

    Parameters
    ----------
    data : Path
        Folder with ``covid_xray.zip`` and ``chest_xray.zip``. No test split is read.
    originals : int, from 1
        Number of radiographs.
    copies : int, from 1
        Copies of each kind.
    seed : int, from 0
        Seed of the draw.

    Returns
    -------
    Draw
        Originals and copies.
    """
    rng = np.random.default_rng(seed)
    adults = data / "covid_xray.zip"
    training = np.random.default_rng(77).permutation(_names(adults, "covid_xray/train"))
    unused = [*training[CHOSEN_ON:], *_names(adults, "covid_xray/val")]
    children = _names(data / "chest_xray.zip", "chest_xray/train")
    of_adults = originals * 6 // 11
    chosen = list(rng.choice(unused, of_adults, replace=False))
    images = _read(adults, chosen)
    others = list(rng.choice(children, originals - of_adults, replace=False))
    images += _read(data / "chest_xray.zip", others)
    rows = np.concatenate([rng.choice(originals, copies, replace=False) for _ in KINDS])
    kinds = np.repeat(list(KINDS), copies)
    images += [KINDS[kind](images[row], rng) for row, kind in zip(rows, kinds, strict=True)]
    rows = np.concatenate([np.arange(originals), rows])
    return Draw(
        images,
        np.array([*chosen, *others], dtype=object)[rows],
        np.concatenate([np.full(originals, "", kinds.dtype), kinds]),
        rows,
    )


def _names(archive: Path, folder: str) -> list[str]:
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
    return sorted(
        name for name in names if name.startswith(folder) and name.endswith((".png", ".jpeg"))
    )


def _read(archive: Path, names: list[str]) -> list[np.ndarray]:
    with zipfile.ZipFile(archive) as opened:
        return [
            np.asarray(Image.open(io.BytesIO(opened.read(name))).convert("L")) for name in names
        ]


# ---- measuring ----------------------------------------------------------------------------------


def score(drawn: Draw, pairs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compute the recall of each kind and of all, and the precision.

    Parameters
    ----------
    drawn : Draw
        Images among which the pairs were found.
    pairs : pd.DataFrame
        Columns first and second, rows of the draw.

    Returns
    -------
    table : pd.DataFrame
        Columns measure ("recall", "precision"), kind, n, value, low and high (95 % Wilson
        interval).
    others : pd.DataFrame
        Pairs of two originals: first and second (names of the originals) and known (bool, whether
        the pair is in `KNOWN`).
    """
    first, second = pairs["first"].to_numpy(), pairs["second"].to_numpy()
    found = set(zip(first, second, strict=True)) | set(zip(second, first, strict=True))
    planted = pd.DataFrame({"kind": drawn.kinds, "original": drawn.originals})
    planted = planted[planted["kind"] != ""]
    hit = pd.Series([pair in found for pair in planted["original"].items()], planted.index)
    # `items` gives (row, original); both orders of a pair are in `found`.
    measured = [("recall", "all", hit.sum(), len(hit))]
    for kind in KINDS:
        of_kind = hit[planted["kind"] == kind]
        measured.append(("recall", kind, of_kind.sum(), len(of_kind)))
    same = drawn.originals[first] == drawn.originals[second]
    others = pd.DataFrame(
        {"first": drawn.names[first[~same]], "second": drawn.names[second[~same]]}
    )
    others["known"] = [
        frozenset(pair) in KNOWN for pair in zip(others["first"], others["second"], strict=True)
    ]
    false = int((~others["known"]).sum())
    measured.append(("precision", "all", same.sum(), same.sum() + false))
    rows = [
        (what, kind, n, hits / n if n else np.nan, *wilson_interval(int(hits), int(n)))
        for what, kind, hits, n in measured
    ]
    return pd.DataFrame(rows, columns=["measure", "kind", "n", "value", "low", "high"]), others


def _by_peer(python: str, tool: str, drawn: Draw) -> dict:
    """Version, setting and pairs (first, second, score) of a package, by the Python that has it."""
    with tempfile.TemporaryDirectory() as folder:
        for row, image in enumerate(drawn.images):
            Image.fromarray(image).save(Path(folder, f"{row:05}.png"), compress_level=1)
        script = Path(__file__).with_name("copies_by_peers.py")
        done = subprocess.run(
            [python, str(script), tool, folder], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"{tool}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    pairs = pd.DataFrame(found["pairs"], columns=["first", "second", "score"])
    for side in ("first", "second"):
        pairs[side] = pairs[side].str.removesuffix(".png").astype(int)
    return found | {"pairs": pairs[pairs["first"] != pairs["second"]]}


def _best_threshold(drawn: Draw, pairs: pd.DataFrame) -> float:
    """Score with the highest recall at `PRECISION`, or else the highest precision, on this draw."""
    found = []
    for threshold in np.unique(pairs["score"].round(3)):
        table, _ = score(drawn, pairs[pairs["score"] >= threshold])
        values = table[table["kind"] == "all"].set_index("measure")["value"]
        found.append((min(values["precision"], PRECISION), values["recall"], threshold))
    return max(found)[2]


def _compare(drawn: Draw, peers: str | None, say: Callable[[str], None] = print) -> pd.DataFrame:
    """Compare the recall and precision of this project and of other packages."""
    images = drawn.small()
    pairs = near_pairs(images)
    facts = {"tool": "covid_lab", "version": "", "setting": "default"}
    table, others = score(drawn, pairs)
    tables = [table.assign(**facts)]
    say(f"pairs of two originals:\n{others.to_string()}")
    for tool in TOOLS if peers else ():
        try:
            found = _by_peer(peers, tool, drawn)
        except RuntimeError as error:
            say(str(error))
            continue
        everything = found["pairs"]
        settings = {"default": found["setting"]}
        if everything["score"].max() > everything["score"].min():
            settings["best on this draw"] = _best_threshold(drawn, everything)
        for name, threshold in settings.items():
            table, _ = score(drawn, everything[everything["score"] >= threshold])
            facts = {"tool": tool, "version": found["version"]}
            facts["setting"] = f"{name} ({threshold:.3g})"
            tables.append(table.assign(**facts))
    return pd.concat(tables, ignore_index=True)


def benchmarks(data: Path = DATA) -> Iterator[Benchmark]:
    """Compare missed copies and false pairs with what is promised.

    Parameters
    ----------
    data : Path
        Folder of the archives; nothing is yielded where one is missing.

    Yields
    ------
    Benchmark
        The recall or the precision.
    """
    if not all((data / name).is_file() for name in ("covid_xray.zip", "chest_xray.zip")):
        return
    drawn = draw(data)
    table, _ = score(drawn, near_pairs(drawn.small()))
    values = table[table["kind"] == "all"].set_index("measure")["value"]
    for measure, promise in (("recall", RECALL), ("precision", PRECISION)):
        yield Benchmark(
            name=f"near copies, {ORIGINALS} radiographs and {COPIES * len(KINDS)} copies",
            against=f"the {measure} of {promise:g} promised",
            # A thousandth stands for zero, so that there is a ratio.
            ours=lambda missed=1 - values[measure]: max(missed, 1e-3),
            peer=lambda promise=promise: 1 - promise,
            promised=1,
            weights="none",
            repeats=1,
            unit=f"1 − {measure}",
        )


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write the table.

    Parameters
    ----------
    arguments : list of str, optional
        Options; None: those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.near_copies", description=__doc__)
    parser.add_argument("--to", type=Path, default=Path("results"), help="folder (%(default)s)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the archives")
    parser.add_argument("--peers", metavar="PYTHON", help="Python that can import other packages")
    parser.add_argument("--seed", type=int, default=2024, help="of the draw (%(default)s)")
    options = parser.parse_args(arguments)
    drawn = draw(options.data, seed=options.seed)
    table = _compare(drawn, options.peers).assign(machine=machine())
    shown = table.assign(who=table["tool"] + " " + table["version"] + " " + table["setting"])
    shown = shown.pivot_table("value", ["measure", "kind"], "who", sort=False)
    print(shown.round(3).to_string())
    write_csv(options.to / "near_copies.csv", table)
    print(f"written: {options.to / 'near_copies.csv'}")


if __name__ == "__main__":
    main()
