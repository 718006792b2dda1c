"""Settings of the course run: what is read, what is refused and with which words."""

import dataclasses

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_project.settings import (
    COURSE,
    PROJECT,
    Axis,
    SettingsError,
    as_yaml,
    load_settings,
    read_file,
)


def changed(**changes):
    return load_settings(data="some.zip", changes=changes)


def test_the_course_reads_and_survives_a_round_trip(tmp_path):
    settings = load_settings(data="some.zip")
    path = tmp_path / "again.yaml"
    path.write_text(as_yaml(settings), encoding="utf-8")
    assert load_settings(path) == settings


def test_a_file_states_only_what_differs(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 99\nbaseline: {patience: 5}\n")
    settings, course = load_settings(path, data="some.zip"), load_settings(data="some.zip")
    assert settings.seed == 99
    baseline = dataclasses.replace(course.baseline, patience=5)
    assert settings == dataclasses.replace(course, seed=99, baseline=baseline)


def test_an_axis_is_replaced_as_a_whole():
    axis = {"values": [0.1, 0.3], "plus": 0.2, "low": 0.1, "high": 0.5}
    found = changed(**{"baseline.search.dropout": axis}).baseline.search["dropout"]
    assert found == Axis(values=(0.1, 0.3), plus=0.2, low=0.1, high=0.5)


def test_relative_paths_count_from_the_working_directory_or_the_notebooks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.zip").touch()
    settings = load_settings(data="here.zip", results="elsewhere")
    assert settings.data == str(tmp_path / "here.zip")
    assert settings.results == str(PROJECT / "elsewhere")


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
        ("transfer.backbone", "VGG99", "allowed: ResNet50V2, MobileNetV2, MobileNet"),
        ("normalization", "none", "allowed: fixed, dataset, pixel, sample"),
        ("baseline.search.dropout.values", [0.4, 0.2], "values must rise"),
        ("baseline.search.dropout.values", [0.2, 0.9], "leave the limits"),
        ("baseline.search.dropout.times", 2, "either times"),
        ("baseline.search.dropout", {"values": [0.1]}, "missing setting baseline.search.dropout"),
        ("baseline.start", {"dropout": 0.1}, "must name the same hyperparameters"),
        ("baseline.start.batch_size", 32.5, "batch_size must be whole numbers"),
        ("baseline.start.dropout", 0.95, "start.dropout is 0.95; allowed: 0.0 to 0.8"),
        ("transfer", [1], "transfer must hold keys and values"),
    ],
)
def test_bad_values_are_refused_by_name(key, value, message):
    with pytest.raises(SettingsError) as error:
        changed(**{key: value})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("seed: 1\nseed: 2\n", "not valid YAML: found seed twice"),
        ("seed: !!python/object/apply:os.getpid []", "not valid YAML"),
        ("just words", "must hold keys and values"),
    ],
    ids=["broken", "twice", "code", "words"],
)
def test_a_bad_file_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"bad\.yaml") as error:
        load_settings(path, data="some.zip")
    assert message in str(error.value)


VALUES = read_file(COURSE)
KEYS = list(VALUES) + [
    f"{group}.{key}" for group in ("augmentation", "baseline", "transfer") for key in VALUES[group]
]
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers()),
)  # fmt: skip


@hypothesis.settings(max_examples=40)
@given(key=st.sampled_from(KEYS), value=JUNK)
def test_any_value_is_taken_or_refused_with_the_key_in_the_message(key, value):
    try:
        changed(**{key: value})
        return
    except SettingsError as error:  # anything else fails the test
        message = str(error)
    assert key.split(".")[-1] in message


@pytest.mark.parametrize("step", [{}, {"times": 2, "plus": 1}, {"times": 1}, {"plus": 0}])
def test_an_axis_has_exactly_one_kind_of_step(step):
    with pytest.raises(SettingsError):
        Axis(values=(1, 2), low=0, high=9, **step)
