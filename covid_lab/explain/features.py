"""The features that a map is made of: which layers have them, and which of these is the last.

Features are on a spatial grid: the maps (N, height, width, channels) of a convolutional network, or
the tokens (N, tokens, channels) of a vision transformer, one for each patch of the image.
"""

from collections.abc import Sequence
from difflib import get_close_matches

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from covid_lab.explain.network import flatten, graph_nodes, operation_of, place
from covid_lab.explain.outputs import has_activation

_MOST_EXTRA_TOKENS = 8  # class, distillation and register tokens beside those of the patches
_MOST_LISTED = 40  # names of layers in a message


# Rows and columns of a transformer's patches, and the number of tokens before them, such as a class
# token; None for a layer whose output is maps (N, h, w, K).
Grid = tuple[int, int, int] | None


def spatial_layers(model: keras.Model) -> list[str]:
    """List the layers with features on a grid, from input to output.

    Parameters
    ----------
    model : keras.Model
        Functional or sequential model.

    Returns
    -------
    list of str
        Places of the layers. A layer of a nested model is called ``outer/inner``.

    Examples
    --------
    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((8, 8, 1)),
    ...         keras.layers.Conv2D(2, 3, activation="relu", name="features"),
    ...         keras.layers.MaxPooling2D(name="pool"),
    ...         keras.layers.Flatten(),
    ...         keras.layers.Dense(1),
    ...     ]
    ... )
    >>> spatial_layers(model)
    ['features', 'pool']
    >>> last_spatial_layer(model)
    'features'
    """
    return list(_spatial_nodes(flatten(model)))


def last_spatial_layer(model: keras.Model) -> str:
    """Find the last layer whose output is a spatial feature map after its activation.

    This is an activation, a convolution with its own activation, or a layer that merges branches,
    such as the end of a transformer block. Pooling, normalisation and dropout after it are ignored,
    because they blur or rescale the same features. Where the score is read only from a class token,
    it does not depend on the other tokens of the last block. The result is then the last layer
    whose patch tokens the score depends on: the output of the block before.

    Parameters
    ----------
    model : keras.Model
        Functional or sequential classifier.

    Returns
    -------
    str
        Place of the layer.

    Raises
    ------
    ValueError
        The model has no such layer; the message lists all spatial layers.

    Examples
    --------
    >>> last_spatial_layer(keras.saving.load_model("model.keras", compile=False))
    'stage3_2_relu'
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
    if grids[-1] is not None and grids[-1][2]:
        candidates = _that_matter(model, candidates, grids) or candidates
    return candidates[-1]


def features_and_logits(model: keras.Model, names: Sequence[str]) -> keras.Model:
    """Model with the outputs of the named spatial layers, followed by the given model's output.

    Parameters
    ----------
    model : keras.Model
        Functional or sequential model.
    names : sequence of str
        Names of spatial layers.

    Returns
    -------
    keras.Model
        Its outputs are maps (N, h, w, K), or tokens (N, T, K), which `token_grids` arrange on a
        grid.

    Raises
    ------
    ValueError
        A layer is unknown or not spatial; the message lists the candidates.
    """
    model = flatten(model)
    nodes = _named(model, names)
    return keras.Model(model.inputs, [*(node.outputs[0] for node in nodes), *model.outputs])


def token_grids(model: keras.Model, names: Sequence[str]) -> list[Grid]:
    """How the tokens of each named layer are arranged in the image.

    Parameters
    ----------
    model : keras.Model
        Functional or sequential model.
    names : sequence of str
        Names of spatial layers.

    Returns
    -------
    list of Grid
        The grid of each layer.

    Raises
    ------
    ValueError
        A layer is unknown or not spatial.
    """
    model = flatten(model)
    nodes = graph_nodes(model)
    return [_grid(node, nodes) for node in _named(model, names)]


def is_bypassed(model: keras.Model, name: str) -> bool:
    """Whether the output also depends on the image through paths that avoid a layer.

    Parameters
    ----------
    model : keras.Model
        Functional or sequential model with one input and one output.
    name : str
        Name of a spatial layer.

    Returns
    -------
    bool
        True if there is such a path.

    Raises
    ------
    ValueError
        The layer is unknown or not spatial.
    """
    model = flatten(model)
    (layer,) = _named(model, [name])
    reached = {id(model.inputs[0])}
    for node in graph_nodes(model):
        if node is not layer and any(id(tensor) in reached for tensor in node.input_tensors):
            reached.update(id(tensor) for tensor in node.outputs)
    return id(model.outputs[0]) in reached


def on_grid(features: tf.Tensor, grid: Grid) -> tf.Tensor:
    """Arrange features, or their gradients, on a grid.

    Parameters
    ----------
    features : tf.Tensor, (N, h, w, K) or (N, T, K), float
        Maps or tokens.
    grid : Grid
        From `token_grids`.

    Returns
    -------
    tf.Tensor, (N, h, w, K), float32
        Features on the grid.
    """
    features = tf.cast(features, tf.float32)
    if grid is None:
        return features
    height, width, before = grid
    patches = features[:, before : before + height * width]
    return tf.reshape(patches, (-1, height, width, features.shape[-1]))


def _named(model: keras.Model, names: Sequence[str]) -> list:
    spatial = _spatial_nodes(model)
    # A nested model may be called by its name, and an inner layer by its own if that is unique.
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
    """All names; where there are many, those similar to the wanted one, and the last ones."""
    if len(names) <= _MOST_LISTED:
        return str(names)
    inner = {name.rpartition("/")[2]: name for name in names}
    like = [inner[name] for name in get_close_matches(wanted.rpartition("/")[2], inner)]
    similar = f"names like it are {like}; " if like else ""
    return f"{len(names)}: {similar}the last are {names[-10:]}"


def _spatial_nodes(model: keras.Model) -> dict:
    """Place → call, for outputs on a grid of more than one place."""
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


def _grid(node, nodes: list) -> Grid:
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
    return *maps, min(extra, others) if extra else others


def _that_matter(model: keras.Model, names: list[str], grids: list[Grid]) -> list[str]:
    """Names of the layers to whose features on the grid the output reacts, for images of noise."""
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
