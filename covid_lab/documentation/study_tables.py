"""Tables of the audits, the studies and the faults.

Each function takes the tables of a section by their path in ``results/``, in the form in which
`covid_lab.runs`, the audits and the studies write them. It returns a table whose cells are text.
"""

from pathlib import PurePosixPath

import pandas as pd

from covid_lab.audit.controls import weakest_caught
from covid_lab.audit.findings import VERDICTS
from covid_lab.documentation.cells import NONE, Tables, intervals, number, only, stacked, wide

# ---- audits -------------------------------------------------------------------------------------


def verdicts(tables: Tables) -> pd.DataFrame:
    """Count the checks of each audit by verdict.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per data set, with the names of the checks that fail.
    """
    rows = []
    for name, part in stacked(tables, 1).groupby("name"):
        counts = part["verdict"].value_counts()
        failed = "; ".join(part.loc[part["verdict"] == "fail", "check"])
        rows.append(
            {
                "data": name,
                **{verdict: counts.get(verdict, 0) for verdict in VERDICTS},
                "checks that fail": failed or NONE,
            }
        )
    return pd.DataFrame(rows)


def shortcuts(tables: Tables) -> pd.DataFrame:
    """Tabulate how well each view predicts the label (AUC).

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per data set, one column per view.
    """
    table = stacked(tables, 1)
    views = ["file metadata", "border", "corners", "lungs removed", "whole image"]
    table = table[table["view"].isin(views)]
    found = wide(table, "name", "view", intervals(table, "auc"))
    images = table.groupby("name")["n"].max().astype(int)
    found = found[["name", *(view for view in views if view in found)]]
    return found.assign(n=found["name"].map(images)).rename(columns={"name": "data"})


def copies(tables: Tables) -> pd.DataFrame:
    """Count the pairs of copies by kind, and those that matter most.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per data set.
    """
    rows = []
    for path, pairs in tables.items():
        across = pairs["split_first"].fillna("") != pairs["split_second"].fillna("")
        rows.append(
            {
                "data": PurePosixPath(path).parts[1],
                "exact": int((pairs["kind"] == "exact").sum()),
                "near or mirrored": int((pairs["kind"] != "exact").sum()),
                "in two splits": int(across.sum()),
                "with two labels": int(pairs["label_conflict"].astype(bool).sum()),
            }
        )
    return pd.DataFrame(rows)


def label_controls(tables: Tables) -> pd.DataFrame:
    """Tabulate recall and precision for planted wrong labels.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per data set and kind of features.
    """
    table = stacked(tables, 1)
    table = table[table["reported"] == "contradicted"]
    return pd.DataFrame(
        {
            "data": table["name"],
            "features": table["features"],
            "recall": intervals(table, "recall", "recall_low", "recall_high"),
            "precision": intervals(table, "precision", "precision_low", "precision_high"),
            "planted": table["planted"],
            "draws": table["draws"],
        }
    )


def planted(tables: Tables) -> pd.DataFrame:
    """Tabulate the weakest planted shortcut that is caught.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per shortcut.
    """
    table = weakest_caught(only(tables))
    caught = [
        f"{row.strength:g} {row.unit}" if pd.notna(row.strength) else "not caught"
        for row in table.itertuples()
    ]
    return pd.DataFrame({"shortcut": table["control"], "caught from": caught})


# ---- studies and faults -------------------------------------------------------------------------


def pneumonia(tables: Tables) -> pd.DataFrame:
    """Tabulate the three networks beside the published ones.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per network.
    """
    table = only(tables)
    return pd.DataFrame(
        {
            "model": table["stage"],
            "accuracy": intervals(table, "accuracy", "accuracy_low", "accuracy_high"),
            "published accuracy": table["published_accuracy"].map(number),
            "AUC": intervals(table, "AUC", "AUC_low", "AUC_high"),
            "published AUC": table["published_AUC"].map(number),
        }
    )


def ct(tables: Tables) -> pd.DataFrame:
    """Tabulate accuracy, sensitivity, specificity and AUC on the test split.

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
    table = table[table["split"] == "test"]
    found = wide(table, "stage", "metric", intervals(table))
    found = found[["stage", "accuracy", "sensitivity", "specificity", "AUC"]]
    images = table[table["metric"] == "accuracy"].set_index("stage")["n"].astype(int)
    return found.assign(n=found["stage"].map(images)).rename(columns={"stage": "model"})


GRADED = {  # metrics of the nodules' classifiers, and their headings
    "balanced_accuracy": "balanced accuracy",
    "macro_F1": "macro-F1",
    "kappa": "quadratic kappa",
    "MAE": "absolute error",
    "AUC_without_3": "AUC, ≥ 4 against ≤ 2",
}


def nodules(tables: Tables) -> pd.DataFrame:
    """Tabulate the metrics on the test split.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per classifier, one column per metric.
    """
    table = only(tables)
    table = table[(table["split"] == "test") & table["metric"].isin(GRADED)]
    return wide(table, "stage", "metric", intervals(table)).rename(columns=GRADED)


def robustness(tables: Tables) -> pd.DataFrame:
    """Tabulate AUC and accuracy, of the mean over the seeds and of all networks together.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per set, training images and kind of network.
    """
    table = stacked(tables, 1)
    table = table[table["network"].isin(["mean", "together"])]
    keys = table["name"] + "|" + table["training"] + "|" + table["network"]
    found = wide(table.assign(key=keys), "key", "metric", intervals(table))
    parts = found["key"].str.split("|", expand=True)
    found.insert(0, "set", parts[0])
    found.insert(1, "training images", parts[1].replace("augmented", "perturbed"))
    found.insert(2, "networks", parts[2])
    return found.drop(columns="key")


def detection(tables: Tables) -> pd.DataFrame:
    """Tabulate the detectors of errors over all perturbations.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per set, training images and detector.
    """
    table = stacked(tables, 1)
    table = table[table["perturbation"] == "all"]
    gain = intervals(table, "gain", "gain_low", "gain_high", sign=True)
    beside = table["detector"].map({"all three": "confidence and change"}).fillna("confidence")
    return pd.DataFrame(
        {
            "set": table["name"],
            "training images": table["training"].replace("augmented", "perturbed"),
            "detector": table["detector"].replace("both", "drift and confidence"),
            "AUC": intervals(table, "auc"),
            "gain": gain.where(table["detector"] != "confidence", NONE),
            "over": beside.where(table["detector"] != "confidence", NONE),
        }
    )


def faults(tables: Tables) -> pd.DataFrame:
    """Count the outcomes by kind of fault.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per fault and outcome.
    """
    table = only(tables)
    table = table[table["fault"] != "long and many"]  # measurements of memory, threads and files
    return table.groupby(["fault", "outcome"], sort=False)["count"].sum().reset_index()
