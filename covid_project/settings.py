"""The settings of a run: frozen dataclasses, read from ``course.yaml`` and checked.

An unknown key, a wrong type or a value outside its range is refused with the name of the key, so
that a typing error cannot pass unnoticed.
"""

import contextlib
import dataclasses
import json
import math
import reprlib
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import yaml

PROJECT = Path(__file__).resolve().parent.parent  # the folder of the notebooks
COURSE = Path(__file__).with_name("course.yaml")
ARCHIVE = "covid_xray.zip"
COLAB = Path("/content")  # where Google Colab keeps uploaded files, and below it the user's Drive
REQUIRED = {"learning_rate", "dropout", "batch_size"}  # hyperparameters of every search


class SettingsError(ValueError):
    """A setting is not allowed; the message names it and what is allowed."""


def within(low: float, high: float, **arguments) -> typing.Any:
    """Declare a field whose number must be in [low, high].

    Parameters
    ----------
    low, high : float
    **arguments
        For `dataclasses.field`.

    Returns
    -------
    dataclasses.Field
    """
    return field(metadata={"low": low, "high": high}, **arguments)


def one_of_registry(module: str, name: str, **arguments) -> typing.Any:
    """Declare a field whose word must be a key of a dictionary in a module of this package.

    Parameters
    ----------
    module, name : str
        Module, imported when a value is checked (it may need TensorFlow), and its dictionary.
    **arguments
        For `dataclasses.field`.

    Returns
    -------
    dataclasses.Field
    """

    def choices() -> Mapping:
        return getattr(import_module(f"covid_project.{module}"), name)

    return field(metadata={"choices": choices}, **arguments)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Range of each random transformation; 0 (or false) switches it off."""

    flip: bool  # left and right, with probability 0.5
    rotation: float = within(0, 45)  # degrees, either way
    zoom: float = within(0, 0.5)  # 0.1: magnified by up to 1.1 or reduced by as much
    shift: float = within(0, 0.5)  # fraction of the image's side, in x and in y
    brightness: float = within(0, 0.5)  # fraction of the grey range, added
    contrast: float = within(0, 0.9)  # 0.2: contrast times 0.8 to 1.2


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The range of one hyperparameter, and its next values beyond the edges.

    Exactly one of ``times`` (geometric steps) and ``plus`` (equal steps) is given. While the best
    value is on an edge, the next value outwards is tried, never beyond ``low`` and ``high``.
    """

    values: tuple[float, ...]
    low: float
    high: float
    times: float | None = None
    plus: float | None = None

    def __post_init__(self):
        if (self.times is None) == (self.plus is None):
            raise SettingsError(f"either times or plus must be set: {self.times}, {self.plus}")
        for name, least in (("times", 1), ("plus", 0)):
            step = getattr(self, name)
            if step is not None and not least < step < math.inf:
                raise SettingsError(f"{name} is {step}; allowed: above {least}, and finite")
        if not self.values or list(self.values) != sorted(set(self.values)):
            raise SettingsError(f"values must rise, found {reprlib.repr(self.values)}")
        if self.values[0] < self.low or self.values[-1] > self.high:
            found, limits = reprlib.repr(self.values), f"{self.low} to {self.high}"
            raise SettingsError(f"values {found} leave the limits; allowed: {limits}")


