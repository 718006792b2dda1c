"""From a classifier's output to the scores of its classes: logits, or log-odds of probabilities.

A sigmoid near 0 or 1 has a vanishing gradient, and the softmax of one class also contains the
evidence against the others. The logit has neither problem. The output is traced back through
reshaping, casts and averages to the activation that made it a probability. Where that fails, the
values decide: an output that stays in 0..1 whatever the image is a probability p, and its log-odds
are the score.
"""

import keras
import numpy as np
from keras import layers, ops

from covid_lab.explain.network import flatten, graph_nodes, operation_of, place

# Layers that are an activation; all others carry theirs, if any, in an attribute `activation`.
ACTIVATION_LAYERS = (
    layers.ELU,
    layers.LeakyReLU,
    layers.PReLU,
    layers.ReLU,
    layers.Softmax,
)
# Names of the operations that `keras.ops` puts into a graph; Keras exports no classes for them.
_ACTIVATION_OPERATIONS = {
    "Sigmoid", "Softmax", "LogSoftmax", "LogSigmoid", "HardSigmoid", "Relu", "Relu6", "Silu",
    "Gelu", "Elu", "Selu", "LeakyRelu", "Softplus", "Tanh", "HardSilu",
}  # fmt: skip
_RESHAPING_OPERATIONS = {"Reshape", "Squeeze", "ExpandDims", "Cast", "Copy", "Ravel"}
_RESHAPING_LAYERS = (
    layers.Reshape, layers.Flatten, layers.Identity, layers.Dropout, layers.ActivityRegularization,
)  # fmt: skip
_UNBOUNDED = (
    layers.Dense, layers.EinsumDense, layers.Conv2D, layers.Conv1D, layers.SeparableConv2D,
)  # fmt: skip
SMALLEST = 1e-7  # probability; close to 1, float32 has no finer steps
_TOLERANCE = 1e-5  # of probabilities, in half precision too


def remove_final_activation(model: keras.Model) -> keras.Model:
    """Return a flat classifier that ends in scores; the given one if it is that already.

    The returned model shares its layers with the given one, which is not changed. One layer is an
    exception: a last layer with its own activation, such as `Dense(1, "sigmoid")`, becomes a linear
    layer with a copy of the weights.

    Parameters
    ----------
    model : keras.Model
        Functional or sequential classifier.

    Returns
    -------
    keras.Model
        Classifier with one input and one output (N, K).

    Raises
    ------
    ValueError
        As for `scored`.
    """
    return scored(model)[0]


def scored(model: keras.Model) -> tuple[keras.Model, str]:
    """Return a flat classifier that ends in scores, and how its output was recognised.

    Parameters
    ----------
    model : keras.Model
        Functional or sequential classifier.

    Returns
    -------
    scores : keras.Model
        Classifier with one input and one output (N, K); see `remove_final_activation`.
    how : str
        How the output was recognised, in words.

    Raises
    ------
    ValueError
        The model does not have one input and one output with one value per class, or weights are
        NaN or infinite. The message names their layers. Such weights are refused because a fused
        kernel may turn NaN into 0, and the result looks like a score.
    """
    if bad := [weight.path for weight in model.weights if not np.isfinite(weight.numpy()).all()]:
        raise ValueError(f"Model '{model.name}' has NaN or infinite weights: {', '.join(bad)}.")
    if len(model.inputs) != 1 or len(model.outputs) != 1 or not is_score(model.outputs[0]):
        raise ValueError(
            f"Model '{model.name}' has inputs {[tuple(x.shape) for x in model.inputs]} and outputs "
            f"{[tuple(x.shape) for x in model.outputs]}; expected one input of images and one "
            "output (N, 1) or (N, K)."
        )
    model = flatten(model)
    output = model.outputs[0]
    producers = {id(node.outputs[0]): node for node in graph_nodes(model)}
    found, how = _traced(output, producers, {})
    if found is None and how is None:
        found, how = _by_values(model)
    scores = output if found is None else found
    if len(scores.shape) != 2:
        size = max((side for side in scores.shape[1:] if side), default=1)
        scores = layers.Reshape((size,))(scores)
    return (model if scores is output else keras.Model(model.inputs[0], scores)), how


