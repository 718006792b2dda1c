"""The pneumonia study: its splits, and its notebook on a few drawn images."""

import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
import yaml
from study_runs import run_study, small_profile

from covid_lab import phantoms
from covid_lab.external import adapted
from covid_lab.external.adapt import mixture_threshold
from covid_lab.studies.pneumonia import (
    CLASSES,
    PUBLISHED,
    adapt_kept,
    augmented_batches,
    begin,
    change_input,
    clean_cut,
    freeze_all_but_last,
    load_settings,
    other_site,
    patients,
    prepared,
    series,
    training_copies,
)
from covid_project.data import DataError
from covid_project.evaluation import metrics_table
from covid_project.files import read_csv
from covid_project.models import build_backbone, logits, split_at
from covid_project.settings import PROJECT, Augmentation, SettingsError

SHARED = PROJECT.parent / "shared"


def drawn_set(folder):
    """Drawn images under the names and in the folders of the paediatric set."""
    drawn = phantoms.write_dataset(folder / "drawn", {"train": 24, "val": 2, "test": 10}, 48, 5)
    for split in ("train", "test"):
        for made, name in (("NORMAL", "NORMAL"), ("COVID", "PNEUMONIA")):
            for number, file in enumerate(sorted((drawn / split / made).glob("*.png"))):
                stem = {
                    "NORMAL": f"{'NORMAL2-' * (number % 4 > 1)}IM-{number // 2:04}-{number % 2:04}",
                    "PNEUMONIA": f"person{number // 2}_virus_{number}",
                }[name]
                path = folder / "chest_xray" / split / name / f"{stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, path)
    return folder / "chest_xray"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, python):
    """Results folder of the notebook on drawn images that look like the real set's files."""
    folder = tmp_path_factory.mktemp("study")
    values = small_profile("pneumonia")
    network = {"epochs": 1, "patience": 1, "batch_size": 16, "image_size": 32}
    values["mlp"] |= network
    values["cnn"] |= network
    values["cnn_filters"] = 4
    values["transfer"] |= {"weights": "random", "tuned_epochs": 1, "last_layers": 3}
    values["transfer"]["augmented_copies"] = 0
    values["transfer"]["head"] |= network
    values["explained"] = 1
    values["mlp_units"] = [8, 4]
    values["inputs"] = ["as it is", "rank inside the lungs"]
    values["other_site"] = str(folder / "elsewhere")
    phantoms.write_dataset(folder / "elsewhere", {"train": 2, "val": 6, "test": 2}, 48, 9)
    values["validation_share"] = 0.3  # both series of names are in both splits
    return run_study(python, folder, "pneumonia", values, drawn_set(folder))


def test_the_notebook_writes_every_table_and_page(finished):
    for name in ("counts", "near_copies", "model_comparison", "class_metrics", "comparisons",
                 "occlusion", "series", "history_mlp", "history_cnn", "history_transfer",
                 "metrics", "test_ledger"):  # fmt: skip
        assert (finished / f"{name}.csv").is_file(), name
    for name in ("class_shares", "ranking_curves", "model_comparison", "class_metrics",
                 "confusion_transfer", "images_samples", "images_augmented"):  # fmt: skip
        assert (finished / "figures" / f"{name}.pdf").is_file(), name
    assert (finished / "notebooks" / "pneumonia.html").is_file()


def test_every_model_saw_the_test_set_once_and_is_in_the_comparison(finished):
    ledger = pd.read_csv(finished / "test_ledger.csv")
    assert ledger["stage"].tolist() == ["exploration", "mlp", "cnn", "transfer"]
    assert (ledger["look"] == 1).all()
    comparison = pd.read_csv(finished / "model_comparison.csv").set_index("stage")
    assert comparison["published_accuracy"].to_dict() == {
        "mlp": 0.763,
        "cnn": 0.872,
        "transfer": 0.867,
    }
    assert (comparison["seconds"] > 0).all()


