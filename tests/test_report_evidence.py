"""The report's numbers come from the tables, and nowhere else."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from covid_lab.external.score import external_metrics
from covid_lab.report import evidence, latex, reading
from covid_lab.report.evidence import collect
from covid_project.settings import PROJECT

VARIANTS = ("as tuned", "64 px", "no augmentation", "SGD with momentum", "focal loss",
            "normalization: fixed", "normalization: dataset", "normalization: pixel")  # fmt: skip
EXPLAINED = [  # method, measure, setting, versus, value, verdict
    ("grad-cam", "energy inside", "lungs", None, 0.4, None),
    ("grad-cam", "energy inside", "lungs", "random", 0.1, "better"),
    ("grad-cam", "energy inside", "lungs", "centred Gaussian", -0.1, "worse"),
    ("grad-cam", "deletion", "to the mean", None, 0.3, None),
    ("grad-cam", "deletion", "to the mean", "random", 0.1, "better"),
    ("grad-cam", "ROAD", "least less most", None, 0.2, None),
    ("grad-cam", "ROAD", "least less most", "centred Gaussian", 0.0, "no difference"),
    ("grad-cam", "SSIM", "cascading, all layers", None, 0.1, "pass"),
    ("grad-cam", "SSIM", "noise of 5 grey levels", None, 0.9, "pass"),
    ("grad-cam", "SSIM", "another seed", None, 0.2, "fail"),
    ("centred Gaussian", "energy inside", "lungs", None, 0.5, None),
    ("random", "energy inside", "lungs", None, 0.3, None),
]


@pytest.fixture
def copy(tmp_path):
    """The tables of the committed run, without audit and external test, and of some extras."""
    for path in (PROJECT / "results").iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    seeds = pd.DataFrame({"val_loss": [0.1, 0.2], "val_accuracy": [0.9, 0.8], "val_AUC": 0.95})
    variants = pd.DataFrame({"case": VARIANTS, "val_loss": 0.1, "val_accuracy": 0.9})
    variants = variants.assign(epoch_seconds=2.0, AUC_difference=0.0, AUC_p_value=0.9)
    names = ["method", "measure", "setting", "versus", "value", "verdict"]
    explained = pd.DataFrame(EXPLAINED, columns=names)
    explained = explained.assign(stage="baseline", low=0.0, high=1.0, n=8, reference=0.3)
    for name, table in {
        "seeds_baseline": seeds,
        "seeds_transfer": seeds,
        "variants_baseline": variants.assign(AUC_low=-0.1, AUC_high=0.1),
        "explanations": explained.assign(lungs="known"),
    }.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


def change(folder, name, where, **values):
    table = pd.read_csv(folder / name)
    rows = table.query(where).index
    assert len(rows)
    for column, value in values.items():
        table.loc[rows, column] = value
    table.to_csv(folder / name, index=False)


def test_values_say_what_the_tables_say(copy):
    found = collect(copy)
    values = found.values
    named = {"metrics.csv", "comparisons.csv", "settings.yaml", "run.json", "gradcam.csv"}
    assert named <= set(found.sources)
    assert found.missing == found.extras_missing == ()
    metrics = pd.read_csv(copy / "metrics.csv").set_index(["stage", "split", "metric"])
    row = metrics.loc[("baseline", "test", "accuracy")]
    expected = f"{row.value:.3f} ({row.low:.3f}--{row.high:.3f})"
    assert values["test.baseline.accuracy"] == expected
    grey = pd.read_csv(copy / "exploration.csv").query("split == 'train' and `class` == 'both'")
    assert values["n.train"] == str(grey["images"].iloc[0])
    assert values["run.phantoms"] == "0"
    assert (values["seeds.n"], values["explain.methods"]) == ("2", "1")
    verdicts = [values[f"explain.{name}.outcome"] for name in ("lungs", "deletion", "road")]
    assert verdicts == ["2", "1", "0"]
    row = metrics.loc[("transfer", "val", "AUC")]
    assert values["val.transfer.AUC"] == f"{row.value:.3f} ({row.low:.3f}--{row.high:.3f})"
    history = pd.read_csv(copy / "history_baseline.csv")
    assert values["final.epochs"] == str(len(history))


def test_a_missing_table_is_named_and_the_rest_collected(copy):
    (copy / "comparisons.csv").unlink()
    found = collect(copy)
    assert found.missing == (f"{copy / 'comparisons.csv'} is missing: {reading.RUN_FIRST}",)
    assert "test.baseline.accuracy" in found.values
    assert "cam.layer" in found.values


def test_a_run_that_ended_before_the_test_is_described_as_far_as_it_came(copy):
    metrics = pd.read_csv(copy / "metrics.csv")
    metrics[metrics["stage"] == "baseline"].to_csv(copy / "metrics.csv", index=False)
    found = collect(copy)
    assert f"no test result of fine-tuned: {reading.RUN_FIRST}" in found.missing
    assert "final.epochs" in found.values
    assert "test.baseline.accuracy" not in found.values


def test_an_empty_folder_has_no_values(tmp_path):
    found = collect(tmp_path)
    assert found.values.keys() <= {"audit.there"}
    assert any("settings.yaml is missing" in line for line in found.missing)


@pytest.mark.parametrize("name", sorted(reading.FROM_EXTRAS))
def test_a_missing_table_of_the_extras_is_named_with_its_notebook(copy, name):
    (copy / name).unlink()
    found = collect(copy)
    assert found.missing == ()
    (missing,) = found.extras_missing
    assert f"{name} is missing: run studies/course_extras" in missing
    assert "cam.layer" in found.values


@pytest.mark.parametrize(
    ("difference", "p_value", "outcome"), [(0.1, 0.06, "0"), (0.1, 0.04, "1"), (-0.1, 0.04, "2")]
)
def test_the_paired_test_chooses_the_sentence(copy, difference, p_value, outcome):
    where = "metric == 'accuracy'"
    change(copy, "comparisons.csv", where, difference=difference, p_adjusted=p_value)
    assert collect(copy).values["outcome.baseline.finetuned.accuracy"] == outcome


def test_only_the_two_tested_models_are_compared(copy):
    expected = collect(copy)
    for name, column in (("comparisons", "second"), ("calibration", "stage")):
        table = pd.read_csv(copy / f"{name}.csv")
        other = table.iloc[[0]].assign(**{column: "transfer"})  # as in runs that tested it
        pd.concat([other, table]).to_csv(copy / f"{name}.csv", index=False)
    found = collect(copy)
    assert (found.values, found.tables) == (expected.values, expected.tables)


def test_fine_tuning_that_always_dropped_is_said_to_be_skipped(copy):
    change(copy, "tuning_fine_tuning.csv", "trial == 1", val_loss=0.0)
    attempts = pd.DataFrame(
        {"learning_rate": [3e-5, 1e-5], "least_accuracy": 0.86, "outcome": ["kept", "dropped"]}
    )
    attempts.to_csv(copy / "fine_tuning_attempts.csv", index=False)
    assert collect(copy).values["fine.kept"] == "0"
    attempts[::-1].to_csv(copy / "fine_tuning_attempts.csv", index=False)
    values = collect(copy).values
    limit = float(values["fine.limit"])
    assert values["fine.kept"] == "1"
    assert float(values["fine.accuracy.before"]) == pytest.approx(0.86 + limit, abs=0.001)
    change(copy, "tuning_fine_tuning.csv", "trial > 0", val_loss=np.nan)
    values = collect(copy).values
    assert (values["fine.ran"], values["fine.kept"]) == ("0", "0")


def test_a_variant_is_called_worse_only_after_the_correction_for_their_number(copy):
    change(copy, "variants_baseline.csv", "case != 'as tuned'", AUC_p_value=0.9)
    where = "case == 'focal loss'"
    change(copy, "variants_baseline.csv", where, AUC_p_value=0.01, AUC_difference=-0.1)
    assert collect(copy).values["variants.focal.outcome"] == "0"  # 7 variants: 0.01 is 0.07
    change(copy, "variants_baseline.csv", where, AUC_p_value=0.001)
    assert collect(copy).values["variants.focal.outcome"] == "2"
    change(copy, "variants_baseline.csv", where, AUC_difference=0.1)
    assert collect(copy).values["variants.focal.outcome"] == "1"


def test_an_auc_below_one_half_is_told_with_its_direction(copy):
    change(copy, "image_quality.csv", "number == number", AUC=0.5, low=0.45, high=0.55)
    assert collect(copy).values["quality.border.tells"] == "0"
    where = "number == 'mean of the border'"
    change(copy, "image_quality.csv", where, AUC=0.3, low=0.25, high=0.4)
    found = collect(copy)
    assert found.values["quality.best.AUC"] == "0.700 (0.600--0.750; lower in COVID)"
    assert found.values["quality.border.tells"] == "1"
    assert "0.700 (0.600--0.750)" in found.tables["quality"]
    change(copy, "image_quality.csv", where, AUC=0.7, low=0.6, high=0.75)
    assert collect(copy).values["quality.best.AUC"] == "0.700 (0.600--0.750; higher in COVID)"


@pytest.mark.parametrize(
    ("loss", "val_loss", "overfits"),
    [
        ([0.5, 0.3, 0.2], [0.6, 0.4, 0.3], "0"),  # lowest at the end, however far above
        ([0.5, 0.3, 0.2], [0.6, 0.4, 0.41], "0"),  # a rise within the noise
        ([0.5, 0.3, 0.2], [0.6, 0.4, 0.5], "1"),
        ([0.5, 0.3, 0.4], [0.6, 0.4, 0.5], "0"),  # the training loss rose as well
    ],
)
def test_overfitting_is_a_validation_loss_that_rises_again(copy, loss, val_loss, overfits):
    path = copy / "history_baseline_initial.csv"
    pd.read_csv(path).head(3).assign(loss=loss, val_loss=val_loss).to_csv(path, index=False)
    assert collect(copy).values["initial.overfits"] == overfits


def test_a_second_look_is_said(copy):
    assert collect(copy).values["looks.once"] == "1"
    change(copy, "test_ledger.csv", "stage == 'baseline'", look=2)
    values = collect(copy).values
    assert values["looks.once"] == "0"
    assert values["looks.list"] == "baseline 2, fine-tuned 1"


def test_the_spread_of_a_hyperparameter_is_over_trials_that_differ_in_it_alone(copy):
    trials = pd.DataFrame(
        {"a": [1, 2, 3, 1], "b": [1, 1, 1, 2], "val_loss": [0.3, 0.1, 0.2, 0.9]}
    )  # the last differs from the best in both
    best = trials.loc[1]
    assert evidence._spread(trials, best, "a", ["a", "b"]) == pytest.approx(0.2)
    assert evidence._spread(trials, best, "b", ["a", "b"]) == 0


def test_groups_of_a_few_images_are_not_tested(copy):
    change(copy, "gradcam_groups.csv", "verdict == 'misclassified'", n=1, p_value=0.001)
    values = collect(copy).values
    assert (values["cam.wrong.enough"], values["cam.wrong.differs"]) == ("0", "0")
    change(copy, "gradcam_groups.csv", "verdict == 'misclassified'", n=9)
    values = collect(copy).values
    assert (values["cam.wrong.enough"], values["cam.wrong.differs"]) == ("1", "1")


def test_unbalanced_classes_are_said_to_be(copy):
    assert collect(copy).values["classes.balanced"] == "1"
    change(copy, "exploration.csv", "split == 'train' and `class` == 'COVID'", images=10)
    assert collect(copy).values["classes.balanced"] == "0"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: latex.number(-0.1234, 2), "$-$0.12"),
        (lambda: latex.signed(-0.0004), "$0.000$"),
        (lambda: latex.rate(1e-4 / 3), "$3.3\\times10^{-5}$"),
        (lambda: latex.percent_bounds(0.95, np.nan, np.nan), "95\\,\\%"),
        (lambda: latex.duration(61), "61\\,s"),
        (lambda: latex.escape("a_b & 5% {x}"), "a\\_b \\& 5\\% \\{x\\}"),
    ],
)
def test_numbers_that_the_examples_do_not_show(call, text):
    assert call() == text


def write_external(run, models):
    """Write an external test, of the run's own test scores with a shift, beside the run."""
    folder = run / "external" / "elsewhere"
    folder.mkdir(parents=True)
    scores = pd.read_csv(run / "scores_fine_tuned_test.csv")
    table = external_metrics(scores["label"], scores["score"] + 1000, scores)
    table.assign(model="fine_tuned").to_csv(folder / "metrics.csv", index=False)
    record = {"data": "elsewhere.zip, test", "split": "test", "models": models, "images": 9}
    (folder / "external.json").write_text(json.dumps(record))
    return table.set_index("metric")


def test_an_external_test_of_the_runs_models_is_reported(copy):
    assert "external.n" not in collect(copy).values
    ledger = pd.read_csv(copy / "test_ledger.csv").set_index("stage")
    table = write_external(copy, {"fine_tuned": ledger.loc["fine_tuned", "model"]})
    values = collect(copy).values
    assert values["external.n"] == "9"
    assert values["external.name"] == r"\texttt{elsewhere.zip}"
    assert values["external.finetuned.specificity"].startswith("0.000")
    drop = table.loc["specificity", "drop"]
    assert values["external.finetuned.specificity.change"].startswith(f"$-{drop:.3f}$")
    assert values["external.finetuned.specificity.drops"] == "1"
    assert "external.baseline.AUC" not in values


def test_an_external_test_of_other_models_is_not(copy):
    write_external(copy, {"fine_tuned": "another"})
    assert "external.n" not in collect(copy).values