def choose_output(model: keras.Model, wanted: str | None = None) -> keras.Model:
    """Return the same model with only one of its outputs, from a tensor to a tensor.

    Parameters
    ----------
    model : keras.Model
        Functional or sequential model, also one with a mapping of inputs or outputs.
    wanted : str, optional
        Name or number (from 0) of the output; by default the only one with one value per class.

    Returns
    -------
    keras.Model
        Model with one output; the given one if it already maps a tensor to a tensor.

    Raises
    ------
    ValueError
        The output is unknown, or several are possible; the message lists them.
    """
    outputs = model.outputs
    plain = isinstance(model, keras.Sequential) or all(
        isinstance(given, keras.KerasTensor) for given in (model.input, model.output)
    )
    if plain and wanted is None:
        return model
    names = list(getattr(model, "output_names", None) or range(len(outputs)))
    listed = ", ".join(
        f"{name} {tuple(output.shape)}" for name, output in zip(names, outputs, strict=True)
    )
    if wanted is None:
        found = [number for number, output in enumerate(outputs) if is_score(output)]
        found = found or [0][len(outputs) - 1 :]  # a single one is judged later
        if len(found) != 1:
            raise ValueError(
                f"the model has {len(outputs)} outputs: {listed}; choose one with --output"
            )
    else:
        found = [n for n, name in enumerate(names) if wanted in (str(name), str(n))]
        if not found:
            raise ValueError(f"the model has no output {wanted!r}; its outputs are {listed}")
    return keras.Model(model.inputs[0], outputs[found[0]], name=model.name)


def is_score(tensor: keras.KerasTensor) -> bool:
    """Whether an output has one value per class: (N,), (N, K), or (N, 1, 1, K).

    Parameters
    ----------
    tensor : keras.KerasTensor
        Output of a model.

    Returns
    -------
    bool
        True for one value per class.
    """
    sides = tensor.shape[1:]
    return None not in sides and sum(side != 1 for side in sides) <= 1 and len(sides) != 2


def has_activation(layer: keras.Operation) -> bool:
    """Whether a layer is an activation, or applies one that is not linear.

    Parameters
    ----------
    layer : keras.Operation
        Layer or operation of a model.

    Returns
    -------
    bool
        True for such a layer.
    """
    if isinstance(layer, ACTIVATION_LAYERS) or _is_operation(layer, _ACTIVATION_OPERATIONS):
        return True
    return getattr(layer, "activation", None) not in (None, keras.activations.linear)


def _is_operation(layer: keras.Operation, names: set[str]) -> bool:
    return type(layer).__module__.startswith("keras.src.ops.") and type(layer).__name__ in names


def _traced(tensor: keras.KerasTensor, producers: dict, linear: dict) -> tuple:
    """Scores before the final activation and how they were found; None where tracing fails.

    `linear` collects the scores of layers that were copied without their activation.
    """
    node = producers.get(id(tensor))
    if node is None or node.is_input:
        return None, None
    layer, inputs = operation_of(node), node.input_tensors
    name = place(node)
    if isinstance(layer, (_LogOdds, _MeanProbability)):
        return None, f"log-odds ({name})"
    if has_activation(layer):
        if isinstance(layer, (layers.Activation, *ACTIVATION_LAYERS)) or _is_operation(
            layer, _ACTIVATION_OPERATIONS
        ):
            return inputs[0], f"a logit: what {name} receives"
        if id(node) not in linear:  # a branch may be averaged with itself
            config = {**layer.get_config(), "activation": "linear", "name": node.operation.name}
            copy = type(layer).from_config(config)
            linear[id(node)] = copy(inputs[0])
            copy.set_weights(layer.get_weights())
        return linear[id(node)], f"a logit: {name} without its {_activation_name(layer)}"
    if _passes_on(layer):
        found, how = _traced(inputs[0], producers, linear)
        if found is None:
            return None, how
        arguments, options = node.arguments.fill_in({id(inputs[0]): found})
        return node.operation(*arguments, **options), how
    if isinstance(layer, layers.Average):
        kinds = {_probability_kind(branch, producers) for branch in inputs}
        if len(kinds) == 1 and None not in kinds:
            branches = [_traced(branch, producers, linear)[0] for branch in inputs]
            mean = _MeanProbability(kinds.pop())(branches)
            return mean, f"log-odds: {name} averages {len(inputs)} probabilities"
    if isinstance(layer, (*_UNBOUNDED, layers.BatchNormalization)):
        return None, f"a logit: {name} is linear"
    return None, None


