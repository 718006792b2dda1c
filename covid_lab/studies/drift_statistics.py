"""What drift says: by layer, beside the loss of AUC, as a detector of errors; with intervals.

All intervals are percentile intervals of a bootstrap over images: an image is drawn with all its
perturbed versions and for all networks, since these are not independent, and within its class, so
that the classes keep their sizes. Both sides of a difference have the same draws, which pairs them.

The tables hold one network or several, trained alike from several seeds: their column ``seed``
tells them apart, and what is said of them is the mean over the networks.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from scipy.special import logsumexp, softmax
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from covid_lab.studies.perturbations import PERTURBATIONS
from covid_lab.studies.saliency_drift import MEASURES, ORIGINAL
from covid_project.evaluation import percentile_interval

# Measures on which a larger value is less drift: turned round where drift is scored.
SIMILARITIES = ("ssim", "spearman")


def draws(labels: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each image is in each resample, float64 (resamples, N), drawn within each class."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((resamples, len(labels)))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        counts[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), resamples)
    return counts


def interval(values: np.ndarray) -> tuple[float, float]:
    """Bounds of the middle 95 % of the defined values; NaN where none is defined."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return np.nan, np.nan
    return percentile_interval(values)


def weighted_auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC of scores (N,) for positives bool (N,), under each weighting of the rows (R, N): (R,).

    The share of pairs in which the positive row scores higher, ties one half, each pair counting
    the product of its rows' weights. NaN where a side has no weight.
    """
    up, down = scores[positive], scores[~positive]
    order = (np.sign(up[:, None] - down[None]) + 1) / 2
    ours, others = weights[:, positive], weights[:, ~positive]
    total = ours.sum(1) * others.sum(1)
    won = ((ours @ order) * others).sum(1)
    return np.divide(won, total, out=np.full(len(weights), np.nan), where=total > 0)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of the defined values (N,) under each weighting (R, N): (R,)."""
    defined = np.isfinite(values)
    total = weights[:, defined].sum(1)
    summed = weights[:, defined] @ values[defined]
    return np.divide(summed, total, out=np.full(len(weights), np.nan), where=total > 0)


