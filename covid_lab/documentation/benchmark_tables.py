"""Tables of the benchmarks, and of the times and sizes beside them.

Each function takes the table of a section, or several by path, in the form in which
`covid_lab.runs`, the audits and the studies write them. It returns a table whose cells are text.
"""

from functools import partial

import pandas as pd

from covid_lab.documentation.cells import NONE, Section, Tables, intervals, wide

SUITES = {
    "explain": (
        "Explanations",
        "Time of the explanations against the packages that people use and against a "
        "compiled prediction.",
    ),
    "perturbations": (
        "Perturbations",
        "The five perturbations of the robustness study against imagecorruptions.",
    ),
    "training": (
        "Training",
        "What a training epoch waits for, and a sweep of new layers on cached features.",
    ),
    "course run": (
        "All trainings of the course run",
        "The same search by the recipe of published notebooks, which read and augment the files "
        "and run through the frozen layers in every epoch. Both sides are seconds per image and "
        "epoch, measured in one process, times the epochs of the committed run.",
    ),
    "lungs": (
        "Lung segmentation",
        "The shipped U-Net against the classical segmentation, in time and in 1 − Dice.",
    ),
    "near copies": (
        "Near copies",
        "The search for near copies against the recall and precision promised; the recall of each "
        "kind, and that of other packages, is on the page of the audit.",
    ),
    "statistics": (
        "Statistics",
        "What is computed here although scikit-learn does it as well, in time.",
    ),
    "commands": ("Commands", "Start of commands and whole runs against the time promised."),
}
UNITS = {"s": "s", "seconds": "s", "MiB": "MiB"}


def _suite(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Tabulate the comparisons of one suite."""
    table = table[table["suite"] == name]
    ratio = [
        f"{row.ratio:.1f} ({row.ratio_low:.1f}–{row.ratio_high:.1f})" for row in table.itertuples()
    ]
    met = (table["ratio"] >= table["promised"]).map({True: "yes", False: "**no**"})
    return pd.DataFrame(
        {
            "what": table["name"],
            "against": table["against"],
            "ours": [_number(row.ours, row.unit) for row in table.itertuples()],
            "other": [_number(row.peer, row.unit) for row in table.itertuples()],
            "ratio": ratio,
            "goal": table["promised"].map("{:.1f}".format).where(table["promised"].notna(), NONE),
            "met": met.where(table["promised"].notna(), NONE),
            "measured": table["date"],
        }
    )


def _number(value: float, unit: str) -> str:
    if unit not in UNITS:
        return f"{value:.3f}"
    return f"{value:,.0f} {UNITS[unit]}" if value >= 100 else f"{value:.3g} {UNITS[unit]}"


def _course_times(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the minutes of each part of the course run."""
    return pd.DataFrame(
        {
            "part": table["part"],
            "backbone": table["backbone"],
            "minutes": (table["seconds"] / 60).map("{:.1f}".format),
            "how": table["how"],
        }
    )


def _growth(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate memory and seconds of each stage."""
    text = [f"{row.mib:.0f} MiB, {row.seconds:.1f} s" for row in table.itertuples()]
    found = wide(table, "stage", "images", pd.Series(text, table.index))
    return found.rename(columns=lambda name: name if name == "stage" else f"{name:,} images")


def _near_copies(tables: Tables) -> pd.DataFrame:
    """Tabulate the recall of each kind of copy, and the precision, of each tool and draw."""
    columns = {}
    for draw, table in enumerate(tables.values(), 1):
        for (tool, setting), part in table.groupby(["tool", "setting"], sort=False):
            heading = f"{tool}, second draw" if draw == 2 else f"{tool}, {setting}"
            kind = part["measure"].where(part["kind"] == "all", part["kind"])
            columns[heading] = pd.Series(intervals(part).to_numpy(), kind)
    return pd.DataFrame(columns).rename_axis("copy").reset_index()


BENCHMARKS = (
    *(
        Section(
            heading,
            shows,
            "benchmarks.csv",
            partial(_suite, name=suite),
        )
        for suite, (heading, shows) in SUITES.items()
    ),
    Section(
        "Time of the course run",
        "The four notebooks on two cores without a GPU.",
        "course_times.csv",
        _course_times,
    ),
    Section(
        "Memory and time by number of images",
        "Largest memory of a process beyond what it had before the stage, and seconds, for drawn "
        "images of 128 pixels.",
        "growth.csv",
        _growth,
    ),
    Section(
        "Near copies by kind",
        "Recall of 60 planted copies of each kind among 1,100 radiographs, and precision, with "
        "95 % intervals. The best threshold of a package was chosen on the draw itself. The first "
        "draw was read twice by covid_lab, whose threshold was raised from 0.70 to 0.75 in "
        "between.",
        "near_copies*.csv",
        _near_copies,
    ),
)
