"""Store a run's models without others' weights, and check the run's tables against them.

The baseline is stored whole. Of the fine-tuned model only the layers above the cut are stored; the
layers below are the backbone's own, which Keras provides.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from covid_lab.checkpoints import load_model
from covid_lab.external import two_exits
from covid_project.data import ImageFiles, open_dataset
from covid_project.evaluation import metrics_table
from covid_project.files import fingerprint, read_csv, whole_file, write_text
from covid_project.gradcam import grad_cam
from covid_project.models import (
    BACKBONES,
    build_backbone,
    logits,
    model_fingerprint,
    split_at,
    transfer_model,
)
from covid_project.settings import Settings, read_file, read_settings

TESTED = ("baseline", "fine_tuned")
TOP = "fine_tuned_top.keras"
TOLERANCE = 1e-4  # of metrics and scores: processors round differently


class NotKept(ValueError):
    """A model cannot be restored from the stored files; the message gives reason and remedy."""


def keep_top(results: Path) -> Path:
    """Store the layers of the fine-tuned model above the cut, and what they belong to.

    Parameters
    ----------
    results : Path
        Folder of a finished run. ``models/fine_tuned_top.keras`` is written to it, and
        ``models/fine_tuned_top.json`` with backbone, cut and fingerprints.

    Returns
    -------
    Path
        The model's part.
    """
    transfer = _settings(results).transfer
    cut = transfer.fine_tuning.frozen_up_to or BACKBONES[transfer.backbone].frozen_up_to
    model = load_model(results / "models" / "fine_tuned.keras")
    lower, upper = split_at(model, cut)
    record = {
        "backbone": transfer.backbone,
        "width": transfer.width,
        "weights": transfer.weights,
        "image_size": transfer.image_size,
        "dropout": model.get_layer("dropout").rate,
        "trainable": [layer.name for layer in model.layers if layer.trainable],
        "cut": cut,
        "below_the_cut": fingerprint(*lower.get_weights()),
        "model": model_fingerprint(model),
    }
    path = _top(results)
    with whole_file(path) as part:
        keras.Model(upper.input, upper.output, name="fine_tuned_top").save(part)
    write_text(path.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
    return path


def load_kept(results: Path, stage: str) -> tuple[keras.Model, str]:
    """Load a tested model, whole or its stored layers joined with the backbone.

    Parameters
    ----------
    results : Path
        Folder of the run.
    stage : {"baseline", "fine_tuned"}

    Returns
    -------
    model : keras.Model
    fingerprint : str
        As in the ledger of test evaluations.

    Raises
    ------
    NotKept
        The stage is not stored, or the backbone's weights are not those of the run.
    WeightsUnavailable
        The backbone's weights are neither in Keras' cache nor downloadable.
    """
    path, top = results / "models" / f"{stage}.keras", _top(results)
    if path.is_file():
        model = load_model(path)
        return model, model_fingerprint(model)
    if stage != "fine_tuned" or not top.is_file():
        raise NotKept(f"{path} is missing: run the notebooks, or fetch the kept models")
    record = json.loads(top.with_suffix(".json").read_text(encoding="utf-8"))
    name, size = record["backbone"], record["image_size"]
    backbone = build_backbone(name, size, width=record["width"], weights=record["weights"])
    model = transfer_model(backbone, dropout=record["dropout"])
    for layer in model.layers:
        layer.trainable = layer.name in record["trainable"]
    lower, upper = split_at(model, record["cut"])
    found = fingerprint(*lower.get_weights())
    if found != record["below_the_cut"]:
        raise NotKept(
            f"the {record['weights']} weights of {name} here ({found}) are not those that the kept "
            f"layers were trained on ({record['below_the_cut']}): put the run's file of weights "
            "into the folder models of your Keras cache, or run the notebooks"
        )
    upper.set_weights(load_model(top).get_weights())
    if model_fingerprint(model) != record["model"]:
        raise NotKept(f"{top} does not fit its record {top.with_suffix('.json').name}")
    return model, record["model"]


def open_model(path: Path) -> keras.Model:
    """Load a model; layers stored without others' weights are joined with them.

    Parameters
    ----------
    path : Path
        A ``.keras`` file: a whole model, or the stored layers of a fine-tuned one. Or the record,
        ``.json``, of a network with two exits (see `covid_lab.external.two_exits`).

    Returns
    -------
    keras.Model

    Raises
    ------
    NotKept, ModelRefused, WeightsUnavailable
        The message gives the reason.
    """
    path = Path(path)
    if path.suffix == ".json" and path.is_file():
        try:
            return two_exits.load(path)
        except (KeyError, ValueError) as error:
            raise NotKept(f"{path} cannot be loaded: {error}") from None
    if path.name == TOP and path.with_suffix(".json").is_file():
        return load_kept(path.parent.parent, "fine_tuned")[0]
    return load_model(path)


def verify(results: Path, data: Path) -> list[str]:
    """Score the stored models again, compare every figure of the test, and print what was compared.

    Nothing is written. A model that is not in the ledger of test evaluations is not scored.

    Parameters
    ----------
    results : Path
        Folder of a finished run with its models.
    data : Path
        The run's images.

    Returns
    -------
    list of str
        One line for each difference; empty where all figures agree within `TOLERANCE`.

    Raises
    ------
    NotKept
        A model is missing.
    DataError
        The data cannot be used.
    """
    settings = _settings(results)
    splits = results / "splits.csv"
    dataset = open_dataset(
        data,
        splits_file=splits if splits.is_file() else None,
        seed=settings.seed,
        allow_shared_files=settings.allow_shared_files,
    )
    record = json.loads((results / "run.json").read_text(encoding="utf-8"))
    if dataset.fingerprint != record["data"]:
        return [f"{data} is not the run's data: {dataset.fingerprint}, the run's {record['data']}"]
    ledger, metrics = read_csv(results / "test_ledger.csv"), read_csv(results / "metrics.csv")
    if ledger.empty or metrics.empty:
        return [f"{results} holds no test evaluation: run the notebooks first"]
    explained = read_csv(results / "gradcam.csv")
    rows = dataset.rows("test")
    table = dataset.table.iloc[rows]
    faults = []
    for stage in TESTED:
        model, identity = load_kept(results, stage)
        tested = ledger.loc[(ledger["stage"] == stage) & (ledger["data"] == record["data"])]
        if identity not in set(tested["model"]):
            faults.append(f"{stage}: the model {identity} is not the one in the ledger")
            continue
        images = ImageFiles(dataset, rows, model.input_shape[1])[:]
        scores = logits(model, images)
        again = metrics_table(table["label"], scores, seed=settings.seed)
        run = metrics[(metrics["stage"] == stage) & (metrics["split"] == "test")]
        found = [*_metrics(run, again)]
        compared = f"{len(run)} metrics"
        saved = read_csv(results / f"scores_{stage}_test.csv")
        found += _images(saved, table["path"], {"score": scores})
        if len(explained) and explained["stage"].iloc[0] == stage:
            maps = grad_cam(model, images)
            columns = {"score": maps.scores, "predicted": maps.target, "status": maps.status}
            found += [f"gradcam.csv: {line}" for line in _images(explained, table["path"], columns)]
            compared += ", Grad-CAM"
        print(f"{stage}: {len(rows)} test images, {compared}: {len(found)} differences")
        faults += [f"{stage}: {line}" for line in found]
    return faults


def _settings(results: Path) -> Settings:
    return read_settings(Settings, read_file(results / "settings.yaml"))


def _top(results: Path) -> Path:
    return Path(results) / "models" / TOP


def _metrics(run: pd.DataFrame, again: pd.DataFrame) -> Iterator[str]:
    """Compare the values and bounds of two tables of metrics."""
    both = run.set_index("metric").join(again.set_index("metric"), how="outer", rsuffix="_again")
    for name, row in both.iterrows():
        for column in ("value", "low", "high"):
            then, now = row[column], row[f"{column}_again"]
            if not np.isclose(then, now, rtol=0, atol=TOLERANCE, equal_nan=True):
                yield f"{name}, {column}: {then:.5f} in metrics.csv, {now:.5f} now"


def _images(saved: pd.DataFrame, paths: pd.Series, columns: dict[str, np.ndarray]) -> Iterator[str]:
    """Compare the columns of a table with one row per test image."""
    if saved["path"].tolist() != paths.tolist():
        yield "other images, or in another order"
        return
    for name, now in columns.items():
        then = saved[name].to_numpy()
        if name == "score":
            differs = ~np.isclose(then, now, rtol=TOLERANCE, atol=TOLERANCE)
        else:
            differs = then != now
        if differs.any():
            first = int(np.argmax(differs))
            yield (
                f"{name} of {differs.sum()} images, such as {paths.iloc[first]}: {then[first]}, "
                f"now {now[first]}"
            )
