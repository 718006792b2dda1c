import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from covid_lab.storage import bound_cache, filled_array, remove_leftovers
from covid_project.files import (
    append_rows,
    cached_array,
    fingerprint,
    read_csv,
    whole_file,
    write_csv,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "table.csv"
    write_text(path, "old")

    def write_half():
        with whole_file(path) as part:
            part.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    write_text(path, "old")
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from covid_project.files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode != 0
    assert path.read_text() == "old"


def test_what_killed_processes_left_is_removed_once_it_is_old(tmp_path):
    for age, name in ((7200, "old"), (60, "young")):
        for part in (tmp_path / f".part-{name}.csv", tmp_path / "deep" / f".part-{name}"):
            part.parent.mkdir(exist_ok=True)
            part.mkdir() if part.parent != tmp_path else part.touch()
            os.utime(part, (time.time() - age,) * 2)
    write_text(tmp_path / "table.csv", "kept")
    remove_leftovers(tmp_path)
    left = sorted(path.name for path in tmp_path.rglob("*"))
    assert left == [".part-young", ".part-young.csv", "deep", "table.csv"]


def test_appended_rows_come_back_as_written(tmp_path):
    path = tmp_path / "new" / "table.csv"
    first = pd.DataFrame({"a": [1], "b": [0.1 + 0.2]})
    append_rows(path, first)
    table = append_rows(path, pd.DataFrame({"a": [2], "c": ["x"]}))
    assert table["b"][0] == 0.1 + 0.2  # to the last bit
    assert table["c"].tolist()[1] == "x"
    pd.testing.assert_frame_equal(table, read_csv(path))


def test_text_with_any_end_of_line_comes_back_as_it_was(tmp_path):
    names = ["a\rb", "a\nb", "a\r\nb", 'a"b', "a,b", ""]
    write_csv(tmp_path / "t.csv", pd.DataFrame({"name": names, "number": range(6)}))
    table = read_csv(tmp_path / "t.csv")
    assert table["name"].fillna("").tolist() == names
    assert table["number"].tolist() == list(range(6))


def test_a_filled_array_is_whole_or_absent(tmp_path):
    path = tmp_path / "images.npy"

    def broken(array):
        array[:2] = 7
        raise RuntimeError

    with pytest.raises(RuntimeError):
        filled_array(path, (4, 2, 2, 1), broken)
    assert os.listdir(tmp_path) == []

    def fill(array):
        for row in range(len(array)):
            array[row] = row

    array = filled_array(path, (4, 2, 2, 1), fill)
    assert isinstance(array, np.memmap)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array[:, 0, 0, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(filled_array(path, (4, 2, 2, 1), broken), array)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_a_cache_keeps_its_youngest_entries_within_its_bound(tmp_path):
    names = ["phantoms-1/a/image.png", "features-1/copy0.npy", "features-1/copy1.npy",
             "images.npy", "logs/one.log"]  # fmt: skip
    for age, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(100_000))
        for one in (path, path.parent):
            os.utime(one, (1000 - age,) * 2)
    assert bound_cache(tmp_path, 1e6) == []
    assert bound_cache(tmp_path, 420_000) == [tmp_path / "logs"]
    # The features are one entry, as young as their youngest file.
    assert bound_cache(tmp_path, 320_000) == [tmp_path / "images.npy"]
    assert bound_cache(tmp_path, 200_000) == [tmp_path / "features-1"]
    left = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()]
    assert left == ["phantoms-1/a/image.png"]


def test_a_cached_array_is_computed_once_and_read_only(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return np.arange(6).reshape(2, 3)

    for _ in range(2):
        array = cached_array(tmp_path / "deep" / "array.npy", compute)
    assert len(calls) == 1
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError):
        array[0, 0] = 1


def test_fingerprint_tells_parts_types_and_shapes_apart():
    array = np.arange(4, dtype=np.uint8)
    different = [
        fingerprint("a", "b"), fingerprint("ab"), fingerprint("b", "a"), fingerprint(array),
        fingerprint(array.astype(np.int8)), fingerprint(array.reshape(2, 2)),
        fingerprint({"x": 1}), fingerprint({"x": 2}),
    ]  # fmt: skip
    assert len(set(different)) == len(different)
    assert fingerprint({"x": 1, "y": 2}) == fingerprint({"y": 2, "x": 1})
    assert all(len(digits) == 16 for digits in different)
