"""The same results whoever does the work, and none lost when a worker dies."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import joblib
import keras
import numpy as np
import pandas as pd
import pytest

from covid_lab.runs.workers import WorkersLost, each
from covid_project import tuning
from covid_project.files import read_csv
from covid_project.results import Run
from covid_project.settings import Axis

AXES = {
    "learning_rate": Axis(values=(0.004, 0.008), times=2, low=0.0002, high=0.1),
    "dropout": Axis(values=(0.2, 0.4), plus=0.2, low=0.0, high=0.8),
}
START = {"learning_rate": 0.004, "dropout": 0.2}
INPUTS, LABELS = np.float32([[1.0], [-1.0]]), np.array([1, 0])


def bowl(point):
    """A model whose loss is smallest beyond the planned range; the first trials take longest."""
    time.sleep(0.05 * (point["learning_rate"] == 0.004))
    if point["learning_rate"] == 0.032 and point["dropout"] == 0.2:
        raise FloatingPointError("the loss is no longer finite")
    objective = np.log2(point["learning_rate"] / 0.016) ** 2 + point["dropout"]
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.set_weights([np.float32([[-objective]]), np.float32([0])])
    history = pd.DataFrame({"epoch": [1], "loss": [objective]})
    history.attrs["initial_model"] = "same"
    return model, history


def once_killed(marker):
    """A function whose first call takes its worker down."""

    def function(item):
        if item == 2 and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item**2

    return function


def searched(folder, **how):
    """All trials of a search whose trials `each` runs, and the run that keeps its best model."""
    run = object.__new__(Run)  # only its folder is needed
    run.folder = Path(folder)
    with pytest.MonkeyPatch.context() as patch:
        if how:
            patch.setattr(tuning, "run_points", partial(each, **how))
        trials = tuning.search(
            run, "t", AXES, START, bowl, (INPUTS, LABELS), strategy="grid",
            identity={"data": "d"},
        )  # fmt: skip
    return trials.drop(columns="seconds"), run


def test_two_workers_are_others_with_half_of_the_cores_each():
    joblib.Parallel(2)(joblib.delayed(abs)(item) for item in (1, 2))  # processes of others

    def who(item):
        return item, os.getpid(), os.environ["TF_NUM_INTRAOP_THREADS"]

    before = os.environ.get("TF_NUM_INTRAOP_THREADS")
    found = dict(each(who, list("abcd"), workers=2))
    assert [found[number][0] for number in range(4)] == list("abcd")
    assert os.getpid() not in {process for _, process, _ in found.values()}
    assert {threads for *_, threads in found.values()} == {str(max(1, os.cpu_count() // 2))}
    assert os.environ.get("TF_NUM_INTRAOP_THREADS") == before


def test_the_table_of_a_search_is_the_same_whoever_ran_the_trials(tmp_path):
    alone, one = searched(tmp_path / "alone")
    together, other = searched(tmp_path / "together", workers=2)
    pd.testing.assert_frame_equal(alone, together)
    pd.testing.assert_frame_equal(
        together, read_csv(tmp_path / "together" / "tuning_t.csv")[[*together]]
    )
    assert alone["extension"].any()
    assert alone["val_loss"].isna().sum() == 1
    weights = [run.load_model("t_tuned", "x").get_weights()[0] for run in (one, other)]
    np.testing.assert_array_equal(*weights)


def test_a_trial_that_is_missing_in_the_middle_gets_its_own_number_again(tmp_path):
    whole, _ = searched(tmp_path)
    path = tmp_path / "tuning_t.csv"
    read_csv(path).drop(index=[1, 3]).to_csv(path, index=False)
    again, _ = searched(tmp_path)
    pd.testing.assert_frame_equal(again, whole)


def test_no_trial_is_lost_or_doubled_when_a_worker_is_killed(tmp_path, capsys):
    found = dict(each(once_killed(tmp_path / "killed"), [0, 1, 2, 3, 4], workers=2))
    assert found == {number: number**2 for number in range(5)}
    assert "a worker died" in capsys.readouterr().out


def test_workers_that_always_die_are_an_error(tmp_path):
    def die(item):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkersLost, match="more memory"):
        list(each(die, [1, 2], workers=2))


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="allowed: loky, ray, dask"):
        list(each(str, [1, 2], workers=2, backend="threads"))


def test_a_local_ray_cluster_gives_the_same_table_though_a_worker_is_killed(tmp_path):
    ray = pytest.importorskip("ray", reason="ray comes with requirements-bench.txt")
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])  # this module is found there
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": here}},
    )
    try:
        found = dict(each(once_killed(tmp_path / "k"), range(6), workers=2, backend="ray"))
        trials, _ = searched(tmp_path / "ray", workers=2, backend="ray")
    finally:
        ray.shutdown()
    assert found == {number: number**2 for number in range(6)}
    alone, _ = searched(tmp_path / "alone")
    pd.testing.assert_frame_equal(trials, alone)


def test_a_local_dask_cluster_gives_the_same_table_though_a_worker_is_killed(tmp_path):
    reason = "distributed comes with requirements-bench.txt"
    distributed = pytest.importorskip("distributed", reason=reason)
    import dask

    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        # What the environment variable DASK_SCHEDULER_ADDRESS sets when dask is imported.
        dask.config.set({"scheduler-address": cluster.scheduler_address}),
    ):
        found = dict(each(once_killed(tmp_path / "k"), range(6), workers=2, backend="dask"))
        trials, _ = searched(tmp_path / "dask", workers=2, backend="dask")
    assert found == {number: number**2 for number in range(6)}
    alone, _ = searched(tmp_path / "alone")
    pd.testing.assert_frame_equal(trials, alone)
