"""The study of lung nodules: its settings and material, and its notebook on a few drawn slices."""

import json

import numpy as np
import pandas as pd
import pytest
from study_runs import run_study, small_profile

from covid_lab.studies import lung_nodules as study
from covid_lab.studies.ct_phantoms import write_dataset
from covid_lab.studies.grading import METRICS, interval_over_seeds
from covid_lab.studies.imbalance import NotTraining
from covid_lab.studies.nrrd_slices import Image
from covid_project.files import read_csv
from covid_project.settings import SettingsError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results folder of the notebook on a folder of slices as a user has it."""
    folder = tmp_path_factory.mktemp("study")
    values = small_profile("lung_nodules")
    values |= {"image_size": 64, "backbones": {"MobileNet": 0.25}, "weights": "random"}
    values |= {"seeds": 2, "small_epochs": 2, "explained": 6, "augmented_copies": 1}
    values["training"] |= {"epochs": 2}
    values["cgan"] |= {"image_size": 16, "width": 4, "noise": 8, "steps": 10}
    slices = write_dataset(folder / "slices", 60, 1, 128, seed=6)
    return run_study(folder, "lung_nodules", values, slices)


def test_the_notebook_writes_every_table_and_figure(finished):
    tables = "exploration sizes noise removed lungs cgan cgan_distances imbalance heads "
    tables += "augmentation metrics test_ledger gradcam gradcam_summary "
    for name in (tables + "history_full_five history_nodule_binary").split():
        assert (finished / f"{name}.csv").is_file(), name
    pictures = "class_distribution imbalance confusion_roc history_nodule_five images_samples_full "
    for name in (pictures + "images_steps_full images_cgan_nodule images_gradcam_full").split():
        assert (finished / "figures" / f"{name}.pdf").is_file(), name
    assert (finished / "notebooks" / "lung_nodules.html").is_file()


def test_imbalance_has_every_answer_task_and_view_with_intervals_over_seeds(finished):
    table = read_csv(finished / "imbalance.csv")
    assert len(table) == len(table[["view", "task", "answer"]].drop_duplicates()) == 2 * 2 * 7
    assert set(table["answer"]) == set(study.ANSWERS)
    trials = read_csv(finished / "imbalance_trials.csv")
    row = table.iloc[5]
    own = trials
    for column in ("view", "task", "answer"):
        own = own[own[column] == row[column]]
    for metric in ("macro_F1", "balanced_accuracy", "AUC"):
        wanted = interval_over_seeds(own[metric])
        assert tuple(row[[metric, f"{metric}_low", f"{metric}_high"]]) == pytest.approx(wanted)
    five = trials.query("task == 'five' and view == 'full'").groupby("answer")["samples"].max()
    assert five["none"] == five["class_weights"] > five["undersample"]
    filled = five[["oversample", "smote_pixels", "smote_features", "cgan"]]
    assert filled.min() == filled.max() > five["none"]
    assert json.loads((finished / "run.json").read_text())["phantoms"]


def test_each_final_model_saw_the_test_split_once(finished):
    ledger = read_csv(finished / "test_ledger.csv")
    stages = [f"{view}_{task}" for view in ("full", "nodule") for task in ("binary", "five")]
    assert sorted(ledger["stage"]) == stages
    assert (ledger["look"] == 1).all()
    metrics = read_csv(finished / "metrics.csv")
    assert sorted(set(metrics["stage"])) == stages
    assert set(metrics["metric"]) == set(METRICS)
    splits = pd.read_csv(finished / "splits.csv")
    for stage in stages:
        scores = read_csv(finished / f"scores_{stage}_test.csv")
        assert set(scores["path"]) == set(splits.loc[splits["split"] == "test", "path"])
        value = metrics.query("stage == @stage and metric == 'accuracy'")["value"].item()
        assert value == pytest.approx((scores["label"] == scores["predicted"]).mean())


def test_removal_and_lungs_are_of_the_right_splits_and_no_path_is_written(finished):
    splits = pd.read_csv(finished / "splits.csv")
    split_of = splits.set_index(splits["path"].str.extract(r"/(.*)\.nrrd")[0])["split"]
    removed = read_csv(finished / "removed.csv")
    assert (split_of[removed["name"]] == "train").all()
    assert set(removed["view"]) == {"full", "nodule"}
    lungs = read_csv(finished / "lungs.csv")
    assert (split_of[lungs["name"]] == "val").all()
    assert lungs["dice"].min() >= 0.95
    assert splits.groupby("group")["split"].nunique().max() == 1
    for file in [*finished.glob("*.csv"), *finished.glob("*.yaml")]:
        assert str(finished.parent) not in file.read_text(), file


def test_the_heat_is_compared_with_the_nodules_share_of_the_picture(finished):
    found = read_csv(finished / "gradcam.csv")
    assert found.groupby("view").size().tolist() == [6, 6]
    known = found.dropna()
    assert (known["area"] > 0).all()
    np.testing.assert_allclose(known["ratio"], known["inside"] / known["area"])
    area = found.groupby("view")["area"].mean()
    assert area["nodule"] > 5 * area["full"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbones": {"VGG16": 1.0}}, "VGG19.*found .'VGG16'"),
        ({"backbones": {}}, "found none"),
        ({"preparation.low": 500}, "preparation: low is 500 and high 400"),
        ({"cgan.image_size": 20}, "cgan: image_size is 20; allowed: multiples of 8"),
        ({"without_weights": "guess"}, "allowed: stop, random"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(changes, said):
    with pytest.raises(SettingsError, match=said):
        study.load_settings("lung_nodules_demo", changes=changes)


def test_the_binary_task_begins_at_the_given_malignancy():
    grades = np.arange(5)
    assert study.task_labels(grades, "five", 4).tolist() == [0, 1, 2, 3, 4]
    assert study.task_labels(grades, "binary", 4).tolist() == [0, 0, 0, 1, 1]
    assert study.task_labels(grades, "binary", 3).tolist() == [0, 0, 1, 1, 1]


def test_steps_are_in_order_and_end_in_what_is_used(rng):
    settings = study.load_settings()
    values = rng.uniform(-1000, 300, (60, 70)).astype(np.float32)
    found = study.steps(Image(values, (0.7, 0.7)), "nodule", settings.preparation, (50, 52))
    assert list(found) == ["HU", "scaled", "standard size", "gamma", "CLAHE"]
    assert found["CLAHE"].shape == (50, 52)
    found = study.steps(Image(values, None), "full", settings.preparation, (50, 52))
    assert list(found) == ["HU", "scaled", "gamma", "CLAHE", "lungs alone"]
    for name, value in found.items():
        if name != "HU":
            assert 0 <= value.min() <= value.max() <= 1


class Fake:
    """A generator whose images say their class."""

    def generate(self, label, count, seed):
        return np.full((count, 8, 8, 1), 10 * label, np.uint8)


@pytest.fixture
def material():
    grades = np.repeat(np.arange(5), [4, 6, 12, 5, 3])
    images = np.repeat(grades, 64).reshape(-1, 8, 8, 1).astype(np.uint8) * 10

    def featurise(x):
        return x.reshape(len(x), -1)[:, :3].astype(np.float32)

    splits = np.full(len(grades), "train")
    return study.Material(images, featurise(images), grades, splits, featurise, Fake())


@pytest.mark.parametrize("answer", study.ANSWERS)
@pytest.mark.parametrize("task", study.TASKS)
def test_every_answer_gives_features_of_its_own_labels(answer, task, material):
    found = study.answered(answer, material, task, 4, seed=0)
    assert found.inputs.shape[1] == 3
    if task == "five":
        np.testing.assert_array_equal(found.inputs[:, 0], 10 * found.labels)
    else:  # also what is synthetic shows a malignancy of its label
        np.testing.assert_array_equal(found.inputs[:, 0] >= 30, found.labels == 1)


@pytest.mark.parametrize("answer", study.ANSWERS)
def test_no_answer_takes_anything_but_training_slices(answer, material):
    splits = material.splits.copy()
    splits[3] = "val"
    wrong = study.Material(**{**vars(material), "splits": splits})
    with pytest.raises(NotTraining):
        study.answered(answer, wrong, "five", 4, seed=0)


def test_small_masks_lose_no_nodule():
    masks = [np.zeros((64, 64), bool), np.zeros((40, 50), bool)]
    masks[0][10, 20] = True
    masks[1][:20] = True
    small = study.small_masks([*masks, np.zeros((9, 9), bool)], 16)
    assert small[0].any()
    assert small[0].sum() <= 4
    assert small[1].mean() == pytest.approx(0.5, abs=0.05)
    assert not small[2].any()


def test_without_data_ct_slices_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "CACHE", tmp_path)
    small = {"phantoms.size": 128, "phantoms.slices": 40, "phantoms.per_patient": 1}
    run = study.begin(study.load_settings(results=tmp_path / "made", changes=small))
    assert run.dataset.is_phantom
    assert set(run.dataset.table["split"]) == {"train", "val", "test"}
    again = study.begin(study.load_settings(results=tmp_path / "made", changes=small))
    assert again.dataset.fingerprint == run.dataset.fingerprint
    kept = pd.read_csv(tmp_path / "made" / "splits.csv")
    assert kept.groupby("label")["split"].nunique().min() == 3
