"""The run of a study: its data, its results folder, and images stored on disk."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from covid_lab.datasets import load_images
from covid_lab.runs.settings import RunSettings, drawn_phantoms
from covid_lab.storage import filled_array
from covid_project.data import Dataset
from covid_project.files import write_text
from covid_project.models import model_fingerprint
from covid_project.results import Run
from covid_project.settings import as_yaml


class StudyRun(Run):
    """Settings, data and results folder of a study.

    Attributes
    ----------
    settings : RunSettings
        All else is as in `covid_project.results.Run`.
    """

    settings: RunSettings

    def identity(self, *parts: object) -> dict[str, object]:
        """Return what a result depends on, as `Run.identity` does.

        Parameters
        ----------
        *parts : object
            Groups of settings; those that all results of the study share are added.

        Returns
        -------
        dict of str to object
        """
        return super().identity(*self.settings.common, *parts)

    def images(self, image_size: int) -> np.ndarray:
        """Return all images, decoded once and then stored on disk.

        For what concerns all splits, such as copies or exposure; models get their images from
        `arrays` and `test_split`.

        Parameters
        ----------
        image_size : int
            Pixels along each side.

        Returns
        -------
        np.ndarray, uint8 (N, image_size, image_size, 1)
            In the order of the data set's table.
        """
        return filled_array(
            self.cache / f"images-{self.dataset.fingerprint}-{image_size}.npy",
            (len(self.dataset.table), image_size, image_size, 1),
            lambda images: load_images(self.dataset, image_size, into=images),
        )

    def _read(self, splits: tuple[str, ...], image_size: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.dataset.rows(*splits)
        return self.images(image_size)[rows], self.dataset.table["label"].to_numpy()[rows]

    def paths(self, split: str) -> pd.Series:
        """Return the paths of a split's images.

        Parameters
        ----------
        split : str
            "train", "val" or "test".

        Returns
        -------
        pd.Series of str, (N,)
            In the order of the split's arrays.
        """
        return self.dataset.table["path"].iloc[self.dataset.rows(split)].reset_index(drop=True)

    def test_rows(self, stage: str, model: keras.Model | str) -> np.ndarray:
        """Enter a test evaluation into the ledger, then return the rows of the test images.

        For images that the study prepares itself; other images come from `Run.test_split`.

        Parameters
        ----------
        stage : str
            Name of the tested model.
        model : keras.Model or str
            The final model, or its fingerprint.

        Returns
        -------
        np.ndarray, int64 (N,)
            Row numbers in the table of the data set.
        """
        self.enter_test(stage, model if isinstance(model, str) else model_fingerprint(model))
        return self.dataset.rows("test")


def begin[Kind: RunSettings](
    settings: Kind,
    open_data: Callable[[Path, Kind], Dataset],
    draw: Callable[[Kind], Path] | None = None,
) -> StudyRun:
    """Open the data of a study and its results folder, and print both.

    Parameters
    ----------
    settings : RunSettings
    open_data : callable
        Opens a folder or an archive, given its path and the settings, with the splits of the study.
    draw : callable, optional
        Draws data where none are given: settings → their folder. None: radiographs are drawn.

    Returns
    -------
    StudyRun

    Raises
    ------
    DataError
        The data cannot be used, or the results folder belongs to other data.
    """
    if settings.data is None:
        drawn = draw(settings) if draw else drawn_phantoms(settings.phantoms, settings.seed)
        settings = dataclasses.replace(settings, data=str(drawn))
    run = StudyRun(settings, open_data(Path(settings.data), settings))
    if settings.other_data:  # only names are stored: paths differ between machines
        paths = {name: getattr(settings, name) for name in ("data", *settings.other_data)}
        names = {name: path and Path(path).name for name, path in paths.items()}
        kept = dataclasses.replace(settings, results=run.folder.name, **names)
        write_text(run.folder / "settings.yaml", as_yaml(kept))
    return run
