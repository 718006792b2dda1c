"""Magnitude pruning with fine-tuning, for any Keras 3 model.

The smallest weights of every kernel are set to zero, more of them from step to step while the rest
goes on learning (Zhu & Gupta, "To prune, or not to prune", arXiv:1710.01878). Only kernels are
pruned, those of convolutions, depthwise convolutions and dense layers alike; biases and
normalisation hold few weights and matter much.

A mask is the constraint of its kernel: Keras applies it after each update, inside the compiled
step, so that a pruned weight is zero again whatever the optimiser's momentum would do to it.
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
    initial, final
        Share of each kernel's (or all kernels') weights that are zero at the first and last
        pruning, 0 ≤ initial ≤ final < 1.
    begin, end
        Steps (batches, from 0) of the first and the last pruning; no step after ``end`` prunes.
    every
        Steps from one pruning to the next.
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
        """Sparsity wanted at a step, fast at first and slower as weights become fewer.

        Zhu & Gupta 2017, eq. 1: s_t = s_f + (s_i − s_f) (1 − (t − t_0) / (n Δt))³. Before ``begin``
        nothing is pruned; from ``end`` on it is ``final``.
        """
        if step < self.begin:
            return 0.0
        if step >= self.end:
            return self.final
        left = 1 - (step - self.begin) / (self.end - self.begin)
        return self.final + (self.initial - self.final) * left**3

    def prunes_at(self, step: int) -> bool:
        """Whether the masks are drawn anew before this step."""
        within = self.begin <= step <= self.end
        return within and (step == self.end or (step - self.begin) % self.every == 0)


def kernels(model: keras.Model) -> list[keras.Variable]:
    """The variables that pruning is about: every kernel of the model, also of nested models.

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
    """Which weights stay, bool arrays of the kernels' shapes.

    Parameters
    ----------
    weights
        Kernels, of any shape.
    sparsity
        Share of the weights to be pruned, 0 to 1; their number is rounded.
    scope
        "layer": the smallest weights of each kernel, so that all are equally sparse. "global": the
        smallest of all kernels together. Either way the largest weight of a kernel stays, as an
        empty kernel would cut the network.
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
    """All but the smallest share, bool (n,); of equal ones the first are pruned."""
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
    """Prunes the model that is being trained, by a schedule.

    Use it without a callback that brings back weights of an earlier epoch: those are less sparse.
    At the end of the training the model has plain kernels again, with their zeros in place.
    """

    def __init__(self, schedule: Schedule, scope: str = "layer"):
        super().__init__()
        self.schedule, self.scope, self.step = schedule, scope, 0

    def on_train_begin(self, logs=None):
        """Put a mask, all ones as yet, on every kernel."""
        self.step = 0
        self._before = {id(kernel): kernel.constraint for kernel in kernels(self.model)}
        for kernel in kernels(self.model):
            kernel.constraint = _Mask(kernel)
        self.model.make_train_function(force=True)  # one traced before would know no masks

    def on_train_batch_begin(self, batch, logs=None):
        """Draw the masks anew where the schedule says so."""
        if self.schedule.prunes_at(self.step):
            found = kernels(self.model)
            wanted = self.schedule.sparsity(self.step)
            masks = magnitude_masks([kernel.numpy() for kernel in found], wanted, self.scope)
            for kernel, mask in zip(found, masks, strict=True):
                kernel.constraint.kept.assign(mask.astype(np.float32))
                kernel.assign(kernel.constraint(kernel.value))
        self.step += 1

    def on_epoch_end(self, epoch, logs=None):
        """Enter the sparsity reached into the history."""
        if logs is not None:
            logs["sparsity"] = sparsity(self.model)

    def on_train_end(self, logs=None):
        """Take the masks off; the zeros stay."""
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
    model
        Compiled, of any architecture and loss; its kernels become sparse in place.
    batches, validation
        Finite data sets of (inputs, targets), as ``fit`` takes them.
    initial, final
        Sparsity of the first pruning, before the first step, and of the last; see `Schedule`.
    epochs
        Of fine-tuning in all.
    settle
        Share of the steps at the end, 0 to 1, in which the final masks stay as they are and what
        is left adapts.
    scope
        See `magnitude_masks`.
    every
        Steps from one pruning to the next.

    Returns
    -------
    One row per epoch: epoch (from 1), what the model was compiled to measure, sparsity reached.
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
    """Share of the weights of all kernels that are zero; biases and normalisation do not count."""
    table = sparsity_table(model)
    return float(table["zeros"].sum() / table["weights"].sum())


def sparsity_table(model: keras.Model) -> pd.DataFrame:
    """One row per kernel, from input to output: kernel (its path), weights, zeros, sparsity."""
    rows = [
        (kernel.path, kernel.numpy().size, int(np.sum(kernel.numpy() == 0)))
        for kernel in kernels(model)
    ]
    table = pd.DataFrame(rows, columns=["kernel", "weights", "zeros"])
    return table.assign(sparsity=table["zeros"] / table["weights"])
