r"""What a run measured, as the numbers, words and tables that ``Report.tex`` uses.

Everything is read from the results folder. Keys of values have dots; a value is LaTeX text. Some
values choose among sentences: ``\choice`` takes 0 (no difference), 1 (better) or 2 (worse),
``\ifyes`` takes 0 or 1.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from covid_lab.comparison import verdict
from covid_lab.report import extras
from covid_lab.report.audit import add_audit
from covid_lab.report.exploration import add_exploration
from covid_lab.report.external import add_external
from covid_lab.report.latex import (
    compared,
    difference,
    duration,
    escape,
    interval,
    number,
    p_value,
    percent,
    rate,
    tabular,
    texttt,
    thousands,
    yes,
)
from covid_lab.report.reading import (
    NAMES,
    OUTCOMES,
    RUN_FIRST,
    STAGES,
    EvidenceMissing,
    RunTables,
)
from covid_project.evaluation import LEVEL, SIGNIFICANCE, auc_difference

RISE = 1.1  # last validation loss over the lowest, from which the rise is called overfitting


@dataclass(frozen=True)
class Evidence:
    """What the report reads.

    Attributes
    ----------
    values : dict of str to str
        LaTeX text by key.
    tables : dict of str to str
        LaTeX tables by name.
    sources : dict of str to str
        Fingerprint of each file that was read, by its path in the results folder.
    missing : tuple of str
        One line for each part of the run that is not finished, with what to run.
    extras_missing : tuple of str
        One line for each missing table of the extras, which a report can do without.
    """

    values: dict[str, str]
    tables: dict[str, str]
    sources: dict[str, str]
    missing: tuple[str, ...] = ()
    extras_missing: tuple[str, ...] = ()


def collect(results: Path) -> Evidence:
    """Collect the evidence of a run, as far as the run has come.

    Parameters
    ----------
    results : Path
        Folder of the run.

    Returns
    -------
    Evidence
    """
    run = RunTables(results)
    values: dict[str, str] = {}
    tables: dict[str, str] = {}
    missing = []
    for part in (_introduction, add_exploration, _task2, _task3, _task4, add_audit, add_external):
        _add(part, run, values, tables, missing)
    extras_missing = []
    for part in extras.PARTS if not missing else ():  # they follow a finished run
        _add(part, run, values, tables, extras_missing)
    sources = dict(sorted(run.sources.items()))
    unique = (tuple(dict.fromkeys(lines)) for lines in (missing, extras_missing))
    return Evidence(values, tables, sources, *unique)


def _add(part: Callable, run: RunTables, values: dict, tables: dict, missing: list[str]) -> None:
    """Add a part's values and tables, or the reason why they are missing to ``missing``."""
    try:
        part(run, values, tables)
    except EvidenceMissing as error:
        missing.append(str(error))
    except (KeyError, IndexError) as error:  # rows that a later notebook writes
        name = part.__name__.strip("_").removeprefix("add_")
        missing.append(f"the tables for the part {name} are incomplete ({error}): {RUN_FIRST}")


def _introduction(run: RunTables, values: dict, tables: dict) -> None:
    settings, record = run.settings(), run.record()
    drawn, transfer = record.get("phantoms", False), settings["transfer"]
    values |= _origin(transfer["backbone"], transfer["weights"], record["versions"])
    values |= {
        "run.source": "drawn images (phantoms)" if drawn else texttt(settings["data"]),
        "run.seed": str(settings["seed"]),
        "run.fingerprint": escape(record["data"]),
        "run.phantoms": yes(drawn),
        "level": percent(LEVEL),
        "significance": percent(SIGNIFICANCE),
    }
    metrics = run.table("metrics.csv")
    rows = metrics[metrics["split"] == "test"].set_index(["stage", "metric"])
    untested = [name for stage, name in NAMES.items() if stage not in rows.index]
    if untested:
        raise EvidenceMissing(f"no test result of {', '.join(untested)}: {RUN_FIRST}")
    # From the tested rows: settings and record are rewritten whenever the folder is opened.
    tuned = metrics[metrics["stage"] == "fine_tuned"].iloc[0]
    values |= _origin(tuned["backbone"], tuned["weights"], tuned["versions"])
    ledger = run.table("test_ledger.csv")
    looks = ledger[ledger["data"] == record["data"]].groupby("stage")["look"].max()[list(STAGES)]
    values |= {
        "looks.once": yes((looks == 1).all()),
        "looks.list": ", ".join(f"{NAMES[stage]} {count}" for stage, count in looks.items()),
    }
    for stage, key in STAGES.items():
        for metric in ("accuracy", "AUC"):
            values[f"test.{key}.{metric}"] = interval(rows.loc[(stage, metric)])
    accuracy = rows.loc[("baseline", "accuracy")]
    values["test.baseline.accuracy.value"] = number(accuracy["value"], 3)
    values["test.baseline.accuracy.width"] = number(accuracy["high"] - accuracy["low"], 2)
    names = list(rows.loc["baseline"].index)
    tables["metrics"] = tabular(
        "l" + "l" * len(STAGES),
        ["metric", *NAMES.values()],
        [
            [
                name.replace("F1", "$F_1$"),
                *(interval(rows.loc[(stage, name)]) for stage in STAGES),
            ]
            for name in names
        ],
    )


