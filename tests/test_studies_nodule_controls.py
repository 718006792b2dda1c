"""Controls, readers and heat of the nodule study, against cases that can be counted by hand."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from threadpoolctl import threadpool_limits

from covid_lab.studies.graded_metrics import graded_metrics
from covid_lab.studies.nodule_controls import (
    CANDIDATES,
    MEASURES,
    certain,
    classifier,
    cross_validated,
    out_of_fold,
    patient_bounds,
    reader_against_others,
    verdicts_of,
)
from covid_lab.studies.nodule_heat import heat_summary, heat_table


@pytest.fixture
def nodules(rng):
    """Inputs whose second column is the grade; features know it of the nodule alone."""
    grades = np.repeat(np.arange(5), [20, 20, 60, 30, 20])
    inputs = rng.normal(size=(150, MEASURES + 80))
    inputs[:, 1] = grades + 0.2 * inputs[:, 1]
    inputs[:, -1] = 30 * grades
    inputs[:, -20:-1] = inputs[:, -1:] + inputs[:, -20:-1]
    return inputs, grades, rng.permutation(150) // 2


@threadpool_limits.wrap(limits=1, user_api="blas")  # the fits are small: threads only wait
def test_controls_use_their_columns_and_keep_patients_together(nodules, monkeypatch):
    monkeypatch.setattr("covid_lab.studies.graded_metrics.RESAMPLES", 100)
    inputs, grades, patients = nodules
    found = cross_validated(inputs, grades, patients, 4, seed=0).set_index(["task", "candidate"])
    assert len(found) == 2 * len(CANDIDATES)
    assert found.loc[("binary", "diameter"), "AUC"] > 0.97
    five = found.loc["five"]
    assert five.loc["diameter", "kappa"] > 0.9
    assert five.loc["majority", "accuracy"] == pytest.approx(60 / 150)
    assert five.loc["majority", "balanced_accuracy"] == pytest.approx(0.2)
    assert abs(five.loc["network", "kappa"]) < 0.35
    assert five.loc["masked_network", "kappa"] > 0.9
    row = five.loc["outline"]
    assert row["patients_kappa_low"] <= row["kappa"] <= row["patients_kappa_high"]
    # Features that repeat within a patient tell nothing of another patient.
    inputs[:, MEASURES:] = np.random.default_rng(0).normal(size=(75, 80))[patients]
    said = out_of_fold(classifier("network", 40), inputs, grades, patients, 0)
    assert abs(graded_metrics(grades, said)["kappa"]) < 0.35


def test_unseen_classes_get_no_probability(nodules):
    inputs, grades, _ = nodules
    seen = grades != 1
    model = classifier("outline_grey_network", 40).fit(inputs[seen], grades[seen])
    said = verdicts_of(model, inputs, 5)
    assert (said.scores[:, 1] == 0).all()
    np.testing.assert_allclose(said.scores.sum(axis=1), 1)


def test_bounds_over_patients_hold_the_value(nodules):
    _, grades, patients = nodules
    predicted = np.where(np.arange(150) % 3 == 0, 2, grades)
    found = patient_bounds(grades, predicted, patients, seed=0)
    value = cohen_kappa_score(grades, predicted, weights="quadratic")
    assert found["patients_kappa_low"] < value < found["patients_kappa_high"]
    assert "patients_AUC_low" not in found


def test_each_reader_is_judged_by_the_others_and_ranks_by_distance():
    nodule, reader, others = reader_against_others(["5 5 3 4", "", "1 2", "2 3 3"])
    assert nodule.tolist() == [0, 0, 0, 0, 3, 3, 3]
    assert (reader + 1).tolist() == [5, 5, 3, 4, 2, 3, 3]
    # medians of (5 3 4), (5 3 4), (5 5 4), (5 5 3), (3 3), (2 3), (2 3)
    assert (others + 1).tolist() == [4, 4, 5, 5, 3, 3, 3]
    assert all(len(part) == 0 for part in reader_against_others(["3 3"]))
    said = certain(np.arange(5), 5)
    assert graded_metrics(np.arange(5), said)["AUC"] == 1
    assert said.scores[1].tolist() == [-1, 0, -1, -2, -3]


def test_heat_is_compared_with_area_and_with_another_nodules_map():
    masks, maps = np.zeros((6, 40, 40), bool), np.zeros((6, 4, 4))
    for number in range(6):
        corner = slice(2, 4) if number % 2 else slice(0, 2)
        maps[number, corner, corner] = 1
        masks[number] = np.kron(maps[number], np.ones((10, 10)))  # a quarter of the picture
    found = heat_table(maps, masks, 80)
    assert found["area"].to_numpy() == pytest.approx(0.25)
    assert found["inside"].min() > 0.75
    assert found["other"].max() < 0.1
    assert (found["pointing"] == 1).all()
    summary = heat_summary(found, np.arange(6) // 2, seed=0).set_index("measure")
    assert summary.loc["inside − area", "low"] > 0.4
    assert summary.loc["inside", "n"] == 6
    assert heat_table(np.ones((6, 4, 4)), masks, 80)["inside"].to_numpy() == pytest.approx(0.25)
    tiny, half = np.zeros((64, 64), bool), np.zeros((40, 50), bool)
    tiny[10, 20] = half[:20] = True
    area = heat_table(maps[:3], [tiny, half, np.zeros((9, 9), bool)], 16)["area"]
    assert 1 / 256 <= area[0] <= 4 / 256  # no nodule is lost
    assert area[1] == pytest.approx(0.5, abs=0.05)
    assert area[2] == 0
