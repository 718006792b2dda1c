"""The committed tables agree with each other: metrics, comparisons, ledgers, report."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from covid_lab.audit.protocol import audit_protocol
from covid_lab.notebooks import NOT_SHOWN, code_cells
from covid_lab.report import build
from covid_lab.runs.settings import NOTEBOOKS
from covid_lab.verify import verify
from covid_project.evaluation import accuracy_difference, auc_difference, metrics_table
from covid_project.files import read_csv
from covid_project.models import WeightsUnavailable
from covid_project.settings import PROJECT, Axis, read_file, read_settings
from covid_project.tuning import best_hyperparameters

RESULTS = PROJECT / "results"
RUNS = [path.parent for path in sorted(RESULTS.glob("*/run.json"))]
RUNS = [RESULTS, *(run for run in RUNS if (run / "metrics.csv").is_file())]
of_each_run = pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)


def committed(folder: Path) -> list[Path]:
    found = subprocess.run(
        ["git", "ls-files", "-z", "--", str(folder)], cwd=PROJECT, capture_output=True, text=True
    )
    if found.returncode != 0:
        pytest.skip("not a git checkout: which files are committed is unknown")
    return [PROJECT / name for name in found.stdout.split("\0") if name]


@of_each_run
def test_metrics_follow_from_the_saved_scores(run):
    metrics, compared = read_csv(run / "metrics.csv"), 0
    for (stage, split), saved in metrics.groupby(["stage", "split"]):
        path = run / f"scores_{stage}_{split}.csv"
        if not path.is_file():
            continue
        scores = read_csv(path)
        if "score" not in scores:  # of several classes, see tests/test_study_lung_nodules.py
            continue
        again = metrics_table(scores["label"], scores["score"], seed=int(saved["seed"].iloc[0]))
        assert saved["metric"].tolist() == again["metric"].tolist()
        columns = ["value", "low", "high", "n"]
        np.testing.assert_allclose(
            saved[columns].to_numpy(), again[columns].to_numpy(), rtol=1e-12, err_msg=str(path)
        )
        compared += 1
    assert compared or run.name == "lung_nodules"


@of_each_run
def test_comparisons_follow_from_the_saved_scores(run):
    for row in read_csv(run / "comparisons.csv").itertuples():
        first, second = (
            read_csv(run / f"scores_{stage}_test.csv") for stage in (row.first, row.second)
        )
        assert first["path"].equals(second["path"])
        scores = first["label"], first["score"], second["score"]
        found = (
            accuracy_difference(*scores, seed=row.seed)
            if row.metric == "accuracy"
            else auc_difference(*scores)
        )
        saved = (row.difference, row.low, row.high, row.p_value)
        again = (found.difference, found.low, found.high, found.p_value)
        np.testing.assert_allclose(saved, again, rtol=1e-4, atol=1e-6)  # some in single precision


@pytest.mark.parametrize(
    "ledger", sorted(RESULTS.rglob("test_ledger.csv")), ids=lambda path: path.parent.name
)
def test_ledgers_count_each_model_once(ledger):
    table = read_csv(ledger)
    for _, rows in table.groupby("stage"):
        assert rows["look"].tolist() == list(range(1, len(rows) + 1))
    models = table[table["model"] != "none"]
    assert not models.duplicated(["stage", "model"]).any()


@of_each_run
def test_metrics_are_of_an_evaluation_in_the_ledger(run):
    metrics, ledger = read_csv(run / "metrics.csv"), read_csv(run / "test_ledger.csv")
    tested = metrics.loc[metrics["split"] == "test", ["stage", "look"]].drop_duplicates()
    assert len(tested) == tested["stage"].nunique()
    assert len(tested.merge(ledger, on=["stage", "look"])) == len(tested)


def test_the_run_broke_no_rule():
    failed = {finding.check for finding in audit_protocol(RESULTS) if finding.verdict == "fail"}
    assert failed == {"validation and test agree"}  # those of the baseline: see HISTORY.md


@pytest.mark.slow
def test_the_kept_models_score_as_the_tables_say(course_archive):
    try:
        assert verify(RESULTS, course_archive) == []
    except WeightsUnavailable:
        pytest.skip("the ImageNet weights of the fine-tuned model are not at hand")


def test_the_notebooks_hold_the_outputs_of_the_run_in_order():
    data = read_csv(RESULTS / "metrics.csv")["data"].iloc[0]
    assert data == json.loads((RESULTS / "run.json").read_text())["data"]
    models = read_csv(RESULTS / "test_ledger.csv")["model"]
    for name in NOTEBOOKS:
        cells = code_cells(PROJECT / f"{name}.ipynb")
        counts = [cell.execution_count for cell in cells]
        assert counts == list(range(1, len(cells) + 1)), name
        text = "".join(str(output) for cell in cells for output in cell.outputs)
        assert NOT_SHOWN[:30] in text
        assert "error" not in {output.output_type for cell in cells for output in cell.outputs}
        for stage, model in zip(("baseline", "transfer_learning"), models[1:], strict=True):
            assert name != stage or model in text


def test_the_reports_values_tables_and_figures_are_those_of_the_run():
    assert build.Report(RESULTS).source_faults() == []


def test_the_best_hyperparameters_are_inside_what_was_tried_or_at_a_stated_limit():
    settings = read_file(RESULTS / "settings.yaml")
    fine_tuning = {"learning_rate": settings["transfer"]["fine_tuning"]["learning_rate"]}
    for name, search in (
        ("baseline", settings["baseline"]["search"]),
        ("transfer", settings["transfer"]["search"]),
        ("fine_tuning", fine_tuning),
    ):
        trials = read_csv(RESULTS / f"tuning_{name}.csv")
        best = best_hyperparameters(trials, search)
        for key, values in search.items():
            axis = read_settings(Axis, values)
            below, above = (
                best[key] * axis.times**side if axis.times else best[key] + side * axis.plus
                for side in (-1, 1)
            )
            assert trials[key].min() < best[key] or below < axis.low, (name, key)
            assert best[key] < trials[key].max() or above > axis.high, (name, key)


def test_the_pneumonia_study_compares_the_models_that_were_tested():
    metrics = read_csv(RESULTS / "pneumonia" / "metrics.csv")
    tested = metrics[metrics["split"] == "test"].set_index(["stage", "metric"])
    for row in read_csv(RESULTS / "pneumonia" / "model_comparison.csv").itertuples():
        for metric in ("accuracy", "AUC"):
            saved = [getattr(row, f"{metric}{suffix}") for suffix in ("", "_low", "_high")]
            assert saved == tested.loc[(row.stage, metric), ["value", "low", "high"]].tolist()


@pytest.mark.parametrize("name", ["breast", "pneumonia"])
def test_the_robustness_study_tested_every_network_twice(name):
    folder = RESULTS / "robustness" / name
    ledger = read_csv(folder / "test_ledger.csv")
    networks = {path.name[7:-12] for path in folder.glob("scores_*_test.csv.gz")}
    last = ledger.groupby("stage")["look"].max()
    assert last[sorted(networks)].tolist() == [2] * len(networks)


def test_implementations_agree_in_the_benchmarks():
    rows = read_csv(RESULTS / "benchmarks.csv")
    compared = rows[rows["tolerance"].notna()]
    assert (compared["agreement"] <= compared["tolerance"]).all()


def test_memory_grows_less_than_the_images_do_except_in_the_audit():
    rows = read_csv(RESULTS / "growth.csv").query("images == 14000").set_index("stage")
    others = rows.drop(["audit", "load"])
    assert (others["mib"] < others["cache_mib"] / 2).all()


def test_no_pixels_and_no_paths_of_a_machine_are_committed():
    kinds = {"", ".csv", ".gz", ".json", ".yaml", ".md", ".pdf", ".tex", ".keras", ".npz"}
    for path in committed(RESULTS):
        assert path.suffix in kinds, path
        assert not path.name.startswith("images_"), path
        if path.suffix in (".csv", ".json", ".yaml", ".md") and path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"(^|[\s\"',:])/(home|Users|root|work|tmp)/", text), path


def test_the_audit_of_the_run_examines_both_tested_models():
    audit = read_csv(RESULTS / "audit" / "covid_xray" / "audit.csv")
    for stage in ("baseline", "fine_tuned"):  # of the second only the trained layers are kept
        assert f"{stage}: the model on the border alone" in set(audit["check"])
