"""What every notebook starts with: the data and the results folder of one run, and its record.

``results/`` belongs to one data set: ``run.json`` says which, and another one is refused.
Nothing here needs TensorFlow.
"""

import dataclasses
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from covid_project import data
from covid_project.evaluation import metrics_table, record_test_look
from covid_project.lock import refuse_others
from covid_project.settings import RunSettings, Settings, as_yaml
from covid_project.storage import (
    IN_MEMORY,
    filled_array,
    fingerprint,
    origin,
    read_csv,
    whole_file,
    write_csv,
    write_text,
)

CACHE = Path(".cache")  # arrays and features; safe to delete
VERSIONS = "; ".join(
    [f"python {platform.python_version()}"]
    + [f"{name} {version(name)}" for name in ("tensorflow", "keras", "numpy", "scikit-learn")]
)


class MissingInput(RuntimeError):
    """An earlier notebook has to be run first; the message names it."""


@dataclass(frozen=True)
class Experiment:
    """Settings, data set and results folder of one run."""

    settings: RunSettings
    dataset: data.Dataset
    results: Path
    cache: Path

    @property
    def notes(self) -> list[str]:
        """What must be said on everything made from this data."""
        return (
            ["phantoms: drawn images, a test of the machinery"] if self.dataset.is_phantom else []
        )

    def images(self, image_size: int) -> np.ndarray:
        """All images, uint8 (N, image_size, image_size, 1), in the order of the table."""
        return filled_array(
            self.cache / f"images-{image_size}.npy",
            (len(self.dataset.table), image_size, image_size, 1),
            lambda images: data.load_images(self.dataset, image_size, into=images),
        )

    def arrays(self, *splits: str, image_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (N, image_size, image_size, 1) and labels (N,) of one or more splits.

        In memory, or, where they are more than ``storage.IN_MEMORY``, mapped from disk.
        """
        table = self.dataset.table
        rows = np.flatnonzero(table["split"].isin(splits))
        images, labels = self.images(image_size), table["label"].to_numpy()[rows]
        if len(rows) * images[0].nbytes <= IN_MEMORY:
            return images[rows], labels

        def copy(chosen: np.ndarray) -> None:
            for place, row in enumerate(rows):
                chosen[place] = images[row]

        name = f"images-{image_size}-{fingerprint(rows)}.npy"
        return filled_array(self.cache / name, (len(rows), *images.shape[1:]), copy), labels

    def paths(self, split: str) -> pd.Series:
        """Paths of a split's images, in the order of its arrays."""
        table = self.dataset.table
        return table["path"][table["split"] == split].reset_index(drop=True)

    def identity(self, *parts: object) -> dict[str, object]:
        """What makes a result comparable: data, seed, versions, and a fingerprint of the settings.

        ``parts`` are the groups of settings that the result depends on beside the common ones.
        """
        common = (*self.settings.common, *parts)
        drawn = "phantoms-" if self.dataset.is_phantom else ""
        return {
            "data": drawn + self.dataset.fingerprint,
            "seed": self.settings.seed,
            "settings": fingerprint(*(_as_json(part) for part in common)),
            "versions": VERSIONS,
        }

    def table(self, name: str, notebook: str) -> pd.DataFrame:
        """Return a CSV of the results folder, or ``MissingInput`` naming its notebook."""
        if not (self.results / name).is_file():
            raise MissingInput(
                f"{self.results / name} is missing: run {notebook} first, with the same settings"
            )
        return read_csv(self.results / name)

    def evaluate_on_test(
        self, stage: str, model: str, scores: np.ndarray, source: Mapping[str, object]
    ) -> pd.DataFrame:
        """Metrics of a final model on the test split, entered into the ledger.

        Writes the score of each image to ``scores_<stage>_test.csv`` and the metrics derived from
        it to ``metrics.csv``.

        Parameters
        ----------
        model
            Fingerprint of the model, from ``models.model_fingerprint``.
        scores
            Logits (N,) of the test images in the order of ``arrays("test")``.
        source
            Where the weights came from: backbone and weights.
        """
        look = record_test_look(
            self.results / "test_ledger.csv",
            stage,
            {"model": model, **self.identity(), **source},
        )
        return self.record_metrics(stage, "test", scores, {**source, "look": look})

    def record_metrics(
        self, stage: str, split: str, scores: np.ndarray, source: Mapping[str, object]
    ) -> pd.DataFrame:
        """Save the scores of a split and the metrics derived from them; return these."""
        rows = self.dataset.table[self.dataset.table["split"] == split]
        scored = rows[["path", "label"]].assign(score=scores)
        write_csv(self.results / f"scores_{stage}_{split}.csv", scored)
        metrics = metrics_table(scored["label"], scored["score"], seed=self.settings.seed)
        return self.keep_metrics(stage, split, metrics, source)

    def keep_metrics(
        self, stage: str, split: str, metrics: pd.DataFrame, source: Mapping[str, object]
    ) -> pd.DataFrame:
        """Write metrics of a stage and split to ``metrics.csv``; return them as they stand there.

        They take the place of earlier ones of that stage and split, so that a replay changes
        nothing.
        """
        metrics = metrics.assign(**{**self.identity(), **source})
        metrics.insert(0, "stage", stage)
        metrics.insert(1, "split", split)
        path = self.results / "metrics.csv"
        found = read_csv(path)
        groups = dict(list(found.groupby(["stage", "split"], sort=False))) if len(found) else {}
        groups[stage, split] = metrics
        write_csv(path, pd.concat(groups.values(), ignore_index=True))
        return metrics

    def save_figure(
        self, figure: plt.Figure, name: str, *notes: str, made_from: Sequence[str] = ()
    ) -> None:
        """Write ``figures/<name>.pdf``; notes and the phantoms' own say on it what it is.

        Names that begin with ``images_`` show pixels of the data set and never enter the
        repository. The fingerprints of the data and of the tables that the figure was made from
        (``made_from``, names in the results folder) go into the file, so that a stale figure can
        be told.
        """
        notes = [*self.notes, *notes]
        if notes:
            lines = "\n".join(notes)  # one below the other: a narrow figure has room for one
            figure.text(0.5, 1.01, lines, ha="center", va="bottom", fontsize=8, weight="bold")
        prefix = "phantom_" if self.dataset.is_phantom else ""
        path = self.results / "figures" / f"{name}.pdf"
        stamp = origin(self.results, self.identity()["data"], made_from)
        with whole_file(path.with_name(prefix + path.name)) as part:
            # At its own size, so that its text is as large as it says; no date inside, so that the
            # same figure is the same file.
            figure.savefig(
                part,
                bbox_inches="tight" if notes else None,
                metadata={"CreationDate": None, "Keywords": stamp},
            )


def open_course(source: Path, settings: Settings) -> data.Dataset:
    """The data of the four tasks; where they come without a split, it is dealt once."""
    return data.open_dataset(
        source,
        splits_file=Path(settings.results) / "splits.csv",
        seed=settings.seed,
        allow_shared_files=settings.allow_shared_files,
    )


def begin[Kind: RunSettings](
    settings: Kind,
    open_data: Callable[[Path, Kind], data.Dataset] = open_course,
    draw: Callable[[Kind], Path] | None = None,
) -> Experiment:
    """Open the data, claim the results folder, and report both.

    Parameters
    ----------
    open_data
        Opens a folder or an archive, with the splits that the run uses; a study has its own.
    draw
        Draws what stands in where no data are given, and gives its folder; None: radiographs.

    Raises
    ------
    data.DataError
        The data cannot be used, or the results folder belongs to other data.
    lock.FolderInUse
        Another run is at work in the results folder.
    """
    refuse_others(Path(settings.results))
    if settings.hardware:
        from covid_project.devices import use  # TensorFlow, which many runs can do without

        use(**settings.hardware)
    source = (draw or _drawn)(settings) if settings.data is None else Path(settings.data)
    results = Path(settings.results)
    dataset = open_data(source, settings)
    record = results / "run.json"
    if record.is_file():
        found = _record(record)
        if found["data"] != dataset.fingerprint:
            raise data.DataError(
                f"{results} holds results of other data ({found['source']}, {found['data']}); this "
                f"is {Path(source).name}, {dataset.fingerprint}: choose another results folder"
            )
    run = {
        "data": dataset.fingerprint,
        "source": "phantoms" if dataset.is_phantom else Path(source).name,
        "seed": settings.seed,
        "versions": VERSIONS,
        "machine": f"{platform.machine()}, {platform.system()}",
    }
    write_text(record, json.dumps(run, indent=2) + "\n")
    write_text(
        results / "settings.yaml",
        as_yaml(
            dataclasses.replace(
                settings,
                data=settings.data and Path(settings.data).name,
                results=results.name,
            )
        ),
    )
    counts = dataset.table.groupby("split", sort=False).size()
    print(f"data: {run['source']} ({', '.join(f'{k} {v}' for k, v in counts.items())} images)")
    print(f"results: {results}")
    return Experiment(settings, dataset, results, CACHE / f"data-{dataset.fingerprint}")


def _record(path: Path) -> dict[str, str]:
    """What ``run.json`` says of the data that the results folder belongs to."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: found[key] for key in ("data", "source")}
    except (ValueError, KeyError, TypeError) as error:
        raise data.DataError(
            f"{path} does not say what data the results belong to ({type(error).__name__}: "
            f"{error}): restore it, or choose another results folder"
        ) from None


def _drawn(settings: RunSettings) -> Path:
    """Folder of the phantoms that stand in for data, drawn where they are missing."""
    phantoms = _phantoms()
    counts = {split: getattr(settings.phantoms, split) for split in data.SPLITS}
    size = settings.phantoms.size
    drawn = {"drawing": phantoms.DRAWING, "size": size, "seed": settings.seed, **counts}
    return phantoms.write_dataset(
        CACHE / f"phantoms-{fingerprint(drawn)}", counts, size, settings.seed
    )


def _phantoms():
    """The module that draws; a hand-in comes without it."""
    try:
        from covid_project import phantoms
    except ImportError:
        raise data.DataError(
            "this package does not draw images: name the data, with --data PATH or in the settings "
            "cell, load_settings(data=PATH)"
        ) from None
    return phantoms


def _as_json(part: object) -> str:
    plain = dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part
    return json.dumps(plain, sort_keys=True, default=str)
