"""What every method returns: heatmaps, and the reason where one is blank."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from covid_project.gradcam import normalize_heatmaps

PIXELS = "pixels"  # in place of a layer, for methods that explain with the image itself
_AGAINST = "all negative"


@dataclass(frozen=True, eq=False)
class Heatmaps:
    """The heatmaps of N images at one layer or at the pixels.

    Attributes
    ----------
    layer : str
        Name of the layer whose features were weighted; "pixels" for a method that explains with the
        image itself, whose maps have the image's height and width.
    maps : np.ndarray, (N, h, w), float32, [0, 1]
        Each map that is not blank has 1 as its maximum.
    raw : np.ndarray, (N, h, w), float32
        The signed map whose positive part is shown in `maps`: positive where the image is evidence
        for the class explained, negative where it is evidence against it. (For saliency and
        SmoothGrad, `maps` shows the magnitude instead.)
    scores : np.ndarray, (N,), float32
        The class score explained: a logit, or minus the only logit for class 0. Since scores are
        logits, a map is never blank because a final sigmoid saturates.
    target : np.ndarray, (N,), int32
        The class explained.
    status : np.ndarray, (N,), str
        "ok", or why the map is blank:

        - "zero features": the layer does not respond to this image;
        - "zero gradient": the score does not react to small changes;
        - "no change": the score stays the same whatever is hidden;
        - "equals baseline": the image equals the baseline that it is compared with;
        - "all negative": the score reacts, but no place is evidence for the class.
    """

    layer: str
    maps: np.ndarray
    raw: np.ndarray
    scores: np.ndarray
    target: np.ndarray
    status: np.ndarray

    @property
    def strength(self) -> np.ndarray:
        """Evidence where each map is 1.

        Returns
        -------
        np.ndarray, (N,), float32
            In units of `raw`; 0 for a blank map.
        """
        flat = self.maps.reshape(len(self.maps), -1)
        hottest = flat.argmax(axis=1)[:, None]
        evidence = np.abs(np.take_along_axis(self.raw.reshape(flat.shape), hottest, axis=1))[:, 0]
        return evidence * flat.any(axis=1)

    def take(self, rows: np.ndarray | slice) -> "Heatmaps":
        """The heatmaps of some images.

        Parameters
        ----------
        rows : np.ndarray, (n,), int, or slice
            Which of the N images.

        Returns
        -------
        Heatmaps
            Their maps, without the attributes of a subclass.
        """
        arrays = self.maps, self.raw, self.scores, self.target, self.status
        return Heatmaps(self.layer, *(array[rows] for array in arrays))

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
        """Normalise signed maps and record which are blank, and why.

        Parameters
        ----------
        layer : str
            Name of the layer, or `PIXELS`.
        raw : np.ndarray, (N, h, w), float32
            Signed maps.
        scores : np.ndarray, (N,), float32
            Class scores explained.
        target : np.ndarray, (N,), int32
            Classes explained.
        reasons : dict of str to np.ndarray, (N,), bool
            For each possible status, the images it applies to. A blank map gets the first status
            that applies, or "all negative" where none does.
        evidence : np.ndarray, (N, h, w), optional
            What `maps` shows the positive part of; by default `raw`.
        **more : np.ndarray
            Further attributes of a subclass.

        Returns
        -------
        Heatmaps
            The maps, of the class that the method is called on.

        Raises
        ------
        ValueError
            Maps are not finite; the message names the layer and the images.
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
