"""The tables and figures of the robustness study, from its predictions and drift per image.

The notebook calls these functions after the networks have run. The command line makes the same
tables and figures again from the committed tables per image, without a network::

    python -m covid_lab.studies.drift_tables RESULTS --data path/to/breastmnist.npz
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml

from covid_lab.runs.experiment import StudyRun
from covid_lab.studies import drift_correlations, drift_detection, drift_figures, robustness
from covid_lab.studies import drift_statistics as statistics
from covid_lab.studies.image_bootstrap import draws
from covid_lab.studies.perturbations import SEVERITIES
from covid_lab.studies.saliency_drift import flag, write_table
from covid_project.files import read_csv, write_text
from covid_project.settings import read_settings

TRAININGS = ("plain", "augmented")
LAST = "block4_2"
SUMMARIZED = ("auc_losses.csv", "drift_by_layer.csv.gz", "correlations.csv", "detection.csv")

# (training, "val" or "test") → errors of `with_errors` and drift of `grid`, both with ``seed``.
type Grids = Mapping[tuple[str, str], tuple[pd.DataFrame, pd.DataFrame]]


def read_grids(folder: Path, labels: Mapping[str, np.ndarray]) -> Grids:
    """Read the tables per image of a finished run.

    Parameters
    ----------
    folder : Path
        With scores_<recipe>_<training>_<seed>_<part>.csv.gz, and drift_… of the same names.
    labels : mapping of str to np.ndarray, int (N,)
        Labels of "val" and "test".

    Returns
    -------
    dict
        See `Grids`.
    """
    grids = {}
    for training, part in product(TRAININGS, ("val", "test")):
        paths = sorted(Path(folder).glob(f"scores_*_{training}_*_{part}.csv.gz"))
        errors, drifts = [], []
        for path in paths:
            seed = int(path.name.split("_")[-2])
            scores, drift = read_csv(path), read_csv(path.with_name("drift" + path.name[6:]))
            errors.append(statistics.with_errors(scores, labels[part]).assign(seed=seed))
            drifts.append(drift.assign(seed=seed))
        grids[training, part] = (
            pd.concat(errors, ignore_index=True),
            pd.concat(drifts, ignore_index=True),
        )
    return grids


def performance(run: StudyRun, grids: Grids, weights: np.ndarray) -> pd.DataFrame:
    """Write and return ``performance.csv``: AUC and accuracy on the original test images.

    Parameters
    ----------
    run : StudyRun
    grids : Grids
    weights : np.ndarray, float (R, test images)
        From `image_bootstrap.draws`.

    Returns
    -------
    pd.DataFrame
        As `drift_statistics.performance`, with the column training.
    """
    found = _of_trainings(grids, lambda errors, _: statistics.performance(errors, weights))
    table = pd.concat(found.values(), ignore_index=True)
    run.save_table("performance", table)
    return table


def _of_trainings(
    grids: Grids, make: Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    """Make a table from the errors and the drift of each training's test images."""
    return {
        training: make(*grids[training, "test"]).assign(training=training) for training in TRAININGS
    }


def losses(run: StudyRun, grids: Grids, weights: np.ndarray) -> dict[str, pd.DataFrame]:
    """Write ``auc_losses.csv`` and ``balanced_errors.csv``.

    Parameters
    ----------
    run : StudyRun
    grids : Grids
    weights : np.ndarray, float (R, test images)

    Returns
    -------
    dict of str to pd.DataFrame
        Training → table of `drift_statistics.auc_losses`.
    """
    found = _of_trainings(grids, lambda errors, _: statistics.auc_losses(errors, weights)[0])
    balanced = _of_trainings(grids, lambda errors, _: statistics.balanced_errors(errors, weights))
    run.save_table("auc_losses", pd.concat(found.values()))
    run.save_table("balanced_errors", pd.concat(balanced.values()))
    return found


