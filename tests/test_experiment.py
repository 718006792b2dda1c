"""The run of a study: its data, its identity, the images on disk and the test split."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from covid_lab import phantoms
from covid_lab.datasets import open_dataset
from covid_lab.runs import settings as lab
from covid_lab.runs.experiment import begin
from covid_lab.runs.settings import Phantoms, RunSettings
from covid_project.data import DataError
from covid_project.files import read_csv


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Of a study with one setting of its own."""

    normalization: str = "sample"

    @property
    def common(self):
        return (self.normalization,)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "CACHE", tmp_path / ".cache")
    return Settings(
        data=None,
        results=str(tmp_path / "results"),
        seed=1,
        phantoms=Phantoms(size=32, train=8, val=4, test=4),
        expected_seconds={},
    )


def opened(source, settings):
    return open_dataset(source)


@pytest.fixture
def run(settings):
    return begin(settings, opened)


def test_arrays_of_splits_follow_the_table(run):
    images, labels = run.arrays("train", "val", image_size=32)
    assert images.shape == (24, 32, 32, 1)
    assert images.dtype == np.uint8
    rows = run.dataset.rows("train", "val")
    np.testing.assert_array_equal(labels, run.dataset.table["label"][rows])
    np.testing.assert_array_equal(images, run.images(32)[rows])
    assert run.paths("val").tolist() == run.dataset.table["path"][rows[16:]].tolist()


def test_test_images_come_only_after_the_entry_in_the_ledger(run):
    with pytest.raises(DataError, match=r"test_split"):
        run.arrays("test", image_size=32)
    images, _ = run.test_split("exploration", None, 32)
    np.testing.assert_array_equal(images, run.images(32)[run.dataset.rows("test")])
    assert read_csv(run.folder / "test_ledger.csv")["stage"].tolist() == ["exploration"]


def test_a_second_start_uses_the_phantoms_and_images_of_the_first(run, settings, tmp_path):
    def kept():
        files = [*(tmp_path / ".cache").rglob("*"), *run.cache.rglob("*")]
        return {path: path.stat().st_mtime_ns for path in files}

    run.images(32)
    before = kept()
    again = begin(settings, opened)
    np.testing.assert_array_equal(again.images(32), run.images(32))
    assert kept() == before
    assert again.dataset.fingerprint == run.dataset.fingerprint


def test_identity_changes_with_the_settings_it_depends_on(run, settings):
    other = begin(dataclasses.replace(settings, normalization="fixed"), opened)
    assert other.identity()["settings"] != run.identity()["settings"]
    assert run.identity(1)["settings"] != run.identity(2)["settings"]
    assert run.identity() == run.identity()


def test_the_rows_of_test_images_come_after_an_entry_in_the_ledger(run):
    for _ in range(2):  # a repetition adds nothing
        rows = run.test_rows("baseline", "m1")
    np.testing.assert_array_equal(rows, run.dataset.rows("test"))
    ledger = read_csv(run.folder / "test_ledger.csv")
    assert ledger[["stage", "look", "model"]].to_numpy().tolist() == [["baseline", 1, "m1"]]


def test_phantoms_given_as_data_need_no_settings_that_draw(settings, tmp_path):
    drawn = phantoms.write_dataset(tmp_path / "drawn", {"train": 4, "val": 2, "test": 2}, 32, 3)
    given = dataclasses.replace(
        settings, data=str(drawn), phantoms=None, results=str(tmp_path / "given")
    )
    assert begin(given, opened).dataset.is_phantom
    assert "data: drawn" in (tmp_path / "given" / "settings.yaml").read_text()


def test_a_study_draws_and_opens_its_data_in_its_own_way(settings, tmp_path):
    asked = []

    def draw(given):
        asked.append(given)
        counts = {"train": 4, "val": 2, "test": 2}
        return phantoms.write_dataset(tmp_path / "own", counts, 32, 3)

    def open_data(source, given):
        asked.append(source)
        return open_dataset(source)

    run = begin(settings, open_data, draw)
    assert asked == [settings, Path(tmp_path, "own")]
    assert run.settings.data == str(tmp_path / "own")
