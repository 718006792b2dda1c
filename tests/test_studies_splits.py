import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_lab.datasets import open_dataset
from covid_lab.studies.splits import dealt_once
from covid_project.data import DataError


@pytest.fixture
def dataset(tmp_path, rng):
    """Two classes, twenty patients of two images each to deal, and a test split."""
    names = [f"train/{c}/p{p}_{i}.png" for c in "AB" for p in range(10) for i in range(2)]
    for name in [*names, "test/A/t.png", "test/B/t.png"]:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path)
    return open_dataset(tmp_path / "data", classes=("A", "B"), as_found=True)


def patients(dataset):
    return dataset.table["path"].str.replace(r"_\d.png", "", regex=True)


def deal(dataset, file, seed=1, groups=patients):
    return dealt_once(dataset, file, groups, {"train": 0.7, "val": 0.3}, seed, kept=("test",))


def test_patients_stay_together_and_a_second_start_reads_the_deal(dataset, tmp_path):
    file = tmp_path / "splits.csv"
    first = deal(dataset, file)
    table = first.table
    assert (table.groupby("group")["split"].nunique() < 2).all()
    assert set(table.loc[table["split"] == "test", "path"]) == {"test/A/t.png", "test/B/t.png"}
    counts = pd.crosstab(table["split"], table["label"])
    assert counts.loc[["train", "val"]].to_numpy().tolist() == [[14, 14], [6, 6]]
    assert list(dict.fromkeys(table["split"])) == ["train", "val", "test"]
    written = file.read_bytes()
    again = deal(dataset, file, seed=99, groups=lambda _: pytest.fail("grouped again"))
    pd.testing.assert_frame_equal(again.table, table)
    assert again.fingerprint == first.fingerprint != dataset.fingerprint
    assert file.read_bytes() == written
    assert deal(dataset, tmp_path / "other.csv", seed=2).fingerprint != first.fingerprint


@pytest.mark.parametrize("change", ["val,", "nonsense"])
def test_a_changed_splits_file_is_refused(dataset, tmp_path, change):
    file = tmp_path / "splits.csv"
    deal(dataset, file)
    text = file.read_text().replace("val,", "train,", 1) if change == "val," else change
    file.write_text(text)
    with pytest.raises(DataError, match="was changed"):
        deal(dataset, file)
