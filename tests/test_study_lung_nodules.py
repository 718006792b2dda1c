"""The study of lung nodules: its settings and material, and its notebook on a few drawn slices."""

import json

import keras
import numpy as np
import pandas as pd
import pytest
from study_runs import run_study, small_profile

from covid_lab.studies import lung_nodules as study
from covid_lab.studies import nodule_training as heads
from covid_lab.studies.ct_phantoms import write_dataset
from covid_lab.studies.graded_metrics import METRICS, Verdicts, interval_over_seeds, metrics_table
from covid_lab.studies.grading import convolutional_head, perceptron
from covid_lab.studies.imbalance import NotTraining
from covid_lab.studies.nodule_controls import CANDIDATES
from covid_lab.studies.nodule_evaluation import auc_without_3
from covid_lab.studies.nrrd_slices import Image
from covid_project.files import read_csv
from covid_project.settings import PROJECT, SettingsError

COMMITTED = PROJECT / "results" / "lung_nodules"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, python):
    """Results folder of the notebook on a folder of slices as a user has it."""
    folder = tmp_path_factory.mktemp("study")
    values = small_profile("lung_nodules")
    values |= {"image_size": 32, "backbones": {"MobileNet": 0.25}, "weights": "random"}
    values |= {"seeds": 2, "small_epochs": 1, "explained": 6, "augmented_copies": 1}
    values["training"] |= {"epochs": 1}
    values["cgan"] |= {"image_size": 16, "width": 4, "noise": 8, "steps": 3}
    slices = write_dataset(folder / "slices", 60, 1, 128, seed=6)
    return run_study(python, folder, "lung_nodules", values, slices)


def test_the_notebook_writes_every_table_and_figure(finished):
    tables = "exploration sizes noise preparations controls cgan cgan_distances heads backbones "
    for name in (tables + "augmentation history_full_five history_nodule_binary").split():
        assert (finished / f"{name}.csv").is_file(), name
    pictures = "class_distribution imbalance confusion_roc history_nodule_five images_samples_full "
    pictures += "sizes laplacian_by_class test_kappa images_noisiest_nodule "
    for name in (pictures + "images_steps_full images_cgan_nodule images_gradcam_full").split():
        assert (finished / "figures" / f"{name}.pdf").is_file(), name
    assert (finished / "notebooks" / "lung_nodules.html").is_file()
    assert json.loads((finished / "run.json").read_text())["phantoms"]
    for file in [*finished.glob("*.csv"), *finished.glob("*.yaml")]:
        assert str(finished.parent) not in file.read_text(), file


def test_imbalance_has_every_answer_task_and_view_with_intervals_over_seeds(finished):
    table = read_csv(finished / "imbalance.csv")
    case = ["view", "task", "answer"]
    assert len(table) == len(table[case].drop_duplicates()) == 2 * 2 * len(heads.ANSWERS)
    assert set(table["answer"]) == set(heads.ANSWERS)
    assert (table["patients_macro_F1_low"] <= table["patients_macro_F1_high"]).all()
    trials = read_csv(finished / "imbalance_trials.csv")
    row = table.iloc[5]
    own = trials.set_index(case).loc[tuple(row[case])]
    for metric in ("macro_F1", "AUC"):
        wanted = interval_over_seeds(own[metric])
        assert tuple(row[[metric, f"{metric}_low", f"{metric}_high"]]) == pytest.approx(wanted)
    five = trials.query("task == 'five' and view == 'full'").groupby("answer")["samples"].max()
    assert five["none"] == five["class_weights"] > five["undersample"]
    filled = five[["oversample", "smote_full", "cgan"]]
    assert filled.min() == filled.max() > five["none"]
    assert five["none"] < five["smote_pixels"] == five["smote_features"] <= five["smote_full"]
    assert five["cgan_more"] > five["cgan"]
    assert five["augmented_ahead"] == 2 * five["none"]


