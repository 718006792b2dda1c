"""Each rule of the protocol passes on a run of ours, and fails on a planted breach."""

import shutil

import pandas as pd
import pytest
import yaml

from covid_project.audit.findings import Finding, as_table, worst
from covid_project.audit.protocol import RULES, audit_protocol


@pytest.fixture
def results(small_run, tmp_path):
    shutil.copytree(small_run[0] / "made", tmp_path / "results")
    return tmp_path / "results"


def verdicts(results):
    return {finding.check: finding for finding in audit_protocol(results)}


def change(folder, name, edit):
    table = pd.read_csv(folder / name, float_precision="round_trip")
    edit(table).to_csv(folder / name, index=False)


def test_a_run_of_ours_breaks_no_rule(results):
    found = verdicts(results)
    assert set(found) == set(RULES)
    assert {finding.verdict for finding in found.values()} <= {"pass", "not applicable"}
    assert sum(finding.verdict == "pass" for finding in found.values()) >= 9


def second_look(folder):
    change(
        folder,
        "test_ledger.csv",
        lambda table: pd.concat([table, table.tail(1).assign(look=2, model="other")]),
    )


def unentered_stage(folder):
    change(folder, "test_ledger.csv", lambda table: table[table["stage"] != "transfer"])


def best_on_the_edge(folder):
    # The smallest tried rate becomes the best, and nothing below it was tried.
    def edit(table):
        table["val_loss"] = table["learning_rate"]
        return table

    change(folder, "tuning_baseline.csv", edit)
    settings = yaml.safe_load((folder / "settings.yaml").read_text())
    settings["baseline"]["search"]["learning_rate"]["low"] = 1e-8
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))


def shared_model(folder):
    change(
        folder,
        "tuning_transfer.csv",
        lambda table: table.assign(initial_model=[f"model {row}" for row in range(len(table))]),
    )


def unknown_beginning(folder):
    change(folder, "tuning_baseline.csv", lambda table: table.drop(columns="initial_model"))


def too_few_epochs(folder):
    change(folder, "tuning_baseline.csv", lambda table: table.assign(best_epoch=99))


def watched_final_fit(folder):
    change(folder, "history_baseline.csv", lambda table: table.assign(val_loss=0.5))


def other_data(folder):
    change(folder, "tuning_transfer.csv", lambda table: table.assign(data="other"))


def lost_seed(folder):
    change(folder, "metrics.csv", lambda table: table.drop(columns="seed"))


def improved_metric(folder):
    def edit(table):
        table.loc[table["metric"] == "AUC", "value"] += 0.01
        return table

    change(folder, "metrics.csv", edit)


def lost_scores(folder):
    (folder / "scores_fine_tuned_test.csv").unlink()


def far_from_validation(folder):
    def edit(table):
        chosen = (table["split"] == "test") & (table["metric"] == "accuracy")
        table.loc[chosen, ["value", "low", "high"]] = [0.01, 0.0, 0.02]
        return table

    change(folder, "metrics.csv", edit)


def scored_synthetic_images(folder):
    change(folder, "scores_baseline_test.csv", lambda table: table.assign(synthetic=True))


@pytest.mark.parametrize(
    ("breach", "check"),
    [
        (second_look, "one look at the test set per stage"),
        (unentered_stage, "every tested stage is in the ledger"),
        (best_on_the_edge, "best values inside their ranges"),
        (shared_model, "a new model for every trial"),
        (unknown_beginning, "a new model for every trial"),
        (too_few_epochs, "final fits: right epochs, no early stopping"),
        (watched_final_fit, "final fits: right epochs, no early stopping"),
        (other_data, "one data set and split throughout"),
        (lost_seed, "versions, seed and weights recorded"),
        (improved_metric, "metrics follow from the saved scores"),
        (lost_scores, "metrics follow from the saved scores"),
        (far_from_validation, "validation and test agree"),
        (scored_synthetic_images, "synthetic samples only in training"),
    ],
)
def test_a_planted_breach_fails_its_rule_and_no_other(results, breach, check):
    before = {name for name, finding in verdicts(results).items() if finding.verdict == "fail"}
    assert not before
    breach(results)
    failed = {name for name, finding in verdicts(results).items() if finding.verdict == "fail"}
    assert check in failed
    related = {"metrics follow from the saved scores"}  # changing a metric breaks this one as well
    assert failed - related <= {check}


def test_an_empty_folder_passes_nothing(tmp_path):
    assert {finding.verdict for finding in audit_protocol(tmp_path)} == {"not applicable"}


def test_findings_become_a_table_and_the_gravest_verdict_is_known():
    findings = [
        Finding("data", "a", "pass", "fine", 0.5, 0.4, 0.6, 10),
        Finding("data", "b", "warn", "hm"),
    ]
    assert as_table(findings)["verdict"].tolist() == ["pass", "warn"]
    assert worst(findings) == "warn"
    assert worst([]) == "not applicable"
    with pytest.raises(ValueError, match="allowed: fail, warn"):
        Finding("data", "c", "bad", "")
