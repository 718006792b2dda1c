"""What a run keeps of its models, and that its tables are checked against them."""

import json
import shutil

import keras
import numpy as np
import pandas as pd
import pytest

from covid_lab import verify
from covid_lab.__main__ import main
from covid_lab.report import build, checks
from covid_project.models import build_backbone, logits, model_fingerprint, transfer_model
from covid_project.settings import as_yaml, load_settings


@pytest.fixture
def run(small_run, tmp_path):
    """A finished run in a copy, and its images."""
    results = shutil.copytree(small_run[0] / "made", tmp_path / "results")
    (data,) = (small_run[0] / ".cache").glob("phantoms-*")
    return results, data


def changed(path, column, row, value):
    table = pd.read_csv(path)
    table.loc[row, column] = value
    table.to_csv(path, index=False)


def test_a_run_agrees_with_its_models_and_stays_as_it_is(run, capsys):
    results, data = run
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert main(["verify", "--results", str(results), "--data", str(data)]) == 0
    output = capsys.readouterr().out
    assert "baseline: 24 test images" in output
    assert "fine_tuned: 24 test images" in output
    assert "Grad-CAM: 0 differences" in output
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


def test_every_changed_figure_is_found(run):
    results, data = run
    metrics = pd.read_csv(results / "metrics.csv")
    tested = metrics.index[(metrics["stage"] == "baseline") & (metrics["split"] == "test")]
    changed(results / "metrics.csv", "high", tested[0], metrics.loc[tested[0], "high"] - 0.001)
    changed(results / "scores_fine_tuned_test.csv", "score", 3, 9.0)
    maps = pd.read_csv(results / "gradcam.csv")
    changed(results / "gradcam.csv", "predicted", 0, 1 - maps["predicted"][0])
    faults = verify.verify(results, data)
    assert len(faults) == 3
    assert any(f"{metrics.loc[tested[0], 'metric']}, high" in fault for fault in faults)
    assert any("fine_tuned: score of 1 images" in fault for fault in faults)
    assert any("gradcam.csv: predicted of 1 images" in fault for fault in faults)


def test_a_model_that_the_ledger_does_not_know_is_not_scored(run, capsys):
    results, data = run
    ledger = pd.read_csv(results / "test_ledger.csv")
    row = ledger.index[ledger["stage"] == "baseline"][0]
    changed(results / "test_ledger.csv", "model", row, "another")
    (fault,) = verify.verify(results, data)
    assert "baseline: the model" in fault
    assert "baseline: 24" not in capsys.readouterr().out


def test_other_data_and_a_missing_model_are_named(run, image_folder, capsys):
    results, data = run
    (fault,) = verify.verify(results, image_folder)
    assert "is not the run's data" in fault
    (results / "models" / "baseline.keras").unlink()
    assert main(["verify", "--results", str(results), "--data", str(data)]) == 2
    assert "baseline.keras is missing: run the notebooks" in capsys.readouterr().err


def test_image_figures_are_drawn_again_and_nothing_else_changes(run):
    results, data = run
    figures = sorted((results / "figures").glob("images_*.pdf"))
    assert len(figures) > 12
    for path in figures:
        path.unlink()
    shutil.rmtree(results / "cache")
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert main(["figures", "--results", str(results), "--data", str(data)]) == 0
    assert sorted((results / "figures").glob("images_*.pdf")) == figures
    after = {
        path: path.read_bytes()
        for path in results.rglob("*")
        if path not in figures and path.is_file()
    }
    assert after == before
    report = build.SOURCE.read_text(encoding="utf-8")
    assert checks.stale_figures(report, results) == []


def random_model(results, weights):
    """A results folder with a model that is joined from a weights file and a random head."""
    network = keras.applications.MobileNet(
        include_top=False, weights=None, alpha=0.25, input_shape=(64, 64, 3)
    )
    network.save_weights(weights)
    changes = {"backbone": "MobileNet", "width": 0.25, "weights": str(weights), "image_size": 64}
    changes = {f"transfer.{key}": value for key, value in changes.items()}
    settings = load_settings(data="none", results=results, changes=changes)
    (results / "models").mkdir(parents=True)
    (results / "settings.yaml").write_text(as_yaml(settings))
    backbone = build_backbone("MobileNet", 64, width=0.25, weights=str(weights))
    backbone.trainable = False
    model = transfer_model(backbone, dropout=0.5)
    top = [layer for layer in model.layers if "13" in layer.name and layer.weights]
    for layer in top:  # as if they were trained
        layer.set_weights([value + 0.1 for value in layer.get_weights()])
    model.save(results / "models" / "fine_tuned.keras")
    return model


def test_the_kept_layers_and_the_backbones_own_are_the_same_model(tmp_path, rng):
    results = tmp_path / "results"
    model = random_model(results, tmp_path / "own.weights.h5")
    whole = results / "models" / "fine_tuned.keras"
    top = verify.keep_top(results)
    assert top.stat().st_size < whole.stat().st_size
    whole.unlink()
    joined = verify.open_model(top)  # as `explain` opens it
    identity = verify.load_kept(results, "fine_tuned")[1]
    assert identity == model_fingerprint(model) == model_fingerprint(joined)
    images = rng.integers(0, 256, (4, 64, 64, 1), dtype=np.uint8)
    np.testing.assert_array_equal(logits(joined, images), logits(model, images))
    assert not any(isinstance(layer, keras.Model) for layer in joined.layers)  # flat, for Grad-CAM


def test_other_weights_below_the_cut_are_refused(tmp_path):
    results, weights = tmp_path / "results", tmp_path / "own.weights.h5"
    random_model(results, weights)
    verify.keep_top(results)
    (results / "models" / "fine_tuned.keras").unlink()
    random_model(tmp_path / "another", weights)  # the file has other weights now
    with pytest.raises(verify.NotKept, match="are not those that the kept layers"):
        verify.load_kept(results, "fine_tuned")


def test_a_kept_part_that_was_exchanged_is_refused(tmp_path):
    results = tmp_path / "results"
    random_model(results, tmp_path / "own.weights.h5")
    record = verify.keep_top(results).with_suffix(".json")
    (results / "models" / "fine_tuned.keras").unlink()
    record.write_text(json.dumps(json.loads(record.read_text()) | {"model": "another"}))
    with pytest.raises(verify.NotKept, match="does not fit its record"):
        verify.load_kept(results, "fine_tuned")
