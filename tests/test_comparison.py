import numpy as np
import pytest

from covid_lab.comparison import compare, verdict
from covid_project.evaluation import accuracy_difference, auc_difference, holm


def draw(rng, n=120, gap=1.0):
    labels = np.repeat([0, 1], n // 2)
    return labels, rng.normal(gap * labels - gap / 2, 1), rng.normal(gap * labels - gap / 2, 1)


@pytest.mark.parametrize(
    ("difference", "p", "word"),
    [(0.1, 0.01, "better"), (-0.1, 0.01, "worse"), (0.1, 0.05, "no difference"),
     (0.1, np.nan, "no difference")],
)  # fmt: skip
def test_the_word_follows_from_the_test(difference, p, word):
    assert verdict(difference, p) == word


def test_compare_holds_all_pairs_or_those_with_a_reference(rng):
    labels, a, b = draw(rng)
    scores = {"a": a, "b": b, "c": a + b}
    table = compare(labels, scores)
    assert len(table) == 6
    pairs = {tuple(row) for row in table[["first", "second"]].to_numpy()}
    assert pairs == {("a", "b"), ("a", "c"), ("b", "c")}
    row = table[(table["metric"] == "AUC") & (table["second"] == "b")].iloc[0]
    assert row["p_value"] == auc_difference(labels, a, b).p_value
    for metric, one in table.groupby("metric"):  # adjusted over the pairs of one metric
        assert one["p_adjusted"].tolist() == holm(one["p_value"].to_numpy()).tolist(), metric
    row = table[(table["metric"] == "accuracy") & (table["second"] == "c")].iloc[1]
    found = accuracy_difference(labels, b, a + b)
    assert (row["difference"], row["low"], row["high"]) == (found.difference, found.low, found.high)
    against = compare(labels, scores, reference="b")
    assert set(against["first"]) == {"b"}
    assert len(against) == 4
