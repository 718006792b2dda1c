"""The range of values that a network was trained on: stated by the user, or found and reported.

A network trained on grey values 0..1 gives confident nonsense for 0..255, without any error. Four
sources decide, in this order: preprocessing in the network; the class folders of labelled images;
the statistics of its batch normalisation; the plausibility of its scores. Where several ranges
remain possible, nothing is explained.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers, ops

from covid_lab.explain.network import graph_nodes, operation_of, place

_MEAN, _DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
_CAFFE_MEAN = np.array([103.939, 116.779, 123.68])  # blue, green, red
# Scale and offset of each channel, from values 0..255; as in `keras.applications.imagenet_utils`.
_CONVERSIONS = {
    "0..255": (1.0, 0.0),
    "0..1": (1 / 255, 0.0),
    "-1..1": (1 / 127.5, -1.0),
    "imagenet": (1 / (255 * _DEVIATION), -_MEAN / _DEVIATION),
    "caffe": (np.ones(3), -_CAFFE_MEAN),  # after the order of the channels is reversed
}
RANGES = tuple(_CONVERSIONS)
# Usual inputs of layers with weights: 0..1, -1..1, and standardised colours.
_USUAL = ((0.0, 1.0), (-1.0, 1.0), (-2.12, 2.64))
_NEAR, _FARTHEST, _CAFFE_FARTHEST = 1.5, 3.0, 25.0  # largest distances from the usual ranges
_CAFFE = (-123.68, 151.06)
LABELLED = 8  # images in class folders that are enough for their labels to decide
_LOWEST, _HIGHEST = 0.1, 30.0  # plausible scores: their spread over images, and their size
_WORST_PROBABILITY = 0.01  # bounds the loss of one image
_OVERFLOW = 1e6  # replaces an infinite score


@dataclass(frozen=True)
class InputRange:
    """The range of values that a network takes, and how it is known.

    Attributes
    ----------
    name : str
        One of `RANGES`.
    reason : str
        Why this range was chosen, in words.
    certain : bool
        Whether the range is certain or a guess.
    """

    name: str
    reason: str
    certain: bool = True


def conversion(name: str, channels: int) -> Callable | None:
    """Return the layer that converts images of 0..255 to a range, for the front of a network.

    Parameters
    ----------
    name : str
        One of `RANGES`.
    channels : int
        Channels of the network's images.

    Returns
    -------
    callable or None
        Function of a Keras tensor; None for 0..255.

    Raises
    ------
    ValueError
        The range is unknown, or is defined for colours and the network takes one channel.
    """
    if name not in _CONVERSIONS:
        raise ValueError(f"unknown input range {name!r}; allowed: {', '.join(RANGES)}")
    scale, offset = _CONVERSIONS[name]
    if np.ndim(scale) and channels != len(scale):
        raise ValueError(
            f"input range {name!r} has a mean for each of 3 colours, and the network takes "
            f"{channels} channel(s): give 0..1, 0..255 or -1..1"
        )
    if name == "0..255":
        return None
    rescale = layers.Rescaling(np.asarray(scale).tolist(), np.asarray(offset).tolist())
    return (lambda x: rescale(ops.flip(x, axis=-1))) if name == "caffe" else rescale


def find_input_range(
    network: keras.Model, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
) -> InputRange:
    """Find the range that a network was trained on.

    Parameters
    ----------
    network : keras.Model
        Flat network with its original input, ending in scores (see `outputs.scored`).
    images : np.ndarray, (N, H, W, C), uint8, 0..255
        One image or more.
    labels : np.ndarray, (N,), int
        The class of each image; -1 where it is unknown.
    classes : tuple of str
        Names of the classes, for messages.

    Returns
    -------
    InputRange
        The range, with the reason.

    Raises
    ------
    ValueError
        The range cannot be determined; the message reports the predictions for each range.

    Examples
    --------
    >>> model = keras.saving.load_model("model.keras", compile=False)
    >>> images = np.zeros((1, 32, 32, 1), np.uint8)
    >>> find_input_range(model, images, np.array([0]), ("NORMAL", "COVID")).name
    '0..255'
    """
    if found := _from_graph(network, images):
        return found
    names = _possible(images)
    scores = {name: _scores(network, images, name) for name in names}
    found = (
        _from_labels(scores, labels)
        or _from_normalization(network, images, names)
        or _from_scores(scores)
    )
    if found is None:
        given = "; ".join(f"{name}: {_summary(scores[name], classes)}" for name in names)
        raise ValueError(
            "the range of values that the network was trained on cannot be determined: it has no "
            "preprocessing inside, and neither class folders nor its scores decide. Give "
            f"--input-range ({', '.join(RANGES)}). Each would give: {given}"
        )
    return found


def contradiction(network: keras.Model, images: np.ndarray, labels: np.ndarray, name: str) -> str:
    """Say what contradicts a stated range: preprocessing in the network, or the class folders.

    Parameters
    ----------
    network, images, labels : as for `find_input_range`
    name : str
        The stated range, one of `RANGES`.

    Returns
    -------
    str
        A warning; "" where nothing contradicts the range.
    """
    found = _from_graph(network, images) or _from_labels(
        {other: _scores(network, images, other) for other in _possible(images)}, labels
    )
    if found is None or found.name == name or not found.certain:
        return ""
    return f"--input-range is {name}, but {found.reason}, which points to {found.name}"


def _possible(images: np.ndarray) -> list[str]:
    channels = images.shape[-1]
    return [name for name, (scale, _) in _CONVERSIONS.items() if np.size(scale) in (1, channels)]


def _converted(images: np.ndarray, name: str) -> np.ndarray:
    scale, offset = _CONVERSIONS[name]
    values = images[..., ::-1] if name == "caffe" else images
    return (values * scale + offset).astype(np.float32)


def _scores(network: keras.Model, images: np.ndarray, name: str) -> np.ndarray:
    """Scores (N, K) of images converted to a range."""
    values = _run(network, images, name).astype(np.float64)
    return np.nan_to_num(values, nan=0.0, posinf=_OVERFLOW, neginf=-_OVERFLOW)


def _run(network: keras.Model, images: np.ndarray, name: str) -> np.ndarray:
    """Outputs of a network for images converted to a range, in small batches to bound memory."""
    parts = [
        ops.convert_to_numpy(network(_converted(images[first : first + 16], name), training=False))
        for first in range(0, len(images), 16)
    ]
    return np.concatenate(parts).astype(np.float32)


# ---- preprocessing in the network ---------------------------------------------------------------


def _from_graph(network: keras.Model, images: np.ndarray) -> InputRange | None:
    """The range that the network's preprocessing layers convert to one of the usual ranges."""
    inputs, changed, names = _before_weights(network)
    if changed is None:
        return None
    prefix = keras.Model(inputs, changed)
    random = np.random.default_rng(0)
    probes = np.stack([
        random.integers(0, 256, images.shape[1:]), np.zeros(images.shape[1:]),
        np.full(images.shape[1:], 255),
    ])  # fmt: skip
    seen = {name: _run(prefix, probes, name) for name in _possible(images)}
    layers_named = f"{', '.join(names)} in the network"
    if np.allclose(seen["0..255"][:1], seen["0..1"][:1], atol=0.05):
        return InputRange("0..255", f"{layers_named} normalises each image by itself")
    raw = seen["0..255"]
    if np.allclose([raw.min(), raw.max()], [0, 255], atol=1e-3):
        return None  # nothing that changes the range
    ends = {name: (values.min(), values.max()) for name, values in seen.items()}
    if _distance(ends["0..255"], _CAFFE) < _CAFFE_FARTHEST:
        return InputRange("0..255", f"{layers_named} subtracts a mean from values of 0..255")
    far = {name: min(_distance(end, usual) for usual in _USUAL) for name, end in ends.items()}
    # Only a conversion brings 0..255 near the usual range, whatever it does to smaller values.
    best = "0..255" if far["0..255"] < _NEAR else min(far, key=far.get)
    if far[best] > _FARTHEST:
        return None
    low, high = ends[best]
    return InputRange(best, f"{layers_named} takes {best} to {low:.3g}..{high:.3g}")


