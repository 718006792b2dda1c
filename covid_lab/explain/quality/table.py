"""All tests of all methods in one table, with intervals and against the baselines."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from covid_lab.explain.class_score import (
    PREDICTED,
    by_batches,
    checked_images,
    checked_target,
    score_function,
)
from covid_lab.explain.heatmaps import Heatmaps
from covid_lab.explain.outputs import remove_final_activation
from covid_lab.explain.quality.baselines import Method, baseline
from covid_lab.explain.quality.faithfulness import (
    Probability,
    area,
    deletion,
    insertion,
    probability_function,
    road,
)
from covid_lab.explain.quality.localisation import energy_inside, iou_at_otsu, pointing_game
from covid_lab.explain.quality.sanity import blocks, randomisations
from covid_lab.explain.quality.similarities import similarity, similarity_of_pairs
from covid_lab.explain.quality.stability import across_seeds, under_noise
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
from covid_project.evaluation import drawn_rows, percentile_interval, wilson_interval

ROUNDING = 1e-6  # of a mean similarity; equal maps must not pass for less alike than equal maps


@dataclass(frozen=True, eq=False)
class _Measurement:
    """One measure of one method: values (N,), NaN where undefined, and what they are held to."""

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
    """Test explanations of one model on some images; the three baselines are tested beside them.

    Parameters
    ----------
    model, images, target : as for `grad_cam`. The class explained is found once, on the given
        images, and kept in every test.
    methods : name → (model, images, target) → Heatmaps.
    masks : name of a finding or organ → (N, H, W) bool, for localisation. An image whose mask is
        empty does not count.
    second_model : the same architecture trained with another seed, for stability; left out where
        None.
    tests : which of `TESTS` to run.
    noise : grey levels, for stability.
    steps : of deletion and insertion.
    groups, sanity_images : into how many groups the layers are dealt for randomisation, and how
        many of the images (the first ones) are then explained anew.

    Returns
    -------
    DataFrame with the columns `COLUMNS`, method by method, the baselines last:

        - layer : what was explained;
        - test, measure, setting : one of `TESTS`, and what was measured how;
        - versus : missing for the mean over images, else the baseline from which `value` is the
          mean difference, image by image;
        - value, low, high, n : the mean, its 95 % interval (percentile bootstrap over images, 2000
          resamples; Wilson's for the pointing game, which is a share) and the images that it is
          over. NaN bounds for fewer than two images;
        - blank : images left out because a map is blank;
        - reference : for similarities, the mean over 50 random pairs of different images' maps;
        - verdict : for sanity "pass" where the similarity is below the reference, else "fail"; for
          stability "pass" above it; for a difference "better" or "worse" than the baseline where
          the interval, not adjusted for the number of comparisons, excludes 0, else "no
          difference"; missing where nothing can be said.

    Notes
    -----
    Prints how far it is. Most of the time goes to faithfulness, some fifty forward passes for each
    image and method, and to sanity; both can be made smaller.
    """
    images = checked_images(model, images)
    masks = {} if masks is None else masks
    _check(methods, masks, tests, len(images))
    model = remove_final_activation(model)
    _, target = by_batches(
        score_function(model), images, checked_target(model, target, len(images)), batch_size
    )
    methods = {**methods, **{kind: baseline(kind, seed) for kind in BASELINES}}
    heatmaps = {
        name: methods[name](model, images, target) for name in _counted("heatmaps", methods)
    }
    found = {name: [] for name in methods}
    if LOCALISATION in tests:
        for name in methods:
            found[name] += _localisation(heatmaps[name], masks)
    if FAITHFULNESS in tests:
        probability = probability_function(model)
        for name in _counted(FAITHFULNESS, methods):
            found[name] += _faithfulness(
                probability, images, heatmaps[name], steps, seed, batch_size
            )
    references = {name: similarity_of_pairs(heatmaps[name], seed=seed) for name in methods}
    if STABILITY in tests:
        for name in _counted(STABILITY, methods):
            alike = {
                f"noise of {noise:g} grey levels": under_noise(
                    methods[name], model, images, heatmaps[name], noise, seed
                )
            }
            if second_model is not None:
                alike["another seed"] = across_seeds(
                    methods[name], second_model, images, heatmaps[name]
                )
            for setting, values in alike.items():
                found[name] += _similarities(STABILITY, setting, values, references[name])
    if SANITY in tests:
        layers, few = blocks(model, groups), slice(sanity_images)
        looks = _counted(SANITY, range(2 * len(layers)))
        for _, (order, group, other) in zip(
            looks, randomisations(model, layers, seed), strict=True
        ):
            for name, method in methods.items():
                values = similarity(
                    _some(heatmaps[name], few), method(other, images[few], target[few])
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


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float, int]:
    """Mean of the values (N,) that are defined, its 95 % interval, and how many they are.

    The percentile interval of a bootstrap over images; NaN for fewer than two.
    """
    values = values[~np.isnan(values)]
    n = len(values)
    if n < 2:
        return (float(values[0]) if n else np.nan), np.nan, np.nan, n
    drawn = drawn_rows(np.random.default_rng(seed), n)
    resampled = np.concatenate([values[rows].mean(axis=1) for rows in drawn])
    return float(values.mean()), *percentile_interval(resampled), n


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
        (DELETION, "to the mean"): area(deletion(*case, steps, batch_size=batch_size)),
        ("insertion", "from blurred"): area(insertion(*case, steps, batch_size=batch_size)),
        ("ROAD", MOST_FIRST): most.mean(axis=1),
        ("ROAD", "least relevant first"): least.mean(axis=1),
        ("ROAD", "least less most"): (least - most).mean(axis=1),
    }
    return [
        _Measurement(FAITHFULNESS, *names, values, _blank(heatmaps))
        for names, values in measures.items()
    ]


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
    """Rows of one method: each mean, then its differences to the baselines among the others."""
    baselines = {
        kind: {one.key: one.values for one in others[kind]} for kind in BASELINES if kind in others
    }
    for one in measurements:
        value, low, high, n = mean_interval(one.values, seed)
        if one.measure == POINTING_GAME:
            low, high = wilson_interval(value * n if n else 0, n)
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


def _some(heatmaps: Heatmaps, rows: slice) -> Heatmaps:
    return Heatmaps(
        heatmaps.layer,
        heatmaps.maps[rows],
        heatmaps.raw[rows],
        heatmaps.scores[rows],
        heatmaps.target[rows],
        heatmaps.status[rows],
    )


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


def _counted(title: str, names: Iterable) -> Iterator:
    """Yield the names, and say after each how many are done and how long it still takes."""
    names, begun = list(names), time.perf_counter()
    for number, name in enumerate(names, 1):
        yield name
        spent = time.perf_counter() - begun
        left = spent / number * (len(names) - number)
        print(
            f"explanations, {title}: {number} of {len(names)} after {spent:.0f} s, about "
            f"{left:.0f} s left",
            flush=True,
        )
