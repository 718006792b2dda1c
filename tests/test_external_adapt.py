"""Thresholds from unlabelled scores: known distributions, refusals, and no use of labels."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import HOUSE
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score

from covid_lab.external import adapted
from covid_lab.external.adapt import FEWEST, label_shift_threshold, mixture_threshold, site_warning
from covid_lab.external.adapted import adapted_metrics, both_sets, from_kept, shift_of
from covid_project.evaluation import metrics_table
from covid_project.files import read_csv, write_csv


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(adapted, "RESAMPLES", 6)


def drawn(rng, n, prevalence, negative=(-3.0, 1.0), positive=(3.0, 1.5)):
    """Labels and scores of two normal classes, shuffled."""
    labels = rng.permutation((np.arange(n) < round(prevalence * n)).astype(int))
    means, deviations = np.transpose([negative, positive])
    return labels, rng.normal(means[labels], deviations[labels])


def reference_of(rng, n=2000, prevalence=0.5):
    labels, scores = drawn(rng, n, prevalence, (-1.5, 1.5), (1.5, 1.5))
    return pd.DataFrame({"label": labels, "score": scores})


# ---- mixture ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prevalence", [0.2, 0.5, 0.8])
def test_mixture_finds_the_crossing_of_two_known_normals(rng, prevalence):
    negative, positive = (1.0, 1.0), (6.0, 1.5)  # a hospital where all scores are too high
    _, scores = drawn(rng, 3000, prevalence, negative, positive)

    def excess(score):
        below = (1 - prevalence) * norm.pdf(score, *negative)
        return prevalence * norm.pdf(score, *positive) - below

    found = mixture_threshold(scores)
    assert found.reason == ""
    assert found.value == pytest.approx(brentq(excess, 1, 6), abs=0.15)
    assert found.prevalence == pytest.approx(prevalence, abs=0.03)


def test_mixture_does_not_depend_on_order_origin_or_scale_of_the_scores(rng):
    _, scores = drawn(rng, 500, 0.4)
    found = mixture_threshold(scores)
    assert mixture_threshold(rng.permutation(scores)).value == pytest.approx(found.value, abs=1e-6)
    assert mixture_threshold(10 + 2 * scores).value == pytest.approx(10 + 2 * found.value, abs=0.01)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (np.linspace(-3, 3, FEWEST - 1), "too few"),
        (np.zeros(FEWEST), "BIC gain"),
        (norm.ppf(np.linspace(0.001, 0.999, 500)), "BIC gain"),
        (np.repeat(norm.ppf(np.linspace(0.01, 0.99, 400)), 2) * np.tile([1, 8], 400), "apart"),
        (np.r_[norm.ppf(np.linspace(0.001, 0.999, 490)), np.linspace(29, 31, 10)], "only 2%"),
    ],
)
def test_mixture_is_refused_with_a_reason(scores, reason):
    found = mixture_threshold(scores)
    assert np.isnan(found.value)
    assert reason in found.reason
    with pytest.raises(ValueError, match="finite"):
        mixture_threshold(np.append(scores, np.nan))


# ---- label shift --------------------------------------------------------------------------------


@pytest.mark.parametrize("prevalence", [0.1, 0.3, 0.9])
def test_label_shift_finds_prevalence_and_threshold(rng, prevalence):
    reference = reference_of(rng, 20_000)
    target = reference_of(rng, 20_000, prevalence)
    found = label_shift_threshold(target["score"].to_numpy(), reference)
    assert found.reason == ""
    assert found.prevalence == pytest.approx(prevalence, abs=0.01)
    # Two normals of equal variance: log odds = (μ₁ − μ₀) / σ² · score + logit(prevalence).
    expected = -np.log(prevalence / (1 - prevalence)) * 1.5**2 / 3
    assert found.value == pytest.approx(expected, abs=0.1)


def test_both_estimates_of_the_prevalence_agree_under_label_shift(rng):
    reference, target = reference_of(rng), reference_of(rng, 2000, 0.25)
    found = label_shift_threshold(target["score"].to_numpy(), reference)
    _, text = site_warning(target["score"].to_numpy(), reference)
    by_counts = float(text.rsplit(" ", 1)[1].rstrip("."))
    assert by_counts == pytest.approx(found.prevalence, abs=0.05)


def test_label_shift_is_refused_where_a_class_has_moved(rng):
    reference = reference_of(rng)
    _, scores = drawn(rng, 600, 0.4, (0.5, 1.5), (1.5, 1.5))
    found = label_shift_threshold(scores, reference)
    assert "no prevalence explains" in found.reason
    assert np.isnan(found.value)
    assert "too few" in label_shift_threshold(scores[: FEWEST - 1], reference).reason


def test_label_shift_is_refused_for_a_model_that_fails_at_home(rng):
    reference = pd.DataFrame({"label": np.arange(200) % 2, "score": rng.normal(size=200)})
    found = label_shift_threshold(rng.normal(size=200), reference)
    assert "does not tell its own classes apart" in found.reason


# ---- warning ------------------------------------------------------------------------------------


def test_warning_appears_for_another_site_only(rng):
    reference = reference_of(rng)
    alike, text = site_warning(reference_of(rng, 400)["score"].to_numpy(), reference)
    assert not alike
    assert text.startswith("No sign")
    scores = reference_of(rng, 400)["score"].to_numpy() + 2
    differs, text = site_warning(scores, reference)
    assert differs
    assert text.startswith("Warning")
    assert f"{(scores > 0).mean():.0%} of 400 images are called positive" in text
    assert "50% of the model's own" in text


# ---- what it is worth ---------------------------------------------------------------------------


def test_labels_of_the_target_have_no_part_in_the_thresholds(rng):
    reference = reference_of(rng)
    target = reference_of(rng, 600, 0.3)
    columns = ["method", "metric", "threshold", "prevalence", "note"]
    found = adapted_metrics(target["label"], target["score"], reference)
    other = adapted_metrics(rng.permutation(target["label"]), target["score"], reference)
    pd.testing.assert_frame_equal(found[columns], other[columns])
    assert not found["value"].equals(other["value"])


def test_metrics_agree_with_scikit_learn_and_with_the_plain_table(rng):
    labels, scores = drawn(rng, 400, 0.5, (1.0, 1.0), (6.0, 1.5))
    table = adapted_metrics(labels, scores).set_index(["method", "metric"])
    assert set(table.index.get_level_values("method")) == {"plain", "mixture"}
    row = table.loc[("mixture", "balanced accuracy")]
    assert row["value"] == pytest.approx(balanced_accuracy_score(labels, scores > row["threshold"]))
    plain = metrics_table(labels, scores).set_index("metric")
    for column in ("value", "low", "high"):
        assert table.loc[("plain", "accuracy"), column] == plain.loc["accuracy", column]
    assert row["change"] == pytest.approx(
        row["value"] - table.loc[("plain", "balanced accuracy"), "value"]
    )
    assert row["low"] <= row["value"] <= row["high"]
    assert 0 < row["change_low"] <= row["change"] <= row["change_high"]


def test_a_refused_threshold_has_a_reason_and_no_figures(rng):
    labels, scores = np.arange(60) % 2, rng.normal(size=60)
    table = adapted_metrics(labels, scores)
    refused = table[table["method"] == "mixture"]
    assert refused["value"].isna().all()
    assert "too few" in refused["note"].iloc[0]


def kept_test(folder, rng):
    """An external test of which only tables are left, and the scores that it has on both sets."""
    own = reference_of(rng, 200)
    elsewhere = reference_of(rng, 200).assign(score=lambda table: table["score"] + 3)
    results = folder / "results"
    for name in ("baseline", "mover"):
        write_csv(results / "external" / "there" / f"scores_{name}.csv", elsewhere)
    record = {"models": {"baseline": "a", "mover": "b"}, "seed": 0}
    (results / "external" / "there" / "external.json").write_text(json.dumps(record))
    write_csv(results / "scores_baseline_test.csv", own)
    models = results / "external" / "mitigation"
    write_csv(models / "own_scores" / "mover.csv", own.assign(score=own["score"] - 3))
    (models / "mover.json").write_text(json.dumps({"shift": 3.0}))
    return results / "external" / "there", own, elsewhere


def test_kept_scores_give_the_table_of_a_reading_and_say_so(tmp_path, rng):
    folder, own, elsewhere = kept_test(tmp_path, rng)
    table = read_csv(from_kept(folder))
    assert table["source"].unique().tolist() == [adapted.KEPT]
    first = table[table["model"] == "baseline"].drop(columns="model").reset_index(drop=True)
    fresh = both_sets(elsewhere["label"], elsewhere["score"], own, source=adapted.KEPT)
    pd.testing.assert_frame_equal(first.fillna(""), fresh.fillna(""), check_dtype=False)
    # The moved model is compared with its own scores after the same shift, and judged without it.
    second = table[table["model"] == "mover"].drop(columns="model").reset_index(drop=True)
    external = (second["set"] == "external").to_numpy()
    pd.testing.assert_frame_equal(first[external], second[external])
    own_accuracy = second[~external].iloc[0]["value"]
    assert own_accuracy == pytest.approx(((own["score"] - 3 > 0) == own["label"]).mean())


def test_only_a_record_has_a_shift(tmp_path):
    (tmp_path / "a.json").write_text('{"shift": -2.5}')
    (tmp_path / "b.json").write_text("{}")
    assert [shift_of(tmp_path / name) for name in ("a.json", "b.json", "c.json", "d.keras")] == [
        -2.5, 0, 0, 0,
    ]  # fmt: skip


# ---- the committed results ----------------------------------------------------------------------


def test_committed_thresholds_give_the_committed_figures():
    found = sorted((HOUSE / "results" / "external").glob(f"*/{adapted.TABLE}"))
    if not found:
        pytest.skip("no adapted thresholds are committed")
    for path in found:
        table = read_csv(path)
        table = table[(table["set"] == "external") & table["value"].notna()]
        for row in table[table["metric"] == "balanced accuracy"].itertuples():
            scores = read_csv(path.with_name(f"scores_{row.model}.csv"))
            again = balanced_accuracy_score(scores["label"], scores["score"] > row.threshold)
            assert row.value == pytest.approx(again)
            if row.method == "mixture":
                assert mixture_threshold(scores["score"]).value == pytest.approx(row.threshold)
