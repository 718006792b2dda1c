"""Benchmarks: how they are measured and written; on tiny scales, both sides agree."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import __main__ as command
from benchmarks import (
    commands,
    explain,
    growth,
    lungs,
    perturbations,
    solution,
    statistics,
    training,
)
from benchmarks.runner import Benchmark, differs, line, measure, run, update
from covid_project.files import read_csv
from covid_project.settings import load_settings

ROOT = Path(__file__).parents[1]


def numbers(values):
    """Give one value after the other."""
    return iter(values).__next__


def counted(ours, peer, **facts):
    """A benchmark whose numbers are given instead of measured."""
    facts = {"name": "work", "against": "others", "unit": "MiB", "repeats": len(ours)} | facts
    return Benchmark(ours=numbers(ours), peer=numbers(peer), **facts)


def test_the_ratio_is_the_median_over_the_pairs_and_not_of_the_medians():
    row = measure(counted(ours=[1, 10, 2], peer=[4, 60, 4]))
    assert (row["ours"], row["peer"]) == (2, 4)
    assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == (4, 2, 6)


def test_sides_are_warmed_up_and_compared_once_then_run_in_turn():
    calls = []

    def side(name):
        return lambda: calls.append(name) or len(calls)

    benchmark = Benchmark(
        "work", "others", side("ours"), side("peer"), agreement=lambda a, b: b - a, repeats=3
    )
    row = measure(benchmark)
    assert row["agreement"] == 1
    assert calls == ["ours", "peer", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert all(row[key] > 0 for key in ("ours", "peer", "ratio"))
    assert row["unit"] == "s"


def row_of(ratio=2.0, name="work", suite="fake", **facts):
    return {"suite": suite, "name": name, "against": "others", "ratio": ratio, **facts}


@pytest.mark.parametrize(
    ("agreement", "tolerance", "expected"),
    [(0.1, 0.2, False), (0.3, 0.2, True), (np.nan, 0.2, True), (np.nan, np.nan, False)],
)
def test_results_differ_beyond_the_tolerance_and_where_they_are_no_numbers(
    agreement, tolerance, expected
):
    assert differs({"agreement": agreement, "tolerance": tolerance}) is expected


def test_rows_take_the_place_of_their_suites_alone(tmp_path):
    path = tmp_path / "benchmarks.csv"
    update(path, pd.DataFrame([row_of(1.0), row_of(1.0, "gone"), row_of(3.0, suite="other")]))
    update(path, pd.DataFrame([row_of(2.0), row_of(5.0, "new")]))
    found = {(row.suite, row["name"]): row.ratio for _, row in read_csv(path).iterrows()}
    assert found == {("other", "work"): 3.0, ("fake", "work"): 2.0, ("fake", "new"): 5.0}


def test_missed_promises_other_results_and_what_only_a_part_did_are_in_the_row():
    kept, missed = (measure(counted([1], [2], promised=promised)) for promised in (2, 2.1))
    assert "MISSED" not in line(kept)
    assert "promised 2.10: MISSED" in line(missed)
    part = measure(counted([2], [3], peer_counts=10))
    assert (part["peer"], part["ratio"]) == (30, 15)
    (row,) = run("fake", [counted([1], [2])])
    assert row["suite"] == "fake"
    assert "cores" in row["machine"]
    assert "tensorflow 2" in row["versions"]


def test_the_command_measures_all_suites_and_fails_for_other_results(tmp_path, monkeypatch, capsys):
    difference = 0.0

    def suite(name):
        row = row_of(agreement=difference, tolerance=0.1, promised=3.0, name=name, suite=name)
        yield row | dict.fromkeys(("ours", "peer", "ratio_low", "ratio_high"), 1.0) | {"unit": "s"}

    for name in command.SUITES:
        monkeypatch.setitem(command.SUITES, name, lambda name=name: suite(name))
    monkeypatch.setattr(command, "run", lambda name, rows: rows)
    path = tmp_path / "results" / "benchmarks.csv"
    assert command.main(["--to", str(path)]) == 0
    assert read_csv(path)["suite"].tolist() == list(command.SUITES)
    difference = 0.2
    assert command.main(["explain", "--to", str(path)]) == 1
    assert "RESULTS DIFFER" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["explan"])
    assert "there is no suite explan; there are explain" in capsys.readouterr().err


def test_a_command_is_timed_and_its_failure_is_one():
    assert 0.2 < commands.seconds([sys.executable, "-c", "import time; time.sleep(0.2)"]) < 60
    with pytest.raises(subprocess.CalledProcessError):
        commands.seconds([sys.executable, "-c", "raise SystemExit(2)"])


def test_what_a_start_needs_does_without_tensorflow():
    code = f"import sys, {', '.join(commands.STARTS.values())}; print('tensorflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


# Suites on a tiny scale


def suites():
    scale = explain.Scale(
        image_size=64, baseline_size=32, batch=2, patch=16, stride=16, samples=30, superpixels=8,
        repeats=1, long_repeats=1,
    )  # fmt: skip
    yield from explain.benchmarks(scale)
    yield from training.benchmarks(training.Scale(
        images=64, image_size=64, trials=2, trial_epochs=2, features=32, transfer_size=32,
        repeats=1, long_repeats=1,
    ))  # fmt: skip
    yield from statistics.benchmarks(
        statistics.Scale(images=200, pixels=30, label_sets=3, resamples=20, repeats=1)
    )
    yield from lungs.benchmarks(lungs.Scale(images=20, repeats=1), data=Path("nowhere"))


def test_every_suite_is_set_up():
    """The peers are slow and do not run here; each measurement checks that both sides agree."""
    names = {(benchmark.name, benchmark.against) for benchmark in suites()}
    assert len(names) == 23


def test_perturbed_batches_and_those_of_the_package_have_the_same_means():
    pytest.importorskip(
        "imagecorruptions",
        reason="a peer only: pip install -r requirements-bench.txt",
        exc_type=ImportError,
    )
    found = list(perturbations.benchmarks(perturbations.Scale(images=3, size=64, repeats=1)))
    assert len(found) == 2 * 5
    for benchmark in found:
        ours, peer = benchmark.ours(), benchmark.peer()
        if "contrast" in benchmark.name or "brightness" in benchmark.name:
            assert benchmark.agreement(ours, peer) <= benchmark.tolerance, benchmark.name
        assert benchmark.agreement(ours, peer + 3) > benchmark.tolerance


def test_the_epochs_of_the_committed_run_are_counted():
    settings = load_settings(ROOT / "results" / "settings.yaml", data="unused", results="unused")
    trials = pd.read_csv(ROOT / "results" / "tuning_baseline.csv")
    found = solution.baseline_epochs(ROOT / "results", settings)
    fewest = trials["best_epoch"].sum() + len(pd.read_csv(ROOT / "results/history_baseline.csv"))
    assert fewest < found <= settings.baseline.max_epochs * (len(trials) + 2)


def test_the_generator_gives_every_file_once(tmp_path, monkeypatch):
    monkeypatch.setattr(solution, "MEASURED", 6)
    solution.write_files(tmp_path)
    source = solution.generator(tmp_path, 32)
    images, labels = source[0]
    assert images.shape == (6, 32, 32, 1)
    assert sorted(labels) == [0, 0, 0, 1, 1, 1]
    assert len(source) == 1


def test_growth_is_measured_in_a_process_of_each_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "STAGES", {"load": growth.STAGES["load"]})
    growth.main(["--to", str(tmp_path), "--counts", "24", "48"])
    table = pd.read_csv(tmp_path / "growth.csv")
    assert table["stage"].tolist() == ["load", "load"]
    assert (table["seconds"] > 0).all()
    np.testing.assert_allclose(table["cache_mib"], table["images"] / 64)
