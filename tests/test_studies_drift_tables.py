"""The committed tables of the robustness study, against those that its tables per image give."""

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED
from scipy.stats import spearmanr

from covid_lab.studies import drift_correlations, drift_tables
from covid_lab.studies import drift_statistics as statistics
from covid_project.settings import PROJECT

RESULTS = PROJECT / "results" / "robustness"


@pytest.fixture(scope="module", params=["breast", "pneumonia"])
def finished(request):
    """Folder and grids of a committed run."""
    path = SHARED / "data" / f"{request.param}mnist.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not at hand (../shared/data)")
    with np.load(path) as file:
        labels = {part: file[f"{part}_labels"].ravel() for part in ("val", "test")}
    folder = RESULTS / request.param
    return folder, drift_tables.read_grids(folder, labels)


def test_the_committed_correlations_are_those_of_scipy(finished):
    folder, grids = finished
    table = pd.read_csv(folder / "correlations.csv")
    keys = ["training", "measure", "layer", "kind", "constant"]
    table = table.set_index(keys)["value"].sort_index()
    losses = pd.read_csv(folder / "auc_losses.csv").set_index("training")
    for training in drift_tables.TRAININGS:
        errors, drifts = grids[training, "test"]
        last = drifts[drifts["layer"] == "block4_2"]
        means = last.groupby(["perturbation", "severity"])["rmse"].mean()
        sets = losses.loc[training].join(means, on=["perturbation", "severity"])
        values = table[training, "rmse", "block4_2", "sets"]
        assert values["nothing"] == pytest.approx(spearmanr(sets["rmse"], sets["delta"])[0])
        within = [spearmanr(rows["rmse"], rows["delta"])[0] for _, rows in sets.groupby("severity")]
        assert values["severity"] == pytest.approx(np.mean(within))
        keys = ["seed", "perturbation", "severity", "image"]
        rows = last.merge(errors, on=keys).dropna(subset="rmse")
        within = [
            spearmanr(cell["rmse"], cell["score_change"])[0]
            for _, cell in rows.groupby(keys[:3])
        ]  # fmt: skip
        values = table[training, "rmse", "block4_2", "images"]
        assert values["severity and perturbation"] == pytest.approx(np.mean(within))


def test_the_committed_tables_follow_from_the_tables_per_image(finished):
    folder, grids = finished
    weights = np.ones((2, grids["plain", "test"][0]["image"].nunique()))
    for name, made in {
        "performance": lambda errors: statistics.performance(errors, weights),
        "auc_losses": lambda errors: statistics.auc_losses(errors, weights)[0],
        "balanced_errors": lambda errors: statistics.balanced_errors(errors, weights),
    }.items():
        committed = pd.read_csv(folder / f"{name}.csv")
        for training in drift_tables.TRAININGS:
            found = made(grids[training, "test"][0])
            column = next(one for one in ("value", "delta", "relative") if one in found)
            expected = committed.loc[committed["training"] == training, column]
            np.testing.assert_allclose(found[column], expected, atol=1e-9, err_msg=name)


def test_the_network_that_predicts_one_class_is_named_and_left_out(finished):
    folder, grids = finished
    constant = {
        training: statistics.constant_networks(grids[training, "val"][0])
        for training in drift_tables.TRAININGS
    }
    is_breast = folder.name == "breast"
    assert constant == {"plain": [23] if is_breast else [], "augmented": []}
    table = pd.read_csv(folder / "constant_networks.csv")
    assert len(table) > 0 or not is_breast
    if is_breast:
        table = table.set_index(["networks", "quantity"])["value"]
        assert table["all", "AUC of the detector drift"] == pytest.approx(0.641, abs=5e-4)
        left = table["without constant", "AUC of the detector drift"]
        assert left == pytest.approx(0.681, abs=5e-4)
        by_network = pd.read_csv(folder / "performance.csv", dtype={"network": str})
        by_network = by_network.query("training == 'plain' and metric == 'accuracy'")
        by_network = by_network.set_index("network")["value"]
        assert table["without constant", "accuracy"] == by_network[["21", "22"]].mean()


def test_the_sets_are_in_the_order_of_the_losses(finished):
    folder, _ = finished
    losses = pd.read_csv(folder / "auc_losses.csv")
    for _, rows in losses.groupby("training"):
        pairs = list(zip(rows["perturbation"], rows["severity"], strict=True))
        assert pairs == list(drift_correlations.PERTURBED)
