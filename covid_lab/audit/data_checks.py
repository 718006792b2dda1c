"""Can the data be used to measure anything? Findings on files, copies, patients and balance.

A held-out image (val, test) with a copy, or another image of its patient, in another split is not
unseen: a metric on it partly measures memory. Such findings fail. Copies that a split can still
avoid (within a split, or where there is no split yet) warn.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency, chisquare

from covid_lab.audit.duplicates import duplicate_pairs, pixel_hash
from covid_lab.audit.findings import Finding
from covid_lab.audit.groups import clusters, groups_across_splits
from covid_lab.datasets import each_image, without
from covid_lab.reading.patients import with_patients
from covid_lab.storage import filled_array
from covid_project.data import Dataset
from covid_project.evaluation import SIGNIFICANCE, wilson_interval
from covid_project.images import resize

AREA = "data"
SIDE = 128  # pixels at which near copies are sought, as in the benchmark of `duplicates`
IMBALANCE = 0.3  # Cramér's V from which classes are called imbalanced: a medium effect (Cohen 1988)
HELD_OUT = ("val", "test")
NO_SPLIT = "the data come without a split"
NAMED = 5  # examples in a finding


@dataclass(frozen=True, eq=False)
class DataAudit:
    """The findings on a data set, and the data.

    Attributes
    ----------
    findings : list of Finding
        In the order of reading.
    dataset : Dataset
        The readable images; the column group holds the patients as far as they are known.
    pairs : pd.DataFrame
        From `covid_lab.audit.duplicates.duplicate_pairs`: rows of the table, kind, similarity,
        splits.
    unreadable : dict of str to str
        Reason by path.
    patients : str
        How many patients are known, in words; "" for none.
    """

    findings: list[Finding]
    dataset: Dataset
    pairs: pd.DataFrame
    unreadable: dict[str, str]
    patients: str = ""


def audit_data(
    dataset: Dataset,
    *,
    pattern: str | None = None,
    metadata: pd.DataFrame | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> DataAudit:
    """Read every image once, search for copies, and apply `RULES`.

    Parameters
    ----------
    dataset : Dataset
        Opened with ``as_found=True``: a split may be "" or missing.
    pattern : str, optional
        Regular expression that finds the patient in a path, see
        `covid_lab.reading.patients.groups_from_names`.
    metadata : pd.DataFrame, optional
        Table of images and patients instead of a pattern, see
        `covid_lab.reading.patients.groups_from_table`.
    seed : int
        See `covid_lab.audit.duplicates.near_pairs`.
    progress : callable
        Called with (stage, done, total).

    Returns
    -------
    DataAudit
        Findings, readable images and pairs of copies. Without any readable image, the only finding
        is that they cannot be read.

    Raises
    ------
    DataError
        A pattern or a metadata table that does not fit.

    Examples
    --------
    >>> from covid_lab.datasets import open_dataset
    >>> audit = audit_data(open_dataset("covid_xray.zip", as_found=True))
    >>> audit.findings[0].check, audit.findings[0].verdict
    ('every image can be read', 'pass')
    """
    everything = len(dataset.table)
    with tempfile.TemporaryDirectory() as folder:  # the images stay on disk
        images, contents, unreadable = _read(dataset, Path(folder), progress)
        dataset, patients = with_patients(without(dataset, unreadable), pattern, metadata)
        pairs = duplicate_pairs(
            images,
            dataset.table,
            contents=contents,
            seed=seed,
            progress=lambda done, total: progress("pairs compared", done, total),
        )
        del images
    findings = [_unreadable(unreadable, everything)]
    findings += [rule(dataset, pairs) for rule in RULES] if len(contents) else []
    return DataAudit(findings, dataset, pairs, unreadable, patients)


def named_pairs(audit: DataAudit) -> pd.DataFrame:
    """Give the pairs of copies with paths and class names.

    Parameters
    ----------
    audit : DataAudit
        From `audit_data`.

    Returns
    -------
    pd.DataFrame
        One row per pair: path_first, split_first, label_first (name of the class), the same for
        second, kind, similarity, label_conflict. Pairs across splits come first, then pairs with
        two labels, then by falling similarity.
    """
    table, pairs = audit.dataset.table, audit.pairs
    names = np.array(audit.dataset.classes, dtype=object)
    sides = {
        f"{column}_{side}": values[pairs[side]]
        for side in ("first", "second")
        for column, values in {
            "path": table["path"].to_numpy(),
            "split": table["split"].to_numpy(),
            "label": names[table["label"]],
        }.items()
    }
    named = pd.DataFrame({**sides, **pairs[["kind", "similarity", "label_conflict"]]})
    across = named["split_first"] != named["split_second"]
    order = np.lexsort((-named["similarity"], ~named["label_conflict"], ~across))
    return named.iloc[order].reset_index(drop=True)


def _read(
    dataset: Dataset, folder: Path, progress: Callable[[str, int, int], None]
) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Readable images uint8 (N, SIDE, SIDE) in a file of the folder; hashes; reasons by path."""
    contents, unreadable = [], {}

    def fill(images: np.ndarray) -> None:
        def take(read: tuple[str, np.ndarray]) -> None:
            content, images[len(contents)] = read
            contents.append(content)

        unreadable.update(
            each_image(
                dataset,
                lambda pixels: (pixel_hash(pixels), resize(pixels, (SIDE, SIDE))),
                lambda done, total: progress("images read", done, total),
                take,
            )[1]
        )

    images = filled_array(folder / "images.npy", (len(dataset.table), SIDE, SIDE), fill)
    return images[: len(contents)], np.array(contents, dtype="U64"), unreadable


