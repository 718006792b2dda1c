"""Each rule of the protocol passes on a run of ours, and fails on a planted breach."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from covid_lab.audit.findings import Finding, as_table, worst
from covid_lab.audit.protocol import DATA_RULES, RULES, audit_protocol
from covid_lab.datasets import load_images, open_dataset
from covid_lab.phantoms import write_dataset
from covid_project.evaluation import METRICS, Metric
from covid_project.models import baseline_cnn
from covid_project.normalization import normalization_layer
from covid_project.results import open_run
from covid_project.settings import as_yaml, load_settings


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
    assert set(found) == {*RULES, *DATA_RULES}
    assert {found[check].verdict for check in DATA_RULES} == {"not applicable"}
    assert {finding.verdict for finding in found.values()} <= {"pass", "not applicable"}
    assert sum(finding.verdict == "pass" for finding in found.values()) >= 9


def second_look(folder):
    change(
        folder,
        "test_ledger.csv",
        lambda table: pd.concat([table, table.tail(1).assign(look=2, model="other")]),
    )


def unentered_stage(folder):
    change(folder, "test_ledger.csv", lambda table: table[table["stage"] != "fine_tuned"])


def best_on_the_edge(folder):
    # The smallest tried rate becomes the best, after as many epochs as the best one before.
    def edit(table):
        table["best_epoch"] = table.loc[table["val_loss"].idxmin(), "best_epoch"]
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


def too_many_epochs(folder):
    change(folder, "history_baseline.csv", lambda table: pd.concat([table, table.tail(1)]))


def fine_tuned_for_longer(folder):
    change(folder, "history_fine_tuned.csv", lambda table: pd.concat([table, table.tail(1)]))


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


def another_test_image(folder):
    def edit(table):
        table.loc[0, "path"] = "test/NORMAL/other.png"
        return table

    change(folder, "scores_fine_tuned_test.csv", edit)


def validation_image_in_test(folder):
    paths = pd.read_csv(folder / "scores_baseline_val.csv")["path"]
    for stage in ("baseline", "fine_tuned"):
        change(
            folder,
            f"scores_{stage}_test.csv",
            lambda table: table.assign(path=[paths[0], *table["path"][1:]]),
        )


def dealt_anew(folder):
    scored = pd.read_csv(folder / "scores_baseline_test.csv")
    dealt = scored[["path", "label"]].assign(split="test", fingerprint="x")
    dealt.iloc[:-1].to_csv(folder / "splits.csv", index=False)


@pytest.mark.parametrize(
    ("breach", "check"),
    [
        (second_look, "one look at the test set per stage"),
        (unentered_stage, "every tested stage is in the ledger"),
        (best_on_the_edge, "best values inside their ranges"),
        (shared_model, "a new model for every trial"),
        (unknown_beginning, "a new model for every trial"),
        (too_few_epochs, "final fits: right epochs, no early stopping"),
        (too_many_epochs, "final fits: right epochs, no early stopping"),
        (fine_tuned_for_longer, "final fits: right epochs, no early stopping"),
        (watched_final_fit, "final fits: right epochs, no early stopping"),
        (another_test_image, "splits unchanged between the stages"),
        (validation_image_in_test, "splits unchanged between the stages"),
        (dealt_anew, "splits unchanged between the stages"),
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


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "phantoms"
    counts = {"train": 6, "val": 3, "test": 3}
    return open_dataset(write_dataset(folder, counts, size=32, seed=1), as_found=True)


def run_of(folder, dataset, strategy="sample"):
    """Write what the rules that need the data read."""
    folder.mkdir(parents=True)
    changes = {"image_size": 32, "normalization": strategy}
    settings = load_settings(data=dataset.root, results=folder, changes=changes)
    (folder / "settings.yaml").write_text(as_yaml(settings))
    (folder / "run.json").write_text(json.dumps({"data": dataset.fingerprint, "phantoms": True}))
    return folder


def test_metrics_that_were_added_or_removed_are_compared_by_name(drawn, tmp_path, monkeypatch):
    check = "metrics follow from the saved scores"
    run = open_run(load_settings(data=drawn.root, results=tmp_path / "r"))
    scores = np.random.default_rng(0).normal(size=6)
    added = Metric(from_counts=lambda tn, fp, fn, tp: tn / (tn + fp))

    def judged():
        return verdicts(run.folder)[check]

    run.record_metrics("transfer", "val", scores)
    before = len(METRICS)
    monkeypatch.setitem(METRICS, "negatives", added)
    assert judged().verdict == "pass"
    assert judged().found.startswith(f"{before} figures")
    run.record_metrics("baseline", "val", scores)
    assert judged().verdict == "pass"
    assert judged().found.startswith(f"{2 * before + 1} figures")
    monkeypatch.delitem(METRICS, "negatives")
    assert judged().verdict == "pass"
    assert judged().found.endswith("negatives: not known here, not computed")
    monkeypatch.setitem(METRICS, "negatives", added)

    def edit(table):
        table.loc[table["metric"] == "negatives", "value"] += 0.1
        return table

    change(run.folder, "metrics.csv", edit)
    assert judged().verdict == "fail"
    assert judged().found == "baseline, val: negatives is not what the scores give"


def test_data_that_changed_since_training_are_a_breach(drawn, tmp_path):
    check = "data and splits unchanged since training"
    results = run_of(tmp_path / "r", drawn)
    assert {f.check: f for f in audit_protocol(results, drawn)}[check].verdict == "pass"
    copied = tmp_path / "copied"
    shutil.copytree(drawn.root, copied)
    moved = next((copied / "train" / "COVID").iterdir())
    moved.rename(copied / "test" / "COVID" / moved.name)
    changed = open_dataset(copied, as_found=True)
    found = {f.check: f for f in audit_protocol(results, changed)}[check]
    assert found.verdict == "fail"
    assert drawn.fingerprint in found.found
    assert changed.fingerprint in found.found


@pytest.mark.parametrize("strategy", ["dataset", "pixel"])
@pytest.mark.parametrize(
    ("stage", "splits", "verdict"),
    [
        ("baseline_tuned", ("train",), "pass"),
        ("baseline", ("train", "val"), "pass"),
        ("baseline_tuned", ("train", "val"), "fail"),
        ("baseline", ("train", "val", "test"), "fail"),
        ("baseline_tuned", ("train", "test"), "fail"),
    ],
)
def test_statistics_of_other_images_than_the_trained_ones_are_a_breach(
    drawn, tmp_path, strategy, stage, splits, verdict
):
    results = run_of(tmp_path / "r", drawn, strategy)
    images = load_images(drawn, 32)[np.isin(drawn.table["split"], splits)]
    model = baseline_cnn(32, normalization_layer(strategy, images), filters=2, dropout=0.1)
    (results / "models").mkdir()
    model.save(results / "models" / f"{stage}.keras")
    check = "normalisation statistics from training alone"
    assert {f.check: f for f in audit_protocol(results, drawn)}[check].verdict == verdict


def test_strategies_without_statistics_pass_and_lost_models_are_not_judged(drawn, tmp_path):
    check = "normalisation statistics from training alone"
    for strategy, verdict in [("fixed", "pass"), ("sample", "pass"), ("pixel", "not applicable")]:
        results = run_of(tmp_path / strategy, drawn, strategy)
        assert {f.check: f for f in audit_protocol(results, drawn)}[check].verdict == verdict


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
