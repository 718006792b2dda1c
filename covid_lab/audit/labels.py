"""Labels contradicted by a model that has not seen the image or its patient.

The method is confident learning (Northcutt, Jiang & Chuang, "Confident learning: estimating
uncertainty in dataset labels", JAIR 70, 2021). A model predicts the probability of every class for
images outside its training folds. Each class has a threshold: the mean probability of the class
among the images that carry its label. Images that reach the threshold of a class other than their
own are counted, and the counts estimate how many labels are wrong. That many images are reported:
those with the largest margins between the most probable other class and the given one.

The value of such a list is measured on the user's own data. A twentieth of the labels is changed at
random, many times, and the same steps are applied. Recall and precision of these planted flips are
part of the finding. Two limits remain. Labels that were wrong before count as false reports, so
that the precision is a lower bound at this rate of errors. Real errors are often difficult images,
which a model finds less often than random ones.

The features are those of an ImageNet network in the quarters of the image, where its weights are in
the Keras cache, or else the pixels. The model is ridge regression on radial basis functions
(Broomhead & Lowe, "Multivariable functional interpolation and adaptive networks", 1988): one
decomposition per fold serves the given labels and all changed ones.

The test split is left out, because a list of its contradicted labels would be a test evaluation.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from covid_lab.audit.findings import Finding
from covid_lab.audit.network_features import image_features
from covid_lab.audit.predictability import FOLDS, TooFewGroups, Trial, prepare, ridge_scores
from covid_lab.audit.second_reader import TABLE_COLUMNS as READER_COLUMNS
from covid_lab.audit.second_reader import compare_readers
from covid_lab.datasets import load_images
from covid_lab.masks import border
from covid_project.data import Dataset
from covid_project.evaluation import percentile_interval, wilson_interval

AREA = "labels"
CHECK = "labels agree with a cross-validated model"

FLIPPED = 0.05  # fraction of the labels that are changed to test the finder
DRAWS = 50  # sets of labels with planted flips
FEWEST_FLIPS = 5  # in a set; with fewer, its recall is uninformative
# Least recall and precision of planted flips. A finder that misses most of them, or most of whose
# reports are false even at a rate of errors as high as `FLIPPED`, cannot judge labels.
WEAKEST = 0.5
TOLERATED = 0.01  # fraction of contradicted labels without a warning
LOOKED_AT = (0.01, 0.02, 0.05, 0.1)  # fractions of the ranking, for the table of controls

LANDMARKS = 2000  # images at which the radial basis functions are centred
PIXELS = 40  # along a side, where pixels are the features

TABLE_COLUMNS = (
    *("rank", "path", "split", "label", "label_probability", "suggested", "suggested_probability"),
    *("margin", "contradicted", "second_label", "second_contradicts"),
)
CONTROL_COLUMNS = (
    *("features", "reported", "images", "recall", "recall_low", "recall_high"),
    *("precision", "precision_low", "precision_high", "planted", "draws"),
)


@dataclass(frozen=True, eq=False)
class LabelAudit:
    """Result of an audit of the labels.

    Attributes
    ----------
    findings : list of Finding
        Of the area "labels".
    table : pd.DataFrame
        One row per audited image, contradicted ones first, then by falling margin. Columns: rank
        (from 1), path, split, label, label_probability (of the given label, out of fold),
        suggested (the most probable other class), suggested_probability, margin
        (suggested_probability − label_probability), contradicted (bool), second_label ("" where not
        read), second_contradicts (bool).
    controls : pd.DataFrame
        How many planted flips are found, one row per rule for what is reported: the contradicted
        labels, or the first images of the ranking. Columns: features, reported, images (mean
        number), recall and precision (means over the draws; precision counts as 1 in a draw without
        a report) with the range of 95 % of the draws (…_low, …_high), planted (flips per draw),
        draws.
    readers : pd.DataFrame
        See `covid_lab.audit.second_reader.confusion_table`; empty without a second reader.
    """

    findings: list[Finding]
    table: pd.DataFrame
    controls: pd.DataFrame
    readers: pd.DataFrame

    @property
    def contradicted(self) -> pd.DataFrame:
        """Rows of the table whose labels the model contradicts.

        Returns
        -------
        pd.DataFrame
            Same columns as the table.
        """
        return self.table[self.table["contradicted"].astype(bool)]


def audit_labels(
    dataset: Dataset,
    *,
    second: pd.Series | None = None,
    cache: Path | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> LabelAudit:
    """Compare the labels of all images outside the test split with a model and a second reader.

    Parameters
    ----------
    dataset : Dataset
        Any number of classes. Images with the same ``group`` (patient, copies) are always in the
        same fold.
    second : pd.Series, str, optional
        Labels of a second reader by path, see `covid_lab.audit.second_reader.second_labels`.
    cache : Path, optional
        Folder in which the network's features are kept.
    seed : int
        Of folds, flips and resamples.
    progress : callable
        Called with (stage, done, total).

    Returns
    -------
    LabelAudit
        Findings, ranked images, and recall and precision of planted flips.

    Raises
    ------
    DataError
        An image that cannot be read.

    Notes
    -----
    Verdict of `CHECK`: "not applicable" with too few images, or where the recall or the precision
    of planted flips is below `WEAKEST`; "warn" where the lower bound of the contradicted fraction
    exceeds `TOLERATED`; else "pass".

    Examples
    --------
    >>> from covid_lab.datasets import open_dataset
    >>> audit = audit_labels(open_dataset("covid_xray.zip", as_found=True))
    >>> audit.findings[0].verdict  # fewer than 100 images
    'not applicable'
    """
    audited = (dataset.table["split"] != "test").to_numpy()
    dataset = replace(dataset, table=dataset.table[audited].reset_index(drop=True))
    try:
        trial = _prepared(dataset, seed)
    except TooFewGroups as reason:
        findings = [Finding(AREA, CHECK, "not applicable", str(reason))]
        suspects, controls = None, pd.DataFrame(columns=CONTROL_COLUMNS)
        contradicted = np.zeros(len(dataset.table), bool)
    else:
        suspects, controls = _suspects(dataset, trial, cache, seed, progress)
        contradicted = suspects["contradicted"].to_numpy()
        findings = [_model_finding(contradicted, trial, controls.iloc[0])]
    readers = pd.DataFrame(columns=READER_COLUMNS)
    if second is not None:
        second = second.reindex(dataset.table["path"]).fillna("").to_numpy()
        readers, finding = compare_readers(dataset, second, contradicted, seed)
        findings.append(finding)
    return LabelAudit(findings, _named(suspects, dataset, second), controls, readers)


def _suspects(
    dataset: Dataset, trial: Trial, cache: Path | None, seed: int, progress: Callable
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`_rank` of the given labels, and `_controls_table`, also of a model that sees the border."""
    pixels = load_images(dataset, PIXELS, partial(progress, "labels: images read"))[..., 0]
    features, seen = image_features(dataset, cache, progress)
    if features is None:
        features, seen = pixels.reshape(len(pixels), -1), f"pixels at {PIXELS} px, as {seen}"
    given = trial.labels  # numbered without classes that have no image
    planted = _plant_flips(given, DRAWS, np.random.default_rng(seed))
    progress("labels: search for planted flips", 0, 2)
    probabilities = _out_of_fold(features, np.vstack([given, planted]), trial.folds, seed)
    progress("labels: search for planted flips", 1, 2)
    at_border = _out_of_fold(pixels[:, border(PIXELS)], planted, trial.folds, seed)
    progress("labels: search for planted flips", 2, 2)
    controls = [
        _controls_table(seen, probabilities[1:], given, planted),
        _controls_table("the border's pixels", at_border, given, planted).head(1),
    ]
    return _rank(probabilities[0], given), pd.concat(controls, ignore_index=True)


