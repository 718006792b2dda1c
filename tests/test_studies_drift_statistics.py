"""Statistics of drift, against scikit-learn, SciPy and naive loops."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
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
SET = ["perturbation", "severity"]
WEIGHTS = draws(np.arange(IMAGES) % 2, 100, seed=1)


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
            values |= {name: -values[name] for name in SIMILARITIES}
            if perturbation != ORIGINAL:
                drifts.append(rows.assign(layer=layer, **values))
    scores, drifts = (pd.concat(part, ignore_index=True) for part in (scores, drifts))
    return statistics.with_errors(scores, labels).assign(seed=seed), drifts.assign(seed=seed)


def both(*networks):
    """The grids of several networks as one."""
    return [pd.concat(tables, ignore_index=True) for tables in zip(*networks, strict=True)]


def logits_of(errors, **where):
    here = (errors[list(where)] == pd.Series(where)).all(axis=1)
    return errors[here].filter(like="logit_").to_numpy()


def detected(fitting, judged, weights=WEIGHTS):
    """Rows of the detectors, and their AUCs."""
    rows = [features(drifts, errors) for errors, drifts in (fitting, judged)]
    scores = {name: new for name, (_, new) in detectors(*rows).items()}
    return rows, detection(rows[1], scores, weights)


def test_resamples_keep_class_sizes_and_weigh_as_repeated_rows(rng):
    positive = rng.random(30) < 0.4
    scores = rng.integers(0, 6, 30).astype(float)  # with ties
    counts = draws(positive, 20, seed=2)
    np.testing.assert_array_equal(counts[:, positive].sum(1), positive.sum())
    np.testing.assert_array_equal(counts[:, ~positive].sum(1), (~positive).sum())
    for row, value in zip(counts.astype(int), weighted_auc(positive, scores, counts), strict=True):
        expected = roc_auc_score(np.repeat(positive, row), np.repeat(scores, row))
        assert value == pytest.approx(expected)


def test_the_loss_of_auc_is_paired(rng):
    errors, _ = made(rng)
    labels = np.arange(IMAGES) % 2
    clean, last = (
        logits_of(errors, perturbation=name, severity=severity)
        for name, severity in (SETS[0], SETS[-1])
    )
    same = errors.copy()
    same[[name for name in errors if name.startswith("logit_")]] = np.tile(clean, (len(SETS), 1))
    losses, _ = statistics.auc_losses(same, WEIGHTS)
    np.testing.assert_allclose(losses[["delta", "low", "high"]], 0, atol=1e-12)
    losses, spread = statistics.auc_losses(errors, WEIGHTS)
    row = losses.iloc[-1]
    expected = [roc_auc_score(labels, one[:, 1] - one[:, 0]) for one in (clean, last)]
    assert row["delta"] == pytest.approx(expected[0] - expected[1])
    assert row["low"] <= row["delta"] <= row["high"]
    assert spread.shape == (101, 25)


def test_confidence_and_change_of_score_are_probabilities(rng):
    errors, _ = made(rng, classes=3)
    chances = softmax(errors.filter(like="logit_").to_numpy(), axis=1)
    np.testing.assert_allclose(errors["confidence"], chances.max(1))
    first = chances[7].argmax()
    row = 5 * IMAGES + 7
    change = abs(chances[row, first] - chances[7, first])
    assert errors["score_change"][row] == pytest.approx(change)
    assert (errors["wrong"] == (chances.argmax(1) != errors["image"] % 3)).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_performance_is_of_each_network_their_mean_and_all_together(rng, classes):
    labels = np.arange(IMAGES) % classes
    grids = [made(rng, classes=classes, seed=seed) for seed in (4, 5)]
    table = statistics.performance(both(*grids)[0], WEIGHTS)
    found = table.set_index(["network", "metric"])["value"]
    logits = [logits_of(errors, perturbation=ORIGINAL) for errors, _ in grids]
    for name, each in {4: logits[0], 5: logits[1], "together": sum(logits) / 2}.items():
        assert found[name, "AUC"] == pytest.approx(auc(labels, each))
        assert found[name, "accuracy"] == pytest.approx((each.argmax(1) == labels).mean())
    assert found["mean", "AUC"] == pytest.approx((found[4, "AUC"] + found[5, "AUC"]) / 2)
    alone = statistics.performance(grids[0][0], WEIGHTS)
    assert alone["network"].tolist() == [4, 4, "mean", "mean"]
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()


def test_drift_by_layer_is_the_mean_over_the_cells_of_all_networks(rng):
    errors, drifts = both(*(made(rng, seed=seed) for seed in (0, 1)))
    table = statistics.drift_by_layer(drifts, errors, ("no", "yes"), WEIGHTS)
    first = errors[errors["perturbation"] == ORIGINAL].set_index(["seed", "image"])
    rows = drifts.join(first[["label", "wrong"]], on=["seed", "image"])
    cells = rows.groupby([*SET, "layer", "label", "wrong"])["rmse"].agg(["mean", "std", "count"])
    cell = cells.loc["contrast", 2, "block4_2", 1, False]
    where = {"measure": "rmse", "perturbation": "contrast", "severity": 2, "layer": "block4_2"}
    where |= {"class": "yes", "prediction": "right"}
    (row,) = table[(table[list(where)] == pd.Series(where)).all(axis=1)].itertuples()
    assert (row.value, row.n) == pytest.approx((cell["mean"], cell["count"]))
    error = cell["std"] / np.sqrt(row.n)
    assert (row.high - row.low) / 3.92 == pytest.approx(error, rel=0.3)


def test_correlations_are_those_of_scipy(rng):
    errors, drifts = made(rng)
    drifts["rmse"] += drifts["severity"]
    drifts.loc[::17, "ssim"] = np.nan  # the drift of a blank map
    table = correlations(drifts, errors, WEIGHTS)
    table = table.set_index(["measure", "layer", "kind", "constant"]).sort_index()
    found = table.loc["rmse", "block4_2"]["value"]
    here = drifts[drifts["layer"] == "block4_2"]
    sets = statistics.auc_losses(errors, WEIGHTS)[0].set_index(SET)
    sets = sets.assign(drift=here.groupby(SET)["rmse"].mean())
    overall = spearmanr(sets["drift"], sets["delta"])[0]
    assert found["sets", "nothing"] == pytest.approx(overall)
    within = [spearmanr(rows["drift"], rows["delta"])[0] for _, rows in sets.groupby("severity")]
    assert found["sets", "severity"] == pytest.approx(np.mean(within))
    ranks = sets[["drift", "delta"]].rank()
    design = pd.get_dummies(ranks.index.to_frame().astype(str)).to_numpy(float)
    residuals = ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]
    partial = residuals.corr().iloc[0, 1]
    assert found["sets", "severity and perturbation"] == pytest.approx(partial)
    merged = here.merge(errors, on=["image", *SET])
    within = [
        spearmanr(rows["rmse"], rows["score_change"])[0] for _, rows in merged.groupby(SET)
    ]  # fmt: skip
    assert found["images", "severity and perturbation"] == pytest.approx(np.mean(within))
    row = table.loc["ssim", "block4_2", "images", "nothing"]
    defined = merged.dropna(subset="ssim")
    expected = spearmanr(-defined["ssim"], defined["score_change"])[0]
    assert row["value"] == pytest.approx(expected)
    assert row["n"] == len(defined) < 25 * IMAGES


def test_a_common_cause_vanishes_when_severity_is_constant(rng):
    """Severity moves both; within a severity they are independent."""
    errors, drifts = made(rng)
    drifts["rmse"] = 10 * drifts["severity"] + rng.normal(size=len(drifts))
    errors["score_change"] = 10 * errors["severity"] + rng.normal(size=len(errors))
    table = correlations(drifts, errors, WEIGHTS).query("measure == 'rmse' and kind == 'images'")
    table = table.set_index(["constant", "layer"])
    assert (table.loc["nothing", "low"] > 0.8).all()
    assert (table.loc["severity and perturbation", "low"] < 0).all()
    assert (table.loc["severity and perturbation", "high"] > 0).all()


def test_resampled_correlations_weigh_images_as_repeated_rows(rng):
    """With the ranks of the whole sample, a weight is a number of copies."""
    errors, drifts = made(rng)
    table = correlations(drifts, errors, WEIGHTS)
    table = table.set_index(["measure", "layer", "kind", "constant"])
    merged = drifts[drifts["layer"] == "block1_1"].merge(errors, on=["image", *SET])
    ranks = merged[["rmse", "score_change"]].rank().to_numpy()
    found = [
        np.corrcoef(np.repeat(ranks, count[merged["image"]], axis=0).T)[0, 1]
        for count in WEIGHTS.astype(int)
    ]
    row = table.loc[("rmse", "block1_1", "images", "nothing"), ["low", "high"]]
    np.testing.assert_allclose(row.astype(float), percentile_interval(np.array(found)))


def test_a_network_that_predicts_one_class_is_named(rng):
    errors, _ = made(rng, seed=1)
    constant = errors.assign(logit_0=0.0, logit_1=1.0)
    constant = statistics.with_errors(constant, np.arange(IMAGES) % 2).assign(seed=2)
    assert statistics.constant_networks(pd.concat([errors, constant])) == [2]
    assert statistics.constant_networks(errors) == []


def test_detectors_find_what_is_there_and_nothing_else(rng):
    tables = [
        detected(made(rng, told=told), made(rng, told=told))[1].set_index(
            ["perturbation", "detector"]
        )
        for told in (0.0, 2.0)
    ]
    nothing, much = (table.loc["all"] for table in tables)
    assert nothing.loc["drift", "auc"] == pytest.approx(0.5, abs=0.08)
    assert (tables[0].loc[(slice(None), "confidence"), "gain"] == 0).all()
    assert much.loc["drift", "auc"] > 0.9
    gains = much.loc[["both", "all three"]]
    assert (gains["gain_low"] > 0).all()
    assert (gains["gain_low"] < gains["gain"]).all()
    assert (gains["gain"] < gains["gain_high"]).all()
    gain = much.loc["all three", "auc"] - much.loc["confidence and change", "auc"]
    assert much.loc["all three", "gain"] == pytest.approx(gain)


def test_the_judged_perturbation_is_not_in_the_fit(rng):
    rows = [features(*made(rng, told=2.0)[::-1]) for _ in range(2)]
    before = detectors(*rows)["drift"][1]
    turned = rows[0].copy()
    here = turned["perturbation"] == PERTURBATIONS[0]
    turned.loc[here, "wrong"] = ~turned.loc[here, "wrong"]
    after = detectors(turned, rows[1])["drift"][1]
    same = (rows[1]["perturbation"] == PERTURBATIONS[0]).to_numpy()
    np.testing.assert_array_equal(before[same], after[same])
    assert (before[~same] != after[~same]).all()


def test_doubt_and_change_need_no_fit_and_rates_of_a_flag_are_fractions(rng):
    errors, drifts = made(rng, classes=4)
    rows = features(drifts, errors)
    merged = rows.merge(errors, on=["image", *SET], suffixes=("", "_given"))
    doubt = -np.log(merged["confidence"] / (1 - merged["confidence"]))
    found = detectors(rows.iloc[:0], rows)
    np.testing.assert_allclose(found["confidence"][1], doubt)
    np.testing.assert_array_equal(found["change"][1], merged["score_change_given"])
    assert not found["both"][1].any()  # no rows to fit
    raised = rng.normal(size=len(rows)) > 0.3
    rates = flag_rates(rows, raised, WEIGHTS)
    assert rates["false_alarms"] == pytest.approx(raised[~rows["wrong"]].mean())
    assert rates["detected"] == pytest.approx(raised[rows["wrong"]].mean())
    assert rates["detected_low"] < rates["detected"] < rates["detected_high"]


def test_balanced_error_is_that_of_scikit_learn(rng):
    errors, _ = made(rng)
    errors["label"] = np.where(errors["image"] < 8, 1, 0)  # unlike classes
    errors["wrong"] = errors["predicted"] != errors["label"]
    table = statistics.balanced_errors(errors, WEIGHTS).set_index("perturbation")
    right = errors.groupby(SET)[["label", "predicted"]].apply(
        lambda rows: balanced_accuracy_score(rows["label"], rows["predicted"])
    )
    means = 1 - right.groupby("perturbation").mean()
    for name, mean in means.items():
        assert table.loc[name, "balanced_error"] == pytest.approx(mean)
    expected = means[list(PERTURBATIONS)].mean() - means[ORIGINAL]
    assert table.loc["all", "relative"] == pytest.approx(expected)


def test_what_is_said_of_two_networks_is_the_mean_of_both(rng):
    grids, judged = (
        [made(rng, told=told, seed=seed) for seed, told in enumerate((0.0, 2.0))] for _ in range(2)
    )

    def found(fitting, judged):
        errors, drifts = judged
        tables = {
            "delta": statistics.auc_losses(errors, WEIGHTS)[0][["delta", "wrong"]],
            "balanced": statistics.balanced_errors(errors, WEIGHTS)[["balanced_error"]],
            "images": correlations(drifts, errors, WEIGHTS).query("kind == 'images'")[["value"]],
        }
        return tables, detected(fitting, judged)[1]

    single = [found(*pair) for pair in zip(grids, judged, strict=True)]
    together, detection = found(both(*grids), both(*judged))
    for name, table in together.items():
        expected = (single[0][0][name] + single[1][0][name]) / 2
        np.testing.assert_allclose(table, expected, atol=1e-12, err_msg=name)
    expected = (single[0][1][["auc", "gain"]] + single[1][1][["auc", "gain"]]) / 2
    np.testing.assert_allclose(detection[["auc", "gain"]], expected, atol=1e-12)
    gains = [table["gain"].iloc[-4] for _, table in single]  # of "drift", over all perturbations
    row = detection.iloc[-4]
    assert row["detector"] == "drift"
    assert (row["least_gain"], row["most_gain"]) == pytest.approx((min(gains), max(gains)))


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.03, "adds to"), (-0.03, -0.01, "takes from"), (-0.01, 0.01, "neither")],
)
def test_a_gain_in_words_follows_its_interval(low, high, said):
    row = pd.Series({"gain": (low + high) / 2, "gain_low": low, "gain_high": high})
    text = gain_in_words(row, "confidence")
    assert said in text
    assert f"{low:+.3f} to {high:+.3f}".replace("-", "−") in text
