"""Tables of the audits, the studies and the faults.

Each function takes the table of a section, or several by path, in the form in which
`covid_lab.runs`, the audits and the studies write them. It returns a table whose cells are text.
"""

from pathlib import PurePosixPath

import pandas as pd

from covid_lab.audit.controls import weakest_caught
from covid_lab.audit.findings import VERDICTS
from covid_lab.documentation.cells import (
    NONE,
    Section,
    Tables,
    intervals,
    number,
    stacked,
    wide,
)

# ---- audits -------------------------------------------------------------------------------------


def _verdicts(tables: Tables) -> pd.DataFrame:
    """Count the checks of each audit by verdict."""
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


def _shortcuts(tables: Tables) -> pd.DataFrame:
    """Tabulate how well each view predicts the label (AUC)."""
    table = stacked(tables, 1)
    views = ["file metadata", "border", "corners", "lungs removed", "whole image"]
    table = table[table["view"].isin(views)]
    found = wide(table, "name", "view", intervals(table, "auc"))
    images = table.groupby("name")["n"].max().astype(int)
    found = found[["name", *(view for view in views if view in found)]]
    return found.assign(n=found["name"].map(images)).rename(columns={"name": "data"})


def _copies(tables: Tables) -> pd.DataFrame:
    """Count the pairs of copies by kind, and those that matter most."""
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


def _label_controls(tables: Tables) -> pd.DataFrame:
    """Tabulate recall and precision for planted wrong labels."""
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


def _planted(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the weakest planted shortcut that is caught."""
    table = weakest_caught(table)
    caught = [
        f"{row.strength:g} {row.unit}" if pd.notna(row.strength) else "not caught"
        for row in table.itertuples()
    ]
    return pd.DataFrame({"shortcut": table["control"], "caught from": caught})


# ---- studies and faults -------------------------------------------------------------------------


def _pneumonia(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the three networks beside the published ones."""
    return pd.DataFrame(
        {
            "model": table["stage"],
            "accuracy": intervals(table, "accuracy", "accuracy_low", "accuracy_high"),
            "published accuracy": table["published_accuracy"].map(number),
            "AUC": intervals(table, "AUC", "AUC_low", "AUC_high"),
            "published AUC": table["published_AUC"].map(number),
        }
    )


def _ct(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate accuracy, sensitivity, specificity and AUC on the test split."""
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


def _nodules(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the metrics on the test split."""
    table = table[(table["split"] == "test") & table["metric"].isin(GRADED)]
    return wide(table, "stage", "metric", intervals(table)).rename(columns=GRADED)


def _robustness(tables: Tables) -> pd.DataFrame:
    """Tabulate AUC and accuracy, of the mean over the seeds and of all networks together."""
    table = stacked(tables, 1)
    table = table[table["network"].isin(["mean", "together"])]
    keys = table["name"] + "|" + table["training"] + "|" + table["network"]
    found = wide(table.assign(key=keys), "key", "metric", intervals(table))
    parts = found["key"].str.split("|", expand=True)
    found.insert(0, "set", parts[0])
    found.insert(1, "training images", parts[1].replace("augmented", "perturbed"))
    found.insert(2, "networks", parts[2])
    return found.drop(columns="key")


def _detection(tables: Tables) -> pd.DataFrame:
    """Tabulate the detectors of errors over all perturbations."""
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


def _faults(table: pd.DataFrame) -> pd.DataFrame:
    """Count the outcomes by kind of fault."""
    table = table[table["fault"] != "long and many"]  # measurements of memory, threads and files
    return table.groupby(["fault", "outcome"], sort=False)["count"].sum().reset_index()


# ---- their sections -----------------------------------------------------------------------------

AUDITS = (
    Section(
        "Verdicts",
        "How many checks of each data set's audit have which verdict, and which fail.",
        "audit/*/audit.csv",
        _verdicts,
    ),
    Section(
        "Shortcuts",
        "AUC of the label from parts of the data that show no lungs, and from the whole image, by "
        "simple models that are cross-validated by patient.",
        "audit/*/shortcuts.csv",
        _shortcuts,
    ),
    Section(
        "Copies",
        "Pairs of images that show the same picture.",
        "audit/*/duplicates.csv",
        _copies,
    ),
    Section(
        "Planted wrong labels",
        "How many of 5 % wrong labels, planted into the data, the label audit finds (recall), and "
        "how many of the labels that it contradicts were planted (precision). Mean of the draws, "
        "with the range that holds 95 % of them.",
        "audit/*/label_controls.csv",
        _label_controls,
    ),
    Section(
        "Planted shortcuts",
        "Shortcuts planted into drawn radiographs, and the weakest one from which on all are "
        "caught.",
        "audit/controls.csv",
        _planted,
    ),
)
STUDIES = (
    Section(
        "Pneumonia in children",
        "Test split of the paediatric radiographs, beside published figures for the same images. "
        "See [the study](study_pneumonia.md).",
        "pneumonia/model_comparison.csv",
        _pneumonia,
    ),
    Section(
        "CT slices",
        "Test split of COVID-CT. Model D is model B pruned. See [the study](study_ct_lesions.md).",
        "ct_lesions/metrics.csv",
        _ct,
    ),
    Section(
        "Lung nodules",
        "Test split, by view and task. See [the study](study_lung_nodules.md).",
        "lung_nodules/metrics.csv",
        _nodules,
    ),
    Section(
        "Robustness: the networks",
        "Unperturbed test splits of MedMNIST at 28 pixels. `mean` is the mean over the seeds, "
        "`together` the mean of the networks' logits. See [the study](study_robustness.md).",
        "robustness/*/performance.csv",
        _robustness,
    ),
    Section(
        "Robustness: detecting errors",
        "AUC of detectors of wrong answers on perturbed test images, judged on perturbations that "
        "they were not fitted on, and the gain over the confidence alone.",
        "robustness/*/detection.csv",
        _detection,
    ),
)
FAULTS = (
    Section(
        "What was tried to break it",
        "Damaged archives, images, settings and tables, and processes that were killed "
        "(`make faults`).",
        "faults.csv",
        _faults,
    ),
)
