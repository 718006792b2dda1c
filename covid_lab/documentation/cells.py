"""What the generated pages are made of: sections, numbers as text, long tables made wide."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

import pandas as pd

from covid_lab.pages import number_text

Tables = dict[str, pd.DataFrame]  # path in results/ → table
NONE = "–"


@dataclass(frozen=True)
class Section:
    """One table of a generated page.

    Attributes
    ----------
    heading : str
        Heading of the section.
    shows : str
        What the table shows, in one or two sentences.
    files : str
        The CSV in ``results/``, or a pattern such as ``audit/*/audit.csv`` for several.
    table : callable
        Takes the table of the file, or {path in results: table} where ``files`` is a pattern;
        returns a table whose cells are text.
    """

    heading: str
    shows: str
    files: str
    table: Callable[[pd.DataFrame | Tables], pd.DataFrame]


def number(value: float, digits: int = 3, sign: bool = False) -> str:
    """Write a number as text.

    Parameters
    ----------
    value : float
        The number; NaN gives `NONE`.
    digits : int, from 0
        Decimal places.
    sign : bool
        Whether to write a plus before a positive number, as for differences.

    Returns
    -------
    str
        With a true minus sign, and never "−0.000".

    Examples
    --------
    >>> number(0.9504), number(-0.0001), number(float("nan")), number(0.25, digits=2, sign=True)
    ('0.950', '0.000', '–', '+0.25')
    """
    if pd.isna(value):
        return NONE
    return number_text(value, digits, "+" if sign else "-")


def p_value(value: float) -> str:
    """Write a p-value as text.

    Parameters
    ----------
    value : float, 0–1
        The p-value.

    Returns
    -------
    str
        "< 0.001" below that, else three decimal places.

    Examples
    --------
    >>> p_value(0.0003), p_value(0.04)
    ('< 0.001', '0.040')
    """
    return "< 0.001" if value < 0.001 else number(value)


def intervals(
    table: pd.DataFrame, value="value", low="low", high="high", sign: bool = False
) -> pd.Series:
    """Write "value (low–high)" for each row, or only the value where the bounds are missing.

    Parameters
    ----------
    table : pd.DataFrame, N rows
        Table with the columns.
    value : str
        Column of the values.
    low : str
        Column of the lower bounds.
    high : str
        Column of the upper bounds.
    sign : bool
        Whether to write a plus before a positive value, as for differences.

    Returns
    -------
    pd.Series of str, (N,)
        Such as "0.950 (0.910–0.973)".

    Examples
    --------
    >>> import pandas as pd
    >>> intervals(pd.DataFrame({"value": [0.95], "low": [0.91], "high": [0.973]})).tolist()
    ['0.950 (0.910–0.973)']
    """

    def text(row) -> str:
        middle = number(row[value], sign=sign)
        if pd.isna(row[low]):
            return middle
        between = " to " if row[low] < 0 else "–"
        return f"{middle} ({number(row[low])}{between}{number(row[high])})"

    return table.apply(text, axis=1) if len(table) else pd.Series(dtype=str)


def stacked(tables: Tables, level: int) -> pd.DataFrame:
    """Stack all tables of a section.

    Parameters
    ----------
    tables : dict of str to pd.DataFrame
        The section's tables, by path in ``results/``.
    level : int, from 0
        Which folder of the path, counted from ``results/``, becomes the column ``name``.

    Returns
    -------
    pd.DataFrame
        All rows, with the column ``name``.
    """
    return pd.concat(
        [table.assign(name=PurePosixPath(path).parts[level]) for path, table in tables.items()],
        ignore_index=True,
    )


def wide(table: pd.DataFrame, index: str, columns: str, text: pd.Series) -> pd.DataFrame:
    """Make a long table of texts wide.

    Parameters
    ----------
    table : pd.DataFrame, N rows
        Long table.
    index : str
        Column whose values become the rows.
    columns : str
        Column whose values become the columns.
    text : pd.Series of str, (N,)
        Texts of the cells; the first where there are several for one cell.

    Returns
    -------
    pd.DataFrame of str
        One row per value of ``index``, one column per value of ``columns``; `NONE` in empty cells.
    """
    found = table.assign(text=text).pivot_table(
        index=index, columns=columns, values="text", aggfunc="first", sort=False
    )
    found.columns.name = None
    return found.fillna(NONE).reset_index()


def mean_range(values: pd.Series) -> str:
    """Write "mean (smallest–largest)" of the results of several seeds.

    Parameters
    ----------
    values : pd.Series of float, (N,), N from 1
        One result per seed.

    Returns
    -------
    str
        Only the value where there is one seed.

    Examples
    --------
    >>> import pandas as pd
    >>> mean_range(pd.Series([0.9, 0.94])), mean_range(pd.Series([0.9]))
    ('0.920 (0.900–0.940)', '0.900')
    """
    if len(values) == 1:
        return number(values.iloc[0])
    return f"{number(values.mean())} ({number(values.min())}–{number(values.max())})"
