"""Ways to fine-tune that should keep a network from learning its collection instead of the disease.

Each of `TRAINING` fine-tunes the end of the network, as the reference of
`covid_lab.external.methods` does, and differs from it in one thing: what the images show, how they
are augmented, what the loss requires, or how images of the target are used. The target is the
other collection.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import keras
import numpy as np
from keras import layers
from sklearn.utils.class_weight import compute_sample_weight

from covid_lab.external.bench import Bench, Images
from covid_lab.external.controls import border_scores
from covid_lab.external.inputs import INPUTS
from covid_lab.external.methods import (
    FOLDS,
    LABELLED,
    UNLABELLED,
    Outcome,
    centred,
    fit_network,
    frozen_outcomes,
    labelled_folds,
    linear_exit,
    train_collection_exit,
)
from covid_lab.external.styles import Styles, match_histogram, mix_boxes
from covid_lab.lungs import segment_lungs
from covid_lab.masks import border
from covid_project.files import fingerprint
from covid_project.models import logits, outputs
from covid_project.training import set_seed

COPIES = 4  # augmented versions of each training image; the images themselves are left out
LONGER = 2  # times as many steps with augmentation
TEMPLATE_STEP = 8  # every eighth pixel of each row and column of the training images
BATCH = 64  # of the images whose BatchNormalization statistics are averaged
HIDDEN = 64  # units of the adversary
REVERSED = 0.3  # strength of its gradient; with 1 the network collapses
STRONG = Styles(  # intensity, geometry, blur, noise and JPEG, and nothing of other images
    histogram=0, spectrum=0, gamma=0.7, contrast=0.4, brightness=40, rotation=12, zoom=0.35,
    stretch=0.12, shift=0.12, blur=0.6, noise=0.7, jpeg=0.9,
)  # fmt: skip


def _named(what: str, *, lungs_only: bool = False) -> str:
    """Name of a method in the tables: what distinguishes it, and where features are averaged."""
    return f"fine-tuned, {what}, averaged over the {'lungs' if lungs_only else 'image'}"


# ---- other inputs -------------------------------------------------------------------------------


def template_outcomes(bench: Bench) -> Iterator[Outcome]:
    """Score linear models of frozen features of images that are matched to one template.

    Parameters
    ----------
    bench : Bench
        Images and network.

    Returns
    -------
    iterator of Outcome
        See `frozen_outcomes`.
    """
    found = [bench.pooled(images) for images in _matched(bench)]
    return frozen_outcomes("one template", bench, *found)


def _one_template(bench: Bench, seed: int) -> Iterator[Outcome]:
    """Give all images the same histogram: that of all own training images together."""
    train, val, target = _matched(bench)
    return _fine_tuned("one template", bench, seed, [train], val=val, target=target)


def _matched(bench: Bench) -> list[Images]:
    template = bench.train.pixels[:, ::TEMPLATE_STEP, ::TEMPLATE_STEP]

    def match(image):
        return np.uint8(np.rint(match_histogram(image, template)))

    return [
        _changed(images, map(match, images.pixels), f"template {bench.train.fingerprint}")
        for images in (bench.train, bench.val, bench.target)
    ]


def _changed_input(name: str, bench: Bench, seed: int) -> Iterator[Outcome]:
    """Change all images by one of `INPUTS`."""
    train, val, target = (
        _changed(images, map(INPUTS[name], images.pixels, segment_lungs(images.pixels)), name)
        for images in (bench.train, bench.val, bench.target)
    )
    return _fine_tuned(name, bench, seed, [train], val=val, target=target)


# ---- augmentation -------------------------------------------------------------------------------


def _strange_border(bench: Bench, seed: int) -> Iterator[Outcome]:
    """Replace the outer tenth of each training image by that of another one, of either class."""
    images, at_border = bench.train, border(len(bench.train.pixels[0]))
    copies = []
    for copy in range(COPIES):
        others = images.pixels[np.random.default_rng([seed, copy]).permutation(len(images.pixels))]
        pixels = np.where(at_border, others, images.pixels)
        copies.append(_changed(images, pixels, f"strange border {seed} {copy}"))
    return _fine_tuned("border of another image", bench, seed, copies)


def _cut_mix(bench: Bench, seed: int) -> Iterator[Outcome]:
    """Replace a box of each training image by that of another one, and mix the labels by area.

    CutMix (Yun et al. 2019, ICCV, eq. 1 and 2). The area of the box before clipping at the border
    is uniform in [0, 1].
    """
    copies, labels = [], []
    for copy in range(COPIES):
        rng = np.random.default_rng([seed, copy])
        pixels, mixed = mix_boxes(bench.train.pixels, bench.train.labels, rng)
        copies.append(_changed(bench.train, pixels, f"cut-mix {seed} {copy}"))
        labels.append(mixed)
    return _fine_tuned("cut-mix", bench, seed, copies, labels=np.concatenate(labels))


def _drawn_styles(
    name: str, styles: Styles, lungs_only: bool, bench: Bench, seed: int
) -> Iterator[Outcome]:
    """Change the style of the training images at random, see `restyle`."""
    copies = []
    for copy in range(1, COPIES + 1):
        pixels = bench.styled(bench.train, copy, seed, styles)
        copies.append(_changed(bench.train, pixels, f"{styles} {seed} {copy}"))
    return _fine_tuned(name, bench, seed, copies, lungs_only=lungs_only)


# ---- against the border's prediction ------------------------------------------------------------


def _balanced_groups(bench: Bench, seed: int) -> Iterator[Outcome]:
    """Balance images whose border predicts their class and images whose border misleads.

    The four groups are the pairs of class and predicted class. Weights are inversely proportional
    to their sizes (Idrissi et al. 2022, CLeaR).
    """
    labels = bench.train.labels
    groups = 2 * labels + (border_scores(bench.train.pixels, labels, seed) > 0)
    weights = compute_sample_weight("balanced", groups)
    return _fine_tuned("groups of the border balanced", bench, seed, [bench.train], weights=weights)


def _adversary(bench: Bench, seed: int) -> Iterator[Outcome]:
    """Train against a second head that predicts what the border of the image shows.

    Gradient reversal (Ganin & Lempitsky 2015, ICML) with constant strength. Within each class, the
    head predicts whether the score of the border is above the median of the class, which carries no
    information about the label.
    """
    images = bench.train
    scores = border_scores(images.pixels, images.labels, seed)
    medians = np.array([np.median(scores[images.labels == label]) for label in (0, 1)])
    wanted = np.stack([images.labels, scores > medians[images.labels]], axis=1)
    set_seed(seed)
    network = bench.collection_network(lungs_only=False)
    pooled = network.get_layer("logit").input
    hidden = layers.Dense(HIDDEN, "relu")(_reverse_gradient(pooled, REVERSED))
    both = layers.Concatenate()([network.output, layers.Dense(1)(hidden)])
    two_headed = keras.Model(network.input, both)
    fit_network(two_headed, bench.settings, seed, bench.maps(images), wanted)
    scores = [logits(network, bench.maps(images)) for images in (bench.val, bench.target)]
    return centred(_named("border adversary"), *scores)


def _reverse_gradient(inputs, strength: float):
    """Return the inputs unchanged; their gradient is multiplied by ``-strength``.

    The gradient reversal layer of Ganin & Lempitsky 2015, ICML.
    """
    return keras.ops.stop_gradient((1 + strength) * inputs) - strength * inputs


# ---- with images of the other collection --------------------------------------------------------


def _after_training(bench: Bench, seed: int) -> Iterator[Outcome]:
    """Change the reference after training: its BatchNormalization statistics, or its last layer.

    The statistics are those of the unlabelled target images, and apply to these images only (AdaBN,
    Li et al. 2016, arXiv:1603.04779). The last layer is retrained on labelled target images
    (Kirichenko et al. 2023, ICLR), with cross-validation.
    """
    network = train_collection_exit(bench, seed, lungs_only=False)
    val = logits(network, bench.maps(bench.val))
    target = _adapted_logits(bench, network, bench.target, seed)
    name = _named("BatchNorm statistics of the target")
    yield Outcome(name, UNLABELLED, val, target)
    yield Outcome(f"{name}, mean logit 0", UNLABELLED, val, target - target.mean())
    pooled = keras.Model(network.input, network.get_layer("logit").input)
    val, target = (outputs(pooled, bench.maps(images)) for images in (bench.val, bench.target))
    labels, own, theirs = bench.target.labels, np.zeros(len(val)), np.zeros(len(target))
    for learned, held in labelled_folds(labels, seed):
        kernel, bias, _ = linear_exit([target[learned]], labels[learned], bench.settings.strength)
        own += (val @ kernel + bias) / FOLDS
        theirs[held] = target[held] @ kernel + bias
    yield Outcome(_named("last layer retrained"), LABELLED, own, theirs)


def _adapted_logits(bench: Bench, network: keras.Model, images: Images, seed: int) -> np.ndarray:
    """Compute the logits of images with the BatchNormalization statistics of these images.

    The statistics of all layers are means over batches. The network itself does not change.
    """
    pooled = layers.GlobalAveragePooling2D()(bench.parts.deep)
    whole = keras.Model(bench.parts.images, network.get_layer("logit")(pooled))
    normal = [layer for layer in whole.layers if isinstance(layer, layers.BatchNormalization)]
    before, momentum = whole.get_weights(), [layer.momentum for layer in normal]
    pixels = np.float32(bench.small(images.pixels))
    order = np.random.default_rng(seed).permutation(len(pixels))
    for step, rows in enumerate(np.array_split(order, -(-len(order) // BATCH))):
        for layer in normal:
            layer.trainable, layer.momentum = True, step / (step + 1)  # the mean of all batches
        whole(pixels[rows], training=True)
    found = logits(whole, pixels)
    for layer, number in zip(normal, momentum, strict=True):
        layer.trainable, layer.momentum = False, number
    whole.set_weights(before)
    return found


def _two_sources(lungs_only: bool, bench: Bench, seed: int) -> Iterator[Outcome]:
    """Add labelled images of the target to the training images, with cross-validation."""
    settings, labels = bench.settings, bench.target.labels
    ours, theirs, val = (bench.maps(images) for images in (bench.train, bench.target, bench.val))
    own, target = np.zeros(len(val)), np.zeros(len(theirs))
    for learned, held in labelled_folds(labels, seed):
        set_seed(seed)
        network = bench.collection_network(lungs_only=lungs_only)
        maps = np.concatenate([ours, theirs[learned]])
        wanted = np.concatenate([bench.train.labels, labels[learned]])
        weights = np.where(np.arange(len(maps)) < len(ours), 1.0, settings.labelled_weight)
        fit_network(network, settings, seed, maps, wanted, weights=weights)
        own += logits(network, val) / FOLDS
        target[held] = logits(network, theirs[held])
    yield Outcome(_named("two sources", lungs_only=lungs_only), LABELLED, own, target)


# ---- what they share ----------------------------------------------------------------------------


def _changed(images: Images, pixels, change: str) -> Images:
    return Images(np.stack(list(pixels)), images.labels, fingerprint(images.fingerprint, change))


def _fine_tuned(
    what: str,
    bench: Bench,
    seed: int,
    copies: Sequence[Images],
    *,
    labels: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    val: Images | None = None,
    target: Images | None = None,
    lungs_only: bool = False,
) -> Iterator[Outcome]:
    """Fine-tune on changed training images, and score validation images of both collections."""
    set_seed(seed)
    network = bench.collection_network(lungs_only=lungs_only)
    maps = np.concatenate([bench.maps(copy) for copy in copies])
    if labels is None:
        labels = np.concatenate([copy.labels for copy in copies])
    steps = 1 if len(copies) == 1 else LONGER / len(copies)
    epochs = max(1, round(steps * bench.settings.epochs))
    fit_network(network, bench.settings, seed, maps, labels, weights=weights, epochs=epochs)
    sets = val or bench.val, target or bench.target
    scores = [logits(network, bench.maps(images)) for images in sets]
    return centred(_named(what, lungs_only=lungs_only), *scores)


# Stage in the table → function of bench and seed.
TRAINING: dict[str, Callable[[Bench, int], Iterator[Outcome]]] = {
    "one template": _one_template,
    **{f"input: {name}": partial(_changed_input, name) for name in INPUTS if name != "as it is"},
    "border of another image": _strange_border,
    "cut-mix": _cut_mix,
    "strong augmentation": partial(_drawn_styles, "strong augmentation", STRONG, False),
    "drawn styles": partial(_drawn_styles, "drawn styles", Styles(), False),
    "drawn styles, lungs": partial(_drawn_styles, "drawn styles", Styles(), True),
    "balanced groups": _balanced_groups,
    "adversary": _adversary,
    "after training": _after_training,
    "two sources": partial(_two_sources, False),
    "two sources, lungs": partial(_two_sources, True),
}
