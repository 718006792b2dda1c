"""What an audit says: one finding per check, with a verdict and the figure behind it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pandas as pd

VERDICTS = ("fail", "warn", "pass", "not applicable")  # the gravest first
COLUMNS = ("area", "check", "verdict", "found", "value", "low", "high", "n")


@dataclass(frozen=True)
class Finding:
    """One check and what came of it.

    Attributes
    ----------
    area
        "data", "labels", "shortcuts" or "protocol".
    check
        What was asked, in a few words.
    verdict
        One of ``VERDICTS``; for "not applicable", ``found`` says why.
    found
        What was found, as a sentence with its numbers.
    value, low, high, n
        The figure behind it with its 95 % interval and number of images, where there is one.
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
    """Findings as rows, in the order in which they were made."""
    return pd.DataFrame([asdict(finding) for finding in findings], columns=COLUMNS)


def worst(findings: Iterable[Finding]) -> str:
    """The gravest verdict among some findings; "not applicable" where there are none."""
    found = {finding.verdict for finding in findings}
    return next((verdict for verdict in VERDICTS if verdict in found), "not applicable")


def figure(finding: Finding) -> str:
    """Return the figure of a finding with its interval and number, as text; "" without one."""
    if finding.value is None:
        return ""
    number = "" if finding.n is None else f", n = {finding.n:,}"
    if finding.low is None:
        return f"{finding.value:.3f}{number}"
    return f"{finding.value:.3f} ({finding.low:.3f}–{finding.high:.3f}){number}"
