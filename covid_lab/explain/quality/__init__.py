"""Tests of explanations: whether a map shows what it claims to show.

`explanation_quality` runs all tests of all methods: localisation against masks, faithfulness to the
model, sanity under randomised weights, and stability. It compares each method with three baselines
that are independent of the model. Each measure is a pure function in the module of its test. A
method under test is a callable (model, images, target) → `Heatmaps`, like all methods of `explain`.
"""

from covid_lab.explain.quality.table import explanation_quality

__all__ = ["explanation_quality"]
