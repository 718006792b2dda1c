"""Any data in the layout of the course's notebooks: a zip archive of ``split/class/image``."""

import io
import json
import re
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from PIL import Image

from covid_lab.audit.groups import grouped_split, joined_groups
from covid_lab.datasets import FoundDataset
from covid_lab.reading.dicom import DicomRoot
from covid_project.data import (
    CLASSES,
    PHANTOM_MARK,
    SPLIT_FOLDERS,
    SPLITS,
    DataError,
    file_hashes,
    read_bytes,
    same_name,
)
from covid_project.files import whole_file
from covid_project.images import decode

RECORD = "arranged.json"  # in the archive: what it was made from
VAL = 0.1  # fraction of the training images, where only a validation split is missing


def is_course_data(dataset: FoundDataset, path: Path) -> bool:
    """Tell whether the course's own reader opens the data and keeps patients in one split.

    Parameters
    ----------
    dataset : FoundDataset
        The data as `covid_lab.datasets.open_dataset` found them.
    path : Path
        Folder or archive of the data.

    Returns
    -------
    bool
        False where the data must be arranged first, see `arrange`.
    """
    table = dataset.table
    if isinstance(dataset.root, DicomRoot) or not (path.is_dir() or zipfile.is_zipfile(path)):
        return False
    if isinstance(dataset.root, zipfile.Path):
        members = dataset.root.root.infolist()
        if any(member.filename != member.orig_filename for member in members):
            return False  # names that were repaired
    if [same_name(name) for name in dataset.classes] != [same_name(name) for name in CLASSES]:
        return False
    names = "|".join(re.escape(same_name(name)) for name in CLASSES)
    with_split = rf"({'|'.join(SPLIT_FOLDERS)})/({names})/[^/]+"
    without = rf"({names})/(images/)?[^/]+"
    paths = table["path"].map(same_name)
    if paths.str.fullmatch(with_split).all():
        return set(table["split"]) == set(SPLITS)
    return bool(paths.str.fullmatch(without).all() and table["group"].is_unique)


def arrange(dataset: FoundDataset, path: Path, *, source: str, seed: int = 0) -> list[str]:
    """Write data of two classes as a zip archive in the course's layout.

    Images that the course can read are copied unchanged; DICOM becomes PNG. Where a split is
    missing, it is made so that patients and equal files stay together: 80 : 10 : 10 for data
    without splits, or a tenth of the training images for validation.

    Parameters
    ----------
    dataset : FoundDataset
        Its second class becomes COVID, the positive one.
    path : Path
        Archive to write.
    source : str
        Name of the data, for the record in the archive.
    seed : int, from 0
        Seed of a split.

    Returns
    -------
    list of str
        What was done, in words.

    Raises
    ------
    DataError
        There are not exactly two classes, a split cannot be made, or an image cannot be read.
    """
    if len(dataset.classes) != 2:
        raise DataError(
            f"the course distinguishes two classes, and {source} has {len(dataset.classes)}: "
            f"{', '.join(dataset.classes)}. Name two with --classes NEGATIVE,POSITIVE"
        )
    table = dataset.table
    splits, said = _splits(dataset, seed)
    names = [same_name(name) for name in dataset.classes]
    if names != [same_name(name) for name in CLASSES]:
        said.append(
            f"WARNING: tables, figures and notebooks call {dataset.classes[0]} {CLASSES[0]} and "
            f"{dataset.classes[1]} {CLASSES[1]}"
        )
    digits = len(str(len(table)))
    with whole_file(path) as part, zipfile.ZipFile(part, "w") as archive:
        for number, (name, label, split) in enumerate(
            zip(table["path"], table["label"], splits, strict=True)
        ):
            content, suffix = _content(dataset, name)
            stem = re.sub(r"[^\w.-]", "_", PurePosixPath(name).stem)[:60]
            member = f"{split}/{CLASSES[label]}/{number:0{digits}}_{stem}{suffix}"
            archive.writestr(member, content)
        if dataset.is_phantom:
            archive.writestr(PHANTOM_MARK, "{}")
        record = {
            "source": source,
            "fingerprint": dataset.fingerprint,
            "classes": dict(zip(CLASSES, dataset.classes, strict=True)),
            "paths": table["path"].tolist(),
        }
        archive.writestr(RECORD, json.dumps(record, ensure_ascii=False, indent=1))
    return said


def _splits(dataset: FoundDataset, seed: int) -> tuple[np.ndarray, list[str]]:
    """Return the split of each image, and what was done."""
    table = dataset.table
    present = set(table["split"])
    if present == set(SPLITS):
        return table["split"].to_numpy(), []
    hashes = file_hashes(dataset.root, table["path"])
    groups = pd.Series(joined_groups(table["group"], hashes.to_numpy()))
    if present == {""}:
        splits = grouped_split(table["label"].to_numpy(), groups, seed=seed)
        return splits, ["split 80 : 10 : 10; patients and equal files stay together"]
    if present == {"train", "test"}:
        splits = table["split"].to_numpy().copy()
        rows = np.flatnonzero(splits == "train")
        labels, own = table["label"].to_numpy()[rows], groups.to_numpy()[rows]
        splits[rows] = grouped_split(labels, own, {"train": 1 - VAL, "val": VAL}, seed=seed)
        return splits, ["no val split: a tenth of train becomes val, patients stay together"]
    missing = [split for split in SPLITS if split not in present]
    rest = " and images without a split" if "" in present else ""
    raise DataError(
        f"the course needs train, val and test; missing: {', '.join(missing) or 'none'}{rest}. "
        "Give all three, train and test, or no split at all"
    )


def _content(dataset: FoundDataset, name: str) -> tuple[bytes, str]:
    """Return the bytes and the suffix of an image for the archive."""
    content = read_bytes(dataset.root, name)
    if not isinstance(dataset.root, DicomRoot):
        return content, PurePosixPath(name).suffix.lower()
    stream = io.BytesIO()
    Image.fromarray(decode(content, name)).save(stream, "PNG")
    return stream.getvalue(), ".png"
