"""The study of CT slices: its splits, and its notebook on a few drawn images."""

import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED
from study_runs import run_study, small_profile

from covid_lab import phantoms
from covid_lab.studies.ct_lesions import begin, load_settings
from covid_lab.studies.unseen import labels_of
from covid_project.evaluation import metrics_table
from covid_project.files import read_csv


def copies(files, name):
    """Copy files under names that follow from their numbers; return the copies."""
    found = []
    for number, file in enumerate(sorted(files)):
        path = name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        found.append(shutil.copy(file, path))
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory, python):
    """Results folder of the notebook on drawn images of two sources.

    Folders "nolesion" and "lesion" hold two images of each patient, by their names. The images of
    the other source have a box each, and each is a patient.
    """
    folder = tmp_path_factory.mktemp("study")
    drawn = phantoms.write_dataset(folder / "drawn", {"train": 40, "val": 1, "test": 12}, 64, 5)
    for made, label in (("NORMAL", "nolesion"), ("COVID", "lesion")):
        place = folder / "slices" / label
        copies(drawn.glob(f"train/{made}/*"), lambda n, p=place: p / f"a{n // 2}-p1-{n}%0.png")
    for first, split in ((0, "train"), (6, "test")):
        files = sorted(drawn.glob("test/NORMAL/*"))[first : first + 6]
        place = folder / "boxes" / split
        for path in copies(files, lambda n, p=place, f=first: p / f"{n + f:06}_01.png"):
            path.with_suffix(".tru").write_text("5 0.3 0.3 0.6 0.5\n")
    copies([path], lambda _: folder / "mine" / "scan_lesion.png")
    values = small_profile("ct_lesions")
    values |= {"negative": "nolesion", "positive": "lesion", "boxes": str(folder / "boxes")}
    values |= {"unseen": str(folder / "mine"), "epochs": 1, "kernel_sizes": [5], "timed_calls": 2}
    values |= {"image_sizes": [64], "batch_sizes": [24], "folds": 2, "source_epochs": 1}
    values |= {"neighbours": [3], "strengths": [0.001], "explained": 1, "lime_samples": 10}
    values["model_b"] |= {"filters": [4, 8]}
    values["model_c"] |= {"weights": "random", "image_size": 64, "augmented_copies": 0}
    values["model_d"] |= {"sparsities": [0.8], "epochs": 1}
    return run_study(python, folder, "ct_lesions", values, folder / "slices")


def test_the_notebook_writes_every_table_and_page(finished):
    for name in ("exploration", "shortcuts", "investigation_summary", "classical", "comparisons",
                 "boxes", "claims", "history_model_d_80"):  # fmt: skip
        assert (finished / f"{name}.csv").is_file(), name
    for name in ("class_distribution", "investigations", "pruning", "confusion_model_d",
                 "images_lime", "images_saliency", "images_gradcampp", "images_unseen",
                 "images_feature_maps", "investigation_histories", "validation_curves",
                 "history_model_d", "source_control", "gradcam_agreement"):  # fmt: skip
        assert (finished / "figures" / f"{name}.pdf").is_file(), name
    assert (finished / "notebooks" / "ct_lesions.html").is_file()
    for file in [*finished.glob("*.csv"), *finished.glob("*.yaml"), finished / "model_card.md"]:
        assert str(finished.parent) not in file.read_text(), file


def test_each_final_model_saw_the_test_split_once_and_no_group_is_in_two_splits(finished):
    ledger = read_csv(finished / "test_ledger.csv")
    expected = ["exploration", "model_a", "model_b", "model_c", "model_d", "logistic", "neighbours"]
    assert ledger["stage"].tolist() == expected
    assert (ledger["look"] == 1).all()
    groups = pd.read_csv(finished / "splits.csv").groupby("group")
    assert groups["split"].nunique().max() == 1
    assert groups.size().min() == 2


def test_the_positive_class_is_the_same_everywhere(finished):
    """Class order, titles and tables: "lesion" is 1 although "nolesion" contains it."""
    for stage in ("model_a", "model_c", "neighbours"):
        scores = read_csv(finished / f"scores_{stage}_test.csv")
        by_rule = labels_of(scores["path"], ("nolesion", "lesion"))
        np.testing.assert_array_equal(scores["label"], by_rule)
        own = read_csv(finished / "metrics.csv").query("stage == @stage").set_index("metric")
        again = metrics_table(scores["label"], scores["score"], seed=7).set_index("metric")
        assert own.loc["sensitivity", "value"] == again.loc["sensitivity", "value"]
    card = (finished / "model_card.md").read_text()
    assert "logit of lesion (label 1); nolesion is label 0" in card
    unseen = read_csv(finished / "unseen.csv")
    assert set(unseen["images"]) == {"test split", "another source, none positive"}
    mine = read_csv(finished / "unseen_images.csv")
    assert mine[["path", "label"]].to_numpy().tolist() == [["scan_lesion.png", 1]]
    assert np.isfinite(mine["score"]).all()


def test_the_pruned_model_is_as_sparse_as_it_says_and_smaller_when_packed(finished):
    pruned = read_csv(finished / "pruning.csv").set_index("stage")
    costs = read_csv(finished / "costs.csv").set_index("stage")
    assert pruned.loc["model_d_80", "sparsity"] == pytest.approx(0.8, abs=0.01)
    assert pruned.loc["model_b", "sparsity"] < 0.01
    packed = pruned.loc["model_d_80", "packed_bytes"]
    assert packed < 0.5 * pruned.loc["model_b", "packed_bytes"]
    assert costs.loc["model_d", "packed_bytes"] == packed


def test_variants_and_the_source_control_have_rows_for_each_seed(finished):
    trials = read_csv(finished / "investigations.csv")
    histories = read_csv(finished / "investigation_histories.csv")
    keys = ["variant", "training_seed"]
    assert len(trials) == 6  # base, kernel 5 and not equalised, from two seeds each
    lowest = histories.groupby(keys)["val_loss"].min()
    lowest = lowest.loc[list(trials[keys].itertuples(index=False))]
    np.testing.assert_allclose(lowest, trials["val_loss"])
    found = read_csv(finished / "source_control.csv")
    called = found[found["metric"] == "others called positive"]
    assert sorted(called["network"]) == ["model B"] * 2 + ["model C"] * 2
    assert called["value"].between(0, 1).all()
    assert (found.loc[found["metric"] == "AUC", "groups"] == 12 + 20).all()
    agreed = read_csv(finished / "gradcam_agreement.csv")
    assert set(agreed["network"]) == {"model A", "model C"}
    assert agreed["formula"].dropna().min() > 0.99
    undivided = agreed.loc[agreed["compared"] == "not divided", "correlation"]
    assert undivided.dropna().min() > 0.999


def test_real_slices_are_dealt_by_patient(tmp_path):
    archive = SHARED / "data" / "covid_ct.zip"
    if not archive.is_file():
        pytest.skip("the COVID-CT slices are not at hand (../shared/data)")
    table = begin(load_settings(data=archive, results=tmp_path)).dataset.table
    assert table.groupby("label").size().tolist() == [397, 349]
    assert table.groupby("group")["split"].nunique().max() == 1
    shares = table.groupby(["label", "split"]).size() / table.groupby("label").size()
    assert shares.xs("test", level="split").between(0.18, 0.22).all()


def test_boxes_are_found_from_any_folder(tmp_path, monkeypatch):
    """The notebook runs in another folder than the command that names them."""
    monkeypatch.chdir(tmp_path)
    assert load_settings(changes={"boxes": "boxes.zip"}).boxes == str(tmp_path / "boxes.zip")
    assert load_settings().boxes is None