def _distance(ends: tuple[float, float], usual: tuple[float, float]) -> float:
    return max(abs(ends[0] - usual[0]), abs(ends[1] - usual[1]))


def _before_weights(network: keras.Model) -> tuple:
    """Input, what the first layer with weights receives, and the names of the layers before it.

    Normalisation counts as preprocessing. The second is None where that layer receives the image.
    """
    image = network.inputs[0]
    reached, names = {id(image)}, []
    for node in graph_nodes(network):
        if node.is_input or not all(id(tensor) in reached for tensor in node.input_tensors):
            continue
        if _learns_features(operation_of(node)):
            first = node.input_tensors[0]
            return (image, None, []) if first is image else (image, first, names)
        reached.update(id(tensor) for tensor in node.outputs)
        names.append(place(node))
    return image, None, []


def _learns_features(layer: keras.Operation) -> bool:
    """Whether a layer has weights and is not a normalisation, which counts as preprocessing."""
    if isinstance(layer, layers.BatchNormalization):
        return not _is_trained(layer)
    is_layer = isinstance(layer, layers.Layer) and not isinstance(layer, layers.Normalization)
    return is_layer and bool(layer.weights)


# ---- labels, batch normalisation, scores --------------------------------------------------------


def _from_labels(scores: dict[str, np.ndarray], labels: np.ndarray) -> InputRange | None:
    """The range with the smallest loss; a guess where others are about as good.

    None where that loss is not below chance.
    """
    known = labels >= 0
    if known.sum() < LABELLED or len(np.unique(labels[known])) < 2:
        return None
    losses, right = {}, {}
    for name, values in scores.items():
        values = np.hstack([np.zeros_like(values), values]) if values.shape[1] == 1 else values
        values = values[known] - values[known].max(axis=1, keepdims=True)
        probabilities = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
        own = probabilities[np.arange(known.sum()), labels[known]]
        losses[name] = -np.log(np.clip(own, _WORST_PROBABILITY, 1 - _WORST_PROBABILITY))
        right[name] = (values.argmax(axis=1) == labels[known]).mean()
    best = min(losses, key=lambda name: losses[name].mean())
    chance = np.log(values.shape[1])
    rivals = [n for n, loss in losses.items() if n != best and not _is_above(loss, losses[best])]
    if losses[best].mean() >= chance or (rivals and not _is_above(chance, losses[best])):
        return None
    others = ", ".join(f"{name}: {part:.2f}" for name, part in right.items() if name != best)
    return InputRange(
        best,
        f"the class folders of {known.sum()} images: {right[best]:.2f} are right ({others})",
        certain=not rivals,
    )