def test_each_final_model_saw_the_test_split_once(finished):
    ledger = read_csv(finished / "test_ledger.csv")
    names = ["full", "nodule", *CANDIDATES]
    stages = sorted(f"{name}_{task}" for name in names for task in ("binary", "five"))
    assert sorted(ledger["stage"]) == stages
    assert (ledger["look"] == 1).all()
    metrics = read_csv(finished / "metrics.csv")
    assert sorted(set(metrics["stage"])) == stages
    assert set(metrics["metric"]) == {*METRICS, "AUC_without_3"}
    five = metrics[metrics["stage"].str.endswith("_five")].dropna(subset=["chosen"])
    assert (five.groupby("stage")["chosen"].first().astype(str) == "True").sum() == 1
    splits = pd.read_csv(finished / "splits.csv")
    for stage in stages:
        scores = read_csv(finished / f"scores_{stage}_test.csv")
        assert set(scores["path"]) == set(splits.loc[splits["split"] == "test", "path"])
        value = metrics.query("stage == @stage and metric == 'accuracy'")["value"].item()
        assert value == pytest.approx((scores["label"] == scores["predicted"]).mean())


def test_removal_lungs_and_heat_are_of_the_right_splits(finished):
    splits = pd.read_csv(finished / "splits.csv")
    split_of = splits.set_index(splits["path"].str.extract(r"/(.*)\.nrrd")[0])["split"]
    assert splits.groupby("group")["split"].nunique().max() == 1
    removed, lungs = (read_csv(finished / f"{name}.csv") for name in ("removed", "lungs"))
    assert (split_of[removed["name"]] == "train").all()
    assert set(removed["view"]) == {"full", "nodule"}
    assert (split_of[lungs["name"]] == "val").all()
    assert lungs["dice"].min() >= 0.95
    found = read_csv(finished / "gradcam.csv")
    assert found.groupby("view").size().tolist() == [6, 6]
    assert (split_of[found["name"]] == "test").all()
    known = found.dropna()
    np.testing.assert_allclose(known["ratio"], known["inside"] / known["area"])
    area = found.groupby("view")["area"].mean()
    assert area["nodule"] > 5 * area["full"]
    summary = read_csv(finished / "gradcam_summary.csv")
    assert {"inside − area", "inside − other"} <= set(summary["measure"])
    assert set(summary["view"]) == {"full", "nodule", "nodule / full"}


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
        study.load_settings(changes=changes)


def test_steps_are_in_order_and_end_in_what_is_used(rng):
    preparation = study.load_settings().preparation
    values = rng.uniform(-1000, 300, (60, 70)).astype(np.float32)
    found = study.steps(Image(values, (0.7, 0.7)), "nodule", preparation, (50, 52))
    assert list(found) == ["HU", "scaled", "standard size", "gamma", "CLAHE"]
    assert found["CLAHE"].shape == (50, 52)
    found = study.steps(Image(values, None), "full", preparation, (50, 52))
    assert list(found) == ["HU", "scaled", "gamma", "CLAHE", "lungs alone"]
    del found["HU"]
    assert all(0 <= value.min() <= value.max() <= 1 for value in found.values())
    grey = Image(np.full((9, 9), 51, np.uint8), None, "grey")
    found = study.steps(grey, "nodule", preparation, (8, 8))
    assert next(iter(found)) == "grey"
    assert found["scaled"] == pytest.approx(0.2)


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

    splits, features = np.full(len(grades), "train"), featurise(images)
    copies = np.stack([features, features])
    return heads.Material(images, features, grades, splits, featurise, Fake(), copies)


