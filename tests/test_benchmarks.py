import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks import __main__ as command
from benchmarks import commands, explain, growth, memory, perturbations, solution, training
from benchmarks.runner import Benchmark, differs, line, measure, promises, run, update, worse
from covid_project.files import read_csv
from covid_project.settings import load_settings

ROOT = Path(__file__).parents[1]
TINY = explain.Scale(
    image_size=96,
    baseline_size=32,
    batch=4,
    patch=24,
    stride=18,
    samples=60,
    superpixels=12,
    repeats=1,
    long_repeats=1,
)


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


def test_a_missed_promise_is_said():
    kept, missed = (measure(counted([1], [2], promised=promised)) for promised in (2, 2.1))
    assert "MISSED" not in line(kept)
    assert "promised 2.10: MISSED" in line(missed)


def test_rows_take_the_place_of_their_suites_alone(tmp_path):
    path = tmp_path / "benchmarks.csv"
    update(path, pd.DataFrame([row_of(1.0), row_of(1.0, "gone"), row_of(3.0, suite="other")]))
    update(path, pd.DataFrame([row_of(2.0), row_of(5.0, "new")]))
    found = {(row.suite, row["name"]): row.ratio for _, row in read_csv(path).iterrows()}
    assert found == {("other", "work"): 3.0, ("fake", "work"): 2.0, ("fake", "new"): 5.0}


def test_a_ratio_is_worse_when_more_than_a_third_is_gone():
    before = pd.DataFrame([row_of(3.0), row_of(3.0, "slow"), row_of(3.0, "gone")])
    rows = pd.DataFrame([row_of(2.01), row_of(1.99, "slow"), row_of(0.1, "new")])
    assert worse(rows, before) == ["slow | others: ratio 1.99, before 3.00"]
    assert worse(rows, pd.DataFrame()) == []


def test_rows_say_where_they_come_from():
    (row,) = run("fake", [counted([1], [2])])
    assert row["suite"] == "fake"
    assert "cores" in row["machine"]
    assert "tensorflow 2" in row["versions"]


def test_the_command_writes_and_fails_for_a_fallen_ratio_or_other_results(
    tmp_path, monkeypatch, capsys
):
    path = tmp_path / "results" / "benchmarks.csv"
    ratio, difference = 3.0, 0.0

    def suite():
        row = row_of(ratio, agreement=difference, tolerance=0.1, promised=2.0)
        yield row | dict.fromkeys(("ours", "peer", "ratio_low", "ratio_high"), 1.0) | {"unit": "s"}

    monkeypatch.setitem(command.SUITES, "explain", suite)
    monkeypatch.setattr(command, "run", lambda name, rows: rows)
    arguments = ["explain", "--to", str(path)]
    assert command.main(arguments) == 0
    assert read_csv(path)["ratio"].tolist() == [3.0]
    assert command.main([*arguments, "--against", str(path)]) == 0
    ratio = 1.0
    assert command.main([*arguments, "--against", str(path)]) == 1
    assert "ratio 1.00, before 3.00" in capsys.readouterr().err
    difference = 0.2
    assert command.main(arguments) == 1
    assert "results differ" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([*arguments, "--against", str(tmp_path / "none.csv")])
    with pytest.raises(SystemExit):
        command.main(["explan"])
    assert "there is no suite explan; there are explain" in capsys.readouterr().err


def test_without_a_name_all_suites_are_measured_and_their_promises_told(
    tmp_path, monkeypatch, capsys
):
    for name in command.SUITES:
        monkeypatch.setitem(
            command.SUITES, name, lambda name=name: [counted([1], [2], name=name, promised=3)]
        )
    path = tmp_path / "benchmarks.csv"
    assert command.main(["--to", str(path)]) == 0
    assert read_csv(path)["suite"].tolist() == list(command.SUITES)
    said = capsys.readouterr().out
    for name in command.SUITES:
        assert f"| {name} | others | 2.0 (2.0–2.0) | 3.0 | **no** |" in said


def test_what_is_not_promised_is_not_in_the_table_of_promises():
    rows = [measure(counted([1], [2])), measure(counted([1, 1], [2, 4], promised=2))]
    assert promises(rows).splitlines()[2:] == ["| work | others | 3.0 (2.0–4.0) | 2.0 | yes |"]


def test_a_command_is_timed_and_its_failure_is_one():
    assert 0.2 < commands.seconds([sys.executable, "-c", "import time; time.sleep(0.2)"]) < 60
    with pytest.raises(subprocess.CalledProcessError):
        commands.seconds([sys.executable, "-c", "raise SystemExit(2)"])


