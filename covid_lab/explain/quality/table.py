"""All tests of all methods in one table, with intervals and comparisons with the baselines."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from covid_lab.explain.class_score import (
    PREDICTED,
    by_batches,
    checked,
    score_function,
)
from covid_lab.explain.heatmaps import Heatmaps
from covid_lab.explain.outputs import remove_final_activation
from covid_lab.explain.quality.baselines import Method, baseline
from covid_lab.explain.quality.faithfulness import (
    Probability,
    deletion,
    insertion,
    probability_function,
    road,
)
from covid_lab.explain.quality.localisation import energy_inside, iou_at_otsu, pointing_game
from covid_lab.explain.quality.sanity import blocks, randomisations
from covid_lab.explain.quality.similarities import similarity, similarity_of_pairs
from covid_lab.explain.quality_terms import (
    BASELINES,
    COLUMNS,
    DELETION,
    FAITHFULNESS,
    LOCALISATION,
    MOST_FIRST,
    POINTING_GAME,
    SANITY,
    STABILITY,
    TESTS,
    is_lower_better,
)
from covid_lab.progress import tracked
from covid_lab.statistics import mean_interval
from covid_project.evaluation import wilson_interval

ROUNDING = 1e-6  # of a mean similarity, so that equal maps do not pass as less similar


@dataclass(frozen=True, eq=False)
class _Measurement:
    """One measure of one method: values (N,), NaN where undefined, and their reference value."""

    test: str
    measure: str
    setting: str
    values: np.ndarray
    blank: int
    reference: float = np.nan

    @property
    def key(self) -> tuple[str, str, str]:
        return self.test, self.measure, self.setting


def explanation_quality(
    model: keras.Model,
    images: ArrayLike,
    methods: Mapping[str, Method],
    *,
    masks: Mapping[str, np.ndarray] | None = None,
    target: ArrayLike = PREDICTED,
    second_model: keras.Model | None = None,
    tests: Sequence[str] = TESTS,
    noise: float = 5,
    steps: int = 10,
    groups: int = 8,
    sanity_images: int = 16,
    seed: int = 0,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Test explanations of one model on some images, and three baselines with them.

    Parameters
    ----------
    model : keras.Model
        As for `grad_cam`.
    images : array_like, (N, H, W, C), uint8 or float, 0..255
        As for `grad_cam`; N is 1 or more.
    methods : mapping of str to Method
        Name → (model, images, target) → Heatmaps.
    masks : mapping of str to np.ndarray, (N, H, W), bool, optional
        Masks by name of a finding or organ, for localisation. An image with an empty mask does not
        count.
    target : int, array_like of int (N,), or "predicted"
        As for `grad_cam`. The predicted class is that of the given images, in every test.
    second_model : keras.Model, optional
        The same architecture trained with another seed, for stability; by default this part is left
        out.
    tests : sequence of str
        Which of `TESTS` to run.
    noise : float, 0 or more
        Standard deviation of the noise in grey levels, for stability.
    steps : int, 1 or more
        Steps of deletion and insertion.
    groups : int, 1 or more
        Largest number of groups into which the layers are divided for randomisation.
    sanity_images : int, 1 or more
        How many of the images (the first ones) are explained again after randomisation.
    seed : int
        Seed of baselines, noise, randomised weights, pairs of images and bootstrap.
    batch_size : int
        Images per forward pass.

    Returns
    -------
    pd.DataFrame
        Table with the columns `COLUMNS`, method by method, the baselines last:

        - layer: what was explained;
        - test, measure, setting: one of `TESTS`, what was measured, and how;
        - versus: missing for the mean over images, else the baseline from which `value` is the mean
          difference, image by image;
        - value, low, high, n: the mean, its 95 % interval (percentile bootstrap over images, 2000
          resamples; Wilson's for the pointing game, which is a fraction) and the number of images.
          Bounds of the bootstrap are NaN for fewer than two images;
        - blank: images left out because a map is blank;
        - reference: for similarities, the mean over 50 random pairs of different images' maps;
        - verdict: for sanity "pass" where the similarity is below the reference, else "fail"; for
          stability "pass" above it; for a difference "better" or "worse" than the baseline where
          the interval, not adjusted for the number of comparisons, excludes 0, else "no
          difference". Missing where the value or the reference is undefined.

    Raises
    ------
    ValueError
        The images, a target or a mask is invalid, there are no images, a test is unknown, or a
        method has the name of a baseline.

    Notes
    -----
    Prints its progress. Most of the time is spent on faithfulness, with about fifty forward passes
    per image and method, and on sanity. `steps`, `groups` and `sanity_images` reduce it.

    Examples
    --------
    >>> from covid_lab.explain.gradcam import grad_cam
    >>> from covid_lab.explain.gradients import saliency
    >>> methods = {"grad-cam": grad_cam, "saliency": saliency}
    >>> model = keras.saving.load_model("model.keras", compile=False)
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1)).astype(np.uint8)
    >>> table = explanation_quality(model, images, methods, tests=("stability",))
    explanations: heatmaps: ...
    >>> table["test"].unique().tolist()
    ['stability']
    """
    model = remove_final_activation(model)
    images, target = checked(model, images, target)
    masks = {} if masks is None else masks
    _check(methods, masks, tests, len(images))
    _, target = by_batches(score_function(model), images, target, batch_size)
    methods = {**methods, **{kind: baseline(kind, seed) for kind in BASELINES}}
    heatmaps = {
        name: methods[name](model, images, target)
        for name in tracked(methods, "explanations: heatmaps")
    }
    found = {name: [] for name in methods}
    if LOCALISATION in tests:
        for name in methods:
            found[name] += _localisation(heatmaps[name], masks)
    if FAITHFULNESS in tests:
        probability = probability_function(model)
        for name in tracked(methods, f"explanations: {FAITHFULNESS}"):
            found[name] += _faithfulness(
                probability, images, heatmaps[name], steps, seed, batch_size
            )
    references = {name: similarity_of_pairs(heatmaps[name], seed=seed) for name in methods}
    if STABILITY in tests:
        changed = {f"noise of {noise:g} grey levels": (model, _noisy(images, noise, seed))}
        if second_model is not None:
            changed["another seed"] = (second_model, images)
        for name in tracked(methods, f"explanations: {STABILITY}"):
            for setting, case in changed.items():
                values = similarity(heatmaps[name], methods[name](*case, target))
                found[name] += _similarities(STABILITY, setting, values, references[name])
    if SANITY in tests:
        layers, few = blocks(model, groups), slice(sanity_images)
        models = randomisations(model, layers, seed)
        for order, group, other in tracked(models, f"explanations: {SANITY}", 2 * len(layers)):
            for name, method in methods.items():
                values = similarity(
                    heatmaps[name].take(few), method(other, images[few], target[few])
                )
                found[name] += _similarities(SANITY, f"{order} {group}", values, references[name])
    return pd.DataFrame(
        [
            {"method": name, "layer": heatmaps[name].layer, **row}
            for name in methods
            for row in _rows(found[name], {} if name in BASELINES else found, seed)
        ],
        columns=COLUMNS,
    )


