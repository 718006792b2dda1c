"""Statistics of drift, against scikit-learn, SciPy and naive loops."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from covid_lab.studies import drift_statistics as statistics
from covid_lab.studies.drift_correlations import SIMILARITIES, correlations
from covid_lab.studies.drift_detection import (
    detection,
    detectors,
    features,
    flag_rates,
    gain_in_words,
)
from covid_lab.studies.image_bootstrap import draws, weighted_auc
from covid_lab.studies.perturbations import PERTURBATIONS
from covid_lab.studies.robustness import auc
from covid_lab.studies.saliency_drift import MEASURES, ORIGINAL, SETS
from covid_project.evaluation import percentile_interval

LAYERS = ("block1_1", "block4_2")
IMAGES = 40


def made(rng, *, classes=2, told=0.0, seed=0):
    """A grid of scores and drift in which drift tells of errors as much as ``told`` says."""
    labels = np.arange(IMAGES) % classes
    scores, drifts = [], []
    for perturbation, severity in SETS:
        logits = rng.normal(0, 1, (IMAGES, classes))
        logits[np.arange(IMAGES), labels] += 2 - 0.35 * severity
        rows = pd.DataFrame({"image": np.arange(IMAGES)})
        rows = rows.assign(perturbation=perturbation, severity=severity)
        scores.append(pd.concat([rows, pd.DataFrame(logits).add_prefix("logit_")], axis=1))
        wrong = logits.argmax(1) != labels
        for layer in LAYERS:
            values = {name: rng.normal(size=IMAGES) + told * wrong for name in MEASURES}
            for name in SIMILARITIES:
                values[name] = -values[name]
            if perturbation != ORIGINAL:
                drifts.append(rows.assign(layer=layer, **values))
    joined = [pd.concat(parts, ignore_index=True).assign(seed=seed) for parts in (scores, drifts)]
    return labels, statistics.with_errors(joined[0], labels), joined[1]


def both(*networks):
    """The grids of several networks as one."""
    return [pd.concat(tables, ignore_index=True) for tables in zip(*networks, strict=True)]


@pytest.fixture
def weights():
    return draws(np.arange(IMAGES) % 2, 300, seed=1)


def test_draws_keep_the_size_of_every_class():
    labels = np.array([0] * 5 + [1] * 11)
    counts = draws(labels, 50)
    np.testing.assert_array_equal(counts[:, :5].sum(1), 5)
    np.testing.assert_array_equal(counts[:, 5:].sum(1), 11)
    assert counts.std(axis=0).min() > 0


def test_weighted_auc_is_that_of_the_repeated_rows(rng):
    positive = rng.random(30) < 0.4
    scores = rng.integers(0, 6, 30).astype(float)  # with ties
    counts = draws(positive, 20, seed=2)
    found = weighted_auc(positive, scores, counts)
    for row, value in zip(counts.astype(int), found, strict=True):
        expected = roc_auc_score(np.repeat(positive, row), np.repeat(scores, row))
        assert value == pytest.approx(expected)


@pytest.mark.parametrize("classes", [2, 5])
def test_class_auc_is_the_one_of_the_training_and_of_scikit_learn(rng, classes):
    labels = np.arange(60) % classes
    logits = rng.normal(size=(60, classes))
    found = statistics.class_auc(labels, logits, np.ones((1, 60)))[0]
    assert found == pytest.approx(auc(labels, logits))
    if classes > 2:
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        expected = roc_auc_score(labels, chances, multi_class="ovr", average="macro")
        assert found == pytest.approx(expected)


def test_the_loss_of_auc_is_paired(rng, weights):
    labels, errors, _ = made(rng)
    clean = errors[errors["perturbation"] == ORIGINAL].filter(like="logit_").to_numpy()
    same = errors.copy()
    columns = [name for name in errors if name.startswith("logit_")]
    same[columns] = np.tile(clean, (len(SETS), 1))
    losses, _ = statistics.auc_losses(same, weights)
    np.testing.assert_allclose(losses[["delta", "low", "high"]], 0, atol=1e-12)
    losses, spread = statistics.auc_losses(errors, weights)
    row = losses.iloc[-1]
    last = errors[(errors["perturbation"] == row.perturbation) & (errors["severity"] == 5)]
    pair = [clean, last.filter(like="logit_").to_numpy()]
    expected = [roc_auc_score(labels, each[:, 1] - each[:, 0]) for each in pair]
    assert row.delta == pytest.approx(expected[0] - expected[1])
    assert row.low <= row.delta <= row.high
    assert spread.shape == (301, 25)


def test_confidence_and_change_of_score_are_probabilities(rng):
    labels, errors, _ = made(rng, classes=3)
    logits = errors.filter(like="logit_").to_numpy()
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(errors["confidence"], chances.max(1))
    first = chances[:IMAGES].argmax(1)
    row = errors.iloc[5 * IMAGES + 7]
    change = abs(chances[5 * IMAGES + 7, first[7]] - chances[7, first[7]])
    assert row.score_change == pytest.approx(change)
    assert (errors["wrong"] == (logits.argmax(1) != labels[errors["image"]])).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_performance_is_of_each_network_their_mean_and_all_together(rng, weights, classes):
    grids = [made(rng, classes=classes, seed=seed) for seed in (4, 5)]
    labels = grids[0][0]
    table = statistics.performance(both(*(grid[1:] for grid in grids))[0], weights)
    found = table.set_index(["network", "metric"])["value"]
    logits = [
        errors[errors["perturbation"] == ORIGINAL].filter(like="logit_").to_numpy()
        for _, errors, _ in grids
    ]
    for name, each in {4: logits[0], 5: logits[1], "together": sum(logits) / 2}.items():
        assert found[name, "AUC"] == pytest.approx(auc(labels, each))
        assert found[name, "accuracy"] == pytest.approx((each.argmax(1) == labels).mean())
    assert found["mean", "AUC"] == pytest.approx((found[4, "AUC"] + found[5, "AUC"]) / 2)
    alone = statistics.performance(grids[0][1], weights)
    assert alone["network"].tolist() == [4, 4, "mean", "mean"]
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()


def test_drift_by_layer_is_the_mean_of_its_cell(rng, weights):
    _, errors, drifts = made(rng)
    table = statistics.drift_by_layer(drifts, errors, ("no", "yes"), weights)
    original = errors[errors["perturbation"] == ORIGINAL]
    chosen = original["image"][~original["wrong"] & (original["label"] == 1)]
    cell = drifts[
        (drifts["perturbation"] == "contrast")
        & (drifts["severity"] == 2)
        & (drifts["layer"] == "block4_2")
        & drifts["image"].isin(chosen)
    ]
    where = {"measure": "rmse", "perturbation": "contrast", "severity": 2, "layer": "block4_2"}
    where |= {"class": "yes", "prediction": "right"}
    (row,) = table[(table[list(where)] == pd.Series(where)).all(axis=1)].itertuples()
    assert row.value == pytest.approx(cell["rmse"].mean())
    assert row.n == len(cell)
    assert row.low < row.value < row.high
    assert (row.high - row.low) / 3.92 == pytest.approx(
        cell["rmse"].std() / np.sqrt(len(cell)), rel=0.3
    )


def test_correlations_are_those_of_scipy(rng, weights):
    _, errors, drifts = made(rng)
    drifts["rmse"] += 3 * drifts["severity"]
    drifts.loc[::17, "ssim"] = np.nan  # the drift of a blank map
    table = correlations(drifts, errors, weights)
    table = table.set_index(["measure", "layer", "kind", "constant"]).sort_index()
    losses, _ = statistics.auc_losses(errors, weights)
    here = drifts[drifts["layer"] == "block1_1"]
    sets = losses.set_index(["perturbation", "severity"])
    sets = sets.assign(drift=here.groupby(["perturbation", "severity"])["rmse"].mean())
    row = table.loc["rmse", "block1_1", "sets", "nothing"]
    assert row["value"] == pytest.approx(spearmanr(sets["drift"], sets["delta"]).statistic)
    assert row["low"] <= row["high"]
    merged = here.merge(errors, on=["image", "perturbation", "severity"]).dropna(subset="ssim")
    row = table.loc["ssim", "block1_1", "images", "nothing"]
    expected = spearmanr(-merged["ssim"], merged["score_change"]).statistic
    assert row["value"] == pytest.approx(expected)
    assert row["n"] == len(merged) < 25 * IMAGES


def test_correlations_with_severity_constant_are_means_of_those_of_scipy(rng, weights):
    _, errors, drifts = made(rng)
    table = correlations(drifts, errors, weights)
    table = table.set_index(["measure", "layer", "kind", "constant"])["value"].sort_index()
    losses, _ = statistics.auc_losses(errors, weights)
    here = drifts[drifts["layer"] == "block4_2"]
    sets = losses.set_index(["perturbation", "severity"])
    sets = sets.assign(drift=here.groupby(["perturbation", "severity"])["rmse"].mean())
    within = [spearmanr(rows["drift"], rows["delta"])[0] for _, rows in sets.groupby("severity")]
    found = table["rmse", "block4_2", "sets", "severity"]
    assert found == pytest.approx(np.mean(within))
    ranks = sets[["drift", "delta"]].rank()
    design = pd.get_dummies(ranks.index.to_frame().astype(str)).to_numpy(float)
    residuals = ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]
    found = table["rmse", "block4_2", "sets", "severity and perturbation"]
    assert found == pytest.approx(residuals.corr().iloc[0, 1])
    merged = here.merge(errors, on=["image", "perturbation", "severity"])
    within = [
        spearmanr(rows["rmse"], rows["score_change"])[0]
        for _, rows in merged.groupby(["perturbation", "severity"])
    ]
    found = table["rmse", "block4_2", "images", "severity and perturbation"]
    assert found == pytest.approx(np.mean(within))


def test_a_common_cause_vanishes_when_severity_is_constant(rng):
    """Severity moves both; within a severity they are independent."""
    _, errors, drifts = made(rng)
    drifts["rmse"] = 10 * drifts["severity"] + rng.normal(size=len(drifts))
    errors["score_change"] = 10 * errors["severity"] + rng.normal(size=len(errors))
    weights = draws(np.arange(IMAGES) % 2, 300)
    table = correlations(drifts, errors, weights).query("measure == 'rmse'")
    images = table[table["kind"] == "images"].set_index(["layer", "constant"])
    for layer in LAYERS:
        assert images.loc[(layer, "nothing"), "low"] > 0.8
        row = images.loc[(layer, "severity and perturbation")]
        assert row["low"] < 0 < row["high"]


def test_resampled_correlations_weigh_images_as_repeated_rows(rng):
    """With the ranks of the whole sample, a weight is a number of copies."""
    _, errors, drifts = made(rng)
    counts = draws(np.arange(IMAGES) % 2, 100, seed=3)
    table = correlations(drifts, errors, counts).set_index(["measure", "layer", "kind", "constant"])
    here = drifts[drifts["layer"] == "block1_1"]
    merged = here.merge(errors, on=["image", "perturbation", "severity"])
    ranks = merged[["rmse", "score_change"]].rank().to_numpy()
    found = []
    for count in counts.astype(int):
        repeated = np.repeat(ranks, count[merged["image"]], axis=0)
        found.append(np.corrcoef(repeated.T)[0, 1])
    row = table.loc[("rmse", "block1_1", "images", "nothing")]
    np.testing.assert_allclose(
        row[["low", "high"]].astype(float), percentile_interval(np.array(found))
    )


def test_a_network_that_predicts_one_class_is_named(rng):
    labels, errors, _ = made(rng, seed=1)
    constant = errors.copy()
    constant[["logit_0", "logit_1"]] = 0.0, 1.0
    constant = statistics.with_errors(constant, labels).assign(seed=2)
    assert statistics.constant_networks(pd.concat([errors, constant])) == [2]
    assert statistics.constant_networks(errors) == []


def test_detectors_find_what_is_there_and_nothing_else(rng, weights):
    found = {}
    for told in (0.0, 2.0):
        (_, *fitting), (_, *judged) = made(rng, told=told), made(rng, told=told)
        rows = [features(drifts, errors) for errors, drifts in (fitting, judged)]
        scores = {name: one[1] for name, one in detectors(*rows).items()}
        table = detection(rows[1], scores, weights)
        found[told] = table.set_index(["perturbation", "detector"])
    assert found[0.0].loc[("all", "drift"), "auc"] == pytest.approx(0.5, abs=0.08)
    assert found[2.0].loc[("all", "drift"), "auc"] > 0.9
    for name in ("both", "all three"):
        row = found[2.0].loc[("all", name)]
        assert 0 < row["gain_low"] < row["gain"] < row["gain_high"]
    both = found[2.0].loc["all"]["auc"]
    gain = both["all three"] - both["confidence and change"]
    assert found[2.0].loc[("all", "all three"), "gain"] == pytest.approx(gain)
    assert (found[0.0].loc[(slice(None), "confidence"), "gain"] == 0).all()


def test_change_is_that_of_the_score_and_needs_no_fit(rng, weights):
    _, errors, drifts = made(rng)
    rows = features(drifts, errors)
    merged = rows.merge(errors, on=["image", "perturbation", "severity"], suffixes=("", "_given"))
    seen, new = detectors(rows.iloc[:0], rows)["change"]
    np.testing.assert_array_equal(new, merged["score_change_given"])
    assert len(seen) == 0


def test_the_judged_perturbation_is_not_in_the_fit(rng):
    (_, *fitting), (_, *judged) = made(rng, told=2.0), made(rng, told=2.0)
    rows = [features(drifts, errors) for errors, drifts in (fitting, judged)]
    before = detectors(*rows)["drift"][1]
    turned = rows[0].copy()
    here = turned["perturbation"] == PERTURBATIONS[0]
    turned.loc[here, "wrong"] = ~turned.loc[here, "wrong"]
    after = detectors(turned, rows[1])["drift"][1]
    same = (rows[1]["perturbation"] == PERTURBATIONS[0]).to_numpy()
    np.testing.assert_array_equal(before[same], after[same])
    assert (before[~same] != after[~same]).all()


def test_doubt_is_minus_the_log_odds_of_the_confidence(rng):
    _, errors, drifts = made(rng, classes=4)
    rows = features(drifts, errors)
    merged = rows.merge(errors, on=["image", "perturbation", "severity"])
    expected = -np.log(merged["confidence"] / (1 - merged["confidence"]))
    np.testing.assert_allclose(merged["doubt"], expected)


def test_rates_of_the_flag_are_shares(rng, weights):
    _, errors, drifts = made(rng)
    rows = features(drifts, errors)
    scores = rng.normal(size=len(rows))
    found = flag_rates(rows, scores > 0.3, weights)
    assert found["false_alarms"] == pytest.approx((scores[~rows["wrong"]] > 0.3).mean())
    assert found["detected"] == pytest.approx((scores[rows["wrong"]] > 0.3).mean())
    assert found["detected_low"] < found["detected"] < found["detected_high"]


def test_balanced_error_is_that_of_scikit_learn(rng, weights):
    labels, errors, _ = made(rng)
    labels = np.where(np.arange(IMAGES) < 8, 1, 0)  # unlike classes
    errors["label"] = labels[errors["image"]]
    errors["wrong"] = errors["predicted"] != errors["label"]
    table = statistics.balanced_errors(errors, weights).set_index("perturbation")
    means = {}
    for name, group in errors.groupby("perturbation"):
        each = [
            1 - balanced_accuracy_score(rows["label"], rows["predicted"])
            for _, rows in group.groupby("severity")
        ]
        means[name] = np.mean(each)
        assert table.loc[name, "balanced_error"] == pytest.approx(means[name])
    expected = np.mean([means[name] for name in PERTURBATIONS]) - means[ORIGINAL]
    assert table.loc["all", "relative"] == pytest.approx(expected)


def test_what_is_said_of_two_networks_is_the_mean_of_both(rng, weights):
    grids = [made(rng, told=1.0, seed=seed)[1:] for seed in (0, 1)]
    judged = [made(rng, told=1.0, seed=seed)[1:] for seed in (0, 1)]

    def found(fitting, judged):
        errors, drifts = judged
        rows = [features(*reversed(grid)) for grid in (fitting, judged)]
        scores = {name: one[1] for name, one in detectors(*rows).items()}
        return {
            "delta": statistics.auc_losses(errors, weights)[0][["delta", "wrong"]],
            "balanced": statistics.balanced_errors(errors, weights)[["balanced_error"]],
            "images": correlations(drifts, errors, weights).query("kind == 'images'")[["value"]],
            "auc": detection(rows[1], scores, weights)[["auc", "gain"]],
        }  # fmt: skip

    single = [found(*grid) for grid in zip(grids, judged, strict=True)]
    together = found(both(*grids), both(*judged))
    for name, table in together.items():
        expected = (single[0][name] + single[1][name]) / 2
        np.testing.assert_allclose(table, expected, atol=1e-12, err_msg=name)


def test_drift_of_two_networks_counts_their_own_errors(rng, weights):
    grids = [made(rng, seed=seed)[1:] for seed in (0, 1)]
    errors, drifts = both(*grids)
    table = statistics.drift_by_layer(drifts, errors, ("no", "yes"), weights)
    single = [statistics.drift_by_layer(d, e, ("no", "yes"), weights) for e, d in grids]
    keys = ["measure", "perturbation", "severity", "layer", "class", "prediction"]
    parts = pd.concat(single)
    parts["sum"] = parts["value"] * parts["n"]
    sums = parts.groupby(keys)[["sum", "n"]].sum()
    merged = table.set_index(keys).join(sums, rsuffix="_expected")
    np.testing.assert_array_equal(merged["n"], merged["n_expected"])
    np.testing.assert_allclose(merged["value"], merged["sum"] / merged["n"])


def test_the_gain_of_single_networks_spans_that_of_both(rng, weights):
    grids = [made(rng, told=told, seed=seed)[1:] for seed, told in enumerate((0.0, 2.0))]
    errors, drifts = both(*grids)
    rows = features(drifts, errors)
    scores = {name: one[1] for name, one in detectors(rows, rows).items()}
    row = detection(rows, scores, weights).query("detector == 'drift'").iloc[-1]
    assert row["least_gain"] < row["gain"] < row["most_gain"]
    assert (row["least_gain"] + row["most_gain"]) / 2 == pytest.approx(row["gain"])


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.03, "adds to"), (-0.03, -0.01, "takes from"), (-0.01, 0.01, "neither")],
)
def test_a_gain_in_words_follows_its_interval(low, high, said):
    row = pd.Series({"gain": (low + high) / 2, "gain_low": low, "gain_high": high})
    text = gain_in_words(row, "confidence")
    assert said in text
    assert f"{low:+.3f} to {high:+.3f}".replace("-", "−") in text
