"""LIME with the lime library: which superpixels of an image support the class score.

Superpixels are switched off at random, and a linear model predicts the class score from the
superpixels that remain. Samples nearer to the image have more weight. The library draws the
samples and fits the model. Four parts differ from its defaults:

- superpixels come from SLIC, which needs no random numbers, because the library ignores the seed
  that it is given for quickshift;
- the score is the signed logit instead of the probability, which hardly changes where the network
  is confident;
- grey images are passed to the library with three equal channels;
- whole batches of samples are blended at once, with the library's random numbers; the library
  blends one superpixel at a time.

A local fit can be poor, and other samples can give other weights. Both are measured and returned.

References
----------
Ribeiro, Singh & Guestrin, "Why Should I Trust You? Explaining the Predictions of Any Classifier",
KDD 2016. Achanta et al., "SLIC Superpixels Compared to State-of-the-Art Superpixel Methods", IEEE
Transactions on Pattern Analysis and Machine Intelligence 2012.
"""

from dataclasses import dataclass

import keras
import numpy as np
from lime.lime_image import LimeImageExplainer
from numpy.typing import ArrayLike
from skimage.segmentation import slic

from covid_lab.explain.class_score import by_batches, checked, score_function
from covid_lab.explain.heatmaps import PIXELS, Heatmaps
from covid_lab.explain.outputs import remove_final_activation


@dataclass(frozen=True, eq=False)
class LimeHeatmaps(Heatmaps):
    """Heatmaps whose `raw` (N, H, W) is the weight of each pixel's superpixel.

    Attributes
    ----------
    fit : np.ndarray, (N,), float64
        Weighted R² of the linear model around each image, mean over the runs. Near 1 it represents
        the network there; near 0 the weights mean little.
    stability : np.ndarray, (N,), float64
        Mean Pearson correlation between the weights of two runs, which differ in the samples drawn.
        NaN for a single run, and where a run's weights are all equal.
    """

    fit: np.ndarray
    stability: np.ndarray


def lime(
    model: keras.Model,
    images: ArrayLike,
    target: ArrayLike,
    superpixels: int = 50,
    samples: int = 500,
    runs: int = 2,
    seed: int = 0,
    batch_size: int = 32,
) -> LimeHeatmaps:
    """LIME: weights of superpixels in a linear model of the class score around each image.

    Takes `samples` · `runs` forward passes for each image.

    Parameters
    ----------
    model, images, target : as for `grad_cam`
    superpixels : int, 2 or more
        Approximate number of superpixels; see `segment`.
    samples : int, 2 or more
        Images per run, in which each superpixel is replaced by its mean colour with probability
        1/2; the first sample is the image itself.
    runs : int, 1 or more
        Independent draws of samples. `raw` is the mean of their weights, in units of the score.
    seed : int
        Seed of the samples. Run r uses seed + r for every image, so that a map does not depend on
        the other images.
    batch_size : int
        Samples per forward pass. Apart from the maps, memory does not grow with N.

    Returns
    -------
    LimeHeatmaps
        Maps at the pixels, with the quality of the fit.

    Raises
    ------
    ValueError
        The input is invalid (see `grad_cam`), or `superpixels`, `samples` or `runs` is out of
        range.
    """
    if samples < 2 or runs < 1:
        raise ValueError(f"samples is {samples}, runs {runs}; expected 2 or more, 1 or more.")
    model = remove_final_activation(model)
    images, target = checked(model, images, target)
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"Images have {images.shape[-1]} colour channels; LIME takes 1 or 3.")
    score = score_function(model)
    scores, target = by_batches(score, images, target, batch_size)
    raw = np.zeros(images.shape[:3], np.float32)
    fit, stability = np.zeros(len(images)), np.zeros(len(images))
    for i, image in enumerate(images.astype(np.float32)):
        segments = segment(image, superpixels)

        def sample_scores(pictures, own=target[i]):
            pictures = pictures[..., : images.shape[-1]]
            return score(pictures, np.full(len(pictures), own))[0].numpy()[:, None]

        found = [
            _weights_and_fit(sample_scores, image, segments, samples, seed + run, batch_size)
            for run in range(runs)
        ]
        weights = np.array([weights for weights, _ in found])  # (runs, S)
        raw[i] = weights.mean(axis=0)[segments]
        fit[i] = np.mean([r2 for _, r2 in found])
        stability[i] = _mean_correlation(weights)
    reasons = {"no change": ~raw.any(axis=(1, 2))}
    return LimeHeatmaps.from_raw(PIXELS, raw, scores, target, reasons, fit=fit, stability=stability)


