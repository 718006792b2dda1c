"""Items of two reporting checklists that the findings answer, as data.

REFORMS: Kapoor et al. 2024, Science Advances 10 (18), eadk3452, table 1. CLAIM: Tejani et al. 2024,
Radiology: Artificial Intelligence 6 (4), e240300 (the 2024 update, 44 items). Only what a program
can judge is listed; both ask for more. The questions are in our own words.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from covid_lab.audit.findings import Finding, worst

COLUMNS = ["checklist", "item", "asks", "answer", "answered_by"]


@dataclass(frozen=True)
class Item:
    """One item of a checklist.

    Attributes
    ----------
    checklist : str
        "REFORMS" or "CLAIM 2024".
    number : str
        Of the item in its checklist.
    asks : str
        What the item asks for, in our own words.
    checks : tuple of str
        Checks, or whole areas of checks, that answer it.
    """

    checklist: str
    number: str
    asks: str
    checks: tuple[str, ...]


_COPIES = ("no image twice, in two splits", "no near copy in another split")
_UNCHANGED = ("splits unchanged between the stages", "data and splits unchanged since training")
_TESTED = ("one look at the test set per stage", "every tested stage is in the ledger")

ITEMS = (
    Item("REFORMS", "2a", "the data set can be identified", ("one data set and split throughout",)),
    Item("REFORMS", "2c", "the computing environment is described",
         ("versions, seed and weights recorded",)),
    Item("REFORMS", "3e", "the number of samples, by class", ("classes are balanced",)),
    Item("REFORMS", "4b", "corrupt samples are found and handled",
         ("every image can be read", "copies have one label")),
    Item("REFORMS", "5c", "how the models are evaluated, with the splits",
         ("classes are alike in all splits", *_UNCHANGED)),
    Item("REFORMS", "5d", "how the reported models were selected", _TESTED),
    Item("REFORMS", "5e", "how hyperparameters were tuned",
         ("best values inside their ranges", "a new model for every trial")),
    Item("REFORMS", "6a", "pre-processing and modelling use only the training data",
         ("normalisation statistics from training alone", "synthetic samples only in training",
          "final fits: right epochs, no early stopping", *_TESTED)),
    Item("REFORMS", "6b", "no duplicates or dependencies between training and test",
         (*_COPIES, "no patient in two splits")),
    Item("REFORMS", "6c", "the inputs are legitimate and no proxy of the outcome", ("shortcuts",)),
    Item("REFORMS", "7b", "the uncertainty of every metric",
         ("metrics follow from the saved scores",)),
    Item("CLAIM 2024", "19", "how the data were assigned to partitions",
         ("classes are alike in all splits", *_UNCHANGED)),
    Item("CLAIM 2024", "20", "the level at which partitions are disjoint",
         (*_COPIES, "no patient in two splits")),
    Item("CLAIM 2024", "23", "software and its versions", ("versions, seed and weights recorded",)),
    Item("CLAIM 2024", "24", "how the models' parameters were initialised",
         ("versions, seed and weights recorded", "a new model for every trial")),
    Item("CLAIM 2024", "25", "details of the training",
         ("best values inside their ranges", "final fits: right epochs, no early stopping")),
    Item("CLAIM 2024", "26", "how the final model was selected", _TESTED),
    Item("CLAIM 2024", "29", "statistical measures of uncertainty",
         ("metrics follow from the saved scores",)),
    Item("CLAIM 2024", "32", "evaluation on internal data",
         ("every tested stage is in the ledger", "validation and test agree")),
    Item("CLAIM 2024", "35", "how many images were included and excluded",
         ("every image can be read",)),
    Item("CLAIM 2024", "37", "performance with its uncertainty",
         ("metrics follow from the saved scores",)),
)  # fmt: skip


def answers(findings: Iterable[Finding]) -> pd.DataFrame:
    """Answer each item by the worst verdict among its checks.

    Parameters
    ----------
    findings : iterable of Finding
        Of all areas.

    Returns
    -------
    pd.DataFrame
        One row per item: checklist, item, asks, answer (a verdict; "not applicable" where none of
        its checks could be judged), answered_by (the checks judged).

    Examples
    --------
    >>> from covid_lab.audit.findings import Finding
    >>> found = Finding("data", "classes are balanced", "pass", "100 NORMAL, 100 COVID")
    >>> table = answers([found])
    >>> table.loc[table["answer"] != "not applicable", ["checklist", "item", "answer"]]
      checklist item answer
    2   REFORMS   3e   pass
    """
    findings = [finding for finding in findings if finding.verdict != "not applicable"]
    rows = []
    for item in ITEMS:
        judged = [f for f in findings if f.check in item.checks or f.area in item.checks]
        names = "; ".join(finding.check for finding in judged)
        rows.append((item.checklist, item.number, item.asks, worst(judged), names))
    return pd.DataFrame(rows, columns=COLUMNS)
