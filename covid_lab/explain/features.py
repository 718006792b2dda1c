"""The features that a map is made of: which layers have them, and which is the last.

Features lie on a grid of places: the maps (N, height, width, channels) of a convolutional network,
or the tokens (N, tokens, channels) of a vision transformer, one for each patch of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from covid_lab.explain.network import flatten, graph_nodes, operation_of, place
from covid_lab.explain.outputs import has_activation

_MOST_EXTRA_TOKENS = 8  # class, distillation and register tokens beside those of the patches
_MOST_LISTED = 40  # names of layers in a message


@dataclass(frozen=True)
class Grid:
    """How tokens lie in the image: `height` by `width` patches, `before` other tokens first."""

    height: int
    width: int
    before: int

    def __call__(self, tokens: tf.Tensor) -> tf.Tensor:
        """Take the tokens of patches (N, T, K) to their places (N, height, width, K)."""
        patches = tokens[:, self.before : self.before + self.height * self.width]
        return tf.reshape(patches, (-1, self.height, self.width, tokens.shape[-1]))


def spatial_layers(model: keras.Model) -> list[str]:
    """Places of the layers with features on a grid, from input to output.

    A layer of a model inside the model is called ``outer/inner``.
    """
    return list(_spatial_nodes(flatten(model)))


def last_spatial_layer(model: keras.Model) -> str:
    """Place of the last layer whose output is a spatial feature map after its activation.

    That is an activation, a convolution with an activation of its own, or a place where branches
    meet, such as the end of a block of a transformer. Pooling, normalisation and dropout that
    follow are passed over: they blur or rescale the same features. Where the score is read from a
    class token alone, the tokens of the last block do not influence it: the last layer is then the
    last one whose patch tokens do, the output of the block before.

    Raises
    ------
    ValueError
        There is none; the message lists all spatial layers.
    """
    model = flatten(model)
    nodes = _spatial_nodes(model)
    candidates = [
        name
        for name, node in nodes.items()
        if has_activation(operation_of(node))
        or isinstance(operation_of(node), keras.Model)
        or len(set(node.input_tensors)) > 1
    ]
    if not candidates:
        raise ValueError(
            f"Model '{model.name}' has no spatial feature map that follows an activation. "
            f"Choose one of its spatial layers by name: {list(nodes)}."
        )
    grids = token_grids(model, candidates)
    if grids[-1] is not None and grids[-1].before:
        candidates = _that_matter(model, candidates, grids) or candidates
    return candidates[-1]


def features_and_logits(model: keras.Model, names: Sequence[str]) -> keras.Model:
    """Model with the outputs of the named spatial layers, then the given one's output.

    Outputs are (N, h, w, K), or tokens (N, T, K), which `token_grids` take to their places.

    Raises
    ------
    ValueError
        A layer that is unknown or not spatial; the message lists the candidates.
    """
    model = flatten(model)
    nodes = _named(model, names)
    return keras.Model(model.inputs, [*(node.outputs[0] for node in nodes), *model.outputs])


def token_grids(model: keras.Model, names: Sequence[str]) -> list[Grid | None]:
    """How the tokens of each named layer lie in the image; None for maps (N, h, w, K)."""
    model = flatten(model)
    nodes = graph_nodes(model)
    return [_grid(node, nodes) for node in _named(model, names)]


def is_bypassed(model: keras.Model, name: str) -> bool:
    """Whether the output depends on the image also by ways that avoid a layer."""
    model = flatten(model)
    (layer,) = _named(model, [name])
    reached = {id(model.inputs[0])}
    for node in graph_nodes(model):
        if node is not layer and any(id(tensor) in reached for tensor in node.input_tensors):
            reached.update(id(tensor) for tensor in node.outputs)
    return id(model.outputs[0]) in reached


def on_grid(features: tf.Tensor, grid: Grid | None) -> tf.Tensor:
    """Features, or their gradients, as float32 (N, h, w, K)."""
    features = tf.cast(features, tf.float32)
    return features if grid is None else grid(features)


def _named(model: keras.Model, names: Sequence[str]) -> list:
    spatial = _spatial_nodes(model)
    # A model inside is known by its name, too, and an inner layer by its own where that is clear.
    short = {}
    for path in spatial:
        outer, _, inner = path.rpartition("/")
        short.setdefault(inner, []).append(path)
        for depth in range(outer.count("/") + 1 if outer else 0):
            short["/".join(outer.split("/")[: depth + 1])] = [path]
    found = {name: [name] if name in spatial else short.get(name, []) for name in names}
    if unknown := [name for name, paths in found.items() if len(paths) != 1]:
        raise ValueError(
            f"Model '{model.name}' has no spatial layer named {unknown}; it has "
            f"{_candidates(list(spatial), unknown[0])}."
        )
    return [spatial[found[name][0]] for name in names]


def _candidates(names: list[str], wanted: str) -> str:
    """All names, or of many those that are like the wanted one, and the last ones."""
    if len(names) <= _MOST_LISTED:
        return str(names)
    inner = {name.rpartition("/")[2]: name for name in names}
    like = [inner[name] for name in get_close_matches(wanted.rpartition("/")[2], inner)]
    similar = f"names like it are {like}; " if like else ""
    return f"{len(names)}: {similar}the last are {names[-10:]}"


def _spatial_nodes(model: keras.Model) -> dict:
    """Place → call, for outputs on a grid with more than one place."""
    nodes = graph_nodes(model)
    return {
        place(node): node
        for node in nodes
        if not node.is_input
        and len(node.outputs) == 1
        and (_is_map(node.outputs[0]) or _grid(node, nodes) is not None)
    }


def _is_map(tensor: keras.KerasTensor) -> bool:
    return len(tensor.shape) == 4 and tensor.shape[1:3] != (1, 1)


def _grid(node, nodes: list) -> Grid | None:
    """The grid of a call whose output is tokens, from the last map of patches before it."""
    shape = node.outputs[0].shape
    if len(shape) != 3 or None in shape[1:]:
        return None
    maps, extra = None, 0
    for earlier in nodes:
        sides = earlier.outputs[0].shape[1:3]
        if not earlier.is_input and _is_map(earlier.outputs[0]) and None not in sides:
            maps, extra = sides, 0
        if maps and isinstance(operation_of(earlier), layers.Concatenate):
            lengths = [x.shape[1] for x in earlier.input_tensors if len(x.shape) == 3]
            if np.prod(maps) in lengths:
                extra = sum(lengths[: lengths.index(np.prod(maps))])
        if earlier is node:
            break
    if maps is None or not 0 <= shape[1] - np.prod(maps) <= _MOST_EXTRA_TOKENS:
        return None
    others = int(shape[1] - np.prod(maps))
    return Grid(*maps, min(extra, others) if extra else others)


def _that_matter(model: keras.Model, names: list[str], grids: list[Grid | None]) -> list[str]:
    """Those layers to whose places on the grid the output reacts, for images of noise."""
    network = features_and_logits(model, names)
    images = np.random.default_rng(0).uniform(0, 255, (2, *model.inputs[0].shape[1:]))
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        images = tf.constant(images, tf.float32)
        tape.watch([images, *(weight.value for weight in network.weights)])
        *features, logits = network(images, training=False)
    gradients = tape.gradient(logits, features)
    return [
        name
        for name, grid, gradient in zip(names, grids, gradients, strict=True)
        if gradient is not None and tf.reduce_any(on_grid(gradient, grid) != 0)
    ]
