"""Magnitude pruning with fine-tuning, for any Keras 3 model.

The smallest weights of every kernel are set to zero, more of them at each pruning step, while the
other weights continue to learn (Zhu & Gupta, "To prune, or not to prune", arXiv:1710.01878). Only
the kernels of convolutions, depthwise convolutions and dense layers are pruned; biases and
normalisation have few weights, which matter much.

A mask is the constraint of its kernel. Keras applies it after each update, inside the compiled
step, so that a pruned weight is zero again whatever the optimiser's momentum does to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

SCOPES = ("layer", "global")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Sparsity by training step.

    Attributes
    ----------
    initial : float, 0–final
        Fraction of zero weights at the first pruning.
    final : float, initial–1 (exclusive)
        Fraction of zero weights at the last pruning.
    begin : int, from 0
        Step (batch) of the first pruning.
    end : int, from begin
        Step of the last pruning.
    every : int, from 1
        Steps from one pruning to the next.

    Examples
    --------
    >>> schedule = Schedule(initial=0.0, final=0.8, begin=0, end=100, every=10)
    >>> [round(schedule.sparsity(step), 2) for step in (0, 50, 100)]
    [0.0, 0.7, 0.8]
    """

    initial: float
    final: float
    begin: int
    end: int
    every: int = 1

    def __post_init__(self):
        if not 0 <= self.initial <= self.final < 1:
            raise ValueError(
                f"sparsity from {self.initial} to {self.final}; allowed: 0 ≤ initial ≤ final < 1"
            )
        if not 0 <= self.begin <= self.end or self.every < 1:
            raise ValueError(
                f"steps from {self.begin} to {self.end}, every {self.every}; allowed: "
                "0 ≤ begin ≤ end, every ≥ 1"
            )

    def sparsity(self, step: int) -> float:
        """Return the sparsity wanted at a step; it grows fast at first, then slower.

        Zhu & Gupta 2017, eq. 1: s_t = s_f + (s_i − s_f) (1 − (t − t_0) / (n Δt))³. It is 0 before
        ``begin``, and ``final`` from ``end`` on.

        Parameters
        ----------
        step : int, from 0
            Training step.

        Returns
        -------
        float, 0–1
            Fraction of zero weights.
        """
        if step < self.begin:
            return 0.0
        if step >= self.end:
            return self.final
        left = 1 - (step - self.begin) / (self.end - self.begin)
        return self.final + (self.initial - self.final) * left**3

    def prunes_at(self, step: int) -> bool:
        """Tell whether the masks are computed again before a step.

        Parameters
        ----------
        step : int, from 0
            Training step.

        Returns
        -------
        bool
            True where the model is pruned.
        """
        within = self.begin <= step <= self.end
        return within and (step == self.end or (step - self.begin) % self.every == 0)


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


class Pruning(keras.callbacks.Callback):
    """Callback that prunes a model during its training.

    Do not combine it with a callback that restores weights of an earlier epoch: those are less
    sparse. After the training the model has plain kernels again, with their zeros in place.

    Parameters
    ----------
    schedule : Schedule
        Sparsity by step.
    scope : {"layer", "global"}
        See `magnitude_masks`.
    """

    def __init__(self, schedule: Schedule, scope: str = "layer"):
        super().__init__()
        self.schedule, self.scope, self.step = schedule, scope, 0

    def on_train_begin(self, logs=None):
        """Add a mask to every kernel; at first it is all ones.

        Parameters
        ----------
        logs : dict, optional
            Not used.
        """
        self.step = 0
        self._before = {id(kernel): kernel.constraint for kernel in kernels(self.model)}
        for kernel in kernels(self.model):
            kernel.constraint = _Mask(kernel)
        self.model.make_train_function(force=True)  # one traced earlier would have no masks

    def on_train_batch_begin(self, batch, logs=None):
        """Compute the masks again where the schedule says so.

        Parameters
        ----------
        batch : int
            Not used; the callback counts steps over all epochs.
        logs : dict, optional
            Not used.
        """
        if self.schedule.prunes_at(self.step):
            found = kernels(self.model)
            wanted = self.schedule.sparsity(self.step)
            masks = magnitude_masks([kernel.numpy() for kernel in found], wanted, self.scope)
            for kernel, mask in zip(found, masks, strict=True):
                kernel.constraint.kept.assign(mask.astype(np.float32))
                kernel.assign(kernel.constraint(kernel.value))
        self.step += 1

    def on_epoch_end(self, epoch, logs=None):
        """Record the sparsity in the history.

        Parameters
        ----------
        epoch : int
            Not used.
        logs : dict, optional
            Gets "sparsity".
        """
        if logs is not None:
            logs["sparsity"] = sparsity(self.model)

    def on_train_end(self, logs=None):
        """Remove the masks; the zeros stay.

        Parameters
        ----------
        logs : dict, optional
            Not used.
        """
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
    settle: float = 0.3,
    scope: str = "layer",
    validation: tf.data.Dataset | None = None,
    every: int = 10,
) -> pd.DataFrame:
    """Prune a compiled model while it is fine-tuned.

    Parameters
    ----------
    model : keras.Model
        Compiled, of any architecture and loss. Its kernels become sparse in place.
    batches : tf.data.Dataset
        Finite data set of (inputs, targets), as for ``fit``.
    final : float, initial–1 (exclusive)
        Sparsity of the last pruning, see `Schedule`.
    initial : float, from 0
        Sparsity of the first pruning, before the first step.
    epochs : int, from 1
        Epochs of fine-tuning in all.
    settle : float, 0–1
        Fraction of the steps at the end in which the masks stay fixed and the remaining weights
        adapt.
    scope : {"layer", "global"}
        See `magnitude_masks`.
    validation : tf.data.Dataset, optional
        Finite data set of (inputs, targets), evaluated after each epoch.
    every : int, from 1
        Steps from one pruning to the next.

    Returns
    -------
    pd.DataFrame
        One row per epoch: epoch (from 1), the metrics of the compiled model, and sparsity.

    Raises
    ------
    ValueError
        The model has no kernels, or a sparsity or the scope is not allowed.
    """
    steps = epochs * len(batches)
    schedule = Schedule(
        initial=initial, final=final, begin=0, end=int((1 - settle) * steps), every=every
    )
    run = model.fit(
        batches,
        epochs=epochs,
        validation_data=validation,
        callbacks=[Pruning(schedule, scope), keras.callbacks.TerminateOnNaN()],
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
    table = sparsity_table(model)
    return float(table["zeros"].sum() / table["weights"].sum())


def sparsity_table(model: keras.Model) -> pd.DataFrame:
    """Tabulate the sparsity of each kernel.

    Parameters
    ----------
    model : keras.Model
        The model.

    Returns
    -------
    pd.DataFrame
        One row per kernel, from input to output: kernel (its path), weights, zeros, sparsity.
    """
    rows = [
        (kernel.path, kernel.numpy().size, int(np.sum(kernel.numpy() == 0)))
        for kernel in kernels(model)
    ]
    table = pd.DataFrame(rows, columns=["kernel", "weights", "zeros"])
    return table.assign(sparsity=table["zeros"] / table["weights"])