# ---- the rules: each takes the readable images and the pairs, and returns one finding -----------


def _unreadable(unreadable: dict[str, str], everything: int) -> Finding:
    check = "every image can be read"
    if not unreadable:
        return Finding(AREA, check, "pass", f"all {everything:,} can", 0.0, n=everything)
    listed = _some(f"{path} ({reason})" for path, reason in unreadable.items())
    found = f"{len(unreadable):,} of {everything:,} cannot, and the rest was audited: {listed}"
    return Finding(AREA, check, "fail", found, len(unreadable) / everything, n=everything)


def _exact_across(dataset: Dataset, pairs: pd.DataFrame) -> Finding:
    copied = _in_other_splits(dataset, _clusters(dataset, pairs[pairs["kind"] == "exact"]))
    return _across("no image twice, in two splits", "pixel for pixel", dataset, copied)


def _near_across(dataset: Dataset, pairs: pd.DataFrame) -> Finding:
    exact = _in_other_splits(dataset, _clusters(dataset, pairs[pairs["kind"] == "exact"]))
    copied = _in_other_splits(dataset, _clusters(dataset, pairs)) & ~exact
    how = "changed (resized, cropped, rotated, brighter, mirrored, …) or taken of the same patient"
    return _across("no near copy in another split", how, dataset, copied)


def _across(check: str, how: str, dataset: Dataset, copied: np.ndarray) -> Finding:
    """Judge images (N,) bool that have a copy, or their patient's image, in another split."""
    held_out = dataset.table["split"].isin(HELD_OUT).to_numpy()
    if not held_out.any() or dataset.table["split"].nunique() < 2:
        return Finding(AREA, check, "not applicable", NO_SPLIT)
    count, n = int((copied & held_out).sum()), int(held_out.sum())
    listed = f": {_some(dataset.table['path'][copied & held_out])}" if count else ""
    found = f"{count:,} of {n:,} held-out images are in another split as well, {how}{listed}"
    low, high = map(float, wilson_interval(count, n))
    return Finding(AREA, check, "fail" if count else "pass", found, count / n, low, high, n)


def _exact_within(dataset: Dataset, pairs: pd.DataFrame) -> Finding:
    return _within("no image twice in a split", "exact", dataset, pairs[pairs["kind"] == "exact"])


def _near_within(dataset: Dataset, pairs: pd.DataFrame) -> Finding:
    near = pairs[pairs["kind"] != "exact"]
    return _within("no near copy in a split", "near or mirrored", dataset, near)


def _within(check: str, kind: str, dataset: Dataset, pairs: pd.DataFrame) -> Finding:
    inside = pairs[pairs["split_first"] == pairs["split_second"]]
    n, copied = len(dataset.table), inside["second"].nunique()
    counts = inside["split_first"].replace("", "no split").value_counts().to_dict()
    where = f" ({', '.join(f'{split} {count:,}' for split, count in counts.items())})"
    found = f"{copied:,} of {n:,} images are {kind} copies of another{where if counts else ''}"
    return Finding(AREA, check, "warn" if copied else "pass", found, copied / n, n=n)


