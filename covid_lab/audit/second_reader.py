"""Agreement of the labels with a second reader, and labels that reader and model contradict."""

import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score

from covid_lab.audit.findings import Finding
from covid_lab.audit.predictability import resample
from covid_project.data import DataError, Dataset, listed
from covid_project.evaluation import percentile_interval, wilson_interval

AREA = "labels"
CHECK = "labels agree with the second reader"
COLUMN = "second_label"
AGREEMENT = 0.8  # least kappa without a warning (McHugh, Biochemia Medica 2012: "strong")
TABLE_COLUMNS = ("label", "second_label", "images", "fraction", "low", "high")


def second_labels(metadata: pd.DataFrame, dataset: Dataset) -> pd.Series:
    """Labels of a second reader, from a table.

    Parameters
    ----------
    metadata : pd.DataFrame
        Columns ``image`` (path in the data set, or file name where only one image has it) and
        ``second_label`` (name of a class, in any letter case; empty where not read). Rows of other
        images are ignored.
    dataset : Dataset
        The images and the names of the classes.

    Returns
    -------
    pd.Series, str
        Name of a class for the path of every image that was read.

    Raises
    ------
    DataError
        A missing column, a label that is not a class, two labels for one image, a file name that
        fits several images, or no image of the data set at all.
    """
    missing = [name for name in ("image", COLUMN) if name not in metadata]
    if missing:
        raise DataError(f"second labels need the columns image and {COLUMN}: no {listed(missing)}")
    known = metadata[["image", COLUMN]].dropna().astype(str)
    known[COLUMN] = known[COLUMN].str.strip()
    known = known[known[COLUMN] != ""]
    spelled = {name.casefold(): name for name in dataset.classes}
    labels = known[COLUMN].str.casefold().map(spelled)
    if labels.isna().any():
        unknown = listed(sorted(known.loc[labels.isna(), COLUMN].unique()), limit=5)
        raise DataError(
            f"{COLUMN} holds {unknown}; allowed: {', '.join(dataset.classes)}, or empty where an "
            "image was not read"
        )
    known = known.assign(**{COLUMN: labels}).drop_duplicates()
    twice = known.loc[known["image"].duplicated(), "image"]
    if len(twice):
        raise DataError(f"two second labels for one image: {listed(twice, limit=5)}")
    of_image = dict(zip(known["image"], known[COLUMN], strict=True))
    paths = dataset.table["path"]
    names = paths.map(lambda path: path if path in of_image else path.rsplit("/", 1)[-1])
    shared = paths[names.isin(of_image) & names.duplicated(keep=False)]
    if len(shared):
        raise DataError(
            f"second labels name files without folders, and one fits several images: "
            f"{listed(shared, limit=5)}; give paths"
        )
    found = names.map(of_image).set_axis(paths).dropna()
    if found.empty:
        raise DataError(
            "the second labels are of none of these images: the column image must hold their "
            f"paths or names, such as {paths.iloc[0]}"
        )
    return found


def confusion_table(
    given: np.ndarray, second: np.ndarray, classes: tuple[str, ...]
) -> pd.DataFrame:
    """Count the pairs of given and second label.

    Parameters
    ----------
    given, second : np.ndarray, str (N,)
        Names of classes.
    classes : tuple of str
        Names of all classes, in the order of the rows.

    Returns
    -------
    pd.DataFrame
        One row per pair: label, second_label, images, and fraction (of the images with that given
        label) with Wilson's 95 % interval (low, high); NaN for a label that no image has.

    Examples
    --------
    >>> import numpy as np
    >>> given, second = np.array(["N", "N", "C", "C"]), np.array(["N", "C", "C", "C"])
    >>> confusion_table(given, second, ("N", "C"))[["label", "second_label", "images", "fraction"]]
      label second_label  images  fraction
    0     N            N       1       0.5
    1     N            C       1       0.5
    2     C            N       0       0.0
    3     C            C       2       1.0
    """
    counts = pd.crosstab(given, second).reindex(index=classes, columns=classes, fill_value=0)
    rows = []
    for label, of_label in counts.iterrows():
        total = int(of_label.sum())
        for other, count in of_label.items():
            fraction = count / total if total else np.nan
            rows.append((label, other, count, fraction, *wilson_interval(count, total)))
    return pd.DataFrame(rows, columns=TABLE_COLUMNS)


def _kappa(
    given: np.ndarray, second: np.ndarray, groups: np.ndarray, seed: int = 0
) -> tuple[float, float, float]:
    """Compute Cohen's kappa (Cohen 1960) with its 95 % interval by bootstrap over groups."""
    classes, groups = pd.factorize(given)[0], pd.factorize(groups)[0]
    weights = resample(classes, groups, np.random.default_rng(seed)).astype(float)
    # scikit-learn has no weights by rows: a thousand calls take seconds.
    count = weights.sum(axis=1)
    agreed = weights @ (given == second) / count
    chance = sum((weights @ (given == k)) * (weights @ (second == k)) for k in np.unique(given))
    chance = chance / count**2
    drawn = (agreed - chance) / (1 - chance)
    return float(cohen_kappa_score(given, second)), *percentile_interval(drawn)


def compare_readers(
    dataset: Dataset, second: np.ndarray, contradicted: np.ndarray, seed: int = 0
) -> tuple[pd.DataFrame, Finding]:
    """Compare the labels with those of a second reader.

    Parameters
    ----------
    dataset : Dataset
        Its table has the column ``group``.
    second : np.ndarray, str (N,)
        Names of classes, "" for images that were not read.
    contradicted : np.ndarray, bool (N,)
        Labels that a model contradicts.
    seed : int
        Of the bootstrap.

    Returns
    -------
    table : pd.DataFrame
        See `confusion_table`.
    finding : Finding
        "warn" where kappa is below `AGREEMENT`, or model and reader contradict the same label;
        "not applicable" where the reader read images of fewer than two labels; else "pass".
    """
    read = second != ""
    table, n = dataset.table[read], int(read.sum())
    given = np.array(dataset.classes, dtype=object)[table["label"]]
    second = second[read]
    confusion = confusion_table(given, second, dataset.classes)
    if len(np.unique(given)) < 2:
        reason = (
            f"of the images outside the test split, the reader read {n:,}, of one label or none"
        )
        return confusion, Finding(AREA, CHECK, "not applicable", reason)
    value, low, high = _kappa(given, second, table["group"].to_numpy(), seed)
    differ = given != second
    both = table["path"][contradicted[read] & differ]
    agreed = n - int(differ.sum())
    lower, upper = wilson_interval(agreed, n)
    named = f": {listed(both, limit=5)}" if len(both) else ""
    found = (
        f"Cohen's kappa of {n:,} images; {agreed:,} labels agree ({agreed / n:.3f}, "
        f"95 % CI {lower:.3f}–{upper:.3f}); model and reader together contradict {len(both):,} "
        f"labels{named}"
    )
    verdict = "warn" if value < AGREEMENT or len(both) else "pass"
    return confusion, Finding(AREA, CHECK, verdict, found, value, low, high, n)
