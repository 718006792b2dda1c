"""Tables of the benchmarks, and of the times and sizes beside them.

Each function takes the tables of a section by their path in ``results/``, in the form in which
`covid_lab.runs`, the audits and the studies write them. It returns a table whose cells are text.
"""

import pandas as pd

from covid_lab.documentation.cells import NONE, Tables, intervals, only

SUITES = {
    "explain": (
        "Explanations",
        "Time and memory of the explanations against the packages that people use and against a "
        "compiled prediction.",
    ),
    "perturbations": (
        "Perturbations",
        "The five perturbations of the robustness study against imagecorruptions.",
    ),
    "training": (
        "Training",
        "The input pipeline, a training step, and a sweep of new layers on cached features.",
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
    "commands": ("Commands", "Start of commands and whole runs against the time promised."),
}
UNITS = {"s": "s", "seconds": "s", "MiB": "MiB"}


def suite(tables: Tables, name: str) -> pd.DataFrame:
    """Tabulate the comparisons of one suite.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.
    name : str, key of `SUITES`
        The suite.

    Returns
    -------
    pd.DataFrame of str
        One row per comparison: ours and the other side, the ratio, and the goal.
    """
    table = only(tables)
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


def course_times(tables: Tables) -> pd.DataFrame:
    """Tabulate the minutes of each part of the course run.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per part.
    """
    table = only(tables)
    return pd.DataFrame(
        {
            "part": table["part"],
            "backbone": table["backbone"],
            "minutes": (table["seconds"] / 60).map("{:.1f}".format),
            "how": table["how"],
        }
    )


def growth(tables: Tables) -> pd.DataFrame:
    """Tabulate memory and seconds of each stage.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.

    Returns
    -------
    pd.DataFrame of str
        One row per stage, one column per number of images.
    """
    table = only(tables)
    text = [f"{row.mib:.0f} MiB, {row.seconds:.1f} s" for row in table.itertuples()]
    wide = table.assign(text=text).pivot_table(
        index="stage", columns="images", values="text", aggfunc="first", sort=False
    )
    wide.columns = [f"{count:,} images" for count in wide.columns]
    return wide.reset_index()


def near_copies(tables: Tables) -> pd.DataFrame:
    """Tabulate the recall of each kind of copy, and the precision, of each tool and draw.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``: one per draw.

    Returns
    -------
    pd.DataFrame of str
        One row per kind, one column per tool, setting and draw.
    """
    columns = {}
    for draw, table in enumerate(tables.values(), 1):
        for (tool, setting), part in table.groupby(["tool", "setting"], sort=False):
            heading = f"{tool}, second draw" if draw == 2 else f"{tool}, {setting}"
            kind = part["measure"].where(part["kind"] == "all", part["kind"])
            columns[heading] = pd.Series(intervals(part).to_numpy(), kind)
    return pd.DataFrame(columns).rename_axis("copy").reset_index()
