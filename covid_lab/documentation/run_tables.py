"""Tables of the course run and of the external tests.

Each function takes the tables of a section by their path in ``results/``, in the form in which
`covid_lab.runs`, the audits and the studies write them. It returns a table whose cells are text.
"""

from pathlib import PurePosixPath

import pandas as pd

from covid_lab.documentation.cells import (
    NONE,
    Tables,
    intervals,
    mean_range,
    number,
    only,
    p_value,
    wide,
)

# ---- the course run -----------------------------------------------------------------------------


def metrics(tables: Tables, split: str) -> pd.DataFrame:
    """Tabulate the metrics of a split.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.
    split : {"train", "val", "test"}
        The split.

    Returns
    -------
    pd.DataFrame of str
        One row per metric, one column per model.
    """
    table = only(tables)
    table = table[table["split"] == split]
    counts = table.groupby("stage", sort=False)["n"].max()
    titles = {stage: f"{stage}, n = {n:.0f}" for stage, n in counts.items()}
    return wide(table, "metric", "stage", intervals(table)).rename(columns=titles)


def comparisons(tables: Tables) -> pd.DataFrame:
    """Tabulate the differences of two models, second minus first.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per metric.
    """
    table = only(tables)
    return pd.DataFrame(
        {
            "metric": table["metric"],
            "difference": intervals(table, "difference", sign=True),
            "adjusted p": table["p_adjusted"].map(p_value),
            "test": table["test"],
            "n": table["n"],
        }
    )


def calibration(tables: Tables) -> pd.DataFrame:
    """Tabulate the calibration error of each model.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per model.
    """
    table = only(tables)
    return pd.DataFrame(
        {
            "model": table["stage"],
            "ECE": intervals(table, "ece", "ece_low", "ece_high"),
            "of a calibrated model": table["expected"].map(number),
            "p": table["p_value"].map(p_value),
            "Brier score": intervals(table, "brier", "brier_low", "brier_high"),
            "n": table["n"],
        }
    )


def searches(tables: Tables) -> pd.DataFrame:
    """Tabulate the best trial of each hyperparameter search.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per search.
    """
    rows = []
    for path, trials in tables.items():
        best = trials.loc[trials["val_loss"].idxmin()]
        names = list(trials)[1 : list(trials).index("best_epoch")]
        rows.append(
            {
                "search": PurePosixPath(path).stem.removeprefix("tuning_").replace("_", "-"),
                "trials": len(trials),
                "best": ", ".join(f"{name.replace('_', ' ')} {best[name]:g}" for name in names),
                "epochs": int(best["best_epoch"]),
                "validation loss": number(best["val_loss"]),
                "validation AUC": number(best["val_AUC"]),
            }
        )
    return pd.DataFrame(rows)


def heat_by_group(tables: Tables) -> pd.DataFrame:
    """Tabulate where the heat is, for correct and misclassified images of each class.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per class and prediction.
    """
    table = only(tables)
    return pd.DataFrame(
        {
            "label": table["label"],
            "prediction": table["verdict"],
            "heat in the middle": intervals(table, "central_heat"),
            "area": table["area"].map(number),
            "images": table["n"],
        }
    )


def image_quality(tables: Tables) -> pd.DataFrame:
    """Tabulate how well single numbers of an image separate the classes.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per number. An AUC below 0.5 is reversed, and "higher in" names the class.
    """
    table = only(tables)
    reverse = table["AUC"] < 0.5
    upright = table.assign(
        AUC=table["AUC"].where(~reverse, 1 - table["AUC"]),
        low=table["low"].where(~reverse, 1 - table["high"]),
        high=table["high"].where(~reverse, 1 - table["low"]),
    )
    return pd.DataFrame(
        {
            "number": table["number"],
            "AUC": intervals(upright, "AUC"),
            "n": table["n"],
            "higher in": reverse.map({True: "NORMAL", False: "COVID"}),
        }
    )


def batch_norm(tables: Tables) -> pd.DataFrame:
    """Tabulate validation results by the BatchNorm statistics at the end of a training.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per kind of statistics.
    """
    table = only(tables)
    cases = {
        f"moving, momentum {momentum:g}": ("val", part)
        for momentum, part in table.groupby("momentum", sort=False)
    }
    cases["exact, from training images"] = "settled_val", table.drop_duplicates("seed")
    return pd.DataFrame(
        {
            "statistics": list(cases),
            "accuracy": [mean_range(part[f"{key}_accuracy"]) for key, part in cases.values()],
            "AUC": [mean_range(part[f"{key}_AUC"]) for key, part in cases.values()],
            "loss": [mean_range(part[f"{key}_loss"]) for key, part in cases.values()],
            "seeds": [part["seed"].nunique() for _, part in cases.values()],
        }
    )


