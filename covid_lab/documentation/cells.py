"""Numbers as the generated pages show them, and long tables made wide."""

from pathlib import PurePosixPath

import pandas as pd

Tables = dict[str, pd.DataFrame]  # path in results/ → table
NONE = "–"


def number(value: float, digits: int = 3, sign: bool = False) -> str:
    """Return a number as text, `NONE` where it is missing, and never "-0.000"."""
    if pd.isna(value):
        return NONE
    value = round(float(value), digits) + 0.0
    return f"{value:{'+' if sign and value else ''}.{digits}f}".replace("-", "−")


def p_value(value: float) -> str:
    """Return a p-value as text."""
    return "< 0.001" if value < 0.001 else number(value)


def intervals(
    table: pd.DataFrame, value="value", low="low", high="high", sign: bool = False
) -> pd.Series:
    """Return "value (low–high)" of each row, the value alone where bounds are missing.

    Parameters
    ----------
    table : pd.DataFrame, N rows
    value, low, high : str
        Names of the columns.
    sign : bool
        Write a plus before a positive value, as for differences.

    Returns
    -------
    pd.Series of str, (N,)
    """

    def text(row) -> str:
        middle = number(row[value], sign=sign)
        if pd.isna(row[low]):
            return middle
        between = " to " if row[low] < 0 else "–"
        return f"{middle} ({number(row[low])}{between}{number(row[high])})"

    return table.apply(text, axis=1) if len(table) else pd.Series(dtype=str)


def only(tables: Tables) -> pd.DataFrame:
    """Return the table of a section with a single file."""
    (table,) = tables.values()
    return table


def stacked(tables: Tables, level: int) -> pd.DataFrame:
    """Return all tables below each other; ``name`` is the folder at ``level`` of the path."""
    return pd.concat(
        [table.assign(name=PurePosixPath(path).parts[level]) for path, table in tables.items()],
        ignore_index=True,
    )


def wide(table: pd.DataFrame, index: str, columns: str, text: pd.Series) -> pd.DataFrame:
    """Return the texts of a long table, one row per ``index`` and one column per ``columns``.

    Parameters
    ----------
    table : pd.DataFrame, N rows
    index, columns : str
        Names of the columns whose values become the rows and the columns.
    text : pd.Series of str, (N,)
        Where there are several for one cell, the first is shown.
    """
    found = table.assign(text=text).pivot_table(
        index=index, columns=columns, values="text", aggfunc="first", sort=False
    )
    found.columns.name = None
    return found.fillna(NONE).reset_index()


def mean_range(values: pd.Series) -> str:
    """Return "mean (smallest–largest)" of some seeds, the value alone of one."""
    if len(values) == 1:
        return number(values.iloc[0])
    return f"{number(values.mean())} ({number(values.min())}–{number(values.max())})"
