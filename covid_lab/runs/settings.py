"""The settings of a run: frozen dataclasses read from a profile, ``profiles/<name>.yaml``.

A profile states every value that a run depends on. Unknown keys, wrong types and values outside
their range are refused with the name of the key, so that a typing error cannot pass as a default.
"""

import dataclasses
import math
import os
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from covid_project.workers import BACKENDS

HOUSE = Path(__file__).resolve().parent.parent
PROFILES = HOUSE / "profiles"
NOTEBOOKS = ("data_exploration", "baseline", "transfer_learning", "gradcam")  # in their order
STUDIES = (
    "ct_lesions",
    "lung_nodules",
    "pneumonia",
    "robustness",
)  # notebooks in ``studies/``, modules in ``covid_project.studies``
SETTINGS_VARIABLE = "COVID_PROJECT_SETTINGS"  # how `python -m covid_project run` reaches notebooks


# How grey values are normalised (see ``normalization``).
STRATEGIES = {
    "fixed": "fixed values: 0–255 becomes −1 to 1",
    "dataset": "mean and standard deviation of the whole training set",
    "pixel": "mean and standard deviation of each pixel over the training set",
    "sample": "each image's own mean and standard deviation",
}
# What can be tuned, and the values that make sense; counts are whole numbers.
HYPERPARAMETERS = {
    "learning_rate": (1e-8, 1.0),
    "dropout": (0.0, 0.95),
    "filters": (1, 512),
    "batch_size": (1, 4096),
}


class SettingsError(ValueError):
    """A profile holds something that is not allowed; the message names the key."""


def within(low: float, high: float, **arguments) -> typing.Any:
    """Field of a number that must lie in [low, high]."""
    return field(metadata={"low": low, "high": high}, **arguments)


def one_of(*choices: str, **arguments) -> typing.Any:
    """Field of a word that must be one of the choices."""
    return field(metadata={"choices": choices}, **arguments)


@dataclass(frozen=True, kw_only=True)
class Phantoms:
    """The drawn data set that stands in where no real one is given (see ``phantoms``)."""

    size: int = within(32, 1024)  # pixels
    train: int = within(2, 100_000)  # images per class
    val: int = within(2, 100_000)
    test: int = within(2, 100_000)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Largest amount of each random transformation; 0 (or false) switches it off."""

    flip: bool  # mirror left and right, with probability one half
    rotation: float = within(0, 45)  # degrees, either way
    zoom: float = within(0, 0.5)  # 0.1: magnified by up to 1.1 or shrunk by as much
    shift: float = within(0, 0.5)  # share of the image's side, in x and in y
    brightness: float = within(0, 0.5)  # share of the grey range, added
    contrast: float = within(0, 0.9)  # 0.2: contrast times 0.8 to 1.2


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The range of one hyperparameter, and how it goes on beyond its edges.

    Exactly one of ``times`` (geometric) and ``plus`` (stepped) is given. While the best value lies
    on an edge, the next one outwards is tried, never beyond ``low`` and ``high``.
    """

    values: tuple[float, ...]
    low: float
    high: float
    times: float | None = None
    plus: float | None = None

    def __post_init__(self):
        if (self.times is None) == (self.plus is None):
            raise SettingsError(
                "give either times (geometric) or plus (stepped), found times "
                f"{self.times} and plus {self.plus}; allowed: one of them"
            )
        for name, least in (("times", 1), ("plus", 0)):
            step = getattr(self, name)
            if step is not None and not least < step < math.inf:
                raise SettingsError(f"{name} is {step}; allowed: above {least}, and finite")
        if not self.values or list(self.values) != sorted(set(self.values)):
            raise SettingsError(f"values must rise, found {_short(self.values)}")
        if self.values[0] < self.low or self.values[-1] > self.high:
            raise SettingsError(
                f"values {_short(self.values)} leave the limits; allowed: {self.low} to {self.high}"
            )


