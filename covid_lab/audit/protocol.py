"""Did a run follow the protocol? Judged from the files in its results folder.

Every rule is a function of the folder, and of the data where these are available, and leads to one
finding. A rule whose files are missing is "not applicable", never "pass".
"""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from covid_lab.audit.findings import Finding
from covid_lab.datasets import load_images, without
from covid_project.data import SPLITS, Dataset
from covid_project.evaluation import metrics_table
from covid_project.files import read_csv
from covid_project.settings import Axis, Settings, SettingsError, read_file, read_settings

# Final models, trained on training and validation data, and the search that fixed their epochs.
SEARCHES = {"baseline": "baseline", "transfer": "transfer", "fine_tuned": "transfer"}
OF_TRAINING = ("learning_rate", "batch_size")  # hyperparameters that do not shape a model
AREA = "protocol"
FLOOR = 1.0  # grey level; smaller standard deviations count as this (see ``normalization``)


class _NotApplicable(Exception):
    """The rule cannot be judged; the message says why."""


def audit_protocol(results: Path, dataset: Dataset | None = None) -> list[Finding]:
    """Judge a finished run by every rule.

    Parameters
    ----------
    results : Path
        Results folder of ``python -m covid_lab run``.
    dataset : Dataset, optional
        The run's data as they are now, opened with ``splits.csv`` of the results folder. None: the
        rules that need the data are not applicable.

    Returns
    -------
    list of Finding
        One per rule, of the area "protocol".

    Examples
    --------
    >>> findings = audit_protocol(Path("covid_xray"))
    >>> findings[0].verdict  # no run in this folder
    'not applicable'
    """
    findings = []
    for check, rule in {**RULES, **DATA_RULES}.items():
        try:
            if check in DATA_RULES and dataset is None:
                raise _NotApplicable("the data are needed for it (--data)")
            known = (dataset,) if check in DATA_RULES else ()
            breaches, otherwise = rule(Path(results), *known)
        except _NotApplicable as reason:
            findings.append(Finding(AREA, check, "not applicable", str(reason)))
            continue
        verdict = "fail" if breaches else "pass"
        findings.append(Finding(AREA, check, verdict, "; ".join(breaches) or otherwise))
    return findings


# Each rule returns its breaches, and the sentence for the finding where there are none.
Judgement = tuple[list[str], str]


def _one_look_per_stage(results: Path) -> Judgement:
    ledger = _table(results, "test_ledger.csv")
    looks = ledger.groupby("stage", sort=False)["look"].max()
    breaches = [
        f"the test set was read {count} times for {stage}"
        for stage, count in looks.items()
        if count > 1
    ]
    return breaches, f"one evaluation each for {', '.join(looks.index)}"


def _every_tested_stage_is_in_the_ledger(results: Path) -> Judgement:
    ledger, metrics = _table(results, "test_ledger.csv"), _table(results, "metrics.csv")
    tested = metrics.loc[metrics["split"] == "test", "stage"].unique()
    missing = sorted(set(tested) - set(ledger["stage"]))
    return [f"{stage} has test metrics and no entry" for stage in missing], "all are entered"


def _best_values_inside_their_ranges(results: Path) -> Judgement:
    breaches, inside = [], 0
    for name, axes in _axes(_settings(results)).items():
        path = results / f"tuning_{name}.csv"
        if not path.is_file():
            continue
        trials = read_csv(path)
        trials = trials[np.isfinite(trials["val_loss"])]
        if trials.empty:
            continue
        best = trials.loc[trials["val_loss"].idxmin()]
        for key, axis in axes.items():
            inside += 1
            for side, edge in ((-1, read_csv(path)[key].min()), (1, read_csv(path)[key].max())):
                if best[key] == edge and axis.low <= _next(axis, edge, side) <= axis.high:
                    breaches.append(
                        f"{name}: the best {key.replace('_', ' ')}, {best[key]:g}, is at the edge "
                        f"of the values tried; {_next(axis, edge, side):g} was not tried"
                    )
    if not inside:
        raise _NotApplicable("no tuning tables")
    return breaches, f"{inside} best values are inside the range tried, or at a stated limit"


