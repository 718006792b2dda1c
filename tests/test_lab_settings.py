"""Profiles of the course run and of the studies."""

import importlib
from pathlib import Path

import pytest

from covid_lab.runs import settings as lab
from covid_lab.runs.settings import PROFILES, STUDIES, Phantoms, course_settings
from covid_project.settings import PROJECT, SettingsError, as_yaml, load_settings


def of_study(name):
    return importlib.import_module(f"covid_lab.studies.{name}").load_settings


@pytest.mark.parametrize("profile", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_every_committed_profile_reads_and_survives_a_round_trip(profile, tmp_path):
    study = next((name for name in STUDIES if profile.startswith(name)), "")
    path = tmp_path / "again.yaml"
    if study:
        load = of_study(study)
        settings = load(profile, data="some.zip")
    else:
        load = load_settings
        settings, _ = course_settings(profile, data="some.zip")
    path.write_text(as_yaml(settings), encoding="utf-8")
    assert load(path) == settings


@pytest.mark.parametrize("study", STUDIES)
def test_without_data_a_studys_demo_is_run_on_drawn_images(study):
    load = of_study(study)
    demo, full = load(), load(data="some.zip")
    assert demo.data is None
    assert demo.phantoms is not None
    assert Path(demo.results) == PROJECT / "results" / "demo" / study
    assert full.phantoms is None


def test_with_data_the_course_runs_and_without_the_demo_on_drawn_images(tmp_path, monkeypatch):
    assert course_settings(data="some.zip")[0] == load_settings(data=Path("some.zip").absolute())
    monkeypatch.setattr(lab, "CACHE", tmp_path)
    small = {"phantoms": {"size": 32, "train": 2, "val": 2, "test": 2}}
    settings, options = course_settings(changes=small)
    assert options.phantoms == Phantoms(size=32, train=2, val=2, test=2)
    assert Path(settings.data, "phantoms.json").is_file()
    assert Path(settings.data).parent == tmp_path
    assert settings.results == str(PROJECT / "results" / "demo")
    assert course_settings(changes=small)[0] == settings


def test_a_profile_without_phantoms_needs_data():
    with pytest.raises(SettingsError, match=r"no data for the profile smoke.*--data"):
        course_settings("smoke")
    with pytest.raises(SettingsError, match="--data"):
        of_study("robustness")("robustness")


def test_what_is_changed_for_one_run_takes_the_place_of_the_profile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"transfer.weights": "random", "phantoms.size": 40, "seed": 5}
    settings, options = course_settings("demo", data="d.zip", results="r", changes=changes)
    assert settings.transfer.weights == "random"
    assert options.phantoms.size == 40
    assert (settings.data, settings.results) == (str(tmp_path / "d.zip"), str(tmp_path / "r"))
    study = of_study("pneumonia")(data="~/d.zip", results="r", changes={"cnn.epochs": 3})
    assert study.cnn.epochs == 3
    assert study.data == str(Path("~/d.zip").expanduser())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeed": 1}, "unknown setting seeed"),
        ({"phantoms.size": 8}, "phantoms.size is 8; allowed: 32 to 1024"),
        ({"expected_seconds.baseline": -1}, "expected_seconds.baseline is -1"),
        ({"without_weights": "maybe"}, "allowed: stop, random, drawn"),
        ({"nowhere.at_all": 1}, "unknown setting nowhere"),
    ],
)
def test_bad_values_are_refused_by_name(changes, message):
    with pytest.raises(SettingsError) as error:
        course_settings("demo", data="d.zip", changes=changes)
    assert message in str(error.value)


def test_an_unknown_profile_lists_the_known_ones():
    with pytest.raises(SettingsError, match=r"no profile no_such: give one of .*demo.*smoke"):
        course_settings("no_such")
