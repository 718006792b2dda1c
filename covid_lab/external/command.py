"""``python -m covid_lab external``: final models on the images of another collection."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from covid_lab.audit.findings import as_table
from covid_lab.audit.model_shortcuts import audit_model
from covid_lab.datasets import described, open_dataset
from covid_lab.external import controls, figures
from covid_lab.external.adapted import both_sets, shift_of
from covid_lab.external.models import FinalModel, channels, enter, load_models, score_images
from covid_lab.external.page import write_page
from covid_lab.external.score import (
    called_positive,
    external_calibration,
    external_metrics,
    halves_control,
    score_quantiles,
)
from covid_lab.external.use import heat_on_lesions, marked_by_boxes, marked_by_masks, read_boxes
from covid_lab.reading.roots import stem_of
from covid_project.data import CLASSES, DataError, Dataset, ImageFiles
from covid_project.files import read_csv, versions, whole_file, write_csv, write_text

TEST = "test"
FOLDER = "external"  # of all external tests of a run, in its results; has the ledger


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to test: the options of the command, see its help."""

    models: tuple[Path, ...]
    data: Path
    split: str | None = None
    classes: tuple[str, str] = CLASSES
    table: Path | None = None
    columns: tuple[tuple[str, str], ...] = ()
    finding: str | None = None
    own: Path | None = None
    probe: Path | None = None
    lesions: Path | None = None
    out: Path | None = None
    seed: int = 0


