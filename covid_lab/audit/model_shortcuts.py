"""Does a trained model use shortcuts? It is shown parts of the images, and its Grad-CAM is located.

The parts are the border, the image without the lungs, and the lungs. What is removed is filled with
the mean of what remains. The fraction of Grad-CAM (of the predicted class, at the last spatial
layer) inside the lungs is compared with the fraction of the image that the lungs occupy.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from covid_lab.audit.blocks import blocks
from covid_lab.audit.findings import Finding
from covid_lab.audit.lung_regions import common_lungs, fill_with_mean, find_lungs
from covid_lab.audit.predictability import NULL_QUANTILE, macro_auc, resample, shuffle_labels
from covid_lab.audit.shortcuts import AREA, AT_ONCE, judge
from covid_lab.datasets import load_images
from covid_lab.masks import border
from covid_project.data import Dataset
from covid_project.evaluation import percentile_interval


def audit_model(
    model: "keras.Model",  # noqa: F821  not imported at the top
    dataset: Dataset,
    rows: np.ndarray,
    *,
    masks: Path | None = None,
    seed: int = 0,
) -> list[Finding]:
    """Show a trained model the border, the image without lungs, and the lungs; locate its heat.

    Parameters
    ----------
    model : keras.Model
        Takes images (N, S, S, 1 or 3), 0–255. It returns one logit, or one per class of the data
        set. A final activation is removed.
    dataset : Dataset
        Images that the model was not trained on.
    rows : np.ndarray, int (M,)
        Row numbers of the images in the table, such as ``dataset.rows("test")``.
    masks : Path, optional
        Lung masks, see `covid_lab.audit.shortcuts.audit_shortcuts`.
    seed : int
        Of shuffled labels and resamples.

    Returns
    -------
    list of Finding
        Of the area "shortcuts": one for each part of the images, and one for Grad-CAM. A single
        finding, "not applicable", where a class has no image.

    Raises
    ------
    ValueError
        The model does not take such images, or has another number of classes.
    DataError
        Images or masks that cannot be read, or an image without its mask.

    Notes
    -----
    The border and the image without lungs are judged by `covid_lab.audit.shortcuts.judge`. The
    lungs pass where the interval of their AUC is above the null's 95 % quantile, and warn
    otherwise. Grad-CAM passes where its fraction inside the lungs is measurably larger than the
    lungs' fraction of the image, fails where it is measurably smaller, and warns otherwise.
    """
    table = dataset.table.iloc[rows].reset_index(drop=True)
    dataset = dataclasses.replace(dataset, table=table)
    # Imported here: the other audits need no network, and TensorFlow takes seconds to load.
    from covid_lab.explain.class_score import PREDICTED
    from covid_lab.explain.gradcam import grad_cam, last_spatial_layer, remove_final_activation
    from covid_project.gradcam import resize_heatmaps

    logits = remove_final_activation(model)
    side, width, channels = logits.inputs[0].shape[1:]
    classes = max(logits.outputs[0].shape[-1], 2)
    if side is None or side != width or channels not in (1, 3):
        raise ValueError(
            f"model '{model.name}' takes images {(side, width, channels)}; (S, S, 1 or 3) is needed"
        )
    if classes != len(dataset.classes):
        raise ValueError(
            f"model '{model.name}' tells {classes} classes apart, the data have "
            f"{len(dataset.classes)}: {', '.join(dataset.classes)}"
        )
    absent = set(range(classes)) - set(table["label"])
    if absent:
        reason = f"no images of {', '.join(dataset.classes[label] for label in sorted(absent))}"
        return [Finding(AREA, "the model without the lungs", "not applicable", reason)]
    images = load_images(dataset, side)[..., 0]
    parts = (images[rows] for rows in blocks(len(images), 1, AT_ONCE))
    lungs, origin = find_lungs(dataset, parts, masks, progress=lambda *_: None)
    lungs = None if lungs is None else lungs.view(bool)

    labels = table["label"].to_numpy()
    groups = pd.factorize(table["group"])[0]
    rng = np.random.default_rng(seed)
    weights = resample(labels, groups, rng)
    shuffled = shuffle_labels(labels, groups, np.zeros(len(labels)), rng)

    def _show(kept: np.ndarray) -> np.ndarray:
        shown = fill_with_mean(images, np.broadcast_to(kept, images.shape))
        return np.repeat(shown[..., None], channels, axis=-1)

    def _measure(kept: np.ndarray) -> tuple[float, float, float, float]:
        """AUC, its interval, and its quantile under shuffled labels."""
        scores = logits.predict(_show(kept), batch_size=32, verbose=0)
        low, high = percentile_interval(macro_auc(labels, scores, weights))
        null = [macro_auc(other, scores)[0] for other in shuffled]
        return macro_auc(labels, scores)[0], low, high, np.quantile(null, NULL_QUANTILE)

    everything = np.ones((side, side), bool)
    whole, *_ = _measure(everything)
    views = {"border": border(side)}
    if lungs is not None:
        views |= {"image without lungs": ~common_lungs(lungs), "lungs": lungs}
    findings = []
    for name, kept in views.items():
        auc, low, high, null_high = _measure(kept)
        if name == "lungs":
            verdict = "pass" if low > null_high else "warn"
        else:
            verdict = judge(auc, low, null_high, whole)
        found = (
            f"AUC {auc:.3f} ({low:.3f} to {high:.3f}), {null_high:.3f} by chance, {whole:.3f} on "
            "the whole images"
        )
        check = f"the model on the {name} alone"
        findings.append(Finding(AREA, check, verdict, found, auc, low, high, len(labels)))
    check = "share of Grad-CAM inside the lungs"
    if lungs is None:
        return [*findings, Finding(AREA, check, "not applicable", origin)]
    layer = last_spatial_layer(logits)
    maps = grad_cam(logits, _show(everything), PREDICTED, layer).maps
    heat = resize_heatmaps(maps, (side, side))
    return [*findings, _focus(check, heat, lungs, weights, f"{layer}; {origin}")]


def _focus(
    check: str, heat: np.ndarray, lungs: np.ndarray, weights: np.ndarray, origin: str
) -> Finding:
    """Compare the fraction of heat (N, S, S) inside the lungs with their fraction of the image.

    "pass" where it is measurably larger, "fail" where it is measurably smaller, else "warn".
    """
    total = heat.sum(axis=(1, 2))
    seen = total > 0
    if not seen.any():
        return Finding(AREA, check, "not applicable", "every heatmap is blank")
    inside = (heat * lungs).sum(axis=(1, 2))[seen] / total[seen]
    area = lungs.mean(axis=(1, 2))[seen]
    weights = weights[:, seen].astype(np.float32)
    weights /= weights.sum(axis=1, keepdims=True)
    low, high = percentile_interval(weights @ inside)
    least, most = percentile_interval(weights @ (inside - area))
    verdict = "pass" if least > 0 else "fail" if most < 0 else "warn"
    # The report reads the lungs' area from "take …%".
    found = (
        f"{inside.mean():.1%} ({low:.1%} to {high:.1%}) of the heat is inside the lungs, which "
        f"take {area.mean():.1%} of the image; {np.sum(~seen)} of {len(seen)} maps are blank; "
        f"{origin}"
    )
    return Finding(AREA, check, verdict, found, inside.mean(), low, high, int(seen.sum()))
