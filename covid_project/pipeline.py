"""From image files to batches: one way in for training, testing, Grad-CAM and everything else.

Images are decoded to 8-bit grey and resized. Training batches are shuffled and augmented; all
others arrive unchanged and in order. Normalisation is not here: it is a layer of each model.
"""

import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import tensorflow as tf
from PIL import Image, ImageChops, ImageOps

from covid_project.augmentation import augment
from covid_project.data import DataError, Dataset, listed, read_bytes
from covid_project.settings import Augmentation

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")  # of the content, whatever the suffix
MAX_PIXELS = 64_000_000  # of one image; a chest radiograph has at most about 16 million


# ---- decoding -----------------------------------------------------------------------------------


def open_image(content: bytes, name: str) -> Image.Image:
    """Open an image file of one frame, without decoding its pixels.

    Raises
    ------
    DataError
        No bytes, not an image, damaged, more than one frame, or more than 64 million pixels.
    """
    if not content:
        raise DataError(f"{name}: empty file")
    giant = DataError(f"{name}: more than {MAX_PIXELS // 10**6} million pixels")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise giant
        frames = getattr(image, "n_frames", 1)
    except (DataError, Image.DecompressionBombError):
        raise giant from None
    except Image.UnidentifiedImageError:
        raise DataError(f"{name}: not an image of the kinds {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow raises whatever damaged bytes lead it to
        raise DataError(f"{name}: damaged or cut off ({error})") from None
    if frames != 1:
        raise DataError(f"{name}: {frames} frames or pages; allowed: one")
    return image


def decode(content: bytes, name: str) -> np.ndarray:
    """Decode an image file to grey values.

    8-bit grey is unchanged; colours become luminance (ITU-R 601-2); transparency becomes black;
    16-bit grey is scaled from its full range; an EXIF orientation is applied.

    Parameters
    ----------
    content : bytes
        The whole file; its content decides, not its suffix.
    name : str
        For messages.

    Returns
    -------
    np.ndarray, uint8 (height, width)
        0 (black) to 255 (white).

    Raises
    ------
    DataError
        See `open_image`; also 32-bit or float values, whose range is unknown.
    """
    image = open_image(content, name)
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # a copy would lose a TIFF's tags
    except Exception as error:
        raise DataError(f"{name}: damaged or cut off ({error})") from None
    if image.mode in ("I", "F"):
        raise DataError(f"{name}: 32-bit or float grey values, whose range is unknown")
    if image.mode.startswith("I;16"):
        return _levels_of_16_bits(image)[np.asarray(image, np.uint16)]
    if not image.has_transparency_data:
        return np.asarray(image.convert("L"))
    colours = image.convert("RGBA")
    # Over black, a pixel's luminance is its own times its opacity.
    return np.asarray(ImageChops.multiply(colours.convert("L"), colours.getchannel("A")))


def _levels_of_16_bits(image: Image.Image) -> np.ndarray:
    """Return the grey level of each 16-bit value, uint8 (65536,)."""
    tags = getattr(image, "tag_v2", {})  # only a TIFF has them
    highest = 2 ** tags.get(258, (16,))[0] - 1  # BitsPerSample: 16, or 12 in 16
    values = np.minimum(np.arange(2**16), highest)
    if tags.get(262) == 0:  # PhotometricInterpretation: white is zero
        values = highest - values
    levels = ((values * 255 + highest // 2) // highest).astype(np.uint8)
    if image.info.get("transparency") is not None:
        levels[image.info["transparency"]] = 0
    return levels


def resize(grey: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize a grey image uint8 (h, w) to (height, width).

    Pillow's bilinear filter is a triangle that widens with the reduction: every pixel counts, so
    that nothing aliases, and no value leaves the range of its neighbours.
    """
    height, width = shape
    return np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR))


class ImageFiles:
    """Image files as an array uint8 (N, size, size, 1) whose rows are decoded when asked for.

    Examples
    --------
    >>> files = ImageFiles(dataset, dataset.rows("train"), 128)  # doctest: +SKIP
    >>> files[[0, 5]].shape                                      # doctest: +SKIP
    (2, 128, 128, 1)
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, dataset: Dataset, rows: np.ndarray, size: int):
        self.root, self.paths = dataset.root, dataset.table["path"].to_numpy()[rows]
        self.shape = (len(self.paths), size, size, 1)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice | Sequence[int]) -> np.ndarray:
        """Decode and resize some images; one `DataError` names all that cannot be read."""
        shape = self.shape[1:3]

        def load(path: str) -> np.ndarray | DataError:
            try:
                return resize(decode(read_bytes(self.root, path), path), shape)
            except DataError as error:
                return error

        with warnings.catch_warnings(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            warnings.simplefilter("ignore")  # each leads to an error of ours or does not matter
            images = list(pool.map(load, self.paths[rows]))
        errors = [str(image) for image in images if isinstance(image, DataError)]
        if errors:
            raise DataError(
                f"{len(errors)} image(s) cannot be read; replace or remove them:\n"
                + listed(errors, "\n")
            )
        return np.array(images, np.uint8).reshape(-1, *self.shape[1:])


def image_sizes(dataset: Dataset) -> pd.DataFrame:
    """Return width and height (pixels) and mode (Pillow's) of each image as it is stored.

    In the order of the data set's table, from the files' headers.
    """
    rows = []
    for path in dataset.table["path"]:
        image = open_image(read_bytes(dataset.root, path), path)
        rows.append((image.width, image.height, image.mode))
    return pd.DataFrame(rows, columns=["width", "height", "mode"])


# ---- batches ------------------------------------------------------------------------------------


def training_batches(
    images: np.ndarray | ImageFiles,
    labels: np.ndarray,
    batch_size: int,
    amounts: Augmentation,
    seed: int,
) -> tf.data.Dataset:
    """Return batches for training: a new order and new augmentations in each epoch.

    Parameters
    ----------
    images : np.ndarray or ImageFiles, uint8 (N, H, W, 1)
        Grey values 0–255.
    labels : np.ndarray, (N,)
        0 or 1.
    batch_size : int
        The last batch of an epoch may be smaller.
    amounts : Augmentation
        Largest amount of each random transformation.
    seed : int
        Determines orders and augmentations.

    Returns
    -------
    tf.data.Dataset
        Finite, of (float32 (B, H, W, 1) in 0–255, float32 (B, 1)).
    """
    rows = tf.data.Dataset.range(len(labels)).shuffle(len(labels), seed=seed).batch(batch_size)
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
    read, labels = _reader(images), _column(labels)

    def form(chosen, batch_seed):
        return augment(read(chosen), amounts, batch_seed), tf.gather(labels, chosen)

    return tf.data.Dataset.zip(rows, seeds).map(form, num_parallel_calls=2).prefetch(2)


def evaluation_batches(
    images: np.ndarray | ImageFiles, labels: np.ndarray, batch_size: int = 64
) -> tf.data.Dataset:
    """Return batches in the given order, nothing changed: (float32 (B, ...), float32 (B, 1))."""
    rows = tf.data.Dataset.range(len(labels)).batch(batch_size)
    read, labels = _reader(images), _column(labels)

    def form(chosen):
        return tf.cast(read(chosen), tf.float32), tf.gather(labels, chosen)

    return rows.map(form).prefetch(2)


def feature_batches(
    copies: Sequence[np.ndarray], labels: np.ndarray, batch_size: int, seed: int
) -> tf.data.Dataset:
    """Return batches of cached features for training: of each image one of its copies at random.

    Parameters
    ----------
    copies : sequence of np.ndarray, each (N, ...)
        Features of the images and of their augmented copies (`models.feature_copies`).
    labels : np.ndarray, (N,)
        0 or 1.
    batch_size, seed : int
        As for `training_batches`.

    Returns
    -------
    tf.data.Dataset
        Finite, of (float32 (B, ...), float32 (B, 1)); an epoch holds every image once.
    """
    rows = tf.data.Dataset.range(len(labels)).shuffle(len(labels), seed=seed)
    numbers = tf.data.Dataset.random(seed=seed + 1, rerandomize_each_iteration=True)
    labels = _column(labels)

    def gather(chosen, drawn):
        pairs = zip(chosen, drawn, strict=True)
        return np.stack([copies[k % len(copies)][row] for row, k in pairs]).astype(np.float32)

    read = _numpy_function(gather, tf.float32, (None, *copies[0].shape[1:]))

    def form(chosen, drawn):
        return read(chosen, drawn), tf.gather(labels, chosen)

    return tf.data.Dataset.zip(rows, numbers).batch(batch_size).map(form).prefetch(2)


def _reader(images: np.ndarray | ImageFiles) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function that reads the images of some rows, without a copy of all images."""
    return _numpy_function(lambda rows: images[rows], images.dtype, (None, *images.shape[1:]))


def _numpy_function(function: Callable, kind, shape: tuple) -> Callable[..., tf.Tensor]:
    def call(*tensors: tf.Tensor) -> tf.Tensor:
        # Declared stateless: with deterministic operations others run one at a time.
        return tf.ensure_shape(tf.numpy_function(function, tensors, kind, stateful=False), shape)

    return call


def _column(labels: np.ndarray) -> tf.Tensor:
    return tf.constant(np.asarray(labels, np.float32)[:, None])
