"""What the exploration and pre-processing of the data (task 1) add to the evidence of a run."""

import pandas as pd

from covid_lab.report.latex import (
    escape,
    interval,
    number,
    p_value,
    percent,
    plus_minus,
    sentence,
    tabular,
    yes,
)
from covid_lab.report.reading import RunTables
from covid_project.evaluation import SIGNIFICANCE

BALANCED = 0.4, 0.6  # fraction of COVID images in a split
EVEN = 0.02  # largest difference between the splits' fractions that are called even


def add_exploration(run: RunTables, values: dict, tables: dict) -> None:
    """Add the sizes, grey values, splits and image quality of the data, and the pre-processing.

    Parameters
    ----------
    run : RunTables
    values : dict of str to str
        Receives the values.
    tables : dict of str to str
        Receives the tables "exploration" and "quality".

    Raises
    ------
    EvidenceMissing
        The notebook ``data_exploration`` has not written its tables.
    """
    settings = run.settings()
    grey = run.table("exploration.csv").set_index(["split", "class"])
    sizes, tests = run.table("image_sizes.csv"), run.table("split_tests.csv")
    for split in ("train", "val", "test"):
        values[f"n.{split}"] = str(grey.loc[(split, "both"), "images"])
        fraction = grey.loc[(split, "COVID"), "images"] / grey.loc[(split, "both"), "images"]
        values[f"covid.share.{split}"] = number(fraction, 3)
    fractions = grey.xs("COVID", level="class")["images"] / grey.xs("both", level="class")["images"]
    equal = (sizes[["widest", "highest"]].to_numpy() == sizes[["narrowest", "lowest"]]).all(None)
    equal = equal and len(sizes[["narrowest", "lowest"]].drop_duplicates()) == 1
    p = tests.set_index("compared")["p_value"]
    shift = abs(
        grey.loc[("train", "COVID"), "image_mean"] - grey.loc[("train", "NORMAL"), "image_mean"]
    )
    spread = grey.loc[("train", "both"), "image_mean_std"]
    values |= {
        "classes.balanced": yes(fractions.between(*BALANCED).all()),
        "sizes.equal": yes(equal),
        "sizes.width": str(sizes["narrowest"].min()),
        "sizes.height": str(sizes["lowest"].min()),
        "grey.low": str(grey["min"].min()),
        "grey.high": str(grey["max"].max()),
        "grey.spread": number(spread, 1),
        "grey.shift": number(shift, 1),
        "grey.ratio": number(spread / shift, 1),
        "splits.classes.p": p_value(p["classes, all splits"]),
        "splits.val.p": p_value(p["brightness, train and val"]),
        "splits.test.p": p_value(p["brightness, train and test"]),
        "splits.even": yes(fractions.max() - fractions.min() < EVEN),
        "splits.alike": yes(p.drop("brightness, NORMAL and COVID").min() >= SIGNIFICANCE),
        "brightness.p": p_value(p["brightness, NORMAL and COVID"]),
    }
    tables["exploration"] = tabular(
        "llrrr",
        ["split", "class", "images", "all pixels", "image mean"],
        [
            [
                split,
                name,
                str(row["images"]),
                plus_minus(row["global_mean"], row["global_std"], 1),
                plus_minus(row["image_mean"], row["image_mean_std"], 1),
            ]
            for (split, name), row in grey.iterrows()
        ],
    )
    _quality(run.table("image_quality.csv"), values, tables)
    _pre_processing(run, settings, values)


def _quality(quality: pd.DataFrame, values: dict, tables: dict) -> None:
    quality = quality.rename(columns={"AUC": "value"}).set_index("number")
    best = quality.loc[(quality["value"] - 0.5).abs().idxmax()]
    border = quality.loc["mean of the border"]
    values |= {
        "chance.AUC": number(0.5, 1),
        "quality.best.name": escape(best.name),
        "quality.best.AUC": _directed(best),
        "quality.best.covid": number(best["median_COVID"], 1),
        "quality.best.normal": number(best["median_NORMAL"], 1),
        "quality.differs": yes(_tells(best)),
        "quality.border.AUC": _directed(border),
        "quality.border.tells": yes(_tells(border)),
    }
    tables["quality"] = tabular(
        "lrrl",
        ["number", "NORMAL", "COVID", "AUC"],
        [
            [
                escape(name),
                number(row["median_NORMAL"], 1),
                number(row["median_COVID"], 1),
                interval(_upwards(row)),
            ]
            for name, row in quality.iterrows()
        ],
    )


def _directed(row: pd.Series) -> str:
    """Write an AUC of 0.5 or more, its interval, and the class in which the number is higher."""
    text = interval(_upwards(row))
    start = f"{text[:-1]}; " if text.endswith(")") else f"{text} ("
    return f"{start}{'lower' if row['value'] < 0.5 else 'higher'} in COVID)"


def _upwards(row: pd.Series) -> pd.Series:
    """Reverse the direction of an AUC below 0.5."""
    if row["value"] >= 0.5:
        return row
    return pd.Series({"value": 1 - row["value"], "low": 1 - row["high"], "high": 1 - row["low"]})


def _tells(row: pd.Series) -> bool:
    """Tell whether the interval of an AUC excludes chance."""
    return bool(row["low"] > 0.5 or row["high"] < 0.5)


def _pre_processing(run: RunTables, settings: dict, values: dict) -> None:
    from covid_project.normalization import STRATEGIES  # Keras, which takes seconds to load

    size, augmentation = settings["image_size"], settings["augmentation"]
    resizing = run.table("resizing.csv").set_index("image_size")
    values |= {
        "image.size": str(size),
        "resizing.largest": str(resizing["largest"].iloc[0]),
        "resizing.lost": number(resizing.loc[size, "lost_grey_levels"], 1),
        "resizing.half.size": str(size // 2),
        "resizing.half.lost": number(resizing.loc[size // 2, "lost_grey_levels"], 1),
        "transfer.size": str(settings["transfer"]["image_size"]),
        "normalization.description": sentence(
            STRATEGIES[settings["normalization"]].__doc__.rstrip(".")
        ),
        "normalization.sample": yes(settings["normalization"] == "sample"),
        "augmentation.flip": yes(augmentation["flip"]),
        "augmentation.rotation": f"{augmentation['rotation']:g}$^\\circ$",
        **{
            f"augmentation.{name}": percent(augmentation[name])
            for name in ("zoom", "shift", "brightness", "contrast")
        },
    }
