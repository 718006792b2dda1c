"""Labels of images without a table, by a stated rule, and errors of probabilities."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from scipy.special import expit

from covid_lab.explain.pictures import find_pictures
from covid_lab.studies.ct import prepared
from covid_project.data import DataError
from covid_project.evaluation import (
    RESAMPLES,
    checked,
    drawn_rows,
    percentile_interval,
    wilson_interval,
)

RULE = (
    "the name of the image's folder, or else a whole token of its file's name (tokens are runs of "
    "letters and digits), must equal a class name except for letter case; of names of several "
    "words, the longest counts"
)


def labels_of(paths: Iterable[str], classes: Sequence[str]) -> np.ndarray:
    """Return the labels of images from their paths by `RULE`.

    Parameters
    ----------
    paths : iterable of str, (N,)
        POSIX paths.
    classes : sequence of str
        Names of the classes.

    Returns
    -------
    np.ndarray, int64 (N,)
        Indices in ``classes``.

    Raises
    ------
    DataError
        Names every image whose path names no class, or more than one.

    Examples
    --------
    >>> paths = ["unseen/scan-12_lesion.png", "unseen/No Lesion/3.png"]
    >>> labels_of(paths, ("no lesion", "lesion")).tolist()
    [1, 0]
    """
    labels, faults = [], []
    for path in paths:
        try:
            labels.append(_label_of(path, classes))
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("\n".join(faults))
    return np.array(labels, np.int64)


def read_unseen(
    path: str | Path, classes: Sequence[str], size: int, *, equalize: bool
) -> tuple[pd.DataFrame, np.ndarray]:
    """Read a user's images, prepared as those of the training.

    Parameters
    ----------
    path : str or Path
        Image, folder or archive.
    classes : sequence of str
        Names of the classes.
    size : int, 64–512
        Pixels along each side.
    equalize : bool
        Whether the histograms are equalised.

    Returns
    -------
    table : pd.DataFrame, N rows
        path (below the folder) and label, by `RULE`; missing where the path names no class.
    images : np.ndarray, uint8 (N, size, size, 1)
        Prepared images.

    Raises
    ------
    DataError
        There is no image, or one cannot be read.
    """
    pictures, _ = find_pictures([Path(path)], classes)
    images = [prepared(picture.grey(), size, equalize=equalize) for picture in pictures]
    rows = [(picture.name, _named_label(picture.path.as_posix(), classes)) for picture in pictures]
    table = pd.DataFrame(rows, columns=["path", "label"]).astype({"label": "Int64"})
    return table, np.stack(images)[..., None]


def _label_of(path: str, classes: Sequence[str]) -> int:
    """Return the label of an image from its path by `RULE`."""
    # Whole words only: "nolesion" contains "lesion" and means the opposite.
    path = PurePosixPath(path)
    wanted = {_token(name): label for label, name in enumerate(classes)}
    if len(wanted) < len(classes):
        raise DataError(f"the classes {list(classes)} do not differ in letters and digits")
    if _token(path.parent.name) in wanted:
        return wanted[_token(path.parent.name)]
    words = [word.casefold() for word in re.findall(r"[^\W_]+", path.stem)]
    spans = {
        (start, end): "".join(words[start:end])
        for start in range(len(words))
        for end in range(start + 1, len(words) + 1)
    }
    found = {span: name for span, name in spans.items() if name in wanted}
    named = {
        name
        for (start, end), name in found.items()
        if not any(a <= start and end <= b and (a, b) != (start, end) for a, b in found)
    }
    if len(named) != 1:
        count = f"{len(named)} of them" if named else "none of them"
        raise DataError(
            f"{path}: {RULE}; the classes are {', '.join(classes)}, and it names {count}. Rename "
            "the file, or put it into a folder of its class"
        )
    return wanted[named.pop()]


def _token(name: str) -> str:
    return "".join(re.findall(r"[^\W_]+", name)).casefold()


def _named_label(path: str, classes: Sequence[str]) -> int | None:
    """Return the label of an image from its path, or None where the path names no single class."""
    try:
        return _label_of(path, classes)
    except DataError:
        return None


def prediction_titles(table: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    """Write the title of each predicted image: its name, label and prediction.

    Parameters
    ----------
    table : pd.DataFrame
        One row per image: path, label (index in ``classes``, missing where unknown) and score, the
        logit of the second class.
    classes : sequence of str
        Names of the classes.

    Returns
    -------
    list of str
        Four lines for each image: name, label, prediction and its probability. Long names are
        shortened in the middle.

    Examples
    --------
    >>> rows = pd.DataFrame({"path": ["mine/a_7.png"], "label": [0], "score": [2.0]})
    >>> print(prediction_titles(rows, ("nolesion", "lesion"))[0])
    a_7.png
    label: nolesion
    predicted: lesion
    p = 0.88: WRONG
    """
    titles = []
    for row in table.itertuples():
        predicted = int(row.score > 0)
        chance = expit(row.score) if predicted else expit(-row.score)
        label, mark = "not in its path", ""
        if not pd.isna(row.label):
            label = classes[int(row.label)]
            mark = ": correct" if predicted == row.label else ": WRONG"
        name = _shortened(PurePosixPath(row.path).name)
        said = f"predicted: {classes[predicted]}\np = {chance:.2f}{mark}"
        titles.append(f"{name}\nlabel: {label}\n{said}")
    return titles


def _shortened(name: str, longest: int = 24) -> str:
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


def probability_errors(labels: np.ndarray, scores: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """Compute accuracy, Brier score and RMSE of probabilities, with 95 % intervals.

    The Brier score (Brier 1950) is the mean squared difference between the probability of the
    positive class and the label; the RMSE is its root. A constant probability of one half has 0.25
    and 0.5.

    Parameters
    ----------
    labels : array_like, (N,), 0 or 1
        Labels; a single class is allowed.
    scores : array_like, float (N,)
        Logits.
    seed : int, from 0
        Seed of the bootstrap.

    Returns
    -------
    pd.DataFrame
        One row per metric: metric, value, low, high, n, method. Accuracy has Wilson's interval, the
        others the percentile interval of a bootstrap over images, stratified by class.

    Examples
    --------
    >>> table = probability_errors(np.array([0, 1]), np.zeros(2))
    >>> table["value"].tolist()
    [0.5, 0.25, 0.5]
    """
    labels, scores = checked(labels, scores)
    squared = (expit(scores.astype(np.float64)) - labels) ** 2
    rng = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for group in (squared[~labels], squared[labels]):
        total += np.concatenate([group[rows].sum(axis=1) for rows in drawn_rows(rng, len(group))])
    resampled = total / len(labels)
    right = int(((scores > 0) == labels).sum())
    bootstrap = f"bootstrap, {RESAMPLES} resamples"
    rows = [
        ("accuracy", right / len(labels), *wilson_interval(right, len(labels)), "Wilson"),
        ("Brier", squared.mean(), *percentile_interval(resampled), bootstrap),
        ("RMSE", np.sqrt(squared.mean()), *percentile_interval(np.sqrt(resampled)), bootstrap),
    ]
    table = pd.DataFrame(rows, columns=["metric", "value", "low", "high", "method"])
    table.insert(4, "n", len(labels))
    return table
