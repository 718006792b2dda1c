"""What every method gives: heatmaps, and where one is blank, the reason."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from covid_project.gradcam import normalize_heatmaps

PIXELS = "pixels"  # stands for the layer where a method looks at the image itself
_AGAINST = "all negative"


@dataclass(frozen=True, eq=False)
class Heatmaps:
    """The heatmaps of N images at one layer, whose features are h by w, or at the pixels.

    Attributes
    ----------
    layer : name of the layer whose features were weighted; "pixels" for a method that looks at the
        image itself, whose maps have the image's height and width.
    maps : (N, h, w) float32 in [0, 1]; each map that is not blank has 1 as its maximum.
    raw : (N, h, w) float32, the signed map from which `maps` keeps the positive part: positive
        where the image speaks for the class explained, negative where it speaks against it.
        (Saliency and SmoothGrad keep the magnitude instead; see there.)
    scores : (N,) float32, the class score explained: a logit, or minus the one logit for class 0.
    target : (N,) int32, the class explained.
    status : (N,) str, "ok", or why the map is blank:

        - "zero features": the layer is silent for this image;
        - "zero gradient": the score does not react to small changes at all;
        - "no change": the score does not react to whatever is hidden;
        - "equals baseline": the image is the one it is compared with;
        - "all negative": the score does react, but no place speaks for the class.

        Scores are logits, so a map is never blank because a final sigmoid saturates.
    """

    layer: str
    maps: np.ndarray
    raw: np.ndarray
    scores: np.ndarray
    target: np.ndarray
    status: np.ndarray

    @property
    def strength(self) -> np.ndarray:
        """Evidence where each map is 1, (N,) float32 in units of `raw`; 0 for a blank map."""
        flat = self.maps.reshape(len(self.maps), -1)
        hottest = flat.argmax(axis=1)[:, None]
        evidence = np.abs(np.take_along_axis(self.raw.reshape(flat.shape), hottest, axis=1))[:, 0]
        return evidence * flat.any(axis=1)

    @classmethod
    def from_raw(
        cls,
        layer: str,
        raw: np.ndarray,
        scores: np.ndarray,
        target: np.ndarray,
        reasons: dict[str, np.ndarray],
        evidence: np.ndarray | None = None,
        **more: np.ndarray,
    ) -> Self:
        """Normalise signed maps and say which are blank, and why.

        Parameters
        ----------
        reasons : status → (N,) bool, whether it holds; the first one that does is given for a
            blank map, "all negative" where none does.
        evidence : (N, h, w), what `maps` shows the positive part of; by default `raw`.
        more : further attributes of a subclass.

        Raises
        ------
        ValueError : for maps that are not finite; names the layer and the images.
        """
        finite = np.isfinite(raw).all(axis=(1, 2))
        if not finite.all():
            raise ValueError(
                f"Layer '{layer}' gives NaN or infinite maps for images "
                f"{np.flatnonzero(~finite).tolist()}; check the model's weights."
            )
        maps = normalize_heatmaps(raw if evidence is None else evidence)
        status = np.select([maps.any(axis=(1, 2)), *reasons.values()], ["ok", *reasons], _AGAINST)
        return cls(layer, maps, raw, scores, target, status, **more)


def on_one_scale(maps: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Maps (N, h, w) whose heat can be compared between images, still in [0, 1].

    Each is multiplied by its `Heatmaps.strength` (N,), and all are divided by the largest, so that
    only the strongest evidence among them is 1.
    """
    largest = strength.max(initial=0)
    shares = strength / largest if largest > 0 else np.zeros_like(strength)
    return maps * shares.astype(maps.dtype)[:, None, None]