def _label_conflicts(dataset: Dataset, pairs: pd.DataFrame) -> Finding:
    """Equal images with two labels are an error in the data; a person should check near copies."""
    check = "copies have one label"
    if pairs.empty:
        return Finding(AREA, check, "not applicable", "there are no copies")
    conflicts = pairs[pairs["label_conflict"]]
    exact = int((conflicts["kind"] == "exact").sum())
    verdict = "fail" if exact else "warn" if len(conflicts) else "pass"
    paths = dataset.table["path"].to_numpy()
    listed = _some(
        f"{paths[first]} = {paths[second]}"
        for first, second in zip(conflicts["first"], conflicts["second"], strict=True)
    )
    found = f"{len(conflicts):,} of {len(pairs):,} pairs have two labels, {exact:,} of them exact"
    found += f": {listed}" if len(conflicts) else ""
    return Finding(AREA, check, verdict, found, len(conflicts) / len(pairs), n=len(pairs))


def _patients(dataset: Dataset, pairs: pd.DataFrame) -> Finding:
    check, table = "no patient in two splits", dataset.table
    sizes = table.groupby("group").size()
    if sizes.max() == 1:
        reason = "no two images name one patient; give --pattern or --patients where that is known"
        return Finding(AREA, check, "not applicable", reason)
    several = f"patients with several images: {int((sizes > 1).sum()):,}"
    across = groups_across_splits(table)
    finding = _across(
        check, "by their patient", dataset, table["group"].isin(across["group"]).to_numpy()
    )
    if finding.verdict == "not applicable":
        return replace(finding, found=f"{NO_SPLIT}; a split must keep patients together; {several}")
    named = f": {_some(across['group'])}" if len(across) else ""
    shared = int(table["group"].isin(across["group"])[table["split"].isin(HELD_OUT)].sum())
    found = (
        f"{several}, of them in two splits: {len(across):,}{named}; these have {shared:,} of the "
        f"{finding.n:,} held-out images"
    )
    return replace(finding, found=found)


def _classes(dataset: Dataset, pairs: pd.DataFrame) -> Finding:
    check, labels = "classes are balanced", dataset.table["label"]
    counts = labels.value_counts().sort_index()
    named = ", ".join(f"{dataset.classes[label]} {count:,}" for label, count in counts.items())
    if len(counts) < 2:
        return Finding(AREA, check, "not applicable", f"only one class: {named}")
    # Cramér's V of one column of counts, which is 1 if one class holds all images.
    strength = np.sqrt(chisquare(counts).statistic / (len(labels) * (len(counts) - 1)))
    verdict = "warn" if strength >= IMBALANCE else "pass"
    found = f"{named}; Cramér's V {strength:.2f}, imbalanced from {IMBALANCE}"
    low, high = map(float, wilson_interval(int(counts.min()), len(labels)))
    return Finding(
        AREA, check, verdict, found, float(counts.min() / len(labels)), low, high, len(labels)
    )


def _splits(dataset: Dataset, pairs: pd.DataFrame) -> Finding:
    check, table = "classes are alike in all splits", dataset.table
    if table["split"].nunique() < 2:
        return Finding(AREA, check, "not applicable", NO_SPLIT)
    if table["label"].nunique() < 2:
        return Finding(AREA, check, "not applicable", "there is only one class")
    counts = pd.crosstab(table["split"], table["label"]).to_numpy()
    test = chi2_contingency(counts, correction=False)
    strength = float(np.sqrt(test.statistic / (counts.sum() * (min(counts.shape) - 1))))
    name = dataset.classes[table["label"].max()]
    fractions = table["label"].eq(table["label"].max()).groupby(table["split"], sort=False).mean()
    listed = ", ".join(
        f"{split or 'no split'} {fraction:.3f}" for split, fraction in fractions.items()
    )
    found = f"fraction of {name}: {listed}; χ² test p = {test.pvalue:.2g}, V {strength:.2f}"
    verdict = "warn" if test.pvalue < SIGNIFICANCE else "pass"
    return Finding(AREA, check, verdict, found, strength, n=len(table))


RULES = (
    _exact_across,
    _near_across,
    _patients,
    _label_conflicts,
    _exact_within,
    _near_within,
    _classes,
    _splits,
)


def _clusters(dataset: Dataset, pairs: pd.DataFrame) -> np.ndarray:
    return clusters(len(dataset.table), pairs)


def _in_other_splits(dataset: Dataset, groups: np.ndarray) -> np.ndarray:
    """Whether an image's group has images of another split as well, bool (N,)."""
    table = pd.DataFrame({"group": groups, "split": dataset.table["split"]})
    return table["group"].isin(groups_across_splits(table)["group"]).to_numpy()


def _some(names) -> str:
    names = list(names)
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