def _next(axis: Axis, edge: float, side: int) -> float:
    return edge * axis.times**side if axis.times else edge + side * axis.plus


def _a_new_model_for_every_trial(results: Path) -> Judgement:
    breaches, count = [], 0
    for path in sorted(results.glob("tuning_*.csv")):
        trials = read_csv(path)
        trials = trials[np.isfinite(trials["val_loss"])]
        if "initial_model" not in trials:
            breaches.append(f"{path.name} does not record the initial weights of its trials")
            continue
        # The initial weights depend on what shapes the model, not on how it is trained.
        shape = [name for name in _hyperparameters(trials) if name not in OF_TRAINING]
        groups = trials.groupby(shape) if shape else [("", trials)]
        for _, group in groups:
            count += len(group)
            if len(set(group["initial_model"])) > 1:
                numbers = ", ".join(str(number) for number in group["trial"])
                breaches.append(f"{path.name}: trials {numbers} did not start from equal weights")
    if not count and not breaches:
        raise _NotApplicable("no tuning tables")
    return breaches, f"{count} trials, each from the fresh weights of its seed"


def _hyperparameters(trials: pd.DataFrame) -> list[str]:
    """Columns of the hyperparameters: those between the trial's number and its results."""
    columns = list(trials)
    end = min(columns.index(name) for name in ("best_epoch", "val_loss") if name in columns)
    return columns[columns.index("trial") + 1 : end]


def _final_fits_are_as_long_as_found_and_without_early_stopping(results: Path) -> Judgement:
    breaches, lengths = [], []
    for stage, name in SEARCHES.items():
        path = results / f"history_{stage}.csv"
        if not path.is_file() or not (results / f"tuning_{name}.csv").is_file():
            continue
        history, trials = read_csv(path), read_csv(results / f"tuning_{name}.csv")
        expected = int(trials.loc[trials["val_loss"].idxmin(), "best_epoch"])
        lengths.append(f"{stage} {len(history)}")
        if len(history) != expected:
            breaches.append(f"{stage} was trained for {len(history)} epochs, not {expected}")
        watched = [column for column in history if column.startswith("val_")]
        if watched:
            breaches.append(f"{stage} monitored {watched[0]}: validation images were held out")
    if not lengths:
        raise _NotApplicable("no final trainings")
    return breaches, f"epochs: {', '.join(lengths)}, none with a validation set to stop by"


def _one_data_set_throughout(results: Path) -> Judgement:
    tables = sorted(results.glob("*.csv"))
    found = {}
    for path in tables:
        table = read_csv(path)
        for fingerprint in table["data"].dropna().unique() if "data" in table else ():
            found.setdefault(str(fingerprint), []).append(path.name)
    if not found:
        raise _NotApplicable("no table names its data")
    if len(found) > 1:
        listed = "; ".join(f"{key}: {', '.join(names)}" for key, names in found.items())
        return [f"the tables come from {len(found)} data sets or splits ({listed})"], ""
    (fingerprint,) = found
    return [], f"{len(tables)} tables, all of the data and splits {fingerprint}"


def _provenance_is_recorded(results: Path) -> Judgement:
    metrics = _table(results, "metrics.csv")
    needed = ("seed", "versions", "backbone", "weights", "data", "settings")
    breaches = [
        f"metrics.csv has no {name}" if name not in metrics else f"{name} is missing in metrics.csv"
        for name in needed
        if name not in metrics or metrics[name].isna().any()
    ]
    return breaches, f"every row of metrics.csv has {', '.join(needed)}"


