"""What Windows refuses, refused here too: the package must not ask for it."""

import builtins
import io
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from covid_project.files import cached_array, read_csv, write_csv, write_text
from covid_project.models import baseline_cnn
from covid_project.normalization import normalization_layer
from covid_project.results import open_run
from covid_project.settings import load_settings


@pytest.fixture(autouse=True)
def windows(monkeypatch):
    """Refuse to flush a file opened for reading, and names with ":" or "?"."""
    real_open, real_fsync = builtins.open, os.fsync
    modes = {}

    def opened(file, mode="r", *arguments, **options):
        if isinstance(file, str | os.PathLike) and set(":?*<>|") & set(os.path.basename(file)):
            raise OSError(22, "Invalid argument", str(file))
        stream = real_open(file, mode, *arguments, **options)
        modes[stream.fileno()] = mode
        return stream

    def flushed(descriptor):
        if "r" in modes.get(descriptor, "") and "+" not in modes[descriptor]:
            raise OSError(9, "Bad file descriptor")
        return real_fsync(descriptor)

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr(os, "fsync", flushed)


def test_files_are_written(tmp_path):
    write_text(tmp_path / "a.txt", "grün")
    assert (tmp_path / "a.txt").read_bytes() == "grün".encode()
    table = pd.DataFrame({"a": [1, 2]})
    write_csv(tmp_path / "t.csv", table)
    assert (tmp_path / "t.csv").read_bytes() == b"a\n1\n2\n"
    pd.testing.assert_frame_equal(read_csv(tmp_path / "t.csv"), table)
    np.testing.assert_array_equal(cached_array(tmp_path / "n.npy", lambda: np.arange(3)), [0, 1, 2])


def test_a_run_keeps_its_tables_models_and_figures(image_folder, tmp_path):
    run = open_run(load_settings(data=image_folder, results=tmp_path / "my results"))
    model = baseline_cnn(32, normalization_layer("sample", None), filters=2, dropout=0.1)
    run.save_model("baseline", model, pd.DataFrame({"epoch": [1]}), {"rate": 0.1})
    images, _ = run.test_split("baseline", run.load_model("baseline", "baseline.ipynb"), 32)
    run.record_metrics("baseline", "test", images[:, 0, 0, 0] - 100.0)
    run.save_figure(plt.figure(), "curve")
    assert (run.folder / "figures" / "curve.pdf").is_file()
