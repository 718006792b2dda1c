import re

import pandas as pd
import pytest

from covid_lab.studies.model_card import Evidence, model_card


def evidence(**changes):
    values = {"model_b": (0.7631, 0.8312), "logistic": (0.7013, 0.7417)}
    metrics = pd.DataFrame(
        [
            (stage, metric, value, value - 0.05, value + 0.04, 149)
            for stage, pair in values.items()
            for metric, value in zip(("accuracy", "AUC"), pair, strict=True)
        ],
        columns=["stage", "metric", "value", "low", "high", "n"],
    )
    shortcuts = pd.DataFrame(
        {"labels": "CT_COVID against CT_NonCOVID", "view": ["border", "file size"],
         "auc": [0.6543, 0.8765], "low": [0.6, 0.8], "high": [0.7, 0.9], "n": 746}
    )  # fmt: skip
    errors = pd.DataFrame(
        {"images": "test split", "stage": "model_b", "metric": ["Brier"], "value": [0.1789],
         "low": [0.14], "high": [0.21], "n": 149}
    )  # fmt: skip
    content = {
        "title": "a study", "source": "covid_ct.zip", "classes": ("CT_NonCOVID", "CT_COVID"),
        "is_phantom": False, "fingerprint": "0123456789abcdef", "seed": 7, "versions": "keras 3",
        "splits": pd.DataFrame({"split": ["train"], "images": [447], "groups": [120]}),
        "metrics": metrics, "shortcuts": shortcuts, "errors": errors,
        "costs": pd.DataFrame({"stage": ["model_b"], "bytes": [123456]}), "chosen": "model_b",
    }  # fmt: skip
    return Evidence(**{**content, **changes})


def test_the_numbers_are_those_of_the_tables():
    card = model_card(evidence())
    for text in ("0.763 (0.713 to 0.803)", "0.831", "447", "120", "0.179 (0.140 to 0.210)",
                 "0.876 (0.800 to 0.900)", "123456", "0123456789abcdef", "0.701",
                 "CT_COVID (label 1); CT_NonCOVID is label 0"):  # fmt: skip
        assert text in card, text
    # The finding names the strongest shortcut beside the chosen model's AUC.
    assert re.search(r"strongest .*: file size, AUC 0\.876 .*model has 0\.831", card)
    assert not re.search(r"TODO|TBD|XX|\{|\}|\bnan\b|None(?! of)", card)
    assert "Drawn phantoms" not in card
    assert "Drawn phantoms" in model_card(evidence(is_phantom=True))


def test_the_strongest_shortcut_is_one_of_these_labels():
    """A view of other labels, or the whole image, may be stronger and does not count."""
    others = pd.DataFrame(
        {"labels": ["another source against CT_NonCOVID", "CT_COVID against CT_NonCOVID"],
         "view": ["border", "whole image"], "auc": 0.9999, "low": 0.99, "high": 1.0, "n": 447}
    )  # fmt: skip
    shortcuts = pd.concat([evidence().shortcuts, others])
    card = model_card(evidence(shortcuts=shortcuts))
    assert re.search(r"strongest .*: file size, AUC 0\.876 \(0\.800 to 0\.900\)", card)
    assert "No view of these labels" in model_card(evidence(shortcuts=others))


@pytest.mark.parametrize("chosen", ["model_b", "logistic"])
def test_headings_and_tables_are_well_formed(chosen):
    card = model_card(evidence(chosen=chosen))
    for heading in ("Data", "Metrics", "Shortcuts", "Intended use", "Limits", "EU AI Act", "GDPR"):
        assert re.search(rf"^## .*{heading}", card, re.MULTILINE), heading
    tables = re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)
    assert len(tables) == 6
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