def _passes_on(layer: keras.Operation) -> bool:
    return (
        # An activation here is a linear one: others have been found before.
        isinstance(layer, (layers.Activation, *_RESHAPING_LAYERS))
        or _is_operation(layer, _RESHAPING_OPERATIONS)
    )


def _activation_name(layer: keras.Operation) -> str | None:
    """Name of the activation that a layer is or applies, in lower case."""
    function = getattr(layer, "activation", None)
    return getattr(function, "__name__", type(layer).__name__).lower()


def _probability_kind(tensor: keras.KerasTensor, producers: dict) -> str | None:
    """Return "sigmoid" or "softmax" where a tensor comes from one of them."""
    node = producers[id(tensor)]
    layer = operation_of(node)
    if has_activation(layer):
        name = _activation_name(layer)
        return name if name in ("sigmoid", "softmax") else None
    return _probability_kind(node.input_tensors[0], producers) if _passes_on(layer) else None


def _by_values(model: keras.Model) -> tuple:
    """Log-odds where the output stays in 0..1 for images of every kind, else None; and how."""
    output = model.outputs[0]
    shape = [side or 64 for side in model.inputs[0].shape[1:]]
    random = np.random.default_rng(0)
    probes = [np.zeros(shape), np.full(shape, 255), *random.uniform(0, 255, (4, *shape))]
    # A logit grows with the image; a probability stays in 0..1.
    probes += [scale * random.standard_normal(shape) for scale in (1, 1e2, 1e3, 1e4)]
    values = ops.convert_to_numpy(model(np.float32(probes), training=False)).astype(np.float64)
    values = values.reshape(len(probes), -1)
    if values.min() < -_TOLERANCE or values.max() > 1 + _TOLERANCE or np.ptp(values) == 0:
        return None, f"a logit: its values reach {values.min():.3g} to {values.max():.3g}"
    together = values.shape[1] > 1 and np.allclose(values.sum(axis=1), 1, atol=1e-2)
    if together:
        return _LogOdds("softmax")(output), "log-probabilities: all values are in 0..1 and sum to 1"
    return _LogOdds("sigmoid")(output), "log-odds: all values are in 0..1, as probabilities are"


class _LogOdds(layers.Layer):
    """Log-odds log p − log(1 − p) of probabilities, or log p of those that sum to 1 (softmax)."""

    def __init__(self, kind: str):
        super().__init__(dtype="float32")
        self.kind = kind

    def call(self, probabilities):
        known = ops.clip(ops.cast(probabilities, "float32"), SMALLEST, 1 - SMALLEST)
        odds = ops.log(known)
        return odds if self.kind == "softmax" else odds - ops.log1p(-known)


class _MeanProbability(layers.Layer):
    """Log-odds of a mean of sigmoids, or log of a mean of softmaxes, from the logits.

    With p_i = σ(z_i), log (Σ p_i / Σ (1 − p_i)) = LSE(log σ(z_i)) − LSE(log σ(−z_i)), where LSE is
    the logarithm of a sum of exponentials. In this form a saturated member keeps its gradient.
    """

    def __init__(self, kind: str):
        super().__init__(dtype="float32")
        self.kind = kind

    def call(self, logits):
        stacked = ops.stack([ops.cast(member, "float32") for member in logits])
        if self.kind == "softmax":
            return ops.logsumexp(ops.log_softmax(stacked, axis=-1), axis=0) - np.log(len(logits))
        positive = ops.logsumexp(ops.log_sigmoid(stacked), axis=0)
        return positive - ops.logsumexp(ops.log_sigmoid(-stacked), axis=0)
