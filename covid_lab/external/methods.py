"""Methods that narrow the gap to another collection: linear models, and networks with exits.

A method uses nothing of the target ("none"), its images without labels ("unlabelled": the mean
logit is moved to 0), or its images with labels ("labelled": five-fold cross-validation over them,
so that no image is scored by a model that has seen its label).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from covid_lab.external.bench import Bench, Settings
from covid_lab.external.inputs import INPUTS
from covid_lab.external.two_exits import added, round_kernels
from covid_lab.training import fit
from covid_project.models import logits
from covid_project.training import set_seed

SITE = 30.0  # value of the covariate that gives each collection an intercept of its own
FOLDS = 5  # of the cross-validation over labelled images of the other collection
NONE, UNLABELLED, LABELLED = "none", "unlabelled", "labelled"
REFERENCE, ROBUST = "fine-tuned, averaged over the image", "robust exit"

# ---- the exits ----------------------------------------------------------------------------------


def linear_exit(
    copies: list[np.ndarray],
    labels: np.ndarray,
    strength: float,
    target: tuple[list[np.ndarray], np.ndarray, float] | None = None,
) -> tuple[np.ndarray, float, float]:
    """Fit a logistic regression to the features of images and of their copies.

    Features are standardised, and the kernel has an L2 penalty. With a target, a covariate that is
    constant in its images gives the target an intercept of its own.

    Parameters
    ----------
    copies : list of np.ndarray, float (N, C)
        Features of the images, and of each of their restyled copies.
    labels : np.ndarray, int (N,), 0 or 1
        Labels of the images.
    strength : float, > 0
        Inverse C of the L2 penalty.
    target : tuple of list of np.ndarray (M, C), np.ndarray (M,) and float, optional
        Features and labels of labelled images of another collection, as above, and the weight of
        each image. The collections share the kernel and have separate intercepts: prevalence and
        exposure may differ between them, the appearance of the disease should not.

    Returns
    -------
    kernel : np.ndarray, float (C,)
        Coefficients of the features as they are given, not standardised.
    bias : float
        Intercept of the own collection.
    target_bias : float
        Intercept of the other collection; equal to ``bias`` without one.
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
    """Fine-tune the end of the network on the own training images, without augmentation.

    Parameters
    ----------
    bench : Bench
        Images and network.
    seed : int, from 0
        Seed of the initial weights, of dropout and of the order of the images.
    lungs_only : bool
        Whether features are averaged over the lungs (True) or over the whole image (False).

    Returns
    -------
    keras.Model
        Maps of `two_exits.cut_features` → logit (N, 1). Its layers belong to ``bench.parts``: the
        next training with the same bench changes them.
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

    AdamW minimises the binary cross-entropy with label smoothing. The kernels of the convolutions
    are rounded at the end, see `two_exits.round_kernels`.

    Parameters
    ----------
    network : keras.Model
        Maps (N, h, w, C + 1) → K logits.
    settings : Settings
        Settings of the optimiser and the loss.
    seed : int, from 0
        Seed of the order of the images.
    maps : np.ndarray, float16 (N, h, w, C + 1)
        From `Bench.maps`.
    labels : np.ndarray, (N,) or (N, K), in [0, 1]
        Targets of the K logits.
    weights : np.ndarray, float (N,), from 0, optional
        Weights of the images in the loss; 1 by default.
    epochs : int, from 1, optional
        Number of epochs; that of the settings by default.
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
    """Scores of one method on the images of both collections.

    Attributes
    ----------
    method : str
        Name of the method in the tables.
    uses : str
        What the method uses of the target: "none", "unlabelled" or "labelled".
    own : np.ndarray, float (N,)
        Logits of the own validation images.
    target : np.ndarray, float (M,)
        Logits of the target images.
    """

    method: str
    uses: str
    own: np.ndarray
    target: np.ndarray


def centred(method: str, own: np.ndarray, target: np.ndarray) -> Iterator[Outcome]:
    """Give the scores of a method as they are, and with the mean logit of the target moved to 0.

    Parameters
    ----------
    method : str
        Name of the method.
    own : np.ndarray, float (N,)
        Logits of the own validation images.
    target : np.ndarray, float (M,)
        Logits of the target images.

    Yields
    ------
    Outcome
        First without images of the target, then with its unlabelled images.
    """
    yield Outcome(method, NONE, own, target)
    yield Outcome(method, UNLABELLED, own, target - target.mean())


def input_outcomes(bench: Bench) -> Iterator[Outcome]:
    """Score linear models of frozen features, for each of `INPUTS` and both ways to average.

    Parameters
    ----------
    bench : Bench
        Images and network.

    Yields
    ------
    Outcome
        Four per input: two averages, each with and without the mean logit of the target moved to 0.
    """
    for name in INPUTS:
        found = [bench.shown(images, name) for images in (bench.train, bench.val, bench.target)]
        yield from frozen_outcomes(name, bench, *found)


def frozen_outcomes(
    name: str, bench: Bench, train: np.ndarray, val: np.ndarray, target: np.ndarray
) -> Iterator[Outcome]:
    """Score linear models of frozen features, averaged over the lungs and over the image.

    Parameters
    ----------
    name : str
        What the images show, for the name of the method.
    bench : Bench
        Labels of the training images, and settings.
    train : np.ndarray, float (N, 2 C)
        Features of the training images, as `Bench.pooled` returns them.
    val : np.ndarray, float (V, 2 C)
        Features of the own validation images.
    target : np.ndarray, float (M, 2 C)
        Features of the target images.

    Yields
    ------
    Outcome
        Two per average, see `centred`.
    """
    middle = train.shape[1] // 2
    for where, part in (("lungs", slice(middle)), ("image", slice(middle, None))):
        own, theirs = _linear([train[:, part]], bench, val[:, part], target[:, part])
        yield from centred(f"frozen features, {name}, averaged over the {where}", own, theirs)


def exit_outcomes(bench: Bench, seed: int) -> Iterator[Outcome]:
    """Score the exits, separately and together.

    Parameters
    ----------
    bench : Bench
        Images and network.
    seed : int, from 0
        Seed of styles, fine-tuning and folds.

    Yields
    ------
    Outcome
        The robust exit, the fine-tuned reference, the collection exit, and both exits with each
        weight of the settings, see `centred`; then those of `_labelled_outcomes`.
    """
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
    yield from _labelled_outcomes(bench, seed, collection)


def _labelled_outcomes(bench: Bench, seed: int, collection: list[np.ndarray]) -> Iterator[Outcome]:
    """Score methods that use labels of the target, with cross-validation over its images.

    The last layer retrained on the target, the robust exit, and both exits with each weight. Own
    logits are means over the folds; target logits come from the fold that holds the image out.
    """
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

    for learned, held in labelled_folds(labels, seed):
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


def labelled_folds(labels: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Divide the labelled images of the target for cross-validation.

    Parameters
    ----------
    labels : np.ndarray, int (M,), 0 or 1
        Labels of the target images.
    seed : int, from 0
        Seed of the division.

    Returns
    -------
    iterator of tuple of np.ndarray, int
        Rows to learn from and rows to score, `FOLDS` times.
    """
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    return folds.split(np.zeros(len(labels)), labels)


