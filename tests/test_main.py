"""The command line, as a user calls it."""

import os
import subprocess
import zipfile

import pandas as pd
import pytest

from covid_lab.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--profile", "none"], 2, "no profile none: give one of ct_lesions"),
        (["--profile", "smoke"], 2, "no data for the profile smoke"),
        (["--study", "robustness", "--profile", "robustness"], 2, "no data"),
        (["--set", "seed"], 2, "KEY=VALUE"),
        (["--set", "seed=x"], 2, "seed must be a int, found 'x'"),
        (["--set", "unknown=1"], 2, "unknown setting unknown"),
        (["--data", "nowhere.zip"], 1, "nowhere.zip"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_status(
    arguments, status, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["run", *arguments]) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert not (tmp_path / "results").exists()


def test_an_archive_that_escapes_its_folder_is_refused_and_nothing_is_written(tmp_path, capsys):
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../outside.png", b"x")
    assert main(["run", "--data", str(archive), "--results", str(tmp_path / "r")]) == 1
    assert "outside.png" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["evil.zip"]


def test_a_run_writes_every_table_figure_and_page(small_run):
    folder, _, output = small_run
    made = folder / "made"
    for name in ("exploration", "tuning_baseline", "tuning_transfer", "tuning_fine_tuning",
                 "metrics", "test_ledger", "gradcam", "history_baseline", "history_fine_tuned",
                 "scores_baseline_test", "scores_fine_tuned_test", "comparisons"):  # fmt: skip
        assert len(pd.read_csv(made / f"{name}.csv")) > 0
    assert len(list((made / "notebooks").glob("*.html"))) == 4
    assert len(list((made / "figures").glob("*.pdf"))) > 15
    assert "RANDOM" in (made / "notebooks" / "transfer_learning.html").read_text()
    assert "finished 4 notebooks" in output
    assert "done after" in output


def test_every_trial_of_the_fine_tuning_starts_from_the_same_model(small_run):
    # The trials share the backbone's layers; once, each continued from what the last had learned.
    trials = pd.read_csv(small_run[0] / "made" / "tuning_fine_tuning.csv")
    assert len(trials) == 2
    assert len(set(trials["initial_model"])) == 1


def test_every_result_names_data_seed_versions_and_weights(small_run):
    metrics = pd.read_csv(small_run[0] / "made" / "metrics.csv")
    names = ["backbone", "weights", "data", "seed", "versions"]
    assert not metrics[names].isna().any().any()
    assert set(metrics.loc[metrics["stage"] != "baseline", "weights"]) == {"random"}


def test_a_second_run_finds_everything_finished_and_gives_the_same(small_run):
    folder, command, _ = small_run
    before = {name: (folder / "made" / name).read_bytes() for name in (
        "metrics.csv", "test_ledger.csv", "tuning_baseline.csv", "gradcam.csv")}  # fmt: skip
    command = [*command, "--only", "baseline", "--only", "transfer_learning"]
    again = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "finished trials found" in again.stdout
    for name, content in before.items():
        assert (folder / "made" / name).read_bytes() == content


def test_a_notebook_without_its_input_says_what_to_run_first(small_run):
    folder, command, _ = small_run
    alone = [*command, "--only", "gradcam", "--results", "empty"]
    done = subprocess.run(alone, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1
    assert "run baseline.ipynb" in done.stderr
