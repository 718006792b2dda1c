"""What the mitigation methods share: settings, images of both collections, and their features.

The own collection has the training images; the target is the other collection.
"""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from covid_lab.external.inputs import INPUTS
from covid_lab.external.styles import Styles, restyle
from covid_lab.external.two_exits import (
    Parts,
    build_parts,
    collection_network,
    cut_features,
    pooled_features,
)
from covid_lab.lungs import segment_lungs
from covid_project.data import DataError, Dataset, ImageFiles
from covid_project.files import cached_array, fingerprint
from covid_project.images import resize
from covid_project.models import outputs

WORKING_SIZE = 256  # pixels of the images whose style is changed


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the methods; the defaults were chosen on validation splits.

    Attributes
    ----------
    image_size : int, a multiple of 32
        Pixels along each side.
    weights : str
        Weights of the pretrained network: "imagenet", "random" or the path of a file.
    copies : int, from 0
        Restyled copies of each training image, in addition to the image itself.
    strength : float, > 0
        Inverse regularisation C of the linear exits.
    labelled_weight : float, > 0
        Weight of a labelled image of the target, relative to an image of the own collection.
    shares : tuple of float, in [0, 1]
        Weights of the collection exit to compare.
    epochs : int, from 1
        Epochs of fine-tuning.
    batch_size : int, from 1
        Images per step of fine-tuning.
    learning_rate : float, > 0
        Learning rate of AdamW.
    weight_decay : float, from 0
        Weight decay of AdamW.
    label_smoothing : float, in [0, 1]
        Label smoothing of the cross-entropy.
    dropout : float, in [0, 1)
        Fraction of the pooled features that dropout sets to 0.
    """

    image_size: int = 160
    weights: str = "imagenet"
    copies: int = 6
    strength: float = 1e-3
    labelled_weight: float = 3.0
    shares: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5)
    epochs: int = 8
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    dropout: float = 0.3


@dataclass(frozen=True, eq=False)
class Images:
    """Images of a collection, in memory.

    Attributes
    ----------
    pixels : np.ndarray, uint8 (N, 256, 256), 0–255
        Grey values.
    labels : np.ndarray, int (N,), 0 or 1
        1 for COVID, 0 for the other class.
    fingerprint : str
        Identity of pixels and labels, for the cache.
    """

    pixels: np.ndarray
    labels: np.ndarray
    fingerprint: str


def read_images(dataset: Dataset, split: str) -> Images:
    """Read the images of one split at the working size.

    Parameters
    ----------
    dataset : Dataset
        Images with labels of two classes.
    split : str
        Name of the split; "" for data without splits.

    Returns
    -------
    Images
        The images of the split, in the order of the table.

    Raises
    ------
    DataError
        The split lacks images of one of the classes, or an image cannot be read.
    """
    rows = np.flatnonzero(dataset.table["split"] == split)
    labels = dataset.table["label"].to_numpy()[rows]
    if len(np.unique(labels)) < 2:
        raise DataError(f"split {split!r} has no images of both classes: a comparison needs them")
    pixels = ImageFiles(dataset, rows, WORKING_SIZE)[:][..., 0]
    return Images(pixels, labels, fingerprint(pixels, labels))


class Bench:
    """Images of both collections and their features; each is computed once and stored in a folder.

    Parameters
    ----------
    train : Images
        Training images of the own collection.
    val : Images
        Validation images of the own collection.
    target : Images
        Images of the other collection.
    settings : Settings
        Settings of all methods.
    cache : Path
        Folder for the features; it is created where it is missing.

    Attributes
    ----------
    parts : Parts
        The pretrained network and the lung weights.
    """

    def __init__(self, train: Images, val: Images, target: Images, settings: Settings, cache: Path):
        self.train, self.val, self.target = train, val, target
        self.settings, self.cache = settings, Path(cache)
        self.parts: Parts = build_parts(settings.image_size, weights=settings.weights)
        self._pooled = pooled_features(self.parts)
        self._above = keras.Model(self.parts.cut, self.parts.deep)
        self._pretrained = self._above.get_weights()

    def pooled(self, images: Images, *, copy: int = 0, seed: int = 0) -> np.ndarray:
        """Compute the features of the frozen layers, averaged over the lungs and over the image.

        Parameters
        ----------
        images : Images
            N images.
        copy : int, from 0
            0 for the images as they are; each other number stands for another draw of styles.
        seed : int, from 0
            Seed of the styles.

        Returns
        -------
        np.ndarray, float32 (N, 2 C)
            First the C averages over the lungs, then those over the image.
        """
        identity = fingerprint(
            images.fingerprint, self.parts.frozen, str(copy and (seed, copy)), repr(Styles())
        )

        def compute():
            pixels = self.styled(images, copy, seed) if copy else images.pixels
            return outputs(self._pooled, self.small(pixels), title=f"features, copy {copy}")

        return cached_array(self.cache / f"pooled_{identity}.npy", compute)

    def shown(self, images: Images, name: str) -> np.ndarray:
        """Compute the features of images that one of `INPUTS` has changed.

        Parameters
        ----------
        images : Images
            N images.
        name : str
            A key of `INPUTS`.

        Returns
        -------
        np.ndarray, float32 (N, 2 C)
            As `pooled` returns them.
        """
        identity = fingerprint(images.fingerprint, self.parts.frozen, name)

        def compute():
            pairs = zip(images.pixels, segment_lungs(images.pixels), strict=True)
            changed = np.stack([INPUTS[name](image, lungs) for image, lungs in pairs])
            return outputs(self._pooled, self.small(changed), title=f"features, {name}")

        return cached_array(self.cache / f"input_{identity}.npy", compute)

    def maps(self, images: Images) -> np.ndarray:
        """Compute the feature maps at the cut, see `two_exits.cut_features`.

        Parameters
        ----------
        images : Images
            N images.

        Returns
        -------
        np.ndarray, float16 (N, h, w, C + 1)
            Feature maps; the last channel holds the lung weights.
        """
        identity = fingerprint(images.fingerprint, self.parts.frozen, "maps")

        def compute():
            found = outputs(cut_features(self.parts), self.small(images.pixels), title="maps")
            return found.astype(np.float16)

        return cached_array(self.cache / f"maps_{identity}.npy", compute)

    def copies(self, images: Images, seed: int) -> list[np.ndarray]:
        """Compute the features of images and of their restyled copies.

        Parameters
        ----------
        images : Images
            N images.
        seed : int, from 0
            Seed of the styles.

        Returns
        -------
        list of np.ndarray, float32 (N, 2 C)
            The images' own features, then those of each copy, as `pooled` returns them.
        """
        numbers = range(self.settings.copies + 1)
        return [self.pooled(images, copy=number, seed=seed) for number in numbers]

    def collection_network(self, *, lungs_only: bool) -> keras.Model:
        """Build the network to fine-tune and reset its layers to the pretrained weights.

        Parameters
        ----------
        lungs_only : bool
            Whether features are averaged over the lungs (True) or over the whole image (False).

        Returns
        -------
        keras.Model
            Maps (N, h, w, C + 1) → logit (N, 1), see `two_exits.collection_network`.
        """
        self._above.set_weights(self._pretrained)
        return collection_network(self.parts, dropout=self.settings.dropout, lungs_only=lungs_only)

    def styled(
        self, images: Images, copy: int, seed: int, styles: Styles | None = None
    ) -> np.ndarray:
        """Change the style of images at random, see `restyle`.

        Parameters
        ----------
        images : Images
            N images.
        copy : int, from 0
            Number of the copy; each number gives other styles.
        seed : int, from 0
            Seed of the styles.
        styles : Styles, optional
            Probability and size of each change; the defaults of `Styles` where None.

        Returns
        -------
        np.ndarray, uint8 (N, 256, 256), 0–255
            Restyled images. Histograms and spectra come from the training images.
        """
        styles = styles or Styles()
        return np.stack(
            [
                restyle(image, self.train.pixels, np.random.default_rng([seed, copy, row]), styles)
                for row, image in enumerate(images.pixels)
            ]
        )

    def small(self, pixels: np.ndarray) -> np.ndarray:
        """Resize images to the input size of the network.

        Parameters
        ----------
        pixels : np.ndarray, uint8 (N, h, w), 0–255
            Grey values.

        Returns
        -------
        np.ndarray, uint8 (N, S, S, 1), 0–255
            Images with ``settings.image_size`` pixels along each side.
        """
        shape = (self.settings.image_size,) * 2
        return np.stack([resize(image, shape) for image in pixels])[..., None]
