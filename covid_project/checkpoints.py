"""Finished models on disk: trained once for a recipe, then loaded.

A stage's model lies in ``models/<stage>.keras`` of the results folder, its training history in
``history_<stage>.csv``. The recipe beside the model is written last: where it is missing or another
one, the stage is not finished.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import pandas as pd

import covid_project.normalization  # noqa: F401  makes our layers known to Keras when it loads
from covid_project.experiment import MissingInput
from covid_project.storage import read_csv, whole_file, write_csv, write_text


def fitted(
    results: Path,
    stage: str,
    recipe: Mapping[str, object],
    train: Callable[[], tuple[keras.Model, pd.DataFrame]],
) -> tuple[keras.Model, pd.DataFrame]:
    """Return a stage's model, loaded back from disk, and its training history.

    ``train`` is called, and what it returns saved, unless a model of exactly this recipe is there
    already: a run that was cut off goes on after its last finished stage.
    """
    path = model_path(results, stage)
    history_path = results / f"history_{stage}.csv"
    record = path.with_suffix(".json")
    recipe = json.loads(json.dumps(dict(recipe), default=str))
    if _recipe(path) == recipe:
        print(f"{stage}: the finished model of this recipe is loaded from {path.name}")
    else:
        record.unlink(missing_ok=True)  # until model and history are whole again
        model, history = train()
        with whole_file(path) as part:
            model.save(part)
        write_csv(history_path, history)
        write_text(record, json.dumps(recipe, indent=2))
    return load_model(path), read_csv(history_path)


def model_path(results: Path, stage: str) -> Path:
    """Path of a stage's model."""
    return results / "models" / f"{stage}.keras"


def finished_model(results: Path, stage: str, notebook: str) -> keras.Model:
    """Load the finished model of a stage.

    Raises
    ------
    MissingInput
        There is none yet; names the notebook that makes it.
    """
    path = model_path(results, stage)
    if _recipe(path) is None:
        raise MissingInput(f"{path} is missing: run {notebook} first, with the same settings")
    return load_model(path)


def _recipe(path: Path) -> dict | None:
    """Recipe of a finished model; None where the model or its recipe is missing."""
    record = path.with_suffix(".json")
    if not (path.is_file() and record.is_file()):
        return None
    return json.loads(record.read_text(encoding="utf-8"))


def load_model(path: Path) -> keras.Model:
    """Load a model in safe mode: nothing in the file can run code."""
    return keras.saving.load_model(path, compile=False, safe_mode=True)
