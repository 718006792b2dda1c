"""Methods against the gap to another collection, and the features that they share.

A method uses of the other collection nothing ("none"), images without labels ("unlabelled": the
mean logit is moved to 0), or images with labels ("labelled": five-fold cross-validation over them,
so that no image is scored by a model that has seen its label).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from covid_lab.external.inputs import INPUTS
from covid_lab.external.styles import Styles, restyle
from covid_lab.external.two_exits import (
    Parts,
    added,
    build_parts,
    collection_network,
    cut_features,
    pooled_features,
    round_kernels,
)
from covid_lab.lungs import segment_lungs
from covid_lab.training import fit
from covid_project.data import DataError, Dataset, ImageFiles
from covid_project.files import cached_array, fingerprint
from covid_project.images import resize
from covid_project.models import logits, outputs
from covid_project.training import set_seed

WORKING_SIZE = 256  # pixels of the images whose style is changed
SITE = 30.0  # value of the covariate that gives each collection an intercept of its own
FOLDS = 5  # of the cross-validation over labelled images of the other collection
NONE, UNLABELLED, LABELLED = "none", "unlabelled", "labelled"
REFERENCE, ROBUST = "fine-tuned, averaged over the image", "robust exit"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the methods; the defaults were chosen on validation splits.

    Attributes
    ----------
    image_size : int
        Pixels along each side, a multiple of 32.
    weights : str
        Of the pretrained network: "imagenet", "random" or a file.
    copies : int
        Styled copies of each training image, beside the image itself.
    strength : float
        Inverse regularisation C of the linear exits.
    labelled_weight : float
        Of a labelled image of the other collection, relative to one of the own collection.
    shares : tuple of float
        Weights of the collection exit to be compared.
    epochs, batch_size : int
    learning_rate, weight_decay, label_smoothing, dropout : float
        Of the fine-tuning of the collection exit.
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
    """Some images of a collection: uint8 (N, 256, 256), labels (N,), and their fingerprint."""

    pixels: np.ndarray
    labels: np.ndarray
    fingerprint: str


def read_images(dataset: Dataset, split: str) -> Images:
    """Read the images of one split ("" for data without splits).

    Raises
    ------
    DataError
        There are none, or of one class only.
    """
    rows = np.flatnonzero(dataset.table["split"] == split)
    labels = dataset.table["label"].to_numpy()[rows]
    if len(np.unique(labels)) < 2:
        raise DataError(f"split {split!r} has no images of both classes: a comparison needs them")
    pixels = ImageFiles(dataset, rows, WORKING_SIZE)[:][..., 0]
    return Images(pixels, labels, fingerprint(pixels, labels))


class Bench:
    """Images of both collections and their features, each computed once and kept in a folder."""

    def __init__(self, train: Images, val: Images, target: Images, settings: Settings, cache: Path):
        self.train, self.val, self.target = train, val, target
        self.settings, self.cache = settings, Path(cache)
        self.parts: Parts = build_parts(settings.image_size, weights=settings.weights)
        self._pooled = pooled_features(self.parts)
        self._above = keras.Model(self.parts.cut, self.parts.deep)
        self._pretrained = self._above.get_weights()

    def pooled(self, images: Images, *, copy: int = 0, seed: int = 0) -> np.ndarray:
        """Features averaged over lungs and image, float32 (N, 2 C); ``copy`` > 0 is restyled."""
        identity = fingerprint(
            images.fingerprint, self.parts.frozen, str(copy and (seed, copy)), repr(Styles())
        )

        def compute():
            pixels = self.styled(images, copy, seed) if copy else images.pixels
            return outputs(self._pooled, self.small(pixels), title=f"features, copy {copy}")

        return cached_array(self.cache / f"pooled_{identity}.npy", compute)

    def shown(self, images: Images, name: str) -> np.ndarray:
        """Features of images that are changed by one of `INPUTS`, as `pooled`."""
        identity = fingerprint(images.fingerprint, self.parts.frozen, name)

        def compute():
            pairs = zip(images.pixels, segment_lungs(images.pixels), strict=True)
            changed = np.stack([INPUTS[name](image, lungs) for image, lungs in pairs])
            return outputs(self._pooled, self.small(changed), title=f"features, {name}")

        return cached_array(self.cache / f"input_{identity}.npy", compute)

    def maps(self, images: Images) -> np.ndarray:
        """Maps at the cut, float16, see `two_exits.cut_features`."""
        identity = fingerprint(images.fingerprint, self.parts.frozen, "maps")

        def compute():
            found = outputs(cut_features(self.parts), self.small(images.pixels), title="maps")
            return found.astype(np.float16)

        return cached_array(self.cache / f"maps_{identity}.npy", compute)

    def copies(self, images: Images, seed: int) -> list[np.ndarray]:
        """Features of the images and of their styled copies."""
        numbers = range(self.settings.copies + 1)
        return [self.pooled(images, copy=number, seed=seed) for number in numbers]

    def collection_network(self, *, lungs_only: bool) -> keras.Model:
        """Return the network to be fine-tuned, with the pretrained weights again."""
        self._above.set_weights(self._pretrained)
        return collection_network(self.parts, dropout=self.settings.dropout, lungs_only=lungs_only)

    def styled(
        self, images: Images, copy: int, seed: int, styles: Styles | None = None
    ) -> np.ndarray:
        """Draw the styles of images at random, see `restyle`; another ``copy``, other styles."""
        styles = styles or Styles()
        return np.stack(
            [
                restyle(image, self.train.pixels, np.random.default_rng([seed, copy, row]), styles)
                for row, image in enumerate(images.pixels)
            ]
        )

    def small(self, pixels: np.ndarray) -> np.ndarray:
        """Resize images uint8 (N, h, w) to those of the network, (N, S, S, 1)."""
        shape = (self.settings.image_size,) * 2
        return np.stack([resize(image, shape) for image in pixels])[..., None]


# ---- the exits ----------------------------------------------------------------------------------


def linear_exit(
    copies: list[np.ndarray],
    labels: np.ndarray,
    strength: float,
    target: tuple[list[np.ndarray], np.ndarray, float] | None = None,
) -> tuple[np.ndarray, float, float]:
    """Fit a logistic regression to features of images and of their copies.

    Parameters
    ----------
    copies : list of np.ndarray, float (N, C)
        The images' features and those of their styled copies.
    labels : np.ndarray, (N,)
    strength : float
        Inverse of the L2 penalty, on standardised features.
    target : tuple, optional
        The same of labelled images of another collection, and the weight of each. The collections
        share the kernel and have intercepts of their own: prevalence and exposure may differ, what
        disease looks like does not.

    Returns
    -------
    kernel : np.ndarray, (C,)
    bias : float
    target_bias : float
        The intercept of the other collection; equals ``bias`` without one.
    """
    rows = np.concatenate(copies).astype(np.float32)
    wanted, weights = np.tile(labels, len(copies)), np.ones(len(rows))
    scaler = StandardScaler().fit(rows)
    rows, site = scaler.transform(rows), np.zeros((len(rows), 1))
    if target is not None:
        theirs, their_labels, weight = target
        more = scaler.transform(np.concatenate(theirs).astype(np.float32))
        rows, site = np.vstack([rows, more]), np.vstack([site, np.full((len(more), 1), SITE)])
        wanted = np.concatenate([wanted, np.tile(their_labels, len(theirs))])
        weights = np.concatenate([weights, np.full(len(more), weight)])
    model = LogisticRegression(C=strength, max_iter=300)
    model.fit(np.hstack([rows, site]), wanted, sample_weight=weights)
    kernel = model.coef_[0, :-1] / scaler.scale_
    bias = float(model.intercept_[0] - kernel @ scaler.mean_)
    return kernel, bias, bias + SITE * float(model.coef_[0, -1])


def train_collection_exit(bench: Bench, seed: int, *, lungs_only: bool = True) -> keras.Model:
    """Fine-tune the end of the network on the own training images as they are.

    Returns
    -------
    keras.Model
        `two_exits.cut_features` → logit. Its layers are those of ``bench.parts``: the next training
        of a bench changes them.
    """
    set_seed(seed)
    network = bench.collection_network(lungs_only=lungs_only)
    fit_network(network, bench.settings, seed, bench.maps(bench.train), bench.train.labels)
    return network


def fit_network(
    network: keras.Model,
    settings: Settings,
    seed: int,
    maps: np.ndarray,
    labels: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    epochs: int | None = None,
) -> None:
    """Fine-tune a network of `Bench.collection_network`, in place.

    Parameters
    ----------
    network : keras.Model
        Maps → K logits.
    settings : Settings
    seed : int
        Of the order of the images.
    maps : np.ndarray, float16 (N, h, w, C + 1)
        From `Bench.maps`.
    labels : np.ndarray, (N,) or (N, K), in [0, 1]
    weights : np.ndarray, (N,), optional
        Of the images in the loss; 1 by default.
    epochs : int, optional
        Those of the settings by default.
    """
    targets = np.reshape(labels, (len(labels), -1)).astype(np.float32)
    arrays = [maps, targets] if weights is None else [maps, targets, weights.astype(np.float32)]
    batches = (
        tf.data.Dataset.range(len(targets))
        .shuffle(len(targets), seed=seed, reshuffle_each_iteration=True)
        .batch(settings.batch_size)
        .map(partial(_gathered, [tf.constant(array) for array in arrays]))
        .prefetch(2)
    )
    fit(
        network,
        batches,
        learning_rate=settings.learning_rate,
        epochs=epochs or settings.epochs,
        progress="collection exit",
        optimizer=partial(keras.optimizers.AdamW, weight_decay=settings.weight_decay),
        loss=partial(keras.losses.BinaryCrossentropy, label_smoothing=settings.label_smoothing),
    )
    round_kernels(network)


def _gathered(arrays, rows):
    return tuple(tf.cast(tf.gather(array, rows), tf.float32) for array in arrays)


# ---- methods ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Outcome:
    """Logits of the own validation images and of the other collection's images."""

    method: str
    uses: str
    own: np.ndarray
    target: np.ndarray