def ledger(tables: Tables) -> pd.DataFrame:
    """Tabulate the test evaluations of a run.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per stage.
    """
    table = only(tables)
    return pd.DataFrame(
        {"stage": table["stage"], "evaluation": table["look"], "model": table["model"]}
    )


# ---- another hospital ---------------------------------------------------------------------------

FROZEN = ("inputs", "template")  # stages of the mitigation that train no network
EXTERNAL = ("balanced accuracy", "AUC", "sensitivity", "specificity")


def external(tables: Tables) -> pd.DataFrame:
    """Tabulate the external test.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per model.
    """
    table = only(tables)
    found = wide(table, "model", "metric", intervals(table))[["model", *EXTERNAL]]
    own = table[table["metric"] == "AUC"].set_index("model")
    if "own_value" in own:
        at_home = intervals(own, "own_value", "own_low", "own_high")
        found["AUC on the own test split"] = found["model"].map(at_home)
    return found.assign(n=found["model"].map(own["n"].astype(int)))


def use(tables: Tables) -> pd.DataFrame:
    """Tabulate which parts of the image are sufficient for each model.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per part that is shown, one column per model.
    """
    table = only(tables)
    return wide(table, "check", "model", intervals(table)).rename(columns={"check": "shown"})


def heat(tables: Tables) -> pd.DataFrame:
    """Tabulate the heat on marked opacities above even heat.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per model and set of images.
    """
    table = only(tables)
    return pd.DataFrame(
        {
            "model": table["model"],
            "images": table["images"],
            "whole image": intervals(table, "gain", "gain_low", "gain_high", sign=True),
            "inside the lungs": intervals(
                table, "lungs_gain", "lungs_gain_low", "lungs_gain_high", sign=True
            ),
            "n": table["n"],
        }
    )


def probe(tables: Tables) -> pd.DataFrame:
    """Tabulate how often images of other diseases are called COVID.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per model, one column per group of images.
    """
    table = only(tables)
    counts = table.groupby("group", sort=False)["n"].max()
    found = wide(table, "model", "group", intervals(table))
    return found.rename(columns={group: f"{group}, n = {n}" for group, n in counts.items()})


def external_controls(tables: Tables) -> pd.DataFrame:
    """Tabulate the controls: the border elsewhere, and halves of one test set.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per model and control.
    """
    table = only(tables)
    flagged = [
        f"{row.flagged:.2f} of {row.repeats:.0f} divisions" if pd.notna(row.flagged) else NONE
        for row in table.itertuples()
    ]
    return pd.DataFrame(
        {
            "model": table["model"],
            "control": table["control"],
            "images": table["set"].fillna("own test set"),
            "AUC": intervals(table, "AUC"),
            "counted as a drop": flagged,
        }
    )


def mitigation_inputs(tables: Tables) -> pd.DataFrame:
    """Tabulate the external AUC by input, averaged over the image or the lungs.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per input.
    """
    table = only(tables)
    table = table[table["stage"].isin(FROZEN) & (table["target_images"] == "none")]
    parts = table["method"].str.extract(r"frozen features, (.+), averaged over the (\w+)$")
    table = table.assign(input=parts[0], over="over the " + parts[1])
    text = intervals(table, "AUC", "AUC_low", "AUC_high")
    found = wide(table, "input", "over", text)
    return found[["input", "over the image", "over the lungs"]]


def mitigation_exits(tables: Tables) -> pd.DataFrame:
    """Tabulate the methods that train a part of the network.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per method: mean and range over the seeds.
    """
    table = only(tables)
    table = table[~table["stage"].isin(FROZEN)]
    groups = table.groupby(["method", "target_images"], sort=False)
    return pd.DataFrame(
        [
            {
                "method": method,
                "images of SIIM": needed,
                "own accuracy": mean_range(part["own_accuracy"]),
                "AUC elsewhere": mean_range(part["AUC"]),
                "balanced accuracy elsewhere": mean_range(part["balanced_accuracy"]),
            }
            for (method, needed), part in groups
        ]
    )


def recentring(tables: Tables) -> pd.DataFrame:
    """Tabulate the balanced accuracy by the prevalence among the unlabelled images.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per prevalence and number of images.
    """
    table = only(tables)
    return pd.DataFrame(
        {
            "fraction with the disease": table["prevalence"].map("{:.2f}".format),
            "images": table["images"],
            "balanced accuracy": intervals(table, "balanced_accuracy"),
            "sensitivity": table["sensitivity"].map(number),
            "specificity": table["specificity"].map(number),
        }
    )


def external_ledger(tables: Tables) -> pd.DataFrame:
    """Tabulate the test evaluations on other collections.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per evaluation.
    """
    table = only(tables)
    return table[["name", "data", "look", "date"]].rename(columns={"look": "evaluation"})