def test_a_target_is_made_in_a_copy_without_what_is_cached(tmp_path, monkeypatch):
    house = tmp_path / "house"
    for folder in (".cache", ".venv", "profiles", "results"):
        (house / folder).mkdir(parents=True)
        (house / folder / "file").touch()
    told = tmp_path / "told"
    (house / "Makefile").write_text(f"run:\n\tls -A > {told}; echo $(VENV) >> {told}\n")
    monkeypatch.setattr(commands, "HOUSE", house)
    assert commands.make("run") > 0
    assert told.read_text().split() == ["Makefile", "profiles", "results", sys.prefix]
    assert set(tmp_path.iterdir()) == {house, told}  # the copy is gone


def test_what_a_start_needs_is_there_and_does_without_tensorflow():
    for module in commands.STARTS.values():
        code = f"import sys, {module}; print('tensorflow' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "False"


@pytest.mark.parametrize("part", [explain.mobilenet, explain.resnet, explain.baseline])
def test_grad_cam_and_its_peers_agree(part):
    found = list(part(TINY))
    assert len({(item.name, item.against) for item in found}) == len(found) >= 3
    for benchmark in found:
        agreement = benchmark.agreement(benchmark.ours(), benchmark.peer())
        assert agreement <= benchmark.tolerance, benchmark.against


def test_occlusion_and_its_peers_agree():
    for benchmark in explain.pneumonia(TINY):
        ours, peer = benchmark.ours(), benchmark.peer()
        assert benchmark.agreement(ours, peer) <= benchmark.tolerance
        wrong = peer + np.linspace(0, 1e-3, len(peer)) * np.abs(peer).max()
        assert benchmark.agreement(ours, wrong) > benchmark.tolerance


@pytest.mark.parametrize("method", memory.METHODS)
def test_memory_is_measured(method, capsys):
    memory.main(method, 2, 32)
    assert float(capsys.readouterr().out) > -1


def test_peaks_of_memory_never_fall():
    # In a process of its own: this one may have been larger before than it becomes here.
    code = (
        "import numpy as np; from benchmarks.memory import peak; before = peak(); "
        "block = np.ones(2**25); with_block = peak(); del block; print(before, with_block, peak())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, with_block, after = map(int, done.stdout.split())
    assert 2**27 < with_block - before < 2**29  # the block has 2**28 bytes
    assert after > with_block - 2**22  # Linux counts by batches of pages on each core


SMALL = training.Scale(
    images=64, stored_size=64, image_size=64, filters=4, learned=32, epochs=1, trials=2,
    trial_epochs=2, features=32, transfer_size=32,
)  # fmt: skip


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


def test_the_sweep_on_features_learns_what_the_whole_network_learns():
    (benchmark,) = training.sweep(SMALL)
    assert benchmark.peer_counts == 2 * 2
    ours, peer = benchmark.ours(), benchmark.peer()
    assert benchmark.agreement(ours, peer) <= benchmark.tolerance


def test_a_part_of_the_peers_work_counts_as_often_as_it_is_done():
    row = measure(counted([2], [3], peer_counts=10))
    assert (row["peer"], row["ratio"]) == (30, 15)


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


def test_growth_is_measured_in_processes_of_their_own(tmp_path, monkeypatch, capsys):
    stages = {"load": growth.STAGES["load"], "evaluation": growth.STAGES["evaluation"]}
    monkeypatch.setattr(growth, "STAGES", stages)
    growth.main(["--to", str(tmp_path), "--counts", "24", "48"])
    table = pd.read_csv(tmp_path / "growth.csv")
    assert table["stage"].tolist() == 2 * ["load", "evaluation"]
    assert (table["seconds"] > 0).all()
    np.testing.assert_allclose(table["cache_mib"], table["images"] / 64)
    assert (tmp_path / "figures" / "growth.pdf").is_file()
    growth.draw(tmp_path / "drawn", 3)
    for path in (tmp_path / "drawn").rglob("*.png"):
        assert Image.open(path).size == (growth.SIZE, growth.SIZE)


def test_the_missing_peer_is_named(monkeypatch):
    monkeypatch.setattr(perturbations, "PACKAGE", "imagecorruptions_that_nobody_has")
    with pytest.raises(perturbations.PeerMissing, match=r"requirements-bench\.txt"):
        next(perturbations.benchmarks())