def test_pneumonia_is_the_positive_class_everywhere(finished):
    scores = pd.read_csv(finished / "scores_cnn_test.csv")
    assert (scores["label"] == scores["path"].str.contains("/PNEUMONIA/").astype(int)).all()
    per_class = pd.read_csv(finished / "class_metrics.csv")
    metrics = metrics_table(scores["label"], scores["score"]).set_index("metric")["value"]
    own = per_class[per_class["stage"] == "cnn"].set_index(["class", "metric"])["value"]
    assert own["PNEUMONIA", "recall"] == metrics["sensitivity"]
    assert own["NORMAL", "recall"] == metrics["specificity"]
    comparison = pd.read_csv(finished / "model_comparison.csv").set_index("stage")
    assert comparison.loc["cnn", "recall (PNEUMONIA)"] == metrics["sensitivity"]


def test_no_patient_is_in_training_and_validation(finished):
    splits = pd.read_csv(finished / "splits.csv")
    learning = splits[splits["split"] != "test"]
    assert set(learning["split"]) == {"train", "val"}
    assert learning.groupby("group")["split"].nunique().max() == 1
    assert learning.groupby("group").size().max() == 2


def test_the_threshold_of_validation_has_equal_errors_there(finished):
    scores = pd.read_csv(finished / "scores_mlp_val.csv")
    threshold = pd.read_csv(finished / "history_mlp.csv")["validation_threshold"].iloc[0]
    positive = scores["label"] == 1
    sensitivity = (scores["score"][positive] > threshold).mean()
    specificity = (scores["score"][~positive] <= threshold).mean()
    # One image of a class is the finest step that there is.
    assert abs(sensitivity - specificity) <= 1 / positive.value_counts().min()


def test_the_models_threshold_has_equal_errors_on_the_other_collection(finished):
    settings = load_settings(changes={"other_site": str(finished.parent / "elsewhere")})
    images, labels = other_site(settings, 32)
    model = keras.models.load_model(finished / "models" / "mlp.keras")
    chosen = read_csv(finished / "series.csv").groupby("input").mean(numeric_only=True)
    measured = chosen.filter(like="balanced_accuracy").mean(axis=1)
    scores = logits(model, change_input(images, measured.idxmax()))
    errors = (scores[labels == 1] <= 0).mean(), (scores[labels == 0] > 0).mean()
    assert abs(errors[0] - errors[1]) <= 1 / 6
    rules = pd.read_csv(finished / "thresholds.csv").query("stage == 'mlp'")
    assert rules.groupby("rule")["threshold"].first()["chosen"] == 0


def test_patients_are_read_from_the_names():
    class Named:
        table = pd.DataFrame(
            {
                "path": [
                    "train/PNEUMONIA/person10_virus_3.jpeg",
                    "train/PNEUMONIA/person10_bacteria_4.jpeg",
                    "train/PNEUMONIA/person100_virus_5.jpeg",
                    "train/NORMAL/IM-0433-0001.jpeg",
                    "train/NORMAL/IM-0433-0001-0002.jpeg",
                    "train/NORMAL/NORMAL2-IM-0433-0001.jpeg",
                    "train/NORMAL/other.jpeg",
                ]
            }
        )

    assert patients(Named).tolist() == [
        "person10", "person10", "person100", "im-0433", "im-0433", "normal2-im-0433",
        "train/NORMAL/other.jpeg",
    ]  # fmt: skip


def test_each_series_of_normal_names_is_left_out_once_for_each_input(finished):
    table = pd.read_csv(finished / "series.csv")
    names = ["as it is", "rank inside the lungs"]
    assert table["case"].tolist() == [f"{n}, {s}" for n in names for s in ("IM", "NORMAL2-IM")]
    assert table["elsewhere_balanced_accuracy"].between(0, 1).all()
    splits = pd.read_csv(finished / "splits.csv")
    learning = splits[splits["split"] != "test"]
    for row in table.itertuples():
        named = learning["path"].str.contains(f"/{row.left_out}-", regex=False)
        assert row.images == named.sum() > 0
        assert row.unseen_specificity_low <= row.unseen_specificity <= row.unseen_specificity_high


