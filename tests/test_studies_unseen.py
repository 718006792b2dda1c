import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.special import expit, logit
from sklearn.metrics import accuracy_score, brier_score_loss, root_mean_squared_error

from covid_lab.studies.unseen import (
    label_of,
    labels_of,
    named_label,
    prediction_titles,
    probability_errors,
    read_unseen,
)
from covid_project.data import DataError

LESION = ("nolesion", "lesion")

# What the published notebook printed for its ten unseen images, and for which file: the name, and
# whether its column 0, the probability of the class without lesion, was at least one half.
PUBLISHED = {
    "000002_01_01_157_lesion.jpg": 0,
    "000002_01_01_156_lesion.jpg": 0,
    "000002_02_01_046_lesion.jpg": 0,
    "000002_03_01_037_lesion.jpg": 0,
    "image_009_nolesion.jpg": 1,
    "image_003_nolesion.jpg": 1,
    "image_011_nolesion.jpg": 1,
    "image_005_nolesion.jpg": 1,
    "000002_02_01_045_lesion.jpg": 0,
    "image_001_nolesion.jpg": 0,
}


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("image_001_nolesion.jpg", 0),
        ("000002_01_01_157_lesion.jpg", 1),
        ("unseen/NoLesion.png", 0),
        ("unseen/LESION-7.png", 1),
        ("lesion/image_nolesion.png", 1),  # the folder comes first
        ("a/NoLesion/7.png", 0),
        ("no-lesion 3.png", 0),  # the longest name counts
    ],
)
def test_nolesion_is_not_lesion(path, label):
    assert label_of(path, LESION) == label
    # The order of the classes decides the number, not the name.
    assert label_of(path, LESION[::-1]) == 1 - label


@pytest.mark.parametrize(
    "path", ["scan.jpg", "lesions.jpg", "lesion_nolesion.jpg", "lesion/a/7.jpg", "mylesion.png"]
)
def test_names_that_say_nothing_are_refused(path):
    with pytest.raises(DataError, match=r"nolesion, lesion.*Rename"):
        label_of(path, LESION)


def test_noncovid_is_not_covid():
    classes = ("CT_NonCOVID", "CT_COVID")
    assert label_of("covid_ct/CT_NonCOVID/1.jpg", classes) == 0
    assert label_of("covid_ct/CT_COVID/1.jpg", classes) == 1
    assert label_of("x/ct-covid_7.png", classes) == 1


def test_all_faults_at_once():
    with pytest.raises(DataError, match=r"(?s)one\.png.*two\.png"):
        labels_of(["one.png", "lesion.png", "two.png"], LESION)


def test_the_published_ten_images_were_nine_right():
    """Their substring calls every file a lesion and their column is the other class's: 4 of 10."""
    without = np.array(list(PUBLISHED.values()))
    by_substring = np.array(["lesion" in name for name in PUBLISHED])
    assert (without == by_substring).mean() == 0.4
    labels = labels_of(PUBLISHED, LESION)
    assert ((1 - without) == labels).mean() == 0.9


def test_errors_are_those_of_scikit_learn(rng):
    labels = rng.integers(0, 2, 200)
    scores = rng.normal(size=200) + labels
    table = probability_errors(labels, scores).set_index("metric")
    probability = expit(scores)
    assert table.loc["accuracy", "value"] == accuracy_score(labels, scores > 0)
    assert table.loc["Brier", "value"] == pytest.approx(brier_score_loss(labels, probability))
    rmse = root_mean_squared_error(labels, probability)
    assert table.loc["RMSE", "value"] == pytest.approx(rmse)
    assert (table["low"] < table["value"]).all()
    assert (table["value"] < table["high"]).all()


def test_brier_interval_is_as_wide_as_its_standard_error(rng):
    labels = np.repeat([0, 1], 500)
    scores = rng.normal(size=1000)
    row = probability_errors(labels, scores).set_index("metric").loc["Brier"]
    squared = (expit(scores) - labels) ** 2
    error = np.sqrt(sum(squared[labels == k].var() * 500 for k in (0, 1))) / 1000
    assert (row.high - row.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.08)


def test_one_class_alone():
    table = probability_errors(np.zeros(4), logit([0.5, 0.25, 0.1, 0.9])).set_index("metric")
    assert table.loc["accuracy", "value"] == 0.75
    expected = (0.25 + 0.0625 + 0.01 + 0.81) / 4
    assert table.loc["Brier", "value"] == pytest.approx(expected)


def test_titles_say_name_label_and_prediction():
    rows = pd.DataFrame(
        {
            "path": ["a/3.png", "b/a_very_long_name_of_a_slice_17.png", "c/x.png"],
            "label": [1, 0, None],
            "score": [np.log(4), np.log(4), -np.log(9)],
        }
    )
    first, second, third = prediction_titles(rows, LESION)
    assert first == "3.png\nlabel: lesion\npredicted: lesion\np = 0.80: correct"
    assert second == "a_very_long…lice_17.png\nlabel: nolesion\npredicted: lesion\np = 0.80: WRONG"
    assert third == "x.png\nlabel: not in its path\npredicted: nolesion\np = 0.90"


def test_a_users_folder_is_read_whether_or_not_it_names_the_classes(tmp_path):
    for number, name in enumerate(("lesion/a.png", "nolesion/b.png", "nolesion/c_lesion.png")):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (80, 70), 40 * number).save(path)
    found, images = read_unseen(tmp_path / "mine", LESION, 64, equalize=False)
    assert found["path"].tolist() == ["lesion/a.png", "nolesion/b.png", "nolesion/c_lesion.png"]
    assert found["label"].tolist() == [1, 0, 0]
    assert images.shape == (3, 64, 64, 1)
    assert images[:, 0, 0, 0].tolist() == [0, 40, 80]


def test_a_users_images_without_any_class_have_no_label(tmp_path):
    Image.new("L", (80, 70), 9).save(tmp_path / "scan 1.png")
    Image.new("L", (80, 70), 9).save(tmp_path / "scan 2 Lesion.png")
    found, _ = read_unseen(tmp_path, LESION, 64, equalize=True)
    assert found["label"].isna().tolist() == [True, False]
    assert found["label"][1] == 1
    (tmp_path / "empty").mkdir()
    assert named_label("x/lesion_and_nolesion.png", LESION) is None
    with pytest.raises(DataError, match="no images in"):
        read_unseen(tmp_path / "empty", LESION, 64, equalize=True)
