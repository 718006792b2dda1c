"""Can the label be predicted without the lungs? Then a network can do so as well.

Simple models predict the label from views of the data that contain no lungs: the files' metadata,
the source, the image's border, its corners, and the image without the lungs. A network trained on
the whole images is free to use whatever these models find. Its test score does not show this,
because the test images come from the same sources.

Removing each image's own lungs does not remove their information. A mask that fits shows their
outline. A mask that does not fit leaves some lung behind, more often where the lung is opaque. One
region is therefore removed from all images: everything that is lung in more than 1 % of them. It
has the same outline for every patient, and a single wrong mask does not matter.

One dependence on the lungs may remain. Where brightness was adapted to each image before it was
saved, opaque lungs change the grey values of everything else.

References
----------
Maguolo & Nanni, "A critic evaluation of methods for COVID-19 automatic detection from X-ray
images", Information Fusion 2021 (lungs blacked out). DeGrave, Janizek & Lee, "AI for radiographic
COVID-19 detection selects shortcuts over signal", Nature Machine Intelligence 2021.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from covid_lab.audit.blocks import blocks
from covid_lab.audit.findings import Finding
from covid_lab.audit.lung_regions import common_lungs, fill_with_mean, find_lungs
from covid_lab.audit.metadata import FIELDS, file_metadata
from covid_lab.audit.predictability import Prediction, TooFewGroups, predict, prepare
from covid_lab.datasets import UnreadableImages, load_images
from covid_lab.masks import border
from covid_lab.progress import Progress, tracked
from covid_lab.reading.dicom import COVARIATES
from covid_project.data import Dataset
from covid_project.evaluation import percentile_interval

AREA = "shortcuts"
# An AUC halfway between chance (0.5) and certainty (1): three of four pairs of images are ordered
# correctly by something that cannot show the disease.
FAIL_AUC = 0.75
# The view keeps three quarters of what the whole image gives above chance: most of what a model of
# the whole images learns may then come from there, however little that is.
FAIL_SHARE = 0.75

LOADED = 120  # side in pixels of the images as they are read
SIDE = 40  # side in pixels of the images that the models see
CORNER = SIDE // 8  # side of a corner's square; lungs do not reach there
AT_ONCE = 250  # images, and lung masks, in memory at once

COLUMNS = (
    *("view", "kind", "auc", "low", "high", "null_high", "accuracy", "features", "n", "groups"),
)


@dataclass(frozen=True, eq=False)
class Shortcuts:
    """What a shortcut audit found.

    Attributes
    ----------
    findings : list of Finding
        Of the area "shortcuts".
    table : pd.DataFrame
        One row per view: view, kind (metadata, source, lung-free, whole, lungs), auc with its 95 %
        interval (low, high), null_high (95 % quantile of the AUC under shuffled labels), accuracy,
        features (their number), n (images), groups (patients, as far as they are known).
    """

    findings: list[Finding]
    table: pd.DataFrame


@dataclass(frozen=True, eq=False)
class _View:
    """Part of the data that the label is predicted from."""

    name: str
    kind: str
    features: np.ndarray | pd.DataFrame | None
    lung: float | None = None


def audit_shortcuts(
    dataset: Dataset,
    *,
    masks: Path | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Shortcuts:
    """Predict the label from views without lungs, and judge how well each predicts it.

    All splits are used together, because the question is what the data reveal. Each image is scored
    by a model that was not trained on its group (patient). With several classes, the AUC is the
    mean of the one-vs-rest AUCs.

    Parameters
    ----------
    dataset : Dataset
        At least two classes; its splits do not matter.
    masks : Path, optional
        Folder or zip archive of lung masks, one for each image, under the image's path or its name
        (``…_mask`` allowed). None: the data set's own masks if every image has one, else those of
        `covid_lab.lungs.segment_lungs`.
    seed : int
        Of folds, shuffled labels and resamples.
    progress : callable, optional
        Called with (stage, done, total); None: `covid_lab.progress.Progress`.

    Returns
    -------
    Shortcuts
        Findings and table. With fewer than two classes, or too few patients in one, there is a
        single finding, "not applicable", and the table is empty.

    Raises
    ------
    DataError
        Images or masks that cannot be read, or an image without its mask.

    Notes
    -----
    Each view without lungs is judged by `judge`. The last finding compares the best of them with
    the whole image.

    Examples
    --------
    >>> from covid_lab.datasets import open_dataset
    >>> dataset = open_dataset("covid_xray.zip", as_found=True)
    >>> audit = audit_shortcuts(dataset, progress=lambda stage, done, total: None)
    >>> audit.table.set_index("view").loc["border", "kind"]
    'lung-free'
    """
    table = dataset.table
    try:
        trial = prepare(table["label"].to_numpy(), table["group"].to_numpy(), seed)
    except TooFewGroups as reason:
        finding = Finding(AREA, "the label without the lungs", "not applicable", str(reason))
        return Shortcuts([finding], pd.DataFrame(columns=COLUMNS))
    progress = progress or Progress()
    pictures = _Pictures(len(table))
    parts = _read(dataset, pictures)
    lungs, origin = find_lungs(dataset, parts, masks, progress, square=LOADED // SIDE)
    of_images = _image_views(pictures, lungs)
    del pictures  # so that the views can release them
    of_files = _file_views(dataset)

    views: list[_View] = []
    predictions: dict[str, Prediction] = {}
    rows = []
    groups = table["group"].nunique()
    total = len(of_files) + (5 if lungs is None else 7)
    for view in tracked(chain(of_files, of_images), "shortcuts: views", total, progress):
        found = predictions[view.name] = predict(view.features, trial)
        rows.append(
            {
                "view": view.name,
                "kind": view.kind,
                **{name: getattr(found, name) for name in COLUMNS[2:7]},
                "features": view.features.shape[1],
                "n": len(table),
                "groups": groups,
            }
        )
        if isinstance(view.features, np.ndarray):  # too large to keep
            view = dataclasses.replace(view, features=None)
        views.append(view)
    measured = pd.DataFrame(rows, columns=COLUMNS)
    findings = [
        _view_finding(view, predictions[view.name], _best(measured, "whole"), len(table))
        for view in views
        if view.kind in _JUDGED
    ]
    if lungs is None:
        findings.append(Finding(AREA, CHECKS["lungs removed"], "not applicable", origin))
    if not any(view.kind == "source" for view in views):
        reason = "the data do not say where their images come from"
        findings.append(Finding(AREA, CHECKS["source"], "not applicable", reason))
    findings.append(_headline(measured, predictions, findings, origin))
    return Shortcuts(findings, measured)


def judge(auc: float, low: float, null_high: float, whole: float) -> str:
    """Judge a view that cannot show the disease.

    Parameters
    ----------
    auc : float, 0–1
        AUC of the view.
    low : float, 0–1
        Lower bound of its 95 % interval.
    null_high : float, 0–1
        95 % quantile of its AUC under shuffled labels.
    whole : float, 0–1
        AUC of the whole image.

    Returns
    -------
    str
        "pass" where ``low`` is not above ``null_high``. Otherwise "fail" from an AUC of `FAIL_AUC`,
        or where the view keeps at least `FAIL_SHARE` of what the whole image gives above chance.
        "warn" in between.

    Examples
    --------
    >>> judge(0.58, 0.52, 0.55, whole=0.9)
    'pass'
    >>> judge(0.65, 0.60, 0.55, whole=0.9)
    'warn'
    >>> judge(0.80, 0.75, 0.55, whole=0.9)
    'fail'
    """
    if low <= null_high:
        return "pass"
    return "fail" if auc >= FAIL_AUC or _nearly_all(auc, whole) else "warn"


def _nearly_all(auc: float, whole: float) -> bool:
    return auc - 0.5 >= FAIL_SHARE * (whole - 0.5)


# ---- views --------------------------------------------------------------------------------------

_JUDGED = ("metadata", "source", "lung-free")
CHECKS = {
    "file metadata": "label from the files' metadata alone",
    "dimensions": "label from the images' dimensions alone",
    "file size": "label from the files' sizes alone",
    "encoding": "label from the files' encoding alone",
    "DICOM header": "label from the DICOM header alone",
    "source": "label from the source alone",
    "border": "label from the border alone",
    "corners": "label from the corners alone",
    "lungs removed": "label from the image without lungs",
}


def _file_views(dataset: Dataset) -> list[_View]:
    metadata = file_metadata(dataset)
    views = [_View("file metadata", "metadata", metadata)]
    views += [_View(name, "metadata", metadata[list(names)]) for name, names in FIELDS.items()]
    headers = [name for name in COVARIATES if name in dataset.table]
    if headers:
        views.append(_View("DICOM header", "metadata", dataset.table[headers]))
    sources = _known_sources(dataset.table)
    if len(sources.unique()) > 1:
        views.append(_View("source", "source", sources.to_frame()))
    return views


def _known_sources(table: pd.DataFrame) -> pd.Series:
    """Give the source of each image, unless it only repeats the name of a folder."""
    folders = table["path"].map(lambda path: path.casefold().split("/")[:-1])
    repeats = [
        source.casefold() in folder for source, folder in zip(table["source"], folders, strict=True)
    ]
    return table["source"].mask(repeats, "")


def _corners() -> np.ndarray:
    """Mark a square at each corner, an eighth of the side wide."""
    at_edge = np.minimum(np.arange(SIDE), np.arange(SIDE)[::-1]) < CORNER
    return at_edge[:, None] & at_edge


class _Pictures:
    """What the views need of the images, small enough for memory and filled block by block."""

    def __init__(self, n: int):
        self.pixels = np.empty((n, SIDE, SIDE), np.float32)
        self.thumbnails = np.empty((n, 64), np.float32)
        self.grey = np.empty((n, 32))

    def fill(self, rows: slice, images: np.ndarray) -> None:
        """Store what the views need of some images.

        Parameters
        ----------
        rows : slice
            Row numbers of the M images.
        images : np.ndarray, uint8 (M, LOADED, LOADED)
            Grey values.
        """
        self.pixels[rows] = _pooled(images, SIDE)
        self.thumbnails[rows] = _pooled(images, 8).reshape(-1, 64)
        self.grey[rows] = np.sqrt([np.bincount(i.ravel() // 8, minlength=32) for i in images])


def _read(dataset: Dataset, pictures: _Pictures) -> Iterator[np.ndarray]:
    """Yield all images, uint8 (M, LOADED, LOADED) at a time, and store what the views need."""
    unreadable = []
    for rows in blocks(len(dataset.table), 1, AT_ONCE):
        part = dataclasses.replace(dataset, table=dataset.table.iloc[rows])
        try:
            images = load_images(part, LOADED)[..., 0]
        except UnreadableImages as error:  # all of them are named at once
            unreadable += error.unreadable
            continue
        pictures.fill(rows, images)
        yield images
    if unreadable:
        raise UnreadableImages(unreadable)


def _image_views(pictures: _Pictures, lungs: np.ndarray | None) -> Iterator[_View]:
    """Yield the views of the pixels; each is computed when it is needed."""
    pixels, grey, thumbnails = pictures.pixels, pictures.grey, pictures.thumbnails
    del pictures  # so that the pixels can be released after use
    pixels_of_square = (LOADED // SIDE) ** 2
    free = {"border": border(SIDE), "corners": _corners()}
    if lungs is not None:
        free["lungs removed"] = ~common_lungs(lungs > 0)
    for name, seen in free.items():
        lung = None if lungs is None else float(lungs[:, seen].mean() / pixels_of_square)
        yield _View(name, "lung-free", pixels[:, seen], lung)
    yield _View("grey histogram", "whole", grey)
    yield _View("thumbnail 8x8", "whole", thumbnails)
    yield _View("whole image", "whole", pixels.reshape(len(pixels), -1))
    if lungs is not None:
        only_lungs = fill_with_mean(pixels, lungs >= pixels_of_square / 2)
        del pixels  # no view after this one needs them
        yield _View("lungs only", "lungs", only_lungs.reshape(len(only_lungs), -1))


def _pooled(images: np.ndarray, side: int) -> np.ndarray:
    """Means over squares, float32 (N, side, side)."""
    square = images.shape[1] // side
    blocks = images.reshape(len(images), side, square, side, square)
    return blocks.mean(axis=(2, 4), dtype=np.float32)


# ---- findings -----------------------------------------------------------------------------------


def _best(measured: pd.DataFrame, kind: str) -> pd.Series:
    rows = measured[measured["kind"] == kind]
    return rows.loc[rows["auc"].idxmax()]


def _view_finding(view: _View, found: Prediction, whole: pd.Series, n: int) -> Finding:
    verdict = judge(found.auc, found.low, found.null_high, whole["auc"])
    if isinstance(view.features, pd.DataFrame) and (view.features == view.features.iloc[0]).all(
        axis=None
    ):
        text = f"{', '.join(view.features)}: the same for all {n} images"
    else:
        text = (
            f"AUC {_interval(found)}, {found.null_high:.3f} by chance, {whole['auc']:.3f} from the "
            f"whole image ({whole['view']})"
        )
    if view.lung is not None:
        text += f"; {view.lung:.1%} of what it shows is lung"
    elif view.kind == "lung-free":
        text += "; the fraction of lung in it is unknown"
    if view.name == "file size" and verdict != "pass":
        text += "; a compressed file's size also depends on what the image shows"
    return Finding(AREA, CHECKS[view.name], verdict, text, found.auc, found.low, found.high, n)


def _headline(
    measured: pd.DataFrame, predictions: dict[str, Prediction], findings: list[Finding], origin: str
) -> Finding:
    """The whole image's AUC minus that of the best view without lungs."""
    check = "whole image against the best view without lungs"
    whole, free = _best(measured, "whole"), _best(measured, "lung-free")
    difference = predictions[whole["view"]].resampled - predictions[free["view"]].resampled
    low, high = percentile_interval(difference)
    value = whole["auc"] - free["auc"]
    text = (
        f"the whole image ({whole['view']}) gives AUC {whole['auc']:.3f}, the best view without "
        f"lungs ({free['view']}) {free['auc']:.3f}: {value:.3f} ({low:.3f} to {high:.3f}) more; "
        f"{origin}"
    )
    verdicts = {finding.check: finding.verdict for finding in findings}
    if verdicts[CHECKS[free["view"]]] == "pass":
        verdict = "pass"
    else:
        verdict = "fail" if _nearly_all(free["auc"], whole["auc"]) else "warn"
    return Finding(AREA, check, verdict, text, value, low, high, int(whole["n"]))


def _interval(found: Prediction) -> str:
    return f"{found.auc:.3f} ({found.low:.3f} to {found.high:.3f})"
