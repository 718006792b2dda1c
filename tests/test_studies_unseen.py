import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.special import expit, logit
from sklearn.metrics import accuracy_score, brier_score_loss, root_mean_squared_error

from covid_lab.studies.unseen import labels_of, prediction_titles, probability_errors, read_unseen
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
    ("path", "label", "classes"),
    [
        ("image_001_nolesion.jpg", 0, LESION),
        ("000002_01_01_157_lesion.jpg", 1, LESION),
        ("unseen/NoLesion.png", 0, LESION),
        ("unseen/LESION-7.png", 1, LESION),
        ("lesion/image_nolesion.png", 1, LESION),  # the folder comes first
        ("a/NoLesion/7.png", 0, LESION),
        ("no-lesion 3.png", 0, LESION),  # the longest name counts
        ("covid_ct/CT_NonCOVID/1.jpg", 0, ("CT_NonCOVID", "CT_COVID")),
        ("x/ct-covid_7.png", 1, ("CT_NonCOVID", "CT_COVID")),
    ],
)
def test_nolesion_is_not_lesion(path, label, classes):
    assert labels_of([path], classes) == [label]
    # The order of the classes decides the number, not the name.
    assert labels_of([path], classes[::-1]) == [1 - label]


def test_names_that_say_nothing_are_refused_all_at_once():
    nothing = ["scan.jpg", "lesions.jpg", "lesion_nolesion.jpg", "lesion/a/7.jpg", "mylesion.png"]
    with pytest.raises(DataError, match=r"nolesion, lesion.*Rename") as caught:
        labels_of([*nothing, "lesion.png"], LESION)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == nothing
    with pytest.raises(DataError, match="do not differ"):
        labels_of(["a.png"], ("no lesion", "no-lesion"))


def test_the_published_ten_images_were_nine_right():
    """Their substring calls every file a lesion and their column is the other class's: 4 of 10."""
    without = np.array(list(PUBLISHED.values()))
    by_substring = np.array(["lesion" in name for name in PUBLISHED])
    assert (without == by_substring).mean() == 0.4
    assert ((1 - without) == labels_of(PUBLISHED, LESION)).mean() == 0.9


def test_errors_are_those_of_scikit_learn(rng):
    labels = rng.integers(0, 2, 1000)
    scores = rng.normal(size=1000) + labels
    table = probability_errors(labels, scores).set_index("metric")
    probability = expit(scores)
    wanted = {
        "accuracy": accuracy_score(labels, scores > 0),
        "Brier": brier_score_loss(labels, probability),
        "RMSE": root_mean_squared_error(labels, probability),
    }
    assert table["value"].to_dict() == pytest.approx(wanted)
    assert (table["low"] < table["value"]).all()
    assert (table["value"] < table["high"]).all()
    squared = (probability - labels) ** 2
    error = np.sqrt(sum(squared[labels == k].var() * (labels == k).sum() for k in (0, 1))) / 1000
    row = table.loc["Brier"]
    assert (row.high - row.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.08)
    alone = probability_errors(np.zeros(4), logit([0.5, 0.25, 0.1, 0.9]))["value"]
    assert alone.tolist()[:2] == pytest.approx([0.75, (0.25 + 0.0625 + 0.01 + 0.81) / 4])


def test_titles_say_name_label_and_prediction():
    rows = pd.DataFrame(
        {"path": ["a/3.png", "b/a_very_long_name_of_a_slice_17.png", "c/x.png"],
         "label": [1, 0, None], "score": [np.log(4), np.log(4), -np.log(9)]}
    )  # fmt: skip
    first, second, third = prediction_titles(rows, LESION)
    assert first == "3.png\nlabel: lesion\npredicted: lesion\np = 0.80: correct"
    assert second == "a_very_long…lice_17.png\nlabel: nolesion\npredicted: lesion\np = 0.80: WRONG"
    assert third == "x.png\nlabel: not in its path\npredicted: nolesion\np = 0.90"


def test_a_users_folder_is_read_whether_or_not_it_names_the_classes(tmp_path):
    names = ["lesion/a.png", "nolesion/b.png", "nolesion/c_lesion.png"]
    for number, name in enumerate(["mine/" + name for name in names] + ["1.png", "2 Lesion.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (80, 70), 40 * number).save(tmp_path / name)
    found, images = read_unseen(tmp_path / "mine", LESION, 64, equalize=False)
    assert found["path"].tolist() == names
    assert found["label"].tolist() == [1, 0, 0]
    assert images.shape == (3, 64, 64, 1)
    assert images[:, 0, 0, 0].tolist() == [0, 40, 80]
    found, _ = read_unseen(tmp_path / "1.png", LESION, 64, equalize=True)
    assert found["label"].isna().all()
    found, _ = read_unseen(tmp_path / "2 Lesion.png", LESION, 64, equalize=True)
    assert found["label"].tolist() == [1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in"):
        read_unseen(tmp_path / "empty", LESION, 64, equalize=True)
