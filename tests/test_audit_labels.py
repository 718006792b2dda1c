"""The finder of contradicted labels: its rule, its controls, what it may see, the second reader."""

import dataclasses
import sys
import types
import zipfile

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, write_images
from PIL import Image
from sklearn.linear_model import LogisticRegression

from covid_lab.__main__ import main
from covid_lab.audit import command, labels, network_features, second_reader
from covid_lab.audit.findings import Finding
from covid_lab.audit.labels import (
    audit_labels,
    confident_joint,
    controls_table,
    out_of_fold,
    plant_flips,
    radial_features,
    rank,
)
from covid_lab.audit.network_features import image_features
from covid_lab.audit.predictability import prepare
from covid_lab.audit.second_reader import (
    compare_readers,
    confusion_table,
    kappa,
    second_labels,
)
from covid_lab.datasets import open_dataset
from covid_project.data import DataError, Dataset

KERAS = SHARED / "keras"


@pytest.fixture
def without_weights(monkeypatch, tmp_path):
    """An empty Keras cache: pixels are the features."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "no-keras"))


@pytest.fixture
def tree(tmp_path, without_weights):
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
    np.testing.assert_allclose(confident_joint(probabilities, given), expected)
    found = rank(probabilities, given)
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
    given = plant_flips(truth, 1, rng)[0]
    found = rank(probabilities, given)
    assert 140 <= found["contradicted"].sum() <= (given != truth).sum() == 150
    assert (given != truth)[found["contradicted"]].all()


def test_of_two_classes_suggested_is_the_other_one(rng):
    probability = rng.random(40)
    given = rng.integers(0, 2, 40)
    found = rank(np.stack([1 - probability, probability], axis=1), given)
    np.testing.assert_array_equal(found["suggested"], 1 - given)
    np.testing.assert_allclose(found["label_probability"] + found["suggested_probability"], 1)


def test_flips_are_a_twentieth_and_go_to_every_other_class(rng):
    given = np.arange(2000) % 4
    planted = plant_flips(given, 30, rng)
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
    np.testing.assert_allclose(radial_features(features, centres), expected, atol=1e-5)
    assert (radial_features(np.ones((9, 2)), np.arange(9)) == 1).all()  # no contrast, no division


# ---- the model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_planted_flips_are_found_among_classes_that_are_apart(rng, classes):
    features, given = blobs(rng, 400, classes)
    planted = plant_flips(given, 5, rng)
    folds = prepare(given, np.arange(400)).folds
    probabilities = out_of_fold(features, planted, folds)
    assert probabilities.shape == (5, 400, classes)
    np.testing.assert_allclose(probabilities.sum(axis=2), 1, atol=1e-6)
    control = controls_table("numbers", probabilities, given, planted).iloc[0]
    assert control["recall"] > 0.7
    assert control["precision"] > 0.9


class Exact(LogisticRegression):
    """Converge fully: where the usual tolerance stops depends on the last digits."""

    def fit(self, scores, given):
        self.set_params(tol=1e-10, max_iter=1000)
        return super().fit(scores.astype(np.float64), given)


def test_sets_of_labels_do_not_touch_each_other(rng, monkeypatch):
    monkeypatch.setattr(labels, "LogisticRegression", Exact)
    features, given = blobs(rng, 150, 3, distance=2)
    planted = plant_flips(given, 3, rng)
    folds = prepare(given, np.arange(150)).folds
    together = out_of_fold(features, planted, folds)
    for number, changed in enumerate(planted):
        alone = out_of_fold(features, changed[None], folds)
        np.testing.assert_allclose(alone[0], together[number], atol=2e-3)


def test_a_patient_is_never_in_training_and_test_folds(rng):
    # The features tell the patient and nothing else: only a leak could tell the label.
    groups = np.repeat(np.arange(60), 5)
    given = rng.permuted(np.arange(60) % 2)[groups]
    features = rng.normal(size=(60, 30))[groups] + 0.01 * rng.normal(size=(300, 30))
    honest = out_of_fold(features, given[None], prepare(given, groups).folds)[0]
    leaking = out_of_fold(features, given[None], prepare(given, np.arange(300)).folds)[0]
    assert np.mean(leaking.argmax(axis=1) == given) > 0.95
    assert np.mean(honest.argmax(axis=1) == given) < 0.7


def test_an_unusual_image_does_not_explode(rng):
    features, given = blobs(rng, 200, 2)
    features[7] = 1000
    probabilities = out_of_fold(features, given[None], prepare(given, np.arange(200)).folds)[0]
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
    table = controls_table("x", probabilities, given, planted).set_index("reported")
    row = table.loc["contradicted"]
    assert (row["recall"], row["precision"], row["images"]) == (1.0, 0.75, 1.5)
    assert row["precision_low"] == pytest.approx(0.5125)
    assert (row["planted"], row["draws"]) == (1, 2)
    assert table.loc["first 10% of the ranking", ["images", "precision"]].tolist() == [2, 0.5]
    assert table.loc["first 10% of the ranking", "recall"] == 1


def test_a_finder_that_reports_nothing_has_no_false_reports():
    given = np.arange(20) % 2
    changed = given.copy()
    changed[0] = 1
    probabilities = np.full((1, 20, 2), 0.5)
    probabilities[0, changed == 1, 1] = 0.51
    probabilities[0, :, 0] = 1 - probabilities[0, :, 1]
    row = controls_table("x", probabilities, given, changed[None]).iloc[0]
    assert (row["images"], row["recall"], row["precision"]) == (0, 0, 1)


# ---- a data set ---------------------------------------------------------------------------------


def test_wrong_labels_come_first_and_the_test_split_is_never_opened(tree):
    for path in (tree / "test").rglob("*.png"):
        path.write_bytes(b"no image")
    wrong = {"train/COVID/NORMAL-train-3.png", "val/NORMAL/COVID-val-1.png"}
    (tree / "train/NORMAL/NORMAL-train-3.png").rename(tree / "train/COVID/NORMAL-train-3.png")
    (tree / "val/COVID/COVID-val-1.png").rename(tree / "val/NORMAL/COVID-val-1.png")
    audit = audit_labels(opened(tree))
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


def test_the_same_seed_gives_the_same_audit(tree):
    first, second = (audit_labels(opened(tree), seed=4) for _ in range(2))
    pd.testing.assert_frame_equal(first.table, second.table)
    pd.testing.assert_frame_equal(first.controls, second.controls)


def test_a_class_that_only_the_test_split_has_takes_no_part(tree):
    dataset = opened(tree)
    classes = ("NONE", *dataset.classes)
    table = dataset.table.assign(label=dataset.table["label"] + 1)
    table.loc[table["split"] == "test", "label"] = 0
    audit = audit_labels(dataclasses.replace(dataset, classes=classes, table=table))
    assert set(audit.table["label"]) == set(audit.table["suggested"]) == set(dataset.classes)
    assert audit.findings[0].verdict == "pass"


def test_three_classes_are_audited(tmp_path, without_weights, rng):
    for level, name in enumerate(("a", "b", "c")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(40):
            pixels = (rng.integers(0, 60, (24, 24)) + 90 * level).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{name}{number}.png")
    (tmp_path / "set/a/a5.png").rename(tmp_path / "set/c/a5.png")
    audit = audit_labels(opened(tmp_path / "set"))
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


def test_real_radiographs_planted_flips_are_found_far_above_chance(
    course_archive, tmp_path, without_weights
):
    with zipfile.ZipFile(course_archive) as archive:  # the test split stays where it is
        names = [name for name in archive.namelist() if "/train/" in name or "/val/" in name]
        archive.extractall(tmp_path / "course", names)
    audit = audit_labels(opened(tmp_path / "course"))
    found = audit.controls.iloc[0]
    # Chance has a precision of 0.05.
    assert found["recall_low"] > 0.5
    assert found["precision_low"] > 0.25
    assert len(audit.table) == 2000


# ---- features of the network --------------------------------------------------------------------


def test_without_weights_nothing_is_downloaded_and_keras_stays_away(tree, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)  # an import would fail
    features, seen = image_features(opened(tree), tmp_path / "cache", lambda *_: None)
    assert features is None
    assert "not in the Keras cache" in seen
    assert not (tmp_path / "cache").exists()


def test_without_tensorflow_pixels_are_used(tree, tmp_path, monkeypatch):
    (tmp_path / "no-keras" / "models").mkdir(parents=True)
    (tmp_path / "no-keras" / "models" / network_features.WEIGHTS).touch()
    monkeypatch.setattr(network_features, "find_spec", lambda name: None)
    features, seen = image_features(opened(tree), None, lambda *_: None)
    assert features is None
    assert "TensorFlow is not installed" in seen


def test_damaged_weights_leave_the_pixels(tree, tmp_path):
    (tmp_path / "no-keras" / "models").mkdir(parents=True)
    (tmp_path / "no-keras" / "models" / network_features.WEIGHTS).write_bytes(b"no weights")
    features, seen = image_features(opened(tree), tmp_path / "cache", lambda *_: None)
    assert features is None
    assert "cannot be loaded" in seen


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


def test_kappa_and_confusion_are_those_of_the_textbook(rng):
    # Cohen 1960: observed agreement 0.7, by chance 0.5 → kappa 0.4
    given = np.repeat(["a", "a", "b", "b"], [35, 15, 15, 35])
    second = np.repeat(["a", "b", "a", "b"], [35, 15, 15, 35])
    value, low, high = kappa(given, second, np.arange(100))
    assert value == pytest.approx(0.4)
    # Large-sample standard error (Fleiss, Cohen & Everitt 1969), here sqrt(0.7 · 0.3 / 100) / 0.5
    assert (low, high) == pytest.approx((0.4 - 0.18, 0.4 + 0.18), abs=0.04)
    table = confusion_table(given, second, ("a", "b", "c"))
    assert table["images"].tolist() == [35, 15, 0, 15, 35, 0, 0, 0, 0]
    assert table["fraction"].tolist()[:2] == [0.7, 0.3]
    assert table["low"][0] == pytest.approx(0.5625, abs=0.001)  # Wilson, 35 of 50
    assert table["fraction"][6:].isna().all()


def test_groups_widen_the_interval_of_kappa():
    given = np.repeat(["a", "a", "b", "b"], [35, 15, 15, 35])
    second = np.repeat(["a", "b", "a", "b"], [35, 15, 15, 35])
    apart = kappa(given, second, np.arange(100))
    together = kappa(given, second, np.arange(100) // 5)
    assert together[2] - together[1] > 1.5 * (apart[2] - apart[1])


def reader_finding(tree, second, contradicted=0):
    dataset = opened(tree)
    against = np.arange(len(dataset.table)) < contradicted
    return compare_readers(dataset, np.array(second, object), against)[1]


def test_a_reader_that_agrees_passes_and_one_that_does_not_warns(tree):
    given = np.array(opened(tree).classes, object)[opened(tree).table["label"]]
    finding = reader_finding(tree, given)
    assert (finding.verdict, finding.value, finding.n) == ("pass", 1, 140)
    second = given.copy()
    second[:40] = "COVID"
    finding = reader_finding(tree, second)
    assert finding.verdict == "warn"
    assert finding.low < finding.value < finding.high < second_reader.AGREEMENT
    assert "100 labels agree (0.714" in finding.found
    assert "contradict 0 labels" in finding.found


def test_a_label_that_model_and_reader_contradict_warns_and_is_named(tree):
    dataset = opened(tree)
    second = np.array(dataset.classes, object)[dataset.table["label"]]
    second[0] = "COVID" if second[0] == "NORMAL" else "NORMAL"
    finding = reader_finding(tree, second, contradicted=2)
    assert finding.verdict == "warn"
    assert finding.value > 0.97
    assert finding.found.endswith(f"contradict 1 labels: {dataset.table['path'][0]}")


def test_a_reader_of_one_class_alone_has_no_kappa(tree):
    dataset = opened(tree)
    second = np.where(dataset.table["label"] == 0, "NORMAL", "")
    assert reader_finding(tree, second).verdict == "not applicable"
    assert reader_finding(tree, np.full(140, "")).verdict == "not applicable"


# ---- the command --------------------------------------------------------------------------------


def test_the_command_writes_tables_and_shows_images(tree, tmp_path, monkeypatch, capsys):
    finding = Finding("shortcuts", "the border", "pass", "")
    nothing = types.SimpleNamespace(findings=[finding], table=pd.DataFrame())
    monkeypatch.setattr(command, "audit_shortcuts", lambda *_, **__: nothing)
    for number in (3, 4, 5, 6):
        wrong = tree / f"train/NORMAL/NORMAL-train-{number}.png"
        wrong.rename(tree / f"train/COVID/<{number}>.png")
    metadata = tmp_path / "read.csv"
    metadata.write_text(
        "image,second_label\nNORMAL-val-1.png,NORMAL\nCOVID-train-1.png,COVID\n"
        + "".join(f"<{number}>.png,normal\n" for number in (3, 4, 5, 6))
    )
    out = tmp_path / "out"
    arguments = ["audit", "--data", str(tree), "--out", str(out), "--metadata", str(metadata)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert labels.CHECK in printed
    assert second_reader.CHECK in printed
    table = pd.read_csv(out / "labels.csv").set_index("path")
    assert len(table) == 120
    assert table["second_label"].tolist()[:4] == ["NORMAL"] * 4
    assert table["second_contradicts"].sum() == 4
    assert len(pd.read_csv(out / "label_controls.csv")) == 6
    assert pd.read_csv(out / "label_readers.csv")["images"].sum() == 6
    page = (out / "audit.html").read_text("utf-8")
    section = page.split("<h2>Labels</h2>")[1].split("<h2>")[0]
    assert set(table.index[:4]) == {f"train/COVID/<{number}>.png" for number in (3, 4, 5, 6)}
    assert section.count("<img") == table["contradicted"].sum() > 0
    assert table.index[0].replace("<", "&lt;").replace(">", "&gt;") in section
    assert "second reader: NORMAL" in section
    assert "cannot find" in section


def test_a_bad_second_label_is_one_line_and_status_2(tree, tmp_path, capsys):
    metadata = tmp_path / "read.csv"
    metadata.write_text("image,second_label\nNORMAL-val-1.png,FLU\n")
    assert main(["audit", "--data", str(tree), "--metadata", str(metadata)]) == 2
    assert capsys.readouterr().err.startswith("error: second_label holds FLU")