def _metrics_follow_from_the_scores(results: Path) -> Judgement:
    metrics = _table(results, "metrics.csv")
    if "seed" not in metrics:
        raise _NotApplicable("without the seed, the intervals cannot be recomputed")
    breaches, checked, unknown = [], 0, set()
    for (stage, split), saved in metrics.groupby(["stage", "split"], sort=False):
        path = results / f"scores_{stage}_{split}.csv"
        if not path.is_file():
            breaches.append(f"{path.name} is missing")
            continue
        scores = read_csv(path)
        again = metrics_table(scores["label"], scores["score"], seed=int(saved["seed"].iloc[0]))
        known = saved["metric"].isin(again["metric"])  # a metric may have been added or removed
        unknown |= set(saved["metric"][~known])
        found = saved[known].set_index("metric")[["value", "low", "high", "n"]].astype(float)
        wanted = again.set_index("metric").loc[found.index, found.columns].astype(float)
        same = np.isclose(found, wanted, rtol=1e-9, equal_nan=True).all(axis=1)
        checked += len(found)
        breaches += [
            f"{stage}, {split}: {name} is not what the scores give" for name in found.index[~same]
        ]
    left = f"; {', '.join(sorted(unknown))}: not known here, not computed" if unknown else ""
    return breaches, f"{checked} figures recomputed from the saved scores, all equal{left}"


def _test_and_validation_agree(results: Path) -> Judgement:
    """A test result far from the validation result is probably a bug (the exercise sheet)."""
    metrics = _table(results, "metrics.csv")
    accuracy = metrics[metrics["metric"] == "accuracy"].set_index(["stage", "split"])
    stages = [
        stage
        for stage in accuracy.index.get_level_values(0).unique()
        if (stage, "val") in accuracy.index and (stage, "test") in accuracy.index
    ]
    if not stages:
        raise _NotApplicable("no stage has both validation and test metrics")
    breaches = []
    for stage in stages:
        val, test = accuracy.loc[(stage, "val")], accuracy.loc[(stage, "test")]
        if val["high"] < test["low"] or test["high"] < val["low"]:
            breaches.append(
                f"{stage}: accuracy {val['value']:.3f} on validation, {test['value']:.3f} on test, "
                "and their intervals do not overlap"
            )
    return breaches, f"the intervals of accuracy overlap for {', '.join(stages)}"


def _normalisation_knows_training_alone(results: Path, dataset: Dataset) -> Judgement:
    """Final models learn from training and validation data, all others only from training data."""
    settings = _settings(results)
    strategy = settings.normalization
    if strategy in ("fixed", "sample"):
        return [], f"normalisation is by {strategy} values: nothing is learned from any split"
    models = {path.stem: path for path in sorted((results / "models").glob("*.keras"))}
    stored = {stage: _normalisation(path) for stage, path in models.items()}
    stored = {stage: statistics for stage, statistics in stored.items() if statistics}
    if not stored:
        raise _NotApplicable(f"no saved model holds the statistics of strategy {strategy}")
    expected = {
        splits: _statistics(dataset, splits, settings.image_size, strategy)
        for splits in (("train",), ("train", "val"))
    }
    breaches = []
    for stage, (mean, variance) in stored.items():
        splits = ("train", "val") if stage in SEARCHES else ("train",)
        right = all(
            np.allclose(np.squeeze(found), np.squeeze(wanted), rtol=1e-3, atol=1e-3)
            for found, wanted in zip((mean, variance), expected[splits], strict=True)
        )
        if not right:
            breaches.append(f"{stage} does not normalise by the statistics of {' + '.join(splits)}")
    return breaches, f"{', '.join(stored)}: each has the statistics of the images it was trained on"


