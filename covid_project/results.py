"""One run: its data, its results folder, and the only way to the test images.

A results folder belongs to one data set. Tables, figures and models in it are written whole or not
at all; what is finished is loaded when a notebook runs again.
"""

import dataclasses
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import covid_project.normalization  # noqa: F401  Keras knows our layer when it loads a model
from covid_project.data import DataError, Dataset, ImageFiles, open_dataset
from covid_project.evaluation import metrics_table
from covid_project.files import (
    append_rows,
    figure_stamp,
    fingerprint,
    read_csv,
    versions,
    whole_file,
    write_csv,
    write_text,
)
from covid_project.models import model_fingerprint
from covid_project.settings import Settings, as_yaml

LEDGER = "test_ledger.csv"
SHEET_PYTHON = (3, 12)


class MissingInput(RuntimeError):
    """An earlier notebook has to be run first; the message names it."""


def open_run(settings: Settings) -> "Run":
    """Open the data and the results folder of a run, and print both.

    Where the results folder holds the tables of a finished run without all its models, as a hand-in
    does, the run takes the folder of the same name with ``_rerun``: the tables stay as they are.

    Parameters
    ----------
    settings : Settings

    Returns
    -------
    Run

    Raises
    ------
    DataError
        The data cannot be used, or the results folder belongs to other data.

    Examples
    --------
    >>> from covid_project.settings import load_settings
    >>> run = open_run(load_settings(data="covid_xray.zip", results="example"))
    data: covid_xray.zip: train 24, val 12, test 12 images
    results: example
    """
    if sys.version_info[:2] != SHEET_PYTHON:
        print(f"WARNING: this is Python {platform.python_version()}; the task sheet asks for 3.12.")
    folder = Path(settings.results)
    # The models of the searches are neither handed in nor kept.
    if (folder / "metrics.csv").is_file() and not any(folder.glob("models/*_tuned.keras")):
        print(f"{folder.name} holds the tables of a finished run without all its models; kept.")
        folder = folder.with_name(f"{folder.name}_rerun")
    dataset = open_dataset(
        settings.data,
        splits_file=folder / "splits.csv",
        seed=settings.seed,
        allow_shared_files=settings.allow_shared_files,
    )
    return Run(dataclasses.replace(settings, results=str(folder)), dataset)