def _check_search(start: Mapping, search: Mapping[str, Axis]) -> None:
    """Refuse a search without a required hyperparameter, or a start outside the limits."""
    if set(start) != set(search):
        raise SettingsError(
            f"start and search must name the same hyperparameters, found {sorted(start)} and "
            f"{sorted(search)}"
        )
    missing = REQUIRED - set(search)
    if missing:
        raise SettingsError(f"search lacks {sorted(missing)}; required: {sorted(REQUIRED)}")
    for name, axis in search.items():
        if not axis.low <= start[name] <= axis.high:
            raise SettingsError(
                f"start.{name} is {start[name]}; allowed: {axis.low} to {axis.high}"
            )
    counts = (start["batch_size"], search["batch_size"].low, *search["batch_size"].values)
    if any(type(value) is not int or value < 1 for value in counts):
        raise SettingsError(f"batch_size must be whole numbers from 1, found {counts}")
    rate, dropout = search["learning_rate"], search["dropout"]
    if rate.low <= 0:
        raise SettingsError(f"learning_rate.low is {rate.low}; allowed: above 0")
    if not 0 <= dropout.low <= dropout.high < 1:
        raise SettingsError(
            f"dropout reaches from {dropout.low} to {dropout.high}; allowed: from 0 to below 1"
        )


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Task 2: the network trained from scratch."""

    initial_epochs: int = within(1, 1000)
    max_epochs: int = within(1, 1000)  # length of the learning-rate schedule
    patience: int = within(1, 1000)
    start: dict[str, float]
    search: dict[str, Axis]

    def __post_init__(self):
        _check_search(self.start, self.search)


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Task 3, step 6: part of the backbone unfrozen."""

    frozen_up_to: str | None  # a layer at the end of a block; None: the backbone's own proposal
    batch_size: int = within(1, 1024)
    learning_rate: Axis  # tried with the validation split held out
    sudden_drop: float = within(0.01, 0.5)  # of the training accuracy
    shrink: float = within(0.01, 0.9)  # of the learning rate after a sudden drop
    attempts: int = within(1, 10)

    def __post_init__(self):
        if self.learning_rate.low <= 0:
            raise SettingsError(f"learning_rate.low is {self.learning_rate.low}; allowed: above 0")


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Task 3: new layers on a pretrained backbone."""

    backbone: str = one_of_registry("models", "BACKBONES")
    width: float = within(0.1, 2)
    weights: str  # "imagenet", "random", or the path of a weights file
    image_size: int = within(32, 512)  # pixels
    augmented_copies: int = within(0, 100)
    initial_epochs: int = within(1, 1000)
    max_epochs: int = within(1, 1000)
    patience: int = within(1, 1000)
    start: dict[str, float]
    search: dict[str, Axis]
    fine_tuning: FineTuning

    def __post_init__(self):
        _check_search(self.start, self.search)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a run of the four tasks depends on."""

    data: str  # path of the archive, of its unpacked folder, or of the Kaggle tree
    results: str  # folder to write
    seed: int = within(0, 2**31 - 1)
    allow_shared_files: bool
    image_size: int = within(32, 512)  # pixels
    normalization: str = one_of_registry("normalization", "STRATEGIES")
    augmentation: Augmentation
    baseline: Baseline
    transfer: Transfer


def load_settings(
    file: str | Path | None = None,
    *,
    data: str | Path | None = None,
    results: str | Path | None = None,
    changes: Mapping[str, typing.Any] | None = None,
) -> Settings:
    """Read the settings of ``course.yaml``, with the given values changed.

    Parameters
    ----------
    file : str or Path, optional
        YAML file with other values, such as ``{baseline: {patience: 5}}``.
    data : str or Path, optional
        The images: ``covid_xray.zip``, its unpacked folder, or the Kaggle tree. By default the
        archive or its folder beside the notebooks, in the working directory or, on Colab, in
        ``/content`` or Google Drive.
    results : str or Path, optional
        Folder to write. By default ``results`` beside the notebooks; on Colab with Google Drive
        mounted, ``covid_project_results`` in the Drive, so that the next notebook finds it.
    changes : mapping, optional
        Other values by dotted key, such as ``{"transfer.backbone": "MobileNetV2"}``.

    Returns
    -------
    Settings

    Raises
    ------
    SettingsError
        No data, no such file, an unknown or missing key, a wrong type, a value out of range.

    Examples
    --------
    >>> load_settings(data="covid_xray.zip", changes={"seed": 3}).seed
    3
    """
    values = read_file(COURSE)
    values = merged(values, read_file(Path(file))) if file else values
    for key, value in (changes or {}).items():
        change_value(values, key, value)
    data = values.get("data") if data is None else data
    results = values.get("results") if results is None else results
    values["data"] = str(_located(data) if data else find_data())
    values["results"] = str(_located(results) if results else default_results())
    return read_settings(Settings, values)


def find_data() -> Path:
    """Find ``covid_xray.zip``, or the folder ``covid_xray``, where users put it.

    Returns
    -------
    Path

    Raises
    ------
    SettingsError
        It is in none of the places; the message lists them.
    """
    places = dict.fromkeys([PROJECT, Path.cwd(), COLAB, COLAB / "drive/MyDrive"])
    for place in places:
        for name in (ARCHIVE, Path(ARCHIVE).stem):
            if (place / name).exists():
                return place / name
    listed = ", ".join(str(place) for place in places if place.is_dir())
    raise SettingsError(
        f"{ARCHIVE} was not found in {listed}. Put it beside the notebooks (on Colab: upload it to "
        "/content or to your Drive), or name it in the settings cell: DATA = 'path/covid_xray.zip'"
    )


def default_results() -> Path:
    """Choose the folder of the results where none is named.

    Returns
    -------
    Path
    """
    if "google.colab" in sys.modules and (COLAB / "drive/MyDrive").is_dir():
        return COLAB / "drive/MyDrive/covid_project_results"
    return PROJECT / "results"


def _located(path: str | Path) -> Path:
    """Absolute path; a relative one counts from the working directory, else from the notebooks."""
    if not isinstance(path, str | Path):
        raise SettingsError(f"data and results must be paths, found {reprlib.repr(path)}")
    path = Path(path).expanduser()
    return path.absolute() if path.exists() or path.is_absolute() else PROJECT / path


