"""How well do some features predict the labels? Out-of-fold scores, an interval, and a null.

The model is ridge regression of the label (0 or 1, one column per class), its penalty chosen by
leave-one-out in closed form. On radiographs it orders images as well as logistic regression, and
one decomposition serves every penalty and every set of labels, so that a hundred shuffled labels
cost little more than the true ones. It is meant to be simple and sees no interplay of features: a
stronger model may find more (gradient boosting on the metadata of COVID-CT: AUC 0.77, here 0.73).
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

_FEWEST_OF_A_KIND = 5  # a rarer value of a category is like any other rare one
_LARGE = 2**20  # numbers of a block where smaller ones would cost time
_BINS = 10  # quantiles at which a number is cut into steps


class TooFewGroups(ValueError):
    """A class has too few independent images for cross-validation; the message counts them."""


@dataclass(frozen=True, eq=False)
class Trial:
    """What all features of one data set are tried on: the same folds, shuffles and resamples.

    Attributes
    ----------
    labels
        int (N,), 0 to K - 1.
    groups
        int (N,), equal for images that belong together.
    folds
        int (N,), the fold in which an image is tested.
    shuffled
        uint (SHUFFLES, N), labels dealt out anew among the groups of each fold, which keeps its
        classes.
    weights
        uint8 (RESAMPLES, N), how often an image counts when groups are drawn with replacement.
    """

    labels: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    shuffled: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, eq=False)
class Prediction:
    """What came of one set of features.

    Attributes
    ----------
    auc, low, high
        One-vs-rest AUC, averaged over the classes (of two: the usual one), with its 95 % interval
        by bootstrap over groups.
    null_high
        95 % quantile of the AUC under shuffled labels.
    accuracy
        Share of images whose own class has the highest score.
    resampled
        (RESAMPLES,), the AUC of each resample: differences between two sets of features are paired.
    """

    auc: float
    low: float
    high: float
    null_high: float
    accuracy: float
    resampled: np.ndarray


def prepare(labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> Trial:
    """Deal the folds, the shuffled labels and the resamples.

    Parameters
    ----------
    labels
        (N,), any values; their sorted order numbers the classes.
    groups
        (N,), any values; images of one group are never in training and test folds at once.
    seed
        Of everything that is drawn.

    Raises
    ------
    TooFewGroups
        Fewer than two classes, or fewer than `FEWEST_GROUPS` groups in one.
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
    dealer = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(dealer.split(labels, labels, groups)):
        folds[test] = fold
    rng = np.random.default_rng(seed)
    shuffled = shuffle_labels(labels, groups, folds, rng)
    return Trial(labels, groups, folds, shuffled, resample(labels, groups, rng))


