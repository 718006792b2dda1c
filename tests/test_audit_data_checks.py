"""Planted copies, patients and faults, and what the real sets are known to hold."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from image_files import as_folder, encoded
from PIL import Image

from covid_lab.audit.data_checks import AREA, RULES, audit_data, named_pairs
from covid_lab.audit.groups import groups_across_splits
from covid_lab.datasets import open_dataset
from covid_lab.phantoms import draw_radiograph
from covid_project.data import DataError
from covid_project.evaluation import wilson_interval

SIDE = 64


@pytest.fixture(scope="module")
def radiographs():
    return [draw_radiograph(np.random.default_rng(seed), SIDE).image for seed in range(24)]


@pytest.fixture
def clean(radiographs):
    """Names and contents of a set without a fault: 8, 2, 2 images per class."""
    names = [
        f"{split}/{label}/{label}-{number}.png"
        for split, n in {"train": 8, "val": 2, "test": 2}.items()
        for label in ("NORMAL", "COVID")
        for number in range(n)
    ]
    return {name: encoded(image) for name, image in zip(names, radiographs, strict=True)}


def audited(files, folder, **how):
    return audit_data(open_dataset(as_folder(files, folder), classes=None, as_found=True), **how)


def by_check(audit):
    return {finding.check: finding for finding in audit.findings}


def gravest(audit, *verdicts):
    return {finding.check for finding in audit.findings if finding.verdict in verdicts}


def pixels_of(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def mirrored(content):
    return encoded(pixels_of(content)[:, ::-1])


def brighter(content):
    return encoded(np.clip(0.9 * pixels_of(content) + 20, 0, 255).astype(np.uint8))


def test_a_clean_set_passes_everything_that_applies(clean, tmp_path):
    audit = audited(clean, tmp_path)
    found = by_check(audit)
    assert len(found) == len(RULES) + 1
    assert {finding.area for finding in audit.findings} == {AREA}
    assert not gravest(audit, "fail", "warn")
    assert gravest(audit, "not applicable") == {"no patient in two splits", "copies have one label"}
    assert named_pairs(audit).empty


def test_an_unreadable_file_is_a_finding_and_the_rest_is_audited(clean, tmp_path):
    audit = audited(clean | {"train/COVID/bad.png": b"x", "test/COVID/no.png": b""}, tmp_path / "a")
    found = by_check(audit)["every image can be read"]
    assert (found.verdict, found.n) == ("fail", 26)
    assert found.value == pytest.approx(2 / 26)
    assert "test/COVID/no.png (empty file" in found.found
    assert set(audit.unreadable) == {"train/COVID/bad.png", "test/COVID/no.png"}
    assert gravest(audit, "fail") == {"every image can be read"}
    assert len(audit.dataset.table) == 24
    audit = audited({"a/1.png": b"x", "b/2.png": b"y"}, tmp_path / "alone")
    assert [finding.verdict for finding in audit.findings] == ["fail"]


def test_an_image_encoded_anew_in_another_split_is_an_exact_copy(clean, tmp_path):
    again = encoded(pixels_of(clean["train/COVID/COVID-1.png"]), "BMP")
    audit = audited(clean | {"test/COVID/again.bmp": again}, tmp_path)
    found = by_check(audit)["no image twice, in two splits"]
    assert (found.verdict, found.n) == ("fail", 9)
    assert found.value == pytest.approx(1 / 9)
    assert (found.low, found.high) == pytest.approx(wilson_interval(1, 9))
    assert "test/COVID/again.bmp" in found.found
    assert gravest(audit, "fail") == {"no image twice, in two splits"}
    pair = named_pairs(audit).iloc[0]
    assert pair["path_first"] == "train/COVID/COVID-1.png"
    assert (pair["split_first"], pair["split_second"], pair["kind"]) == ("train", "test", "exact")


@pytest.mark.parametrize("change", [mirrored, brighter])
def test_near_copies_in_two_splits_fail_and_in_one_warn(clean, tmp_path, change):
    audit = audited(
        clean
        | {
            "val/COVID/near.png": change(clean["train/COVID/COVID-1.png"]),
            "train/NORMAL/near.png": change(clean["train/NORMAL/NORMAL-3.png"]),
        },
        tmp_path,
    )
    assert gravest(audit, "fail") == {"no near copy in another split"}
    assert gravest(audit, "warn") == {"no near copy in a split"}
    across = by_check(audit)["no near copy in another split"]
    assert across.value == pytest.approx(1 / 9)
    assert "val/COVID/near.png" in across.found
    pairs = named_pairs(audit)
    assert pairs["path_second"].tolist() == ["val/COVID/near.png", "train/NORMAL/near.png"]


def test_a_chain_of_copies_reaches_into_the_test_split(clean, tmp_path):
    # The val image equals the train image and the test image resembles it: all three are one.
    first = clean["train/COVID/COVID-0.png"]
    files = clean | {"val/COVID/same.png": first, "test/COVID/near.png": brighter(first)}
    found = by_check(audited(files, tmp_path))
    assert found["no image twice, in two splits"].value == pytest.approx(1 / 10)
    assert found["no near copy in another split"].value == pytest.approx(1 / 10)


def test_copies_with_two_labels_fail_where_exact_and_warn_where_near(clean, tmp_path):
    first = clean["train/COVID/COVID-0.png"]
    exact = by_check(audited(clean | {"train/NORMAL/x.png": first}, tmp_path / "exact"))
    assert exact["copies have one label"].verdict == "fail"
    assert "train/NORMAL/x.png = train/COVID/COVID-0.png" in exact["copies have one label"].found
    near = by_check(audited(clean | {"train/NORMAL/x.png": mirrored(first)}, tmp_path / "near"))
    assert near["copies have one label"].verdict == "warn"
    same = by_check(audited(clean | {"train/COVID/x.png": first}, tmp_path / "same"))
    assert same["copies have one label"].verdict == "pass"


def test_patients_are_known_from_names_a_pattern_or_a_table(clean, tmp_path):
    check = "no patient in two splits"
    named = {
        name.replace("train/COVID/COVID-", "train/COVID/person1_").replace(
            "test/COVID/COVID-", "test/COVID/person1_"
        ): content
        for name, content in clean.items()
    }
    found = by_check(audited(named, tmp_path / "names"))[check]
    assert found.verdict == "fail"
    assert found.value == pytest.approx(2 / 8)
    assert "person1" in found.found
    ages = audited(clean, tmp_path / "pattern", pattern=r"-(\d+)\.png")
    assert by_check(ages)[check].value == 1  # numbers 0 and 1 are in every split
    assert set(ages.dataset.table["group"]) == set("01234567")
    table = pd.DataFrame({"image": list(clean), "patient": map(str, range(24))})
    assert (
        by_check(audited(clean, tmp_path / "table", metadata=table))[check].verdict
        == "not applicable"
    )
    table.loc[table["image"].str.contains("NORMAL-0"), "patient"] = "99"
    assert by_check(audited(clean, tmp_path / "shared", metadata=table))[check].value == 2 / 8
    with pytest.raises(DataError, match="a patient of only 5 of 24 images"):
        audited(clean, tmp_path / "gap", metadata=table.iloc[:5])


def test_patients_within_one_split_pass(clean, tmp_path):
    said = []
    files = {name.replace("train/COVID/", "train/COVID/person2_"): c for name, c in clean.items()}
    audit = audited(files, tmp_path, progress=lambda *state: said.append(state))
    found = by_check(audit)["no patient in two splits"]
    assert (found.verdict, found.value) == ("pass", 0)
    assert "patients with several images: 1, of them in two splits: 0" in found.found
    assert ("images read", 24, 24) in said
    assert {state[0] for state in said} == {"images read", "pairs compared"}
    assert all(done <= total for _, done, total in said)


def test_data_without_a_split_have_nothing_across_it_and_warn_of_copies(radiographs, tmp_path):
    files = {f"{'ab'[k % 2]}/{k}.png": encoded(image) for k, image in enumerate(radiographs)}
    audit = audited(files | {"a/copy.png": files["a/0.png"]}, tmp_path)
    found = by_check(audit)
    for check in (
        "no image twice, in two splits",
        "no near copy in another split",
        "classes are alike in all splits",
    ):
        assert found[check].verdict == "not applicable"
    assert "no split 1" in found["no image twice in a split"].found
    assert gravest(audit, "warn") == {"no image twice in a split"}


def test_imbalance_of_classes_and_of_splits_is_told(radiographs, tmp_path):
    files = {
        f"{split}/{name}/{k}.png": encoded(radiographs[k])
        for k, (split, name) in enumerate(
            [("train", "a")] * 14 + [("train", "b")] * 2 + [("test", "a")] * 2 + [("test", "b")] * 6
        )
    }
    found = by_check(audited(files, tmp_path))
    assert found["classes are alike in all splits"].verdict == "warn"
    assert "train 0.125, test 0.750" in found["classes are alike in all splits"].found
    # For 2 by 2 tables V is the correlation of the two columns.
    split, label = np.repeat([0, 1], [16, 8]), np.repeat([0, 1, 0, 1], [14, 2, 2, 6])
    correlation = np.corrcoef(split, label)[0, 1]
    assert found["classes are alike in all splits"].value == pytest.approx(abs(correlation))
    assert found["classes are balanced"].value == pytest.approx(8 / 24)
    assert found["classes are balanced"].verdict == "warn"  # V = (16 - 8) / 24 = 0.33


def test_what_the_courses_set_holds(course_archive):
    audit = audit_data(open_dataset(course_archive, classes=None, as_found=True))
    found = by_check(audit)
    assert found["no image twice, in two splits"].verdict == "pass"
    # Looked at side by side: eleven held-out images have a copy in training, and two probably
    # another radiograph of their patient.
    across = found["no near copy in another split"]
    assert across.value == pytest.approx(13 / 600)
    pairs = named_pairs(audit)
    copied = pairs.loc[pairs["split_first"] != pairs["split_second"], "path_second"]
    assert sorted(copied.str.extract(r"(\w+)/\w+/(\w+-\d+)").agg(" ".join, axis=1)) == [
        *("test COVID-1120", "test COVID-1233", "test COVID-255", "test COVID-688"),
        *("val COVID-1197", "val COVID-1209", "val COVID-1356", "val COVID-1535", "val COVID-53"),
        *("val COVID-579", "val COVID-605", "val Normal-2820", "val Normal-3352"),
    ]
    assert gravest(audit, "fail") == {"no near copy in another split"}


@pytest.fixture(scope="session")
def paediatric_archive():
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / "chest_xray.zip"
    if not path.is_file():
        pytest.skip("chest_xray.zip is not at hand (../shared/data)")
    return path


def test_person_numbers_of_the_paediatric_set_start_anew_for_each_kind(paediatric_archive):
    table = open_dataset(paediatric_archive, classes=None, as_found=True).table
    names = table[table["path"].str.contains("person")]
    parts = names["path"].str.extract(r"(person\d+)_(bacteria|virus)_")
    number, kind = parts[0], parts[0] + "_" + parts[1]
    # Read as patients, 170 numbers lie in both splits, and none of them with one kind in both,
    # which no patient numbered once could do: with their kind, the numbers respect the split.
    for groups, shared in ((number, 170), (kind, 0)):
        assert len(groups_across_splits(names.assign(group=groups))) == shared
    assert (names["group"] == kind).all()
