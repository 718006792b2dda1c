import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_project.settings import Axis
from covid_project.tuning import (
    best_hyperparameters,
    best_trial,
    measure_each,
    outcome,
    propose,
    search,
)

AXES = {
    "learning_rate": Axis(values=(0.001, 0.002, 0.004), times=2, low=0.0002, high=0.1),
    "dropout": Axis(values=(0.2, 0.4), plus=0.2, low=0.0, high=0.8),
    "batch_size": Axis(values=(16, 32), times=2, low=8, high=64),
}
START = {"learning_rate": 0.002, "dropout": 0.2, "batch_size": 32}
IDENTITY = {"data": "d", "seed": 1, "versions": "v1"}


def bowl(rate, dropout, batch):
    """Objective with its minimum at the given values."""

    def run(point):
        return {
            "best_epoch": 3,
            "val_loss": np.log2(point["learning_rate"] / rate) ** 2
            + (10 * (point["dropout"] - dropout)) ** 2
            + np.log2(point["batch_size"] / batch) ** 2,
        }

    return run


def run(path, objective, strategy="one at a time", identity=IDENTITY):
    return search(AXES, START, objective, path, strategy=strategy, identity=identity, title="test")


@pytest.mark.parametrize("strategy", ["grid", "one at a time"])
@pytest.mark.parametrize(
    "target", [(0.002, 0.2, 32), (0.032, 0.8, 16), (0.0005, 0.4, 64), (0.001, 0.0, 8)]
)
def test_the_range_is_extended_until_the_best_lies_inside_or_at_the_limit(
    tmp_path, strategy, target
):
    trials = run(tmp_path / "t.csv", bowl(*target), strategy)
    best = best_hyperparameters(trials, AXES)
    assert best == dict(zip(AXES, target, strict=True))
    for name, axis in AXES.items():
        inside = trials[name].min() < best[name] < trials[name].max()
        assert inside or best[name] in (axis.low, axis.high)
    planned = trials[[*AXES]].apply(
        lambda row: all(row[name] in axis.values for name, axis in AXES.items()), axis=1
    )
    assert (trials["extension"] == ~planned).all()
    assert not trials.duplicated(subset=[*AXES]).any()


def test_a_grid_holds_every_combination(tmp_path):
    trials = run(tmp_path / "t.csv", bowl(0.002, 0.3, 24), "grid")
    assert (~trials["extension"]).sum() == 3 * 2 * 2


def test_extensions_stop_at_the_limit(tmp_path):
    trials = run(tmp_path / "t.csv", bowl(1e9, 0.2, 32))
    assert trials["learning_rate"].max() == pytest.approx(0.064)  # the next, 0.128, is beyond 0.1


def test_counts_stay_integers_and_rates_are_not_smeared_by_rounding(tmp_path):
    seen = []
    objective = bowl(0.032, 0.8, 64)
    run(tmp_path / "t.csv", lambda point: seen.append(point) or objective(point))
    assert all(isinstance(point["batch_size"], int) for point in seen)
    assert {point["dropout"] for point in seen} <= {0.0, 0.2, 0.4, 0.6, 0.8}


@pytest.mark.parametrize("strategy", ["grid", "one at a time"])
@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_a_search_cut_off_anywhere_goes_on_and_ends_the_same(tmp_path, strategy, stop_after):
    whole = run(tmp_path / "whole.csv", bowl(0.008, 0.4, 16), strategy)
    calls = []

    def dying(point):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(point)
        return bowl(0.008, 0.4, 16)(point)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut.csv", dying, strategy)
    stop_after = -1  # from now on it lives
    cut = run(tmp_path / "cut.csv", dying, strategy)
    pd.testing.assert_frame_equal(cut.drop(columns="seconds"), whole.drop(columns="seconds"))
    assert len(calls) == len(whole)  # none lost, none repeated


@pytest.mark.parametrize("strategy", ["grid", "one at a time"])
def test_a_search_goes_on_the_same_from_each_of_its_trials(tmp_path, strategy):
    # Once, a grid that was cut off between two extensions of one round chose others afterwards.
    objective = bowl(0.016, 0.6, 32)
    whole = run(tmp_path / "whole.csv", objective, strategy)
    for finished in range(1, len(whole)):
        path = tmp_path / f"{finished}.csv"
        whole.iloc[:finished].to_csv(path, index=False)
        resumed = run(path, objective, strategy)
        pd.testing.assert_frame_equal(
            resumed.drop(columns="seconds"), whole.drop(columns="seconds"), check_dtype=False
        )


