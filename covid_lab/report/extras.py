"""What ``studies/course_extras.ipynb`` adds to the evidence of a run.

Seeds, ablations, calibration and tests of the explanations. The sheet does not ask for them: where
they were not run, the report leaves out the sentences about them.
"""

import numpy as np
import pandas as pd

from covid_lab.comparison import verdict
from covid_lab.report.latex import (
    bounds,
    difference,
    duration,
    escape,
    number,
    p_value,
    percent,
    percent_bounds,
    plus_minus,
    tabular,
    yes,
)
from covid_lab.report.reading import NAMES, OUTCOMES, STAGES, RunTables
from covid_project.evaluation import SIGNIFICANCE, holm

HEAT = ["central_heat", "low", "high"]  # columns of gradcam_groups.csv
FEWEST = 5  # images of a group that a test compares with another


def _seeds(run: RunTables, values: dict, tables: dict) -> None:
    """Add trainings of the chosen models that differ only in the seed."""
    baseline, transfer = run.table("seeds_baseline.csv"), run.table("seeds_transfer.csv")
    losses = run.table("tuning_baseline.csv")["val_loss"]
    close = losses <= losses.min() + 2 * baseline["val_loss"].std()
    values |= {
        "seeds.n": str(len(baseline)),
        "tuning.baseline.close": str(int(close.sum()) - 1),
        "seeds.transfer.spread": number(np.ptp(transfer["val_accuracy"]), 3),
    }
    for stage, table in (("baseline", baseline), ("transfer", transfer)):
        for metric in ("loss", "accuracy", "AUC"):
            column = table[f"val_{metric}"]
            values[f"seeds.{stage}.{metric}"] = plus_minus(column.mean(), column.std(), 3)


def _variants(run: RunTables, values: dict, tables: dict) -> None:
    """Add the tuned baseline with one change each, on the validation set."""
    variants = run.table("variants_baseline.csv").set_index("case")
    others = variants.drop("as tuned").copy()
    others["p_adjusted"] = holm(others["AUC_p_value"].to_numpy())
    others["outcome"] = [
        verdict(*row) for row in zip(others["AUC_difference"], others["p_adjusted"], strict=True)
    ]
    (half,) = (name for name in others.index if name.endswith(" px"))
    for key, case in {
        "half": half,
        "plain": "no augmentation",
        "sgd": "SGD with momentum",
        "focal": "focal loss",
    }.items():
        values[f"variants.{key}.AUC"] = difference(others.loc[case], "AUC_")
        values[f"variants.{key}.outcome"] = OUTCOMES[others.loc[case, "outcome"]]
    plain, tuned = others.loc["no augmentation", "val_loss"], variants.loc["as tuned", "val_loss"]
    values["variants.plain.lower"] = yes(plain < tuned)
    values["variants.plain.loss"] = number(plain, 3)
    values["variants.tuned.loss"] = number(tuned, 3)
    values["variants.half.seconds"] = duration(others.loc[half, "epoch_seconds"])
    values["variants.tuned.seconds"] = duration(variants.loc["as tuned", "epoch_seconds"])
    strategies = others[others.index.str.startswith("normalization: ")]
    for outcome in ("better", "worse"):
        names = strategies.index[strategies["outcome"] == outcome]
        listed = ", ".join(name.removeprefix("normalization: ") for name in names)
        values[f"variants.normalization.{outcome}"] = escape(listed) or "none"
    tables["variants"] = tabular(
        "lrll",
        ["variant", "accuracy", "difference of AUC", "$p$"],
        [
            ["as tuned", number(variants.loc["as tuned", "val_accuracy"], 3), "", ""],
            *(
                [
                    escape(case),
                    number(row["val_accuracy"], 3),
                    difference(row, "AUC_"),
                    p_value(row["p_adjusted"], bare=True),
                ]
                for case, row in others.iterrows()
            ),
        ],
    )


def _calibration(run: RunTables, values: dict, tables: dict) -> None:
    calibration = run.table("calibration.csv")
    calibration = calibration[calibration["stage"].isin(STAGES)]
    calibration = calibration.assign(p_adjusted=holm(calibration["p_value"].to_numpy()))
    bad = calibration.loc[calibration["p_adjusted"] < SIGNIFICANCE, "stage"].tolist()
    phrases = {0: "neither model is", len(STAGES): "both models are"}
    values["calibration.bad"] = phrases.get(len(bad)) or f"only the {NAMES[bad[0]]} model is"
    tables["calibration"] = tabular(
        "lllll",
        ["model", "ECE", "calibrated", "$p$", "Brier score"],
        [
            [
                NAMES[row["stage"]],
                bounds(row["ece"], row["ece_low"], row["ece_high"]),
                number(row["expected"], 3),
                p_value(row["p_adjusted"], bare=True),
                bounds(row["brier"], row["brier_low"], row["brier_high"]),
            ]
            for _, row in calibration.iterrows()
        ],
    )


