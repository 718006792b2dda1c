"""Find the images to explain, report which files are ignored, and read images and lung masks."""

import io
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from covid_lab.datasets import UnreadableImage
from covid_lab.masks import marked_pixels, match_masks
from covid_lab.reading.collection import (
    EXPECTED,
    collect,
    in_words,
    refuse_unexplained,
    sort_files,
)
from covid_lab.reading.dicom import DicomRoot, is_dicom
from covid_lab.reading.origins import mask_of
from covid_lab.reading.roots import ARCHIVES, open_root
from covid_project.data import DataError, Root, listed, read_bytes, same_name
from covid_project.images import IMAGE_SUFFIXES, decode

IMAGE_FOLDER = "images"  # Kaggle's, inside a class folder


@dataclass(frozen=True, eq=False)
class Picture:
    """An image file.

    Attributes
    ----------
    path : Path
        Path of the file, or of its archive followed by its name in the archive.
    label : int or None
        Number of its class, from a class folder or a table.
    root : Path, zipfile.Path or DicomRoot
        Folder or archive that it is read from.
    name : str
        Path under the root.
    """

    path: Path
    label: int | None
    root: Root
    name: str

    def read(self) -> bytes:
        """Return the content of the file.

        Returns
        -------
        bytes
            Content.

        Raises
        ------
        UnreadableImage
            The path is not a regular file, or the file is too large.
        """
        with self._naming():
            return read_bytes(self.root, self.name)

    def grey(self) -> np.ndarray:
        """Decode the image to grey values.

        Returns
        -------
        np.ndarray, (h, w), uint8
            Grey values.

        Raises
        ------
        UnreadableImage
            As for `read`, or the file is not an image.
        """
        content = self.read()
        with self._naming(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's: each leads to an error or is harmless
            return decode(content, self.name)

    @contextmanager
    def _naming(self):
        """Turn a DataError into an UnreadableImage that names the file."""
        try:
            yield
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
    """Find the images among files, folders and archives, sorted and without repetition.

    In folders and archives, lung masks and files of other kinds are ignored. Where some images are
    in class folders or in a table, the other images are ignored too.

    Parameters
    ----------
    paths : sequence of Path
        Files, folders and archives.
    classes : sequence of str
        Names of the class folders, in the order of their numbers.
    table : Path, optional
        Labels from a table; see `covid_lab.reading.manifests.read_manifest`.
    columns : mapping of str to str, optional
        Columns of the table, as for `read_manifest`.
    finding : str, optional
        Finding in the table, as for `read_manifest`.

    Returns
    -------
    pictures : list of Picture
        The images.
    ignored : list of str
        Which files are ignored, in words.

    Raises
    ------
    DataError
        A path does not exist, there is no image, or more than 5 % of the files are ignored for no
        known reason.
    """
    found: dict[Path, Picture] = {}
    ignored = []
    for path in (Path(path).expanduser() for path in paths):
        if not path.exists():
            raise DataError(f"no such path: {path}; give images, or folders or archives of them")
        if path.is_dir() or path.name.lower().endswith(ARCHIVES):
            inside, words = _inside(path, classes, table, columns, finding)
            ignored += [words] if words else []
        else:
            inside = [_alone(path, classes)]
        for picture in inside:
            found.setdefault(picture.path, picture)
    return list(found.values()), ignored


def _alone(path: Path, classes: Sequence[str]) -> Picture:
    """Return an image whose file is named by the user."""
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
    """Images of a folder or an archive, and which files are ignored."""
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
        return pictures, in_words(found.passed_over)
    root, names = open_root(path, hidden=True)
    images, passed_over, dicoms = sort_files(root, names)
    if not images:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"no images in {path}: allowed are files that end in {kinds}, and DICOM")
    if dicoms:
        root = DicomRoot(root)
    labels = {name: _label(name.split("/")[:-1], path, classes) for name in images}
    strays = [name for name, label in labels.items() if label is None]
    if 0 < len(strays) < len(images):
        passed_over["outside the class folders"] = strays
    kept = strays if len(strays) == len(images) else [n for n in images if n not in set(strays)]
    refuse_unexplained(path, len(kept), passed_over, EXPECTED, f"Classes: {', '.join(classes)}")
    return [Picture(path / name, labels[name], root, name) for name in kept], in_words(passed_over)


