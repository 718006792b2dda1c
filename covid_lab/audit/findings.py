"""What an audit reports: one finding per check, with a verdict and the figure behind it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pandas as pd

VERDICTS = ("fail", "warn", "pass", "not applicable")  # the worst first
COLUMNS = ("area", "check", "verdict", "found", "value", "low", "high", "n")


@dataclass(frozen=True)
class Finding:
    """One check and its result.

    Attributes
    ----------
    area : str
        "data", "labels", "shortcuts" or "protocol".
    check : str
        What was asked, in a few words.
    verdict : str
        One of `VERDICTS`; for "not applicable", ``found`` gives the reason.
    found : str
        What was found, as a sentence with its numbers.
    value : float, optional
        The figure behind it.
    low, high : float, optional
        Bounds of its 95 % interval.
    n : int, optional
        Number of images, or of what else was counted.
    """

    area: str
    check: str
    verdict: str
    found: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None

    def __post_init__(self):
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict {self.verdict!r}; allowed: {', '.join(VERDICTS)}")


def as_table(findings: Iterable[Finding]) -> pd.DataFrame:
    """Put findings into a table.

    Parameters
    ----------
    findings : iterable of Finding
        In any order, which is kept.

    Returns
    -------
    pd.DataFrame
        One row per finding, with the columns `COLUMNS`.

    Examples
    --------
    >>> found = Finding("data", "classes are balanced", "pass", "100 of 200", 0.5, n=200)
    >>> as_table([found])[["check", "verdict", "value", "n"]]
                      check verdict  value    n
    0  classes are balanced    pass    0.5  200
    """
    return pd.DataFrame([asdict(finding) for finding in findings], columns=COLUMNS)


def worst(findings: Iterable[Finding]) -> str:
    """Find the worst verdict among some findings.

    Parameters
    ----------
    findings : iterable of Finding
        May be empty.

    Returns
    -------
    str
        One of `VERDICTS`; "not applicable" without findings.

    Examples
    --------
    >>> worst([Finding("data", "a", "pass", "fine"), Finding("data", "b", "warn", "a copy")])
    'warn'
    """
    found = {finding.verdict for finding in findings}
    return next((verdict for verdict in VERDICTS if verdict in found), "not applicable")


def figure(finding: Finding) -> str:
    """Write the figure of a finding with its interval and n.

    Parameters
    ----------
    finding : Finding
        With or without a figure.

    Returns
    -------
    str
        "" without a figure.

    Examples
    --------
    >>> figure(Finding("shortcuts", "border", "fail", "…", 0.857, 0.841, 0.873, 2200))
    '0.857 (0.841–0.873), n = 2,200'
    """
    if finding.value is None:
        return ""
    number = "" if finding.n is None else f", n = {finding.n:,}"
    if finding.low is None:
        return f"{finding.value:.3f}{number}"
    return f"{finding.value:.3f} ({finding.low:.3f}–{finding.high:.3f}){number}"
