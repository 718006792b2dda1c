import numpy as np
import pytest

from covid_lab.comparison import compare, verdict
from covid_project.evaluation import accuracy_difference, auc_difference, holm


@pytest.mark.parametrize(
    ("difference", "p", "word"),
    [(0.1, 0.01, "better"), (-0.1, 0.01, "worse"), (0.1, 0.05, "no difference"),
     (0.1, np.nan, "no difference")],
)  # fmt: skip
def test_the_word_follows_from_the_test(difference, p, word):
    assert verdict(difference, p) == word


def test_compare_holds_all_pairs_or_those_with_a_reference(rng):
    labels = np.repeat([0, 1], 60)
    a, b = rng.normal(labels - 0.5, 1, (2, 120))
    scores = {"a": a, "b": b, "c": a + b}
    table = compare(labels, scores)
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    assert list(table[["first", "second"]].itertuples(index=False, name=None)) == pairs * 2
    found = accuracy_difference(labels, b, a + b)
    row = table.query("metric == 'accuracy'").iloc[2]
    assert (row["difference"], row["low"], row["high"]) == (found.difference, found.low, found.high)
    assert table.query("metric == 'AUC'")["p_value"].iloc[0] == auc_difference(labels, a, b).p_value
    for _, one in table.groupby("metric"):  # adjusted over the pairs of one metric
        assert one["p_adjusted"].tolist() == holm(one["p_value"].to_numpy()).tolist()
    against = compare(labels, scores, reference="b")
    assert set(against["first"]) == {"b"}
    assert len(against) == 4
