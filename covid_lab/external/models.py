"""The models of an external test with the scores of their own test sets, and the ledger."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from covid_lab.progress import Progress
from covid_lab.verify import TESTED, NotKept, load_kept, open_model
from covid_project.data import DataError, Dataset, ImageFiles
from covid_project.files import append_rows, read_csv
from covid_project.gradcam import remove_final_activation
from covid_project.models import logits, model_fingerprint

LEDGER = "external_ledger.csv"
AT_ONCE = 512  # images in memory
OWN_SCORES = "own_scores"  # folder beside a model's file, with <model>.csv: path, label, score


@dataclass(frozen=True, eq=False)
class FinalModel:
    """A model to test.

    Attributes
    ----------
    name : str
        Such as "fine_tuned".
    model : keras.Model
        Images (N, S, S, 1 or 3), 0–255 → logits (N, 1).
    fingerprint : str
        Fingerprint of the stored model.
    own : pd.DataFrame or None
        path, label and score of the model's own test set; None where there are no scores.
    """

    name: str
    model: keras.Model
    fingerprint: str
    own: pd.DataFrame | None = field(default=None)

    @property
    def side(self) -> int:
        """Side of the images that the model takes.

        Returns
        -------
        int
            In pixels.
        """
        return self.model.input_shape[1]


def load_models(paths: list[Path]) -> list[FinalModel]:
    """Load models from runs and from single files.

    Parameters
    ----------
    paths : list of Path
        Each is a ``.keras`` file, the record (``.json``) of a network with two exits, or the folder
        ``models`` of a run. A run gives the models that were tested: the baseline and the
        fine-tuned one.

    Returns
    -------
    list of FinalModel
        In the order of the paths.

    Raises
    ------
    DataError
        There is no model, two models have one name, a model does not map images to one logit, or a
        table of scores lacks a column.
    NotKept, ModelRefused, WeightsUnavailable
        As `covid_lab.verify.load_kept`.
    """
    found = [tested for path in paths for tested in _loaded(Path(path))]
    names = [tested.name for tested in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"several models are named {', '.join(twice)}: give each file another name")
    return found


def _loaded(path: Path) -> Iterator[FinalModel]:
    if path.is_file():
        model = open_model(path)
        yield _checked(path.stem, model, path.parent / OWN_SCORES / f"{path.stem}.csv", path)
        return
    if not path.is_dir():
        raise DataError(f"no such model: {path}; give a .keras file or the folder models of a run")
    results, any_found = path.parent, False
    for stage in TESTED:
        try:
            model, _ = load_kept(results, stage)
        except NotKept as error:
            if any(path.glob(f"{stage}*.keras")):
                raise
            print(f"{stage}: {error}")
            continue
        any_found = True
        yield _checked(stage, model, results / f"scores_{stage}_test.csv", path)
    if not any_found:
        raise DataError(f"{path} holds no tested model; give a .keras file, or run the notebooks")


def _checked(name: str, model: keras.Model, own: Path, path: Path) -> FinalModel:
    shape, outputs = tuple(model.input_shape[1:]), model.output_shape[1:]
    if len(shape) != 3 or shape[0] is None or shape[0] != shape[1] or shape[2] not in (1, 3):
        raise DataError(f"{path}: {name} takes inputs {shape}; allowed are images (S, S, 1 or 3)")
    if outputs != (1,):
        raise DataError(f"{path}: {name} has outputs {outputs}; allowed is one logit per image")
    scores = read_csv(own)
    missing = {"label", "score"} - set(scores.columns) if len(scores) else set()
    if missing:
        raise DataError(f"{own} has no column {', '.join(sorted(missing))}")
    identity = model_fingerprint(model)
    return FinalModel(
        name, remove_final_activation(model), identity, scores if len(scores) else None
    )


def score_images(tested: FinalModel, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Score images of a data set in blocks, so that few are in memory.

    Parameters
    ----------
    tested : FinalModel
        The model.
    dataset : Dataset
        Its images are resized to those that the model takes.
    rows : np.ndarray, int (N,)
        Rows of the table of the data set.

    Returns
    -------
    np.ndarray, float32 (N,)
        Logits of COVID, in the order of ``rows``.
    """
    parts = []
    files = ImageFiles(dataset, rows, tested.side)
    progress, what = Progress(), f"{tested.name}: images scored"
    progress(what, 0, len(rows))
    for first in range(0, len(rows), AT_ONCE):
        images = channels(tested, files[first : first + AT_ONCE])
        parts.append(logits(tested.model, images))
        progress(what, first + len(images), len(rows))
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def channels(tested: FinalModel, images: np.ndarray) -> np.ndarray:
    """Repeat the channel of grey images as often as the model needs.

    Parameters
    ----------
    tested : FinalModel
        The model.
    images : np.ndarray, (N, S, S, 1), 0–255
        Grey values.

    Returns
    -------
    np.ndarray, (N, S, S, 1 or 3), 0–255
        Images with the channels of the model.
    """
    return np.repeat(images, tested.model.input_shape[-1], axis=-1)


def enter(folder: Path, tested: FinalModel, data: str, fingerprint: str, versions: str) -> int:
    """Enter a test evaluation in the ledger of external test sets, and number it.

    The same model on the same images counts once, however often it is scored. A warning is printed
    from the second evaluation on.

    Parameters
    ----------
    folder : Path
        Folder of ``external_ledger.csv``, which is created where it is missing.
    tested : FinalModel
        The model.
    data : str
        Name of the data and the split.
    fingerprint : str
        Fingerprint of the data.
    versions : str
        Versions of the software.

    Returns
    -------
    int, from 1
        Number of the evaluation among models of this name on these images.
    """
    path = Path(folder) / LEDGER
    ledger = read_csv(path)
    here = (
        ledger[(ledger["name"] == tested.name) & (ledger["images"] == fingerprint)]
        if len(ledger)
        else ledger
    )
    for row in here.itertuples():
        if row.model == tested.fingerprint:
            return int(row.look)
    look = len(here) + 1
    entry = {
        "name": tested.name,
        "model": tested.fingerprint,
        "data": data,
        "images": fingerprint,
        "look": look,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions,
    }
    append_rows(path, pd.DataFrame([entry]))
    if look > 1:
        print(
            f"WARNING: evaluation number {look} of {tested.name} on {data}. These figures no "
            "longer come from a single evaluation; the ledger keeps all of them."
        )
    return look