def drift_by_layer(run: StudyRun, grids: Grids, weights: np.ndarray) -> dict[str, pd.DataFrame]:
    """Write ``drift_by_layer.csv.gz``.

    Parameters
    ----------
    run : StudyRun
    grids : Grids
    weights : np.ndarray, float (R, test images)

    Returns
    -------
    dict of str to pd.DataFrame
        Training → table of `drift_statistics.drift_by_layer`.
    """
    found = _of_trainings(
        grids,
        lambda errors, drifts: statistics.drift_by_layer(
            drifts, errors, run.dataset.classes, weights
        ),
    )
    write_table(run.folder / "drift_by_layer.csv.gz", pd.concat(found.values()).round(5))
    return found


def correlations(run: StudyRun, grids: Grids, weights: np.ndarray) -> dict[str, pd.DataFrame]:
    """Write ``correlations.csv``.

    Parameters
    ----------
    run : StudyRun
    grids : Grids
    weights : np.ndarray, float (R, test images)

    Returns
    -------
    dict of str to pd.DataFrame
        Training → table of `drift_correlations.correlations`.
    """
    found = _of_trainings(
        grids,
        lambda errors, drifts: drift_correlations.correlations(drifts, errors, weights),
    )
    run.save_table("correlations", pd.concat(found.values()))
    return found


def detection(
    run: StudyRun, grids: Grids, weights: np.ndarray
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame, pd.DataFrame]:
    """Write ``detection.csv``, ``flags.csv`` and ``constant_networks.csv``.

    Parameters
    ----------
    run : StudyRun
    grids : Grids
    weights : np.ndarray, float (R, test images)

    Returns
    -------
    detected : dict of str to pd.DataFrame
        Training → table of `drift_detection.detection`.
    flags : pd.DataFrame
        Measured rates of a flag whose threshold comes from validation, per training and detector.
    comparison : pd.DataFrame
        Means over all networks, and without those that predict one class for every validation
        image: training, networks, n_networks, quantity, value, low and high. It has no rows for a
        training without such networks.
    """
    detected, flags, comparison = {}, [], []
    for training in TRAININGS:
        parts = {
            part: drift_detection.features(*reversed(grids[training, part]))
            for part in ("val", "test")
        }
        scores = drift_detection.detectors(parts["val"], parts["test"])
        judged = {name: new for name, (_, new) in scores.items()}
        table = drift_detection.detection(parts["test"], judged, weights)
        detected[training] = table.assign(training=training)
        for name, pair in scores.items():
            rates = _flagged(parts, pair, run.settings.false_alarms, weights)
            flags.append({"training": training, "detector": name, **rates})
        constant = statistics.constant_networks(grids[training, "val"][0])
        if constant:
            comparison.append(
                _with_and_without(constant, grids[training, "test"], parts["test"], judged, weights)
                .assign(training=training)
            )  # fmt: skip
    columns = ["training", "networks", "n_networks", "quantity", "value", "low", "high"]
    comparison = pd.concat(comparison)[columns] if comparison else pd.DataFrame(columns=columns)
    flags = pd.DataFrame(flags)
    run.save_table("detection", pd.concat(detected.values()))
    run.save_table("flags", flags)
    run.save_table("constant_networks", comparison)
    return detected, flags, comparison


def _flagged(
    parts: Mapping[str, pd.DataFrame],
    scores: tuple[np.ndarray, np.ndarray],
    false_alarms: float,
    weights: np.ndarray,
) -> dict[str, float]:
    """Set the flag of each network on validation and return its rates on test."""
    seen, new = scores
    raised = np.zeros(len(new), bool)
    for seed in parts["val"]["seed"].unique():
        known, here = ((parts[part]["seed"] == seed).to_numpy() for part in ("val", "test"))
        wrong = parts["val"]["wrong"].to_numpy()[known]
        raised[here] = new[here] > flag(seen[known], wrong, false_alarms)
    return {"chosen": false_alarms, **drift_detection.flag_rates(parts["test"], raised, weights)}


