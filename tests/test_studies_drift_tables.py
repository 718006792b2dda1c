"""The committed tables of the robustness study, against those that its tables per image give."""

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED
from scipy.stats import spearmanr

from covid_lab.studies import drift_statistics as statistics
from covid_lab.studies import drift_tables
from covid_lab.studies.saliency_drift import SETS
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
    table = pd.read_csv(folder / "correlations.csv").query("measure == 'rmse'")
    table = table.set_index(["training", "layer", "kind", "constant"])["value"].sort_index()
    losses = pd.read_csv(folder / "auc_losses.csv").set_index("training")
    keys = ["perturbation", "severity", "seed", "image"]
    for training, (errors, drifts) in (
        (name, grids[name, "test"]) for name in ("plain", "augmented")
    ):
        last = drifts[drifts["layer"] == "block4_2"]
        sets = losses.loc[training].join(last.groupby(keys[:2])["rmse"].mean(), on=keys[:2])
        assert list(sets[keys[:2]].itertuples(index=False, name=None)) == list(SETS[1:])
        values = table[training, "block4_2"]
        overall = spearmanr(sets["rmse"], sets["delta"])[0]
        assert values["sets", "nothing"] == pytest.approx(overall)
        within = [spearmanr(rows["rmse"], rows["delta"])[0] for _, rows in sets.groupby("severity")]
        assert values["sets", "severity"] == pytest.approx(np.mean(within))
        rows = last.merge(errors, on=keys).dropna(subset="rmse")
        within = [
            spearmanr(cell["rmse"], cell["score_change"])[0] for _, cell in rows.groupby(keys[:3])
        ]
        assert values["images", "severity and perturbation"] == pytest.approx(np.mean(within))


def test_the_committed_tables_follow_from_the_tables_per_image(finished):
    folder, grids = finished
    weights = np.ones((2, grids["plain", "test"][0]["image"].nunique()))
    for name, column, made in (
        ("performance", "value", statistics.performance),
        ("auc_losses", "delta", lambda *given: statistics.auc_losses(*given)[0]),
        ("balanced_errors", "relative", statistics.balanced_errors),
    ):
        committed = pd.read_csv(folder / f"{name}.csv").set_index("training")[column]
        for training in drift_tables.TRAININGS:
            found = made(grids[training, "test"][0], weights)[column]
            np.testing.assert_allclose(found, committed[training], atol=1e-9, err_msg=name)


def test_the_network_that_predicts_one_class_is_named_and_left_out(finished):
    folder, grids = finished
    constant = [
        statistics.constant_networks(grids[name, "val"][0]) for name in drift_tables.TRAININGS
    ]
    is_breast = folder.name == "breast"
    assert constant == [[23] if is_breast else [], []]
    table = pd.read_csv(folder / "constant_networks.csv")
    assert len(table) > 0 or not is_breast
    if is_breast:
        table = table.set_index(["networks", "quantity"])["value"]
        drift = table[:, "AUC of the detector drift"]
        assert drift["all"] == pytest.approx(0.641, abs=5e-4)
        assert drift["without constant"] == pytest.approx(0.681, abs=5e-4)
        by_network = pd.read_csv(folder / "performance.csv", dtype={"network": str})
        by_network = by_network.query("training == 'plain' and metric == 'accuracy'")
        accuracy = by_network.set_index("network")["value"][["21", "22"]].mean()
        assert table["without constant", "accuracy"] == accuracy