def _noisy(images: np.ndarray, deviation: float, seed: int) -> np.ndarray:
    """Images with Gaussian noise, float32 in 0..255."""
    noise = np.random.default_rng(seed).normal(0, deviation, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.float32)


def _localisation(heatmaps: Heatmaps, masks: Mapping[str, np.ndarray]) -> list[_Measurement]:
    functions = {
        "energy inside": energy_inside,
        POINTING_GAME: pointing_game,
        "IoU at Otsu's threshold": iou_at_otsu,
    }
    return [
        _Measurement(LOCALISATION, measure, name, function(heatmaps.maps, mask), _blank(heatmaps))
        for name, mask in masks.items()
        for measure, function in functions.items()
    ]


def _faithfulness(
    probability: Probability,
    images: np.ndarray,
    heatmaps: Heatmaps,
    steps: int,
    seed: int,
    batch_size: int,
) -> list[_Measurement]:
    case = probability, images, heatmaps.maps, heatmaps.target
    most, least = road(*case, seed=seed, batch_size=batch_size)
    measures = {
        (DELETION, "to the mean"): _area(deletion(*case, steps, batch_size)),
        ("insertion", "from blurred"): _area(insertion(*case, steps, batch_size)),
        ("ROAD", MOST_FIRST): most.mean(axis=1),
        ("ROAD", "least relevant first"): least.mean(axis=1),
        ("ROAD", "least less most"): (least - most).mean(axis=1),
    }
    return [
        _Measurement(FAITHFULNESS, *names, values, _blank(heatmaps))
        for names, values in measures.items()
    ]


