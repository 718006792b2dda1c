"""The finder of contradicted labels: its rule, its controls, what it may see, the second reader."""

import dataclasses
import sys
import types

import numpy as np
import pandas as pd
import pytest
from conftest import write_images
from image_files import as_folder, encoded
from sklearn.metrics import cohen_kappa_score

from covid_lab.__main__ import main
from covid_lab.audit import command, labels, network_features, second_reader
from covid_lab.audit.labels import (
    _confident_joint,
    _controls_table,
    _out_of_fold,
    _plant_flips,
    _radial_features,
    _rank,
    audit_labels,
)
from covid_lab.audit.network_features import image_features
from covid_lab.audit.predictability import prepare, resample
from covid_lab.audit.second_reader import _kappa, compare_readers, confusion_table, second_labels
from covid_lab.datasets import open_dataset
from covid_project.data import DataError, Dataset


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Few draws, and an empty Keras cache: pixels are the features."""
    monkeypatch.setattr(labels, "DRAWS", 12)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "no-keras"))


@pytest.fixture
def tree(tmp_path):
    """120 images outside the test split, the classes apart by their brightness, and 20 in it."""
    return write_images(tmp_path / "set", {"train": 50, "val": 10, "test": 10})


def opened(folder):
    return open_dataset(folder, classes=None, as_found=True)


def blobs(rng, n, classes, distance=4.0, size=8):
    """Features (n, size) of Gaussian classes and their labels (n,)."""
    label = np.arange(n) % classes
    return rng.normal(size=(n, size)) + distance * np.eye(classes, size)[label], label


# ---- the rule -----------------------------------------------------------------------------------


def test_the_confident_joint_is_that_counted_by_hand():
    probabilities = np.array(
        [
            [0.9, 0.1, 0.0],  # labelled 0, and surely so
            [0.7, 0.3, 0.0],  # 0
            [0.1, 0.9, 0.0],  # labelled 0, surely 1
            [0.3, 0.5, 0.2],  # labelled 0, reaches no threshold
            [0.2, 0.8, 0.0],  # 1
            [0.2, 0.6, 0.2],  # 1, below its threshold
            [0.0, 0.1, 0.9],  # 2
            [0.6, 0.0, 0.4],  # labelled 2, reaches 0's threshold and not 2's
        ]
    )
    given = np.array([0, 0, 0, 0, 1, 1, 2, 2])  # thresholds 0.5, 0.7 and 0.65
    expected = [[2 / 3 * 4, 1 / 3 * 4, 0], [0, 2, 0], [1, 0, 1]]
    np.testing.assert_allclose(_confident_joint(probabilities, given), expected)
    found = _rank(probabilities, given)
    # 4/3 of label 0 are rounded to one: of two images that seem to be of class 1, the surer one.
    assert found["contradicted"].tolist() == [False, False, True, False, False, False, False, True]
    assert found["suggested"].tolist() == [1, 1, 1, 1, 0, 0, 1, 0]
    assert found["rank"].tolist()[2] == 1
    assert found["rank"].tolist()[7] == 2
    assert found.loc[2, "margin"] == pytest.approx(0.8)
    rest = found[~found["contradicted"]].sort_values("rank")
    assert rest["margin"].is_monotonic_decreasing
    assert sorted(found["rank"]) == list(range(1, 9))


def test_the_number_of_contradicted_labels_is_the_estimate_of_the_joint(rng):
    truth = rng.integers(0, 3, 3000)
    probabilities = rng.dirichlet(np.ones(3), 3000) * 0.2 + 0.8 * np.eye(3)[truth]
    given = _plant_flips(truth, 1, rng)[0]
    found = _rank(probabilities, given)
    assert 140 <= found["contradicted"].sum() <= (given != truth).sum() == 150
    assert (given != truth)[found["contradicted"]].all()


def test_flips_are_a_twentieth_and_go_to_every_other_class(rng):
    given = np.arange(2000) % 4
    planted = _plant_flips(given, 30, rng)
    assert (planted != given).sum(axis=1).tolist() == [100] * 30
    assert set(np.unique(planted)) == {0, 1, 2, 3}
    moved = (planted - given)[planted != given] % 4
    counts = np.bincount(moved, minlength=4)
    assert counts[0] == 0
    assert counts[1:].min() > 900
    assert len({tuple(row) for row in planted}) == 30


def test_radial_features_are_gaussians_of_the_distance(rng):
    features = rng.normal(3, [1, 10, 0.1], (50, 3))
    centres = np.array([4, 7, 9, 30])
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    squared = ((scaled[:, None] - scaled[centres]) ** 2).sum(axis=2)
    between = squared[centres][np.triu_indices(4, 1)]
    expected = np.exp(-squared / np.median(between))
    np.testing.assert_allclose(_radial_features(features, centres), expected, atol=1e-5)
    assert (_radial_features(np.ones((9, 2)), np.arange(9)) == 1).all()  # no contrast, no division


# ---- the model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_planted_flips_are_found_among_classes_that_are_apart(rng, classes):
    features, given = blobs(rng, 400, classes)
    planted = _plant_flips(given, 5, rng)
    folds = prepare(given, np.arange(400)).folds
    probabilities = _out_of_fold(features, planted, folds)
    assert probabilities.shape == (5, 400, classes)
    np.testing.assert_allclose(probabilities.sum(axis=2), 1, atol=1e-6)
    control = _controls_table("numbers", probabilities, given, planted).iloc[0]
    assert control["recall"] > 0.7
    assert control["precision"] > 0.9


def test_a_patient_is_never_in_training_and_test_folds(rng):
    # The features tell the patient and nothing else: only a leak could tell the label.
    groups = np.repeat(np.arange(60), 5)
    given = rng.permuted(np.arange(60) % 2)[groups]
    features = rng.normal(size=(60, 30))[groups] + 0.01 * rng.normal(size=(300, 30))
    honest = _out_of_fold(features, given[None], prepare(given, groups).folds)[0]
    leaking = _out_of_fold(features, given[None], prepare(given, np.arange(300)).folds)[0]
    assert np.mean(leaking.argmax(axis=1) == given) > 0.95
    assert np.mean(honest.argmax(axis=1) == given) < 0.7


def test_an_unusual_image_does_not_explode(rng):
    features, given = blobs(rng, 200, 2)
    features[7] = 1000
    probabilities = _out_of_fold(features, given[None], prepare(given, np.arange(200)).folds)[0]
    assert np.isfinite(probabilities).all()
    others = np.arange(200) != 7
    assert np.mean(probabilities.argmax(axis=1)[others] == given[others]) > 0.8


def test_controls_count_what_was_planted():
    given = np.array([0] * 10 + [1] * 10)
    planted = np.tile(given, (2, 1))
    planted[0, 0], planted[1, 15] = 1, 0
    sure = np.where(np.arange(20) < 10, 0.1, 0.9)  # of the class 1
    false_alarm = sure.copy()
    false_alarm[3] = 0.95
    probabilities = np.array([np.stack([1 - p, p], axis=1) for p in (sure, false_alarm)])
    table = _controls_table("x", probabilities, given, planted).set_index("reported")
    row = table.loc["contradicted"]
    assert (row["recall"], row["precision"], row["images"]) == (1.0, 0.75, 1.5)
    assert row["precision_low"] == pytest.approx(0.5125)
    assert (row["planted"], row["draws"]) == (1, 2)
    tenth = table.loc["first 10% of the ranking"]
    assert tenth[["images", "precision", "recall"]].tolist() == [2, 0.5, 1]
    # A finder that reports nothing has no false reports.
    chances = np.where(planted[:1] == 1, 0.51, 0.5)[..., None]
    row = _controls_table("x", np.concatenate([1 - chances, chances], 2), given, planted[:1]).iloc[
        0
    ]
    assert (row["images"], row["recall"], row["precision"]) == (0, 0, 1)


# ---- a data set ---------------------------------------------------------------------------------


def test_wrong_labels_come_first_and_the_test_split_is_never_opened(tree):
    for path in (tree / "test").rglob("*.png"):
        path.write_bytes(b"no image")
    wrong = {"train/COVID/NORMAL-train-3.png", "val/NORMAL/COVID-val-1.png"}
    (tree / "train/NORMAL/NORMAL-train-3.png").rename(tree / "train/COVID/NORMAL-train-3.png")
    (tree / "val/COVID/COVID-val-1.png").rename(tree / "val/NORMAL/COVID-val-1.png")
    audit, again = (audit_labels(opened(tree), seed=4) for _ in range(2))
    pd.testing.assert_frame_equal(audit.table, again.table)
    pd.testing.assert_frame_equal(audit.controls, again.controls)
    assert set(audit.table["path"][:2]) == wrong == set(audit.contradicted["path"])
    assert len(audit.table) == 120
    assert set(audit.table["split"]) == {"train", "val"}
    assert list(audit.table) == list(labels.TABLE_COLUMNS)
    assert audit.table["rank"].tolist() == list(range(1, 121))
    (finding,) = audit.findings
    assert (finding.area, finding.verdict, finding.n) == ("labels", "pass", 120)
    assert finding.value == pytest.approx(2 / 120)
    assert 0 <= finding.low < finding.value < finding.high < 0.06
    assert "weights of MobileNetV2 are not in the Keras cache" in finding.found
    seen = audit.controls["features"].unique()
    assert seen[-1] == "the border's pixels"
    assert audit.controls["planted"].eq(6).all()


def test_a_class_that_only_the_test_split_has_takes_no_part(tree):
    dataset = opened(tree)
    classes = ("NONE", *dataset.classes)
    table = dataset.table.assign(label=dataset.table["label"] + 1)
    table.loc[table["split"] == "test", "label"] = 0
    audit = audit_labels(dataclasses.replace(dataset, classes=classes, table=table))
    assert set(audit.table["label"]) == set(audit.table["suggested"]) == set(dataset.classes)
    assert audit.findings[0].verdict == "pass"


def test_three_classes_are_audited(tmp_path, rng):
    levels = {name: 90 * level for level, name in enumerate("abc")}
    images = {
        f"{name}/{name}{number}.png": encoded(np.uint8(rng.integers(0, 60, (24, 24)) + level))
        for name, level in levels.items()
        for number in range(40)
    }
    images["c/a5.png"] = images.pop("a/a5.png")
    audit = audit_labels(opened(as_folder(images, tmp_path / "set")))
    assert audit.table.loc[0, ["path", "label", "suggested"]].tolist() == ["c/a5.png", "c", "a"]
    assert audit.table["split"].eq("").all()
    assert audit.controls.loc[0, "recall"] > 0.7


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (lambda t: t["split"] == "test", "no image outside the test split"),
        (lambda t: t["split"] != "train", "at least 100 are needed"),
        (lambda t: t["label"] == 0, "1 class(es) of 97"),
        (lambda t: (t["label"] == 0) | (t.index % 6 == 0), "independent"),
    ],
)
def test_too_few_images_are_said(tmp_path, kept, reason):
    dataset = opened(write_images(tmp_path / "set", {"train": 95, "val": 2, "test": 2}))
    table = dataset.table[kept(dataset.table)]
    if reason == "independent":
        table = table.assign(group=[path[:12] for path in table["path"]])
    audit = audit_labels(dataclasses.replace(dataset, table=table.reset_index(drop=True)))
    (finding,) = audit.findings
    assert finding.verdict == "not applicable"
    assert reason in finding.found
    assert audit.table.empty
    assert audit.contradicted.empty


@pytest.mark.parametrize(
    ("count", "recall", "precision", "verdict"),
    [
        (0, 0.8, 0.9, "pass"),
        (15, 0.8, 0.9, "pass"),
        (60, 0.8, 0.9, "warn"),
        (60, 0.4, 0.9, "not applicable"),
        (0, 0.8, 0.4, "not applicable"),
    ],
)
def test_the_verdict(count, recall, precision, verdict):
    contradicted = np.arange(1000) < count
    values = {"features": "x"}
    for name, value in {"recall": recall, "precision": precision}.items():
        values |= {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}
    trial = prepare(np.arange(1000) % 2, np.arange(1000))
    finding = labels._model_finding(contradicted, trial, pd.Series(values))
    assert finding.verdict == verdict
    assert finding.value == count / 1000
    assert finding.low <= finding.value < finding.high < 0.09


def test_patients_of_many_images_widen_the_interval():
    contradicted = np.arange(1000) < 50
    control = pd.Series({name: 0.9 for name in labels.CONTROL_COLUMNS})
    of_image = prepare(np.arange(1000) % 2, np.arange(1000))
    of_patient = prepare(np.arange(1000) // 10 % 2, np.arange(1000) // 10)
    narrow, wide = (
        labels._model_finding(contradicted, trial, control) for trial in (of_image, of_patient)
    )
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_real_radiographs_planted_flips_are_found_far_above_chance(course_archive):
    dataset = opened(course_archive)
    table = dataset.table[dataset.table["split"] != "test"].reset_index(drop=True)
    audit = audit_labels(dataclasses.replace(dataset, table=table))
    found = audit.controls.iloc[0]
    # Chance has a precision of 0.05.
    assert found["recall_low"] > 0.5
    assert found["precision_low"] > 0.25
    assert len(audit.table) == 2000


# ---- features of the network --------------------------------------------------------------------


def test_without_usable_weights_pixels_are_used(tree, tmp_path, monkeypatch):
    def found():
        features, reason = image_features(opened(tree), tmp_path / "cache", lambda *_: None)
        assert features is None
        assert not (tmp_path / "cache").exists()
        return reason

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "keras", None)  # an import would fail
        assert "not in the Keras cache" in found()
    weights = tmp_path / "no-keras" / "models" / network_features.WEIGHTS
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"no weights")
    assert "cannot be loaded" in found()
    monkeypatch.setattr(network_features, "find_spec", lambda name: None)
    assert "TensorFlow is not installed" in found()


# ---- the second reader --------------------------------------------------------------------------


def of_paths(*paths):
    table = pd.DataFrame({"path": paths, "label": 0, "split": "", "group": paths})
    return Dataset(table, None, ("NORMAL", "COVID"), "x")


def test_second_labels_are_found_by_path_or_by_name():
    dataset = of_paths("a/1.png", "a/2.png", "b/1.png", "b/3.png")
    metadata = pd.DataFrame(
        {"image": ["a/1.png", "3.png", "2.png", "elsewhere.png", "b/1.png"],
         "second_label": ["covid", " NORMAL ", np.nan, "COVID", ""]}
    )  # fmt: skip
    assert second_labels(metadata, dataset).to_dict() == {"a/1.png": "COVID", "b/3.png": "NORMAL"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"second_label": ["COVID"]}, "no image"),
        ({"image": ["a/1.png"]}, "no second_label"),
        ({"image": ["a/1.png"], "second_label": ["FLU"]}, "FLU; allowed: NORMAL, COVID"),
        ({"image": ["a/1.png"] * 2, "second_label": ["COVID", "NORMAL"]}, "two second labels"),
        ({"image": ["1.png"], "second_label": ["COVID"]}, "fits several images"),
        ({"image": ["z.png"], "second_label": ["COVID"]}, "of none of these images"),
        ({"image": ["a/1.png"], "second_label": [np.nan]}, "of none of these images"),
    ],
)
def test_second_labels_that_do_not_fit_are_refused(rows, message):
    with pytest.raises(DataError, match=message):
        second_labels(pd.DataFrame(rows), of_paths("a/1.png", "b/1.png"))


def test_kappa_and_confusion_are_those_of_the_textbook():
    # Cohen 1960: observed agreement 0.7, by chance 0.5 → kappa 0.4
    given = np.repeat(["a", "a", "b", "b"], [35, 15, 15, 35])
    second = np.repeat(["a", "b", "a", "b"], [35, 15, 15, 35])
    value, low, high = _kappa(given, second, np.arange(100))
    assert value == pytest.approx(0.4)
    # Large-sample standard error (Fleiss, Cohen & Everitt 1969), here sqrt(0.7 · 0.3 / 100) / 0.5
    assert (low, high) == pytest.approx((0.4 - 0.18, 0.4 + 0.18), abs=0.04)
    _, low_of_groups, high_of_groups = _kappa(given, second, np.arange(100) // 5)
    assert high_of_groups - low_of_groups > 1.5 * (high - low)
    table = confusion_table(given, second, ("a", "b", "c"))
    assert table["images"].tolist() == [35, 15, 0, 15, 35, 0, 0, 0, 0]
    assert table["fraction"].tolist()[:2] == [0.7, 0.3]
    assert table["low"][0] == pytest.approx(0.5625, abs=0.001)  # Wilson, 35 of 50
    assert table["fraction"][6:].isna().all()


def test_the_interval_of_kappa_is_that_of_scikit_learns_kappas(rng):
    given, second = rng.integers(0, 3, (2, 60))
    second = np.where(rng.random(60) < 0.6, given, second)
    weights = resample(pd.factorize(given)[0], np.arange(60), np.random.default_rng(2))
    expected = [cohen_kappa_score(given, second, sample_weight=row) for row in weights]
    found = _kappa(given, second, np.arange(60), seed=2)
    np.testing.assert_allclose(found[1:], np.quantile(expected, [0.025, 0.975]), rtol=1e-9)


def test_a_reader_that_agrees_passes_and_one_that_does_not_warns(tree):
    dataset = opened(tree)
    given = np.array(dataset.classes, object)[dataset.table["label"]]

    def judged(second, contradicted=0):
        against = np.arange(140) < contradicted
        return compare_readers(dataset, np.array(second, object), against)[1]

    finding = judged(given)
    assert (finding.verdict, finding.value, finding.n) == ("pass", 1, 140)
    second = given.copy()
    second[:40] = "COVID"
    finding = judged(second)
    assert finding.verdict == "warn"
    assert finding.low < finding.value < finding.high < second_reader.AGREEMENT
    assert "100 labels agree (0.714" in finding.found
    assert "contradict 0 labels" in finding.found
    second = given.copy()
    second[0] = "COVID"  # a label that model and reader contradict
    finding = judged(second, contradicted=2)
    assert finding.verdict == "warn"
    assert finding.value > 0.97
    assert finding.found.endswith(f"contradict 1 labels: {dataset.table['path'][0]}")
    of_one_class = np.where(dataset.table["label"] == 0, "NORMAL", "")
    assert judged(of_one_class).verdict == judged(np.full(140, "")).verdict == "not applicable"


# ---- the command --------------------------------------------------------------------------------


def test_the_command_writes_tables_and_shows_images(tree, tmp_path, monkeypatch, capsys):
    nothing = types.SimpleNamespace(findings=[], table=pd.DataFrame())
    monkeypatch.setattr(command, "audit_shortcuts", lambda *_, **__: nothing)
    wrong = [f"train/COVID/<{number}>.png" for number in (3, 4, 5, 6)]
    for number, name in zip((3, 4, 5, 6), wrong, strict=True):
        (tree / f"train/NORMAL/NORMAL-train-{number}.png").rename(tree / name)
    rows = ["NORMAL-val-1.png,NORMAL", "COVID-train-1.png,COVID", *(f"{n},normal" for n in wrong)]
    metadata, out = tmp_path / "read.csv", tmp_path / "out"
    metadata.write_text("\n".join(["image,second_label", *rows]))
    arguments = ["audit", "--data", str(tree), "--out", str(out), "--metadata", str(metadata)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert labels.CHECK in printed
    assert second_reader.CHECK in printed
    table = pd.read_csv(out / "labels.csv").set_index("path")
    assert len(table) == 120
    assert set(table.index[:4]) == set(wrong)
    assert table["second_label"].tolist()[:4] == ["NORMAL"] * 4
    assert table["second_contradicts"].sum() == 4
    assert len(pd.read_csv(out / "label_controls.csv")) == 6
    assert pd.read_csv(out / "label_readers.csv")["images"].sum() == 6
    section = (out / "audit.html").read_text("utf-8").split("<h2>Labels</h2>")[1].split("<h2>")[0]
    assert section.count("<img") == table["contradicted"].sum() > 0