def _normalisation(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and variance in a saved model's normalisation layer; None without such a layer."""
    with zipfile.ZipFile(path) as archive:
        layers = json.loads(archive.read("config.json"))["config"]["layers"]
    for layer in layers:
        if layer["class_name"] == "Normalization":
            return np.array(layer["config"]["mean"]), np.array(layer["config"]["variance"])
    return None


def _statistics(
    dataset: Dataset, splits: tuple[str, ...], size: int, strategy: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of some splits, over all pixels or of each pixel, in grey levels."""
    others = dataset.table["path"][~dataset.table["split"].isin(splits)]
    images = load_images(without(dataset, others), size)
    axes = None if strategy == "dataset" else 0
    deviation = images.std(axes, dtype=np.float64)
    return images.mean(axes, dtype=np.float64), np.maximum(deviation, FLOOR) ** 2


def _splits_are_unchanged(results: Path) -> Judgement:
    """Every stage was scored on the same images of a split, those of splits.csv."""
    scored: dict[str, dict[str, frozenset]] = {}
    for path in sorted(results.glob("scores_*.csv")):
        stage, _, split = path.stem.removeprefix("scores_").rpartition("_")
        if split not in SPLITS:
            continue
        images = frozenset(read_csv(path)[["path", "label"]].itertuples(index=False, name=None))
        scored.setdefault(split, {})[stage] = images
    if not scored:
        raise _NotApplicable("no scores were saved")
    breaches = [
        f"{split}: {', '.join(stages)} were not scored on the same images"
        for split, stages in scored.items()
        if len(set(stages.values())) > 1
    ]
    of_split = {split: frozenset().union(*stages.values()) for split, stages in scored.items()}
    shared = of_split.get("val", frozenset()) & of_split.get("test", frozenset())
    if shared:
        breaches.append(f"{len(shared)} images were scored for val as well as for test")
    splits = read_csv(results / "splits.csv")
    for split, images in of_split.items() if len(splits) else ():
        rows = splits.loc[splits["split"] == split, ["path", "label"]]
        if images != frozenset(rows.itertuples(index=False, name=None)):
            breaches.append(f"the images scored for {split} are not those of splits.csv")
    counts = ", ".join(f"{split} {len(images)}" for split, images in of_split.items())
    return breaches, f"every stage was scored on the same images: {counts}"


def _data_are_those_of_the_run(results: Path, dataset: Dataset) -> Judgement:
    path = results / "run.json"
    if not path.is_file():
        raise _NotApplicable("run.json is missing")
    trained = json.loads(path.read_text(encoding="utf-8"))["data"]
    if trained != dataset.fingerprint:
        return [
            f"the run was made with {trained}, this is {dataset.fingerprint}: a file, a label or a "
            "split has changed"
        ], ""
    return [], f"every file, label and split is unchanged ({trained})"


def _synthetic_samples_only_in_training(results: Path) -> Judgement:
    tables = [path for path in results.glob("scores_*.csv") if "synthetic" in read_csv(path)]
    if not tables:
        raise _NotApplicable("the run made no synthetic samples")
    breaches = [f"{path.name} holds some" for path in tables if read_csv(path)["synthetic"].any()]
    return breaches, "none among the images that were scored"


RULES: dict[str, Callable[[Path], Judgement]] = {
    "one look at the test set per stage": _one_look_per_stage,
    "every tested stage is in the ledger": _every_tested_stage_is_in_the_ledger,
    "best values inside their ranges": _best_values_inside_their_ranges,
    "a new model for every trial": _a_new_model_for_every_trial,
    "final fits: right epochs, no early stopping": (
        _final_fits_are_as_long_as_found_and_without_early_stopping
    ),
    "synthetic samples only in training": _synthetic_samples_only_in_training,
    "one data set and split throughout": _one_data_set_throughout,
    "splits unchanged between the stages": _splits_are_unchanged,
    "versions, seed and weights recorded": _provenance_is_recorded,
    "metrics follow from the saved scores": _metrics_follow_from_the_scores,
    "validation and test agree": _test_and_validation_agree,
}
DATA_RULES: dict[str, Callable[[Path, Dataset], Judgement]] = {
    "data and splits unchanged since training": _data_are_those_of_the_run,
    "normalisation statistics from training alone": _normalisation_knows_training_alone,
}


def _table(results: Path, name: str) -> pd.DataFrame:
    table = read_csv(results / name)
    if table.empty:
        raise _NotApplicable(f"{name} is missing")
    return table


def _settings(results: Path) -> Settings:
    path = results / "settings.yaml"
    if not path.is_file():
        raise _NotApplicable("settings.yaml is missing")
    try:
        return read_settings(Settings, read_file(path))
    except SettingsError as error:
        raise _NotApplicable(f"settings.yaml cannot be read: {error}") from None


def _axes(settings: Settings) -> dict[str, dict[str, Axis]]:
    return {
        "baseline": settings.baseline.search,
        "transfer": settings.transfer.search,
        "fine_tuning": {"learning_rate": settings.transfer.fine_tuning.learning_rate},
    }