# ---- the finder ---------------------------------------------------------------------------------


def _plant_flips(labels: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Change a random fraction `FLIPPED` of the labels to another class, once per draw."""
    classes = labels.max() + 1
    planted = np.tile(labels, (draws, 1))
    for row in planted:
        chosen = rng.choice(len(labels), round(FLIPPED * len(labels)), replace=False)
        row[chosen] = (row[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return planted


def _out_of_fold(
    features: np.ndarray, label_sets: np.ndarray, folds: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Predict class probabilities of every image by a model trained on the other folds.

    Radial basis functions are centred on up to `LANDMARKS` training images. Ridge regression scores
    every class. Multinomial logistic regression on the scores of all images (K numbers each, one
    for two classes) converts these into probabilities (Platt 1999).
    """
    classes = label_sets.max() + 1
    wanted = np.arange(1, classes) if classes == 2 else np.arange(classes)  # one column is enough
    n, rng = len(folds), np.random.default_rng(seed)
    # On a machine with other work, threads that wait for each other take ten times as long.
    with threadpool_limits(1, "blas"):
        targets = (label_sets[..., None] == wanted).astype(np.float32)  # (R, N, columns)
        targets = targets.transpose(1, 0, 2).reshape(n, -1)
        scores = np.empty_like(targets)
        for fold in range(FOLDS):
            test = folds == fold
            # Centres are training images only: an unusual test image with a centre of its own would
            # have features that no training image has.
            centres = rng.permutation(np.flatnonzero(~test))[:LANDMARKS]
            scores[test] = ridge_scores(_radial_features(features, centres), targets, test)
        scores = scores.reshape(n, -1, len(wanted)).transpose(1, 0, 2)
        return np.stack(
            [
                LogisticRegression(C=1000, solver="newton-cg")
                .fit(score, labels)
                .predict_proba(score)
                for score, labels in zip(scores, label_sets, strict=True)
            ]
        )


def _radial_features(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Gaussians exp(−d²/w) of the scaled distance d to centres, w the median d² between these."""
    scaled = StandardScaler().fit_transform(np.asarray(features, np.float32))
    width = np.median(pdist(scaled[centres[:1000]], "sqeuclidean"))  # a thousand are enough
    return rbf_kernel(scaled, scaled[centres], gamma=1 / max(width, 1e-12))


def _rank(probabilities: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Find contradicted labels, and rank all images.

    For every given label i and other class j, `_confident_joint` estimates the number of wrong
    labels. That many of the images labelled i whose most probable class is j are contradicted,
    those with the largest margins ("prune by noise rate", Northcutt et al. 2021, section 3.2).
    """
    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -1
    suggested = others.argmax(axis=1)
    given = probabilities[rows, labels]
    margin = probabilities[rows, suggested] - given
    contradicted = np.zeros(len(labels), bool)
    for (i, j), count in np.ndenumerate(np.rint(_confident_joint(probabilities, labels))):
        if i != j:
            against = np.flatnonzero((labels == i) & (suggested == j) & (margin > 0))
            largest = np.argsort(-margin[against], kind="stable")[: int(count)]
            contradicted[against[largest]] = True
    ranks = np.empty(len(labels), int)
    ranks[np.lexsort((-margin, ~contradicted))] = rows + 1
    return pd.DataFrame(
        {
            "rank": ranks,
            "label_probability": given,
            "suggested": suggested,
            "suggested_probability": probabilities[rows, suggested],
            "margin": margin,
            "contradicted": contradicted,
        }
    )


def _confident_joint(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Estimate how many images have each pair of given and true label.

    An image counts for the most probable of the classes whose threshold it reaches: the mean
    probability of that class among the images labelled with it. The counts of each given label are
    scaled to its number of images (Northcutt et al. 2021, eqs. 1–3).
    """
    classes = probabilities.shape[1]
    thresholds = [probabilities[labels == label, label].mean() for label in range(classes)]
    reached = np.where(probabilities >= thresholds, probabilities, -1)
    confident = reached.max(axis=1) >= 0
    counts = np.zeros((classes, classes))
    np.add.at(counts, (labels[confident], reached.argmax(axis=1)[confident]), 1)
    totals = counts.sum(axis=1, keepdims=True)
    return counts / np.maximum(totals, 1) * np.bincount(labels, minlength=classes)[:, None]


def _controls_table(
    features: str, probabilities: np.ndarray, labels: np.ndarray, planted: np.ndarray
) -> pd.DataFrame:
    """Measure how many planted flips are found: recall and precision."""
    n = len(labels)
    measured: dict[str, list] = {}
    for of_draw, changed in zip(probabilities, planted, strict=True):
        flipped = changed != labels
        suspects = _rank(of_draw, changed)
        reports = {"contradicted": suspects["contradicted"]} | {
            f"first {fraction:.0%} of the ranking": suspects["rank"] <= max(round(fraction * n), 1)
            for fraction in LOOKED_AT
        }
        for rule, reported in reports.items():
            hits, count = (reported & flipped).sum(), reported.sum()
            values = count, hits / flipped.sum(), hits / count if count else 1.0
            measured.setdefault(rule, []).append(values)
    rows = []
    for rule, values in measured.items():
        images, recall, precision = np.array(values, float).T
        recalls, precisions = (
            (value.mean(), *percentile_interval(value)) for value in (recall, precision)
        )
        flips = int((planted[0] != labels).sum())
        rows.append((features, rule, images.mean(), *recalls, *precisions, flips, len(planted)))
    return pd.DataFrame(rows, columns=CONTROL_COLUMNS)


def _prepared(dataset: Dataset, seed: int) -> Trial:
    """Folds and resamples; `TooFewGroups` where planted flips would be uninformative."""
    n = len(dataset.table)
    if not n:
        raise TooFewGroups("no image outside the test split, whose labels are not audited")
    if round(FLIPPED * n) < FEWEST_FLIPS:
        fewest = round(FEWEST_FLIPS / FLIPPED)
        raise TooFewGroups(f"{n} images outside the test split; at least {fewest} are needed")
    return prepare(dataset.table["label"].to_numpy(), dataset.table["group"].to_numpy(), seed)


def _named(
    suspects: pd.DataFrame | None, dataset: Dataset, second: np.ndarray | None
) -> pd.DataFrame:
    """`LabelAudit.table`: names for numbers, sorted by rank."""
    if suspects is None:
        return pd.DataFrame(columns=TABLE_COLUMNS)
    names = np.array(dataset.classes, dtype=object)
    table = dataset.table
    given = names[table["label"]]
    second = np.full(len(table), "", object) if second is None else second
    named = suspects.assign(
        path=table["path"],
        split=table["split"],
        label=given,
        suggested=names[np.unique(table["label"])][suspects["suggested"]],
        second_label=second,
        second_contradicts=(second != "") & (second != given),
    )
    return named.sort_values("rank")[list(TABLE_COLUMNS)].reset_index(drop=True)


def _model_finding(contradicted: np.ndarray, trial: Trial, control: pd.Series) -> Finding:
    count, n = int(contradicted.sum()), len(contradicted)
    if count:
        drawn = trial.weights @ contradicted.astype(np.float32)
        low, high = percentile_interval(drawn / trial.weights.sum(axis=1, dtype=np.float64))
    else:  # as in every resample
        low, high = wilson_interval(0, len(np.unique(trial.groups)))
    found = (
        f"{count:,} of {n:,} labels outside the test split are contradicted "
        f"({control['features']}). Of labels flipped at random ({FLIPPED:.0%}, {DRAWS} draws) the "
        f"model finds {_range(control, 'recall')}, and {_range(control, 'precision')} of what it "
        "reports was flipped. It cannot find errors that a whole collection shares"
    )
    if min(control["recall"], control["precision"]) < WEAKEST:
        verdict, found = "not applicable", f"the model is too weak to judge labels. {found}"
    else:
        verdict = "warn" if low > TOLERATED else "pass"
    return Finding(AREA, CHECK, verdict, found, count / n, low, high, n)


def _range(control: pd.Series, name: str) -> str:
    low, high = control[f"{name}_low"], control[f"{name}_high"]
    return f"{control[name]:.2f} ({low:.2f}–{high:.2f})"