def centred(method: str, own: np.ndarray, target: np.ndarray) -> Iterator[Outcome]:
    """A method as it is, and with the mean logit of the unlabelled target images moved to 0."""
    yield Outcome(method, NONE, own, target)
    yield Outcome(method, UNLABELLED, own, target - target.mean())


def input_outcomes(bench: Bench) -> Iterator[Outcome]:
    """Linear models of frozen features, for each of `INPUTS` and two ways to average."""
    for name in INPUTS:
        found = [bench.shown(images, name) for images in (bench.train, bench.val, bench.target)]
        yield from frozen_outcomes(name, bench, *found)


def frozen_outcomes(
    name: str, bench: Bench, train: np.ndarray, val: np.ndarray, target: np.ndarray
) -> Iterator[Outcome]:
    """Linear models of frozen features (N, 2 C), averaged over the lungs and over the image."""
    middle = train.shape[1] // 2
    for where, part in (("lungs", slice(middle)), ("image", slice(middle, None))):
        own, theirs = _linear([train[:, part]], bench, val[:, part], target[:, part])
        yield from centred(f"frozen features, {name}, averaged over the {where}", own, theirs)


def exit_outcomes(bench: Bench, seed: int) -> Iterator[Outcome]:
    """The exits, alone and together, without labels of the other collection."""
    copies, val, target = lung_features(bench, seed)
    robust = _linear(copies, bench, val, target)
    yield from centred(ROBUST, *robust)
    network = train_collection_exit(bench, seed, lungs_only=False)
    fine_tuned = [logits(network, bench.maps(images)) for images in (bench.val, bench.target)]
    yield from centred(REFERENCE, *fine_tuned)
    network = train_collection_exit(bench, seed)
    collection = [logits(network, bench.maps(images)) for images in (bench.val, bench.target)]
    yield from centred("collection exit", *collection)
    for share in bench.settings.shares:
        yield from centred(two_exits_name(share), *together(robust, collection, share))
    yield from labelled_outcomes(bench, seed, collection)