def _check_search(start: Mapping, search: Mapping[str, Axis], names: set[str]) -> None:
    """Refuse a search that lacks one of its hyperparameters, or gives one a senseless value."""
    for title, group in {"start": start, "search": search}.items():
        if set(group) != names:
            raise SettingsError(f"{title} must name {sorted(names)}, found {sorted(group)}")
    for name in names:
        low, high = HYPERPARAMETERS[name]
        values = [start[name], search[name].low, search[name].high, *search[name].values]
        for value in values:
            if not low <= value <= high or (type(low) is int and type(value) is not int):
                kind = "whole numbers " if type(low) is int else ""
                raise SettingsError(f"{name} is {value}; allowed: {kind}{low} to {high}")


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Task 2: the network trained from scratch."""

    initial_epochs: int = within(1, 1000)
    max_epochs: int = within(1, 1000)  # length of the learning-rate schedule
    patience: int = within(1, 1000)
    start: dict[str, float]
    search: dict[str, Axis]

    def __post_init__(self):
        _check_search(self.start, self.search, set(HYPERPARAMETERS))


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Task 3, step 6: part of the backbone unfrozen."""

    frozen_up_to: str | None  # a layer at the end of a block; none: the backbone's own proposal
    batch_size: int = within(1, 1024)
    learning_rate: Axis  # tried with the validation split held out
    sudden_drop: float = within(0.01, 0.5)  # of training accuracy: reload, smaller learning rate
    shrink: float = within(0.01, 0.9)  # of the learning rate after a sudden drop
    attempts: int = within(1, 10)

    def __post_init__(self):
        low, high = HYPERPARAMETERS["learning_rate"]
        if not low <= self.learning_rate.low <= self.learning_rate.high <= high:
            raise SettingsError(
                f"learning_rate reaches from {self.learning_rate.low} to "
                f"{self.learning_rate.high}; allowed: within {low} to {high}"
            )


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Task 3: a new head on a pretrained backbone."""

    backbone: str = one_of("ResNet50V2", "MobileNetV2", "MobileNet")
    width: float = within(0.1, 2)  # alpha of MobileNet and MobileNetV2; 1 for ResNet50V2
    weights: str  # "imagenet", "random", or the path of a weights file
    without_weights: str = one_of("stop", "random")  # when they cannot be had
    image_size: int = within(32, 512)  # pixels
    augmented_copies: int = within(0, 100)  # fixed augmented copies of each training image
    initial_epochs: int = within(1, 1000)
    max_epochs: int = within(1, 1000)
    patience: int = within(1, 1000)
    start: dict[str, float]
    search: dict[str, Axis]
    fine_tuning: FineTuning

    def __post_init__(self):
        _check_search(self.start, self.search, set(HYPERPARAMETERS) - {"filters"})


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What every run has: the four tasks' (`Settings`) and those of the studies."""

    profile: str
    data: str | None  # a zip, a folder or a Kaggle tree; none: phantoms are drawn
    results: str
    seed: int = within(0, 2**31 - 1)
    phantoms: Phantoms | None
    expected_seconds: dict[str, float]  # per notebook, only for the time that is left
    workers: int = within(1, 1024, default=1)  # trials of a search at once (see ``workers``)
    backend: str = one_of(*BACKENDS, default="loky")  # who runs them, with more than one worker
    cache_gigabytes: float = within(0, 1e6, default=50)  # of older runs' arrays beside this one's

    def __post_init__(self):
        if self.data is None and self.phantoms is None:
            raise SettingsError(
                f"profile {self.profile} needs data: give the path of a zip archive of images or "
                "of its unpacked folder (--data PATH)"
            )
        for name, seconds in self.expected_seconds.items():
            if not 0 <= seconds < math.inf:
                raise SettingsError(
                    f"expected_seconds.{name} is {seconds}; allowed: from 0, and finite"
                )

    @property
    def common(self) -> tuple:
        """Groups of settings that every result of the run depends on."""
        return ()

    @property
    def hardware(self) -> dict[str, str]:
        """Devices and precision (see ``devices.use``), where they are not the usual ones."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Everything that a run of the four tasks depends on."""

    seeds: int = within(1, 100)  # trainings of a chosen model, to see how far the seed matters
    allow_shared_files: bool  # go on although a file lies in two splits
    image_size: int = within(32, 512)  # pixels, of the baseline's input
    normalization: str = one_of(*STRATEGIES)
    augmentation: Augmentation
    baseline: Baseline
    transfer: Transfer
    tested_explanations: int = within(4, 10_000)  # test images on which explanations are tested
    devices: str = one_of("one", "all", default="one")  # that train (see ``devices``)
    precision: str = one_of(
        "float32", "mixed_bfloat16", "mixed_float16", default="float32"
    )  # in which layers compute while a model is trained

    def __post_init__(self):
        super().__post_init__()
        if self.workers > 1 and self.devices != "one":
            raise SettingsError(
                f"workers is {self.workers} and devices is all; allowed: several workers with a "
                "device each (devices=one), or one worker with all devices (workers=1)"
            )

    @property
    def common(self) -> tuple:
        """Normalisation and augmentation."""
        return (self.normalization, self.augmentation, *self.hardware.items())

    @property
    def hardware(self) -> dict[str, str]:
        """Devices and precision, where they are not the usual ones."""
        if (self.devices, self.precision) == ("one", "float32"):
            return {}
        return {"devices": self.devices, "precision": self.precision}


def load_settings(
    profile: str | Path | None = None,
    *,
    data: str | Path | None = None,
    results: str | Path | None = None,
    changes: Mapping[str, typing.Any] | None = None,
) -> Settings:
    """Settings of a profile, with the given values changed.

    Parameters
    ----------
    profile
        Name of a file in ``profiles/`` or path of a YAML file. None: the settings that
        ``python -m covid_project run`` handed to this process, or else the profile ``course``
        where data are given and ``demo`` where not.
    data, results
        Replace the profile's; relative paths count from the working directory.
    changes
        Other values by dotted key, such as ``{"transfer.backbone": "MobileNetV2"}``.

    Raises
    ------
    SettingsError
        No such profile, unknown or missing key, wrong type, value out of range.
    """
    return load_profile(
        Settings, ("course", "demo"), profile, data=data, results=results, changes=changes
    )