class Run:
    """Settings, data and results folder of one run.

    Parameters
    ----------
    settings : Settings
    dataset : Dataset

    Attributes
    ----------
    folder : Path
        The results: tables, ``figures``, ``models``.
    cache : Path
        Arrays that can be computed again; may be deleted.
    """

    def __init__(self, settings: Settings, dataset: Dataset):
        self.settings, self.dataset, self.folder = settings, dataset, Path(settings.results)
        self.cache = self.folder / "cache"
        self._claim_folder()
        table = dataset.table
        counts = ", ".join(f"{k} {n}" for k, n in table.groupby("split", sort=False).size().items())
        others = f"; {dataset.left_out} other image files left out" if dataset.left_out else ""
        drawn = " (drawn images, not of patients)" if dataset.is_phantom else ""
        print(f"data: {Path(settings.data).name}{drawn}: {counts} images{others}")
        print(f"results: {self.folder.name}")  # without paths of this machine

    def _claim_folder(self) -> None:
        record, found = self.folder / "run.json", self.dataset.fingerprint
        if record.is_file():
            try:
                found = json.loads(record.read_text(encoding="utf-8"))["data"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{record} does not say which data the results belong to ({error}): restore "
                    "it, or choose another results folder"
                ) from None
        if found != self.dataset.fingerprint:
            raise DataError(
                f"{self.folder} holds results of other data ({found}); these data are "
                f"{self.dataset.fingerprint}. Choose another results folder in the settings cell"
            )
        settings = dataclasses.replace(
            self.settings, data=Path(self.settings.data).name, results=self.folder.name
        )
        run = {
            "data": self.dataset.fingerprint,
            "source": settings.data,
            "phantoms": self.dataset.is_phantom,
            "seed": settings.seed,
            "versions": versions(),
            "machine": f"{platform.machine()}, {platform.system()}",
        }
        write_text(record, json.dumps(run, indent=2) + "\n")
        write_text(self.folder / "settings.yaml", as_yaml(settings))

    def files(self, split: str, image_size: int) -> tuple[ImageFiles, np.ndarray]:
        """List the images of a split without reading them.

        Parameters
        ----------
        split : str
            "train" or "val".
        image_size : int
            Pixels along each side.

        Returns
        -------
        files : ImageFiles, uint8 (N, image_size, image_size, 1)
            Decoded when they are read.
        labels : np.ndarray, int64 (N,)
        """
        return self._learned_from((split,), image_size)

    def arrays(self, *splits: str, image_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the images of splits.

        Parameters
        ----------
        *splits : str
            "train", "val" or both.
        image_size : int
            Pixels along each side.

        Returns
        -------
        images : np.ndarray, uint8 (N, image_size, image_size, 1)
        labels : np.ndarray, int64 (N,)
        """
        files, labels = self._learned_from(splits, image_size)
        return files[:], labels

    def _learned_from(self, splits: tuple[str, ...], image_size: int):
        if "test" in splits:
            raise DataError("test images come from run.test_split(stage, model, image_size) only")
        return self._read(splits, image_size)

    def _read(self, splits: tuple[str, ...], image_size: int):
        rows = self.dataset.rows(*splits)
        labels = self.dataset.table["label"].to_numpy()[rows]
        return ImageFiles(self.dataset, rows, image_size), labels

    def test_split(
        self, stage: str, model: keras.Model | None, image_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Enter a test evaluation into ``test_ledger.csv``, then read the test images.

        The same model on the same data is a repetition and adds no row. Another model of the same
        stage is a further evaluation, which the ledger shows to everybody.

        Parameters
        ----------
        stage : str
            "exploration", "baseline" or "fine_tuned".
        model : keras.Model or None
            The final model that is tested; None where images are only described.
        image_size : int
            Pixels along each side.

        Returns
        -------
        images : np.ndarray, uint8 (N, image_size, image_size, 1)
        labels : np.ndarray, int64 (N,)
        """
        self.enter_test(stage, "none" if model is None else model_fingerprint(model))
        files, labels = self._read(("test",), image_size)
        return files[:], labels

    def enter_test(self, stage: str, model: str) -> int:
        """Enter a model's fingerprint into the ledger.

        Parameters
        ----------
        stage : str
        model : str
            From `models.model_fingerprint`.

        Returns
        -------
        int
            Number of the entry among those of its stage, from 1.
        """
        path = self.folder / LEDGER
        ledger = read_csv(path)
        ours = ledger[ledger["stage"] == stage] if len(ledger) else ledger
        for row in ours.itertuples():
            if (row.model, row.data) == (model, self.dataset.fingerprint):
                return int(row.look)
        look = len(ours) + 1
        entry = {"stage": stage, "look": look, "model": model, **self.identity()}
        append_rows(path, pd.DataFrame([entry]))
        if look > 1:
            print(
                f"WARNING: test evaluation number {look} of the stage {stage}. Its test figures no "
                "longer come from a single evaluation; the ledger keeps all of them."
            )
        return look

    def identity(self, *parts: object) -> dict[str, object]:
        """Describe what a result depends on.

        Parameters
        ----------
        *parts : object
            The settings that the result depends on, and no others.

        Returns
        -------
        dict
            Fingerprint of the data, seed, fingerprint of the settings, versions of the packages.
        """
        plain = [dataclasses.asdict(p) if dataclasses.is_dataclass(p) else p for p in parts]
        return {
            "data": self.dataset.fingerprint,
            "seed": self.settings.seed,
            "settings": fingerprint(*(json.dumps(p, sort_keys=True, default=str) for p in plain)),
            "versions": versions(),
        }

    def save_table(self, name: str, table: pd.DataFrame, *parts: object) -> None:
        """Write ``<name>.csv`` with the `identity` in every row.

        Parameters
        ----------
        name : str
        table : pd.DataFrame
        *parts : object
            As for `identity`.
        """
        write_csv(self.folder / f"{name}.csv", table.assign(**self.identity(*parts)))

    def table(self, name: str, notebook: str) -> pd.DataFrame:
        """Read ``<name>.csv``.

        Parameters
        ----------
        name : str
        notebook : str
            The notebook that writes the table, for the message.

        Returns
        -------
        pd.DataFrame

        Raises
        ------
        MissingInput
            No such table.
        """
        path = self.folder / f"{name}.csv"
        if not path.is_file():
            raise MissingInput(f"{path} is missing: run {notebook} first, with the same settings")
        return read_csv(path)

    def record_metrics(
        self, stage: str, split: str, scores: np.ndarray, **source: object
    ) -> pd.DataFrame:
        """Save the scores of a split and the metrics that follow from them.

        The scores are written to ``scores_<stage>_<split>.csv``. In ``metrics.csv``, the metrics
        replace earlier rows of this stage and split.

        Parameters
        ----------
        stage, split : str
        scores : np.ndarray, (N,), logits
            In the order of the split's images.
        **source : object
            Further columns, such as backbone and weights.

        Returns
        -------
        pd.DataFrame
            As `evaluation.metrics_table`, with stage, split and the identity.

        Raises
        ------
        RuntimeError
            A test evaluation that is not in the ledger.
        """
        if split == "test":
            ledger = read_csv(self.folder / LEDGER)
            looks = ledger.loc[ledger["stage"] == stage, "look"] if len(ledger) else ledger
            if looks.empty:
                raise RuntimeError(f"{stage}: call run.test_split before its scores are recorded")
            source["look"] = int(looks.max())
        rows = self.dataset.table.iloc[self.dataset.rows(split)]
        scored = rows[["path", "label"]].assign(score=scores)
        write_csv(self.folder / f"scores_{stage}_{split}.csv", scored)
        metrics = metrics_table(scored["label"], scored["score"], seed=self.settings.seed)
        return self.keep_metrics(stage, split, metrics, **source)

    def keep_metrics(
        self, stage: str, split: str, metrics: pd.DataFrame, **source: object
    ) -> pd.DataFrame:
        """Write a table of metrics into ``metrics.csv``, in place of earlier rows.

        Parameters
        ----------
        stage, split : str
        metrics : pd.DataFrame
            From `evaluation.metrics_table`.
        **source : object
            Further columns.

        Returns
        -------
        pd.DataFrame
            With the columns that were added.
        """
        metrics = metrics.assign(**self.identity(), **source)
        metrics.insert(0, "stage", stage)
        metrics.insert(1, "split", split)
        path = self.folder / "metrics.csv"
        found = read_csv(path)
        groups = dict(list(found.groupby(["stage", "split"], sort=False))) if len(found) else {}
        groups[stage, split] = metrics
        write_csv(path, pd.concat(groups.values(), ignore_index=True))
        return metrics

    def scores(self, stage: str, split: str, notebook: str) -> np.ndarray:
        """Read the scores of a stage and split.

        Parameters
        ----------
        stage, split : str
        notebook : str
            As for `table`.

        Returns
        -------
        np.ndarray, float64 (N,), logits
        """
        return self.table(f"scores_{stage}_{split}", notebook)["score"].to_numpy()

    def save_model(
        self, stage: str, model: keras.Model, history: pd.DataFrame, recipe: Mapping
    ) -> None:
        """Write ``models/<stage>.keras``, ``history_<stage>.csv`` and, last, the recipe.

        Parameters
        ----------
        stage : str
        model : keras.Model
            Saved without its optimiser.
        history : pd.DataFrame
            From `training.TrainingLog`.
        recipe : mapping
            What the model depends on: `identity`, hyperparameters, epochs.
        """
        path = self.model_path(stage)
        path.with_suffix(".json").unlink(missing_ok=True)  # until model and history are whole again
        with whole_file(path) as part:
            keras.Model(model.input, model.output, name=model.name).save(part)
        write_csv(self.folder / f"history_{stage}.csv", history)
        write_text(path.with_suffix(".json"), json.dumps(dict(recipe), default=str, indent=2))

    def has_model(self, stage: str, recipe: Mapping | None = None) -> bool:
        """Tell whether a stage's model is finished and was made by this recipe.

        Parameters
        ----------
        stage : str
        recipe : mapping, optional
            As for `save_model`; by default any. The versions of the packages are not compared: a
            run may continue after an update.

        Returns
        -------
        bool
        """
        path = self.model_path(stage)
        record = path.with_suffix(".json")
        if not (path.is_file() and record.is_file()):
            return False
        if recipe is None:
            return True
        wanted = json.loads(json.dumps(dict(recipe), default=str)) | {"versions": None}
        return json.loads(record.read_text("utf-8")) | {"versions": None} == wanted

    def load_model(self, stage: str, notebook: str) -> keras.Model:
        """Load a stage's finished model.

        Parameters
        ----------
        stage : str
        notebook : str
            The notebook that trains the model, for the message.

        Returns
        -------
        keras.Model

        Raises
        ------
        MissingInput
            No such model.
        """
        if not self.has_model(stage):
            raise MissingInput(
                f"{self.model_path(stage)} is missing: run {notebook} first, with the same settings"
            )
        return keras.saving.load_model(self.model_path(stage), compile=False)

    def load_history(self, stage: str) -> pd.DataFrame:
        """Read the training history of a stage.

        Parameters
        ----------
        stage : str

        Returns
        -------
        pd.DataFrame
            From `training.TrainingLog`.
        """
        return read_csv(self.folder / f"history_{stage}.csv")

    def model_path(self, stage: str) -> Path:
        """Name the file of a stage's model.

        Parameters
        ----------
        stage : str

        Returns
        -------
        Path
            ``models/<stage>.keras`` in the results folder.
        """
        return self.folder / "models" / f"{stage}.keras"

    def save_figure(self, figure: plt.Figure, name: str, *tables: str, note: str = "") -> None:
        """Write ``figures/<name>.pdf``, with a note below the figure where images are drawn.

        Parameters
        ----------
        figure : plt.Figure
        name : str
            Begins with ``images_`` if the figure shows images of the data set.
        *tables : str
            Tables of the results folder that the figure shows, such as "metrics.csv"; their
            fingerprints are stored in the file, so that an outdated figure can be detected.
        note : str
            A warning to print below the figure, such as that weights are random.
        """
        drawn = "drawn images (phantoms), a test of the software" if self.dataset.is_phantom else ""
        notes = [text for text in (drawn, note) if text]
        if notes:
            # Below: a legend outside the axes moves up with whatever is above the figure.
            figure.text(0.5, -0.03, "\n".join(notes), ha="center", va="top", fontsize=8)
        stamp = figure_stamp(self.folder, self.dataset.fingerprint, tables)
        metadata = {"CreationDate": None, "Keywords": stamp}  # the same figure is the same file
        path = self.folder / "figures" / f"{name}.pdf"
        with whole_file(path) as part, plt.rc_context({"pdf.fonttype": 42}):
            figure.savefig(part, bbox_inches="tight" if notes else None, metadata=metadata)