def two_exits_name(share: float) -> str:
    """Name the network with two exits in the tables.

    Parameters
    ----------
    share : float, in [0, 1]
        Weight of the collection exit.

    Returns
    -------
    str
        Such as "two exits, share 0.3".
    """
    return f"two exits, share {share:g}"


def intercept(scores: np.ndarray, labels: np.ndarray) -> float:
    """Compute what to add to scores to move the threshold of logistic regression to 0.

    A logistic regression a · score + b of the labels is one half at score −b/a; adding b/a moves
    this score to 0.

    Parameters
    ----------
    scores : np.ndarray, float (N,)
        Logits.
    labels : np.ndarray, int (N,), 0 or 1
        Labels, of both classes.

    Returns
    -------
    float
        b/a.
    """
    model = LogisticRegression(C=1e6).fit(scores[:, None], labels)
    return float(model.intercept_[0] / model.coef_[0, 0])


def lung_features(bench: Bench, seed: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Compute the features averaged over the lungs of all images of a bench.

    Parameters
    ----------
    bench : Bench
        Images and network.
    seed : int, from 0
        Seed of the styles.

    Returns
    -------
    copies : list of np.ndarray, float32 (N, C)
        Features of the training images and of each of their restyled copies.
    val : np.ndarray, float32 (V, C)
        Features of the own validation images.
    target : np.ndarray, float32 (M, C)
        Features of the target images.
    """
    copies = bench.copies(bench.train, seed)
    part = slice(copies[0].shape[1] // 2)
    others = [bench.pooled(images)[:, part] for images in (bench.val, bench.target)]
    return [copy[:, part] for copy in copies], *others


def _linear(copies, bench: Bench, val: np.ndarray, target: np.ndarray):
    kernel, bias, _ = linear_exit(copies, bench.train.labels, bench.settings.strength)
    return val @ kernel + bias, target @ kernel + bias


def together(robust, collection, share: float) -> list[np.ndarray]:
    """Add the logits of both exits, scaled on the own validation images, see `two_exits.added`.

    Parameters
    ----------
    robust : sequence of np.ndarray, float (N,) and (M,)
        Logits of the robust exit for the own validation images and for the target images.
    collection : sequence of np.ndarray, float (N,) and (M,)
        The same of the collection exit.
    share : float, in [0, 1]
        Weight of the collection exit.

    Returns
    -------
    list of np.ndarray, float (N,) and (M,)
        Sums for the own validation images and for the target images.
    """
    pairs = zip(robust, collection, strict=True)
    scale = robust[0].std(), collection[0].std()
    return [added(a / scale[0], b / scale[1], share) for a, b in pairs]