def _area(curve: np.ndarray) -> np.ndarray:
    """Area under curves (N, steps + 1) over the fraction of pixels."""
    return np.trapezoid(curve, dx=1 / (curve.shape[1] - 1), axis=1)


def _similarities(
    test: str, setting: str, values: Mapping[str, np.ndarray], references: Mapping[str, float]
) -> list[_Measurement]:
    blank = int(np.isnan(values["SSIM"]).sum())
    return [
        _Measurement(test, measure, setting, found, blank, references[measure])
        for measure, found in values.items()
    ]


def _rows(
    measurements: Iterable[_Measurement], others: Mapping[str, list[_Measurement]], seed: int
) -> Iterator[dict[str, object]]:
    """Rows of one method: each mean, then its differences from the baselines among the others."""
    baselines = {
        kind: {one.key: one.values for one in others[kind]} for kind in BASELINES if kind in others
    }
    for one in measurements:
        value, low, high, n = mean_interval(one.values, seed)
        if one.measure == POINTING_GAME:
            # Rounded, because n times a mean may be just below an integer.
            low, high = wilson_interval(round(value * n) if n else 0, n)
        common = {"test": one.test, "measure": one.measure, "setting": one.setting}
        common |= {"blank": one.blank, "reference": one.reference}
        numbers = {"value": value, "low": low, "high": high, "n": n}
        yield {**common, **numbers, "versus": None, "verdict": _passes(one, value)}
        if one.test not in (LOCALISATION, FAITHFULNESS):
            continue
        for kind, values in baselines.items():
            value, low, high, n = mean_interval(one.values - values[one.key], seed)
            numbers = {"value": value, "low": low, "high": high, "n": n}
            yield {**common, **numbers, "versus": kind, "verdict": _compared(one, low, high)}


def _passes(one: _Measurement, value: float) -> str | None:
    if np.isnan(value) or np.isnan(one.reference):
        return None
    if one.test == SANITY:
        return "pass" if value < one.reference - ROUNDING else "fail"
    return "pass" if value > one.reference + ROUNDING else "fail"


def _compared(one: _Measurement, low: float, high: float) -> str | None:
    if np.isnan(low):
        return None
    if is_lower_better(*one.key):
        low, high = -high, -low
    return "better" if low > 0 else "worse" if high < 0 else "no difference"


def _blank(heatmaps: Heatmaps) -> int:
    return int((heatmaps.status != "ok").sum())


def _check(
    methods: Mapping[str, Method], masks: Mapping[str, np.ndarray], tests: Sequence[str], count: int
) -> None:
    if unknown := sorted(set(tests) - set(TESTS)):
        raise ValueError(f"Unknown tests {unknown}; the tests are {list(TESTS)}.")
    if taken := sorted(set(methods) & set(BASELINES)):
        raise ValueError(f"Methods {taken} have the names of baselines; give them others.")
    if count == 0:
        raise ValueError("There are no images to explain; expected one or more.")
    for name, mask in masks.items():
        if len(mask) != count:
            raise ValueError(f"There are {len(mask)} masks '{name}' for {count} images.")
