"""Models on disk: trained once and then loaded, kept while in training, and loaded safely."""

import json
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
    recipe : mapping
        What the model depends on (see `Run.save_model`).
    train : callable
        Returns the trained model and its history; called unless a model of exactly this recipe is
        there already, so that an interrupted run continues after its last finished stage.
    """
    if run.has_model(stage, recipe):
        print(f"{stage}: the finished model is loaded")
    else:
        run.save_model(stage, *train(), recipe)
    return load_model(run.model_path(stage)), run.load_history(stage)


# ---- trainings under way ------------------------------------------------------------------------


def keep_training(
    path: Path,
    model: keras.Model,
    epochs: Sequence[Mapping[str, float]],
    best: Sequence[np.ndarray],
) -> None:
    """Write where a training is, for `kept_training` to go on from.

    Parameters
    ----------
    path
        A ``.npz``, which takes about four times the size of the model. Its name must tell apart
        what is trained on what and how.
    model
        Compiled, its optimizer built.
    epochs
        What is known of each epoch until now.
    best
        The weights to be returned should the training end here, as of ``get_weights``.
    """
    arrays = {"epochs": np.array(json.dumps([dict(epoch) for epoch in epochs]))}
    for name, values in (("now", _state(model)), ("best", best)):
        arrays |= {f"{name}{number}": np.asarray(value) for number, value in enumerate(values)}
    with whole_file(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays)


def kept_training(path: Path, model: keras.Model) -> tuple[list[dict[str, float]], list]:
    """Bring a model and its optimizer to where a training was kept: its epochs and best weights.

    Where there is no such file the model stays as it is: no epochs, and its own weights.

    Raises
    ------
    ValueError
        The file is damaged or of another model; names it. The model is as it was.
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

# Keras looks up what a file's configuration names, and calls it. Safe mode alone has been broken in
# several releases (CVE-2025-1550, -8747, -9906), so only these are let through to it.
KERAS_MODULES = {
    f"keras.{name}"
    for name in ("layers", "initializers", "regularizers", "constraints", "activations",
                 "dtype_policies", "models", "src.models.functional", "src.models.sequential")
}  # fmt: skip
KERAS_CLASSES = {"DTypePolicy", "FloatDTypePolicy", "Functional", "Model", "Sequential"}
OUR_MODULES = {"covid_project.normalization"}
RUN_CODE = {"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}
PLAIN = {"__keras_tensor__", "__tensor__", "__numpy__"}  # how Keras writes shapes and arrays
MAX_CONFIGURATION = 64 * 2**20  # bytes


class ModelRefused(ValueError):
    """A model's file is damaged, or could run code; the message says which and why."""


def load_model(path: Path) -> keras.Model:
    """Load a ``.keras`` file; nothing that it asks for can run code.

    Its weights are read by the HDF5 library, and the newest one that TensorFlow 2.21 allows (1.14)
    has known faults of memory that a file made for it can reach: load what comes from people you
    trust.

    Raises
    ------
    ModelRefused
        No such file; another kind of file (the older ``.h5`` and SavedModel can hold code); layers
        or functions that are neither Keras' own nor the project's; damage.
    """
    path = Path(path)
    strange = sorted(set(_strangers(_configuration(path))))
    if strange:
        raise ModelRefused(
            f"{path} is refused: it asks for {', '.join(strange[:5])}. Allowed are layers of Keras "
            "that hold no code, and the project's own"
        )
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # of many kinds, by what is damaged
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelRefused(f"{path} cannot be loaded: {reason[0][:300]}") from error


def _configuration(path: Path) -> dict:
    """The architecture as a ``.keras`` file states it."""
    if not path.is_file():
        raise ModelRefused(f"no such file: {path}; give a model saved as .keras")
    if path.suffix != ".keras":
        raise ModelRefused(
            f"{path} is refused: only .keras files are read, as older kinds can hold code; load it "
            "where you trust it, and save it as .keras"
        )
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
    # Losses and optimizers are not loaded, whatever they are.
    return {key: value for key, value in found.items() if key != "compile_config"}


def _strangers(value) -> Iterator[str]:
    """Names of everything that a configuration asks for and that is not to be loaded."""
    if isinstance(value, dict):
        if "class_name" in value and not _is_known(value):
            yield f"{value.get('module')}.{value['class_name']}"
        for item in value.values():
            yield from _strangers(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strangers(item)


def _is_known(named: dict) -> bool:
    module, name = named.get("module"), str(named["class_name"])
    if module is None:
        return name in PLAIN
    if name in RUN_CODE or (name == "function" and module != "keras.activations"):
        return False
    return module in KERAS_MODULES | OUR_MODULES or (module == "keras" and name in KERAS_CLASSES)