def class_auc(labels: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC as `robustness.auc` has it, under each weighting (R, N) of the images: (R,)."""
    if logits.shape[1] == 2:
        return weighted_auc(labels == 1, logits[:, 1] - logits[:, 0], weights)
    scores = softmax(logits, axis=1)
    each = [weighted_auc(labels == k, scores[:, k], weights) for k in range(logits.shape[1])]
    return np.mean(each, axis=0)


def with_errors(scores: pd.DataFrame, labels: np.ndarray) -> pd.DataFrame:
    """The grid's scores with label, predicted, wrong, confidence and score_change.

    ``confidence`` is the softmax probability of the predicted class; ``score_change`` how far the
    probability of the class that the original was predicted as has moved, absolute.
    """
    logits = scores.filter(like="logit_").to_numpy()
    chances = softmax(logits, axis=1)
    label = np.asarray(labels)[scores["image"]]
    predicted = logits.argmax(axis=1)
    original = (scores["perturbation"] == ORIGINAL).to_numpy()
    before = chances[original], predicted[original]  # in the order of the images
    image = scores["image"].to_numpy()
    now = chances[np.arange(len(chances)), before[1][image]]
    change = np.abs(now - before[0][image, before[1][image]])
    return scores.assign(
        label=label,
        predicted=predicted,
        wrong=predicted != label,
        confidence=chances.max(axis=1),
        score_change=change,
    )


def performance(errors: pd.DataFrame, weights: np.ndarray) -> pd.DataFrame:
    """AUC and accuracy on the original images.

    Returns
    -------
    network, metric ("AUC" or "accuracy"), value, low, high: one row per metric and network (its
    seed), their "mean", and, of several, the answers of all "together" (the mean of their logits).
    """
    clean = errors[errors["perturbation"] == ORIGINAL]
    labels = clean["label"].to_numpy()[clean["seed"] == clean["seed"].iloc[0]]
    logits = {seed: _logits(group) for seed, group in clean.groupby("seed")}
    every = np.vstack([np.ones(weights.shape[1]), weights])  # the sample itself, and its resamples

    def measured(logits: np.ndarray) -> np.ndarray:
        right = (logits.argmax(axis=1) == labels).astype(float)
        return np.stack([class_auc(labels, logits, every), weighted_mean(right, every)])

    found = {network: measured(each) for network, each in logits.items()}
    found["mean"] = np.mean(list(found.values()), axis=0)
    if len(logits) > 1:
        found["together"] = measured(np.mean(list(logits.values()), axis=0))
    rows = [
        (network, metric, values[0], *interval(values[1:]))
        for network, both in found.items()
        for metric, values in zip(("AUC", "accuracy"), both, strict=True)
    ]
    return pd.DataFrame(rows, columns=["network", "metric", "value", "low", "high"])


def drift_by_layer(
    drifts: pd.DataFrame, errors: pd.DataFrame, classes: Sequence[str], weights: np.ndarray
) -> pd.DataFrame:
    """Mean drift per measure, perturbation, severity, layer, class, and right or wrong.

    Right or wrong is the prediction of the original image, as in the thesis.

    Parameters
    ----------
    drifts, errors
        The grid's drift, and its scores after `with_errors`; both with ``seed``.
    weights
        From `draws`, (R, N).

    Returns
    -------
    measure, perturbation, severity, layer, class, prediction ("right" or "wrong"), n (predictions:
    images times networks), value, low, high.
    """
    original = errors[errors["perturbation"] == ORIGINAL].set_index(["seed", "image"])
    facts = drifts.join(original[["label", "wrong"]], on=["seed", "image"])
    keys = ["perturbation", "severity", "layer", "label", "wrong"]
    rows = []
    for key, group in facts.groupby(keys, sort=False):
        *where, label, wrong = key
        chosen = weights[:, group["image"]]
        for measure in MEASURES:
            values = group[measure].to_numpy()
            n = int(np.isfinite(values).sum())
            mean = float(np.nanmean(values)) if n else np.nan
            found = interval(weighted_mean(values, chosen))
            verdict = "wrong" if wrong else "right"
            rows.append((measure, *where, classes[label], verdict, n, mean, *found))
    names = ["measure", "perturbation", "severity", "layer", "class", "prediction", "n", "value"]
    return pd.DataFrame(rows, columns=[*names, "low", "high"])


def auc_losses(errors: pd.DataFrame, weights: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """ΔAUC = AUC of the originals − AUC of each perturbed set, paired.

    Returns
    -------
    A table: perturbation, severity, auc, delta, low, high, wrong (share); and the resampled ΔAUC
    (R, sets) in its order.
    """
    once = np.ones((1, weights.shape[1]))
    clean = errors[errors["perturbation"] == ORIGINAL]
    reference = [mean_auc(clean, each) for each in (once, weights)]
    rows, resampled = [], []
    for (perturbation, severity), group in errors.groupby(["perturbation", "severity"], sort=False):
        if perturbation == ORIGINAL:
            continue
        value, spread = (mean_auc(group, each) for each in (once, weights))
        delta = reference[1] - spread
        resampled.append(delta)
        point = float(reference[0][0] - value[0])
        rows.append((perturbation, severity, value[0], point, *interval(delta),
                     group["wrong"].mean()))  # fmt: skip
    columns = ["perturbation", "severity", "auc", "delta", "low", "high", "wrong"]
    return pd.DataFrame(rows, columns=columns), np.stack(resampled, axis=1)


def mean_auc(rows: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    """Mean over the networks of the AUC on one version of the images, under each weighting: (R,).

    ``rows`` hold every image once per network (``seed``), in the order of the images.
    """
    each = [
        class_auc(group["label"].to_numpy(), _logits(group), weights)
        for _, group in rows.groupby("seed")
    ]
    return np.mean(each, axis=0)


def _logits(rows: pd.DataFrame) -> np.ndarray:
    return rows.filter(like="logit_").to_numpy()


def correlations(drifts: pd.DataFrame, errors: pd.DataFrame, weights: np.ndarray) -> pd.DataFrame:
    """Rank correlation of drift with the loss of AUC, and with each image's change of score.

    Returns
    -------
    One row per measure, layer and kind: "sets" correlates the mean drift of the perturbed sets with
    their ΔAUC; "images" the drift of each perturbed image with its ``score_change``, all sets of a
    network together (the ranks there are those of its whole sample in every resample). Columns
    measure, layer, kind, value, low, high, n. Similarities count negatively: a positive value
    always means that more drift goes with more loss.
    """
    losses, spread = auc_losses(errors, weights)
    order = list(zip(losses["perturbation"], losses["severity"], strict=True))
    keys = ["seed", "perturbation", "severity", "image"]
    changes = errors.set_index(keys)["score_change"]
    once = np.ones((1, weights.shape[1]))
    rows = []
    for layer, group in drifts.join(changes, on=keys).groupby("layer", sort=False):
        by_set = dict(list(group.groupby(["perturbation", "severity"], sort=False)))
        for measure in MEASURES:
            sign = -1 if measure in SIMILARITIES else 1
            moved = [(by_set[key]["image"], sign * by_set[key][measure]) for key in order]
            means = [
                np.stack([weighted_mean(m.to_numpy(), each[:, i]) for i, m in moved], axis=1)
                for each in (once, weights)
            ]
            value = _spearman(means[0], losses["delta"].to_numpy()[None])[0]
            found = interval(_spearman(means[1], spread))
            rows.append((measure, layer, "sets", value, *found, len(order)))
            moved = group.dropna(subset=measure)
            related = [
                [
                    _weighted_correlation(
                        rankdata(sign * one[measure]),
                        rankdata(one["score_change"]),
                        one["image"].to_numpy(),
                        each,
                    )
                    for _, one in moved.groupby("seed")
                ]
                for each in (once, weights)
            ]
            (value,), spread_of_images = (np.mean(each, axis=0) for each in related)
            found = interval(spread_of_images)
            rows.append((measure, layer, "images", value, *found, len(moved)))
    return pd.DataFrame(rows, columns=["measure", "layer", "kind", "value", "low", "high", "n"])


def _spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's correlation (R,) of the rows of two arrays (R, M)."""
    ranks = [rankdata(values, axis=1) for values in (first, second)]
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    scale = np.sqrt(np.prod([(rank**2).sum(axis=1) for rank in centred], axis=0))
    products = (centred[0] * centred[1]).sum(axis=1)
    return np.divide(products, scale, out=np.full(len(products), np.nan), where=scale > 0)


def _weighted_correlation(
    x: np.ndarray, y: np.ndarray, image: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Pearson's correlation (R,) of the rows x and y (M,), each weighing as its image (R, N)."""
    # Summed up per image first: each image has one weight for all its rows.
    n, sum_x, sum_y, sum_xy, sum_xx, sum_yy = (
        weights @ np.bincount(image, values, weights.shape[1])
        for values in (np.ones(len(x)), x, y, x * y, x * x, y * y)
    )
    covariance = sum_xy / n - sum_x * sum_y / n**2
    spread = (sum_xx / n - (sum_x / n) ** 2) * (sum_yy / n - (sum_y / n) ** 2)
    scale = np.sqrt(np.maximum(spread, 0))
    return np.divide(covariance, scale, out=np.full(len(weights), np.nan), where=scale > 0)


# ---- drift as a detector of errors --------------------------------------------------------------


def features(drifts: pd.DataFrame, errors: pd.DataFrame) -> pd.DataFrame:
    """One row per perturbed image and network, with what a detector of errors may look at.

    Columns seed, image, perturbation, severity, label, wrong, doubt (minus the log-odds of the
    confidence), score_change (see `with_errors`), and ``<measure> <layer>`` for every measure and
    layer, higher for more drift; an undefined drift counts as the mean of its column.
    """
    keys = ["seed", "perturbation", "severity", "image"]
    wide = drifts.set_index([*keys, "layer"])[list(MEASURES)].unstack("layer")  # noqa: PD010
    for measure in SIMILARITIES:
        wide[measure] = -wide[measure]
    wide.columns = [f"{measure} {layer}" for measure, layer in wide.columns]
    wide = wide.fillna(wide.mean()).fillna(0.0)
    logits = _logits(errors)
    top = np.sort(logits, axis=1)[:, ::-1]
    odds = top[:, 0] - logsumexp(top[:, 1:], axis=1)  # log(p / (1 - p)) of the predicted class
    facts = errors.assign(doubt=-odds).set_index(keys)
    facts = facts[["label", "wrong", "doubt", "score_change"]]
    return facts.join(wide, how="inner").reset_index()


def detectors(
    fitting: pd.DataFrame, judged: pd.DataFrame
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores of detectors of errors: what the answer says, what the map says, and together.

    "confidence" and "change" (of the score, which like drift takes the original image) need no fit.
    "drift", "both" (drift and confidence), "confidence and change", and "all three" are logistic
    regressions (L2, C = 1) on the standardised `features`, one for each network. What is judged
    under one perturbation was fitted on ``fitting``, other images, under the other four: neither
    the image nor the perturbation is known.

    Returns
    -------
    Detector → (scores of ``fitting`` (M,), scores of ``judged`` (N,)), higher where an error is
    more likely. The scores of ``fitting`` come from fits without their perturbation, too. Where
    the rows to fit hold no error, or nothing else, drift scores 0.
    """
    moved = [name for name in fitting if name.startswith(MEASURES)]
    found = {
        name: (fitting[column].to_numpy(), judged[column].to_numpy())
        for name, column in {"confidence": "doubt", "change": "score_change"}.items()
    }
    fitted = {
        "drift": moved,
        "both": ["doubt", *moved],
        "confidence and change": ["doubt", "score_change"],
        "all three": ["doubt", "score_change", *moved],
    }
    for name, columns in fitted.items():
        scores = np.zeros(len(fitting)), np.zeros(len(judged))
        for seed, perturbation in product(fitting["seed"].unique(), PERTURBATIONS):
            ours = fitting[fitting["seed"] == seed]
            known = ours[ours["perturbation"] != perturbation]
            if known["wrong"].nunique() < 2:
                continue
            model = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky"))
            model.fit(known[columns], known["wrong"])
            for rows, out in zip((fitting, judged), scores, strict=True):
                here = (rows["seed"] == seed) & (rows["perturbation"] == perturbation)
                if here.any():
                    out[here] = model.decision_function(rows[columns][here])
        found[name] = scores
    return found


def detection(
    judged: pd.DataFrame, scores: Mapping[str, np.ndarray], weights: np.ndarray
) -> pd.DataFrame:
    """AUC of each detector for wrong predictions, per perturbation and over all.

    Returns
    -------
    perturbation ("all" is the mean over those with an error), detector, auc, low, high, gain,
    gain_low, gain_high (over "confidence", that of "all three" over "confidence and change",
    paired), least_gain, most_gain (of a single network), errors, n.
    """
    image, wrong = judged["image"].to_numpy(), judged["wrong"].to_numpy()
    kinds, seeds = judged["perturbation"].to_numpy(), judged["seed"].to_numpy()
    every = np.vstack([np.ones(weights.shape[1]), weights])  # the sample itself, and its resamples
    cells = {}  # perturbation → its rows of each network that errs there, but not always
    for perturbation, seed in product(PERTURBATIONS, judged["seed"].unique()):
        here = (kinds == perturbation) & (seeds == seed)
        if wrong[here].any() and not wrong[here].all():
            cells.setdefault(perturbation, {})[seed] = here
    values = {
        (perturbation, name): pd.DataFrame(
            {
                seed: weighted_auc(wrong[here], score[here], every[:, image[here]])
                for seed, here in networks.items()
            }
        )
        for name, score in scores.items()
        for perturbation, networks in cells.items()
    }
    rows = []
    for perturbation in (*cells, "all"):
        chosen = list(cells) if perturbation == "all" else [perturbation]
        counted = np.isin(kinds, chosen)
        for name in scores:
            against = "confidence and change" if name == "all three" else "confidence"
            ours, base = ([values[one, detector] for one in chosen] for detector in (name, against))
            auc = np.mean([one.mean(axis=1, skipna=False) for one in ours], axis=0)
            gains = [one - other for one, other in zip(ours, base, strict=True)]
            gain = np.mean([one.mean(axis=1, skipna=False) for one in gains], axis=0)
            single = pd.DataFrame([one.loc[0] for one in gains]).mean()
            found = auc[0], *interval(auc[1:]), gain[0], *interval(gain[1:])
            counts = int(wrong[counted].sum()), int(counted.sum())
            rows.append((perturbation, name, *found, single.min(), single.max(), *counts))
    columns = ["perturbation", "detector", "auc", "low", "high", "gain", "gain_low", "gain_high"]
    return pd.DataFrame(rows, columns=[*columns, "least_gain", "most_gain", "errors", "n"])


def gain_in_words(row: pd.Series, rival: str) -> str:
    """What a row of `detection` says of drift beside a rival: "drift adds to confidence (…)"."""
    verb = "neither clearly adds to nor takes from"
    if row["gain_low"] > 0:
        verb = "adds to"
    elif row["gain_high"] < 0:
        verb = "takes from"
    numbers = f"({row['gain']:+.3f}, {row['gain_low']:+.3f} to {row['gain_high']:+.3f})"
    return f"drift {verb} {rival} {numbers}"


def flag_rates(judged: pd.DataFrame, raised: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Measured false-alarm rate and detection rate of a flag, with intervals over images.

    ``raised`` bool (N,) says which of the rows of ``judged`` (see `features`) are flagged.
    """
    raised = raised.astype(float)
    image, wrong = judged["image"].to_numpy(), judged["wrong"].to_numpy()
    row = {}
    for name, here in {"false_alarms": ~wrong, "detected": wrong}.items():
        row[name] = float(raised[here].mean()) if here.any() else np.nan
        low, high = interval(weighted_mean(raised[here], weights[:, image[here]]))
        row |= {f"{name}_low": low, f"{name}_high": high}
    return row


# ---- robustness in MedMNIST-C's terms -----------------------------------------------------------


def balanced_errors(errors: pd.DataFrame, weights: np.ndarray) -> pd.DataFrame:
    """Balanced error of the originals and per perturbation, and how much it exceeds the clean one.

    Di Salvo et al. 2024 ("MedMNIST-C"): 1 − the mean recall of the classes, averaged over the
    severities; relative: less that of the originals. They divide both by AlexNet's, which is
    ill-conditioned where AlexNet hardly loses or even improves; here they are not divided.

    Returns
    -------
    perturbation ("none": the originals; "all": the mean over the perturbations), balanced_error,
    low, high, relative, relative_low, relative_high.
    """
    once = np.ones((1, weights.shape[1]))
    values = {}
    for perturbation, group in errors.groupby("perturbation", sort=False):
        sets = [
            [_balanced_error(rows, each) for each in (once, weights)]
            for _, rows in group.groupby("severity")
        ]
        values[perturbation] = [np.mean(part, axis=0) for part in zip(*sets, strict=True)]
    changed = [values[name] for name in values if name != ORIGINAL]
    values["all"] = [np.mean(part, axis=0) for part in zip(*changed, strict=True)]
    rows = []
    for name, ((point,), spread) in values.items():
        (base,), other = values[ORIGINAL]
        relative = point - base, *interval(spread - other)
        rows.append((name, point, *interval(spread), *relative))
    columns = ["perturbation", "balanced_error", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "relative", "relative_low", "relative_high"])


def _balanced_error(rows: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    wrong, label, image = (rows[name].to_numpy() for name in ("wrong", "label", "image"))
    return np.mean(
        [
            weighted_mean(wrong[label == k].astype(float), weights[:, image[label == k]])
            for k in np.unique(label)
        ],
        axis=0,
    )
