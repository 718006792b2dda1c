"""The committed run: its numbers follow from its scores, and README says what it says."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from covid_lab.audit.protocol import audit_protocol
from covid_lab.report import build
from covid_lab.report.evidence import collect
from covid_lab.studies.medmnist import PUBLISHED
from covid_project.evaluation import metrics_table
from covid_project.settings import load_settings
from covid_project.tuning import best_hyperparameters

HOUSE = Path(__file__).resolve().parent.parent
RESULTS = HOUSE / "results"
CHANGED = subprocess.run(
    ["git", "status", "--porcelain", "--", "results"], cwd=HOUSE, capture_output=True, text=True
)
pytestmark = pytest.mark.skipif(
    CHANGED.returncode != 0 or CHANGED.stdout.strip() != "",
    reason="results/ holds a run of your own, not the committed one",
)
STAGES = ("baseline", "transfer", "fine_tuned")


@pytest.fixture(scope="module")
def metrics():
    return pd.read_csv(RESULTS / "metrics.csv", float_precision="round_trip")


@pytest.mark.parametrize("stage", STAGES)
def test_metrics_follow_from_the_saved_scores(metrics, stage):
    scores = pd.read_csv(RESULTS / f"scores_{stage}_test.csv", float_precision="round_trip")
    saved = metrics[(metrics["stage"] == stage) & (metrics["split"] == "test")]
    again = metrics_table(scores["label"], scores["score"], seed=int(saved["seed"].iloc[0]))
    columns = ["value", "low", "high", "n"]
    np.testing.assert_allclose(saved[columns].to_numpy(), again[columns].to_numpy(), rtol=1e-12)


def test_the_ledger_keeps_every_look_and_readme_says_why():
    # The first run's rehearsals of the fine-tuning shared weights, so all of it was run again; the
    # third run was needed for its models, and replayed the first one's baseline and head.
    ledger = pd.read_csv(RESULTS / "test_ledger.csv")
    assert ledger.groupby("look")["stage"].apply(list).to_dict() == {
        1: list(STAGES),
        2: list(STAGES),
        3: ["fine_tuned"],
    }
    readme = " ".join((HOUSE / "README.md").read_text(encoding="utf-8").split())
    for run in ("first_run", "second_run"):
        earlier = pd.read_csv(RESULTS / run / "metrics.csv")
        accuracy = earlier[(earlier["split"] == "test") & (earlier["metric"] == "accuracy")]
        said = ", ".join(
            f"{value:.3f}" for value in accuracy.set_index("stage")["value"][[*STAGES]]
        )
        assert said in readme
    assert "three times for fine_tuned" in readme


def test_readme_names_every_measurable_difference():
    comparisons = pd.read_csv(RESULTS / "comparisons.csv")
    found = comparisons[comparisons["verdict"] != "no difference"]
    assert found[["metric", "first", "second"]].to_numpy().tolist() == [
        ["accuracy", "transfer", "fine_tuned"]
    ]
    row = found.iloc[0]
    readme = " ".join((HOUSE / "README.md").read_text(encoding="utf-8").split())
    assert f"by {row['difference']:.3f} ({row['low']:.3f}–{row['high']:.3f})" in readme


def test_the_run_broke_no_rule_but_that_of_the_single_look():
    failed = [finding.check for finding in audit_protocol(RESULTS) if finding.verdict == "fail"]
    assert failed == ["one look at the test set per stage"]


def test_the_reports_values_tables_and_figures_are_those_of_the_run():
    assert build.source_faults(RESULTS, build.SOURCE, collect(RESULTS)) == []


def test_the_best_hyperparameters_lie_inside_what_was_tried_or_at_a_stated_limit():
    settings = load_settings(RESULTS / "settings.yaml")
    for name, axes in (
        ("baseline", settings.baseline.search),
        ("transfer", settings.transfer.search),
        ("fine_tuning", {"learning_rate": settings.transfer.fine_tuning.learning_rate}),
    ):
        trials = pd.read_csv(RESULTS / f"tuning_{name}.csv")
        best = best_hyperparameters(trials, axes)
        for key, axis in axes.items():
            next_value = {
                side: best[key] * axis.times**side if axis.times else best[key] + side * axis.plus
                for side in (-1, 1)
            }
            assert trials[key].min() < best[key] or next_value[-1] < axis.low, (name, key)
            assert best[key] < trials[key].max() or next_value[1] > axis.high, (name, key)


def test_readme_says_what_the_results_say(metrics):
    rows = re.findall(
        r"^\| (baseline|transfer|fine_tuned) \|.*?\| ([\d.]+) \(([\d.]+)–([\d.]+)\) "
        r"\| ([\d.]+) \(([\d.]+)–([\d.]+)\) \|$",
        (HOUSE / "README.md").read_text(encoding="utf-8"),
        flags=re.M,
    )
    assert [row[0] for row in rows] == list(STAGES)
    test = metrics[metrics["split"] == "test"].set_index(["stage", "metric"])
    for stage, *numbers in rows:
        expected = [
            f"{test.loc[(stage, metric), column]:.3f}"
            for metric in ("accuracy", "AUC")
            for column in ("value", "low", "high")
        ]
        assert numbers == expected


def test_readme_says_what_the_audits_found():
    readme = (HOUSE / "README.md").read_text(encoding="utf-8")
    for name in ("covid_xray", "chest_xray", "covid_ct", "covid_two_sources"):
        views = pd.read_csv(RESULTS / "audit" / name / "shortcuts.csv").set_index("view")
        shown = [
            f"{row.auc:.3f} ({row.low:.3f}–{row.high:.3f})"
            if (row := views.loc[view] if view in views.index else None) is not None
            else "–"
            for view in ("file metadata", "border", "lungs removed", "whole image")
        ]
        assert re.search(rf"\(`{name}`\), [\d,]+ \| {re.escape(' | '.join(shown))} \|", readme), (
            name
        )
    caught = pd.read_csv(RESULTS / "audit" / "controls.csv").query("caught")
    weakest = caught.groupby("control")["strength"].min()
    words = " ".join(readme.split())
    assert (
        f"a marker from {weakest['marker']:g} grey levels, a border from {weakest['border']:g}, "
        f"a size difference from {weakest['size']:g} % of the side"
    ) in words
    pairs = pd.read_csv(RESULTS / "audit" / "covid_ct" / "duplicates.csv")
    assert (len(pairs), pairs["label_conflict"].sum()) == (18, 2)
    assert "18 pairs of near copies, two of them with two labels" in words
    audit = pd.read_csv(RESULTS / "audit" / "covid_xray" / "audit.csv").set_index("check")
    border = audit.loc["fine_tuned: the model on the border alone"]
    assert f"AUC of {border['value']:.3f} ({border['low']:.3f}–{border['high']:.3f})" in words


def test_readme_says_what_the_pneumonia_study_found():
    readme = (HOUSE / "README.md").read_text(encoding="utf-8")
    for row in pd.read_csv(RESULTS / "pneumonia" / "model_comparison.csv").itertuples():
        accuracy = f"{row.accuracy:.3f} ({row.accuracy_low:.3f}–{row.accuracy_high:.3f})"
        auc = f"{row.AUC:.3f} ({row.AUC_low:.3f}–{row.AUC_high:.3f})"
        published = f"{row.published_accuracy:.3f} / {row.published_AUC:.3f}"
        assert f"| {row.stage} | {accuracy} | {auc} | {published} |" in readme
    first = pd.read_csv(RESULTS / "pneumonia" / "first_run" / "model_comparison.csv")
    for row in first.itertuples():
        assert f"{row.stage} {row.accuracy:.3f} / {row.AUC:.3f}" in readme
    ledger = pd.read_csv(RESULTS / "pneumonia" / "test_ledger.csv")
    assert ledger.groupby("stage")["look"].max().to_dict() == {"mlp": 2, "cnn": 2, "transfer": 2}
    unlike = pd.read_csv(RESULTS / "pneumonia" / "series.csv").set_index(["left_out", "clip_limit"])
    for limit in (0, 0.02):
        row = unlike.loc[("NORMAL2-IM", limit)]
        assert f"{row['seen_specificity']:.3f} to {row['unseen_specificity']:.3f}" in readme
    validation = pd.read_csv(RESULTS / "pneumonia" / "metrics.csv")
    chosen_on = validation[(validation["split"] == "val") & (validation["metric"] == "accuracy")]
    shown = [f"{value:.3f}" for value in chosen_on["value"]]
    assert f"{', '.join(shown[:-1])} and {shown[-1]}" in readme


def test_readme_says_what_the_study_of_ct_slices_found():
    readme = (HOUSE / "README.md").read_text(encoding="utf-8")
    metrics = pd.read_csv(RESULTS / "ct_lesions" / "metrics.csv")
    metrics = metrics[metrics["split"] == "test"].set_index(["stage", "metric"])
    for stage in ("model_a", "model_b", "model_c", "model_d", "logistic", "neighbours"):
        shown = [
            f"{row['value']:.3f} ({row['low']:.3f}–{row['high']:.3f})"
            for row in (metrics.loc[(stage, metric)] for metric in ("accuracy", "AUC"))
        ]
        assert f"| {shown[0]} | {shown[1]} |" in readme
    ledger = pd.read_csv(RESULTS / "ct_lesions" / "test_ledger.csv")
    assert ledger["look"].tolist() == [1] * len(ledger)


def test_readme_says_what_the_benchmarks_measured_and_they_agree():
    rows = pd.read_csv(RESULTS / "benchmarks.csv")
    compared = rows[rows["tolerance"].notna()]
    assert (compared["agreement"] <= compared["tolerance"]).all()
    readme = (HOUSE / "README.md").read_text(encoding="utf-8")
    for row in rows[rows["promised"].notna() & (rows["unit"] == "s")].itertuples():
        ratio = f"{row.ratio:.1f} ({row.ratio_low:.1f}–{row.ratio_high:.1f})"
        kept = "yes" if row.ratio >= row.promised else "**no**"
        line = f"| {row.name} | {row.against} | {ratio} | {row.promised:.1f} | {kept} |"
        assert line in readme
    (busy,) = rows.loc[rows["unit"] == "share of the time", "peer"]
    assert f"{100 * (1 - busy):.1f} % is spent waiting" in readme
    for target in ("run", "test"):
        (seconds,) = rows.loc[rows["name"].str.startswith(f"`make {target}`"), "ours"]
        assert f"took {seconds / 60:.1f} minutes" in readme


def test_readme_says_how_the_memory_grows():
    rows = pd.read_csv(RESULTS / "growth.csv").query("images == 14000").set_index("stage")
    audit, others = rows.loc["audit"], rows.drop(["audit", "load"])
    assert (others["mib"] < others["cache_mib"] / 2).all()
    said = f"{audit['mib']:.0f} MiB at 14,000 images, {audit['mib'] / audit['cache_mib']:.1f} times"
    assert said in " ".join((HOUSE / "README.md").read_text(encoding="utf-8").split())


def _performance(run):
    table = pd.read_csv(RESULTS / "robustness" / run / "performance.csv", dtype={"network": str})
    return table.set_index(["training", "network", "metric"])


def _detection(run):
    table = pd.read_csv(RESULTS / "robustness" / run / "detection.csv")
    table = table[table["perturbation"] == "all"].rename(columns={"auc": "value"})
    return table.set_index(["training", "detector"])


def _with_interval(row):
    return f"{row['value']:.3f} ({row['low']:.3f}–{row['high']:.3f})"


def _gain(row):
    told = f"{row['gain']:+.3f} ({row['gain_low']:+.3f} to {row['gain_high']:+.3f})"
    return told.replace("-", "−")


@pytest.mark.parametrize("name", ["breast", "pneumonia"])
def test_readme_says_what_the_robustness_study_found(name):
    performance, detection = _performance(name), _detection(name)
    readme = (HOUSE / "README.md").read_text(encoding="utf-8")
    for training, images in (("plain", "plain"), ("augmented", "perturbed")):
        rows = [performance.loc[(training, "mean", metric)] for metric in ("AUC", "accuracy")]
        kinds = ("confidence", "change", "drift", "both")
        rows += [detection.loc[(training, kind)] for kind in kinds]
        shown = [_with_interval(row) for row in rows]
        assert f"| {name} | {images} | {' | '.join(shown)} |" in readme
        if "together" in performance.index.get_level_values("network"):
            rows = [performance.loc[(training, "together", m)] for m in ("AUC", "accuracy")]
            shown = [_with_interval(row) for row in rows]
            assert f"| {name}, together | {images} | {' | '.join(shown)} | | | | |" in readme
        for kind in ("both", "all three"):
            assert _gain(detection.loc[(training, kind)]) in " ".join(readme.split())


@pytest.mark.parametrize("name", ["breast", "pneumonia"])
def test_the_robustness_study_looked_at_each_test_split_twice(name):
    folder = RESULTS / "robustness" / name
    ledger = pd.read_csv(folder / "test_ledger.csv")
    for _, rows in ledger.groupby("stage"):
        assert rows["look"].tolist() == list(range(1, len(rows) + 1))
        assert rows["model"].is_unique
    networks = {path.name[7:-12] for path in folder.glob("scores_*_test.csv.gz")}
    last = ledger.groupby("stage")["look"].max()
    assert last[sorted(networks)].tolist() == [2] * len(networks)


@pytest.mark.parametrize(("name", "run"), [("breast", "second_run"), ("pneumonia", "first_run")])
def test_readme_says_what_the_runs_before_the_mended_order_had_found(name, run):
    means = _performance(f"{name}/{run}")["value"].xs("mean", level="network")
    plain, perturbed = (
        f"{means[training, 'AUC']:.3f} and {means[training, 'accuracy']:.3f}"
        for training in ("plain", "augmented")
    )
    added = _gain(_detection(f"{name}/{run}").loc[("plain", "both")])
    readme = " ".join((HOUSE / "README.md").read_text(encoding="utf-8").split())
    assert f"{plain} with plain training, {perturbed} with perturbed" in readme
    assert f"{added} to confidence" in readme


def test_drift_adds_and_takes_away_where_readme_says_so():
    gains, drift_tells_more = {}, []
    for name in ("breast", "pneumonia"):
        detection = _detection(name)
        for training in ("plain", "augmented"):
            rows = detection.loc[training]
            drift_tells_more.append(rows.loc["drift", "value"] >= rows.loc["change", "value"])
            for detector in ("both", "all three"):
                low, high = rows.loc[detector, ["gain_low", "gain_high"]]
                gains[name, training, detector] = (
                    "adds" if low > 0 else "takes" if high < 0 else "nothing"
                )
    assert not any(drift_tells_more)  # "the change of the score alone tells more than drift does"
    assert gains == {
        ("pneumonia", "plain", "both"): "adds",
        ("pneumonia", "augmented", "both"): "adds",
        ("breast", "plain", "both"): "nothing",
        ("breast", "augmented", "both"): "nothing",
        ("breast", "plain", "all three"): "takes",
        ("pneumonia", "plain", "all three"): "takes",
        ("breast", "augmented", "all three"): "takes",
        ("pneumonia", "augmented", "all three"): "nothing",
    }


def test_readme_says_what_flag_and_networks_of_the_robustness_study_do():
    readme = " ".join((HOUSE / "README.md").read_text(encoding="utf-8").split())
    folder = RESULTS / "robustness"
    flags = pd.concat(pd.read_csv(folder / name / "flags.csv") for name in ("breast", "pneumonia"))
    raised = 100 * flags.loc[flags["detector"] == "drift", "false_alarms"]
    assert f"raises {raised.min():.0f} to {raised.max():.0f} % on test" in readme
    values = _performance("breast").pivot_table("value", ["network", "training"], "metric")
    auc, accuracy = PUBLISHED["breastmnist"]["ResNet-18 (28)"]
    means, together = values.loc["mean"], values.loc["together"]
    assert not ((means["AUC"] >= auc) | (means["accuracy"] >= accuracy)).any()
    assert together.index[together["AUC"] >= auc].tolist() == ["plain"]
    assert together.index[together["accuracy"] >= accuracy].tolist() == ["augmented"]
    assert f"plain training ({together.loc['plain', 'AUC']:.3f})" in readme
    assert f"of perturbed ({together.loc['augmented', 'accuracy']:.3f})" in readme
    lungs = _performance("pneumonia").pivot_table("value", ["network", "training"], "metric")
    lungs = lungs.loc["mean"]
    auc, accuracy = PUBLISHED["pneumoniamnist"]["ResNet-18 (28)"]
    assert ((lungs["AUC"] >= auc) & (lungs["accuracy"] >= accuracy)).all()
    best_auc, best_accuracy = PUBLISHED["pneumoniamnist"]["best at 28"]
    assert not ((lungs["AUC"] >= best_auc) | (lungs["accuracy"] >= best_accuracy)).any()
    recipes = pd.read_csv(folder / "breast" / "recipes.csv").set_index(["recipe", "network"])
    assert recipes.loc[("medmnist", 23), "best_epoch"] == 4  # "one from the fourth epoch"
    benign = pd.read_csv(folder / "breast" / "scores_medmnist_plain_23_test.csv.gz")
    originals = benign[benign["severity"] == 0]
    assert (originals["logit_1"] > originals["logit_0"]).all()


def test_readme_says_how_closely_drift_goes_with_the_loss():
    readme = " ".join((HOUSE / "README.md").read_text(encoding="utf-8").split())
    told = []
    for name in ("breast", "pneumonia"):
        table = pd.read_csv(RESULTS / "robustness" / name / "correlations.csv")
        table = table[(table["kind"] == "sets") & (table["measure"] == "rmse")]
        assert (table["low"] > 0).all()
        ranks = table.groupby("training")["value"].agg(["min", "max"])
        told += [
            f"{ranks.loc[training, 'min']:.2f} to {ranks.loc[training, 'max']:.2f}"
            for training in ("plain", "augmented")
        ]
    assert f"{told[0]} and {told[1]} on BreastMNIST" in readme
    assert f"{told[2]} and only {told[3]} on PneumoniaMNIST" in readme


def test_readme_says_how_long_pneumonia_was_trained():
    readme = " ".join((HOUSE / "README.md").read_text(encoding="utf-8").split())
    recipes = pd.read_csv(RESULTS / "robustness" / "pneumonia" / "recipes.csv")
    epochs = recipes.set_index("recipe")["epochs"]
    assert f"it stopped after {epochs['thesis']} epochs" in readme
    assert f"MedMNIST's with {epochs['medmnist']} of its 100 epochs" in readme
    assert f"`--set seeds=1 --set recipes.medmnist.epochs={epochs['medmnist']}`" in readme


@pytest.mark.parametrize(("name", "digits"), [("breast", 3), ("pneumonia", 4)])
def test_readme_says_how_little_decided_between_the_recipes(name, digits):
    recipes = pd.read_csv(RESULTS / "robustness" / name / "recipes.csv")
    means = recipes.groupby("recipe")["val_auc"].mean()
    gap = means["medmnist"] - means["thesis"]
    assert gap > 0
    assert f"{gap:.{digits}f}" in (HOUSE / "README.md").read_text(encoding="utf-8")


def test_readme_says_how_the_memory_of_fifty_searches_grew():
    rows = pd.read_csv(RESULTS / "faults.csv")
    (outcome,) = rows.loc[rows["tried"] == "50 searches: memory", "outcome"]
    grown = outcome.removeprefix("grew by ").replace("%", " %")
    assert f"({grown} more)" in (HOUSE / "README.md").read_text(encoding="utf-8")


def test_readme_says_how_many_faults_were_tried():
    tried = pd.read_csv(RESULTS / "faults.csv").groupby("fault")["count"].sum()
    readme = (HOUSE / "README.md").read_text(encoding="utf-8")
    for count in tried:
        assert f"| {count:,} |" in readme


def test_no_pixels_and_no_paths_of_a_machine_are_committed():
    for path in RESULTS.rglob("*"):
        if "demo" in path.parts or "notebooks" in path.parts or path.name.startswith("images_"):
            continue  # ignored by git
        assert path.suffix in (
            "",
            ".csv",
            ".gz",
            ".json",
            ".yaml",
            ".md",
            ".pdf",
            ".tex",
            ".log",
            ".keras",
        )
        if path.suffix in (".csv", ".json", ".yaml", ".md"):
            assert not re.search(r"(^|[\s\"',:])/(home|Users|root|work|tmp)/", path.read_text()), (
                path
            )
