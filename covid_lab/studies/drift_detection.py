"""Drift as a detector of wrong predictions, beside the confidence and the change of the score."""

from collections.abc import Mapping
from itertools import product

import numpy as np
import pandas as pd
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from covid_lab.studies.drift_correlations import SIMILARITIES
from covid_lab.studies.drift_statistics import logits_of
from covid_lab.studies.image_bootstrap import estimate, weighted_auc, weighted_mean, with_sample
from covid_lab.studies.perturbations import PERTURBATIONS
from covid_lab.studies.saliency_drift import MEASURES


def features(drifts: pd.DataFrame, errors: pd.DataFrame) -> pd.DataFrame:
    """Return the inputs of the detectors, one row per perturbed image and network.

    Parameters
    ----------
    drifts : pd.DataFrame
        From `saliency_drift.grid`, with ``seed``.
    errors : pd.DataFrame
        From `drift_statistics.with_errors`, with ``seed``.

    Returns
    -------
    pd.DataFrame
        Columns seed, perturbation, severity, image, label, wrong, doubt (minus the log-odds of the
        predicted class), score_change, and ``<measure> <layer>`` for every measure and layer,
        higher for more drift. An undefined drift is replaced by the mean of its column.
    """
    keys = ["seed", "perturbation", "severity", "image"]
    wide = drifts.set_index([*keys, "layer"])[list(MEASURES)].unstack("layer")  # noqa: PD010
    for measure in SIMILARITIES:
        wide[measure] = -wide[measure]
    wide.columns = [f"{measure} {layer}" for measure, layer in wide.columns]
    wide = wide.fillna(wide.mean()).fillna(0.0)
    top = np.sort(logits_of(errors), axis=1)[:, ::-1]
    odds = top[:, 0] - logsumexp(top[:, 1:], axis=1)  # log(p / (1 - p)) of the predicted class
    facts = errors.assign(doubt=-odds).set_index(keys)
    facts = facts[["label", "wrong", "doubt", "score_change"]]
    return facts.join(wide, how="inner").reset_index()


@threadpool_limits.wrap(limits=1, user_api="blas")  # the fits are small: threads only wait
def detectors(
    fitting: pd.DataFrame, judged: pd.DataFrame
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the scores of six detectors of wrong predictions.

    "confidence" and "change" (of the score, which needs the original image, as drift does) are not
    fitted. "drift", "both" (drift and confidence), "confidence and change" and "all three" are
    logistic regressions (L2, C = 1) on standardised features, one for each network. The scores
    under one perturbation come from a fit on ``fitting`` under the other four: neither the image
    nor the perturbation is known.

    Parameters
    ----------
    fitting, judged : pd.DataFrame
        From `features`, of validation and of test images.

    Returns
    -------
    dict of str to tuple of np.ndarray
        For each detector its scores of ``fitting`` (M,) and of ``judged`` (N,), higher where an
        error is more likely. The scores of ``fitting``, too, come from fits without their
        perturbation. They are 0 where the rows to fit hold no error, or only errors.
    """
    moved = [name for name in fitting if name.startswith(MEASURES)]
    found = {
        name: (fitting[column].to_numpy(), judged[column].to_numpy())
        for name, column in {"confidence": "doubt", "change": "score_change"}.items()
    }
    inputs = {
        "drift": moved,
        "both": ["doubt", *moved],
        "confidence and change": ["doubt", "score_change"],
        "all three": ["doubt", "score_change", *moved],
    }
    for name, columns in inputs.items():
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
    """Return the AUC of each detector for wrong predictions, per perturbation and over all.

    Parameters
    ----------
    judged : pd.DataFrame
        From `features`.
    scores : mapping of str to np.ndarray, float (N,)
        Of the detectors, for the rows of ``judged``.
    weights : np.ndarray, float (R, images)
        From `image_bootstrap.draws`.

    Returns
    -------
    pd.DataFrame
        Columns perturbation ("all": mean over those with errors), detector, auc, low, high, gain,
        gain_low, gain_high, least_gain, most_gain (of a single network), errors and n. The gain is
        over "confidence", that of "all three" over "confidence and change"; it is paired.
    """
    image, wrong = judged["image"].to_numpy(), judged["wrong"].to_numpy()
    kinds, seeds = judged["perturbation"].to_numpy(), judged["seed"].to_numpy()
    every = with_sample(weights)
    cells = {}  # perturbation → rows of each network with both right and wrong predictions there
    for perturbation, seed in product(PERTURBATIONS, judged["seed"].unique()):
        here = (kinds == perturbation) & (seeds == seed)
        if wrong[here].any() and not wrong[here].all():
            cells.setdefault(perturbation, {})[seed] = here
    aucs = {  # (networks, R + 1)
        (perturbation, name): np.stack(
            [
                weighted_auc(wrong[here], score[here], every[:, image[here]])
                for here in networks.values()
            ]
        )
        for name, score in scores.items()
        for perturbation, networks in cells.items()
    }
    rows = []
    for perturbation in (*cells, "all"):
        chosen = list(cells) if perturbation == "all" else [perturbation]
        counted = np.isin(kinds, chosen)
        for name in scores:
            rival = "confidence and change" if name == "all three" else "confidence"
            auc = np.mean([aucs[one, name].mean(axis=0) for one in chosen], axis=0)
            gains = [aucs[one, name] - aucs[one, rival] for one in chosen]
            gain = np.mean([part.mean(axis=0) for part in gains], axis=0)
            of_networks = [
                dict(zip(cells[one], part[:, 0], strict=True))
                for one, part in zip(chosen, gains, strict=True)
            ]
            single = pd.DataFrame(of_networks).mean()
            counts = int(wrong[counted].sum()), int(counted.sum())
            bounds = single.min(), single.max()
            rows.append((perturbation, name, *estimate(auc), *estimate(gain), *bounds, *counts))
    columns = ["perturbation", "detector", "auc", "low", "high", "gain", "gain_low", "gain_high"]
    return pd.DataFrame(rows, columns=[*columns, "least_gain", "most_gain", "errors", "n"])


def gain_in_words(row: pd.Series, rival: str) -> str:
    """Return a gain as text: "drift adds to confidence (+0.020, +0.010 to +0.030)".

    Parameters
    ----------
    row : pd.Series
        A row of `detection`.
    rival : str
        Name of what drift is added to.

    Returns
    -------
    str
    """
    verb = "neither clearly adds to nor takes from"
    if row["gain_low"] > 0:
        verb = "adds to"
    elif row["gain_high"] < 0:
        verb = "takes from"
    numbers = f"({row['gain']:+.3f}, {row['gain_low']:+.3f} to {row['gain_high']:+.3f})"
    return f"drift {verb} {rival} {numbers}".replace("-", "−")


def flag_rates(judged: pd.DataFrame, raised: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Return the measured false-alarm rate and detection rate of a flag.

    Parameters
    ----------
    judged : pd.DataFrame
        From `features`.
    raised : np.ndarray, bool (N,)
        Which of its rows are flagged.
    weights : np.ndarray, float (R, images)
        From `image_bootstrap.draws`.

    Returns
    -------
    dict of str to float
        "false_alarms" and "detected", each with ``_low`` and ``_high``; NaN without such rows.
    """
    raised, every, row = raised.astype(float), with_sample(weights), {}
    image, wrong = judged["image"].to_numpy(), judged["wrong"].to_numpy()
    for name, here in {"false_alarms": ~wrong, "detected": wrong}.items():
        values = estimate(weighted_mean(raised[here], every[:, image[here]]))
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
    return row