def test_images_are_changed_by_name_and_kept(tmp_path):
    class Run:
        cache = tmp_path

        @staticmethod
        def images(image_size):
            ramp = np.linspace(100, 110, image_size**2).reshape(image_size, image_size)
            return np.stack([ramp, ramp[::-1]])[..., None].astype(np.uint8)

    images = Run.images(64)
    np.testing.assert_array_equal(prepared(Run, 64, "as it is"), images)
    found = prepared(Run, 64, "CLAHE")
    assert found.dtype == np.uint8
    assert found.shape == images.shape
    assert np.ptp(found) > 5 * np.ptp(images)
    np.testing.assert_allclose(found[1, ::-1], found[0], atol=3)  # tiles know no up and down
    assert {path.name for path in tmp_path.iterdir()} == {
        "images-64-as it is.npy", "images-64-CLAHE.npy",
    }  # fmt: skip


def test_styled_copies_are_of_the_training_images_and_differ(tmp_path, rng):
    drawn = rng.integers(0, 256, (5, 32, 32, 1)).astype(np.uint8)

    class Run:
        cache, settings = tmp_path, SimpleNamespace(styled_copies=2)
        dataset = SimpleNamespace(rows=lambda split: np.array([0, 2, 3]))
        images = staticmethod(lambda size: drawn)

    first, *copies = training_copies(Run, 32, "as it is", 1)
    np.testing.assert_array_equal(first, drawn[[0, 2, 3]])
    assert len(copies) == 2
    assert all(copy.shape == first.shape and copy.dtype == np.uint8 for copy in copies)
    assert not np.array_equal(copies[0], copies[1])
    other = SimpleNamespace(**vars(Run) | {"cache": tmp_path / "other", "images": lambda _: drawn})
    again = training_copies(other, 32, "as it is", 1)
    np.testing.assert_array_equal(again[2], copies[1])


def test_batches_hold_every_image_once_as_one_of_its_copies():
    still = Augmentation(flip=False, rotation=0, zoom=0, shift=0, brightness=0, contrast=0)
    base = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    batches = augmented_batches([base, base + 100], np.arange(10) % 2, 4, still, 3)
    assert len(batches) == 3
    for _ in range(2):
        found = [(images.numpy(), labels.numpy()) for images, labels in batches]
        values = np.concatenate([images[:, 0, 0, 0] for images, _ in found])
        labels = np.concatenate([labels[:, 0] for _, labels in found])
        assert sorted(values % 100) == list(range(10))
        np.testing.assert_array_equal(labels, values % 100 % 2)
        assert {value >= 100 for value in values} == {False, True}


def test_the_cut_leaves_the_last_layers_above_it():
    backbone = build_backbone("MobileNetV2", 32, width=0.35, weights="random")
    names = [layer.name for layer in backbone.layers]
    for count in (5, 30):
        cut = clean_cut(backbone, count)
        assert names.index(cut) < len(names) - count
        lower, upper = split_at(backbone, cut)
        image = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 1)).astype(np.float32)
        np.testing.assert_allclose(upper(lower(image)), backbone(image), atol=1e-4)
    freeze_all_but_last(backbone, 0)
    assert all(layer.trainable for layer in backbone.layers)
    freeze_all_but_last(backbone, 30)
    assert [layer.trainable for layer in backbone.layers].index(True) == len(names) - 30
    with pytest.raises(ValueError, match="cannot be cut below the last 1000"):
        clean_cut(backbone, 1000)


def test_drawn_images_and_another_collection_are_stored_by_name(tmp_path):
    phantoms.write_dataset(tmp_path / "site", {"train": 2, "val": 3, "test": 2}, 48, 9)
    changes = {"other_site": str(tmp_path / "site")}
    changes["phantoms"] = {"size": 48, "train": 12, "val": 4, "test": 4}
    run = begin(load_settings(results=tmp_path / "made", changes=changes))
    kept = yaml.safe_load((run.folder / "settings.yaml").read_text(encoding="utf-8"))
    assert kept["other_site"] == "site"
    assert kept["data"].startswith("phantoms-")
    assert run.settings.other_site == str(tmp_path / "site")


def test_another_collection_needs_both_classes(tmp_path):
    phantoms.write_dataset(tmp_path / "site", {"train": 2, "val": 3, "test": 2}, 48, 9)
    settings = load_settings(changes={"other_site": str(tmp_path / "site")})
    images, labels = other_site(settings, 32)
    assert images.shape == (6, 32, 32, 1)
    assert sorted(labels) == [0, 0, 0, 1, 1, 1]
    shutil.rmtree(tmp_path / "site" / "val" / "COVID")
    with pytest.raises(DataError, match="images of two classes"):
        other_site(settings, 32)