def load_profile[Kind: RunSettings](
    kind: type[Kind],
    defaults: tuple[str, str],
    profile: str | Path | None = None,
    *,
    data: str | Path | None = None,
    results: str | Path | None = None,
    changes: Mapping[str, typing.Any] | None = None,
) -> Kind:
    """Settings of any kind of run; ``defaults`` are its profiles with data and without.

    All else as for `load_settings`.
    """
    profile = profile or os.environ.get(SETTINGS_VARIABLE) or defaults[0 if data else 1]
    path = PROFILES / f"{profile}.yaml"
    if not path.is_file():
        path = Path(profile)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PROFILES.glob("*.yaml")))
        raise SettingsError(
            f"no profile {profile}: give one of {known}, or a path of a YAML file; with data named "
            f"(--data PATH, or load_settings(data=PATH)) it is the profile {defaults[0]}"
        )
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (SettingsError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path} must hold keys and values, found {type(values).__name__}")
    values.setdefault("profile", path.stem)
    for key, value in {"data": data, "results": results}.items():
        if value is not None:
            values[key] = str(Path(value).absolute())
    for key, value in (changes or {}).items():
        _change(values, key, value)
    return _read(kind, values, "")


class _Loader(yaml.SafeLoader):
    """Plain values alone; a key that stands twice is refused, as one of the two would be lost."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"found {', '.join(twice)} twice in one group", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> typing.Any:
    """Plain values of a YAML text; ``SettingsError`` where it is not valid."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise SettingsError("not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise SettingsError(f"not valid YAML: {error}") from None


def as_yaml(settings: RunSettings) -> str:
    """Return the settings as the text of a profile that reads back to the same settings."""
    return yaml.safe_dump(_plain(dataclasses.asdict(settings)), sort_keys=False)


def _plain(value):
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _change(values: dict, dotted: str, value) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        values = values.get(parent)
        if not isinstance(values, dict):
            raise SettingsError(f"unknown setting {dotted}: there is no group {parent}")
    values[last] = value  # an unknown last key is refused when the settings are read


def _read(kind: type, values, where: str):
    """Build the dataclass ``kind`` from a mapping, refusing whatever does not fit."""
    if not isinstance(values, dict):
        raise SettingsError(f"{where} must hold keys and values, found {_short(values)}")
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    unknown = [f"{prefix}{key}" for key in values if key not in fields]
    if unknown:
        raise SettingsError(f"unknown setting {', '.join(unknown)}; known: {', '.join(fields)}")
    missing = [
        f"{prefix}{name}"
        for name, item in fields.items()
        if name not in values and item.default is dataclasses.MISSING
    ]
    if missing:
        raise SettingsError(f"missing setting {', '.join(missing)}")
    arguments = {}
    for name, value in values.items():
        limits = fields[name].metadata
        arguments[name] = _value(hints[name], value, f"{prefix}{name}", limits)
        _check(arguments[name], limits, f"{prefix}{name}")
    try:
        return kind(**arguments)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}" if where else str(error)) from None


def _value(hint, value, where: str, limits: Mapping = types.MappingProxyType({})):
    """One value converted to its declared type, without guessing."""
    if isinstance(hint, types.UnionType):  # written as `kind | None`
        if value is None:
            return None
        hint = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    if dataclasses.is_dataclass(hint):
        return _read(hint, value, where)
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise SettingsError(f"{where} must hold keys and values, found {_short(value)}")
        kind = typing.get_args(hint)[1]
        return {str(key): _value(kind, item, f"{where}.{key}") for key, item in value.items()}
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise SettingsError(f"{where} must be a list, found {_short(value)}")
        return tuple(_value(float, item, where) for item in value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # An integer stays one where a float is allowed: batch sizes and filters are counted.
    fits = number and value == value if hint is float else type(value) is hint
    if not fits:
        raise SettingsError(
            f"{where} must be a {hint.__name__}, found {_short(value)}{_allowed(limits)}"
        )
    return value


def _allowed(limits: Mapping) -> str:
    if "choices" in limits:
        return f"; allowed: {', '.join(limits['choices'])}"
    return f"; allowed: {limits['low']} to {limits['high']}" if "low" in limits else ""


def _short(value) -> str:
    """A value for a message: cut, as a few lines of YAML can stand for gigabytes."""
    return reprlib.repr(value)


def _check(value, limits: Mapping, where: str) -> None:
    wrong = "choices" in limits and value not in limits["choices"]
    wrong |= "low" in limits and not limits["low"] <= value <= limits["high"]
    if wrong:
        raise SettingsError(f"{where} is {_short(value)}{_allowed(limits)}")
