"""How well do features predict the labels? Out-of-fold AUC, with its interval and a null.

The model is ridge regression of the label (0 or 1, one column per class). Its penalty is chosen by
leave-one-out cross-validation in closed form. On radiographs it ranks images as well as logistic
regression. One decomposition serves every penalty and every set of labels, so that a hundred sets
of shuffled labels cost little more than the true ones. The model is simple and has no interactions
of features. A stronger one may find more (gradient boosting on the metadata of COVID-CT: AUC 0.77,
here 0.73).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.linalg import eigh
from scipy.stats import rankdata
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from covid_lab.audit.blocks import blocks
from covid_project.evaluation import percentile_interval

FOLDS = 5
FEWEST_GROUPS = 2 * FOLDS  # of a class: two in every fold
SHUFFLES = 100
NULL_QUANTILE = 0.95
RESAMPLES = 1000
PENALTIES = tuple(10.0**power for power in range(-3, 4))  # per image of the training folds

_FEWEST_OF_A_KIND = 5  # training images with a value of a category; rarer values are not encoded
_LARGE = 2**20  # numbers in a block where smaller blocks would be slower
_BINS = 10  # intervals between the quantiles at which a number is cut into steps


class TooFewGroups(ValueError):
    """A class has too few independent images for cross-validation; the message counts them."""


@dataclass(frozen=True, eq=False)
class Trial:
    """Folds, shuffled labels and resamples, the same for all features of a data set.

    Attributes
    ----------
    labels : np.ndarray, int (N,), 0 to K - 1
        Class of each image.
    groups : np.ndarray, int (N,)
        Equal for images that belong together.
    folds : np.ndarray, int (N,), 0 to FOLDS - 1
        Fold in which an image is tested.
    shuffled : np.ndarray, uint (SHUFFLES, N)
        Labels shuffled among the groups of each fold, see `shuffle_labels`.
    weights : np.ndarray, uint8 (RESAMPLES, N)
        How often each image counts when groups are drawn with replacement, see `resample`.
    """

    labels: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    shuffled: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, eq=False)
class Prediction:
    """How well one set of features predicts the labels.

    Attributes
    ----------
    auc : float, 0–1
        One-vs-rest AUC, averaged over the classes; the usual AUC for two classes.
    low, high : float, 0–1
        Bounds of its 95 % interval, by bootstrap over groups.
    null_high : float, 0–1
        95 % quantile of the AUC under shuffled labels.
    accuracy : float, 0–1
        Fraction of the images whose own class has the highest score.
    resampled : np.ndarray, float (RESAMPLES,)
        AUC of each resample. Two sets of features share the resamples, so that their differences
        are paired.
    """

    auc: float
    low: float
    high: float
    null_high: float
    accuracy: float
    resampled: np.ndarray


def prepare(labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> Trial:
    """Draw the folds, the shuffled labels and the resamples.

    Parameters
    ----------
    labels : np.ndarray, (N,)
        Any values; the classes are numbered in their sorted order.
    groups : np.ndarray, (N,)
        Any values; images of one group are always in the same fold.
    seed : int
        Of everything that is drawn.

    Returns
    -------
    Trial
        For any features of these images.

    Raises
    ------
    TooFewGroups
        Fewer than two classes, or fewer than `FEWEST_GROUPS` groups in one.

    Examples
    --------
    >>> import numpy as np
    >>> trial = prepare(np.tile([0, 1], 50), groups=np.arange(100))
    >>> np.bincount(trial.folds).tolist(), trial.shuffled.shape
    ([20, 20, 20, 20, 20], (100, 100))
    """
    classes, labels = np.unique(np.asarray(labels), return_inverse=True)
    groups = pd.factorize(np.asarray(groups))[0]
    counts = pd.Series(groups).groupby(labels).nunique()
    if len(classes) < 2 or counts.min() < FEWEST_GROUPS:
        raise TooFewGroups(
            f"{len(classes)} class(es) of {', '.join(str(count) for count in counts)} independent "
            f"images or patients; at least two classes of {FEWEST_GROUPS} are needed"
        )
    folds = np.empty(len(labels), int)
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(splitter.split(labels, labels, groups)):
        folds[test] = fold
    rng = np.random.default_rng(seed)
    shuffled = shuffle_labels(labels, groups, folds, rng)
    return Trial(labels, groups, folds, shuffled, resample(labels, groups, rng))


def shuffle_labels(
    labels: np.ndarray, groups: np.ndarray, folds: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Shuffle the labels within each fold, keeping groups together.

    Groups whose images all have the same label exchange it with each other. In a group with several
    labels, such as a patient who fell ill between two images, the images exchange their labels.

    Parameters
    ----------
    labels : np.ndarray, int (N,), 0 to K - 1
        Class of each image.
    groups : np.ndarray, int (N,), from 0
        Equal for images that belong together.
    folds : np.ndarray, (N,)
        Labels stay in their fold.
    rng : np.random.Generator
        Draws the shuffles.

    Returns
    -------
    np.ndarray, uint (SHUFFLES, N)
        Of the smallest type that holds the labels.
    """
    _, first = np.unique(groups, return_index=True)
    smallest = np.min_scalar_type(int(labels.max()))
    mixed = pd.Series(labels).groupby(groups).transform("nunique").to_numpy() > 1
    of_groups = np.tile(labels[first].astype(smallest), (SHUFFLES, 1))  # (SHUFFLES, groups)
    for fold in np.unique(folds):
        members = np.flatnonzero((folds[first] == fold) & ~mixed[first])
        of_groups[:, members] = rng.permuted(of_groups[:, members], axis=1)
    shuffled = of_groups[:, groups]
    rows = np.flatnonzero(mixed)
    if len(rows):
        places = rows[np.argsort(groups[rows], kind="stable")]  # group by group
        for shuffle in shuffled:
            order = np.lexsort((rng.random(len(rows)), groups[places]))
            shuffle[places] = labels[places][order]
    return shuffled


