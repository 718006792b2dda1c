"""The graph of a network, with nested models flattened."""

from collections.abc import Callable
from functools import lru_cache

import keras
from keras import layers


def graph_nodes(model: keras.Model) -> list:
    """List every call of an operation in the model's graph, from the input to the output.

    Parameters
    ----------
    model : keras.Model
        Functional or sequential model.

    Returns
    -------
    list of keras.Node
        The calls, in an order in which they can be computed.
    """
    # Not `layer.output`: that is the layer's very first call, which may belong to another model
    # or, for a nested model, to its inside. Keras offers no public list of a model's calls.
    by_depth = keras.Function(model.inputs, model.outputs)._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


@lru_cache(maxsize=8)  # functions compiled for a flat model are cached by that model
def flatten(
    model: keras.Model, shape: tuple[int, int, int] | None = None, front: Callable | None = None
) -> keras.Model:
    """Return the same model without nested models; the given one where it has none.

    All layers are shared. A layer `inner` of a nested model `outer` gets the place ``outer/inner``
    (see `place`). Where several nested models have layers of the same name, all but the first are
    called through an `_Alias`.

    Parameters
    ----------
    model : keras.Model
        Functional or sequential model with one input, or with several where `shape` is None.
    shape : tuple of int, (height, width, channels), optional
        Shape of the images, to fix the size of a model that takes any size.
    front : callable, optional
        Applied to the images first: a layer, or another function of a Keras tensor.

    Returns
    -------
    keras.Model
        Flat model. The last eight are cached, with what was compiled for them.
    """
    if shape is None and front is None:
        if not any(_is_nested(node.operation) for node in graph_nodes(model)):
            return model
        inputs = [keras.Input(x.shape[1:], dtype=x.dtype, name=x.name) for x in model.inputs]
    else:
        dtype = "float32" if front else model.inputs[0].dtype
        inputs = [keras.Input(shape or model.inputs[0].shape[1:], dtype=dtype)]
    start = [front(tensor) for tensor in inputs] if front else inputs
    outputs = _inlined(model, start, "", {})
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs, name=model.name)


def place(node) -> str:
    """Where a call of a layer is in the model.

    Parameters
    ----------
    node : keras.Node
        Call of a layer, from `graph_nodes`.

    Returns
    -------
    str
        The layer's name, or ``outer/inner`` after `flatten`.
    """
    return getattr(node.outputs[0], "place", operation_of(node).name)


def operation_of(node) -> keras.Operation:
    """The layer or operation that is called, without an `_Alias`.

    Parameters
    ----------
    node : keras.Node
        Call of a layer, from `graph_nodes`.

    Returns
    -------
    keras.Operation
        The layer or operation.
    """
    operation = node.operation
    return operation.operation if isinstance(operation, _Alias) else operation


class _Alias(layers.Layer):
    """A layer under another name, because the layers of a model must have different names."""

    def __init__(self, operation: keras.Operation, name: str):
        super().__init__(name=name)
        self.operation = operation
        self.built = True

    def call(self, *arguments, **options):
        return self.operation(*arguments, **options)

    def compute_output_spec(self, *arguments, **options):
        return self.operation.compute_output_spec(*arguments, **options)


def _is_nested(operation: keras.Operation) -> bool:
    """Whether an operation is a model with a graph: functional, or sequential and built."""
    return isinstance(operation, keras.Model) and bool(getattr(operation, "outputs", None))


def _inlined(model: keras.Model, tensors: list, prefix: str, names: dict[str, object]) -> list:
    """Call the model's operations on tensors; return its outputs as a list."""

    def call(operation, *arguments, **options):
        # Explanations use inference mode, whatever the model was built with.
        options = {key: value for key, value in options.items() if key != "training"}
        if _is_nested(operation):
            given = keras.tree.flatten([arguments, options])
            tensors = [tensor for tensor in given if isinstance(tensor, keras.KerasTensor)]
            return _inlined(operation, tensors, f"{prefix}{operation.name}/", names)
        known = names.setdefault(operation.name, operation)
        if known is not operation:
            name = f"{prefix}{operation.name}".replace("/", "__")
            if name not in names:
                names[name] = _Alias(operation, name)
            outputs = names[name](*arguments, **options)
        else:
            outputs = operation(*arguments, **options)
        if prefix:
            for tensor in keras.tree.flatten(outputs):
                tensor.place = f"{prefix}{operation.name}"
        return outputs

    graph = keras.Function(model.inputs, model.outputs)
    return keras.tree.flatten(graph._run_through_graph(tensors, call_fn=call))