def run(request: Request) -> Path:
    """Score the models on external images, and write tables, figures and the page.

    A split named test, and images without a split, are a test: each model is entered in the ledger
    of external test sets before it is scored.

    Parameters
    ----------
    request : Request
        Models, data and options.

    Returns
    -------
    Path
        Path of the page.

    Raises
    ------
    DataError
        Data, classes, split or models cannot be used.
    """
    dataset, split = _opened(request)
    models = load_models(list(request.models))
    stem = stem_of(request.data)
    out = request.out or _folder(request) / (stem if split in (TEST, "") else f"{stem}_{split}")
    rows = np.arange(len(dataset.table))
    labels = dataset.table["label"].to_numpy()
    counts = ", ".join(f"{(labels == k).sum()} {c}" for k, c in enumerate(dataset.classes))
    what = f"{request.data.name}, {split}" if split else request.data.name
    print(f"external images: {what}: {counts}", flush=True)
    probed = _probe(request.probe) if request.probe else {}
    boxes = read_boxes(request.data)
    tables: dict[str, list[pd.DataFrame]] = {}
    for tested in models:
        if split in (TEST, ""):
            enter(out.parent, tested, what, dataset.fingerprint, versions())
        scores = score_images(tested, dataset, rows)
        scored = dataset.table[["path", "label"]].assign(score=scores)
        write_csv(out / f"scores_{tested.name}.csv", scored)
        own, seed = tested.own, request.seed
        shift = shift_of(_given(request.models, tested.name))
        found = {
            "metrics": external_metrics(labels, scores, own, seed),
            "calibration": external_calibration(labels, scores, own, seed),
            "adapted": both_sets(labels, scores, own, shift=shift, seed=seed),
            "logits": _quantiles(labels, scores, own),
            "use": as_table(audit_model(tested.model, dataset, rows, seed=seed)),
            "heat": pd.DataFrame(_heat(tested, dataset, labels, boxes, request)),
            "probe": called_positive(
                {name: score_images(tested, data, at) for name, (data, at) in probed.items()}
            ),
        }
        if own is not None:
            found["controls"] = pd.DataFrame(
                [{"control": "one test set, two halves", **halves_control(own, seed=seed)}]
            )
        for name, table in found.items():
            if len(table):
                table.insert(0, "model", tested.name)
                tables.setdefault(name, []).append(table)
        if own is not None:
            print(f"{tested.name}: {found['adapted']['note'].iloc[0]}", flush=True)
        _draw(tested, dataset, scored, found["metrics"], out)
    if request.own:
        border = controls.border_control(request.own, dataset, request.seed)
        tables.setdefault("controls", []).append(border)
    leak = _leak(request.models)
    if len(leak):
        tables["leak"] = [leak]
    for name, parts in tables.items():
        write_csv(out / f"{name}.csv", pd.concat(parts, ignore_index=True))
    record = {
        "data": what,
        "fingerprint": dataset.fingerprint,
        "split": split,
        "models": {tested.name: tested.fingerprint for tested in models},
        "phantoms": dataset.is_phantom,
        "images": len(rows),
        "classes": list(dataset.classes),
        "seed": request.seed,
        "versions": versions(),
    }
    write_text(out / "external.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return write_page(out)


def _folder(request: Request) -> Path:
    """Folder of all external tests: in the results of the first run, or else in ``results``."""
    results = (path.parent for path in request.models if path.is_dir())
    return next(results, Path("results")) / FOLDER


def _opened(request: Request) -> tuple[Dataset, str]:
    """Open the images of one split; also return its name, "" without splits."""
    dataset = open_dataset(
        request.data,
        classes=None if request.finding else request.classes,
        as_found=True,
        table=request.table,
        columns=dict(request.columns),
        finding=request.finding,
    )
    print(described(dataset, request.data.name), flush=True)
    present = set(dataset.table["split"])
    split = request.split or (TEST if TEST in present else "" if present == {""} else None)
    if split is None or split not in present:
        there = ", ".join(sorted(name or "images without a split" for name in present))
        wanted = f"no split {split!r}" if split else "no split named test"
        raise DataError(f"{request.data} has {wanted}, but {there}: name one with --split")
    table = dataset.table[dataset.table["split"] == split].reset_index(drop=True)
    absent = [name for k, name in enumerate(dataset.classes) if k not in set(table["label"])]
    if absent:
        raise DataError(f"{request.data} has no images of {', '.join(absent)} in {split or 'it'}")
    return dataclasses.replace(dataset, table=table), split


def _probe(path: Path) -> dict[str, tuple[Dataset, np.ndarray]]:
    """Open images of people without COVID-19: rows by the name of their folder."""
    dataset = open_dataset(path, classes=None, as_found=True)
    labels = dataset.table["label"].to_numpy()
    return {
        f"{stem_of(path)}: {name}": (dataset, np.flatnonzero(labels == label))
        for label, name in enumerate(dataset.classes)
    }


def _leak(paths: tuple[Path, ...]) -> pd.DataFrame:
    """Return the views of the audit of the data that a run's models were trained on, if any."""
    for results in (path.parent for path in paths if path.is_dir()):
        record = results / "run.json"
        if not record.is_file():
            continue
        trained = json.loads(record.read_text(encoding="utf-8"))["data"]
        for audit in sorted(results.glob("audit/**/audit.json")):
            if json.loads(audit.read_text(encoding="utf-8"))["data"]["fingerprint"] == trained:
                return read_csv(audit.with_name("shortcuts.csv"))
    return pd.DataFrame()


def _given(paths: tuple[Path, ...], name: str) -> Path:
    """Return the file that a model was given as, or the folder of its run."""
    return next((path for path in paths if path.stem == name), paths[0])


def _quantiles(labels: np.ndarray, scores: np.ndarray, own: pd.DataFrame | None) -> pd.DataFrame:
    parts = [score_quantiles(labels, scores).assign(set="external")]
    if own is not None:
        parts.append(score_quantiles(own["label"], own["score"]).assign(set="own"))
    return pd.concat(parts, ignore_index=True)


def _heat(
    tested: FinalModel, dataset: Dataset, labels: np.ndarray, boxes: dict, request: Request
) -> Iterator[dict[str, object]]:
    """Yield how much heat is on marked opacities: drawn ones, and boxes of the external images."""
    if request.lesions:
        yield heat_on_lesions(tested, marked_by_masks(request.lesions, tested.side), request.seed)
    stems = [PurePosixPath(path).stem for path in dataset.table["path"]]
    rows = np.array(
        [k for k, stem in enumerate(stems) if labels[k] == 1 and stem in boxes], dtype=int
    )
    if len(rows):
        images = ImageFiles(dataset, rows, tested.side)[:]
        name = f"boxes of {request.data.name}"
        marked = marked_by_boxes(name, images, [boxes[stems[row]] for row in rows])
        yield heat_on_lesions(tested, marked, request.seed)


def _draw(
    tested: FinalModel, dataset: Dataset, scored: pd.DataFrame, metrics: pd.DataFrame, out: Path
) -> None:
    sets = {"external": (scored["label"].to_numpy(), scored["score"].to_numpy())}
    if tested.own is not None:
        own = tested.own["label"].to_numpy(), tested.own["score"].to_numpy()
        sets = {"own test set": own, **sets}
    drawn = {
        f"metrics_{tested.name}": figures.metrics(metrics),
        f"scores_{tested.name}": figures.score_distributions(sets),
    }
    labels, scores = sets["external"]
    rows = figures.worst_errors(labels, scores)
    images = channels(tested, ImageFiles(dataset, rows, tested.side)[:])
    drawn[f"images_errors_{tested.name}"] = figures.errors(
        tested.model, images, labels[rows], scores[rows]
    )
    for name, figure in drawn.items():
        if figure is None:
            continue
        for kind in ("pdf", "png"):
            with whole_file(out / "figures" / f"{name}.{kind}") as part:
                figure.savefig(part, format=kind, dpi=150, metadata=_undated(kind))
        plt.close(figure)


def _undated(kind: str) -> dict[str, None]:
    return {"CreationDate": None} if kind == "pdf" else {}
