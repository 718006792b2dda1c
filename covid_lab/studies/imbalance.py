"""Methods against unequal class counts, with one signature and for training data only.

"none", "class_weights", "oversample", "undersample", "smote" (Chawla et al. 2002) and "cgan", in
which a generator makes the missing inputs. Inputs may be images, flattened pixels or a backbone's
features. SMOTE interpolates between neighbours. This makes sense where a point between two
plausible inputs is plausible, too: for features more than for pixels.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from imblearn.over_sampling import SMOTE

from covid_lab.training import class_weights

METHODS = ("none", "class_weights", "oversample", "undersample", "smote", "cgan")
NEIGHBOURS = 5  # of SMOTE, where the smallest class has as many

# (label, count, seed) → inputs (count, ...) of that class
Generate = Callable[[int, int, int], np.ndarray]


@dataclass(frozen=True, eq=False)
class Balanced:
    """Training data after one of `METHODS`.

    Attributes
    ----------
    inputs : np.ndarray, (M, ...)
    labels : np.ndarray, int (M,)
    weights : dict of int to float
        Weight of each label in the loss; 1, except for "class_weights".
    synthetic : np.ndarray, bool (M,)
        Which inputs are not images of a patient.
    variants : np.ndarray, (V, M, ...), optional
        Variants of the inputs; each epoch takes one per sample.
    """

    inputs: np.ndarray
    labels: np.ndarray
    weights: dict[int, float]
    synthetic: np.ndarray
    variants: np.ndarray | None = None

    @property
    def sample_weights(self) -> np.ndarray:
        """Weight of each sample.

        Returns
        -------
        np.ndarray, float (M,)
        """
        return np.array([self.weights[label] for label in self.labels.tolist()])


class NotTraining(ValueError):
    """Other data than training data were given, which is leakage."""


def balance(
    method: str,
    inputs: np.ndarray,
    labels: np.ndarray,
    splits: Iterable[str],
    *,
    seed: int,
    generate: Generate | None = None,
    most: float = math.inf,
    height: float = 1.0,
) -> Balanced:
    """Balance training data by one of `METHODS`.

    Parameters
    ----------
    method : str
        One of `METHODS`.
    inputs : np.ndarray, (N, ...)
        Of any number type.
    labels : np.ndarray, int (N,)
        From 0.
    splits : iterable of str, (N,)
        The split of each sample: all must be "train".
    seed : int
        Determines what is drawn.
    generate : callable, optional
        For "cgan": (label, count, seed) → synthetic inputs (count, ...).
    most : float
        For "smote": largest growth of a class, in multiples of its size. 2 in the report, which
        calls further synthetic inputs unrealistic.
    height : float
        For "cgan": size of every class, in multiples of the largest. 1.2 in the report, which
        brings classes of up to 1109 to 1330.

    Returns
    -------
    Balanced
        The given samples in their order (for "undersample" those that stay), then the new ones.
        With "oversample", "smote" and "cgan" every class is as large as the largest (see ``most``
        and ``height``), with "undersample" as small as the smallest.

    Raises
    ------
    NotTraining
        A sample of another split.
    ValueError
        Unknown method, lengths that differ, fewer than two classes, one sample of a class for
        SMOTE, or "cgan" without a generator or with one that gives another shape.

    Examples
    --------
    >>> balanced = balance("oversample", np.arange(4), [0, 0, 0, 1], ["train"] * 4, seed=0)
    >>> balanced.labels
    array([0, 0, 0, 1, 1, 1])
    """
    inputs, labels, splits = np.asarray(inputs), np.asarray(labels, int), np.asarray(list(splits))
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; allowed: {', '.join(METHODS)}")
    if not len(inputs) == len(labels) == len(splits):
        raise ValueError(f"{len(inputs)} inputs, {len(labels)} labels and {len(splits)} splits")
    if (splits != "train").any():
        others = sorted(set(splits.tolist()) - {"train"})
        raise NotTraining(f"only training data may be balanced, found the splits {others} too")
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"labels hold one class only: {classes.tolist()}")
    rng = np.random.default_rng(seed)
    weights = dict.fromkeys(classes.tolist(), 1.0)
    if method == "class_weights":
        weights = class_weights(labels)
    if method in ("none", "class_weights"):
        return Balanced(inputs, labels, weights, np.zeros(len(labels), bool))
    if method == "undersample":
        kept = [
            rng.choice(np.flatnonzero(labels == label), counts.min(), replace=False)
            for label in classes
        ]
        rows = np.sort(np.concatenate(kept))
        return Balanced(inputs[rows], labels[rows], weights, np.zeros(len(rows), bool))
    if method == "oversample":
        new = [
            rng.choice(np.flatnonzero(labels == label), counts.max() - count)
            for label, count in zip(classes, counts, strict=True)
        ]
        rows = np.concatenate([np.arange(len(labels)), *new])
        return Balanced(inputs[rows], labels[rows], weights, np.zeros(len(rows), bool))
    if method == "smote":
        wanted = {
            label: int(min(counts.max(), most * count))
            for label, count in zip(classes.tolist(), counts.tolist(), strict=True)
        }
        added, of = _smote(inputs, labels, wanted, counts.min(), seed)
    else:
        tall = round(height * counts.max())
        missing = dict(zip(classes.tolist(), (tall - counts).tolist(), strict=True))
        added, of = _generated(generate, missing, inputs.shape[1:], seed)
    added = _as_type(added, inputs.dtype)
    synthetic = np.repeat([False, True], [len(labels), len(of)])
    return Balanced(
        np.concatenate([inputs, added]), np.concatenate([labels, of]), weights, synthetic
    )


def _smote(inputs, labels, wanted, smallest: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if smallest < 2:
        raise ValueError("SMOTE needs two samples of each class at least: it draws between them")
    flat = inputs.reshape(len(inputs), -1).astype(np.float64)
    neighbours = int(min(NEIGHBOURS, smallest - 1))
    sampler = SMOTE(random_state=seed, k_neighbors=neighbours, sampling_strategy=wanted)
    drawn, of = sampler.fit_resample(flat, labels)
    # imbalanced-learn gives the samples back first, in their order, and then the new ones.
    new = drawn[len(labels) :].reshape(-1, *inputs.shape[1:])
    return new, of[len(labels) :]


def _generated(generate, missing, shape, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if generate is None:
        raise ValueError("the method 'cgan' needs a generator (see studies.cgan)")
    added = [np.empty((0, *shape))]
    for label, count in missing.items():
        if count:
            made = np.asarray(generate(label, count, seed))
            if made.shape != (count, *shape):
                raise ValueError(f"the generator gave {made.shape}, wanted {(count, *shape)}")
            added.append(made)
    of = np.repeat(list(missing), list(missing.values())).astype(int)
    return np.concatenate(added), of


def _as_type(values: np.ndarray, kind: np.dtype) -> np.ndarray:
    if np.issubdtype(kind, np.integer):  # grey values between two grey values
        limits = np.iinfo(kind)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(kind)
