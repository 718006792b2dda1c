import json

import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_project import tuning
from covid_project.settings import Axis
from covid_project.tuning import best_hyperparameters, best_trial, propose, search

AXES = {
    "learning_rate": Axis(values=(0.001, 0.002, 0.004), times=2, low=0.0002, high=0.1),
    "dropout": Axis(values=(0.2, 0.4), plus=0.2, low=0.0, high=0.8),
    "batch_size": Axis(values=(16, 32), times=2, low=8, high=64),
}
START = {"learning_rate": 0.002, "dropout": 0.2, "batch_size": 32}
IDENTITY = {"data": "d", "seed": 1, "versions": "v1"}
VALIDATION = (np.zeros((1, 1)), np.ones(1))  # one positive image


class Model:
    """Stands in for a network: its cross-entropy on the validation image is given."""

    def __init__(self, loss):
        self.logit = -np.log(np.expm1(loss))

    def predict_on_batch(self, batch):
        return np.full((len(batch), 1), self.logit)


class Folder:
    """Stands in for a run: models are JSON files."""

    def __init__(self, path):
        self.folder = path

    def save_model(self, stage, model, history, recipe):
        self.folder.mkdir(exist_ok=True)
        content = {"logit": model.logit, "recipe": recipe}
        (self.folder / f"{stage}.json").write_text(json.dumps(content))

    def has_model(self, stage, recipe):
        path = self.folder / f"{stage}.json"
        if not path.is_file():
            return False
        found = json.loads(path.read_text())["recipe"]
        return all(found[key] == recipe[key] for key in recipe if key != "versions")

    def kept_loss(self):
        logit = json.loads((self.folder / "t_tuned.json").read_text())["logit"]
        return np.log1p(np.exp(-logit))


def trained(loss, epochs=5):
    history = pd.DataFrame({"epoch": range(1, epochs + 1), "val_loss": np.ones(epochs)})
    history.loc[2, "val_loss"] = loss
    history.attrs["initial_model"] = "f"
    return Model(loss), history


def bowl(rate, dropout, batch):
    """Objective with its minimum at the given values."""

    def loss(point):
        return (
            0.1
            + 0.1 * np.log2(point["learning_rate"] / rate) ** 2
            + (3 * (point["dropout"] - dropout)) ** 2
            + 0.1 * np.log2(point["batch_size"] / batch) ** 2
        )

    return lambda point: trained(loss(point))


def run(path, objective, strategy="one at a time", identity=IDENTITY):
    folder = Folder(path.parent / path.stem)
    folder.folder.mkdir(exist_ok=True)
    return search(
        folder, "t", AXES, START, objective, VALIDATION, strategy=strategy, identity=identity
    )


def table_of(path):
    return path.parent / path.stem / "tuning_t.csv"


@pytest.mark.parametrize("strategy", ["grid", "one at a time"])
@pytest.mark.parametrize("target", [(0.032, 0.8, 16), (0.0005, 0.0, 8)])
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
def test_a_search_goes_on_the_same_from_each_of_its_trials(tmp_path, strategy):
    # Once, a grid that was cut off between two extensions of one round chose others afterwards.
    objective = bowl(0.016, 0.6, 32)
    whole = run(tmp_path / "whole.csv", objective, strategy)
    for finished in range(1, len(whole) + 1, 2):
        path, calls = tmp_path / f"{finished}.csv", []
        table_of(path).parent.mkdir()
        whole.iloc[:finished].to_csv(table_of(path), index=False)
        resumed = run(
            path, lambda point, calls=calls: calls.append(1) or objective(point), strategy
        )
        pd.testing.assert_frame_equal(
            resumed.drop(columns="seconds"), whole.drop(columns="seconds"), check_dtype=False
        )
        again = 1  # the best model so far is missing here
        assert len(calls) <= len(whole) - finished + again  # none lost, none repeated


def test_trials_of_another_search_are_set_aside_whole(tmp_path, capsys):
    path = tmp_path / "t.csv"
    before = run(path, bowl(0.002, 0.2, 32))
    run(path, bowl(0.004, 0.4, 16), identity={**IDENTITY, "data": "other"})
    aside = list(table_of(path).parent.glob("tuning_t-*.csv"))
    pd.testing.assert_frame_equal(pd.read_csv(aside[0]), before, check_exact=False)
    assert "data d" in capsys.readouterr().out
    assert set(pd.read_csv(table_of(path))["data"]) == {"other"}


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


def test_a_row_has_the_metrics_of_the_model_and_its_best_epoch(tmp_path):
    trials = run(tmp_path / "t.csv", bowl(0.002, 0.2, 32))
    best = best_trial(trials)
    assert best["best_epoch"] == 3
    assert best["val_loss"] == pytest.approx(0.1)
    assert best["val_accuracy"] == 1.0
    assert np.isnan(best["val_AUC"])  # a single class
    assert best["initial_model"] == "f"


@pytest.mark.parametrize("strategy", ["grid", "one at a time"])
def test_the_model_of_the_best_trial_is_kept(tmp_path, strategy):
    calls, objective = [], bowl(0.008, 0.4, 16)
    trials = run(tmp_path / "t.csv", lambda p: calls.append(p) or objective(p), strategy)
    assert Folder(tmp_path / "t").kept_loss() == pytest.approx(trials["val_loss"].min())
    assert len(calls) == len(trials)  # not trained a second time


def test_a_missing_model_of_the_best_trial_is_trained_again(tmp_path, capsys):
    objective = bowl(0.008, 0.4, 16)
    trials = run(tmp_path / "t.csv", objective)
    (tmp_path / "t" / "t_tuned.json").unlink()
    calls = []
    run(tmp_path / "t.csv", lambda p: calls.append(p) or objective(p))
    assert calls == [best_hyperparameters(trials, AXES)]
    assert "trained again" in capsys.readouterr().out
    assert Folder(tmp_path / "t").kept_loss() == pytest.approx(0.1)


def test_trials_that_finish_in_any_order_give_the_same_table_and_model(tmp_path, monkeypatch):
    objective = bowl(0.008, 0.4, 16)
    expected = run(tmp_path / "in_turn.csv", objective, "grid")

    def backwards(function, points):
        for position in reversed(range(len(points))):
            yield position, function(points[position])

    monkeypatch.setattr(tuning, "run_points", backwards)
    found = run(tmp_path / "backwards.csv", objective, "grid")
    pd.testing.assert_frame_equal(found.drop(columns="seconds"), expected.drop(columns="seconds"))
    assert Folder(tmp_path / "backwards").kept_loss() == pytest.approx(0.1)


@hypothesis.settings(max_examples=20)
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
        losses = [float(np.log1p(np.exp(-objective(point)[0].logit))) for point in points]
        rows = [{**p, "val_loss": loss} for p, loss in zip(points, losses, strict=True)]
        trials = pd.DataFrame([*trials.to_dict("records"), *rows])
    pytest.fail("more than a hundred rounds")
