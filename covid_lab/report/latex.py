"""Numbers, names and tables as LaTeX text."""

import numpy as np
import pandas as pd


def escape(text: object) -> str:
    r"""Escape text for LaTeX.

    Parameters
    ----------
    text : object
        Converted to ``str``.

    Returns
    -------
    str
        Characters that are commands in LaTeX are written out. Characters that its fonts lack, such
        as Chinese ones, become their code.

    Examples
    --------
    >>> print(escape("50 % of COVID_1"), escape("胸"))
    50 \% of COVID\_1 [U+80F8]
    """
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: "\\" + character for character in "&%$#_{}"}
    special |= {"–": "--", "−": "$-$", "×": "$\\times$"}
    return "".join(
        special.get(character)
        or (character if ord(character) < 384 else f"[U+{ord(character):04X}]")
        for character in str(text)
    )


def texttt(text: object) -> str:
    """Set a file name or path in typewriter type.

    Parameters
    ----------
    text : object

    Returns
    -------
    str
    """
    return rf"\texttt{{{escape(text)}}}"


def number(value: float | None, digits: int) -> str:
    """Write a number with a fixed number of decimals.

    Parameters
    ----------
    value : float or None
    digits : int, from 0
        Decimals.

    Returns
    -------
    str
        A dash for None, NaN and infinity.

    Examples
    --------
    >>> number(0.98765, 3), number(-0.0001, 3), number(None, 3)
    ('0.988', '0.000', '--')
    """
    if value is None or not np.isfinite(value):
        return "--"
    return _rounded(value, f".{digits}f").replace("-", "$-$")


def _rounded(value: float, form: str) -> str:
    text = format(value, form)
    return text.lstrip("+-") if float(text) == 0 else text  # no −0.000


def rate(value: float) -> str:
    r"""Write a learning rate.

    Parameters
    ----------
    value : float, above 0

    Returns
    -------
    str
        A decimal number from 0.001 on, a power of ten below.

    Examples
    --------
    >>> print(rate(0.004), rate(3e-5))
    0.004 $3\times10^{-5}$
    """
    if value >= 0.001:
        return f"{value:.2g}"
    digits, exponent = f"{value:.1e}".split("e")
    return rf"${float(digits):g}\times10^{{{int(exponent)}}}$"


def bounds(value: float, low: float, high: float, digits: int = 3) -> str:
    """Write a value with its interval.

    Parameters
    ----------
    value, low, high : float
        Without an interval, ``low`` is NaN.
    digits : int, from 0
        Decimals.

    Returns
    -------
    str

    Examples
    --------
    >>> bounds(0.95, 0.91, 0.973)
    '0.950 (0.910--0.973)'
    """
    if not np.isfinite(low):
        return number(value, digits)
    return f"{number(value, digits)} ({number(low, digits)}--{number(high, digits)})"


def interval(row: pd.Series) -> str:
    """Write the value of a row with its interval, with three decimals.

    Parameters
    ----------
    row : pd.Series
        Has value, low and high.

    Returns
    -------
    str
    """
    return bounds(row["value"], row["low"], row["high"])


def difference(row: pd.Series, prefix: str = "") -> str:
    """Write a difference with its sign and interval.

    Parameters
    ----------
    row : pd.Series
        Has difference, low and high, each after the prefix.
    prefix : str
        Such as "AUC_".

    Returns
    -------
    str

    Examples
    --------
    >>> difference(pd.Series({"difference": 0.02, "low": -0.01, "high": 0.05}))
    '$+0.020$ [$-0.010$, $+0.050$]'
    """
    value, low, high = (row[f"{prefix}{name}"] for name in ("difference", "low", "high"))
    return f"{signed(value)} [{signed(low)}, {signed(high)}]"


def compared(row: pd.Series, p: float) -> str:
    """Write a difference and the p-value of its test.

    Parameters
    ----------
    row : pd.Series
        Has difference, low and high.
    p : float, 0–1
        NaN where the test is undefined.

    Returns
    -------
    str
        Where the test is undefined, a phrase that says so.
    """
    if not np.isfinite(p):
        return "an amount that cannot be tested, because a class has too few images"
    return f"{difference(row)}, {p_value(p)}"


