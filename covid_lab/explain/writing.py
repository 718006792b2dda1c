"""Write explanations to files: overlays, rows of the table, sheets, feature maps."""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from covid_lab import figures
from covid_lab.explain.feature_maps import feature_maps
from covid_lab.explain.heatmaps import Heatmaps
from covid_lab.explain.pictures import LungMasks, Picture, grey_values, mask_beside
from covid_lab.lungs import implausible, segment_lungs
from covid_lab.masks import resized_mask
from covid_project.figures import image_grid
from covid_project.files import whole_file
from covid_project.gradcam import overlay, resize_heatmaps
from covid_project.images import resize

COLUMNS = (
    "image", "method", "layer", "target", "score", "predicted", "status", "strength", "lungs",
    "lung_share", "lung_area", "overlay",
)  # fmt: skip
SEGMENTED = 120  # pixels along a side, at which lungs are sought where no masks are given
TALLEST = 1024  # pixels: larger originals are reduced to this for the overlays
CAPTION = (
    "Heat: where the network finds evidence for the class explained, on {scale}. It is not an "
    "outline of disease, not a probability, and no proof that a doctor would look there."
)


@dataclass(frozen=True, eq=False)
class Chunk:
    """A batch of images with their maps, and the files that could not be read.

    Attributes
    ----------
    pictures : list of Picture
        The images that could be read.
    names : list of str
        Unique stem of the files that are written for each image.
    originals : list of np.ndarray, (h, w) or (h, w, 3), uint8
        Images with no side above `TALLEST`.
    images : np.ndarray, (N, H, W, C), uint8
        Inputs of the model.
    heatmaps : dict of (str, str) to Heatmaps
        By method and target.
    predicted : np.ndarray, (N,), int
        Predicted classes.
    unreadable : dict of Path to str
        Reason by file.
    """

    pictures: list[Picture]
    names: list[str]
    originals: list[np.ndarray]
    images: np.ndarray
    heatmaps: dict[tuple[str, str], Heatmaps]
    predicted: np.ndarray
    unreadable: dict[Path, str]


def write_chunk(chunk: Chunk, out: Path, request, masks: LungMasks | None) -> pd.DataFrame:
    """Write the overlays and sheets of a chunk; return its rows of the table.

    Parameters
    ----------
    chunk : Chunk
        Images with their maps.
    out : Path
        Folder of the explanations.
    request : explain.command.Request
        What is explained, and how it is shown.
    masks : LungMasks, optional
        Lung masks. By default Kaggle's masks beside the images are used. Where there are none, the
        lungs are segmented, roughly.

    Returns
    -------
    pd.DataFrame
        Rows with the columns `COLUMNS`; see `covid_lab.explain.command.explain_files`.
    """
    rows = [
        {"image": str(file), "status": f"unreadable: {reason}"}
        for file, reason in chunk.unreadable.items()
    ]
    several = len({target for _, target in chunk.heatmaps}) > 1
    for number, (picture, original) in enumerate(zip(chunk.pictures, chunk.originals, strict=True)):
        file = picture.path
        found, lungs = _lungs(picture, masks, grey_values(original))
        shown = original if original.ndim == 3 else original[..., None]
        blends, titles = [np.broadcast_to(shown, (*shown.shape[:2], 3))], [_shortened(file.name)]
        for (method, wanted), heatmaps in chunk.heatmaps.items():
            heat = heatmaps.maps[number]
            blend = overlay(shown[None], heat[None], colour_map=request.colour_map)[0]
            label = re.sub(r"[^\w.-]", "_", wanted) if several else ""
            name = f"overlays/{'_'.join(filter(None, (chunk.names[number], method, label)))}.png"
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
                    "predicted": request.classes[chunk.predicted[number]],
                    "status": status,
                    "strength": heatmaps.strength[number],
                    "lungs": found,
                    **_lung_share(heat, lungs),
                    "overlay": name,
                }
            )
            blends.append(blend)
            blank = "" if status == "ok" else f"\nblank: {status}"
            titles.append(f"{method}\n{target}, score {score:.2f}{blank}")
        if len(chunk.heatmaps) > 1:
            scale = "one scale for all images" if request.one_scale else "each map's own scale"
            figure = image_grid(blends, titles)
            _save_figure(
                out / f"sheets/{chunk.names[number]}.png", figure, CAPTION.format(scale=scale)
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def draw_feature_maps(network: keras.Model, chunk: Chunk, out: Path, layer: str) -> None:
    """Draw the strongest feature maps of a layer for each image of a chunk.

    Parameters
    ----------
    network : keras.Model
        Network that was explained.
    chunk : Chunk
        Images.
    out : Path
        Folder of the explanations.
    layer : str
        Name of a spatial layer.
    """
    maps, channels = feature_maps(network, chunk.images, layer)
    for name, own, numbers in zip(chunk.names, maps, channels, strict=True):
        figure = figures.feature_maps(own, [f"channel {number}" for number in numbers])
        caption = f"The strongest feature maps of layer {layer}, each on its own scale."
        _save_figure(out / f"feature_maps/{name}.png", figure, caption)


def reduced(image: np.ndarray) -> np.ndarray:
    """Reduce an image so that no side exceeds `TALLEST`.

    Parameters
    ----------
    image : np.ndarray, (h, w) or (h, w, 3), uint8
        Image.

    Returns
    -------
    np.ndarray, (h, w) or (h, w, 3), uint8
        Reduced image; the given one where it is small enough.
    """
    sides = image.shape[:2]
    factor = TALLEST / max(sides)
    if factor >= 1:
        return image
    return resize(image, tuple(max(round(side * factor), 1) for side in sides))


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


def _lungs(picture: Picture, masks: LungMasks | None, image: np.ndarray) -> tuple[str, np.ndarray]:
    """How the lungs of a grey image (h, w) were found, and their mask, bool of its shape.

    "mask": given, or beside the image. "segmented": by `lungs.segment_lungs`, which is rough.
    "none": no source gives a plausible pair of lungs.
    """
    nothing = np.zeros(image.shape, bool)
    if masks:
        mask = masks.read(picture.path)
        return ("none", nothing) if mask is None else ("mask", resized_mask(mask, image.shape))
    beside = mask_beside(picture)
    if beside is not None:
        return "mask", resized_mask(beside, image.shape)
    square = resize(image, (SEGMENTED, SEGMENTED))
    lungs = segment_lungs(square[None])
    if implausible(lungs)[0]:
        return "none", nothing
    return "segmented", resized_mask(lungs[0], image.shape)


def _lung_share(heat: np.ndarray, lungs: np.ndarray) -> dict[str, float]:
    """Fraction of the heat inside the lungs, and the lungs' fraction of the image."""
    if not lungs.any() or not heat.any():
        return {}
    enlarged = resize_heatmaps(heat[None], lungs.shape)[0]
    return {"lung_share": enlarged[lungs].sum() / enlarged.sum(), "lung_area": lungs.mean()}


def _shortened(name: str) -> str:
    name = "".join(letter if letter.isprintable() else "·" for letter in name)
    return name if len(name) <= 28 else f"{name[:27]}…"