def test_the_series_is_read_from_the_name():
    names = ["a/NORMAL/IM-0433-0001.jpeg", "a/NORMAL/normal2-im-0374-0001.jpeg"]
    names += ["a/PNEUMONIA/person1_virus_6.jpeg", "a/IM-1/other.jpeg"]
    assert series(pd.Series(names)).tolist() == ["IM", "NORMAL2-IM", "", ""]


def test_unknown_settings_and_missing_data_are_refused():
    with pytest.raises(SettingsError, match=r"cnn\.depth"):
        load_settings(changes={"cnn.depth": 3})
    with pytest.raises(SettingsError, match="no data"):
        load_settings("pneumonia")


def test_data_of_another_kind_are_refused(tmp_path, course_archive):
    settings = load_settings(data=course_archive, results=tmp_path / "made")
    with pytest.raises(DataError, match="PNEUMONIA"):
        begin(settings)


def test_the_real_set_is_dealt_by_patient(tmp_path):
    archive = SHARED / "data" / "chest_xray.zip"
    if not archive.is_file():
        pytest.skip("chest_xray.zip is not at hand (../shared/data)")
    dataset = begin(load_settings(data=archive, results=tmp_path / "made")).dataset
    assert dataset.classes == CLASSES
    counts = pd.crosstab(dataset.table["split"], dataset.table["label"])
    assert counts.loc["test"].tolist() == [234, 390]
    shares = counts.loc["val"] / (counts.loc["train"] + counts.loc["val"])
    np.testing.assert_allclose(shares, 0.15, atol=0.005)
    learning = dataset.table[dataset.table["split"] != "test"]
    assert learning.groupby("group")["split"].nunique().max() == 1


# ---- thresholds from unlabelled images ----------------------------------------------------------


def test_adapted_thresholds_come_from_kept_scores_without_labels(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(adapted, "RESAMPLES", 10)
    kept = {}
    for stage in PUBLISHED:
        for split, shift in (("val", 0), ("test", 4)):
            label = np.arange(240) % 2
            score = rng.normal(size=240) + np.where(label, 5, shift - 3)
            kept[stage, split] = pd.DataFrame({"label": label, "score": score})
            kept[stage, split].to_csv(tmp_path / f"scores_{stage}_{split}.csv", index=False)
    table = adapt_kept(tmp_path)
    kept_table = pd.read_csv(tmp_path / adapted.TABLE, keep_default_na=False, na_values={})
    assert kept_table["note"].tolist() == table["note"].tolist()
    assert (table["source"] == adapted.KEPT).all()
    rows = table.set_index(["stage", "split", "method", "metric"]).sort_index()
    for stage, (published, *_) in PUBLISHED.items():
        row = rows.loc[(stage, "test", "mixture", "accuracy")]
        assert row["published"] == published
        assert row["threshold"] == mixture_threshold(kept[stage, "test"]["score"]).value
        assert row["change_low"] > 0  # the NORMAL images have moved above the plain threshold
        assert rows.loc[(stage, "test", "label shift", "accuracy"), "note"].startswith("no prev")
    (tmp_path / "scores_mlp_val.csv").unlink()
    with pytest.raises(DataError, match="no scores of mlp"):
        adapt_kept(tmp_path)


def test_committed_thresholds_give_the_committed_figures():
    results = PROJECT / "results" / "pneumonia"
    table = pd.read_csv(results / adapted.TABLE)
    rows = table[(table["metric"] == "accuracy") & table["value"].notna()]
    assert set(rows["stage"]) == set(PUBLISHED)
    for row in rows.itertuples():
        scores = pd.read_csv(results / f"scores_{row.stage}_{row.split}.csv")
        called = scores["score"] > row.threshold
        assert row.value == pytest.approx((called == scores["label"]).mean())
        if row.method == "mixture":
            assert row.threshold == pytest.approx(mixture_threshold(scores["score"]).value)
