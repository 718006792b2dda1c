"""Tests of explanations: whether a map shows what it claims to show.

`explanation_quality` runs all tests of all methods: localisation against masks, faithfulness to the
model, sanity under randomised weights, and stability. It compares each method with three baselines
that are independent of the model. Each measure is a pure function in the module of its test. A
method under test is a callable (model, images, target) → `Heatmaps`, like all methods of `explain`.
"""

from covid_lab.explain.quality.baselines import Method, baseline, baseline_maps
from covid_lab.explain.quality.faithfulness import (
    area,
    deletion,
    impute,
    insertion,
    probability_function,
    road,
)
from covid_lab.explain.quality.localisation import (
    box_masks,
    energy_inside,
    iou_at_otsu,
    pointing_game,
)
from covid_lab.explain.quality.sanity import blocks, randomisations, randomised
from covid_lab.explain.quality.similarities import (
    rank_correlation,
    similarity,
    similarity_of_pairs,
    ssim,
)
from covid_lab.explain.quality.stability import across_seeds, noisy, under_noise
from covid_lab.explain.quality.table import explanation_quality
from covid_lab.explain.quality_terms import BASELINES

__all__ = [
    "BASELINES", "Method", "across_seeds", "area", "baseline", "baseline_maps", "blocks",
    "box_masks", "deletion", "energy_inside", "explanation_quality", "impute", "insertion",
    "iou_at_otsu", "noisy", "pointing_game", "probability_function",
    "randomisations", "randomised", "rank_correlation", "road", "similarity",
    "similarity_of_pairs", "ssim", "under_noise",
]  # fmt: skip