def _heat_by_group(run: RunTables, values: dict, tables: dict) -> None:
    """Add how much heat is off the border, by label and verdict."""
    groups = run.table("gradcam_groups.csv")
    by_group = groups.set_index(["label", "verdict"])
    covid, normal = (by_group.loc[(name, "correct")] for name in ("COVID", "NORMAL"))
    tested = groups["p_value"].notna() & (groups["n"] >= FEWEST)
    groups["p_adjusted"] = np.nan
    groups.loc[tested, "p_adjusted"] = holm(groups.loc[tested, "p_value"].to_numpy())
    values |= {
        "cam.area": percent(groups["area"].iloc[0]),
        "cam.covid.correct": percent_bounds(*covid[HEAT]),
        "cam.normal.correct": percent_bounds(*normal[HEAT]),
        "cam.covid.centred": yes(covid["low"] > covid["area"]),
        "cam.covid.border": percent(1 - covid["central_heat"]),
        "cam.normal.border": percent(1 - normal["central_heat"]),
        "cam.fewest": str(FEWEST),
        "cam.wrong.enough": yes(tested.any()),
        "cam.wrong.differs": yes((groups["p_adjusted"] < SIGNIFICANCE).any()),
    }
    tables["gradcam"] = tabular(
        "llrll",
        ["label", "verdict", "images", "heat in the middle", "$p$"],
        [
            [
                row["label"],
                row["verdict"],
                str(row["n"]),
                percent_bounds(*row[HEAT]),
                p_value(row["p_adjusted"], bare=True),
            ]
            for _, row in groups.iterrows()
        ],
    )


def _explanations(run: RunTables, values: dict, tables: dict) -> None:
    """Add the results of the tests of Grad-CAM."""
    tested = run.table("explanations.csv")
    own = tested[tested["method"] == "grad-cam"]
    final = own[own["stage"] != "baseline_tuned"]
    lungs = _tested(own, "energy inside", "lungs")
    deletion = _tested(own, "deletion", "to the mean")
    road = _tested(own, "ROAD", "least less most")
    cascade = final[final["setting"].str.startswith("cascading") & (final["measure"] == "SSIM")]
    random, noise = cascade.iloc[-1], _tested(own, "SSIM", "noise", starts=True)
    twins = _tested(own, "SSIM", "another seed")
    centred = tested[(tested["method"] == "centred Gaussian") & tested["versus"].isna()]
    centred = centred[(centred["measure"] == "energy inside") & (centred["setting"] == "lungs")]
    values |= {
        "explain.n": str(int(deletion["n"])),
        "explain.methods": str(
            tested["method"].nunique() - len(tested["versus"].dropna().unique())
        ),
        "explain.lungs.known": yes((tested["lungs"] == "known").all()),
        "explain.lungs.share": percent_bounds(*lungs[["value", "low", "high"]]),
        "explain.lungs.centred": percent(centred["value"].iloc[0]),
        "explain.lungs.n": str(int(lungs["n"])),
        "explain.lungs.random": _against(own, "energy inside", "lungs", "random"),
        "explain.lungs.outcome": _against(own, "energy inside", "lungs", "centred Gaussian"),
        "explain.deletion": number(deletion["value"], 2),
        "explain.deletion.outcome": _against(own, "deletion", "to the mean", "random"),
        "explain.road": bounds(road["value"], road["low"], road["high"], digits=2),
        "explain.road.outcome": _against(own, "ROAD", "least less most", "centred Gaussian"),
        "explain.random": number(random["value"], 2),
        "explain.pairs": number(random["reference"], 2),
        "explain.random.passes": yes(random["verdict"] == "pass"),
        "explain.noise": number(noise["value"], 2),
        "explain.noise.passes": yes(noise["verdict"] == "pass"),
        "explain.twins": bounds(twins["value"], twins["low"], twins["high"], digits=2),
        "explain.twins.pairs": number(twins["reference"], 2),
        "explain.twins.passes": yes(twins["verdict"] == "pass"),
    }


def _tested(own: pd.DataFrame, measure: str, setting: str, starts: bool = False) -> pd.Series:
    """Return the row with the mean of one measure over the images."""
    settings = own["setting"].str.startswith(setting) if starts else own["setting"] == setting
    return own[(own["measure"] == measure) & settings & own["versus"].isna()].iloc[0]


def _against(own: pd.DataFrame, measure: str, setting: str, baseline: str) -> str:
    here = (own["measure"] == measure) & (own["setting"] == setting) & (own["versus"] == baseline)
    return OUTCOMES.get(own.loc[here, "verdict"].iloc[0], OUTCOMES["no difference"])


PARTS = (_seeds, _variants, _calibration, _heat_by_group, _explanations)
