"""Settings of the lab's runs: profiles of the course run, and what all studies have in common.

A profile is a YAML file in ``profiles/``. It is named by its file's stem or by a path.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from covid_project.settings import (
    COURSE,
    PROJECT,
    Settings,
    SettingsError,
    change_value,
    default_results,
    merged,
    read_file,
    read_settings,
    within,
)

PROFILES = PROJECT / "profiles"
CACHE = PROJECT / ".cache"  # drawn data sets; may be deleted
BACKENDS = ("loky", "ray", "dask")  # what runs the trials of a search, with several workers
NOTEBOOKS = ("data_exploration", "baseline", "transfer_learning", "gradcam")  # in their order
EXTRAS = "course_extras"  # more on the course run, in its results folder
# Notebooks in ``studies/`` with a module of the same name in ``covid_lab.studies``.
STUDIES = tuple(
    sorted(
        path.stem
        for path in (PROJECT / "studies").glob("*.ipynb")
        if (PROJECT / "covid_lab" / "studies" / f"{path.stem}.py").is_file()
    )
)


def one_of(*choices: str, **arguments) -> Any:
    """Declare a field whose word must be one of the choices.

    Parameters
    ----------
    *choices : str
    **arguments
        For `dataclasses.field`.

    Returns
    -------
    dataclasses.Field
    """
    return field(metadata={"choices": lambda: choices}, **arguments)


@dataclass(frozen=True, kw_only=True)
class Phantoms:
    """The drawn data set that is used where no data are given.

    Attributes
    ----------
    size : int, 32–1024
        Pixels along each side of an image.
    train, val, test : int, 2–100,000
        Images per class in each split.
    """

    size: int = within(32, 1024)
    train: int = within(2, 100_000)
    val: int = within(2, 100_000)
    test: int = within(2, 100_000)


# ---- the course run -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LabOptions:
    """What a profile of the course run contains beyond the settings of the course.

    Attributes
    ----------
    phantoms : Phantoms or None
        Drawn where no data are given.
    without_weights : {"stop", "random", "drawn"}
        What replaces pretrained weights that are unavailable.
    expected_seconds : dict of str to float, from 0
        Time of each notebook, from which the time left is computed.
    """

    phantoms: Phantoms | None = None
    without_weights: str = one_of("stop", "random", "drawn", default="stop")
    expected_seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        _check_seconds(self.expected_seconds)


def course_settings(
    profile: str | Path | None = None,
    *,
    data: str | Path | None = None,
    results: str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
) -> tuple[Settings, LabOptions]:
    """Read the settings of a course run: ``course.yaml``, changed by a profile.

    Parameters
    ----------
    profile : str or Path, optional
        Name or path of a YAML file with the values that differ, and those of `LabOptions`. None:
        ``demo`` without data, no changes with data.
    data : str or Path, optional
        The images; None: phantoms are drawn.
    results : str or Path, optional
        Folder to write; None: the profile's, or else ``results`` beside the notebooks.
    changes : mapping of str to object, optional
        Other values by dotted key, such as ``{"transfer.backbone": "MobileNetV2"}``.

    Returns
    -------
    settings : Settings
    options : LabOptions

    Raises
    ------
    SettingsError
        No such profile; no data and a profile without phantoms; a key or value that is not allowed.
    """
    profile = profile or (None if data else "demo")
    values = merged(read_file(COURSE), read_file(_profile_path(profile)) if profile else {})
    for key, value in (changes or {}).items():
        change_value(values, key, value)
    names = [item.name for item in fields(LabOptions) if item.name in values]
    options = read_settings(LabOptions, {name: values.pop(name) for name in names})
    written = _absolute(results) or _in_project(values.get("results"), default_results())
    values["results"] = str(written)
    values["data"] = str(_absolute(data) or "")
    settings = read_settings(Settings, values)
    if data is None:
        if options.phantoms is None:
            raise _no_data(profile)
        values["data"] = str(drawn_phantoms(options.phantoms, settings.seed))
    return read_settings(Settings, values), options


def drawn_phantoms(phantoms: Phantoms, seed: int) -> Path:
    """Draw a data set in the project's cache, unless it is there already.

    Parameters
    ----------
    phantoms : Phantoms
    seed : int, from 0

    Returns
    -------
    Path
        Folder of the data set.
    """
    from covid_lab.phantoms import DRAWING, write_dataset
    from covid_project.data import SPLITS
    from covid_project.files import fingerprint

    counts = {split: getattr(phantoms, split) for split in SPLITS}
    drawn = {"drawing": DRAWING, "size": phantoms.size, "seed": seed, **counts}
    folder = CACHE / f"phantoms-{fingerprint(drawn)}"
    return write_dataset(folder, counts, phantoms.size, seed)


# ---- studies ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings that every study has; each study has a subclass with more.

    Attributes
    ----------
    data : str or None
        Archive, folder or whatever the study reads; None: phantoms are drawn.
    results : str
        Folder to write.
    seed : int, 0 to 2³¹ − 1
        Of everything random.
    phantoms : Phantoms or None
        Needed where ``data`` is None.
    expected_seconds : dict of str to float, from 0
        Time of each notebook, from which the time left is computed.
    """

    other_data = ()  # names of a study's further settings that are paths of data

    data: str | None
    results: str
    seed: int = within(0, 2**31 - 1)
    phantoms: Phantoms | None
    expected_seconds: dict[str, float]

    def __post_init__(self):
        if self.data is None and self.phantoms is None:
            raise _no_data("")
        _check_seconds(self.expected_seconds)

    @property
    def common(self) -> tuple:
        """Groups of settings that every result of the study depends on."""
        return ()