def labelled_outcomes(bench: Bench, seed: int, collection: list[np.ndarray]) -> Iterator[Outcome]:
    """Methods with labels of the other collection, cross-validated over its images."""
    copies, val, target = lung_features(bench, seed)
    theirs = [half[:, : target.shape[1]] for half in bench.copies(bench.target, seed)]
    labels, settings = bench.target.labels, bench.settings
    found: dict[str, Outcome] = {}

    def score(method: str, held: np.ndarray, own: np.ndarray, scores: np.ndarray) -> None:
        one = found.setdefault(
            method, Outcome(method, LABELLED, np.zeros(len(val)), np.zeros(len(target)))
        )
        one.own[:] += own / FOLDS
        one.target[held] = scores[held]

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for learned, held in folds.split(target, labels):
        part, answers = [copy[learned] for copy in theirs], labels[learned]
        kernel, bias, _ = linear_exit(part, answers, settings.strength)
        score("last layer retrained", held, val @ kernel + bias, target @ kernel + bias)
        both = part, answers, settings.labelled_weight
        kernel, bias, their_bias = linear_exit(copies, bench.train.labels, settings.strength, both)
        robust = val @ kernel + bias, target @ kernel + their_bias
        score(ROBUST, held, *robust)
        for share in settings.shares:
            own, scores = together(robust, collection, share)
            shift = intercept(scores[learned], answers)
            score(two_exits_name(share), held, own, scores + shift)
    yield from found.values()


def two_exits_name(share: float) -> str:
    """Name of the method with this weight of the collection exit."""
    return f"two exits, share {share:g}"


def intercept(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return what to add to scores (N,) so that 0 is where logistic regression puts one half."""
    model = LogisticRegression(C=1e6).fit(scores[:, None], labels)
    return float(model.intercept_[0] / model.coef_[0, 0])


def lung_features(bench: Bench, seed: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Features averaged over the lungs: of the training copies, validation and target images."""
    copies = bench.copies(bench.train, seed)
    part = slice(copies[0].shape[1] // 2)
    others = [bench.pooled(images)[:, part] for images in (bench.val, bench.target)]
    return [copy[:, part] for copy in copies], *others


def _linear(copies, bench: Bench, val: np.ndarray, target: np.ndarray):
    kernel, bias, _ = linear_exit(copies, bench.train.labels, bench.settings.strength)
    return val @ kernel + bias, target @ kernel + bias


def together(robust, collection, share: float) -> list[np.ndarray]:
    """Own and target logits of both exits together, each scaled on the own validation images."""
    pairs = zip(robust, collection, strict=True)
    scale = robust[0].std(), collection[0].std()
    return [added(a / scale[0], b / scale[1], share) for a, b in pairs]