def signed(value: float) -> str:
    """Write a number with its sign and three decimals.

    Parameters
    ----------
    value : float

    Returns
    -------
    str
        A dash for NaN and infinity.
    """
    return "--" if not np.isfinite(value) else f"${_rounded(value, '+.3f')}$"


def plus_minus(value: float, spread: float, digits: int) -> str:
    r"""Write a mean and a standard deviation.

    Parameters
    ----------
    value, spread : float
    digits : int, from 0
        Decimals.

    Returns
    -------
    str

    Examples
    --------
    >>> print(plus_minus(132.56, 20.1, 1))
    132.6\,$\pm$\,20.1
    """
    return f"{number(value, digits)}\\,$\\pm$\\,{number(spread, digits)}"


def percent(fraction: float) -> str:
    r"""Write a fraction as a percentage without decimals.

    Parameters
    ----------
    fraction : float

    Returns
    -------
    str

    Examples
    --------
    >>> print(percent(0.567))
    57\,\%
    """
    return f"{100 * fraction:.0f}\\,\\%"


def percent_bounds(value: float, low: float, high: float) -> str:
    r"""Write a fraction with its interval as percentages without decimals.

    Parameters
    ----------
    value, low, high : float
        Fractions; without an interval, ``low`` is NaN.

    Returns
    -------
    str
        A dash where ``value`` is undefined.

    Examples
    --------
    >>> print(percent_bounds(0.567, 0.51, 0.62))
    57\,\% (51--62)
    """
    if not np.isfinite(value):
        return "--"
    if not np.isfinite(low):
        return percent(value)
    return f"{percent(value)} ({100 * low:.0f}--{100 * high:.0f})"


def p_value(p: float, *, bare: bool = False) -> str:
    """Write a p-value.

    Parameters
    ----------
    p : float, 0–1
    bare : bool
        Leave out the letter p and the equals sign.

    Returns
    -------
    str
        Below 0.001 only that it is; a dash for NaN.

    Examples
    --------
    >>> p_value(0.034), p_value(0.00001), p_value(0.5, bare=True)
    ('$p=0.034$', '$p<0.001$', '0.50')
    """
    if not np.isfinite(p):
        return "--"
    relation, text = ("<", "0.001") if p < 0.001 else ("=", f"{p:.2f}" if p >= 0.1 else f"{p:.3f}")
    if bare:
        return f"$<{text}$" if relation == "<" else text
    return f"$p{relation}{text}$"


def duration(seconds: float) -> str:
    r"""Write a time span in seconds, from 120 s on in minutes.

    Parameters
    ----------
    seconds : float, from 0

    Returns
    -------
    str

    Examples
    --------
    >>> print(duration(4.2), duration(600))
    4.2\,s 10\,min
    """
    if seconds >= 120:
        return f"{seconds / 60:.0f}\\,min"
    return f"{seconds:.0f}\\,s" if seconds >= 10 else f"{seconds:.1f}\\,s"


def thousands(count: float) -> str:
    r"""Write a whole number in groups of three digits.

    Parameters
    ----------
    count : float
        Decimals are cut off.

    Returns
    -------
    str

    Examples
    --------
    >>> print(thousands(1234567))
    1\,234\,567
    """
    return f"{int(count):,}".replace(",", "\\,")


def yes(condition: object) -> str:
    r"""Return a condition in the form that ``\ifyes`` takes.

    Parameters
    ----------
    condition : object

    Returns
    -------
    str
        "1" where it is true, else "0".
    """
    return "1" if condition else "0"


def sentence(text: str) -> str:
    """Escape text and begin it with a capital letter.

    Parameters
    ----------
    text : str
        Not empty.

    Returns
    -------
    str
    """
    return escape(text[0].upper() + text[1:])


def tabular(columns: str, head: list[str], rows: list[list[str]]) -> str:
    """Write a table with rules above, below and after its head.

    Parameters
    ----------
    columns : str
        Alignment of the columns in LaTeX's letters, such as "llr".
    head : list of str
        LaTeX text, one cell per column.
    rows : list of list of str
        LaTeX text.

    Returns
    -------
    str
    """
    table = pd.DataFrame(rows, columns=head).style.hide()
    return table.to_latex(column_format=f"@{{}}{columns}@{{}}", hrules=True).rstrip("\n")
