"""Gradients with respect to the image: saliency, SmoothGrad, Integrated Gradients.

All three average the gradient of the class score over points near the image or on a path to it.
Each method supplies these points; saliency uses the image only. The signatures start like that of
`gradcam.grad_cam`.

References
----------
Simonyan, Vedaldi & Zisserman, "Deep Inside Convolutional Networks: Visualising Image
Classification Models and Saliency Maps", ICLR Workshop 2014. Smilkov et al., "SmoothGrad: removing
noise by adding noise", arXiv:1706.03825. Sundararajan, Taly & Yan, "Axiomatic Attribution for Deep
Networks", ICML 2017.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from covid_lab.explain.class_score import (
    batch_signature,
    by_batches,
    checked,
    class_score,
    image_variant_pairs,
    keep_compiled,
    score_function,
)
from covid_lab.explain.heatmaps import PIXELS, Heatmaps
from covid_lab.explain.outputs import remove_final_activation


def saliency(
    model: keras.Model, images: ArrayLike, target: ArrayLike, batch_size: int = 32
) -> Heatmaps:
    """Saliency: how strongly the class score reacts to each pixel.

    The map is M_ij = max_c |∂S/∂I_ijc| (Simonyan et al. 2014, section 3.1), divided by its maximum.

    Parameters
    ----------
    model, images, target : as for `grad_cam`
    batch_size : int
        Images per forward and backward pass.

    Returns
    -------
    Heatmaps
        At the pixels (N, H, W). `raw` is the gradient in the colour channel where it is strongest:
        positive where a brighter pixel would raise the score. `maps` shows its magnitude.

    Raises
    ------
    ValueError
        The input is invalid (see `grad_cam`), or the model's input has an integer type and
        therefore no gradient.

    Examples
    --------
    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((2, 2, 1)),
    ...         keras.layers.Flatten(),
    ...         keras.layers.Dense(1, kernel_initializer="zeros"),
    ...     ]
    ... )
    >>> model.layers[-1].set_weights([np.array([[1.0], [0], [-2], [0]]), np.zeros(1)])
    >>> images = np.full((1, 2, 2, 1), 100, np.uint8)
    >>> heatmaps = saliency(model, images, target=1)
    >>> heatmaps.raw[0]
    array([[ 1.,  0.],
           [-2.,  0.]], dtype=float32)
    >>> heatmaps.maps[0]
    array([[0.5, 0. ],
           [1. , 0. ]], dtype=float32)
    """
    model = remove_final_activation(model)
    images, target = checked(model, images, target)
    results = by_batches(_gradient_function(model), images, target, batch_size)
    return _magnitudes(*results)


def smooth_grad(
    model: keras.Model,
    images: ArrayLike,
    target: ArrayLike,
    samples: int = 32,
    noise: float = 0.15,
    seed: int = 0,
    batch_size: int = 32,
) -> Heatmaps:
    """SmoothGrad: saliency averaged over noisy copies of the image, which reduces speckle.

    The gradient is the mean over the samples of ∂S/∂I at I + ε, ε ~ N(0, σ²) (Smilkov et al. 2017,
    section 2.2).

    Parameters
    ----------
    model, images : as for `grad_cam`
    target : int, array_like of int (N,), or "predicted"
        As for `grad_cam`. Score and predicted class are those of the image without noise.
    samples : int, 1 or more
        Noisy copies of each image.
    noise : float, 0 or more
        σ as a fraction of each image's own range (maximum minus minimum). The paper recommends 0.1
        to 0.2.
    seed : int
        Seed of the noise. Every image gets the same noise, so that its map does not depend on the
        other images.
    batch_size : int
        Noisy copies per forward and backward pass.

    Returns
    -------
    Heatmaps
        As from `saliency`.

    Raises
    ------
    ValueError
        As for `saliency`, or `samples` or `noise` is out of range.
    """
    if samples < 1 or noise < 0:
        raise ValueError(f"samples is {samples}, noise {noise}; expected 1 or more, 0 or more.")
    model = remove_final_activation(model)
    images, target = checked(model, images, target)
    generator = np.random.default_rng(seed)
    deviates = generator.standard_normal((samples, *images.shape[1:]), dtype=np.float32)

    def noisy(image, sample):
        spread = np.ptp(image, axis=(1, 2, 3), keepdims=True)
        return image + noise * spread * deviates[sample]

    results = by_batches(
        _mean_gradients(model, noisy, samples, batch_size), images, target, batch_size
    )
    return _magnitudes(*results)


@dataclass(frozen=True, eq=False)
class IntegratedGradients(Heatmaps):
    """Heatmaps whose `raw` distributes the change of the score over the pixels.

    Attributes
    ----------
    baseline_scores : np.ndarray, (N,), float32
        The class score of the baseline.
    """

    baseline_scores: np.ndarray

    @property
    def residual(self) -> np.ndarray:
        """Error of the numerical integral: Σ raw − (scores − baseline_scores).

        For the exact integral it is 0 (completeness; Sundararajan et al. 2017, proposition 1).
        Compare it with scores − baseline_scores.

        Returns
        -------
        np.ndarray, (N,), float64
            In units of the score.
        """
        change = self.scores.astype(np.float64) - self.baseline_scores
        return self.raw.sum(axis=(1, 2), dtype=np.float64) - change


def integrated_gradients(
    model: keras.Model,
    images: ArrayLike,
    target: ArrayLike,
    baseline: ArrayLike = 0,
    steps: int = 64,
    batch_size: int = 32,
) -> IntegratedGradients:
    """Integrated Gradients: what each pixel adds to the score from a baseline to the image.

    Sundararajan et al. 2017, equation 1, for an image x and a baseline x′:

        (x − x′) ∘ ∫₀¹ ∂S/∂x at x′ + α (x − x′) dα

    summed over the colour channels. The integral is the mean over the midpoints of equal steps, and
    its error falls with the square of their number. Equation 3 of the paper uses the ends of the
    steps and converges more slowly.

    Parameters
    ----------
    model, images : as for `grad_cam`
    target : int, array_like of int (N,), or "predicted"
        As for `grad_cam`. The predicted class is that of the image.
    baseline : array_like, () or (H, W, C), 0..255
        The image without evidence: one grey value, by default black, or an image. Pixels that equal
        the baseline get no contribution, whatever they mean.
    steps : int, 1 or more
        Points on the path from the baseline to the image.
    batch_size : int
        Points per forward and backward pass.

    Returns
    -------
    IntegratedGradients
        `raw` at the pixels (N, H, W) is in units of the score. `residual` shows whether `steps` is
        large enough.

    Raises
    ------
    ValueError
        As for `saliency`, or `steps` is out of range, or the baseline has another shape.

    Examples
    --------
    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((2, 2, 1)),
    ...         keras.layers.Flatten(),
    ...         keras.layers.Dense(1, kernel_initializer="ones"),
    ...     ]
    ... )
    >>> images = np.array([[10, 20], [0, 40]], np.uint8).reshape(1, 2, 2, 1)
    >>> heatmaps = integrated_gradients(model, images, target=1)
    >>> heatmaps.raw[0]
    array([[10., 20.],
           [ 0., 40.]], dtype=float32)
    >>> heatmaps.residual
    array([0.])
    """
    model = remove_final_activation(model)
    images, target = checked(model, images, target)
    baseline = np.asarray(baseline, np.float32)
    if steps < 1 or baseline.shape not in ((), images.shape[1:]):
        raise ValueError(
            f"steps is {steps}, the baseline's shape {baseline.shape}; expected 1 or more, and one "
            f"grey value or an image {images.shape[1:]}."
        )

    def on_the_path(image, step):
        fraction = (step + 0.5).astype(np.float32).reshape(-1, 1, 1, 1) / steps
        return baseline + fraction * (image - baseline)

    mean_gradients = _mean_gradients(model, on_the_path, steps, batch_size)
    score = score_function(model)

    def explain_batch(images, target):
        scores, target, gradients = mean_gradients(images, target)
        baseline_scores, _ = score(np.broadcast_to(baseline, images.shape), target)
        difference = images - baseline
        return (
            (difference * gradients).sum(axis=-1),  # (N, H, W)
            scores,
            target,
            {
                "equals baseline": (difference == 0).all(axis=(1, 2, 3)),
                "zero gradient": (gradients == 0).all(axis=(1, 2, 3)),
            },
            baseline_scores,
        )

    *results, baseline_scores = by_batches(explain_batch, images, target, batch_size)
    return IntegratedGradients.from_raw(PIXELS, *results, baseline_scores=baseline_scores)


@keep_compiled
def _gradient_function(model: keras.Model) -> Callable:
    """Compile (images, target) → scores (N,), target (N,), gradients (N, H, W, C)."""

    @tf.function(input_signature=batch_signature(model))
    def gradients(images, target):
        with tf.GradientTape() as tape:
            tape.watch(images)
            scores, target = class_score(model(images, training=False), target)
        gradient = tape.gradient(scores, images)
        if gradient is None:
            raise ValueError(
                f"The score of model '{model.name}' cannot be differentiated back to its input, of "
                f"type {model.inputs[0].dtype}; expected a floating type."
            )
        return scores, target, gradient

    return gradients


def _mean_gradients(model: keras.Model, point: Callable, points: int, batch_size: int) -> Callable:
    """As `_gradient_function`, with the mean of the gradients at several points for each image.

    `point` takes images (P, H, W, C) and indices (P,) of points, and returns these points (P, H, W,
    C).
    """
    score, gradients = score_function(model), _gradient_function(model)

    def mean_gradients(images, target):
        scores, target = score(images, target)
        total = np.zeros_like(images)
        for image, index in image_variant_pairs(len(images), points, batch_size):
            found = gradients(point(images[image], index), tf.gather(target, image))[2].numpy()
            for place, gradient in zip(image, found, strict=True):
                total[place] += gradient
        return scores, target, total / points

    return mean_gradients


def _magnitudes(scores: np.ndarray, target: np.ndarray, gradients: np.ndarray) -> Heatmaps:
    """Heatmaps of the channel where the gradient (N, H, W, C) is strongest."""
    strongest = np.abs(gradients).argmax(axis=-1)[..., None]
    raw = np.take_along_axis(gradients, strongest, axis=-1)[..., 0]
    reasons = {"zero gradient": ~gradients.any(axis=(1, 2, 3))}
    return Heatmaps.from_raw(PIXELS, raw, scores, target, reasons, evidence=np.abs(raw))
