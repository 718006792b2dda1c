"""Class scores of images with a covered patch, computed only where the patch has an effect.

A patch of 20 pixels changes a window of 22 pixels after a 3×3 convolution, of 12 after the pooling
that follows, and so on. The rest of each feature map equals that of the whole image, which is
computed once. The network is followed layer by layer with such windows until they fill most of a
map or reach an unsupported layer. There the windows are pasted into the whole maps, and the rest of
the network runs as usual. The scores are exact. A network that uses the whole image at once, or
begins with an unsupported layer, runs as a whole: the same scores in more time.

References
----------
Nakandala, Kumar & Papakonstantinou, "Incremental and Approximate Inference for Faster
Occlusion-based Deep CNN Explanations" (Krypton), SIGMOD 2019, section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from covid_lab.explain.class_score import batch_signature, class_score
from covid_lab.explain.network import graph_nodes

# Windows that fill a larger fraction of their map are not worth the cutting and pasting.
LARGEST_SHARE = 0.9

_CONVOLUTIONS = {
    layers.Conv2D: tf.nn.conv2d,
    layers.DepthwiseConv2D: tf.nn.depthwise_conv2d,
}
_POOLING = {layers.MaxPooling2D: tf.nn.max_pool2d, layers.AveragePooling2D: tf.nn.avg_pool2d}
# Each place of their output depends only on the same place of their inputs, if these have the same
# size. An activation must be one of Keras' own: another function may use the whole map.
_PLACE_BY_PLACE = (
    layers.Activation,
    layers.Add,
    layers.Average,
    layers.BatchNormalization,
    layers.Concatenate,
    layers.Dropout,
    layers.ELU,
    layers.Identity,
    layers.LeakyReLU,
    layers.Maximum,
    layers.Minimum,
    layers.Multiply,
    layers.ReLU,
    layers.Rescaling,
    layers.SpatialDropout2D,
    layers.Subtract,
)


class _Window(NamedTuple):
    """Where a map of `shape` (height, width) can change under each of P patches.

    The windows have one `size` (height, width) for all patches, and begin at `start` (P, 2) int.
    """

    start: np.ndarray
    size: tuple[int, int]
    shape: tuple[int, int]

    @property
    def end(self) -> np.ndarray:
        """First row and column after each window (P, 2)."""
        return self.start + self.size


def _window(first, end, shape) -> _Window:
    """Windows of one size around the changed rows and columns from `first` to `end` (P, 2)."""
    shape = np.array(shape)
    first = np.clip(first, 0, shape - 1)
    size = (np.clip(end, first + 1, shape) - first).max(axis=0)
    start = np.minimum(first, shape - size).astype(np.int32)
    return _Window(start, tuple(size.tolist()), tuple(shape.tolist()))


@dataclass(frozen=True, eq=False)
class _Step:
    """One layer on windows: it reads a rectangle of its inputs' maps and returns a window.

    The rectangles begin at `start` (P, 2) and have one `size`. Where they extend beyond the maps,
    the layer reads the value `beyond`. `compute` takes the rectangles of each input (B, *size, C),
    and `start` for these B patches.
    """

    inputs: tuple[keras.KerasTensor, ...]
    start: np.ndarray
    size: tuple[int, int]
    window: _Window
    compute: Callable[[list[tf.Tensor], tf.Tensor], tf.Tensor]
    beyond: float = 0.0

    def reads_only(self, window: _Window) -> bool:
        """Whether it reads exactly this window of an input."""
        return self.size == window.size and np.array_equal(self.start, window.start)


def covered_scores_functions(
    model: keras.Model, corners: np.ndarray, patch: int
) -> tuple[Callable, Callable]:
    """Compile two functions that together give the class scores of images with a covered patch.

    Parameters
    ----------
    model : keras.Model
        Takes images (N, H, W, C) of one fixed size, float32, and ends in logits.
    corners : array_like, (P, 2), int
        First row and column of each patch; all patches are inside the image.
    patch : int, 1 to the image's smaller side
        Side of the square patches in pixels.

    Returns
    -------
    look : callable
        (images, target) → scores (N,), target (N,), and the feature maps for `covered_scores`.
    covered_scores : callable
        (maps, fills, target, image, place) → scores (B,) of the images numbered `image` (B,),
        covered by their `fills` (N, C) at the corners numbered `place` (B,).
    """
    origin = model.inputs[0]
    steps, windows = _plan(model, np.asarray(corners), patch)
    # The rest of the network begins where a window meets a layer that takes whole maps.
    borders = _unique(
        tensor
        for node in graph_nodes(model)
        if node.outputs[0] not in windows
        for tensor in node.input_tensors
        if tensor in windows
    )
    pastes = {border: _paste(border, windows[border]) for border in borders}
    kept = _unique(
        tensor
        for step in [*steps.values(), *pastes.values()]
        for tensor in step.inputs
        if not step.reads_only(windows[tensor])
    )
    whole = keras.Model(model.inputs, [*kept, *model.outputs])
    rest = keras.Model(borders, model.outputs)

    @tf.function(input_signature=batch_signature(model))
    def look(images, target):
        *maps, logits = tf.nest.flatten(whole(images, training=False))
        return *class_score(logits, target), maps

    numbers = tf.TensorSpec((None,), tf.int32)
    map_signature = [tf.TensorSpec(tensor.shape, tf.float32) for tensor in kept]
    fill_signature = tf.TensorSpec((None, origin.shape[-1]), tf.float32)

    @tf.function(input_signature=[map_signature, fill_signature, numbers, numbers, numbers])
    def covered_scores(maps, fills, target, image, place):
        maps = dict(zip(kept, maps, strict=True))
        colour = tf.gather(fills, image)[:, None, None]
        changed = {origin: tf.tile(colour, (1, *windows[origin].size, 1))}

        def take(step):
            start = tf.gather(step.start, place)
            views = [
                changed[tensor]
                if step.reads_only(windows[tensor])
                else _view(
                    maps[tensor],
                    image,
                    changed[tensor],
                    tf.gather(windows[tensor].start, place),
                    start,
                    step.size,
                    step.beyond,
                )
                for tensor in step.inputs
            ]
            return step.compute(views, start)

        for output, step in steps.items():
            changed[output] = take(step)
        logits = rest([take(pastes[border]) for border in borders], training=False)
        return class_score(logits, tf.gather(target, image))[0]

    return look, covered_scores


def _unique(items) -> list:
    return list(dict.fromkeys(items))


def _plan(model: keras.Model, corners: np.ndarray, patch: int) -> tuple[dict, dict]:
    """Steps of the layers that are computed in windows, by output; all windows, by map."""
    origin = model.inputs[0]
    windows = {origin: _window(corners, corners + patch, origin.shape[1:3])}
    steps = {}
    for node in graph_nodes(model):
        if node.is_input or any(tensor not in windows for tensor in node.input_tensors):
            continue
        output = node.outputs[0]
        step = _step(node, windows)
        if step and np.prod(step.window.size) <= LARGEST_SHARE * np.prod(step.window.shape):
            steps[output], windows[output] = step, step.window
    return steps, windows


def _step(node, windows: dict[keras.KerasTensor, _Window]) -> _Step | None:
    """The call of a layer as a step on windows; None for an unsupported layer."""
    layer, inputs = node.operation, tuple(node.input_tensors)
    given = [windows[tensor] for tensor in inputs]
    activation = getattr(layer, "activation", None)
    if (
        any(window.shape != given[0].shape for window in given)
        or getattr(layer, "data_format", "channels_last") != "channels_last"
        or getattr(layer, "compute_dtype", None) != "float32"
        or (activation is not None and activation not in vars(keras.activations).values())
    ):
        return None
    first = np.min([window.start for window in given], axis=0)
    end = np.max([window.end for window in given], axis=0)
    shape = given[0].shape
    kind = type(layer)
    alike = kind is layers.Normalization and layer.mean.shape[1:3] == (1, 1)
    if alike or (kind in _PLACE_BY_PLACE and getattr(layer, "axis", -1) in (-1, 3)):
        window = _window(first, end, shape)

        def compute(views, start):
            return layer(views if len(views) > 1 else views[0], training=False)

        return _Step(inputs, window.start, window.size, window, compute)
    if kind is layers.ZeroPadding2D:
        before, after = np.array(layer.padding).T
        window = _window(first + before, end + before, shape + before + after)
        start = (window.start - before).astype(np.int32)
        return _Step(inputs, start, window.size, window, lambda views, start: views[0])
    if kind in _POOLING:
        extent, strides = np.array(layer.pool_size), np.array(layer.strides)
    elif kind in _CONVOLUTIONS and getattr(layer, "groups", 1) == 1:
        dilation = np.array(layer.dilation_rate)
        extent, strides = (np.array(layer.kernel_size) - 1) * dilation + 1, np.array(layer.strides)
    else:
        return None
    # Output o sees the inputs from o·stride − before, `extent` of them.
    outputs = np.array(node.outputs[0].shape[1:3])
    missing = np.maximum((outputs - 1) * strides + extent - shape, 0)
    before = missing // 2 if layer.padding == "same" else np.zeros(2, int)
    if kind is layers.AveragePooling2D and layer.padding == "same" and missing.any():
        return None  # its means ignore what is outside the map
    window = _window(
        -((extent - 1 - before - first) // strides), (end - 1 + before) // strides + 1, outputs
    )
    return _Step(
        inputs,
        (window.start * strides - before).astype(np.int32),
        tuple(((np.array(window.size) - 1) * strides + extent).tolist()),
        window,
        _pooler(layer) if kind in _POOLING else _convolver(layer),
        beyond=tf.float32.min if kind is layers.MaxPooling2D else 0.0,
    )


def _paste(border: keras.KerasTensor, window: _Window) -> _Step:
    """The step from a window to the whole map that contains it."""
    start = np.zeros_like(window.start)
    return _Step((border,), start, window.shape, window, lambda views, start: views[0])


def _convolver(layer: layers.Conv2D | layers.DepthwiseConv2D) -> Callable:
    strides, dilations = (1, *layer.strides, 1), layer.dilation_rate
    convolve = _CONVOLUTIONS[type(layer)]

    def compute(views, start):
        features = convolve(views[0], layer.kernel, strides, "VALID", dilations=dilations)
        return layer.activation(
            tf.nn.bias_add(features, layer.bias) if layer.use_bias else features
        )

    return compute


def _pooler(layer: layers.MaxPooling2D | layers.AveragePooling2D) -> Callable:
    pool = _POOLING[type(layer)]
    return lambda views, start: pool(views[0], layer.pool_size, layer.strides, "VALID")


def _view(
    whole: tf.Tensor,
    image: tf.Tensor,
    changed: tf.Tensor,
    place: tf.Tensor,
    start: tf.Tensor,
    size: tuple[int, int],
    beyond: float,
) -> tf.Tensor:
    """Cut rectangles (B, *size, C) that begin at `start` (B, 2) out of maps with a changed window.

    The maps are `whole` (N, H, W, C) of the images `image` (B,), with the windows `changed`
    (B, h, w, C) pasted at `place` (B, 2). Beyond the maps, the value is `beyond`.
    """
    height, width, channels = whole.shape[1:]
    inner_height, inner_width = changed.shape[1:3]
    rows, columns = _places(start, size)
    inner_rows, inner_columns = rows - place[:, :1], columns - place[:, 1:]
    within = _both(_inside(inner_rows, inner_height), _inside(inner_columns, inner_width))
    outside = ~_both(_inside(rows, height), _inside(columns, width))
    # One gather from one list of values: of the whole maps, of the windows, and the outside.
    count = tf.shape(whole)[0] * height * width
    batch = tf.range(tf.shape(changed)[0])
    rows, inner_rows = (
        image[:, None] * height + rows,
        batch[:, None] * inner_height + inner_rows,
    )
    source = tf.concat(
        [
            tf.reshape(whole, (-1, channels)),
            tf.reshape(changed, (-1, channels)),
            tf.fill((1, channels), beyond),
        ],
        axis=0,
    )
    index = tf.where(
        within,
        count + inner_rows[:, :, None] * inner_width + inner_columns[:, None],
        rows[:, :, None] * width + columns[:, None],
    )
    return tf.gather(source, tf.where(outside, tf.shape(source)[0] - 1, index))


def _places(start: tf.Tensor, size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Rows (B, height) and columns (B, width) of rectangles that begin at `start` (B, 2)."""
    return start[:, :1] + tf.range(size[0]), start[:, 1:] + tf.range(size[1])


def _inside(places: tf.Tensor, length: int) -> tf.Tensor:
    return (places >= 0) & (places < length)


def _both(rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    return rows[:, :, None] & columns[:, None, :]