def shuffle_labels(
    labels: np.ndarray, groups: np.ndarray, folds: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Shuffle the labels as patients allow it: uint (SHUFFLES, N).

    Groups of one label exchange it within their fold. In a group of several labels, as of a patient
    who fell ill between two images, the images exchange theirs.
    """
    _, first = np.unique(groups, return_index=True)
    smallest = np.min_scalar_type(int(labels.max()))
    mixed = pd.Series(labels).groupby(groups).transform("nunique").to_numpy() > 1
    dealt = np.tile(labels[first].astype(smallest), (SHUFFLES, 1))  # (SHUFFLES, groups)
    for fold in np.unique(folds):
        members = np.flatnonzero((folds[first] == fold) & ~mixed[first])
        dealt[:, members] = rng.permuted(dealt[:, members], axis=1)
    shuffled = dealt[:, groups]
    rows = np.flatnonzero(mixed)
    if len(rows):
        places = rows[np.argsort(groups[rows], kind="stable")]  # group by group
        for shuffle in shuffled:
            order = np.lexsort((rng.random(len(rows)), groups[places]))
            shuffle[places] = labels[places][order]
    return shuffled


def resample(labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How often each image counts, uint8 (RESAMPLES, N), when groups are drawn anew.

    Groups are drawn with replacement within each class (that of their first image), as many as
    there are (Efron & Tibshirani 1993, ch. 8, two-sample problem).
    """
    _, first = np.unique(groups, return_index=True)
    # A byte is enough: the chance that any group is drawn more than 255 times is below 10^-500.
    times = np.empty((RESAMPLES, len(first)), np.uint8)
    for label in np.unique(labels[first]):
        members = np.flatnonzero(labels[first] == label)
        shares = np.full(len(members), 1 / len(members))
        for rows in blocks(RESAMPLES, len(members)):
            times[rows, members] = rng.multinomial(len(members), shares, rows.stop - rows.start)
    return times[:, groups]


def predict(features: np.ndarray | pd.DataFrame, trial: Trial) -> Prediction:
    """Predict the labels from the features, every image by a model that has not seen its group.

    Parameters
    ----------
    features
        (N, P) numbers, or a table of numbers and words, which become steps and indicators by the
        training folds (see `indicators`).
    trial
        Labels, folds, shuffles and resamples, from `prepare`.
    """
    classes = trial.labels.max() + 1
    wanted = np.arange(1, classes) if classes == 2 else np.arange(classes)  # one column says it all
    every = np.concatenate([trial.labels[None].astype(trial.shuffled.dtype), trial.shuffled])
    targets = (every[..., None] == wanted).astype(np.float32)  # (1 + SHUFFLES, N, columns)
    targets = targets.transpose(1, 0, 2).reshape(len(trial.labels), -1)
    scores = np.empty_like(targets)
    # On a machine with other work, threads that wait for each other take ten times as long.
    with threadpool_limits(1, "blas"):
        for fold in range(FOLDS):
            test = trial.folds == fold
            table = isinstance(features, pd.DataFrame)
            numbers = indicators(features, ~test) if table else features
            scores[test] = ridge_scores(numbers, targets, test)
    scores = scores.reshape(len(scores), -1, len(wanted))
    true = scores[:, 0]  # (N, columns)
    shares = np.mean(trial.labels[:, None] == wanted, axis=0)
    chosen = true[:, 0] + shares[0] > 0.5 if classes == 2 else (true + shares).argmax(axis=1)
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
    """One-vs-rest AUC averaged over the classes, (R,), once per row of the weights.

    Share of pairs in which the image of the class has the higher score, ties counting one half
    (Hanley & McNeil 1982, eq. 1), each pair as often as its two images' weights say.

    Parameters
    ----------
    labels
        int (N,), 0 to K - 1.
    scores
        (N, K), or (N, 1) for the class 1 of two.
    weights
        (R, N); None: every image once.
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
    """Fit each column of the targets by ridge regression, and score the test images: (M, T).

    A score is what the fit expects beyond the targets' mean, so that features that say nothing give
    0 whatever the training images' classes. Features are standardised by the training images. Each
    target has the penalty, of `PENALTIES` times the number of training images, with the least
    squared error of leave-one-out, whose residuals are those of the fit divided by 1 - h, h the
    diagonal of the hat matrix (Golub, Heath & Wahba 1979, eq. 1.3).

    Parameters
    ----------
    features
        (N, P).
    targets
        (N, T); those of the test images do not matter.
    test
        bool (N,), the M images that are scored; the others are fitted.
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
    sound = values > 1e-6 * max(values[-1], 1)  # below, float32 leaves nothing but rounding
    values = values[sound]
    if x.shape[0] < x.shape[1]:
        left = left[:, sound]
        right = x.T @ left
        right /= np.sqrt(values)
    else:
        right = right[:, sound]
        left = x[:, : len(values)]  # in the place of x: both would be large
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
    for penalty, kept_of_each, hat in zip(penalties, kept.T, hats.T, strict=True):
        residuals = (centred - left @ (kept_of_each[:, None] * projected)) / (1 - hat[:, None])
        errors = np.square(residuals).sum(axis=0)
        better = errors < least
        least = np.minimum(errors, least)
        coefficients = (np.sqrt(values) / (values + penalty))[:, None] * projected[:, better]
        scores[:, better] = rotated @ coefficients
    return scores


def _standardised(features: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training and test images' features of mean 0 and deviation 1 in training, both float32."""
    features = np.asarray(features)
    kind = np.result_type(features, np.float32)
    parts = [features[rows].astype(kind, copy=False) for rows in (~test, test)]
    mean = parts[0].mean(axis=0)
    # By columns, as numpy makes a copy of what it takes the deviation of.
    columns = blocks(parts[0].shape[1], len(parts[0]), _LARGE)
    deviation = np.concatenate([parts[0][:, some].std(axis=0) for some in columns])
    deviation = np.where(deviation > 0, deviation, 1)
    for part in parts:  # in place, as they are large
        part -= mean
        part /= deviation
    return tuple(part.astype(np.float32, copy=False) for part in parts)


def indicators(table: pd.DataFrame, train: np.ndarray) -> np.ndarray:
    """Turn columns of numbers and words into zeros and ones, float32 (N, P).

    A number becomes steps: whether it exceeds, and whether it reaches, each tenth of the training
    images' values, so that a single frequent value (every image square) stands alone. A word
    becomes one indicator for each value that at least five training images have.

    Parameters
    ----------
    table
        N rows.
    train
        bool (N,), the training images.
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
