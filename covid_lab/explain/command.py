"""Explain a saved model's decisions on image files: overlays, a table, side-by-side sheets."""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from covid_lab import figures
from covid_lab.datasets import UnreadableImage, decode_file
from covid_lab.explain.class_score import PREDICTED
from covid_lab.explain.feature_maps import feature_maps
from covid_lab.explain.gradcam import last_spatial_layer, remove_final_activation
from covid_lab.explain.heatmaps import Heatmaps, on_one_scale
from covid_lab.explain.methods import LAYERED, METHODS, method_named
from covid_lab.lungs import implausible, segment_lungs
from covid_lab.verify import open_model
from covid_project.data import CLASSES, IMAGE_SUFFIXES, DataError, resize
from covid_project.figures import image_grid
from covid_project.files import append_rows, read_csv, whole_file
from covid_project.gradcam import overlay, resize_heatmaps

TRUE = "true"  # target: the class that an image's folder is named after
COLUMNS = (
    "image", "method", "layer", "target", "score", "status", "strength", "lungs", "lung_share",
    "lung_area", "overlay",
)  # fmt: skip
SEGMENTED = 120  # pixels along a side, at which lungs are sought where no masks are given
CHUNK = 64  # images explained and written at a time
TALLEST = 1024  # pixels: larger originals are reduced to this for the overlays
LONGEST = 50  # characters of a file's name in what is made of it: 255 bytes are a name's limit
CAPTION = (
    "Heat: where the network finds evidence for the class explained, on {scale}. It is not an "
    "outline of disease, not a probability, and no proof that a doctor would look there."
)


@dataclass(frozen=True)
class Request:
    """What is to be explained, and how it is shown.

    Attributes
    ----------
    methods
        Names as in ``explain.methods.METHODS``, in any spelling that ``method_named`` knows.
    target
        "predicted", "true" (the class that the image's folder is named after), or a class's name.
    classes
        Names of the model's classes, in the order of its outputs; of one logit, the second is the
        positive one.
    layer
        Layer for the methods that look at features; None: the last spatial one.
    one_scale
        Heat comparable between images instead of each on its own scale; needs all maps at once.
    colour_map
        Of Matplotlib.
    masks
        Folder with a lung mask for each image, under the image's path or file name; None: lungs
        are segmented, roughly.
    feature_maps
        Also draw the strongest feature maps of the layer.
    """

    methods: tuple[str, ...] = ("grad-cam",)
    target: str = "predicted"
    classes: tuple[str, ...] = CLASSES
    layer: str | None = None
    one_scale: bool = False
    colour_map: str = "jet"
    masks: Path | None = None
    feature_maps: bool = False


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Image files among the paths and, for folders, everywhere in them; sorted, each once.

    Raises
    ------
    DataError
        A path that does not exist, or no image at all.
    """
    found = {}
    for path in paths:
        if not path.exists():
            raise DataError(f"no such path: {path}; give image files or folders of them")
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        images = [
            file for file in inside if file.suffix.lower() in IMAGE_SUFFIXES and not file.is_dir()
        ]
        if not images:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise DataError(f"no images in {path}: allowed are files that end in {kinds}")
        found.update(dict.fromkeys(images))
    return list(found)


def explain_files(
    model_path: Path, paths: Sequence[Path], out: Path, request: Request | None = None
) -> pd.DataFrame:
    """Explain a model on image files, write what is found to ``out`` and return its table.

    ``explanations.csv`` has one row per image and method: image, method, layer, target, score (the
    logit of the target), predicted, status (why a map is blank, or why a file cannot be read),
    strength (the evidence where the map is 1), lungs ("mask", "segmented" where no masks are given,
    or "none"), lung_share (of the heat that lies in them) and
    lung_area (of the image; a map without preference would have this share), and overlay, the name
    of the picture. Overlays have the size of the original. Several methods also make a sheet with
    all of them beside the original. Rows are written chunk by chunk.

    Raises
    ------
    DataError
        Bad paths, a class that cannot be told, or an ``out`` that holds explanations already.
    ValueError
        An unknown method, layer or class.
    """
    request = request or Request()
    table = out / "explanations.csv"
    if table.exists():
        raise DataError(f"{table} is there already: name another folder with --out, or delete it")
    files = image_files(paths)
    methods = tuple(dict.fromkeys(method_named(name) for name in request.methods))
    model = open_model(model_path)
    _check_inputs(model, model_path)
    model = remove_final_activation(model)
    classes = max(model.outputs[0].shape[-1], 2)
    if classes != len(request.classes):
        raise DataError(
            f"{model_path} tells {classes} classes apart, but {len(request.classes)} are named "
            f"({', '.join(request.classes)}): name them in their order with --classes"
        )
    targets = {file: _target(file, request) for file in files}
    chunks = _explained(model, files, targets, methods, request.layer)
    for chunk in _on_one_scale(list(chunks), methods) if request.one_scale else chunks:
        append_rows(table, _written(chunk, out, request))
        if request.feature_maps:
            _draw_feature_maps(model, chunk, out, request)
    return read_csv(table)


def _check_inputs(model: keras.Model, path: Path) -> None:
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    outputs = [tuple(tensor.shape) for tensor in model.outputs]
    fits = len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][3] in (1, 3)
    if not fits or None in shapes[0][1:]:
        raise DataError(
            f"{path} takes inputs of the shape {', '.join(map(str, shapes))}; only models of one "
            "image (height, width, 1 or 3) of a fixed size can be explained"
        )
    if len(outputs) != 1 or len(outputs[0]) != 2:
        raise DataError(
            f"{path} gives outputs of the shape {', '.join(map(str, outputs))}; only one score per "
            "class, (N, 1) or (N, classes), can be explained"
        )


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Some images that could be read, with their maps, and the reasons of those that could not."""

    files: list[Path]
    names: list[str]  # of what is made of each file; no two are equal
    originals: list[np.ndarray]  # uint8 (h, w), no side above ``TALLEST``
    images: np.ndarray  # uint8 (N, H, W, C), as the model takes them
    heatmaps: dict[str, Heatmaps]  # by method
    unreadable: dict[Path, str]


