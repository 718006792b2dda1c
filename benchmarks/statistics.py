"""Benchmarks of the statistics that are written here although libraries have them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from benchmarks.runner import Benchmark
from covid_lab.audit.predictability import PENALTIES, RESAMPLES, macro_auc, resample, ridge_scores
from covid_project.evaluation import bootstrap_auc, percentile_interval


@dataclass(frozen=True)
class Scale:
    """Scale of the benchmarks: that of an audit by default, or tiny to test them."""

    images: int = 2000
    pixels: int = 1600
    label_sets: int = 101
    resamples: int = RESAMPLES
    repeats: int = 5


def benchmarks(scale: Scale | None = None) -> Iterator[Benchmark]:
    """Compare the audit's ridge regression and its AUCs with scikit-learn's.

    Parameters
    ----------
    scale : Scale, optional
        Scale of the benchmarks; None: that of an audit.

    Yields
    ------
    Benchmark
        One comparison.
    """
    scale = scale or Scale()
    rng = np.random.default_rng(0)
    n = scale.images
    features = rng.normal(size=(n, scale.pixels)).astype(np.float32)
    labels = np.arange(n) % 2
    targets = np.stack([rng.permuted(labels) for _ in range(scale.label_sets)], axis=1)
    targets = targets.astype(np.float32)
    test = np.arange(n) % 5 == 0

    def library_ridge():
        scaler = StandardScaler().fit(features[~test])
        penalties = (~test).sum() * np.array(PENALTIES)
        model = RidgeCV(penalties, alpha_per_target=True)
        model.fit(scaler.transform(features[~test]), targets[~test])
        return model.predict(scaler.transform(features[test])) - targets[~test].mean(axis=0)

    yield Benchmark(
        name=f"ridge regression, {n} images, {scale.pixels} pixels, {scale.label_sets} label sets",
        against="scikit-learn's RidgeCV",
        ours=lambda: ridge_scores(features, targets, test),
        peer=library_ridge,
        agreement=_difference,
        tolerance=1e-3,
        repeats=scale.repeats,
    )
    scores = rng.normal(size=n) + labels
    weights = resample(labels, np.arange(n), rng)[: scale.resamples]
    yield Benchmark(
        name=f"AUC of {n} images in {len(weights)} resamples of groups",
        against="scikit-learn's roc_auc_score",
        ours=lambda: macro_auc(labels, scores[:, None], weights),
        peer=lambda: [roc_auc_score(labels, scores, sample_weight=row) for row in weights],
        agreement=_difference,
        tolerance=1e-9,
        repeats=scale.repeats,
    )
    few, few_scores = labels[:200], scores[:200]
    yield Benchmark(
        name="95 % interval of the AUC of 200 images",
        against="scikit-learn's roc_auc_score in a loop",
        ours=lambda: bootstrap_auc(few, few_scores),
        peer=lambda: _loop(few, few_scores),
        repeats=scale.repeats,
    )


def _difference(ours: np.ndarray, peer: np.ndarray) -> float:
    return float(np.abs(np.asarray(ours) - np.asarray(peer)).max())


def _loop(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Stratified bootstrap with scikit-learn."""
    rng = np.random.default_rng(0)
    groups = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    values = []
    for _ in range(2000):
        rows = np.concatenate([rng.choice(group, len(group)) for group in groups])
        values.append(roc_auc_score(labels[rows], scores[rows]))
    return percentile_interval(np.array(values))