@pytest.mark.parametrize("answer", heads.ANSWERS)
def test_every_answer_gives_features_of_its_own_labels_of_training_slices(answer, material):
    found = heads.answered(answer, material, "five", 4, seed=0)
    assert found.inputs.shape[1] == 3
    np.testing.assert_array_equal(found.inputs[:, 0], 10 * found.labels)
    for malignant_from in (3, 4):  # also what is synthetic shows a malignancy of its label
        found = heads.answered(answer, material, "binary", malignant_from, seed=0)
        malignant = found.inputs[:, 0] >= 10 * (malignant_from - 1)
        np.testing.assert_array_equal(malignant, found.labels == 1)
    splits = material.splits.copy()
    splits[3] = "val"
    wrong = heads.Material(**{**vars(material), "splits": splits})
    with pytest.raises(NotTraining):
        heads.answered(answer, wrong, "five", 4, seed=0)


def test_answers_that_lack_their_material_say_so(material):
    bare = heads.Material(**{**vars(material), "gan": None, "copies": None})
    for answer, lacking in (("cgan_more", "GAN"), ("augmented_ahead", "copies")):
        with pytest.raises(ValueError, match=lacking):
            heads.answered(answer, bare, "five", 4, seed=0)


def test_the_whole_network_is_backbone_and_head(rng):
    images = keras.Input((16, 16, 1))
    maps = keras.layers.Conv2D(4, 3, strides=4)(images)
    backbone = keras.Model(images, keras.layers.GlobalAveragePooling2D()(maps))
    inputs = rng.uniform(0, 255, (3, 16, 16, 1)).astype(np.float32)
    features = heads.feature_maps(backbone)(inputs)
    assert features.shape == (3, 4, 4, 4)
    pooled = perceptron(4, 5, ordinal=False, dropout=0.1)
    spatial = convolutional_head((4, 4, 4), 5, dropout=0.1)
    for head, given in ((pooled, backbone(inputs)), (spatial, features)):
        whole = heads.whole_network(backbone, head)
        np.testing.assert_allclose(whole(inputs), head(given), rtol=1e-4, atol=1e-4)


def test_auc_without_3_leaves_the_indeterminate_out():
    grades, scores = np.array([0, 1, 2, 3, 4] * 4), np.array([0.0, 3, 9, 2, 4] * 4)
    value, low, high, n = auc_without_3(grades, scores, np.arange(20) // 2, seed=0)
    assert value == pytest.approx(3 / 4)
    assert n == 16
    assert low <= value <= high


def test_without_data_ct_slices_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "CACHE", tmp_path)
    small = {"phantoms.size": 128, "phantoms.slices": 40, "phantoms.per_patient": 1}
    first, again = (
        study.begin(study.load_settings(results=tmp_path / "made", changes=small)).dataset
        for _ in range(2)
    )
    assert first.is_phantom
    assert again.fingerprint == first.fingerprint
    assert first.table.groupby("label")["split"].nunique().min() == 3


@pytest.mark.skipif(not (COMMITTED / "metrics.csv").is_file(), reason="no committed run")
@pytest.mark.parametrize(
    "stage", ["nodule_five", "diameter_binary", "outline_grey_masked_network_five"]
)
def test_committed_metrics_follow_from_the_saved_scores(stage):
    """Intervals over patients included; and no patient is in two splits."""
    metrics, splits = read_csv(COMMITTED / "metrics.csv"), read_csv(COMMITTED / "splits.csv")
    assert splits.groupby("group")["split"].nunique().max() == 1
    scores = read_csv(COMMITTED / f"scores_{stage}_test.csv")
    groups = splits.set_index("path")["group"].loc[scores["path"]].to_numpy()
    said = Verdicts(scores.filter(like="score_").to_numpy(), scores["predicted"].to_numpy())
    saved = metrics[(metrics["stage"] == stage) & metrics["metric"].isin(METRICS)]
    again = metrics_table(scores["label"].to_numpy(), said, int(saved["seed"].iloc[0]), groups)
    assert saved["metric"].tolist() == again["metric"].tolist()
    columns = ["value", "low", "high", "n"]
    np.testing.assert_allclose(saved[columns].to_numpy(), again[columns].to_numpy(), rtol=1e-6)