def _label(folders: Sequence[str], root: Path, classes: Sequence[str]) -> int | None:
    """Number of the innermost folder with the name of a class, at or below ``root``."""
    names = [same_name(name) for name in classes]
    outer = root.resolve()
    around = [outer.parent.name] if outer.name.casefold() == IMAGE_FOLDER else []
    found = (
        names.index(n) for n in map(same_name, [*folders[::-1], outer.name, *around]) if n in names
    )
    return next(found, None)


def classes_in_words(pictures: Sequence[Picture], classes: Sequence[str]) -> str:
    """Number of images, in total and in each class.

    Parameters
    ----------
    pictures : sequence of Picture
        Images.
    classes : sequence of str
        Names of the classes.

    Returns
    -------
    str
        Such as "5 (2 NORMAL, 3 COVID)".
    """
    counts = Counter(picture.label for picture in pictures if picture.label is not None)
    known = ", ".join(f"{counts[number]} {classes[number]}" for number in sorted(counts))
    return f"{len(pictures)} ({known})" if known else str(len(pictures))


def read_picture(picture: Picture, *, colour: bool) -> np.ndarray:
    """Read an image as grey values or, where it is coloured, as colours.

    Parameters
    ----------
    picture : Picture
        Image file.
    colour : bool
        Keep colours. Otherwise they become grey values (luminance).

    Returns
    -------
    np.ndarray, (h, w) or (h, w, 3), uint8
        Grey values, or red, green and blue.

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
    except Exception:  # a format that only `decode` knows, and reads as grey values
        return grey
    if opacity is not None and opacity.any():  # over black, as `decode` does
        colours = ((colours * opacity + 127) // 255).astype(np.uint8)
    if colours.shape[:2] != grey.shape or not np.ptp(colours, axis=-1).any():
        return grey
    return colours


def grey_values(image: np.ndarray) -> np.ndarray:
    """Luminance of an image.

    Parameters
    ----------
    image : np.ndarray, (h, w) or (h, w, 3), uint8
        Image.

    Returns
    -------
    np.ndarray, (h, w), uint8
        Grey values.
    """
    return image if image.ndim == 2 else np.asarray(Image.fromarray(image).convert("L"))


class LungMasks:
    """Lung masks in a folder or zip archive that match the paths or names of images.

    See `covid_lab.masks.match_masks`.

    Parameters
    ----------
    path : Path
        Folder or archive.
    images : sequence of Path
        Paths of the images.

    Raises
    ------
    DataError
        The path does not exist, or no mask matches an image; the message names some of both.
    """

    def __init__(self, path: Path, images: Sequence[Path]):
        self.path = Path(path).expanduser()
        self.root, names = open_root(self.path)
        names = [n for n in names if PurePosixPath(n).suffix.lower() in IMAGE_SUFFIXES]
        found = match_masks([image.as_posix() for image in images], names)
        self.names = {Path(image): mask for image, mask in found.items()}
        if not self.names:
            raise DataError(
                f"no mask in {self.path} matches an image: name the masks like the images, or with "
                f"_mask. Masks: {listed(sorted(names), limit=3) or 'none'}; images: "
                f"{listed([image.name for image in images], limit=3)}"
            )

    def read(self, image: Path) -> np.ndarray | None:
        """Read the mask of an image.

        Parameters
        ----------
        image : Path
            Path of the image.

        Returns
        -------
        np.ndarray, (h, w), bool, or None
            The mask; None where the image has none.
        """
        name = self.names.get(image)
        if name is None:
            return None
        return marked_pixels(decode(read_bytes(self.root, name), name))


def mask_beside(picture: Picture) -> np.ndarray | None:
    """Read the lung mask that is among the data, see `covid_lab.reading.origins.mask_of`.

    Parameters
    ----------
    picture : Picture
        Image file.

    Returns
    -------
    np.ndarray, (h, w), bool, or None
        The mask, or None if the image has none.
    """
    name = mask_of(picture.root, Path(picture.name).as_posix())
    return marked_pixels(replace(picture, name=name).grey()) if name else None