def _explained(
    model: keras.Model,
    files: list[Path],
    targets: dict[Path, int | str],
    methods: Sequence[str],
    layer: str | None,
) -> Iterator[_Chunk]:
    height, width, channels = model.input_shape[1:]
    begun = time.perf_counter()
    for start in range(0, len(files), CHUNK):
        inputs, originals, unreadable = [], {}, {}
        for file in files[start : start + CHUNK]:
            try:
                original = decode_file(file)
            except UnreadableImage as error:
                unreadable[file] = error.reason
                continue
            inputs.append(resize(original, (height, width)))
            originals[file] = _reduced(original)  # a chunk of the largest would take gigabytes
        images = np.zeros((len(inputs), height, width, channels), np.uint8)
        images[:] = np.reshape(inputs, (-1, height, width, 1))
        wanted = [targets[file] for file in originals]
        target = PREDICTED if wanted and wanted[0] == PREDICTED else np.array(wanted, np.int32)
        heatmaps = {
            method: METHODS[method](
                model, images, target, **({"layer": layer} if method in LAYERED else {})
            )
            for method in methods
        }
        numbers = range(start + 1, start + 1 + len(originals))
        names = [
            f"{number:04d}_{file.stem[:LONGEST]}"
            for number, file in zip(numbers, originals, strict=True)
        ]
        yield _Chunk(list(originals), names, list(originals.values()), images, heatmaps, unreadable)
        done = min(start + CHUNK, len(files))
        left = (time.perf_counter() - begun) * (len(files) / done - 1)
        print(f"{done} of {len(files)} images explained; {left:.0f} s left", flush=True)


def _on_one_scale(chunks: list[_Chunk], methods: Sequence[str]) -> list[_Chunk]:
    """Return the chunks with maps that can be compared between all of their images."""
    ends = np.cumsum([len(chunk.files) for chunk in chunks])[:-1]
    scaled = {}
    for method in methods:
        maps = np.concatenate([chunk.heatmaps[method].maps for chunk in chunks])
        strength = np.concatenate([chunk.heatmaps[method].strength for chunk in chunks])
        scaled[method] = np.split(on_one_scale(maps, strength), ends)
    return [
        replace(
            chunk,
            heatmaps={
                method: replace(heatmaps, maps=scaled[method][number])
                for method, heatmaps in chunk.heatmaps.items()
            },
        )
        for number, chunk in enumerate(chunks)
    ]


def _written(chunk: _Chunk, out: Path, request: Request) -> pd.DataFrame:
    """Write the pictures of a chunk; return its rows."""
    rows = [
        {"image": str(file), "status": f"unreadable: {reason}"}
        for file, reason in chunk.unreadable.items()
    ]
    for number, (file, original) in enumerate(zip(chunk.files, chunk.originals, strict=True)):
        found, lungs = _lungs(file, request.masks, original)
        blends, titles = [np.repeat(original[..., None], 3, axis=-1)], [_shortened(file.name)]
        for method, heatmaps in chunk.heatmaps.items():
            heat = heatmaps.maps[number]
            blend = overlay(original[None, ..., None], heat[None], colour_map=request.colour_map)[0]
            name = f"overlays/{chunk.names[number]}_{method}.png"
            _save_picture(out / name, blend)
            target, score = request.classes[heatmaps.target[number]], heatmaps.scores[number]
            status = heatmaps.status[number]
            rows.append(
                {
                    "image": str(file),
                    "method": method,
                    "layer": heatmaps.layer,
                    "target": target,
                    "score": score,
                    "status": status,
                    "strength": heatmaps.strength[number],
                    "lungs": found,
                    **_lung_share(heat, lungs),
                    "overlay": name,
                }
            )
            blends.append(blend)
            blank = "" if status == "ok" else f"\nblank: {status}"
            titles.append(f"{method}\n{target}, logit {score:.2f}{blank}")
        if len(chunk.heatmaps) > 1:
            _draw_sheet(out / f"sheets/{chunk.names[number]}.png", blends, titles, request)
    return pd.DataFrame(rows, columns=COLUMNS)


