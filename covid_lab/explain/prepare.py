"""Prepare a user's model for explanation: one image of 0..255 in, one score per class out."""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from covid_lab.checkpoints import load_model
from covid_lab.datasets import UnreadableImage
from covid_lab.explain.input_range import (
    InputRange,
    contradiction,
    conversion,
    find_input_range,
)
from covid_lab.explain.network import flatten
from covid_lab.explain.outputs import choose_output, is_score, scored
from covid_lab.explain.pictures import Picture, read_picture
from covid_lab.verify import open_model
from covid_project.data import DataError
from covid_project.images import resize

SAMPLE = 48  # images that are used to find the input range


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network that takes images of 0..255, and what was found during its preparation.

    Attributes
    ----------
    network : keras.Model
        Flat network from images (N, H, W, C) float32, 0..255, to scores (N, K).
    score : str
        How the output was recognised, in words.
    input_range : InputRange or None
        Range of the original model; None where no image could be read.
    warnings : list of str
        What the user must know.
    """

    network: keras.Model
    score: str
    input_range: InputRange | None
    warnings: list[str]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the images.

        Returns
        -------
        tuple of int
            Height, width and channels.
        """
        return tuple(self.network.inputs[0].shape[1:])


def prepare(
    path: Path,
    pictures: Sequence[Picture],
    classes: Sequence[str],
    *,
    input_range: str | None = None,
    size: tuple[int, int] | None = None,
    output: str | None = None,
    trust: bool = False,
) -> Prepared:
    """Load a model and convert it to the form that explanations need.

    Parameters
    ----------
    path : Path
        A ``.keras`` file; see `covid_lab.checkpoints.load_model`.
    pictures : sequence of Picture
        The images to be explained; a sample of them helps to find the input range.
    classes : sequence of str
        Names of the model's classes, in the order of its outputs.
    input_range : str, optional
        One of `input_range.RANGES`; by default it is found.
    size : tuple of int, (height, width), optional
        Size of the images, for a model that takes any.
    output : str, optional
        Name or number of the output, for a model with several.
    trust : bool
        Run the code in the file; see `covid_lab.checkpoints.load_model`.

    Returns
    -------
    Prepared
        The network, and what was found.

    Raises
    ------
    DataError
        The model cannot be explained, or the options do not fit it; the message says why.
    ModelRefused, NotKept, WeightsUnavailable
        See `covid_lab.verify.open_model`.
    """
    model = load_model(path, trust=True) if trust else open_model(path)
    shape = _image_shape(model, path, size)
    with _naming(path):
        model = choose_output(model, output)
        if not is_score(model.outputs[0]):
            raise ValueError(
                f"the outputs have the shape {tuple(model.outputs[0].shape)}; only one score per "
                "class, (N, 1) or (N, classes), can be explained"
            )
        given = model.inputs[0].shape
        free = given[0] is None and None not in given[1:]  # any number of images, of one size
        network, score = scored(model if free else flatten(model, shape))
    count = max(network.outputs[0].shape[-1], 2)
    if count != len(classes):
        raise DataError(
            f"{path} distinguishes {count} classes, but {len(classes)} are named "
            f"({', '.join(classes)}): name them in their order with --classes"
        )
    sample, labels = _sample(pictures, shape)
    found, warning = None, ""
    with _naming(path):
        if input_range is not None:
            found = InputRange(input_range, "given by --input-range")
        elif len(sample):
            found = find_input_range(network, sample, labels, tuple(classes))
        convert = conversion(found.name, shape[2]) if found else None
    if input_range is not None and len(sample):
        warning = contradiction(network, sample, labels, input_range)
    elif found and not found.certain:
        warning = (
            f"the input range {found.name} is a guess: {found.reason}. If the network was "
            "trained on other values, give --input-range"
        )
    if convert is not None:
        network, score = scored(flatten(model, shape, convert))
    return Prepared(network, score, found, [warning] if warning else [])


@contextmanager
def _naming(path: Path):
    """Turn a ValueError into a DataError that names the model."""
    try:
        yield
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def _image_shape(
    model: keras.Model, path: Path, size: tuple[int, int] | None
) -> tuple[int, int, int]:
    """Height, width and channels of the images that a model takes."""
    shapes = [tuple(tensor.shape) for tensor in getattr(model, "inputs", None) or []]
    fits = len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][3] in (1, 3)
    if not fits:
        taken = ", ".join(map(str, shapes)) or "unknown: it is not a functional or sequential model"
        raise DataError(
            f"{path} takes inputs of the shape {taken}; only models of one image "
            "(height, width, 1 or 3) can be explained"
        )
    sides = shapes[0][1:3]
    if None in sides and size is None:
        raise DataError(
            f"{path} takes inputs of the shape {shapes[0]}, of any size; give the size that it was "
            "trained on, for example --size 224, or --size 256x192 for height and width"
        )
    if size is not None and any(sides[axis] not in (None, size[axis]) for axis in (0, 1)):
        raise DataError(
            f"--size is {size[0]}x{size[1]}, but {path} takes images of {sides[0]}x{sides[1]} "
            "only; leave --size out"
        )
    return (*(size or sides), shapes[0][3])


def _sample(
    pictures: Sequence[Picture], shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """A sample of the images, uint8 (n, H, W, C), and their labels (n,), -1 where unknown."""
    chosen = np.unique(np.linspace(0, len(pictures) - 1, SAMPLE).round().astype(int))
    images, labels = [], []
    for picture in (pictures[number] for number in chosen):
        try:
            images.append(model_input(read_picture(picture, colour=shape[2] == 3), shape))
        except UnreadableImage:
            continue
        labels.append(-1 if picture.label is None else picture.label)
    return np.array(images, np.uint8).reshape(-1, *shape), np.array(labels, int)


def model_input(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Resize an image to a model's input; grey values are repeated in all colour channels.

    Parameters
    ----------
    image : np.ndarray, (h, w) or (h, w, 3), uint8
        Image.
    shape : tuple of int, (H, W, C)
        Shape of the model's input.

    Returns
    -------
    np.ndarray, (H, W, C), uint8
        Resized image, read-only.
    """
    small = resize(image, shape[:2])
    return np.broadcast_to(small if small.ndim == 3 else small[..., None], shape)
