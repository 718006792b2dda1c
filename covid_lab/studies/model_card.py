"""The model card of a study, in Markdown, made from the study's tables.

The headings are those of Mitchell et al., "Model Cards for Model Reporting", FAT* 2019, with notes
on the EU AI Act and the GDPR. The card names no persons: its user adds who is responsible for a
use.
"""

from dataclasses import dataclass

import pandas as pd

WHOLE = "whole image"  # the view that shows the disease too


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The content of a card.

    Attributes
    ----------
    title : str
        Title of the study.
    source : str
        Name of the data file.
    classes : tuple of (str, str)
        Names of the labels 0 and 1.
    is_phantom : bool
        Whether the images are drawn.
    fingerprint : str
        Fingerprint of the data.
    seed : int
        Seed of the run.
    versions : str
        Versions of the packages.
    splits : pd.DataFrame
        One row per split: split, images, groups, positive (images of class 1).
    metrics : pd.DataFrame
        Test metrics: stage, metric, value, low, high, n.
    shortcuts : pd.DataFrame
        How well simple views predict labels: labels, view, auc, low, high, n. The labels of the
        card are "<positive> against <negative>".
    errors : pd.DataFrame
        Errors of probabilities on unseen images: images, stage, metric, value, low, high, n.
    costs : pd.DataFrame
        One row per model, with any columns.
    chosen : str
        Stage that the card describes, chosen on validation images.
    """

    title: str
    source: str
    classes: tuple[str, str]
    is_phantom: bool
    fingerprint: str
    seed: int
    versions: str
    splits: pd.DataFrame
    metrics: pd.DataFrame
    shortcuts: pd.DataFrame
    errors: pd.DataFrame
    costs: pd.DataFrame
    chosen: str


def model_card(evidence: Evidence) -> str:
    """Write the card.

    Parameters
    ----------
    evidence : Evidence
        The tables.

    Returns
    -------
    str
        Markdown.
    """
    negative, positive = evidence.classes
    own = evidence.metrics[evidence.metrics["stage"] == evidence.chosen]
    parts = [
        f"# Model card: {evidence.title}",
        "The run made this card from its own tables. **Not medical advice, not a medical device, "
        "not for use on patients.**",
        *(["**Drawn phantoms: a test of the machinery, no result.**"] * evidence.is_phantom),
        "## Model",
        f"Stage `{evidence.chosen}`, chosen on the validation split. Its output is the logit of "
        f"{positive} (label 1); {negative} is label 0 and the threshold, 0, was fixed beforehand.",
        f"Seed {evidence.seed}; {evidence.versions}.",
        "## Data",
        f"`{evidence.source}`, fingerprint `{evidence.fingerprint}`. Slices that may show one "
        "patient (by file name, or nearly equal pictures) are one group, and no group is in two "
        "splits.",
        _table(evidence.splits),
        "Age, sex, origin, scanner and hospital are not recorded: performance by subgroup, and so "
        "bias against one, cannot be measured with these data.",
        "## Metrics on the test split, read once",
        _table(_with_interval(own, ["metric"])),
        "All models:",
        _table(_wide(evidence.metrics)),
        "## Probabilities on unseen images",
        "Label by the rule of `studies/unseen.py`, or by a fact stated in the notebook.",
        _table(_with_interval(evidence.errors, ["images", "stage", "metric"])),
        "## Shortcuts",
        "AUC of simple views by cross-validation over groups; 0.5 is chance. File metadata, border "
        "and corners do not show the disease; grey histogram, thumbnail and whole image partly do.",
        _table(_with_interval(evidence.shortcuts, ["labels", "view"], "auc")),
        _shortcut_finding(evidence.shortcuts, own, evidence.classes),
        "## Cost",
        _table(evidence.costs.round(5)),
        "## Intended use",
        "Teaching: how such a study is made and how far its numbers can be trusted. Any other use, "
        "above all diagnosis and triage, is out of scope.",
        "## Limits",
        "- One collection, cut from publications: not a sample of any clinic's patients, and the "
        "fraction of positives is that of the collection, so that precision says nothing about "
        "practice.\n"
        "- Groups follow file names; a patient whom they do not identify may be in two splits.\n"
        "- Intervals count images as independent although slices of a patient are not: the true "
        "uncertainty is larger.\n"
        "- Heatmaps show what a score reacts to, not that the reason is medical.",
        "## EU AI Act (Regulation 2024/1689)",
        "Software that diagnoses is a medical device under Regulation 2017/745 and, where a "
        "notified body assesses it, a high-risk system (Article 6(1)). It would then need, among "
        "others: risk management (Art. 9), governance of training data with an examination for "
        "bias (Art. 10), technical documentation (Art. 11), logging (Art. 12), instructions for "
        "use (Art. 13), human oversight (Art. 14), and accuracy, robustness and cybersecurity "
        "(Art. 15). None of this has been assessed; this card contributes only "
        "to Art. 10, 11 and 13. A system made solely for scientific research and development is "
        "outside the regulation's scope (Art. 2(6)).",
        "## GDPR (Regulation 2016/679)",
        "Health data are a special category (Art. 9); images without names can still be personal "
        "data where someone can be identified. No name, date or number of a patient is read or "
        "stored by the study, no image is committed, and the results folder holds file names and "
        "scores. A decision about a person only by such a model would fall under Art. 22; a use "
        "with patients would need a legal basis and an impact assessment (Art. 35).",
    ]
    return "\n\n".join(parts) + "\n"


def _shortcut_finding(shortcuts: pd.DataFrame, own: pd.DataFrame, classes: tuple[str, str]) -> str:
    negative, positive = classes
    these = shortcuts["labels"] == f"{positive} against {negative}"
    views = shortcuts[these & (shortcuts["view"] != WHOLE)]
    if views.empty:
        return "No view of these labels was measured."
    best = views.loc[views["auc"].idxmax()]
    model = own.set_index("metric").loc["AUC"]
    return (
        f"The strongest for the labels of these data, beside the whole image: {best['view']}, AUC "
        f"{best['auc']:.3f} ({best['low']:.3f} to {best['high']:.3f}). The model has "
        f"{model['value']:.3f} on the test split. As far as such a view predicts the label, the "
        "model's results need not come from the disease. Rows on another source have other labels "
        "and say nothing about this model's."
    )


def _with_interval(table: pd.DataFrame, keys: list[str], value: str = "value") -> pd.DataFrame:
    interval = [
        f"{row[value]:.3f} ({row['low']:.3f} to {row['high']:.3f})" for _, row in table.iterrows()
    ]
    return table[keys].assign(**{f"{value} (95 %)": interval, "n": table["n"]})


def _wide(metrics: pd.DataFrame) -> pd.DataFrame:
    wide = metrics.pivot_table(index="stage", columns="metric", values="value")
    return wide.loc[metrics["stage"].unique(), metrics["metric"].unique()].round(3).reset_index()


def _table(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(value) for value in row) + " |" for row in rows)
