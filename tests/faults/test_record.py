"""The table of what was tried: a part of the tests that runs again leaves the rest as it was."""

import pandas as pd

from faults.record import Record


def test_what_was_not_tried_this_time_keeps_its_rows(tmp_path):
    first, second = Record(), Record()
    for tried, outcome in (("a search", "lost"), ("a search", "kept"), ("the report", "kept")):
        first("killed", tried, outcome)
    first("bad table", "splits.csv", "refused", count=3)
    first.write(tmp_path / "faults.csv")
    second("killed", "a search", "kept", count=2)
    second.write(tmp_path / "faults.csv")
    found = pd.read_csv(tmp_path / "faults.csv").set_index(["fault", "tried", "outcome"])["count"]
    assert found.to_dict() == {
        ("bad table", "splits.csv", "refused"): 3,
        ("killed", "the report", "kept"): 1,
        ("killed", "a search", "kept"): 2,
    }
