"""Gradients with respect to the image: saliency, SmoothGrad, Integrated Gradients.

All three average the gradient of the class score over points near or on the way to the image; a
method supplies these points. Saliency takes the image alone. The manner of calling is that of
`gradcam`.

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
    checked_images,
    checked_target,
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
    """How strongly the class score reacts to each pixel, at the pixels of the image (N, H, W).

    Parameters
    ----------
    model, images, target, batch_size : as for `grad_cam`.

    Returns
    -------
    Heatmaps
        `raw` is the gradient of the score, of the colour channel where it is strongest: positive
        where a brighter pixel would raise the score. `maps` shows its magnitude, the saliency
        M_ij = max_c |∂S/∂I_ijc| of Simonyan et al. 2014, section 3.1, divided by its maximum.

    Raises
    ------
    ValueError : for bad input, as `grad_cam`; for a model whose input is of an integer type, as
        it has no gradient.
    """
    model = remove_final_activation(model)
    images = checked_images(model, images)
    target = checked_target(model, target, len(images))
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
    """Saliency averaged over noisy copies of the image, which smooths what flickers.

    Smilkov et al. 2017, section 2.2: the mean over n samples of ∂S/∂I at I + ε, ε ~ N(0, σ²).
    Returned and refused as by `saliency`.

    Parameters
    ----------
    model, images, target, batch_size : as for `grad_cam`. The score, and the predicted class, are
        those of the image without noise.
    samples : noisy copies of each image, 1 or more.
    noise : σ as a share of the image's own range (largest less smallest value); the paper
        recommends 0.1 to 0.2.
    seed : of the noise. Every image gets the same noise, so that its map does not depend on the
        images beside it.
    """
    if samples < 1 or noise < 0:
        raise ValueError(f"samples is {samples}, noise {noise}; expected 1 or more, 0 or more.")
    model = remove_final_activation(model)
    images = checked_images(model, images)
    target = checked_target(model, target, len(images))
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
    """Heatmaps whose `raw` shares the score out among the pixels.

    Attributes
    ----------
    baseline_scores : (N,) float32, the class score of the baseline.
    """

    baseline_scores: np.ndarray

    @property
    def residual(self) -> np.ndarray:
        """What completeness leaves open, (N,) float64: Σ raw − (scores − baseline_scores).

        Sundararajan et al. 2017, proposition 1, make it 0 for the exact integral; what is found is
        the error of the sum over steps. Judge it against scores − baseline_scores.
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
    """How much each pixel adds to the class score on the way from a baseline to the image.

    Sundararajan et al. 2017, equation 1, for an image x and a baseline x′:

        (x − x′) ∘ ∫₀¹ ∂S/∂x at x′ + α (x − x′) dα

    summed over the colour channels. The integral is a mean over the midpoints of equal `steps`,
    whose error falls with their square (equation 3 takes their ends, and converges more slowly).

    Parameters
    ----------
    model, images, target, batch_size : as for `grad_cam`. The predicted class is the image's.
    baseline : the image that stands for no evidence: one grey value, by default black, or an image
        (H, W, C). Pixels that equal it get no share, whatever they mean.
    steps : 1 or more.

    Returns
    -------
    IntegratedGradients
        With `raw` at the pixels (N, H, W), in units of the score, and `residual`, which says
        whether the steps suffice.

    Raises
    ------
    ValueError : for bad input, as `grad_cam`; for a model whose input is of an integer type, as
        it has no gradient; for a baseline of another shape.
    """
    model = remove_final_activation(model)
    images = checked_images(model, images)
    target = checked_target(model, target, len(images))
    baseline = np.asarray(baseline, np.float32)
    if steps < 1 or baseline.shape not in ((), images.shape[1:]):
        raise ValueError(
            f"steps is {steps}, the baseline's shape {baseline.shape}; expected 1 or more, and one "
            f"grey value or an image {images.shape[1:]}."
        )

    def on_the_way(image, step):
        share = (step + 0.5).astype(np.float32).reshape(-1, 1, 1, 1) / steps
        return baseline + share * (image - baseline)

    mean_gradients, score = (
        _mean_gradients(model, on_the_way, steps, batch_size),
        score_function(model),
    )

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
    """As `_gradient_function`, with the mean of the gradients at several points of each image.

    `point` takes images (P, H, W, C) and the indices (P,) of points, and gives these (P, H, W, C).
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
