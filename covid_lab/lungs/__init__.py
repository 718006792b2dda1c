"""Lung segmentation: `segment_lungs`, and `implausible`, which names doubtful masks."""

from covid_lab.lungs.segmentation import implausible, segment_lungs

__all__ = ["implausible", "segment_lungs"]