def load_study[Kind: RunSettings](
    kind: type[Kind],
    name: str,
    file: str | Path | None = None,
    *,
    data: str | Path | None = None,
    results: str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Kind:
    """Read the settings of a study: of its profile, or without data of its demo.

    Parameters
    ----------
    kind : type
        The study's subclass of `RunSettings`.
    name : str
        Name of the study and of its profile.
    file : str or Path, optional
        Profile to use instead: name in ``profiles/`` or path of a YAML file.
    data, results : str or Path, optional
        Used instead of the profile's.
    changes : mapping of str to object, optional
        Other values by dotted key.

    Returns
    -------
    RunSettings
        Of the given kind.

    Raises
    ------
    SettingsError
        No such profile, no data, a key or value that is not allowed.
    """
    values = profile_values(file or name, demo=file is None and not data)
    for key, value in (changes or {}).items():
        change_value(values, key, value)  # whole: {backbones: …} replaces those of the profile
    data = values.get("data") if data is None else data
    values["data"] = data and str(_absolute(data))  # the notebook runs in another folder
    values["results"] = str(_absolute(results) or _in_project(values.get("results"), ""))
    for other in kind.other_data:
        if values.get(other):
            values[other] = str(_absolute(values[other]))
    return read_settings(kind, values)


# ---- common -------------------------------------------------------------------------------------


def profile_values(profile: str | Path, demo: bool = False) -> dict[str, Any]:
    """Read the values of a study's profile.

    Parameters
    ----------
    profile : str or Path
        Name in ``profiles/`` or path of a YAML file.
    demo : bool
        Whether to change what it lists, by dotted key, under ``demo``.

    Returns
    -------
    dict of str to object
    """
    values = read_file(_profile_path(profile))
    changes = values.pop("demo", {})
    for key, value in changes.items() if demo else ():
        change_value(values, key, value)
    return values


def _profile_path(profile: str | Path) -> Path:
    """Find the file of a profile, or raise ``SettingsError``."""
    for path in (PROFILES / f"{profile}.yaml", Path(profile).expanduser()):
        if path.is_file():
            return path
    known = ", ".join(sorted(file.stem for file in PROFILES.glob("*.yaml")))
    raise SettingsError(f"no profile {profile}: give one of {known}, or the path of a YAML file")


def _absolute(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser().absolute()


def _in_project(path: str | None, default: str | Path) -> Path:
    return PROJECT / Path(path or default).expanduser()


def _no_data(profile: str | Path) -> SettingsError:
    return SettingsError(
        f"no data{f' for the profile {profile}' if profile else ''}: give the path of a zip "
        "archive of images or of its unpacked folder (--data PATH)"
    )


def _check_seconds(expected: Mapping[str, float]) -> None:
    for name, seconds in expected.items():
        if not 0 <= seconds < math.inf:
            raise SettingsError(
                f"expected_seconds.{name} is {seconds}; allowed: from 0, and finite"
            )
