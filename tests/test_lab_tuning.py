import numpy as np

from covid_lab.tuning import measure_each
from covid_project.files import read_csv


def test_named_cases_are_measured_once_each_and_resumed(tmp_path):
    calls = []

    def run(value):
        calls.append(value)
        if value == 3:
            raise FloatingPointError("the loss is no longer finite")
        return {"doubled": 2 * value}

    path, how = tmp_path / "cases.csv", {"identity": {"data": "x"}, "title": "cases"}
    measure_each({"one": 1, "three": 3, "other": 4}, run, path, **how)
    table = measure_each({"two": 2, "one": 1, "three": 3}, run, path, **how)
    assert calls == [1, 3, 4, 2]
    assert table["case"].tolist() == ["two", "one", "three"]
    assert table["doubled"].tolist()[:2] == [4, 2]
    assert np.isnan(table["doubled"][2])
    assert table["data"].tolist() == ["x"] * 3
    assert sorted(read_csv(path)["case"]) == ["one", "other", "three", "two"]