def _draw_sheet(path: Path, blends: list[np.ndarray], titles: list[str], request: Request) -> None:
    figure = image_grid(blends, titles)
    _save_figure(path, figure, CAPTION.format(scale=_scale_in_words(request)))


def _draw_feature_maps(model: keras.Model, chunk: _Chunk, out: Path, request: Request) -> None:
    layer = request.layer or last_spatial_layer(model)
    maps, channels = feature_maps(model, chunk.images, layer)
    for name, own, numbers in zip(chunk.names, maps, channels, strict=True):
        figure = figures.feature_maps(own, [f"channel {number}" for number in numbers])
        caption = f"The strongest feature maps of layer {layer}, each on its own scale."
        _save_figure(out / f"feature_maps/{name}.png", figure, caption)


def _scale_in_words(request: Request) -> str:
    return "one scale for all images" if request.one_scale else "each map's own scale"


def _save_figure(path: Path, figure: plt.Figure, caption: str) -> None:
    figure.supxlabel(caption, fontsize=8, wrap=True)
    with warnings.catch_warnings(), whole_file(path) as part:
        # A file's name may be in letters that the font lacks; it shows boxes for them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(part, dpi=200, bbox_inches="tight")
    plt.close(figure)


def _save_picture(path: Path, pixels: np.ndarray) -> None:
    with whole_file(path) as part:
        Image.fromarray(pixels).save(part)


def _target(file: Path, request: Request) -> int | str:
    """Class index to explain for one image, or ``PREDICTED``."""
    if request.target.casefold() == PREDICTED:
        return PREDICTED
    true = request.target.casefold() == TRUE
    wanted = file.parent.name if true else request.target
    names = [name.casefold() for name in request.classes]
    if wanted.casefold() not in names:
        where = f"{file} lies in the folder {wanted!r}" if true else f"target is {wanted!r}"
        raise DataError(
            f"{where}, which is none of the classes {', '.join(request.classes)}; name a class or "
            f"'{PREDICTED}' with --target, or other class names with --classes"
        )
    return names.index(wanted.casefold())


def _lungs(file: Path, folder: Path | None, image: np.ndarray) -> tuple[str, np.ndarray]:
    """How the lungs of an image (h, w) were found, and their mask, bool of its shape.

    "mask": from the folder; "segmented": by `lungs.segment_lungs`, which is rough; "none": neither
    gives anything that can be two lungs.
    """
    if folder is None:
        square = resize(image, (SEGMENTED, SEGMENTED))
        lungs = segment_lungs(square[None])
        if implausible(lungs)[0]:
            return "none", np.zeros(image.shape, bool)
        return "segmented", resize(np.uint8(255) * lungs[0], image.shape) >= 128
    parts = [part for part in file.parts if part != file.anchor]  # "/" would lead out of the folder
    places = [folder.joinpath(*parts[start:]) for start in range(len(parts))]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return "none", np.zeros(image.shape, bool)
    mask = decode_file(path)
    inside = np.uint8(255) * (mask > mask.max() / 2)
    return "mask", resize(inside, image.shape) >= 128


def _lung_share(heat: np.ndarray, lungs: np.ndarray) -> dict[str, float]:
    """Share of the heat that lies in the lungs, and the share of the image that they are."""
    if not lungs.any() or not heat.any():
        return {}
    enlarged = resize_heatmaps(heat[None], lungs.shape)[0]
    return {"lung_share": enlarged[lungs].sum() / enlarged.sum(), "lung_area": lungs.mean()}


def _reduced(image: np.ndarray) -> np.ndarray:
    """Image with no side above ``TALLEST``."""
    factor = TALLEST / max(image.shape)
    if factor >= 1:
        return image
    return resize(image, tuple(max(round(side * factor), 1) for side in image.shape))


def _shortened(name: str, longest: int = 28) -> str:
    name = "".join(letter if letter.isprintable() else "·" for letter in name)
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
