"""Can the label be told without looking at the lungs? Then a network can do so too.

Simple models predict the label from views of the data that hold no lungs: what the files say of
themselves, the image's border, its corners, all that lies where no patient's lungs lie, the source.
Whatever they find, a network trained on the whole images is free to use, and its test score, from
images of the same sources, will not show it.

Removing each image's own lungs would not remove them: a mask that fits shows the lungs' outline,
and one that does not leaves some lung behind, more often where it is opaque. So one region is
removed from all images, everything that is lung in more than a hundredth of them: it has the same
outline for every patient, and a single mask that fails does not matter.

What remains may still depend on the lungs in one way: where brightness was adapted to each image
before it was saved, opaque lungs change the grey values of everything else.

References
----------
Maguolo & Nanni, "A critic evaluation of methods for COVID-19 automatic detection from X-ray
images", Information Fusion 2021 (lungs blacked out). DeGrave, Janizek & Lee, "AI for radiographic
COVID-19 detection selects shortcuts over signal", Nature Machine Intelligence 2021.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from scipy import ndimage

from covid_lab.audit.blocks import blocks
from covid_lab.audit.findings import Finding
from covid_lab.audit.metadata import FIELDS, file_metadata
from covid_lab.audit.predictability import (
    NULL_QUANTILE,
    Prediction,
    TooFewGroups,
    macro_auc,
    predict,
    prepare,
    resample,
    shuffle_labels,
)
from covid_lab.datasets import UnreadableImages, load_images, load_masks, open_root
from covid_lab.lungs import implausible, segment_lungs
from covid_lab.progress import Progress, tracked
from covid_lab.reading.dicom import COVARIATES
from covid_project.data import DataError, Dataset, listed
from covid_project.evaluation import percentile_interval
from covid_project.images import IMAGE_SUFFIXES

AREA = "shortcuts"
# An AUC half of the way from chance (0.5) to certainty (1): three of four pairs of images are put
# in the right order by what cannot show the disease.
FAIL_AUC = 0.75
# The view keeps three quarters of what the whole image gives above chance: most of what a model of
# the whole images learns may then come from there, however little that is.
FAIL_SHARE = 0.75
MOST_IMPLAUSIBLE = 0.2  # share of lung masks; beyond, these are not frontal chest radiographs

LOADED = 120  # pixels along a side, of the images read
SIDE = 40  # of the images that the models see
RING = SIDE // 10  # width of the border
CORNER = SIDE // 8  # of the side of a corner's square; lungs do not reach there
AT_ONCE = 250  # images, and lung masks, held at once
STRAY_LUNG = 0.01  # share of images that may show lung where the lungs are removed

COLUMNS = (
    *("view", "kind", "auc", "low", "high", "null_high", "accuracy", "features", "n", "groups"),
)


@dataclass(frozen=True, eq=False)
class Shortcuts:
    """What a shortcut audit found.

    Attributes
    ----------
    findings
        Of the area "shortcuts".
    table
        One row per view: view, kind (metadata, source, lung-free, whole, lungs), auc with its 95 %
        interval low and high, null_high (95 % quantile under shuffled labels), accuracy, features
        (their number), n (images), groups (patients, as far as known).
    """

    findings: list[Finding]
    table: pd.DataFrame


@dataclass(frozen=True, eq=False)
class View:
    """Part of the data that the label is predicted from."""

    name: str
    kind: str
    features: np.ndarray | pd.DataFrame | None  # (N, P); None where they were let go
    lung: float | None = None  # share of lung in what a view without lungs shows, where known


def audit_shortcuts(
    dataset: Dataset,
    *,
    masks: Path | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Shortcuts:
    """Predict the label from views without lungs, and judge each by `judge`.

    The AUC of several classes is the mean over the classes, each against the rest.

    All splits are taken together: the question is what the data give away, and each image is
    scored by a model that has not seen its group (patient).

    Parameters
    ----------
    dataset
        At least two classes; its splits do not matter.
    masks
        Folder or zip archive of lung masks, one for each image, under the image's path or its name
        (``…_mask`` allowed). None: the masks of the data set, if every image has one, else
        `segment_lungs`.
    seed
        Of folds, shuffled labels and resamples.
    progress : callable, optional
        Called with (stage, done, total); None: `covid_lab.progress.Progress`.

    Raises
    ------
    DataError
        Images or masks that cannot be read, or an image without its mask.
    """
    table = dataset.table
    try:
        trial = prepare(table["label"].to_numpy(), table["group"].to_numpy(), seed)
    except TooFewGroups as reason:
        finding = Finding(AREA, "the label without the lungs", "not applicable", str(reason))
        return Shortcuts([finding], pd.DataFrame(columns=COLUMNS))
    progress = progress or Progress()
    pictures = Pictures(len(table))
    parts = _read(dataset, pictures)
    lungs, lungs_from = find_lungs(dataset, parts, masks, progress, square=LOADED // SIDE)
    of_images = image_views(pictures, lungs)
    del pictures  # the views let go of them
    of_files = _file_views(dataset)

    views: list[View] = []
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
        if isinstance(view.features, np.ndarray):  # too large to be kept
            view = dataclasses.replace(view, features=None)
        views.append(view)
    measured = pd.DataFrame(rows, columns=COLUMNS)
    findings = [
        _view_finding(view, predictions[view.name], _best(measured, "whole"), len(table))
        for view in views
        if view.kind in _JUDGED
    ]
    if lungs is None:
        findings.append(Finding(AREA, CHECKS["lungs removed"], "not applicable", lungs_from))
    if not any(view.kind == "source" for view in views):
        said = "the data do not say where their images come from"
        findings.append(Finding(AREA, CHECKS["source"], "not applicable", said))
    findings.append(_headline(measured, predictions, findings, lungs_from))
    return Shortcuts(findings, measured)


def judge(auc: float, low: float, null_high: float, whole: float) -> str:
    """Verdict on a view that cannot show the disease.

    "pass" where the interval of its AUC does not lie above the null's 95 % quantile. Else "fail"
    from `FAIL_AUC` on, or where it keeps `FAIL_SHARE` of what the whole image gives above chance;
    else "warn".

    Parameters
    ----------
    auc, low
        AUC of the view, and the lower bound of its 95 % interval.
    null_high
        95 % quantile of its AUC under shuffled labels.
    whole
        AUC of the whole image.
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