def resample(labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw bootstrap resamples of groups, as weights of the images.

    In each class (that of a group's first image), as many groups are drawn with replacement as
    there are (Efron & Tibshirani 1993, ch. 8, two-sample problem).

    Parameters
    ----------
    labels : np.ndarray, (N,)
        Class of each image.
    groups : np.ndarray, (N,)
        Equal for images that belong together; numbered from 0 without gaps.
    rng : np.random.Generator
        Draws the resamples.

    Returns
    -------
    np.ndarray, uint8 (RESAMPLES, N)
        How often each image counts.
    """
    _, first = np.unique(groups, return_index=True)
    # A byte is enough: the chance that any group is drawn more than 255 times is below 10^-500.
    times = np.empty((RESAMPLES, len(first)), np.uint8)
    for label in np.unique(labels[first]):
        members = np.flatnonzero(labels[first] == label)
        chances = np.full(len(members), 1 / len(members))
        for rows in blocks(RESAMPLES, len(members)):
            times[rows, members] = rng.multinomial(len(members), chances, rows.stop - rows.start)
    return times[:, groups]


def predict(features: np.ndarray | pd.DataFrame, trial: Trial) -> Prediction:
    """Predict the labels from the features, each image by a model not trained on its group.

    Parameters
    ----------
    features : np.ndarray, (N, P), or pd.DataFrame, N rows
        Numbers, or a table of numbers and words. Those of a table are encoded in each training set
        as zeros and ones: numbers by the deciles that they reach, words by the frequent values.
    trial : Trial
        From `prepare`.

    Returns
    -------
    Prediction
        AUC with interval and null, and accuracy.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.tile([0, 1], 50)
    >>> features = np.random.default_rng(0).normal(size=(100, 3))
    >>> features[:, 0] += labels
    >>> found = predict(features, prepare(labels, groups=np.arange(100)))
    >>> bool(found.low < found.auc < found.high), bool(found.auc > found.null_high)
    (True, True)
    """
    classes = trial.labels.max() + 1
    wanted = np.arange(1, classes) if classes == 2 else np.arange(classes)  # one column is enough
    label_sets = np.concatenate([trial.labels[None].astype(trial.shuffled.dtype), trial.shuffled])
    targets = (label_sets[..., None] == wanted).astype(np.float32)  # (1 + SHUFFLES, N, columns)
    targets = targets.transpose(1, 0, 2).reshape(len(trial.labels), -1)
    scores = np.empty_like(targets)
    # On a machine with other work, threads that wait for each other take ten times as long.
    with threadpool_limits(1, "blas"):
        for fold in range(FOLDS):
            test = trial.folds == fold
            table = isinstance(features, pd.DataFrame)
            numbers = _indicators(features, ~test) if table else features
            scores[test] = ridge_scores(numbers, targets, test)
    scores = scores.reshape(len(scores), -1, len(wanted))
    true = scores[:, 0]  # (N, columns)
    means = np.mean(trial.labels[:, None] == wanted, axis=0)
    chosen = true[:, 0] + means[0] > 0.5 if classes == 2 else (true + means).argmax(axis=1)
    resampled = macro_auc(trial.labels, true, trial.weights)
    null = [
        macro_auc(labels, scores[:, 1 + shuffle])[0]
        for shuffle, labels in enumerate(trial.shuffled)
    ]
    low, high = percentile_interval(resampled)
    return Prediction(
        auc=float(macro_auc(trial.labels, true)[0]),
        low=low,
        high=high,
        null_high=float(np.quantile(null, NULL_QUANTILE)),
        accuracy=float(np.mean(chosen == trial.labels)),
        resampled=resampled,
    )


def macro_auc(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Compute the one-vs-rest AUC averaged over the classes, once per row of the weights.

    The AUC is the fraction of pairs in which the image of the class has the higher score; ties
    count one half (Hanley & McNeil 1982, eq. 1). The weight of a pair is the product of the weights
    of its two images.

    Parameters
    ----------
    labels : np.ndarray, int (N,), 0 to K - 1
        Class of each image.
    scores : np.ndarray, (N, K) or (N, 1)
        Score of every class, or of class 1 of two.
    weights : np.ndarray, (R, N), optional
        None: one row of ones.

    Returns
    -------
    np.ndarray, float (R,), 0–1
        NaN where a class has no weight.

    Examples
    --------
    >>> import numpy as np
    >>> macro_auc(np.array([0, 0, 1, 1]), np.array([[0.1], [0.4], [0.3], [0.8]]))
    array([0.75])
    """
    weights = np.ones((1, len(labels)), np.float32) if weights is None else weights
    columns = range(scores.shape[1]) if scores.shape[1] > 1 else (1,)
    return np.mean(
        [
            _weighted_auc(labels == label, column, weights)
            for label, column in zip(columns, scores.T, strict=True)
        ],
        axis=0,
    )


def _weighted_auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(scores, kind="stable")
    ranks = rankdata(scores[order], "dense")
    starts = np.flatnonzero(np.diff(ranks, prepend=0))  # first image of each level of the score
    positive = positive[order]
    aucs = np.empty(len(weights))
    for rows in blocks(*weights.shape):
        counts = weights[rows, order].astype(np.float32)
        above = np.add.reduceat(counts * positive, starts, axis=1).astype(np.float64)
        below = np.add.reduceat(counts * ~positive, starts, axis=1).astype(np.float64)
        won = above * (np.cumsum(below, axis=1) - below / 2)
        with np.errstate(invalid="ignore"):  # NaN where a class has no weight: undefined, not zero
            aucs[rows] = won.sum(axis=1) / (above.sum(axis=1) * below.sum(axis=1))
    return aucs


def ridge_scores(features: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Fit each column of the targets by ridge regression, and score the test images.

    Features are standardised by the training images. The candidates for the penalty are `PENALTIES`
    times the number of training images. Each target has the one with the least squared
    leave-one-out error. The residuals of leave-one-out are those of the fit divided by 1 - h, where
    h is the diagonal of the hat matrix (Golub, Heath & Wahba 1979, eq. 1.3).

    Parameters
    ----------
    features : np.ndarray, (N, P)
        Numbers of any scale.
    targets : np.ndarray, float (N, T)
        Those of the test images do not matter.
    test : np.ndarray, bool (N,)
        The M images that are scored; the others are fitted.

    Returns
    -------
    np.ndarray, float32 (M, T)
        Prediction minus the training mean of the target. Uninformative features give about 0,
        whatever the frequencies of the classes.
    """
    x, new = _standardised(features, test)
    centred = targets[~test]
    centred -= centred.mean(axis=0)
    n = len(x)
    # x = left · sqrt(values) · rightᵀ, from the smaller of the two products of x with itself
    if x.shape[0] < x.shape[1]:
        values, left = eigh(x @ x.T, driver="evd")
    else:
        values, right = eigh(x.T @ x, driver="evd")
    sound = values > 1e-6 * max(values[-1], 1)  # smaller ones are rounding errors of float32
    values = values[sound]
    if x.shape[0] < x.shape[1]:
        left = left[:, sound]
        right = x.T @ left
        right /= np.sqrt(values)
    else:
        right = right[:, sound]
        left = x[:, : len(values)]  # overwrites x, as both are large
        for rows in blocks(n, x.shape[1], _LARGE):
            left[rows] = x[rows] @ right / np.sqrt(values)
    # How much of each direction is kept, (rank, penalties), and the diagonals of the hat matrices.
    penalties = n * np.array(PENALTIES, np.float32)
    kept = values[:, None] / (values[:, None] + penalties)
    hats = np.empty((n, len(penalties)), np.float32)
    for rows in blocks(n, max(len(values), 1)):
        hats[rows] = 1 / n + left[rows] ** 2 @ kept
    projected = left.T @ centred  # (rank, T)
    rotated = new @ right  # (M, rank)
    least = np.full(targets.shape[1], np.inf)
    scores = np.empty((len(new), targets.shape[1]), np.float32)
    for penalty, fractions, hat in zip(penalties, kept.T, hats.T, strict=True):
        residuals = (centred - left @ (fractions[:, None] * projected)) / (1 - hat[:, None])
        errors = np.square(residuals).sum(axis=0)
        better = errors < least
        least = np.minimum(errors, least)
        coefficients = (np.sqrt(values) / (values + penalty))[:, None] * projected[:, better]
        scores[:, better] = rotated @ coefficients
    return scores


def _standardised(features: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features of training and of test images, float32, standardised by the training images."""
    features = np.asarray(features)
    kind = np.result_type(features, np.float32)
    parts = [features[rows].astype(kind, copy=False) for rows in (~test, test)]
    mean = parts[0].mean(axis=0)
    # By columns, as numpy's std makes a copy of its argument.
    columns = blocks(parts[0].shape[1], len(parts[0]), _LARGE)
    deviation = np.concatenate([parts[0][:, some].std(axis=0) for some in columns])
    deviation = np.where(deviation > 0, deviation, 1)
    for part in parts:  # in place, as they are large
        part -= mean
        part /= deviation
    return tuple(part.astype(np.float32, copy=False) for part in parts)


def _indicators(table: pd.DataFrame, train: np.ndarray) -> np.ndarray:
    """Encode columns of numbers and words as zeros and ones.

    A number becomes steps: whether it exceeds, and whether it reaches, each decile of the training
    images' values. A single frequent value, such as the width of square images, can thus be told
    from all others. A word becomes one indicator for each value that at least five training images
    have.
    """
    columns = []
    for name in table:
        values = table[name].to_numpy()
        if pd.api.types.is_numeric_dtype(table[name]):
            edges = np.unique(np.quantile(values[train], np.linspace(0, 1, _BINS + 1)))
            columns += [values[:, None] > edges, values[:, None] >= edges]
        else:
            words = values.astype(str)
            known, counts = np.unique(words[train], return_counts=True)
            columns.append(words[:, None] == known[counts >= _FEWEST_OF_A_KIND])
    return np.hstack(columns).astype(np.float32)