# ---- reading and checking -----------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Plain values only; a key that is given twice is refused, as one of the two would be lost."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"found {', '.join(twice)} twice in one group", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> typing.Any:
    """Read the plain values of a YAML text.

    Parameters
    ----------
    text : str

    Returns
    -------
    dict, list, str, int, float, bool or None

    Raises
    ------
    SettingsError
        Not valid YAML, or a key that is given twice.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise SettingsError("not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise SettingsError(f"not valid YAML: {error}") from None


def read_file(path: Path) -> dict:
    """Read the keys and values of a YAML file.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict

    Raises
    ------
    SettingsError
        The file cannot be read, or holds something else; the message names it.
    """
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (SettingsError, OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path} must hold keys and values, found {reprlib.repr(values)}")
    return values


def as_yaml(settings: typing.Any) -> str:
    """Write settings as YAML text that reads back to the same settings.

    Parameters
    ----------
    settings : Settings, or another dataclass

    Returns
    -------
    str
    """
    plain = json.loads(json.dumps(dataclasses.asdict(settings)))  # with lists instead of tuples
    return yaml.safe_dump(plain, sort_keys=False)


def merged(values: dict, changes: Mapping) -> dict:
    """Change nested values; an axis changes as a whole.

    Parameters
    ----------
    values : dict
    changes : mapping
        Nested in the same way, with other values or further keys.

    Returns
    -------
    dict
        A new one.
    """
    result = dict(values)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both and "values" not in value else value
    return result


def read_settings(kind: type, values: typing.Any, where: str = ""):
    """Build the dataclass ``kind`` from nested values, refusing whatever does not fit.

    Parameters
    ----------
    kind : type
        A dataclass whose fields are declared with `within`, `one_of_registry` or a type.
    values : mapping
        Plain values, as from a YAML file.
    where : str
        Dotted key of the group, for messages.

    Returns
    -------
    kind

    Raises
    ------
    SettingsError
        An unknown or missing key, a wrong type, a value out of range.
    """
    if not isinstance(values, dict):
        raise SettingsError(f"{where} must hold keys and values, found {reprlib.repr(values)}")
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    unknown = [f"{prefix}{key}" for key in values if key not in fields]
    if unknown:
        raise SettingsError(f"unknown setting {', '.join(unknown)}; known: {', '.join(fields)}")
    missing = [
        f"{prefix}{name}"
        for name, item in fields.items()
        if name not in values and item.default is item.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise SettingsError(f"missing setting {', '.join(missing)}")
    arguments = {
        name: _value(hints[name], value, f"{prefix}{name}", fields[name].metadata)
        for name, value in values.items()
    }
    try:
        return kind(**arguments)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}" if where else str(error)) from None


def _value(hint, value, where: str, limits: Mapping = types.MappingProxyType({})):
    """Convert one value to its declared type, without guessing, and check its range."""
    if isinstance(hint, types.UnionType):  # written as `kind | None`
        if value is None:
            return None
        hint = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    if dataclasses.is_dataclass(hint):
        return read_settings(hint, value, where)
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise SettingsError(f"{where} must hold keys and values, found {reprlib.repr(value)}")
        kind = typing.get_args(hint)[1]
        return {str(key): _value(kind, item, f"{where}.{key}") for key, item in value.items()}
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise SettingsError(f"{where} must be a list, found {reprlib.repr(value)}")
        kind = typing.get_args(hint)[0]
        return tuple(_value(kind, item, where) for item in value)
    if hint is float and isinstance(value, str):  # YAML takes 1e-3 for a word
        with contextlib.suppress(ValueError):
            value = float(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # A whole number stays one where a float is allowed: batch sizes and filters are counted.
    fits = number and value == value if hint is float else type(value) is hint
    allowed, inside = "", True
    if "low" in limits:
        allowed = f"; allowed: {limits['low']} to {limits['high']}"
        inside = not fits or limits["low"] <= value <= limits["high"]
    elif limits:
        choices = list(limits["choices"]())
        allowed, inside = f"; allowed: {', '.join(choices)}", value in choices
    if fits and inside:
        return value
    found = "is" if fits else f"must be a {hint.__name__}, found"
    raise SettingsError(f"{where} {found} {reprlib.repr(value)}{allowed}")


def change_value(values: dict, dotted: str, value) -> None:
    """Change nested values at a dotted key.

    Parameters
    ----------
    values : dict
        Changed in place.
    dotted : str
        Such as "transfer.backbone".
    value : object

    Raises
    ------
    SettingsError
        No such group.
    """
    *parents, last = dotted.split(".")
    for parent in parents:
        values = values.get(parent)
        if not isinstance(values, dict):
            raise SettingsError(f"unknown setting {dotted}: there is no group {parent}")
    values[last] = value  # an unknown last key is refused when the settings are read
