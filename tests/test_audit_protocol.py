"""Each rule of the protocol passes on a run of ours, and fails on a planted breach."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

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


def with_last_row_twice(table):
    return pd.concat([table, table.tail(1)])


def second_look(table):
    return pd.concat([table, table.tail(1).assign(look=2, model="other")])


def best_on_the_edge(table):
    """Make the smallest tried rate the best, after as many epochs as the best one before."""
    table["best_epoch"] = table.loc[table["val_loss"].idxmin(), "best_epoch"]
    return table.assign(val_loss=table["learning_rate"])


def shared_model(table):
    return pd.concat([table, table.assign(initial_model="another")])


def improved_metric(table):
    return table.assign(value=table["value"] + 0.01 * (table["metric"] == "AUC"))


def far_from_validation(table):
    chosen = (table["split"] == "test") & (table["metric"] == "accuracy")
    table.loc[chosen, ["value", "low", "high"]] = [0.01, 0.0, 0.02]
    return table


def another_test_image(table):
    return table.assign(path=["test/NORMAL/other.png", *table["path"][1:]])


def validation_image_in_test(folder):
    first = pd.read_csv(folder / "scores_baseline_val.csv")["path"][0]
    for stage in ("baseline", "fine_tuned"):
        change(
            folder,
            f"scores_{stage}_test.csv",
            lambda table: table.assign(path=[first, *table["path"][1:]]),
        )


def dealt_anew(folder):
    scored = pd.read_csv(folder / "scores_baseline_test.csv")
    dealt = scored[["path", "label"]].assign(split="test", fingerprint="x")
    dealt.iloc[:-1].to_csv(folder / "splits.csv", index=False)


def wide_range(folder):
    change(folder, "tuning_baseline.csv", best_on_the_edge)
    settings = yaml.safe_load((folder / "settings.yaml").read_text())
    settings["baseline"]["search"]["learning_rate"]["low"] = 1e-8
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))


def lost_scores(folder):
    (folder / "scores_fine_tuned_test.csv").unlink()


ONE_LOOK = "one look at the test set per stage"
LEDGER = "every tested stage is in the ledger"
NEW_MODEL = "a new model for every trial"
FINAL_FIT = "final fits: right epochs, no early stopping"
SPLITS = "splits unchanged between the stages"
SCORES = "metrics follow from the saved scores"


@pytest.mark.parametrize(
    ("check", "table", "breach"),
    [
        (ONE_LOOK, "test_ledger", second_look),
        (LEDGER, "test_ledger", lambda t: t[t["stage"] != "fine_tuned"]),
        ("best values inside their ranges", "", wide_range),
        (NEW_MODEL, "tuning_transfer", shared_model),
        (NEW_MODEL, "tuning_baseline", lambda t: t.drop(columns="initial_model")),
        (FINAL_FIT, "tuning_baseline", lambda t: t.assign(best_epoch=99)),
        (FINAL_FIT, "history_baseline", with_last_row_twice),
        (FINAL_FIT, "history_fine_tuned", with_last_row_twice),
        (FINAL_FIT, "history_baseline", lambda t: t.assign(val_loss=0.5)),
        (SPLITS, "scores_fine_tuned_test", another_test_image),
        (SPLITS, "", validation_image_in_test),
        (SPLITS, "", dealt_anew),
        ("one data set and split throughout", "tuning_transfer", lambda t: t.assign(data="other")),
        ("versions, seed and weights recorded", "metrics", lambda t: t.drop(columns="seed")),
        (SCORES, "metrics", improved_metric),
        (SCORES, "", lost_scores),
        ("validation and test agree", "metrics", far_from_validation),
        ("synthetic samples only in training", "scores_baseline_test",
         lambda t: t.assign(synthetic=True)),
    ],
)  # fmt: skip
def test_a_planted_breach_fails_its_rule_and_no_other(results, check, table, breach):
    assert not {name for name, finding in verdicts(results).items() if finding.verdict == "fail"}
    if table:
        change(results, f"{table}.csv", breach)
    else:
        breach(results)
    failed = {name for name, finding in verdicts(results).items() if finding.verdict == "fail"}
    assert check in failed
    assert failed - {SCORES} <= {check}  # changing a metric breaks this one as well


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
    run = open_run(load_settings(data=drawn.root, results=tmp_path / "r"))
    scores = np.random.default_rng(0).normal(size=6)
    added = Metric(from_counts=lambda tn, fp, fn, tp: tn / (tn + fp))

    def judged():
        return verdicts(run.folder)[SCORES]

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

    change(
        run.folder,
        "metrics.csv",
        lambda table: table.assign(value=table["value"] + 0.1 * (table["metric"] == "negatives")),
    )
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