def test_a_finished_search_runs_nothing(tmp_path):
    trials = run(tmp_path / "t.csv", bowl(0.002, 0.2, 32))
    again = run(tmp_path / "t.csv", lambda point: pytest.fail("ran a trial"))
    pd.testing.assert_frame_equal(trials, again)


def test_trials_of_another_search_are_set_aside_whole(tmp_path, capsys):
    path = tmp_path / "t.csv"
    before = run(path, bowl(0.002, 0.2, 32))
    run(path, bowl(0.004, 0.4, 16), identity={**IDENTITY, "data": "other"})
    aside = [other for other in tmp_path.glob("t-*.csv")]
    pd.testing.assert_frame_equal(pd.read_csv(aside[0]), before, check_exact=False)
    assert "data d" in capsys.readouterr().out
    assert set(pd.read_csv(path)["data"]) == {"other"}


def test_an_update_of_packages_does_not_throw_trials_away(tmp_path):
    trials = run(tmp_path / "t.csv", bowl(0.002, 0.2, 32))
    again = run(
        tmp_path / "t.csv",
        lambda point: pytest.fail("ran a trial"),
        identity={**IDENTITY, "versions": "v2"},
    )
    assert len(again) == len(trials)


def test_a_trial_whose_loss_is_not_finite_is_a_row_and_never_the_best(tmp_path):
    def objective(point):
        if point["learning_rate"] > 0.003:
            raise FloatingPointError("the loss is no longer finite")
        return bowl(0.064, 0.2, 32)(point)

    trials = run(tmp_path / "t.csv", objective)
    assert trials["val_loss"].isna().sum() >= 1
    assert best_trial(trials)["learning_rate"] == 0.002


def test_while_every_trial_fails_smaller_values_are_tried(tmp_path):
    def objective(point):
        if point["learning_rate"] > 0.0004:
            raise FloatingPointError("the loss is no longer finite")
        return bowl(0.0002, 0.2, 32)(point)

    assert best_trial(run(tmp_path / "t.csv", objective))["learning_rate"] == 0.00025


def test_when_no_trial_is_finite_it_says_so(tmp_path):
    def objective(point):
        raise FloatingPointError("not finite")

    trials = run(tmp_path / "t.csv", objective)
    assert trials["learning_rate"].min() == 0.00025  # the last one inside the limits
    with pytest.raises(ValueError, match="lower the learning rates"):
        best_trial(trials)


def test_the_outcome_of_a_trial_has_the_metrics_at_its_best_epoch():
    row = outcome(4, 0.3, np.array([0, 0, 1, 1]), np.array([-1.0, 1.0, 2.0, 3.0]))
    assert row["best_epoch"] == 4
    assert row["val_loss"] == 0.3
    assert row["val_accuracy"] == 0.75
    assert row["val_AUC"] == 1.0


@given(
    target=st.tuples(st.floats(0.0001, 0.2), st.floats(0, 1), st.floats(4, 128)),
    strategy=st.sampled_from(["grid", "one at a time"]),
)
def test_every_search_ends(target, strategy):
    objective, trials = bowl(*target), pd.DataFrame(columns=[*AXES, "val_loss"])
    for _ in range(100):
        points = propose(AXES, START, trials, strategy)
        if not points:
            return
        rows = [{**point, **objective(point)} for point in points]
        trials = pd.DataFrame([*trials.to_dict("records"), *rows])
    pytest.fail("more than a hundred rounds")


def test_named_cases_are_measured_once_each_and_resumed(tmp_path):
    calls = []

    def run(value):
        calls.append(value)
        if value == 3:
            raise FloatingPointError("the loss is no longer finite")
        return {"doubled": 2 * value}

    path, identity = tmp_path / "cases.csv", {"data": "x"}
    measure_each({"one": 1, "three": 3}, run, path, identity=identity, title="cases")
    table = measure_each(
        {"two": 2, "one": 1, "three": 3}, run, path, identity=identity, title="cases"
    )
    assert calls == [1, 3, 2]
    assert table["case"].tolist() == ["two", "one", "three"]
    assert table["doubled"].tolist()[:2] == [4, 2]
    assert np.isnan(table["doubled"][2])
    assert table["data"].tolist() == ["x"] * 3