def segment(image: np.ndarray, superpixels: int) -> np.ndarray:
    """Divide an image into superpixels (SLIC; Achanta et al. 2012).

    SLIC runs on values scaled to 0..1, with compactness 0.1 for grey images and 10 for colour
    images.

    Parameters
    ----------
    image : np.ndarray, (H, W, 1 or 3), 0..255
        Image.
    superpixels : int, 2 or more
        Approximate number of superpixels; the number found depends on the image.

    Returns
    -------
    np.ndarray, (H, W), int64
        Number of each pixel's superpixel, from 0 without gaps. Superpixels are connected.

    Raises
    ------
    ValueError
        `superpixels` is below 2.
    """
    if superpixels < 2:
        raise ValueError(f"superpixels is {superpixels}; expected 2 or more.")
    scaled = np.asarray(image, np.float64) / 255
    found = slic(
        scaled if scaled.shape[-1] == 3 else scaled[..., 0],
        n_segments=superpixels,
        compactness=0.1 if scaled.shape[-1] == 1 else 10,
        channel_axis=-1 if scaled.shape[-1] == 3 else None,
        start_label=0,
    )
    return np.unique(found, return_inverse=True)[1].reshape(found.shape)  # numbered without gaps


class _BatchedExplainer(LimeImageExplainer):
    """The library's explainer, which blends the samples of a whole batch at once."""

    def data_labels(self, image, fudged_image, segments, classifier_fn, num_samples, batch_size=10):
        """Which superpixels each sample keeps (M, S), and its score (M, 1)."""
        superpixels = segments.max() + 1
        kept = self.random_state.randint(0, 2, num_samples * superpixels)
        kept = kept.reshape(num_samples, superpixels)
        kept[0] = 1
        scores = []
        for start in range(0, num_samples, batch_size):
            shown = kept[start : start + batch_size, segments, None] == 1  # (P, H, W, 1)
            scores.append(classifier_fn(np.where(shown, image, fudged_image)))
        return kept, np.concatenate(scores)


def _weights_and_fit(
    sample_scores, image: np.ndarray, segments: np.ndarray, samples: int, seed: int, batch_size: int
) -> tuple[np.ndarray, float]:
    """Weights (S,) of one image's superpixels, and the weighted R² of their linear model."""
    explained = _BatchedExplainer(random_state=seed).explain_instance(
        np.broadcast_to(image, (*image.shape[:2], 3)),
        sample_scores,
        labels=(0,),  # the only column
        top_labels=None,
        num_samples=samples,
        batch_size=batch_size,
        segmentation_fn=lambda _: segments,
        random_seed=seed,  # else the library draws one from our samples' stream
    )
    superpixels, weights = zip(*explained.local_exp[0], strict=True)
    return np.array(weights)[np.argsort(superpixels)], float(explained.score)


def _mean_correlation(weights: np.ndarray) -> float:
    """Mean correlation between all pairs of rows of weights (R, S); NaN where it is undefined."""
    if len(weights) < 2 or (np.ptp(weights, axis=1) == 0).any():
        return np.nan
    return float(np.corrcoef(weights)[np.triu_indices(len(weights), k=1)].mean())