def _file_views(dataset: Dataset) -> list[View]:
    metadata = file_metadata(dataset)
    views = [View("file metadata", "metadata", metadata)]
    views += [View(name, "metadata", metadata[list(names)]) for name, names in FIELDS.items()]
    headers = [name for name in COVARIATES if name in dataset.table]
    if headers:
        views.append(View("DICOM header", "metadata", dataset.table[headers]))
    sources = known_sources(dataset.table)
    if len(sources.unique()) > 1:
        views.append(View("source", "source", sources.to_frame()))
    return views


def known_sources(table: pd.DataFrame) -> pd.Series:
    """Source of each image, "" where the column only repeats the name of the class folder."""
    folders = table["path"].map(lambda path: path.casefold().split("/")[:-1])
    repeats = [
        source.casefold() in folder for source, folder in zip(table["source"], folders, strict=True)
    ]
    return table["source"].mask(repeats, "")


def border() -> np.ndarray:
    """The outer tenth along each side, bool (SIDE, SIDE)."""
    inside = np.zeros((SIDE - 2 * RING,) * 2, bool)
    return np.pad(inside, RING, constant_values=True)


def corners() -> np.ndarray:
    """Four squares of an eighth of the side, bool (SIDE, SIDE)."""
    at_edge = np.minimum(np.arange(SIDE), np.arange(SIDE)[::-1]) < CORNER
    return at_edge[:, None] & at_edge


