import dataclasses
import importlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from covid_project.settings import (
    PROFILES,
    SETTINGS_VARIABLE,
    STUDIES,
    Axis,
    SettingsError,
    as_yaml,
    load_settings,
)


@pytest.mark.parametrize("profile", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_every_committed_profile_reads_and_survives_a_round_trip(profile, tmp_path):
    study = profile.removesuffix("_demo")
    load = load_settings
    if study in STUDIES:
        load = importlib.import_module(f"covid_project.studies.{study}").load_settings
    settings = load(profile, data="some.zip")
    path = tmp_path / "again.yaml"
    path.write_text(as_yaml(settings))
    assert load(path) == settings


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_settings("demo").seed = 1


def test_profile_follows_argument_then_environment_then_data(monkeypatch, tmp_path):
    assert load_settings().profile == "demo"
    assert load_settings(data="some.zip").profile == "course"
    path = tmp_path / "mine.yaml"
    path.write_text(as_yaml(load_settings("demo", changes={"seed": 99})))
    monkeypatch.setenv(SETTINGS_VARIABLE, str(path))
    assert load_settings().seed == 99
    assert load_settings("demo").seed != 99


def test_course_profile_without_data_says_what_to_give():
    with pytest.raises(SettingsError, match="--data"):
        load_settings("course")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seeed", 1, "unknown setting seeed"),
        ("augmentation.blur", 1, "augmentation.blur"),
        ("nowhere.at_all", 1, "no group nowhere"),
        ("seed", "one", "seed must be a int"),
        ("seed", True, "seed must be a int"),
        ("image_size", 8, "image_size is 8; allowed: 32 to 512"),
        ("augmentation.rotation", 90, "augmentation.rotation is 90; allowed: 0 to 45"),
        ("augmentation.zoom", float("nan"), "augmentation.zoom must be a float"),
        ("transfer.backbone", "VGG19", "allowed: ResNet50V2, MobileNetV2, MobileNet"),
        ("normalization", "none", "allowed: fixed, dataset, pixel, sample"),
        ("baseline.search.dropout.values", [0.4, 0.2], "values must rise"),
        ("baseline.search.dropout.values", [0.2, 0.9], "leave the limits"),
        ("baseline.search.dropout.times", 2, "either times"),
        ("baseline.search.dropout", {"values": [0.1]}, "missing setting baseline.search.dropout"),
        ("baseline.start", {"dropout": 0.1}, "must name"),
        ("baseline.start.batch_size", 0.5, "batch_size is 0.5; allowed: whole numbers"),
        ("transfer", [1], "transfer must hold keys and values"),
    ],
)
def test_bad_values_are_refused_by_name(key, value, message):
    with pytest.raises(SettingsError) as error:
        load_settings("demo", changes={key: value})
    assert message in str(error.value)


def test_unknown_profile_lists_the_known_ones():
    with pytest.raises(SettingsError, match="give one of course"):
        load_settings("no_such_profile")


def test_broken_yaml_names_the_file(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1")
    with pytest.raises(SettingsError, match=r"broken\.yaml"):
        load_settings(path)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("seed: 1\nseed: 2\n")
    with pytest.raises(SettingsError, match=r"twice\.yaml: not valid YAML: found seed twice"):
        load_settings(path)


def test_yaml_cannot_run_code(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text("seed: !!python/object/apply:os.getpid []")
    with pytest.raises(SettingsError, match="not valid YAML"):
        load_settings(path)


DEMO = yaml.safe_load((PROFILES / "demo.yaml").read_text())
KEYS = [key for key in DEMO if key != "expected_seconds"] + [
    f"{group}.{key}" for group in ("augmentation", "baseline", "transfer") for key in DEMO[group]
]
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers()),
)  # fmt: skip


@given(key=st.sampled_from(KEYS), value=JUNK)
def test_any_value_is_taken_or_refused_with_the_key_in_the_message(key, value):
    try:
        load_settings("demo", changes={key: value})
        return
    except SettingsError as error:  # anything else fails the test
        message = str(error)
    assert key.split(".")[-1] in message or "needs data" in message


@pytest.mark.parametrize("step", [{}, {"times": 2, "plus": 1}, {"times": 1}, {"plus": 0}])
def test_an_axis_has_exactly_one_kind_of_step(step):
    with pytest.raises(SettingsError):
        Axis(values=(1, 2), low=0, high=9, **step)
