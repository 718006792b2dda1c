"""Which images are explained, what is passed over, and how they and their masks are read."""

import io
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from covid_lab.datasets import UnreadableImage
from covid_lab.reading.collection import (
    EXPECTED,
    collect,
    in_words,
    refuse_unexplained,
    sort_files,
)
from covid_lab.reading.dicom import DicomRoot, is_dicom
from covid_lab.reading.roots import ARCHIVES, open_root
from covid_project.data import DataError, Root, listed, read_bytes, same_name
from covid_project.images import IMAGE_SUFFIXES, decode, resize

IMAGE_FOLDER = "images"  # Kaggle's, inside a class folder


@dataclass(frozen=True, eq=False)
class Picture:
    """An image file.

    Attributes
    ----------
    path : Path
        Of the file, or of its archive followed by its name in there.
    label : int or None
        Number of the class whose folder it is in, or that a table gives it.
    root : Path, zipfile.Path or DicomRoot
        Where it is read from.
    name : str
        Its path under the root.
    """

    path: Path
    label: int | None
    root: Root
    name: str

    def read(self) -> bytes:
        """Return its content.

        Raises
        ------
        UnreadableImage
            It is not a regular file, or is too large.
        """
        if not self.root.joinpath(self.name).is_file():
            raise UnreadableImage(str(self.path), "not a regular file (a broken link or a device)")
        try:
            return read_bytes(self.root, self.name)
        except DataError as error:
            reason = str(error).removeprefix(f"{self.name}: ")
            raise UnreadableImage(str(self.path), reason) from None

    def grey(self) -> np.ndarray:
        """Decode it to grey values uint8 (h, w); errors as `read`, or it is no image."""
        content = self.read()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's: each leads to an error or is harmless
                return decode(content, self.name)
        except DataError as error:
            reason = str(error).removeprefix(f"{self.name}: ")
            raise UnreadableImage(str(self.path), reason) from None


def find_pictures(
    paths: Sequence[Path],
    classes: Sequence[str],
    *,
    table: Path | None = None,
    columns: Mapping[str, str] | None = None,
    finding: str | None = None,
) -> tuple[list[Picture], list[str]]:
    """Find the images among files, folders and archives, sorted, each once.

    In folders and archives, lung masks and files of other kinds are passed over, and, where some
    images are in class folders or in a table, those that are not.

    Parameters
    ----------
    paths : sequence of Path
    classes : sequence of str
        Names of the class folders, in the order of their numbers.
    table, columns, finding
        Labels from a table, see `covid_lab.reading.manifests.read_manifest`.

    Returns
    -------
    pictures : list of Picture
    passed_over : list of str
        What is passed over, in words.

    Raises
    ------
    DataError
        A path that does not exist, no image at all, or more than 5 % of the files left out for no
        reason.
    """
    found: dict[Path, Picture] = {}
    said = []
    for path in (Path(path).expanduser() for path in paths):
        if not path.exists():
            raise DataError(f"no such path: {path}; give images, or folders or archives of them")
        if path.is_dir() or path.name.lower().endswith(ARCHIVES):
            inside, passed_over = _inside(path, classes, table, columns, finding)
            said += [passed_over] if passed_over else []
        else:
            inside = [_alone(path, classes)]
        for picture in inside:
            found.setdefault(picture.path, picture)
    return list(found.values()), said


def _alone(path: Path, classes: Sequence[str]) -> Picture:
    """Return an image file that is named itself."""
    if not path.is_file():
        raise DataError(f"{path}: no regular file (a device or a pipe)")
    with path.open("rb") as stream:
        dicom = is_dicom(stream.read(132))
    if path.suffix.lower() not in IMAGE_SUFFIXES and not dicom:
        kinds = ", ".join((*sorted(IMAGE_SUFFIXES), *ARCHIVES))
        raise DataError(f"no images in {path}: allowed are files that end in {kinds}, and DICOM")
    root = DicomRoot(Path()) if dicom else Path()
    return Picture(path, _label([], path.parent, classes), root, str(path))


