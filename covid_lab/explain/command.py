"""Explain a saved model's decisions on image files: overlays, a table, side-by-side sheets."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from covid_lab.datasets import UnreadableImage
from covid_lab.explain.class_score import PREDICTED, by_batches, checked, score_function
from covid_lab.explain.features import is_bypassed, last_spatial_layer
from covid_lab.explain.heatmaps import Heatmaps
from covid_lab.explain.methods import LAYERED, METHODS, method_named
from covid_lab.explain.pictures import (
    LungMasks,
    Picture,
    classes_in_words,
    find_pictures,
    read_picture,
)
from covid_lab.explain.prepare import Prepared, model_input, prepare
from covid_lab.explain.writing import Chunk, draw_feature_maps, reduced, write_chunk
from covid_lab.progress import Progress
from covid_project.data import CLASSES, DataError, listed
from covid_project.files import append_rows, read_csv

TRUE = "true"  # target: the class of the image's folder
CHUNK = 64  # images explained and written at a time
LONGEST = 50  # characters of an image's name in output names, which may have 255 bytes


@dataclass(frozen=True)
class Request:
    """What is explained, and how it is shown: the options of the command, see its help."""

    methods: tuple[str, ...] = ("grad-cam",)
    targets: tuple[str, ...] = (PREDICTED,)
    classes: tuple[str, ...] = CLASSES
    layer: str | None = None
    one_scale: bool = False
    colour_map: str = "jet"
    masks: Path | None = None
    table: Path | None = None
    columns: tuple[tuple[str, str], ...] = ()
    finding: str | None = None
    feature_maps: bool = False
    input_range: str | None = None
    size: tuple[int, int] | None = None
    output: str | None = None
    trust: bool = False


def explain_files(
    model_path: Path, paths: Sequence[Path], out: Path, request: Request | None = None
) -> pd.DataFrame:
    """Explain a model on image files, write the explanations to a folder and return their table.

    ``explanations.csv`` has one row per image, method and target:

    - image, method, layer, target;
    - score: of the target, a logit or log-odds;
    - predicted: the class with the largest score;
    - status: "ok", why the map is blank, or why a file cannot be read;
    - strength: the evidence where the map is 1;
    - lungs: "mask", "segmented" where no masks are given, or "none";
    - lung_share: fraction of the heat inside the lungs;
    - lung_area: the lungs' fraction of the image, and the expected lung_share of a uniform map;
    - overlay: file name of the picture.

    Overlays have the size of the original. Several methods or targets also give one sheet per image
    with all maps beside the original. Rows are written chunk by chunk.

    Parameters
    ----------
    model_path : Path
        A ``.keras`` file.
    paths : sequence of Path
        Images, and folders or archives of images.
    out : Path
        Folder to write to; it is created if needed.
    request : Request, optional
        What is explained, and how it is shown; by default `Request()`.

    Returns
    -------
    pd.DataFrame
        The table.

    Raises
    ------
    DataError
        A path is wrong, the model or an option does not fit, a class cannot be determined, or
        ``out`` already contains explanations.
    ValueError
        A method, layer or class is unknown.

    Examples
    --------
    >>> request = Request(methods=("grad_cam",))
    >>> rows = explain_files(Path("model.keras"), [Path("covid_xray/val")], Path("out"), request)
    images: 12 (6 NORMAL, 6 COVID)...
    >>> len(rows)
    12
    """
    request = request or Request()
    table = out / "explanations.csv"
    if table.exists():
        raise DataError(f"{table} exists already: name another folder with --out, or delete it")
    pictures, ignored = find_pictures(
        paths,
        request.classes,
        table=request.table,
        columns=dict(request.columns),
        finding=request.finding,
    )
    print(
        f"images: {classes_in_words(pictures, request.classes)}; not used: "
        f"{'; '.join(ignored) or 'nothing'}",
        flush=True,
    )
    folders = sorted({picture.path.parent.name for picture in pictures})
    if len(folders) > 1 and all(picture.label is None for picture in pictures):
        print(
            f"warning: none of the folders {listed(folders, limit=5)} is named as a class "
            f"({', '.join(request.classes)}): name the classes in the order of the outputs with "
            "--classes",
            file=sys.stderr,
        )
    methods = tuple(dict.fromkeys(method_named(name) for name in request.methods))
    targets = {name: _targets(pictures, name, request) for name in dict.fromkeys(request.targets)}
    masks = None
    if request.masks:
        masks = LungMasks(request.masks, [picture.path for picture in pictures])
        print(f"lung masks: for {len(masks.names)} of {len(pictures)} images")
    prepared = prepare(
        model_path,
        pictures,
        request.classes,
        input_range=request.input_range,
        size=request.size,
        output=request.output,
        trust=request.trust,
    )
    layer = None
    if request.feature_maps or set(methods) & set(LAYERED):
        layer = request.layer or last_spatial_layer(prepared.network)
        if is_bypassed(prepared.network, layer):
            prepared.warnings.append(
                f"layer {layer} is not the only path from the image to the score, and the map "
                "shows only its contribution; choose other layers with --layer"
            )
    _report(model_path, prepared, layer)
    chunks = _explained(prepared, pictures, targets, methods, layer)
    for chunk in _on_one_scale(list(chunks)) if request.one_scale else chunks:
        append_rows(table, write_chunk(chunk, out, request, masks))
        if request.feature_maps:
            draw_feature_maps(prepared.network, chunk, out, layer)
    rows = read_csv(table)
    _report_predictions(rows, pictures, request.classes)
    return rows


def _report(path: Path, prepared: Prepared, layer: str | None) -> None:
    height, width, channels = prepared.shape
    kind = "coloured images stay in colour" if channels == 3 else "colours become grey values"
    print(f"model: {path}, {height} × {width}, {channels} channel(s): {kind}")
    print(f"score: {prepared.score}")
    if layer:
        print(f"layer: {layer}")
    if prepared.input_range:
        print(
            f"input range: {prepared.input_range.name} ({prepared.input_range.reason})", flush=True
        )
    for warning in prepared.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _report_predictions(
    rows: pd.DataFrame, pictures: Sequence[Picture], classes: Sequence[str]
) -> None:
    """Print how often each class is predicted, and how often this agrees with the folder."""
    predicted = rows.dropna(subset=["predicted"]).drop_duplicates("image")
    if predicted.empty:
        return
    counts = predicted["predicted"].value_counts()
    listing = ", ".join(f"{counts.get(name, 0)} {name}" for name in classes)
    labels = {str(p.path): classes[p.label] for p in pictures if p.label is not None}
    known = predicted[predicted["image"].isin(labels)]
    right = (known["predicted"] == known["image"].map(labels)).sum()
    agree = f"; in agreement with their folders: {right} of {len(known)}" if len(known) else ""
    print(f"predicted: {listing}{agree}")
    if len(classes) == 2 and right + len(known) ** 0.5 < len(known) / 2:  # two standard errors
        print(
            f"warning: only {right} of {len(known)} predictions agree with the folders: the "
            "classes may be in another order; "
            f"try --classes {classes[1]},{classes[0]} (Keras reads class folders in alphabetical "
            "order)",
            file=sys.stderr,
        )
    if len(set(known["image"].map(labels))) > 1 and len(set(known["predicted"])) == 1:
        print(
            f"warning: every image is predicted as {known['predicted'].iloc[0]}, whatever its "
            "folder: check --input-range and --classes before you trust a map",
            file=sys.stderr,
        )


def _explained(
    prepared: Prepared,
    pictures: Sequence[Picture],
    targets: dict[str, list[int | str]],
    methods: Sequence[str],
    layer: str | None,
) -> Iterator[Chunk]:
    progress, stage = Progress(), "images explained"
    progress(stage, 0, len(pictures))
    network = prepared.network
    for start in range(0, len(pictures), CHUNK):
        inputs, originals, numbers, unreadable = [], [], [], {}
        for number in range(start, min(start + CHUNK, len(pictures))):
            picture = pictures[number]
            try:
                original = read_picture(picture, colour=prepared.shape[2] == 3)
            except UnreadableImage as error:
                unreadable[picture.path] = error.reason
                continue
            inputs.append(model_input(original, prepared.shape))
            originals.append(reduced(original))  # full-size images of a chunk can take gigabytes
            numbers.append(number)
        images = np.array(inputs, np.uint8).reshape(-1, *prepared.shape)
        heatmaps: dict[tuple[str, str], Heatmaps] = {}
        for method in methods:
            options = {"layer": layer} if method in LAYERED else {}
            for name, wanted in targets.items():
                own = [wanted[number] for number in numbers]
                target = PREDICTED if PREDICTED in own else np.array(own, np.int32)
                heatmaps[method, name] = METHODS[method](network, images, target, **options)
        read = [pictures[number] for number in numbers]
        names = [
            f"{place:04d}_{picture.path.stem[:LONGEST]}"
            for place, picture in enumerate(read, start + 1)
        ]
        predicted = _predicted(network, images, heatmaps)
        yield Chunk(read, names, originals, images, heatmaps, predicted, unreadable)
        progress(stage, min(start + CHUNK, len(pictures)), len(pictures))


def _predicted(
    network: keras.Model, images: np.ndarray, heatmaps: dict[tuple[str, str], Heatmaps]
) -> np.ndarray:
    """The class with the largest score, int (N,)."""
    for (_, target), found in heatmaps.items():
        if target.casefold() == PREDICTED:
            return found.target
    return by_batches(score_function(network), *checked(network, images, PREDICTED), 32)[1]


def _on_one_scale(chunks: list[Chunk]) -> list[Chunk]:
    """Make the maps of each method and target comparable: only the strongest evidence is 1."""
    for key in chunks[0].heatmaps:
        largest = max(chunk.heatmaps[key].strength.max(initial=0) for chunk in chunks)
        for chunk in chunks:
            own = chunk.heatmaps[key]
            fractions = own.strength / (largest or 1)
            chunk.heatmaps[key] = replace(own, maps=own.maps * fractions[:, None, None])
    return chunks


def _targets(pictures: Sequence[Picture], wanted: str, request: Request) -> list[int | str]:
    """Class index to explain for each image, or ``PREDICTED``."""
    names = [name.casefold() for name in request.classes]
    if wanted.casefold() == PREDICTED:
        return [PREDICTED] * len(pictures)
    allowed = f"; name a class, '{PREDICTED}' or '{TRUE}' with --target, or other class names with"
    if wanted.casefold() == TRUE:
        lost = next((picture for picture in pictures if picture.label is None), None)
        if lost:
            raise DataError(
                f"{lost.path} is in the folder {lost.path.parent.name!r}, which is none of the "
                f"classes {', '.join(request.classes)}{allowed} --classes"
            )
        return [picture.label for picture in pictures]
    if wanted.casefold() not in names:
        raise DataError(
            f"target is {wanted!r}, which is none of the classes {', '.join(request.classes)}"
            f"{allowed} --classes"
        )
    return [names.index(wanted.casefold())] * len(pictures)