def _with_and_without(
    constant: list[int],
    grid: tuple[pd.DataFrame, pd.DataFrame],
    judged: pd.DataFrame,
    scores: Mapping[str, np.ndarray],
    weights: np.ndarray,
) -> pd.DataFrame:
    """Return the means over all networks, and over those that are not constant."""
    every = set(judged["seed"])
    choices = {"all": every, "without constant": every - set(constant)}
    tables = []
    for name, seeds in choices.items():
        if not seeds:
            continue
        errors, drifts = (table[table["seed"].isin(seeds)] for table in grid)
        here = judged["seed"].isin(seeds).to_numpy()
        chosen = {detector: values[here] for detector, values in scores.items()}
        detected = drift_detection.detection(judged[here], chosen, weights)
        table = _quantities(errors, drifts, detected, weights)
        tables.append(table.assign(networks=name, n_networks=len(seeds)))
    return pd.concat(tables, ignore_index=True)


def _quantities(
    errors: pd.DataFrame, drifts: pd.DataFrame, detected: pd.DataFrame, weights: np.ndarray
) -> pd.DataFrame:
    """Return the study's main figures as rows of quantity, value, low and high."""
    means = statistics.performance(errors, weights).query("network == 'mean'")
    detected = detected.query("perturbation == 'all'")
    gains = detected[detected["detector"].isin(["both", "all three"])]
    last = drifts[drifts["layer"] == LAST]
    related = drift_correlations.correlations(last, errors, weights).query("measure == 'rmse'")
    constant = related["kind"] + f" at {LAST}, constant: " + related["constant"]
    columns = {"gain": "value", "gain_low": "low", "gain_high": "high"}
    tables = [
        means.assign(quantity=means["metric"]),
        detected.rename(columns={"auc": "value"}).assign(
            quantity="AUC of the detector " + detected["detector"]
        ),
        gains[["detector", *columns]]
        .rename(columns=columns)
        .assign(quantity="gain of the detector " + gains["detector"]),
        related.assign(quantity="rank correlation of " + constant),
    ]
    return pd.concat([table[["quantity", "value", "low", "high"]] for table in tables])


def conclusion(
    detected: pd.DataFrame, related: pd.DataFrame, flags: pd.DataFrame, training: str = "plain"
) -> list[str]:
    """Return the answer of the study in sentences.

    Parameters
    ----------
    detected, related : pd.DataFrame
        Tables of `detection` and `correlations` of this training.
    flags : pd.DataFrame
        From `detection`.
    training : str
        "plain" or "augmented".

    Returns
    -------
    list of str
    """
    found = detected.query("perturbation == 'all'").set_index("detector")
    beside = drift_detection.gain_in_words(found.loc["both"], "confidence")
    beyond = drift_detection.gain_in_words(found.loc["all three"], "confidence and change together")
    aucs = found["auc"]
    sets = related.query("kind == 'sets' and measure == 'rmse'")
    clear = (sets["low"] > 0).groupby(sets["constant"]).sum()
    blocks = sets["layer"].nunique()
    row = flags.query("training == @training and detector == 'drift'").iloc[0]
    return [
        f"Wrong predictions are found with AUC {aucs['confidence']:.2f} by confidence, "
        f"{aucs['change']:.2f} by the change of the score, and {aucs['drift']:.2f} by drift:",
        f"{beside}, and {beyond}.",
        f"RMSE clearly rises with ΔAUC in {clear['nothing']} of {blocks} blocks, and in "
        f"{clear['severity']} at constant severity. A flag by drift, set to {row['chosen']:.0%} "
        f"false alarms, raises {row['false_alarms']:.0%} and finds {row['detected']:.0%} of the "
        "errors.",
    ]


