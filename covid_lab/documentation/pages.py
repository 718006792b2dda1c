"""Pages of the documentation that are made from the tables in ``results/``.

A section of a page has a heading, a sentence that says what the table shows, and the table. A
function of `run_tables`, `study_tables` or `benchmark_tables` makes the table from the section's
CSV files.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from covid_lab.documentation import benchmark_tables, run_tables, study_tables
from covid_project.files import read_csv


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
        Takes {path in results: table of the file}; returns a table whose cells are text.
    """

    heading: str
    shows: str
    files: str
    table: Callable[[dict[str, pd.DataFrame]], pd.DataFrame]


INTERVALS = (
    "Brackets hold 95 % intervals: Wilson's for proportions, else a bootstrap over images, unless "
    "the text says otherwise. AUC is the area under the ROC curve, n the number of images."
)
RESULTS = (
    "# Results",
    "Every table on this page is made from `results/` by `make docs-tables`. " + INTERVALS + " "
    "What the numbers mean is on the pages of the [audit](audit.md), the [external test]"
    "(external.md) and the studies; what was run before, and which test splits are spent, is in "
    "`results/HISTORY.md`.",
    "## The course run",
    Section(
        "Test set",
        "The two final models on the test split, at the threshold 0.5.",
        "metrics.csv",
        lambda tables: run_tables.metrics(tables, "test"),
    ),
    Section(
        "Validation set",
        "The tuned models on the validation split, on which they were chosen. `transfer` is the "
        "frozen backbone with new layers, which is not tested.",
        "metrics.csv",
        lambda tables: run_tables.metrics(tables, "val"),
    ),
    Section(
        "Fine-tuned model against baseline",
        "Differences on the same test images, with p-values adjusted by Holm's method.",
        "comparisons.csv",
        run_tables.comparisons,
    ),
    Section(
        "Calibration on the test set",
        "The expected calibration error (ECE) beside the error that a perfectly calibrated model "
        "would show on as many images. A small p-value says that the model is not calibrated.",
        "calibration.csv",
        run_tables.calibration,
    ),
    Section(
        "What the searches chose",
        "The best trial of each hyperparameter search, by validation loss.",
        "tuning_*.csv",
        run_tables.searches,
    ),
    Section(
        "Grad-CAM by group",
        "Median fraction of the heat in the middle of the image, off the outer tenth of each side, "
        "for groups of test images. Even heat has the fraction in the column area.",
        "gradcam_groups.csv",
        run_tables.heat_by_group,
    ),
    Section(
        "What grey values give away",
        "How well one number of the image, which says nothing about lungs, separates the classes "
        "of the training split. An AUC below 0.5 is reversed; the last column names the class with "
        "the higher values.",
        "image_quality.csv",
        run_tables.image_quality,
    ),
    Section(
        "BatchNorm statistics at the end of a training",
        "The baseline's final training repeated on the training split, scored on the validation "
        "split: mean over the seeds, with the range.",
        "batch_norm.csv",
        run_tables.batch_norm,
    ),
    Section(
        "Test evaluations",
        "The ledger. A number above 1 would say that a stage was tested more than once.",
        "test_ledger.csv",
        run_tables.ledger,
    ),
    "## In another hospital",
    Section(
        "External test",
        "Final models on the test split of SIIM-FISABIO-RSNA, at the threshold of the course, "
        "beside their AUC on the course's own test split. [What narrows the gap](external.md"
        "#what-narrows-the-gap) explains the networks with two exits.",
        "external/external_siim/metrics.csv",
        run_tables.external,
    ),
    Section(
        "What suffices for the model",
        "AUC on the external images when only a part of the image is shown, and the fraction of "
        "Grad-CAM's heat that is inside the lungs.",
        "external/external_siim/use.csv",
        run_tables.use,
    ),
    Section(
        "Heat on opacities",
        "Fraction of Grad-CAM's heat on opacities that radiologists marked, minus the fraction "
        "that even heat would have there: over the whole image, and inside the lungs only.",
        "external/external_siim/heat.csv",
        run_tables.heat,
    ),
    Section(
        "Other diseases",
        "Fraction of images without COVID-19 that are called COVID.",
        "external/external_siim/probe.csv",
        run_tables.probe,
    ),
    Section(
        "Controls of the external test",
        "A linear model that sees the border only, and test sets divided at random into two halves "
        "(fraction of the divisions whose difference in AUC would count as a drop; about 0.05 or "
        "less is expected).",
        "external/external_siim/controls.csv",
        run_tables.external_controls,
    ),
    Section(
        "Mitigation: what the network sees",
        "AUC on SIIM's validation split, without images of SIIM in training: a linear model of "
        "frozen features, averaged over the image or over the lungs. One seed.",
        "external/mitigation/mitigation.csv",
        run_tables.mitigation_inputs,
    ),
    Section(
        "Mitigation: which part is trained",
        "Validation splits of both collections, mean over the seeds with the range, where there is "
        "more than one. The second column says which images of SIIM a method needs: none, "
        "unlabelled ones for the threshold, or labelled ones.",
        "external/mitigation/mitigation.csv",
        run_tables.mitigation_exits,
    ),
    Section(
        "Mitigation: the threshold from unlabelled images",
        "Balanced accuracy on SIIM's validation split when the threshold is set with some "
        "unlabelled images, by the fraction of them that shows the disease.",
        "external/mitigation/recentring.csv",
        run_tables.recentring,
    ),
    Section(
        "External test evaluations",
        "The ledger of test splits of other collections.",
        "external/external_ledger.csv",
        run_tables.external_ledger,
    ),
    "## Audits",
    Section(
        "Verdicts",
        "How many checks of each data set's audit have which verdict, and which fail.",
        "audit/*/audit.csv",
        study_tables.verdicts,
    ),
    Section(
        "Shortcuts",
        "AUC of the label from parts of the data that show no lungs, and from the whole image, by "
        "simple models that are cross-validated by patient.",
        "audit/*/shortcuts.csv",
        study_tables.shortcuts,
    ),
    Section(
        "Copies",
        "Pairs of images that show the same picture.",
        "audit/*/duplicates.csv",
        study_tables.copies,
    ),
    Section(
        "Planted wrong labels",
        "How many of 5 % wrong labels, planted into the data, the label audit finds (recall), and "
        "how many of the labels that it contradicts were planted (precision). Mean of the draws, "
        "with the range that holds 95 % of them.",
        "audit/*/label_controls.csv",
        study_tables.label_controls,
    ),
    Section(
        "Planted shortcuts",
        "Shortcuts planted into drawn radiographs, and the weakest one from which on all are "
        "caught.",
        "audit/controls.csv",
        study_tables.planted,
    ),
    "## Studies",
    Section(
        "Pneumonia in children",
        "Test split of the paediatric radiographs, beside published figures for the same images. "
        "See [the study](study_pneumonia.md).",
        "pneumonia/model_comparison.csv",
        study_tables.pneumonia,
    ),
    Section(
        "CT slices",
        "Test split of COVID-CT. Model D is model B pruned. See [the study](study_ct_lesions.md).",
        "ct_lesions/metrics.csv",
        study_tables.ct,
    ),
    Section(
        "Lung nodules",
        "Test split, by view and task. See [the study](study_lung_nodules.md).",
        "lung_nodules/metrics.csv",
        study_tables.nodules,
    ),
    Section(
        "Robustness: the networks",
        "Unperturbed test splits of MedMNIST at 28 pixels. `mean` is the mean over the seeds, "
        "`together` the mean of the networks' logits. See [the study](study_robustness.md).",
        "robustness/*/performance.csv",
        study_tables.robustness,
    ),
    Section(
        "Robustness: detecting errors",
        "AUC of detectors of wrong answers on perturbed test images, judged on perturbations that "
        "they were not fitted on, and the gain over the confidence alone.",
        "robustness/*/detection.csv",
        study_tables.detection,
    ),
    "## Faults",
    Section(
        "What was tried to break it",
        "Damaged archives, images, settings and tables, and processes that were killed "
        "(`make faults`).",
        "faults.csv",
        study_tables.faults,
    ),
)

