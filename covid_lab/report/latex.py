"""Numbers, names and tables as LaTeX text."""

import numpy as np
import pandas as pd


def escape(text: object) -> str:
    """Text for LaTeX: the characters that it takes for commands are made harmless.

    Characters that its fonts lack, such as Chinese ones, become their code: 胸 is [U+80F8].
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
    """Name of a file."""
    return rf"\texttt{{{escape(text)}}}"


def number(value: float | None, digits: int) -> str:
    """A number with so many decimals; a dash for a missing value."""
    if value is None or not np.isfinite(value):
        return "--"
    return _rounded(value, f".{digits}f").replace("-", "$-$")


def _rounded(value: float, form: str) -> str:
    text = format(value, form)
    return text.lstrip("+-") if float(text) == 0 else text  # no −0.000


def rate(value: float) -> str:
    r"""A learning rate: 0.004, or ``$3\times10^{-5}$``."""
    if value >= 0.001:
        return f"{value:.2g}"
    digits, exponent = f"{value:.1e}".split("e")
    return rf"${float(digits):g}\times10^{{{int(exponent)}}}$"


def bounds(value: float, low: float, high: float, digits: int = 3) -> str:
    """A value with its interval."""
    if not np.isfinite(low):
        return number(value, digits)
    return f"{number(value, digits)} ({number(low, digits)}--{number(high, digits)})"


def interval(row: pd.Series) -> str:
    """The columns value, low and high of a row."""
    return bounds(row["value"], row["low"], row["high"])


def difference(row: pd.Series, prefix: str = "") -> str:
    """A difference with its sign and interval: +0.020 [−0.010, +0.050]."""
    value, low, high = (row[f"{prefix}{name}"] for name in ("difference", "low", "high"))
    return f"{signed(value)} [{signed(low)}, {signed(high)}]"


def compared(row: pd.Series, p: float) -> str:
    """A difference and the p-value of its test, or that there was nothing to test."""
    if not np.isfinite(p):
        return "an amount that cannot be tested, because a class has too few images"
    return f"{difference(row)}, {p_value(p)}"


def signed(value: float) -> str:
    """A number with its sign and three decimals."""
    return "--" if not np.isfinite(value) else f"${_rounded(value, '+.3f')}$"


def plus_minus(value: float, spread: float, digits: int) -> str:
    """Mean and standard deviation."""
    return f"{number(value, digits)}\\,$\\pm$\\,{number(spread, digits)}"


def percent(share: float) -> str:
    """A share in percent, without decimals."""
    return f"{100 * share:.0f}\\,\\%"


def percent_bounds(value: float, low: float, high: float) -> str:
    """A share with its interval, in percent."""
    if not np.isfinite(value):
        return "--"
    if not np.isfinite(low):
        return percent(value)
    return f"{percent(value)} ({100 * low:.0f}--{100 * high:.0f})"


def p_value(p: float, *, bare: bool = False) -> str:
    """``$p=0.03$``; below 0.001 only that; bare without the letter."""
    if not np.isfinite(p):
        return "--"
    relation, text = ("<", "0.001") if p < 0.001 else ("=", f"{p:.2f}" if p >= 0.1 else f"{p:.3f}")
    if bare:
        return f"$<{text}$" if relation == "<" else text
    return f"$p{relation}{text}$"


def duration(seconds: float) -> str:
    """Seconds, from two minutes on minutes."""
    if seconds >= 120:
        return f"{seconds / 60:.0f}\\,min"
    return f"{seconds:.0f}\\,s" if seconds >= 10 else f"{seconds:.1f}\\,s"


def thousands(count: float) -> str:
    """A whole number in groups of three digits."""
    return f"{int(count):,}".replace(",", "\\,")


def yes(condition: object) -> str:
    r"""1 or 0, for ``\ifyes``."""
    return "1" if condition else "0"


def sentence(text: str) -> str:
    """Text with a capital in front."""
    return escape(text[0].upper() + text[1:])


def tabular(columns: str, head: list[str], rows: list[list[str]]) -> str:
    """A table between rules; ``columns`` as LaTeX takes them."""
    lines = [" & ".join(row) + r" \\" for row in rows]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )
