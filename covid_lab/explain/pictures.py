"""Which image files are explained, what is passed over, and how they and their masks are read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from covid_lab.datasets import decode_file, open_root
from covid_project.data import IMAGE_SUFFIXES, DataError, decode, listed, read_bytes, resize

MASK_FOLDERS = {"masks", "mask"}
IMAGE_FOLDER = "images"  # Kaggle's, inside a class folder


@dataclass(frozen=True)
class Picture:
    """An image file and the class whose folder it is in: its number, or None."""

    path: Path
    label: int | None = None


def find_pictures(paths: Sequence[Path], classes: Sequence[str]) -> tuple[list[Picture], list[str]]:
    """Find the image files among the paths and everywhere in folders, sorted, each once.

    In folders, hidden files, lung masks and files of other kinds are passed over, and, where some
    images are in class folders, those that are not.

    Parameters
    ----------
    paths : sequence of Path
    classes : sequence of str
        Names of the class folders, in the order of their numbers.

    Returns
    -------
    pictures : list of Picture
    passed_over : list of str
        What is passed over, in words.

    Raises
    ------
    DataError
        A path that does not exist, or no image at all.
    """
    found: dict[Path, Picture] = {}
    passed: dict[str, list[Path]] = {}
    for path in (Path(path).expanduser() for path in paths):
        if not path.exists():
            raise DataError(f"no such path: {path}; give image files or folders of them")
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        if not path.is_dir():
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                hint = "; unpack it and give the folder" if path.suffix.lower() == ".zip" else ""
                raise DataError(f"no images in {path}: allowed are files that end in {kinds}{hint}")
            found.setdefault(path, Picture(path, _label(path, path.parent, classes)))
            continue
        inside = []
        for file in sorted(path.rglob("*")):
            if file.is_dir():
                continue
            reason = _passed_over(file.relative_to(path))
            if reason:
                passed.setdefault(reason, []).append(file)
            else:
                inside.append(Picture(file, _label(file, path, classes)))
        in_classes = [picture for picture in inside if picture.label is not None]
        strays = [p.path for p in inside if p.label is None] if in_classes else []
        if strays:
            passed.setdefault("outside the class folders", []).extend(strays)
            inside = in_classes
        if not inside:
            raise DataError(f"no images in {path}: allowed are files that end in {kinds}")
        for picture in inside:
            found.setdefault(picture.path, picture)
    words = [
        f"{len(files)} {reason} ({listed([file.name for file in files], limit=3)})"
        for reason, files in passed.items()
    ]
    return list(found.values()), words


def _passed_over(inside: Path) -> str:
    """Why a file of a folder is not explained; "" if it is."""
    if any(part.startswith(".") or part == "__MACOSX" for part in inside.parts):
        return "hidden"
    if inside.suffix.lower() not in IMAGE_SUFFIXES:
        return "of another kind"
    if any(folder.casefold() in MASK_FOLDERS for folder in inside.parts[:-1]):
        return "lung masks"
    return ""


def _label(file: Path, root: Path, classes: Sequence[str]) -> int | None:
    """Number of the class whose folder a file is in, at or below ``root``."""
    names = [name.casefold() for name in classes]
    folders = [*file.relative_to(root).parts[-2::-1], root.resolve().name]
    if folders[-1].casefold() == IMAGE_FOLDER:
        folders.append(root.resolve().parent.name)
    return next((names.index(f.casefold()) for f in folders if f.casefold() in names), None)


def classes_in_words(pictures: Sequence[Picture], classes: Sequence[str]) -> str:
    """Number of images, and of those in each class folder."""
    counts = Counter(picture.label for picture in pictures if picture.label is not None)
    known = ", ".join(f"{counts[number]} {classes[number]}" for number in sorted(counts))
    return f"{len(pictures)} ({known})" if known else str(len(pictures))


def read_picture(path: Path, *, colour: bool) -> np.ndarray:
    """Read an image: uint8 (h, w), or (h, w, 3) of red, green and blue for a coloured one.

    Parameters
    ----------
    path : Path
    colour : bool
        Keep colours. Otherwise they become grey values (luminance).

    Raises
    ------
    UnreadableImage
        See `covid_lab.datasets.decode_file`, which reads the grey values.
    """
    grey = decode_file(path)
    if not colour:
        return grey
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;"):
                return grey
            opacity = None
            if image.has_transparency_data:
                image = image.convert("RGBA")
                opacity = np.asarray(image.getchannel("A"), np.uint16)[..., None]
            colours = np.asarray(image.convert("RGB"))
    except Exception:  # a kind that only `decode_file` knows, and reads as grey values
        return grey
    if opacity is not None and opacity.any():  # over black, as `decode` does
        colours = ((colours * opacity + 127) // 255).astype(np.uint8)
    if colours.shape[:2] != grey.shape or not np.ptp(colours, axis=-1).any():
        return grey
    return colours


def grey_values(image: np.ndarray) -> np.ndarray:
    """Luminance uint8 (h, w) of an image (h, w) or (h, w, 3)."""
    return image if image.ndim == 2 else np.asarray(Image.fromarray(image).convert("L"))


class LungMasks:
    """Lung masks in a folder or zip archive, under the paths or the names of images.

    Suffixes do not count, and ``…_mask`` is allowed.

    Parameters
    ----------
    path : Path
    images : sequence of Path

    Raises
    ------
    DataError
        No such path, or no mask that fits an image; names some of both.
    """

    def __init__(self, path: Path, images: Sequence[Path]):
        self.path = Path(path).expanduser()
        self.root, names = open_root(self.path)
        names = [n for n in names if PurePosixPath(n).suffix.lower() in IMAGE_SUFFIXES]
        paths = {_key(name): name for name in names}
        bare = Counter(_key(PurePosixPath(name).name) for name in names)
        by_name = {_key(PurePosixPath(name).name): name for name in names}
        of_images = Counter(_key(image.name) for image in images)
        self.names: dict[Path, str] = {}
        for image in images:
            parts = [part for part in image.parts if part != image.anchor]
            # The longest part of its path that fits counts.
            keys = (_key("/".join(parts[start:])) for start in range(len(parts)))
            found = next((paths[key] for key in keys if key in paths), None)
            name = _key(image.name)
            if found is None and bare[name] == of_images[name] == 1:
                found = by_name[name]
            if found is not None:
                self.names[image] = found
        if not self.names:
            raise DataError(
                f"no mask in {self.path} fits an image: masks are named as the images are, or with "
                f"_mask. Masks: {listed(sorted(names), limit=3) or 'none'}; images: "
                f"{listed([image.name for image in images], limit=3)}"
            )

    def read(self, image: Path) -> np.ndarray | None:
        """Read the mask of an image, bool (h, w); None where it has none."""
        name = self.names.get(image)
        if name is None:
            return None
        mask = decode(read_bytes(self.root, name), name)
        return mask > mask.max() / 2


def _key(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")).casefold().removesuffix("_mask")


def mask_beside(image: Path) -> Path | None:
    """Kaggle's lung mask: ``masks`` beside ``images``, with the image's name."""
    beside = image.parent.parent / "masks" / image.name
    return beside if image.parent.name.casefold() == IMAGE_FOLDER and beside.is_file() else None


def resized_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize a mask bool (h, w) to ``shape``."""
    return resize(np.uint8(255) * mask, shape) >= 128
