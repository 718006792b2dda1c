"""Settings and label tables of any content: right, or refused by name, value and range."""

import dataclasses
import importlib
import math
import types
import typing
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from image_files import as_folder, encoded, tree

from covid_lab.__main__ import main
from covid_lab.datasets import open_dataset
from covid_lab.reading.manifests import read_table
from covid_lab.reading.patients import with_patients
from covid_lab.runs.settings import STUDIES, profile_values
from covid_lab.studies.nrrd_slices import read_labels
from covid_project.data import DataError
from covid_project.files import read_csv
from covid_project.settings import COURSE, Settings, SettingsError, load_settings, read_file

SEED = 24
# Name → declared type, loader of changed values, the other values.
LOADERS = {
    "course": (Settings, partial(load_settings, data="x.zip", results="r"), read_file(COURSE))
} | {
    study: (module.Settings, module.load_settings, profile_values(study, demo=True))
    for study in STUDIES
    for module in [importlib.import_module(f"covid_lab.studies.{study}")]
}
PATHS = {"data", "results", "boxes"}  # made absolute before they are checked


def kind_of(hint):
    """A declared type without ``| None``."""
    if isinstance(hint, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    return hint


def fields_of(kind: type, values: dict, prefix: str = ""):
    """Dotted key, declared type and limits of every field, as deep as the profile has values."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        key, hint = f"{prefix}{field.name}", kind_of(hints[field.name])
        yield key, hint, field.metadata
        value = values.get(field.name)
        if dataclasses.is_dataclass(hint) and isinstance(value, dict):
            yield from fields_of(hint, value, f"{key}.")
        elif typing.get_origin(hint) is dict and isinstance(value, dict):
            inner = typing.get_args(hint)[1]
            for name, item in value.items():
                if "/" in str(name) or "." in str(name):
                    continue
                yield f"{key}.{name}", inner, {}
                if dataclasses.is_dataclass(inner):
                    yield from fields_of(inner, item, f"{key}.{name}.")


FIELDS = [
    (profile, *field)
    for profile, (kind, _, values) in LOADERS.items()
    for field in fields_of(kind, values)
    if field[0] not in PATHS
]
EDGES = [0, -1, 1, 2**31, 2**63, -0.0, 1e-300, 1e300, math.inf, -math.inf, math.nan, 10**400]
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from([*EDGES, [], {}, [1, "a"], {"a": 1}, "\0", "../..", "1", "true"]),
    st.lists(st.floats(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers()),
)  # fmt: skip


def try_field(profile: str, key: str, hint, limits, value) -> str:
    """What came of a value: "taken", within its limits, or "refused" by name and reason."""
    try:
        found = LOADERS[profile][1](changes={key: value})
    except SettingsError as error:  # anything else fails
        message = str(error)
        named = any(part in message for part in (key, key.rpartition(".")[2], key.split(".")[0]))
        assert named or "no data" in message, message
        reasons = ("allowed", "must", "unknown", "missing", "no data", "known")
        assert any(reason in message for reason in reasons), message
        assert len(message) < 1000, message
        if "low" in limits and not isinstance(value, dict | list):
            assert str(limits["low"]) in message, message
            assert str(limits["high"]) in message, message
        return "refused by name, value and what is allowed"
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    if "low" in limits and found is not None:
        assert limits["low"] <= found <= limits["high"]
    if "choices" in limits:
        assert found in limits["choices"]()
    if hint is bool:
        assert type(found) is bool
    if isinstance(value, bool | int | float | str):
        text_of_number = hint is float and isinstance(value, str)  # YAML reads 1e-3 as text
        assert found == (float(value) if text_of_number else value)
    return "taken, and within its limits"


@pytest.mark.parametrize(
    ("number", "step"),
    [(100, 20), pytest.param(3000, 1, marks=pytest.mark.long)],
    ids=["a twentieth", "every field"],
)
def test_fields_of_every_profile(record, number, step):
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    fields = FIELDS[::step]

    @seed(SEED)
    @settings(max_examples=number, database=None, suppress_health_check=quiet)
    @given(field=st.sampled_from(fields), value=JUNK)
    def any_value(field, value):
        profile, key, hint, limits = field
        record("bad settings", profile, try_field(profile, key, hint, limits, value), SEED)

    any_value()
    for profile, key, hint, limits in fields:
        for value in EDGES:
            record("bad settings", profile, try_field(profile, key, hint, limits, value), SEED)
        if "low" in limits:
            for value in (limits["low"] - 1, limits["high"] + 1):
                outcome = try_field(profile, key, hint, limits, value)
                assert outcome.startswith("refused"), (key, value)
                record("bad settings", f"{profile}: just outside the range", outcome, SEED)


@pytest.mark.parametrize("profile", LOADERS)
def test_unknown_keys_are_refused_in_every_group(profile, record):
    groups = [f[1] for f in FIELDS if f[0] == profile and dataclasses.is_dataclass(f[2])]
    within = {f[1].rpartition(".")[0] for f in FIELDS if f[0] == profile}
    for group in ["", *(name for name in groups if name in within)]:
        key = f"{group}.surprise".lstrip(".")
        with pytest.raises(SettingsError, match="surprise"):
            LOADERS[profile][1](changes={key: 1})
        record("bad settings", f"{profile}: unknown key", "refused by name", SEED)


BAD_YAML = {
    "python object": "seed: !!python/object/apply:os.getpid []",
    "python name": "seed: !!python/name:os.system",
    "a key twice": "seed: 1\nseed: 2",
    "a key twice in a group": "augmentation: {zoom: 0.1, zoom: 0.2}",
    "no mapping": "- 1\n- 2",
    "empty": "",
    "not UTF-8": b"seed: \xff\xfe",
    "zero bytes": b"\0\0\0",
    "nested too deeply": "[" * 2000,
    "number of thousands of digits": "seed: " + "9" * 5000,
    "aliases that stand for gigabytes": "".join(
        f"{name}: &{name} [{','.join([f'*{before}'] * 9) if before else '1'}]\n"
        for before, name in zip(["", *"abcdefghijk"], "abcdefghijkl", strict=True)
    ),
    "alias of itself": "seed: &a [*a]",
    "list as a key": "? [1]\n: 2",
    "cut off": "augmentation: {flip: true,",
    "tab": "augmentation:\n\tflip: true",
}


@pytest.mark.parametrize("fault", BAD_YAML)
def test_bad_yaml_is_one_clear_line(tmp_path, fault, record, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "profile.yaml"
    content = BAD_YAML[fault]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["run", "--profile", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error) < 4000
    record("bad settings", f"YAML: {fault}", "refused with its reason", SEED)


def test_bad_yaml_on_the_command_line_is_refused(record, capsys):
    for value in ("[", "[" * 2000, "!!python/name:os.system", "9" * 5000):
        assert main(["run", "--set", f"seed={value}"]) == 2
        assert capsys.readouterr().err.startswith("error: ")
        record("bad settings", "YAML of --set", "refused with its reason", SEED)


# ---- label tables -------------------------------------------------------------------------------


def attempted(kind: type[Exception], work) -> tuple[object, str]:
    """What the work returns, or the message of the error it raises; any other kind fails."""
    try:
        return work(), ""
    except kind as error:
        return None, str(error)


@pytest.fixture(scope="module")
def kaggle(tmp_path_factory):
    """A set without a split, of which one was dealt."""
    folder, rng = tmp_path_factory.mktemp("set"), np.random.default_rng(SEED)
    names = tree("COVID", "NORMAL", each=12)
    as_folder({name: encoded(rng.integers(0, 256, (8, 8), np.uint8)) for name in names}, folder)
    splits = folder.parent / f"{folder.name}.csv"
    return folder, splits, open_dataset(folder, splits_file=splits)


def mutated(content: bytes, rng) -> bytes:
    """Some bytes or whole lines changed, doubled, lost or cut."""
    lines, way = content.split(b"\n"), rng.integers(0, 7)
    at = int(rng.integers(0, len(content)))
    line = int(rng.integers(0, len(lines)))
    if way == 0:
        return content[:at] + bytes([rng.integers(0, 256)]) + content[at + 1 :]
    if way == 1:
        return content[:at]
    if way == 2:
        return b"\n".join(lines[:line] + lines[line + 1 :])
    if way == 3:
        return b"\n".join([*lines[:line], lines[line], *lines[line:]])
    if way == 4:
        words = [b"train", b"val", b"test", b"", b"TRAIN", b"nan"]
        return content.replace(words[rng.integers(0, 3)], words[rng.integers(0, 6)], 1)
    if way == 5:
        return content.replace(b",", [b";", b",,", b"\t", b'"'][rng.integers(0, 4)])
    return rng.bytes(int(rng.integers(0, 300)))


@pytest.mark.parametrize("number", [40, pytest.param(1000, marks=pytest.mark.long)])
def test_a_changed_split_is_refused_or_the_same(kaggle, tmp_path, record, number):
    folder, splits, dataset = kaggle
    whole, rng = splits.read_bytes(), np.random.default_rng(SEED)
    path = tmp_path / "splits.csv"
    for _ in range(number):
        path.write_bytes(mutated(whole, rng))
        found, said = attempted(DataError, lambda: open_dataset(folder, splits_file=path))
        if found is None:
            assert "splits.csv" in said
            outcome = "refused by name"
        else:
            pd.testing.assert_frame_equal(found.table, dataset.table)
            outcome = "read, the same split"
        record("bad table", "splits.csv", outcome, SEED)


@pytest.mark.parametrize("number", [20, pytest.param(500, marks=pytest.mark.long)])
def test_changed_labels_of_nodules_are_refused_or_labels(tmp_path, record, number):
    """As text and as a spreadsheet."""
    rng = np.random.default_rng(SEED)
    rows = [(f"slice{n}", int(rng.integers(1, 6)), f"p{n // 3}") for n in range(20)]
    table = pd.DataFrame(rows, columns=["name", "malignancy", "patient"])
    for suffix, write in ((".csv", table.to_csv), (".xlsx", table.to_excel)):
        path = tmp_path / f"labels{suffix}"
        write(path, index=False)
        whole = path.read_bytes()
        for _ in range(number):
            path.write_bytes(mutated(whole, rng))
            found, said = attempted(DataError, lambda path=path: read_labels(path))
            if found is None:
                assert path.name in said
                outcome = "refused by name"
            else:
                assert found["name"].is_unique
                assert (found[["name", "patient"]] != "").all(axis=None)
                assert found["malignancy"].isin(range(1, 6)).all()
                outcome = "read as such a table"
            record("bad table", path.name, outcome, SEED)


def test_a_table_of_patients_is_taken_or_refused(kaggle, record):
    folder, _, dataset = kaggle
    rows = [f"{path},{number % 5}" for number, path in enumerate(dataset.table["path"])]
    whole, rng = "\n".join(["image,patient", *rows]).encode(), np.random.default_rng(SEED)
    opened = open_dataset(folder, as_found=True)
    for _ in range(12):
        content = mutated(whole, rng)
        found, said = attempted(
            DataError,
            lambda content=content: with_patients(
                opened, metadata=read_table(content, "patients.csv")
            ),
        )
        assert found is not None or len(said) > 20
        outcome = "refused with its reason" if found is None else "taken"
        record("bad table", "table of patients", outcome, SEED)


def test_a_damaged_table_of_results_is_named(tmp_path, record):
    path = tmp_path / "metrics.csv"
    for content in (b"", b"\xff\xfe\0", b'a,b\n"1,2', b"a\n1,2,3\n1,2,3,4,5", b"\0" * 50):
        path.write_bytes(content)
        table, said = attempted(ValueError, lambda: read_csv(path))
        assert table is not None or "metrics.csv" in said
        outcome = "refused by name" if table is None else "read as a table"
        record("bad table", "table of results", outcome, SEED)
