"""Magnitude pruning with fine-tuning, for any Keras 3 model.

The smallest weights of every kernel are set to zero, more of them at each pruning step, while the
other weights continue to learn (Zhu & Gupta, "To prune, or not to prune", arXiv:1710.01878). Only
the kernels of convolutions, depthwise convolutions and dense layers are pruned; biases and
normalisation have few weights, which matter much.

A mask is the constraint of its kernel. Keras applies it after each update, inside the compiled
step, so that a pruned weight is zero again whatever the optimiser's momentum does to it.
"""

from collections.abc import Sequence

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

SCOPES = ("layer", "global")
EVERY = 10  # steps from one pruning to the next
SETTLE = 0.3  # of the steps, at the end: the masks stay fixed and the remaining weights adapt


def scheduled_sparsity(step: int, *, initial: float, final: float, end: int) -> float:
    """Return the sparsity that is wanted at a step; it grows fast at first, then slower.

    Zhu & Gupta 2017, eq. 1, with t_0 = 0: s_t = s_f + (s_i − s_f) (1 − t / (n Δt))³.

    Parameters
    ----------
    step : int, from 0
        Training step.
    initial, final : float, 0–1
        Fraction of zero weights at the first and at the last pruning.
    end : int, from 0
        Step of the last pruning.

    Returns
    -------
    float, 0–1
        Fraction of zero weights; ``final`` from ``end`` on.

    Examples
    --------
    >>> steps = (0, 50, 100)
    >>> [round(scheduled_sparsity(k, initial=0.0, final=0.8, end=100), 2) for k in steps]
    [0.0, 0.7, 0.8]
    """
    left = 1 - step / end if step < end else 0.0
    return final + (initial - final) * left**3


def kernels(model: keras.Model) -> list[keras.Variable]:
    """Return the variables that can be pruned: every kernel, including those of nested models.

    Parameters
    ----------
    model : keras.Model
        The model.

    Returns
    -------
    list of keras.Variable
        Kernels from input to output.

    Raises
    ------
    ValueError
        The model has none.
    """
    found = [weight for weight in model.weights if weight.name.endswith("kernel")]
    if not found:
        raise ValueError(f"{model.name} has no kernels: nothing can be pruned")
    return found


def magnitude_masks(
    weights: Sequence[np.ndarray], sparsity: float, scope: str = "layer"
) -> list[np.ndarray]:
    """Choose the weights that stay.

    The largest weight of a kernel always stays, as an empty kernel would cut the network.

    Parameters
    ----------
    weights : sequence of np.ndarray
        Kernels of any shape.
    sparsity : float, 0–1
        Fraction of the weights to prune; their number is rounded.
    scope : {"layer", "global"}
        "layer" prunes the smallest weights of each kernel, so that all are equally sparse; "global"
        the smallest of all kernels together.

    Returns
    -------
    list of np.ndarray, bool
        Masks of the kernels' shapes, True where a weight stays.

    Raises
    ------
    ValueError
        The scope is unknown.

    Examples
    --------
    >>> magnitude_masks([np.array([0.1, -3.0, 0.2, 2.0])], 0.5)[0].tolist()
    [False, True, False, True]
    """
    if scope not in SCOPES:
        raise ValueError(f"scope {scope!r}; allowed: {', '.join(SCOPES)}")
    magnitudes = [np.abs(np.ravel(kernel)).astype(np.float64) for kernel in weights]
    for magnitude in magnitudes:
        magnitude[np.argmax(magnitude)] = np.inf
    if scope == "layer":
        kept = [_largest(magnitude, sparsity) for magnitude in magnitudes]
    else:
        ends = np.cumsum([len(magnitude) for magnitude in magnitudes])
        kept = np.split(_largest(np.concatenate(magnitudes), sparsity), ends[:-1])
    return [mask.reshape(np.shape(kernel)) for mask, kernel in zip(kept, weights, strict=True)]


def _largest(magnitude: np.ndarray, sparsity: float) -> np.ndarray:
    """Return all but the smallest fraction, bool (n,); of equal weights the first are pruned."""
    pruned = min(round(sparsity * len(magnitude)), int(np.isfinite(magnitude).sum()))
    kept = np.ones(len(magnitude), bool)
    kept[np.argsort(magnitude, kind="stable")[:pruned]] = False
    return kept