def _inside(
    path: Path,
    classes: Sequence[str],
    table: Path | None,
    columns: Mapping[str, str] | None,
    finding: str | None,
) -> tuple[list[Picture], str]:
    """Images of a folder or an archive, and what is passed over."""
    if table or finding:
        found = collect(
            path,
            classes=None if finding else classes,
            table=table,
            columns=columns,
            finding=finding,
        )
        rows = found.table[["path", "label"]].itertuples(index=False)
        pictures = [Picture(path / name, label, found.root, name) for name, label in rows]
        return pictures, in_words(found.left_out)
    root, names = open_root(path, hidden=True)
    images, left_out, dicoms = sort_files(root, names)
    if not images:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"no images in {path}: allowed are files that end in {kinds}, and DICOM")
    if dicoms:
        root = DicomRoot(root)
    labels = {name: _label(name.split("/")[:-1], path, classes) for name in images}
    strays = [name for name, label in labels.items() if label is None]
    if 0 < len(strays) < len(images):
        left_out["outside the class folders"] = strays
    kept = strays if len(strays) == len(images) else [n for n in images if n not in set(strays)]
    refuse_unexplained(path, len(kept), left_out, EXPECTED, f"Classes: {', '.join(classes)}")
    return [Picture(path / name, labels[name], root, name) for name in kept], in_words(left_out)


def _label(folders: Sequence[str], root: Path, classes: Sequence[str]) -> int | None:
    """Number of the innermost folder that is named as a class, at or below ``root``."""
    names = [same_name(name) for name in classes]
    outer = root.resolve()
    around = [outer.parent.name] if outer.name.casefold() == IMAGE_FOLDER else []
    found = (
        names.index(n) for n in map(same_name, [*folders[::-1], outer.name, *around]) if n in names
    )
    return next(found, None)


def classes_in_words(pictures: Sequence[Picture], classes: Sequence[str]) -> str:
    """Number of images, and of those in each class folder."""
    counts = Counter(picture.label for picture in pictures if picture.label is not None)
    known = ", ".join(f"{counts[number]} {classes[number]}" for number in sorted(counts))
    return f"{len(pictures)} ({known})" if known else str(len(pictures))


def read_picture(picture: Picture, *, colour: bool) -> np.ndarray:
    """Read an image: uint8 (h, w), or (h, w, 3) of red, green and blue for a coloured one.

    Parameters
    ----------
    picture : Picture
    colour : bool
        Keep colours. Otherwise they become grey values (luminance).

    Raises
    ------
    UnreadableImage
        See `Picture.grey`.
    """
    grey = picture.grey()
    if not colour:
        return grey
    try:
        with Image.open(io.BytesIO(picture.read())) as image:
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;"):
                return grey
            opacity = None
            if image.has_transparency_data:
                image = image.convert("RGBA")
                opacity = np.asarray(image.getchannel("A"), np.uint16)[..., None]
            colours = np.asarray(image.convert("RGB"))
    except Exception:  # a kind that only `decode` knows, and reads as grey values
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


def mask_beside(picture: Picture) -> np.ndarray | None:
    """Read Kaggle's lung mask, bool (h, w): ``masks`` beside ``images``, with the image's name."""
    *folders, folder, file = ["", *Path(picture.name).as_posix().split("/")]
    name = "/".join([*folders, "masks", file]).removeprefix("/")
    if picture.name.startswith("/"):
        name = f"/{name}"
    if folder.casefold() != IMAGE_FOLDER or not picture.root.joinpath(name).is_file():
        return None
    mask = replace(picture, name=name).grey()
    return mask > mask.max() / 2


def resized_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize a mask bool (h, w) to ``shape``."""
    return resize(np.uint8(255) * mask, shape) >= 128