def _is_above(losses: np.ndarray | float, others: np.ndarray) -> bool:
    """Whether the mean difference of paired losses is above 0 by two standard errors."""
    difference = losses - others
    return bool(difference.mean() > 2 * difference.std(ddof=1) / np.sqrt(len(difference)))


def _is_trained(layer: layers.BatchNormalization) -> bool:
    mean, variance = (ops.convert_to_numpy(x) for x in (layer.moving_mean, layer.moving_variance))
    return bool(np.any(mean != 0) or np.any(variance != 1))


def _from_normalization(
    network: keras.Model, images: np.ndarray, names: list[str]
) -> InputRange | None:
    """The range whose features fit the statistics of the first batch normalisation best."""
    for node in graph_nodes(network):
        layer = operation_of(node)
        if isinstance(layer, layers.BatchNormalization):
            break
    else:
        return None
    if not _is_trained(layer) or node.input_tensors[0] is network.inputs[0]:
        return None
    before = keras.Model(network.inputs, node.input_tensors[0])
    mean, variance = (
        ops.convert_to_numpy(x).astype(np.float64) + epsilon
        for x, epsilon in ((layer.moving_mean, 0), (layer.moving_variance, layer.epsilon))
    )
    far = {}
    for name in names:
        values = _run(before, images, name)
        values = values.reshape(-1, values.shape[-1]).astype(np.float64)
        # Kullback–Leibler divergence of two normal distributions, in each channel.
        spread = (values.var(axis=0) + layer.epsilon) / variance
        shift = (values.mean(axis=0) - mean) ** 2 / variance
        far[name] = np.median(spread + shift - 1 - np.log(spread)) / 2
    best, second = sorted(far, key=far.get)[:2]
    if far[best] > 2 or far[second] < 2 * far[best] + 0.5:
        return None
    return InputRange(
        best, f"the statistics of the batch normalisation {place(node)} fit it best", certain=False
    )


def _from_scores(scores: dict[str, np.ndarray]) -> InputRange | None:
    """The only range with plausible scores; None where there are several or none."""
    plausible = [name for name, values in scores.items() if _is_plausible(values)]
    if len(plausible) != 1:
        return None
    return InputRange(plausible[0], "it is the only range with plausible scores", certain=False)


def _is_plausible(scores: np.ndarray) -> bool:
    size = np.abs(scores) if scores.shape[1] == 1 else np.ptp(scores, axis=1)
    varies = len(scores) < 4 or scores.std(axis=0).max() >= _LOWEST
    return bool(varies and np.median(size) <= _HIGHEST)


def _summary(scores: np.ndarray, classes: tuple[str, ...]) -> str:
    predicted = scores.argmax(axis=1) if scores.shape[1] > 1 else (scores[:, 0] > 0).astype(int)
    counts = ", ".join(
        f"{(predicted == number).sum()} {name}" for number, name in enumerate(classes)
    )
    return f"{counts}, scores {scores.min():.3g} to {scores.max():.3g}"