class _Mask:
    """Constraint that keeps the pruned weights of one kernel at zero."""

    def __init__(self, kernel: keras.Variable):
        self.kept = tf.Variable(tf.ones(kernel.shape, kernel.dtype), trainable=False)

    def __call__(self, weights):
        return weights * tf.cast(self.kept, weights.dtype)


class _Pruning(keras.callbacks.Callback):
    """Prune a model during its training; afterwards it has plain kernels again, with zeros.

    Do not combine it with a callback that restores weights of an earlier epoch: those are less
    sparse.
    """

    def __init__(self, initial: float, final: float, end: int, scope: str):
        super().__init__()
        self.schedule = {"initial": initial, "final": final, "end": end}
        self.scope, self.step = scope, 0

    def on_train_begin(self, logs=None):
        self._before = {id(kernel): kernel.constraint for kernel in kernels(self.model)}
        for kernel in kernels(self.model):
            kernel.constraint = _Mask(kernel)
        self.model.make_train_function(force=True)  # one traced earlier would have no masks

    def on_train_batch_begin(self, batch, logs=None):
        end = self.schedule["end"]
        if self.step == end or (self.step < end and self.step % EVERY == 0):
            found = kernels(self.model)
            wanted = scheduled_sparsity(self.step, **self.schedule)
            masks = magnitude_masks([kernel.numpy() for kernel in found], wanted, self.scope)
            for kernel, mask in zip(found, masks, strict=True):
                kernel.constraint.kept.assign(mask.astype(np.float32))
                kernel.assign(kernel.constraint(kernel.value))
        self.step += 1

    def on_epoch_end(self, epoch, logs=None):
        logs["sparsity"] = sparsity(self.model)

    def on_train_end(self, logs=None):
        for kernel in kernels(self.model):
            kernel.assign(kernel.constraint(kernel.value))
            kernel.constraint = self._before[id(kernel)]
        self.model.make_train_function(force=True)


def prune(
    model: keras.Model,
    batches: tf.data.Dataset,
    *,
    final: float,
    initial: float = 0.0,
    epochs: int,
    scope: str = "layer",
    validation: tf.data.Dataset | None = None,
) -> pd.DataFrame:
    """Prune a compiled model while it is fine-tuned.

    Parameters
    ----------
    model : keras.Model
        Compiled, of any architecture and loss. Its kernels become sparse in place.
    batches : tf.data.Dataset
        Finite data set of (inputs, targets), as for ``fit``.
    final : float, initial–1 (exclusive)
        Sparsity of the last pruning, see `scheduled_sparsity`.
    initial : float, from 0
        Sparsity of the first pruning, before the first step.
    epochs : int, from 1
        Epochs of fine-tuning in all.
    scope : {"layer", "global"}
        See `magnitude_masks`.
    validation : tf.data.Dataset, optional
        Finite data set of (inputs, targets), evaluated after each epoch.

    Returns
    -------
    pd.DataFrame
        One row per epoch: epoch (from 1), the metrics of the compiled model, and sparsity.

    Raises
    ------
    ValueError
        The model has no kernels, or a sparsity or the scope is not allowed.
    """
    if not 0 <= initial <= final < 1:
        raise ValueError(f"sparsity from {initial} to {final}; allowed: 0 ≤ initial ≤ final < 1")
    steps = epochs * len(batches)
    end = int((1 - SETTLE) * steps)
    run = model.fit(
        batches,
        epochs=epochs,
        validation_data=validation,
        callbacks=[_Pruning(initial, final, end, scope), keras.callbacks.TerminateOnNaN()],
        verbose=0,
        shuffle=False,
    )
    history = pd.DataFrame(run.history)
    history.insert(0, "epoch", np.arange(1, len(history) + 1))
    return history


def sparsity(model: keras.Model) -> float:
    """Return the fraction of zero weights in all kernels of a model.

    Parameters
    ----------
    model : keras.Model
        The model; biases and normalisation do not count.

    Returns
    -------
    float, 0–1
        Sparsity.
    """
    values = [kernel.numpy() for kernel in kernels(model)]
    return sum(int((one == 0).sum()) for one in values) / sum(one.size for one in values)
