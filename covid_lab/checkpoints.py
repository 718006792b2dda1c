"""Models on disk: trained once and then loaded, stored during training, and loaded safely."""

import importlib
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd

import covid_project.normalization  # noqa: F401  Keras knows our layer when it loads a model
from covid_project.files import whole_file
from covid_project.results import Run


def fitted(
    run: Run,
    stage: str,
    recipe: Mapping[str, object],
    train: Callable[[], tuple[keras.Model, pd.DataFrame]],
) -> tuple[keras.Model, pd.DataFrame]:
    """Return a stage's model, loaded from the results folder, and its training history.

    Parameters
    ----------
    run : Run
    stage : str
        Name of the model.
    recipe : mapping of str to object
        What the model depends on (see `Run.save_model`).
    train : callable
        Returns the trained model and its history. It is called unless a model of exactly this
        recipe exists, so that an interrupted run resumes after its last finished stage.

    Returns
    -------
    model : keras.Model
    history : pd.DataFrame
    """
    if run.has_model(stage, recipe):
        print(f"{stage}: the finished model is loaded")
    else:
        run.save_model(stage, *train(), recipe)
    return load_model(run.model_path(stage)), run.load_history(stage)


# ---- trainings in progress ----------------------------------------------------------------------


def keep_training(
    path: Path,
    model: keras.Model,
    epochs: Sequence[Mapping[str, float]],
    best: Sequence[np.ndarray],
) -> None:
    """Store the state of a training, for `kept_training` to resume from.

    Parameters
    ----------
    path : Path
        A ``.npz`` file, about four times the size of the model. Its name must tell apart trainings
        of different models, data and settings.
    model : keras.Model
        Compiled, with its optimizer built.
    epochs : sequence of mapping of str to float
        Metrics of each epoch so far.
    best : sequence of np.ndarray
        Weights to return if the training ended here, as of ``get_weights``.
    """
    arrays = {"epochs": np.array(json.dumps([dict(epoch) for epoch in epochs]))}
    for name, values in (("now", _state(model)), ("best", best)):
        arrays |= {f"{name}{number}": np.asarray(value) for number, value in enumerate(values)}
    with whole_file(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays)


def kept_training(path: Path, model: keras.Model) -> tuple[list[dict[str, float]], list]:
    """Restore a model and its optimizer to the state that `keep_training` stored.

    Parameters
    ----------
    path : Path
        Where there is no such file, the model stays as it is.
    model : keras.Model
        Compiled, with its optimizer built; changed in place.

    Returns
    -------
    epochs : list of dict of str to float
        Metrics of each epoch; empty without a file.
    best : list of np.ndarray
        The best weights so far; the model's own without a file.

    Raises
    ------
    ValueError
        The file is damaged or belongs to another model. The model is unchanged.
    """
    if not Path(path).is_file():
        return [], model.get_weights()
    try:
        with np.load(path, allow_pickle=False) as arrays:
            now = [arrays[f"now{number}"] for number in range(len(_state(model)))]
            best = [arrays[f"best{number}"] for number in range(len(model.weights))]
            epochs = json.loads(str(arrays["epochs"]))
        for variable, value in zip([*_state(model), *model.weights], [*now, *best], strict=True):
            if value.shape != tuple(variable.shape):
                raise ValueError(f"{variable.path} is of {variable.shape}, there {value.shape}")
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no training of this model ({error}): delete it") from None
    for variable, value in zip(_state(model), now, strict=True):
        variable.assign(value)
    return epochs, best


def _state(model: keras.Model) -> list[keras.Variable]:
    return [*model.weights, *model.optimizer.variables]


# ---- what may be loaded -------------------------------------------------------------------------