BENCHMARKS = (
    "# Benchmarks",
    "Every table on this page is made from `results/benchmarks.csv`, `growth.csv` and "
    "`course_times.csv` by `make docs-tables`; `python -m benchmarks`, `python -m "
    "benchmarks.growth` and `python -m benchmarks.course` measure them again. Both sides of a "
    "comparison run in turn in one process. The ratio is the other side's number divided by ours: "
    "above 1, ours is better. It is the median over the repetitions, with the smallest and the "
    "largest; the goal is the ratio that was set before measuring.",
    *(
        Section(
            heading,
            shows,
            "benchmarks.csv",
            lambda tables, suite=suite: benchmark_tables.suite(tables, suite),
        )
        for suite, (heading, shows) in benchmark_tables.SUITES.items()
    ),
    Section(
        "Time of the course run",
        "The four notebooks on two cores without a GPU.",
        "course_times.csv",
        benchmark_tables.course_times,
    ),
    Section(
        "Memory and time by number of images",
        "Largest memory of a process beyond what it had before the stage, and seconds, for drawn "
        "images of 128 pixels.",
        "growth.csv",
        benchmark_tables.growth,
    ),
    Section(
        "Near copies by kind",
        "Recall of 60 planted copies of each kind among 1,100 radiographs, and precision, with "
        "95 % intervals. The best threshold of a package was chosen on the draw itself. The first "
        "draw was read twice by covid_lab, whose threshold was raised from 0.70 to 0.75 in "
        "between.",
        "near_copies*.csv",
        benchmark_tables.near_copies,
    ),
)

PAGES = {"results.md": RESULTS, "benchmarks.md": BENCHMARKS}


def page(name: str, results: Path) -> str:
    """Write the Markdown text of a generated page.

    Parameters
    ----------
    name : str, key of `PAGES`
        File name of the page.
    results : Path
        Folder of the tables. A section whose files are missing is left out.

    Returns
    -------
    str
        The whole page.
    """
    blocks = ["<!-- Made by `make docs-tables`; changes by hand are lost. -->"]
    for part in PAGES[name]:
        blocks += [part] if isinstance(part, str) else _section(part, results)
    return "\n\n".join(blocks) + "\n"


def _section(section: Section, results: Path) -> list[str]:
    files = sorted(path for path in results.glob(section.files) if path.is_file())
    tables = {path.relative_to(results).as_posix(): read_csv(path) for path in files}
    if not tables:
        return []
    source = f"From `results/{section.files}`."
    return [
        f"### {section.heading}",
        f"{section.shows} {source}",
        as_markdown(section.table(tables)),
    ]


def as_markdown(table: pd.DataFrame) -> str:
    """Write a table of text as Markdown; a bar in a cell is escaped.

    Parameters
    ----------
    table : pd.DataFrame
        Table whose cells are text.

    Returns
    -------
    str
        Header and rows, one per line.

    Examples
    --------
    >>> import pandas as pd
    >>> print(as_markdown(pd.DataFrame({"model": ["baseline"], "AUC": ["0.950"]})))
    | model | AUC |
    | --- | --- |
    | baseline | 0.950 |
    """
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy()]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows
    )
