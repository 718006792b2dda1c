"""Tables of the course run and of the external tests.

Each function takes the table of a section, or several by path, in the form in which
`covid_lab.runs`, the audits and the studies write them. It returns a table whose cells are text.
"""

from functools import partial
from pathlib import PurePosixPath

import pandas as pd

from covid_lab.documentation.cells import (
    NONE,
    Section,
    Tables,
    intervals,
    mean_range,
    number,
    p_value,
    wide,
)

# ---- the course run -----------------------------------------------------------------------------


def _metrics(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """Tabulate the metrics of a split."""
    table = table[table["split"] == split]
    counts = table.groupby("stage", sort=False)["n"].max()
    titles = {stage: f"{stage}, n = {n:.0f}" for stage, n in counts.items()}
    return wide(table, "metric", "stage", intervals(table)).rename(columns=titles)


def _comparisons(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the differences of two models, second minus first."""
    return pd.DataFrame(
        {
            "metric": table["metric"],
            "difference": intervals(table, "difference", sign=True),
            "adjusted p": table["p_adjusted"].map(p_value),
            "test": table["test"],
            "n": table["n"],
        }
    )


def _calibration(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the calibration error of each model."""
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


def _searches(tables: Tables) -> pd.DataFrame:
    """Tabulate the best trial of each hyperparameter search."""
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


def _heat_by_group(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate where the heat is, for correct and misclassified images of each class."""
    return pd.DataFrame(
        {
            "label": table["label"],
            "prediction": table["verdict"],
            "heat in the middle": intervals(table, "central_heat"),
            "area": table["area"].map(number),
            "images": table["n"],
        }
    )


def _image_quality(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate how well single numbers of an image separate the classes."""
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


def _batch_norm(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate validation results by the BatchNorm statistics at the end of a training."""
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


def _ledger(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the test evaluations of a run."""
    return pd.DataFrame(
        {"stage": table["stage"], "evaluation": table["look"], "model": table["model"]}
    )


# ---- another hospital ---------------------------------------------------------------------------

FROZEN = ("inputs", "template")  # stages of the mitigation that train no network
EXTERNAL = ("balanced accuracy", "AUC", "sensitivity", "specificity")


def _external(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the external test."""
    found = wide(table, "model", "metric", intervals(table))[["model", *EXTERNAL]]
    own = table[table["metric"] == "AUC"].set_index("model")
    if "own_value" in own:
        at_home = intervals(own, "own_value", "own_low", "own_high")
        found["AUC on the own test split"] = found["model"].map(at_home)
    return found.assign(n=found["model"].map(own["n"].astype(int)))


def _use(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate which parts of the image are sufficient for each model."""
    return wide(table, "check", "model", intervals(table)).rename(columns={"check": "shown"})


def _heat(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the heat on marked opacities above even heat."""
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


def _probe(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate how often images of other diseases are called COVID."""
    counts = table.groupby("group", sort=False)["n"].max()
    found = wide(table, "model", "group", intervals(table))
    return found.rename(columns={group: f"{group}, n = {n}" for group, n in counts.items()})


def _external_controls(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the controls: the border elsewhere, and halves of one test set."""
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


def _mitigation_inputs(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the external AUC by input, averaged over the image or the lungs."""
    table = table[table["stage"].isin(FROZEN) & (table["target_images"] == "none")]
    parts = table["method"].str.extract(r"frozen features, (.+), averaged over the (\w+)$")
    table = table.assign(input=parts[0], over="over the " + parts[1])
    text = intervals(table, "AUC", "AUC_low", "AUC_high")
    found = wide(table, "input", "over", text)
    return found[["input", "over the image", "over the lungs"]]


def _mitigation_exits(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the methods that train a part of the network."""
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


def _recentring(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the balanced accuracy by the prevalence among the unlabelled images."""
    return pd.DataFrame(
        {
            "fraction with the disease": table["prevalence"].map("{:.2f}".format),
            "images": table["images"],
            "balanced accuracy": intervals(table, "balanced_accuracy"),
            "sensitivity": table["sensitivity"].map(number),
            "specificity": table["specificity"].map(number),
        }
    )


def _external_ledger(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the test evaluations on other collections."""
    return table[["name", "data", "look", "date"]].rename(columns={"look": "evaluation"})


# ---- their sections -----------------------------------------------------------------------------

COURSE = (
    Section(
        "Test set",
        "The two final models on the test split, at the threshold 0.5.",
        "metrics.csv",
        partial(_metrics, split="test"),
    ),
    Section(
        "Validation set",
        "The tuned models on the validation split, on which they were chosen. `transfer` is the "
        "frozen backbone with new layers, which is not tested.",
        "metrics.csv",
        partial(_metrics, split="val"),
    ),
    Section(
        "Fine-tuned model against baseline",
        "Differences on the same test images, with p-values adjusted by Holm's method.",
        "comparisons.csv",
        _comparisons,
    ),
    Section(
        "Calibration on the test set",
        "The expected calibration error (ECE) beside the error that a perfectly calibrated model "
        "would show on as many images. A small p-value says that the model is not calibrated.",
        "calibration.csv",
        _calibration,
    ),
    Section(
        "What the searches chose",
        "The best trial of each hyperparameter search, by validation loss.",
        "tuning_*.csv",
        _searches,
    ),
    Section(
        "Grad-CAM by group",
        "Median fraction of the heat in the middle of the image, off the outer tenth of each side, "
        "for groups of test images. Even heat has the fraction in the column area.",
        "gradcam_groups.csv",
        _heat_by_group,
    ),
    Section(
        "What grey values give away",
        "How well one number of the image, which says nothing about lungs, separates the classes "
        "of the training split. An AUC below 0.5 is reversed; the last column names the class with "
        "the higher values.",
        "image_quality.csv",
        _image_quality,
    ),
    Section(
        "BatchNorm statistics at the end of a training",
        "The baseline's final training repeated on the training split, scored on the validation "
        "split: mean over the seeds, with the range.",
        "batch_norm.csv",
        _batch_norm,
    ),
    Section(
        "Test evaluations",
        "The ledger. A number above 1 would say that a stage was tested more than once.",
        "test_ledger.csv",
        _ledger,
    ),
)
ANOTHER_HOSPITAL = (
    Section(
        "External test",
        "Final models on the test split of SIIM-FISABIO-RSNA, at the threshold of the course, "
        "beside their AUC on the course's own test split. [What narrows the gap](external.md"
        "#what-narrows-the-gap) explains the networks with two exits.",
        "external/external_siim/metrics.csv",
        _external,
    ),
    Section(
        "What suffices for the model",
        "AUC on the external images when only a part of the image is shown, and the fraction of "
        "Grad-CAM's heat that is inside the lungs.",
        "external/external_siim/use.csv",
        _use,
    ),
    Section(
        "Heat on opacities",
        "Fraction of Grad-CAM's heat on opacities that radiologists marked, minus the fraction "
        "that even heat would have there: over the whole image, and inside the lungs only.",
        "external/external_siim/heat.csv",
        _heat,
    ),
    Section(
        "Other diseases",
        "Fraction of images without COVID-19 that are called COVID.",
        "external/external_siim/probe.csv",
        _probe,
    ),
    Section(
        "Controls of the external test",
        "A linear model that sees the border only, and test sets divided at random into two halves "
        "(fraction of the divisions whose difference in AUC would count as a drop; about 0.05 or "
        "less is expected).",
        "external/external_siim/controls.csv",
        _external_controls,
    ),
    Section(
        "Mitigation: what the network sees",
        "AUC on SIIM's validation split, without images of SIIM in training: a linear model of "
        "frozen features, averaged over the image or over the lungs. One seed.",
        "external/mitigation/mitigation.csv",
        _mitigation_inputs,
    ),
    Section(
        "Mitigation: which part is trained",
        "Validation splits of both collections, mean over the seeds with the range, where there is "
        "more than one. The second column says which images of SIIM a method needs: none, "
        "unlabelled ones for the threshold, or labelled ones.",
        "external/mitigation/mitigation.csv",
        _mitigation_exits,
    ),
    Section(
        "Mitigation: the threshold from unlabelled images",
        "Balanced accuracy on SIIM's validation split when the threshold is set with some "
        "unlabelled images, by the fraction of them that shows the disease.",
        "external/mitigation/recentring.csv",
        _recentring,
    ),
    Section(
        "External test evaluations",
        "The ledger of test splits of other collections.",
        "external/external_ledger.csv",
        _external_ledger,
    ),
)