def drift_panels(
    run: StudyRun,
    grids: Grids,
    tables: Mapping[str, pd.DataFrame],
    lost: Mapping[str, pd.DataFrame],
) -> dict[str, plt.Figure]:
    """Draw and save the drift by layer at each severity, and its box plots.

    Parameters
    ----------
    run : StudyRun
    grids : Grids
    tables, lost : mapping of str to pd.DataFrame
        From `drift_by_layer` and `losses`.

    Returns
    -------
    dict of str to matplotlib.figure.Figure
    """
    sources = ["drift_by_layer.csv.gz", "auc_losses.csv"]
    found, classes = {}, run.dataset.classes
    for training in TRAININGS:
        errors, drifts = grids[training, "test"]
        figure = drift_figures.drift_boxes(drifts, errors, lost[training], classes, LAST)
        found[f"drift_boxes_{training}"] = figure
        run.save_figure(figure, f"drift_boxes_{training}", sources[1])
        for severity in SEVERITIES:
            figure = drift_figures.drift_by_layer(
                tables[training], lost[training], classes, severity
            )
            found[f"drift_{training}_severity{severity}"] = figure
            run.save_figure(figure, f"drift_{training}_severity{severity}", *sources)
    return found


def recompute(results: Path, data: Path) -> None:
    """Make the tables and figures of a finished run again from its tables per image.

    Parameters
    ----------
    results : Path
        Folder of the run, with its ``settings.yaml``. Tables and figures in it are replaced.
    data : Path
        The MedMNIST file of the run; only its labels are used.
    """
    record = results / "settings.yaml"  # stays as the run wrote it
    text = record.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    known = [field.name for field in fields(robustness.Settings)]  # others are of the command line
    values = {name: values[name] for name in known if name in values}
    values |= {"data": str(data), "results": str(results)}
    settings = read_settings(robustness.Settings, values)
    run = robustness.begin(settings)
    write_text(record, text)
    table = run.dataset.table
    labels = {part: table["label"].to_numpy()[run.dataset.rows(part)] for part in ("val", "test")}
    grids = read_grids(results, labels)
    weights = draws(labels["test"], settings.resamples, settings.seed)
    performance(run, grids, weights)
    found = {
        "lost": losses(run, grids, weights),
        "tables": drift_by_layer(run, grids, weights),
        "related": correlations(run, grids, weights),
    }
    detected, flags, _ = detection(run, grids, weights)
    sentences = conclusion(detected["plain"], found["related"]["plain"], flags)
    draw(run, grids, **found, detected=detected, sentences=sentences)
    print(*sentences, sep="\n")


def draw(
    run: StudyRun,
    grids: Grids,
    lost: Mapping[str, pd.DataFrame],
    tables: Mapping[str, pd.DataFrame],
    related: Mapping[str, pd.DataFrame],
    detected: Mapping[str, pd.DataFrame],
    sentences: Sequence[str],
) -> None:
    """Draw and save all figures that show no images.

    Parameters
    ----------
    run : StudyRun
    grids : Grids
    lost, tables, related, detected : mapping of str to pd.DataFrame
        From `losses`, `drift_by_layer`, `correlations` and `detection`.
    sentences : sequence of str
        From `conclusion`.
    """
    drift_panels(run, grids, tables, lost)
    for training in TRAININGS:
        drifts = grids[training, "test"][1]
        figure = drift_figures.drift_and_loss(drifts, lost[training], related[training])
        run.save_figure(figure, f"drift_and_loss_{training}", "correlations.csv", "auc_losses.csv")
        figure = drift_figures.detection(detected[training])
        run.save_figure(figure, f"detection_{training}", "detection.csv")
    plain = (found["plain"] for found in (tables, related, detected))
    figure = drift_figures.summary(lost, *plain, sentences)
    run.save_figure(figure, "summary", *SUMMARIZED)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, help="results folder of a finished run")
    parser.add_argument("--data", type=Path, required=True, help="the MedMNIST file of the run")
    options = parser.parse_args()
    recompute(options.results, options.data)
