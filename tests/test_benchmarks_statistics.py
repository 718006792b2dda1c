from benchmarks.runner import measure
from benchmarks.statistics import Scale, benchmarks


def test_ours_and_scikit_learns_statistics_agree():
    scale = Scale(images=200, pixels=30, label_sets=3, resamples=20, repeats=1)
    rows = [measure(one) for one in benchmarks(scale)]
    assert [row["agreement"] < row["tolerance"] for row in rows] == [True, True, False]
    assert all(row["ours"] > 0 for row in rows)
