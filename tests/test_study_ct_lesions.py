"""The study of CT slices: its splits, and its notebook on a few drawn images."""

import shutil

import numpy as np
import pandas as pd
import pytest
from study_runs import run_study, small_profile

from covid_lab import phantoms
from covid_lab.studies.ct_lesions import begin, load_settings
from covid_lab.studies.unseen import labels_of
from covid_project.evaluation import metrics_table
from covid_project.files import read_csv
from covid_project.settings import PROJECT


def drawn_set(folder):
    """Drawn images in folders "nolesion" and "lesion", two of each patient, by their names."""
    drawn = phantoms.write_dataset(folder / "drawn", {"train": 40, "val": 1, "test": 1}, 64, 5)
    for made, name in (("NORMAL", "nolesion"), ("COVID", "lesion")):
        for number, file in enumerate(sorted((drawn / "train" / made).glob("*.png"))):
            path = folder / "slices" / name / f"article{number // 2}-p1-{number}%0.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, path)
    return folder / "slices"


def drawn_boxes(folder):
    """Drawn images of another source, each with a box; each is a patient."""
    drawn = phantoms.write_dataset(folder / "boxed", {"train": 6, "val": 1, "test": 6}, 80, 6)
    for first, split in ((0, "train"), (6, "test")):
        for number, file in enumerate(sorted((drawn / split / "NORMAL").glob("*.png")), first):
            path = folder / "boxes" / split / f"{number:06}_01.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, path)
            path.with_suffix(".tru").write_text("5 0.3 0.3 0.6 0.5\n")
    return folder / "boxes"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results folder of the notebook on drawn images of two sources."""
    folder = tmp_path_factory.mktemp("study")
    values = small_profile("ct_lesions")
    values |= {"negative": "nolesion", "positive": "lesion", "boxes": str(drawn_boxes(folder))}
    unseen = folder / "mine" / "scan_lesion.png"
    unseen.parent.mkdir()
    shutil.copy(next((folder / "boxes" / "test").glob("*.png")), unseen)
    values |= {"unseen": str(unseen.parent)}
    values |= {"epochs": 2, "kernel_sizes": [3, 5], "batch_sizes": [24], "timed_calls": 2}
    values |= {"image_sizes": [64], "repeats": 2, "folds": 2, "source_epochs": 2}
    values |= {"neighbours": [3], "strengths": [0.001], "explained": 1, "lime_samples": 10}
    values["model_b"] |= {"filters": [4, 8]}
    values["model_c"] |= {"weights": "random", "image_size": 64, "augmented_copies": 0}
    values["model_d"] |= {"sparsities": [0.8], "epochs": 2}
    return run_study(folder, "ct_lesions", values, drawn_set(folder))


def test_the_notebook_writes_every_table_and_page(finished):
    for name in ("exploration", "shortcuts", "investigations", "pruning", "classical", "costs",
                 "comparisons", "unseen", "boxes", "metrics", "test_ledger", "claims",
                 "investigation_histories", "investigation_summary", "source_control",
                 "unseen_images", "gradcam_agreement", "history_model_d_80"):  # fmt: skip
        assert (finished / f"{name}.csv").is_file(), name
    for name in ("class_distribution", "investigations", "pruning", "confusion_model_d",
                 "images_lime", "images_saliency", "images_gradcampp", "images_unseen",
                 "images_feature_maps", "investigation_histories", "validation_curves",
                 "history_model_d", "source_control", "gradcam_agreement"):  # fmt: skip
        assert (finished / "figures" / f"{name}.pdf").is_file(), name
    assert (finished / "model_card.md").is_file()
    assert (finished / "notebooks" / "ct_lesions.html").is_file()


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


def test_each_final_model_saw_the_test_split_once(finished):
    ledger = read_csv(finished / "test_ledger.csv")
    expected = ["exploration", "model_a", "model_b", "model_c", "model_d", "logistic", "neighbours"]
    assert ledger["stage"].tolist() == expected
    assert (ledger["look"] == 1).all()


def test_the_pruned_model_is_as_sparse_as_it_says_and_smaller_when_packed(finished):
    pruned = read_csv(finished / "pruning.csv").set_index("stage")
    assert pruned.loc["model_d_80", "sparsity"] == pytest.approx(0.8, abs=0.01)
    assert pruned.loc["model_b", "sparsity"] < 0.01
    assert pruned.loc["model_d_80", "packed_bytes"] < 0.5 * pruned.loc["model_b", "packed_bytes"]


def test_every_variant_has_its_row_and_its_history_for_each_seed(finished):
    trials = read_csv(finished / "investigations.csv")
    histories = read_csv(finished / "investigation_histories.csv")
    keys = ["variant", "training_seed"]
    assert len(trials) == 6  # base, kernel 5 and not equalised, from two seeds each
    lowest = histories.groupby(keys)["val_loss"].min()
    np.testing.assert_allclose(
        lowest.loc[list(trials[keys].itertuples(index=False))], trials["val_loss"]
    )


def test_the_users_image_has_name_label_and_prediction(finished):
    mine = read_csv(finished / "unseen_images.csv")
    assert mine["path"].tolist() == ["scan_lesion.png"]
    assert mine["label"].tolist() == [1]
    assert np.isfinite(mine["score"]).all()


def test_costs_show_the_packed_size_of_the_pruned_model(finished):
    costs = read_csv(finished / "costs.csv").set_index("stage")
    pruned = read_csv(finished / "pruning.csv").set_index("stage")
    assert costs.loc["model_d", "packed_bytes"] == pruned.loc["model_d_80", "packed_bytes"]
    assert (costs["packed_bytes"] > 0).all()


def test_the_source_control_measures_both_networks_from_each_seed(finished):
    found = read_csv(finished / "source_control.csv")
    assert set(found["network"]) == {"model B", "model C"}
    called = found[found["metric"] == "others called positive"]
    assert len(called) == 4
    assert called["value"].between(0, 1).all()
    assert (found.loc[found["metric"] == "AUC", "groups"] == 12 + 20).all()


def test_tf_keras_vis_is_explained(finished):
    found = read_csv(finished / "gradcam_agreement.csv")
    assert set(found["network"]) == {"model A", "model C"}
    assert found["formula"].dropna().min() > 0.99
    assert found.loc[found["compared"] == "not divided", "correlation"].dropna().min() > 0.999


def test_no_group_is_in_two_splits_and_no_path_of_this_machine_is_written(finished):
    splits = pd.read_csv(finished / "splits.csv")
    assert splits.groupby("group")["split"].nunique().max() == 1
    assert splits.groupby("group").size().min() == 2
    for file in [*finished.glob("*.csv"), *finished.glob("*.yaml"), finished / "model_card.md"]:
        assert str(finished.parent) not in file.read_text(), file


def test_real_slices_are_dealt_by_patient(tmp_path):
    archive = PROJECT.parent / "shared" / "data" / "covid_ct.zip"
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