def _origin(backbone: str, weights: str, versions: str) -> dict[str, str]:
    return {
        "run.backbone": escape(backbone),
        "run.weights": escape(weights),
        "run.versions": escape(versions.replace(";", ",")),
        "run.resnet": yes(backbone == "ResNet50V2"),
        "run.imagenet": yes(weights == "imagenet"),
    }


def _task2(run: RunTables, values: dict, tables: dict) -> None:
    initial = run.table("history_baseline_initial.csv")
    tuned = run.table("history_baseline_tuned.csv")
    final = run.table("history_baseline.csv")
    trials = run.table("tuning_baseline.csv")
    best = _best(trials)
    at_best = tuned[tuned["epoch"] == best["best_epoch"]].iloc[0]
    rises = initial["val_loss"].diff() > 0
    lowest, last = initial.loc[initial["val_loss"].idxmin()], initial.iloc[-1]
    overfits = last["val_loss"] > RISE * lowest["val_loss"] and last["loss"] < lowest["loss"]
    values |= {
        "threshold": number(0.5, 1),
        "initial.epochs": str(len(initial)),
        "initial.steps": str(len(initial) - 1),
        "initial.loss.first": number(initial["loss"].iloc[0], 3),
        "initial.loss.last": number(initial["loss"].iloc[-1], 3),
        "initial.falls": str(int((initial["loss"].diff() < 0).sum())),
        "initial.val.lowest": number(initial["val_loss"].min(), 3),
        "initial.val.last": number(initial["val_loss"].iloc[-1], 3),
        "initial.val.rises": str(int(rises.sum())),
        "initial.val.rises.early": str(int(rises[: len(rises) // 2].sum())),
        "initial.best": str(int(lowest["epoch"])),
        "initial.overfits": yes(overfits),
        "tuned.best": str(int(best["best_epoch"])),
        "tuned.loss": number(at_best["loss"], 3),
        "tuned.val.loss": number(at_best["val_loss"], 3),
        "final.epochs": str(len(final)),
        "final.steps": str(len(final) - 1),
        "final.falls": str(int((final["loss"].diff() < 0).sum())),
        "final.loss.first": number(final["loss"].iloc[0], 3),
        "final.loss.last": number(final["loss"].iloc[-1], 3),
        "final.accuracy.last": number(final["accuracy"].iloc[-1], 3),
        "final.seconds": duration(final["seconds"].sum()),
        "baseline.first.accuracy": number(final["accuracy"].iloc[0], 3),
    }
    _baseline_search(run, trials, best, values)
    _architecture(run.table("layers_baseline.csv"), values, tables)
    metrics = run.table("metrics.csv").set_index(["stage", "split", "metric"])
    val, test = (metrics.loc[("baseline", split, "accuracy")] for split in ("val", "test"))
    values |= {
        "val.baseline.accuracy.value": number(val["value"], 3),
        "val.inside": yes(test["low"] <= val["value"] <= test["high"]),
    }


def _baseline_search(run: RunTables, trials: pd.DataFrame, best: pd.Series, values: dict) -> None:
    search = run.settings()["baseline"]["search"]
    finite = trials[np.isfinite(trials["val_loss"])]
    spreads = {name: _spread(finite, best, name, search) for name in search}
    most, least = max(spreads, key=spreads.get), min(spreads, key=spreads.get)
    values |= {
        "tuning.baseline.trials": str(len(trials)),
        "tuning.baseline.extensions": str(int(trials["extension"].sum())),
        "tuning.baseline.seconds": duration(trials["seconds"].sum()),
        "tuning.baseline.grid": str(math.prod(trials[name].nunique() for name in search)),
        "tuning.baseline.most": escape(most.replace("_", " ")),
        "tuning.baseline.most.spread": number(spreads[most], 3),
        "tuning.baseline.least": escape(least.replace("_", " ")),
        "tuning.baseline.least.spread": number(spreads[least], 3),
        "best.baseline.rate": rate(best["learning_rate"]),
        "best.baseline.dropout": f"{best['dropout']:g}",
        "best.baseline.filters": str(int(best["filters"])),
        "best.baseline.batch": str(int(best["batch_size"])),
    }


def _spread(trials: pd.DataFrame, best: pd.Series, name: str, search: Iterable[str]) -> float:
    """Range of the validation loss over the trials that differ from the best in only one value."""
    same = np.ones(len(trials), bool)
    for other in search:
        same &= (trials[other] == best[other]).to_numpy() | (other == name)
    losses = trials["val_loss"][same]
    return float(losses.max() - losses.min())


def _architecture(layers: pd.DataFrame, values: dict, tables: dict) -> None:
    layers = layers.set_index("layer")
    stages = layers[layers["kernel"].notna()]
    values |= {
        "stage.kernel": str(int(stages["kernel"].iloc[-1])),
        "dense.units": str(layers.loc["dense", "output"]),
        "baseline.parameters": thousands(layers["parameters"].sum()),
    }
    norms = layers[layers["kind"] == "BatchNormalization"]
    shown = layers[~layers["kind"].isin(["BatchNormalization", "ReLU"])]
    tables["layers"] = tabular(
        "llrr",
        ["layer", "output", "kernel", "parameters"],
        [
            [
                escape(name.replace("_", " ")),
                escape(row["output"]),
                "" if pd.isna(row["kernel"]) else str(int(row["kernel"])),
                thousands(row["parameters"]),
            ]
            for name, row in shown.iterrows()
        ]
        + [
            ["BatchNorm, all together", "", "", thousands(norms["parameters"].sum())],
            ["sum", "", "", thousands(layers["parameters"].sum())],
        ],
    )


def _task3(run: RunTables, values: dict, tables: dict) -> None:
    settings = run.settings()["transfer"]
    trials, rehearsals = run.table("tuning_transfer.csv"), run.table("tuning_fine_tuning.csv")
    history = run.table("history_transfer.csv")
    baseline, best = run.table("history_baseline.csv"), _best(trials)
    metrics = run.table("metrics.csv")
    model = metrics[metrics["stage"] == "transfer"].iloc[-1]
    # A learning rate at which every trial failed has no figures; if all failed, no columns either.
    rehearsals = rehearsals.reindex(columns=rehearsals.columns.union(["val_loss"], sort=False))
    kept = rehearsals[np.isfinite(rehearsals["val_loss"].astype(float))]
    helps = len(kept) > 0 and kept["val_loss"].min() < best["val_loss"]
    values |= {
        "copies": str(settings["augmented_copies"]),
        "head.parameters": thousands(model["trained_parameters"]),
        "transfer.parameters": thousands(model["parameters"]),
        "tuning.transfer.trials": str(len(trials)),
        "tuning.transfer.extensions": str(int(trials["extension"].sum())),
        "tuning.transfer.seconds": duration(trials["seconds"].sum()),
        "best.transfer.rate": rate(best["learning_rate"]),
        "best.transfer.dropout": f"{best['dropout']:g}",
        "best.transfer.batch": str(int(best["batch_size"])),
        "transfer.epochs": str(len(history)),
        "transfer.steps": str(len(history) - 1),
        "transfer.falls": str(int((history["loss"].diff() < 0).sum())),
        "transfer.ahead": yes(history["accuracy"].iloc[0] > baseline["accuracy"].iloc[0]),
        "transfer.first.accuracy": number(history["accuracy"].iloc[0], 3),
        "transfer.loss.last": number(history["loss"].iloc[-1], 3),
        "transfer.seconds": duration(history["seconds"].sum()),
        "transfer.epoch.seconds": duration(history["seconds"].median()),
        "fine.limit": number(settings["fine_tuning"]["sudden_drop"], 2),
        "fine.cut": escape(rehearsals["frozen_up_to"].iloc[0]),
        "fine.ran": yes(helps),
        "fine.frozen.loss": number(best["val_loss"], 3),
        "fine.rehearsals": str(len(rehearsals)),
        "fine.drops": str(len(rehearsals) - len(kept)),
        "fine.dropped": yes(len(kept) < len(rehearsals)),
        "fine.rehearsed.rate": rate(_best(kept)["learning_rate"]) if helps else "none",
        "fine.rehearsed.loss": number(kept["val_loss"].min(), 3) if helps else "none",
    }
    values |= {"fine.kept": yes(False), "fine.rate": "none", "fine.attempts": "none"}
    accuracies = ("before", "lowest", "lowest.epoch", "last")
    values |= {f"fine.accuracy.{name}": "--" for name in accuracies} | {"fine.loss.last": "--"}
    if helps:
        attempts = run.table("fine_tuning_attempts.csv")
        values["fine.kept"] = yes(attempts["outcome"].iloc[-1] == "kept")
        values["fine.rate"] = rate(attempts["learning_rate"].iloc[-1])
        values["fine.attempts"] = str(len(attempts))
        before = attempts["least_accuracy"].iloc[-1] + settings["fine_tuning"]["sudden_drop"]
        values["fine.accuracy.before"] = number(before, 3)
        tuned = run.table("history_fine_tuned.csv")
        lowest = tuned.loc[tuned["accuracy"].idxmin()]
        values["fine.accuracy.lowest"] = number(lowest["accuracy"], 3)
        values["fine.accuracy.lowest.epoch"] = str(int(lowest["epoch"]))
        values["fine.accuracy.last"] = number(tuned["accuracy"].iloc[-1], 3)
        values["fine.loss.last"] = number(tuned["loss"].iloc[-1], 4)
    tables["rehearsals"] = tabular(
        "rrrr",
        ["learning rate", "loss", "accuracy", "AUC"],
        [
            [rate(row["learning_rate"])]
            + [number(row.get(f"val_{name}"), 3) for name in ("loss", "accuracy", "AUC")]
            for _, row in rehearsals.sort_values("learning_rate").iterrows()
        ],
    )
    _validation(run, metrics, values)
    _comparisons(run.table("comparisons.csv"), values, tables)


def _validation(run: RunTables, metrics: pd.DataFrame, values: dict) -> None:
    """Compare the frozen model, which is not tested, with the tuned baseline on validation."""
    rows = metrics.set_index(["stage", "split", "metric"])
    for metric in ("accuracy", "AUC"):
        values[f"val.transfer.{metric}"] = interval(rows.loc[("transfer", "val", metric)])
    baseline, frozen = (run.table(f"scores_{stage}_val.csv") for stage in ("baseline", "transfer"))
    found = auc_difference(baseline["label"], baseline["score"], frozen["score"])
    described = compared(pd.Series(vars(found)), found.p_value)
    values["compare.val.baseline.transfer.AUC"] = described
    outcome = OUTCOMES[verdict(found.difference, found.p_value)]
    values["outcome.val.baseline.transfer.AUC"] = outcome


def _comparisons(comparisons: pd.DataFrame, values: dict, tables: dict) -> None:
    pair = (comparisons["first"] == "baseline") & (comparisons["second"] == "fine_tuned")
    comparisons = comparisons[pair]
    for _, row in comparisons.iterrows():
        key = f"baseline.finetuned.{row['metric']}"
        values[f"compare.{key}"] = compared(row, row["p_adjusted"])
        values[f"outcome.{key}"] = OUTCOMES[verdict(row["difference"], row["p_adjusted"])]
    tables["comparisons"] = tabular(
        "llll",
        ["metric", "test", "difference", "$p$"],
        [
            [
                row["metric"],
                escape(row["test"]),
                difference(row),
                p_value(row["p_adjusted"], bare=True),
            ]
            for _, row in comparisons.iterrows()
        ],
    )


def _task4(run: RunTables, values: dict, tables: dict) -> None:
    from covid_project.gradcam import OVERLAY_WEIGHT  # TensorFlow, which takes seconds to load

    maps = run.table("gradcam.csv")
    wrong = maps["label"] != maps["predicted"]
    values |= {
        "cam.stage": NAMES[maps["stage"].iloc[0]],
        "cam.layer": escape(maps["layer"].iloc[0]),
        "cam.side": str(maps["map_side"].iloc[0]),
        "overlay.weight": f"{OVERLAY_WEIGHT:g}",
        "cam.blank": str(int((maps["status"] != "ok").sum())),
        "cam.wrong.any": yes(wrong.any()),
        "n.wrong": str(int(wrong.sum())),
    }


def _best(trials: pd.DataFrame) -> pd.Series:
    return trials.loc[trials["val_loss"].idxmin()]