class Pictures:
    """What the views need of the images: all of it is small, and filled in block by block.

    Attributes
    ----------
    pixels
        float32 (N, SIDE, SIDE), means over squares.
    thumbnails
        float32 (N, 64), the same of 8 by 8 squares.
    grey
        float64 (N, 32), roots of how often grey levels occur.
    """

    def __init__(self, n: int):
        self.pixels = np.empty((n, SIDE, SIDE), np.float32)
        self.thumbnails = np.empty((n, 64), np.float32)
        self.grey = np.empty((n, 32))

    def fill(self, rows: slice, images: np.ndarray) -> None:
        """Keep what is needed of the images uint8 (M, LOADED, LOADED) of some rows."""
        self.pixels[rows] = _pooled(images, SIDE)
        self.thumbnails[rows] = _pooled(images, 8).reshape(-1, 64)
        self.grey[rows] = np.sqrt([np.bincount(i.ravel() // 8, minlength=32) for i in images])


def _read(dataset: Dataset, pictures: Pictures) -> Iterator[np.ndarray]:
    """All images, uint8 (M, LOADED, LOADED) at once; what the views need of them is kept."""
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


def image_views(pictures: Pictures, lungs: np.ndarray | None) -> Iterator[View]:
    """Views of the pixels, each made when it is asked for.

    Parameters
    ----------
    pictures
        Of all images.
    lungs
        uint8 (N, SIDE, SIDE), how many pixels of each square are lung, see `find_lungs`; None:
        without the views that need them.
    """
    pixels, grey, thumbnails = pictures.pixels, pictures.grey, pictures.thumbnails
    del pictures  # so that the pixels can go when they have been used
    pixels_of_square = (LOADED // SIDE) ** 2
    free = {"border": border(), "corners": corners()}
    if lungs is not None:
        free["lungs removed"] = ~common_lungs(lungs > 0)
    for name, seen in free.items():
        share = None if lungs is None else float(lungs[:, seen].mean() / pixels_of_square)
        yield View(name, "lung-free", pixels[:, seen], share)
    yield View("grey histogram", "whole", grey)
    yield View("thumbnail 8x8", "whole", thumbnails)
    yield View("whole image", "whole", pixels.reshape(len(pixels), -1))
    if lungs is not None:
        alone = fill_with_mean(pixels, lungs >= pixels_of_square / 2)
        del pixels  # no view after this one needs them
        yield View("lungs only", "lungs", alone.reshape(len(alone), -1))


def common_lungs(lungs: np.ndarray) -> np.ndarray:
    """Where more than `STRAY_LUNG` of the masks bool (N, S, S) show lung, with a rim of a pixel."""
    return ndimage.binary_dilation(lungs.mean(axis=0) > STRAY_LUNG, np.ones((3, 3)))


def fill_with_mean(images: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Images (N, H, W), outside ``kept`` (bool, same shape) the mean of what lies inside; float32.

    Where nothing is kept, all is zero.
    """
    filled = np.empty(images.shape, np.float32)
    for rows in blocks(len(images), images[0].size):
        image, inside = images[rows], kept[rows]
        number = inside.sum(axis=(1, 2), keepdims=True)
        total = (image * inside).sum(axis=(1, 2), keepdims=True, dtype=np.float32)
        filled[rows] = np.where(inside, image, total / np.maximum(number, 1))
    return filled


def _pooled(images: np.ndarray, side: int) -> np.ndarray:
    """Means over squares, float32 (N, side, side)."""
    square = images.shape[1] // side
    blocks = images.reshape(len(images), side, square, side, square)
    return blocks.mean(axis=(2, 4), dtype=np.float32)


# ---- lungs --------------------------------------------------------------------------------------


def find_lungs(
    dataset: Dataset,
    parts: Iterable[np.ndarray],
    masks: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    square: int = 1,
) -> tuple[np.ndarray | None, str]:
    """Where the lungs lie in all images, and a sentence that says where that comes from.

    Parameters
    ----------
    parts
        The data set's images, uint8 (M, S, S) at once, in the order of its table.
    masks, progress
        See `audit_shortcuts`.
    square
        Pixels along the side of the squares in which lung is counted; at most 15, and it divides S.

    Returns
    -------
    uint8 (N, S / square, S / square), how many pixels of each square are lung (of each pixel: 0 or
    1), or None where more than `MOST_IMPLAUSIBLE` of the masks are no lungs: the images are not
    frontal chest radiographs. Single implausible masks become where most other masks are lung.
    """
    if masks is not None:
        dataset = _with_masks(dataset, Path(masks))
    table = dataset.table
    given = (table["mask"] != "").all()
    counts, faults, unreadable = [], [], []
    sound = 0  # in how many plausible masks each pixel is lung, (S, S)
    progress, stage = progress or Progress(), "shortcuts: images read and lungs found"
    done = 0
    progress(stage, done, len(table))
    for images in parts:
        rows = slice(done, done + len(images))
        done = rows.stop
        if given:
            part = dataclasses.replace(dataset, table=table.iloc[rows])
            try:
                found = load_masks(part, images.shape[1])
            except UnreadableImages as error:  # all of them are named at once
                unreadable += error.unreadable
                continue
        else:
            found = segment_lungs(images)
        faults.append(implausible(found) != "")
        sound = sound + found[~faults[-1]].sum(axis=0)
        counts.append(_counted(found, square))
        progress(stage, done, len(table))
    if unreadable:
        raise UnreadableImages(unreadable)
    lungs, faulty = np.concatenate(counts), np.concatenate(faults)
    origin = "lung masks as given" if given else "lung masks by the segmentation network"
    said = f"{origin}, {faulty.sum()} of {len(faulty)} implausible"
    if faulty.mean() > MOST_IMPLAUSIBLE:
        return None, f"{said}: no frontal chest radiographs, or other masks are needed"
    lungs[faulty] = _counted(sound[None] / (~faulty).sum() > 0.5, square)
    return lungs, said


def _counted(masks: np.ndarray, square: int) -> np.ndarray:
    """How many pixels of each square lie inside the masks bool (N, S, S), uint8."""
    n, side, _ = masks.shape
    squares = masks.reshape(n, side // square, square, side // square, square)
    return squares.sum(axis=(2, 4), dtype=np.uint8)


def _with_masks(dataset: Dataset, masks: Path) -> Dataset:
    """The data set with masks from another place; every image must have one."""
    root, names = open_root(masks)
    names = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    by_ending: dict[str, set[str]] = {}
    for name in names:
        parts = _bare(name).split("/")
        for start in range(len(parts)):
            by_ending.setdefault("/".join(parts[start:]), set()).add(name)
    found, missing = [], []
    for path in dataset.table["path"]:
        parts = _bare(path).split("/")
        # The longest ending that some mask has: COVID/1.png and NORMAL/1.png are two images.
        endings = ("/".join(parts[start:]) for start in range(len(parts)))
        fitting = next((by_ending[ending] for ending in endings if ending in by_ending), set())
        if len(fitting) == 1:
            found += fitting
        else:
            missing.append(f"{path} ({len(fitting)} masks)")
    if missing:
        raise DataError(
            f"{masks} must hold exactly one mask for every image, under its path or its name; "
            f"{len(missing)} of {len(dataset.table)} images have none or several: "
            f"{listed(missing, limit=5)}. Mend it, or leave it out to have the lungs found"
        )
    return dataclasses.replace(dataset, root=root, table=dataset.table.assign(mask=found))


def _bare(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")).casefold().removesuffix("_mask")


# ---- findings -----------------------------------------------------------------------------------


def _best(measured: pd.DataFrame, kind: str) -> pd.Series:
    rows = measured[measured["kind"] == kind]
    return rows.loc[rows["auc"].idxmax()]


def _view_finding(view: View, found: Prediction, whole: pd.Series, n: int) -> Finding:
    verdict = judge(found.auc, found.low, found.null_high, whole["auc"])
    if isinstance(view.features, pd.DataFrame) and (view.features == view.features.iloc[0]).all(
        axis=None
    ):
        said = f"{', '.join(view.features)}: the same for all {n} images"
    else:
        said = (
            f"AUC {_interval(found)}, {found.null_high:.3f} by chance, {whole['auc']:.3f} from the "
            f"whole image ({whole['view']})"
        )
    if view.lung is not None:
        said += f"; {view.lung:.1%} of what it shows is lung"
    elif view.kind == "lung-free":
        said += "; how much of what it shows is lung is not known"
    if view.name == "file size" and verdict != "pass":
        said += "; a compressed file's size also depends on what the image shows"
    return Finding(AREA, CHECKS[view.name], verdict, said, found.auc, found.low, found.high, n)


def _headline(
    measured: pd.DataFrame,
    predictions: dict[str, Prediction],
    findings: list[Finding],
    lungs_from: str,
) -> Finding:
    """The whole image's AUC minus that of the best view without lungs."""
    check = "whole image against the best view without lungs"
    whole, free = _best(measured, "whole"), _best(measured, "lung-free")
    difference = predictions[whole["view"]].resampled - predictions[free["view"]].resampled
    low, high = percentile_interval(difference)
    value = whole["auc"] - free["auc"]
    said = (
        f"the whole image ({whole['view']}) gives AUC {whole['auc']:.3f}, the best view without "
        f"lungs ({free['view']}) {free['auc']:.3f}: {value:.3f} ({low:.3f} to {high:.3f}) more; "
        f"{lungs_from}"
    )
    verdicts = {finding.check: finding.verdict for finding in findings}
    if verdicts[CHECKS[free["view"]]] == "pass":
        verdict = "pass"
    else:
        verdict = "fail" if _nearly_all(free["auc"], whole["auc"]) else "warn"
    return Finding(AREA, check, verdict, said, value, low, high, int(whole["n"]))


def _interval(found: Prediction) -> str:
    return f"{found.auc:.3f} ({found.low:.3f} to {found.high:.3f})"


# ---- a trained model ----------------------------------------------------------------------------


def audit_model(
    model: "keras.Model",  # noqa: F821  not imported at the top
    dataset: Dataset,
    rows: np.ndarray,
    *,
    masks: Path | None = None,
    seed: int = 0,
) -> list[Finding]:
    """Show a trained model the border, the lungs, and all but the lungs; ask where it looks.

    What is taken away is filled with the mean of what is left. The share of Grad-CAM (of the
    predicted class, last spatial layer) that lies inside the lungs is compared with the share of
    the image that the lungs take.

    Parameters
    ----------
    model
        Takes images (N, S, S, 1 or 3) of 0–255; one logit, or one per class of the data set. A
        final activation is removed.
    dataset, rows
        The images, by their row numbers in the table, such as ``dataset.rows("test")``.
    masks, seed
        See `audit_shortcuts`.

    Raises
    ------
    ValueError
        The model does not take such images, or has another number of classes.
    DataError
        See `audit_shortcuts`.
    """
    table = dataset.table.iloc[rows].reset_index(drop=True)
    dataset = dataclasses.replace(dataset, table=table)
    # Imported here: the other audits need no network, and TensorFlow takes seconds to load.
    from covid_lab.explain.class_score import PREDICTED
    from covid_lab.explain.gradcam import grad_cam, last_spatial_layer, remove_final_activation
    from covid_project.gradcam import resize_heatmaps

    logits = remove_final_activation(model)
    side, width, channels = logits.inputs[0].shape[1:]
    classes = max(logits.outputs[0].shape[-1], 2)
    if side is None or side != width or channels not in (1, 3):
        raise ValueError(
            f"model '{model.name}' takes images {(side, width, channels)}; (S, S, 1 or 3) is needed"
        )
    if classes != len(dataset.classes):
        raise ValueError(
            f"model '{model.name}' tells {classes} classes apart, the data have "
            f"{len(dataset.classes)}: {', '.join(dataset.classes)}"
        )
    absent = set(range(classes)) - set(table["label"])
    if absent:
        said = f"no images of {', '.join(dataset.classes[label] for label in sorted(absent))}"
        return [Finding(AREA, "the model without the lungs", "not applicable", said)]
    images = load_images(dataset, side)[..., 0]
    parts = (images[rows] for rows in blocks(len(images), 1, AT_ONCE))
    lungs, lungs_from = find_lungs(dataset, parts, masks, progress=lambda *_: None)
    lungs = None if lungs is None else lungs.view(bool)
    ring = np.ones((side, side), bool)
    ring[side // 10 : -(side // 10), side // 10 : -(side // 10)] = False

    labels = table["label"].to_numpy()
    groups = pd.factorize(table["group"])[0]
    rng = np.random.default_rng(seed)
    weights = resample(labels, groups, rng)
    shuffled = shuffle_labels(labels, groups, np.zeros(len(labels)), rng)

    def show(kept: np.ndarray) -> np.ndarray:
        shown = fill_with_mean(images, np.broadcast_to(kept, images.shape))
        return np.repeat(shown[..., None], channels, axis=-1)

    def measure(kept: np.ndarray) -> tuple[float, float, float, float]:
        """AUC, its interval, and its quantile under shuffled labels."""
        scores = logits.predict(show(kept), batch_size=32, verbose=0)
        low, high = percentile_interval(macro_auc(labels, scores, weights))
        null = [macro_auc(other, scores)[0] for other in shuffled]
        return macro_auc(labels, scores)[0], low, high, np.quantile(null, NULL_QUANTILE)

    everything = np.ones((side, side), bool)
    whole, *_ = measure(everything)
    views = {"border": ring}
    if lungs is not None:
        views |= {"image without lungs": ~common_lungs(lungs), "lungs": lungs}
    findings = []
    for name, kept in views.items():
        auc, low, high, null_high = measure(kept)
        if name == "lungs":
            verdict = "pass" if low > null_high else "warn"
        else:
            verdict = judge(auc, low, null_high, whole)
        said = (
            f"AUC {auc:.3f} ({low:.3f} to {high:.3f}), {null_high:.3f} by chance, {whole:.3f} on "
            "the whole images"
        )
        check = f"the model on the {name} alone"
        findings.append(Finding(AREA, check, verdict, said, auc, low, high, len(labels)))
    check = "share of Grad-CAM inside the lungs"
    if lungs is None:
        return [*findings, Finding(AREA, check, "not applicable", lungs_from)]
    layer = last_spatial_layer(logits)
    maps = grad_cam(logits, show(everything), PREDICTED, layer).maps
    heat = resize_heatmaps(maps, (side, side))
    return [*findings, _focus(check, heat, lungs, weights, f"{layer}; {lungs_from}")]


def _focus(
    check: str, heat: np.ndarray, lungs: np.ndarray, weights: np.ndarray, origin: str
) -> Finding:
    """Judge the share of heat (N, S, S) inside the lungs against the share of their area.

    "pass" where it is measurably larger, "fail" where it is measurably smaller, else "warn".
    """
    total = heat.sum(axis=(1, 2))
    seen = total > 0
    if not seen.any():
        return Finding(AREA, check, "not applicable", "every heatmap is blank")
    inside = (heat * lungs).sum(axis=(1, 2))[seen] / total[seen]
    area = lungs.mean(axis=(1, 2))[seen]
    weights = weights[:, seen].astype(np.float32)
    weights /= weights.sum(axis=1, keepdims=True)
    low, high = percentile_interval(weights @ inside)
    least, most = percentile_interval(weights @ (inside - area))
    verdict = "pass" if least > 0 else "fail" if most < 0 else "warn"
    said = (
        f"{inside.mean():.1%} ({low:.1%} to {high:.1%}) of the heat lies inside the lungs, which "
        f"take {area.mean():.1%} of the image; {np.sum(~seen)} of {len(seen)} maps are blank; "
        f"{origin}"
    )
    return Finding(AREA, check, verdict, said, inside.mean(), low, high, int(seen.sum()))