# Keras looks up what a file's configuration names, and calls it. Its safe mode was broken in
# several releases (CVE-2025-1550, -8747, -9906). So only these names ever reach Keras.
KERAS_MODULES = {
    f"keras.{name}"
    for name in ("layers", "initializers", "regularizers", "constraints", "activations",
                 "dtype_policies", "models", "src.models.functional", "src.models.sequential")
}  # fmt: skip
KERAS_CLASSES = {"DTypePolicy", "FloatDTypePolicy", "Functional", "Model", "Sequential"}
APPLICATION_LAYERS = {  # layers of keras.applications that keras.layers does not have
    ("keras.src.applications.convnext", "LayerScale"),
    ("keras.src.applications.convnext", "StochasticDepth"),
    ("keras.src.applications.inception_resnet_v2", "CustomScaleLayer"),
}
# Arithmetic in a graph: each operation of these modules takes tensors and plain values.
OPERATION_MODULES = {f"keras.src.ops.{name}" for name in ("image", "linalg", "math", "nn", "numpy")}
CORE_OPERATIONS = {  # the others of this module take functions
    "Cast", "ConvertToTensor", "SaturateCast", "Scatter", "ScatterUpdate", "Slice", "SliceUpdate",
    "StopGradient", "Unstack",
}  # fmt: skip
OUR_MODULES = {"covid_project.normalization"}
RUN_CODE = {"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}
PLAIN = {"__keras_tensor__", "__tensor__", "__numpy__", "__slice__", "__ellipsis__"}  # values
MAX_CONFIGURATION, MAX_RATIO = 64 * 2**20, 200  # bytes; unpacked to packed bytes of a member
KERAS_2_MODULE = re.compile(r"(tf_keras|keras)(\.src)?\.engine(\.\w+)?")
CONVERT = "keras.saving.load_model({path!r}, compile=False).save('converted.keras')"


class ModelRefused(ValueError):
    """A model's file is damaged, or could run code; the message names the file and the reason."""


def load_model(path: Path, *, trust: bool = False) -> keras.Model:
    """Load a ``.keras`` file; by default, nothing that it asks for can run code.

    Losses and optimizers are never loaded, those of models inside the model included. The HDF5
    library reads the weights, and the newest one that TensorFlow 2.21 allows (1.14) has known
    memory faults that a crafted file can exploit: load only files from people you trust.

    Parameters
    ----------
    path : Path
    trust : bool
        For your own files: load whatever the file contains, its code included. Lambda layers,
        ``.h5`` files and files of Keras 2 need this.

    Returns
    -------
    keras.Model

    Raises
    ------
    ModelRefused
        The file is missing or damaged. Without ``trust`` also: another kind of file, a file of
        Keras 2, or layers or functions that are neither Keras' own nor the project's.

    Examples
    --------
    >>> load_model(Path("model.keras")).output_shape
    (None, 1)
    """
    path = Path(path)
    if not path.is_file():
        folder = " (a folder: a SavedModel? save the model as .keras)" if path.is_dir() else ""
        raise ModelRefused(f"no such file: {path}{folder}; give a model saved as .keras")
    if path.suffix in (".h5", ".hdf5") and trust:
        return _loaded(path, path, safe_mode=False)
    if path.suffix != ".keras":
        if path.suffix in (".h5", ".hdf5"):
            raise ModelRefused(
                f"{path} is refused: an .h5 file can hold code. If it is your own, give --trust, "
                f"or convert it once in Python: {CONVERT.format(path=path.name)}"
            )
        raise ModelRefused(
            f"{path} is refused: only .keras files are read, as other kinds can hold code; load it "
            "where you trust it, and save it as .keras"
        )
    stated = _configuration(path)
    configuration = _without_compilation(stated)
    version = _keras_version(path)
    if version.startswith("2."):
        if not trust:
            raise ModelRefused(
                f"{path} was saved by Keras 2 (version {version}), which Keras 3 cannot read as "
                "it is. If it is your own, give --trust, which translates it. Or save it again: "
                "model.save('model.h5') in the environment that made it, then here "
                f"{CONVERT.format(path='model.h5')}"
            )
        configuration = _translated(configuration)
    strange = [] if trust else sorted(set(_strangers(configuration)))
    if strange:
        raise ModelRefused(
            f"{path} is refused: it asks for {', '.join(strange[:5])}. Allowed are layers and "
            "operations of Keras that hold no code, and the project's own layers. If the file is "
            "your own, give --trust, which runs the code in it"
        )
    if configuration == stated:
        return _loaded(path, path, safe_mode=not trust)
    with tempfile.TemporaryDirectory() as folder:  # Keras must see what was examined
        examined = Path(folder) / "model.keras"
        _copy(path, examined, configuration)
        return _loaded(path, examined, safe_mode=not trust)


def _loaded(path: Path, file: Path, safe_mode: bool) -> keras.Model:
    try:
        return keras.saving.load_model(file, compile=False, safe_mode=safe_mode)
    except Exception as error:  # of many kinds, by what is damaged
        reason = str(error).strip().splitlines() or [type(error).__name__]
        hint = "" if safe_mode else " (layers of your own must be imported before they are loaded)"
        raise ModelRefused(f"{path} cannot be loaded: {reason[0][:300]}{hint}") from error


def _configuration(path: Path) -> dict:
    """Read the architecture from a ``.keras`` file."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("config.json").file_size > MAX_CONFIGURATION:
                raise ModelRefused(f"{path} is refused: its configuration is no model's")
            found = json.loads(archive.read("config.json"))
    except ModelRefused:
        raise
    except Exception as error:  # zipfile raises many kinds on damaged files
        raise ModelRefused(
            f"{path} is no .keras file, or is damaged ({type(error).__name__}: {error})"
        ) from None
    if not isinstance(found, dict):
        raise ModelRefused(f"{path} is no .keras file: its configuration is no mapping")
    # Keras itself drops the loss and the optimizer of the outer model, with ``compile=False``.
    return {key: value for key, value in found.items() if key != "compile_config"}


def _without_compilation(value):
    """Leave out what compiled models add: Keras would load that of inner models."""
    if isinstance(value, dict):
        return {k: _without_compilation(v) for k, v in value.items() if k != "compile_config"}
    return [_without_compilation(item) for item in value] if isinstance(value, list) else value


def _keras_version(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            return str(json.loads(archive.read("metadata.json"))["keras_version"])
    except Exception:  # missing or damaged: not needed for loading
        return ""


def _translated(value):
    """Translate Keras 2's names of models to those of Keras 3."""
    if isinstance(value, dict):
        module = value.get("module")
        functional = value.get("class_name") == "Functional"
        named = {"module": "keras.src.models.functional" if functional else "keras"}
        named["registered_name"] = None
        renamed = isinstance(module, str) and KERAS_2_MODULE.fullmatch(module)
        return {k: _translated(v) for k, v in value.items()} | (named if renamed else {})
    return [_translated(item) for item in value] if isinstance(value, list) else value


def _copy(path: Path, copy: Path, configuration: dict) -> None:
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as to:
        for member in archive.infolist():
            if member.file_size > MAX_RATIO * member.compress_size + MAX_CONFIGURATION:
                raise ModelRefused(f"{path} is refused: {member.filename} is packed like a bomb")
            if member.filename == "config.json":
                to.writestr(member.filename, json.dumps(configuration))
            else:
                with archive.open(member) as source, to.open(member.filename, "w") as target:
                    shutil.copyfileobj(source, target)


def _strangers(value) -> Iterator[str]:
    """Yield the names of everything that a configuration asks for and that may not be loaded."""
    if isinstance(value, dict):
        if "class_name" in value and not _is_known(value):
            function = value["class_name"] == "function" and value.get("config")
            yield f"{value.get('module')}.{function or value['class_name']}"
        for item in value.values():
            yield from _strangers(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strangers(item)


def _is_known(named: dict) -> bool:
    module, name = named.get("module"), str(named["class_name"])
    if not isinstance(module, str):
        return module is None and name in PLAIN
    if name in RUN_CODE or (name == "function" and module != "keras.activations"):
        return False
    if module in OPERATION_MODULES or module == "keras.src.ops.core":
        return _is_operation(module, name)
    if (module, name) in APPLICATION_LAYERS:
        return True
    return module in KERAS_MODULES | OUR_MODULES or (module == "keras" and name in KERAS_CLASSES)


def _is_operation(module: str, name: str) -> bool:
    """Tell whether a name in ``keras.src.ops.*`` is an operation that a file may ask for."""
    if module not in OPERATION_MODULES and name not in CORE_OPERATIONS:
        return False
    found = vars(importlib.import_module(module)).get(name)
    # Not what the module itself imports: other modules, functions, the base class.
    return (
        isinstance(found, type)
        and issubclass(found, keras.Operation)
        and found.__module__ == module
    )
