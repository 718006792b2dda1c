"""The counting of the benchmark of near copies, on a draw that is counted by hand."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from benchmarks import near_copies as benchmark
from benchmarks.near_copies import KINDS, KNOWN, Draw, _best_threshold, _by_peer, score


@pytest.fixture
def drawn():
    """Four originals, of which the last two are known copies, and a copy of each kind of row 0."""
    originals = np.array([0, 1, 2, 3] + [0] * len(KINDS))
    names = np.array(["a", "b", *sorted(next(iter(KNOWN)))], dtype=object)
    images = [np.full((8, 8), row, np.uint8) for row in range(len(originals))]
    return Draw(images, names[originals], np.array([""] * 4 + list(KINDS)), originals)


def pairs_of(*pairs):
    return pd.DataFrame(pairs, columns=["first", "second", "score"])


def test_recall_and_precision_are_counted_as_said(drawn):
    # Two copies found; a pair of copies (true); a false pair; a known pair, which does not count.
    pairs = pairs_of((0, 4, 1.0), (5, 0, 0.9), (4, 6, 0.9), (1, 0, 0.5), (2, 3, 0.9))
    table, others = score(drawn, pairs)
    values = table.set_index(["measure", "kind"])
    recall = values.loc["recall"]
    assert recall.loc["all", ["n", "value"]].tolist() == [12, 2 / 12]
    assert recall["value"].drop("all").tolist() == [1, 1] + [0] * 10
    assert values.loc[("precision", "all"), ["n", "value"]].tolist() == [4, 3 / 4]
    assert others["known"].tolist() == [False, True]


def test_the_best_threshold_leaves_out_the_false_pair(drawn):
    pairs = pairs_of((0, 4, 0.9), (0, 5, 0.8), (0, 1, 0.6), (0, 6, 0.5))
    assert _best_threshold(drawn, pairs) == pytest.approx(0.8)


def test_what_another_python_prints_is_read(drawn, monkeypatch, tmp_path):
    answer = {
        "version": "1",
        "setting": 0.5,
        "pairs": [["00000.png", "00004.png", 1]],
    }
    script = tmp_path / "copies_by_peers.py"
    script.write_text(
        "import sys, pathlib\n"
        "print('a banner', len(list(pathlib.Path(sys.argv[2]).iterdir())))\n"
        f"print({json.dumps(json.dumps(answer))})\n"
    )
    monkeypatch.setattr(benchmark, "__file__", str(tmp_path / "near_copies.py"))
    found = _by_peer(sys.executable, "imagededup", drawn)
    assert found["pairs"][["first", "second"]].to_numpy().tolist() == [[0, 4]]
    script.write_text("raise SystemExit('no such package')")
    with pytest.raises(RuntimeError, match="no such package"):
        _by_peer(sys.executable, "imagededup", drawn)
