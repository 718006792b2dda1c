"""Two runs at once, a folder that cannot be written, a full disk, and Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from covid_project import lock
from covid_project.lock import FolderInUse, only_run, refuse_others
from covid_project.storage import write_csv
from faults.children import ENVIRONMENT
from faults.projects import project, start, wait_for

SAY = "print('at work', flush=True)"
SLEEP = "import time; time.sleep(60)"


def ended(process: subprocess.Popen) -> str:
    """What a process wrote to its error stream, once it has ended."""
    return process.communicate(timeout=60)[1]


def is_gone(process: int) -> bool:
    """Whether a process has ended; nobody may have asked yet how (then it is a zombie)."""
    stat = Path(f"/proc/{process}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture
def stopping():
    """Processes that are ended after the test, whatever comes of it."""
    processes = []
    yield processes.append
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_second_run_is_refused_and_told_who_is_at_work(tmp_path, record, stopping):
    house = project(tmp_path / "house", SAY, SLEEP)
    first = start(house)
    stopping(first)
    wait_for(first, "at work")
    second = start(house)
    said = ended(second)
    assert second.returncode == 1
    assert f"is in use by another run (process {first.pid} on " in said
    assert "since 20" in said
    assert first.poll() is None
    record("two runs", "one results folder", "second refused, told process and since when")

    first.send_signal(signal.SIGINT)
    said = ended(first)
    assert first.returncode == 130
    assert "stopped in baseline.ipynb, cell 2 of 2; results: " in said
    assert "the same command goes on" in said
    assert not list(house.rglob(lock.NAME))
    assert (house / "results/demo/notebooks/baseline.html").is_file()
    record("stopped", "SIGINT in a cell", "status 130, says where and how to go on")


def test_a_killed_run_and_its_kernel_stand_in_nobodys_way(tmp_path, record, stopping):
    house = project(tmp_path / "house", "import os", "print(f'kernel {os.getpid()}')", SLEEP)
    first = start(house)
    stopping(first)
    kernel = int(wait_for(first, "kernel ").split()[-1])
    first.kill()
    first.communicate()
    begun = time.monotonic()
    with only_run(house / "results/demo"):  # waits until the kernel has noticed
        assert is_gone(kernel)
        waited = time.monotonic() - begun
    assert waited < lock.LEFT_OVER
    record("two runs", "lock of a killed run", "taken over once its kernel has ended")


def test_two_runs_from_one_working_folder_keep_their_own_settings(tmp_path, record, stopping):
    cells = [
        "from covid_project.settings import load_settings; from pathlib import Path; import time",
        "print('at work', flush=True)\n"
        "while not Path('go').exists(): time.sleep(0.1)",
        "print(f'seed {load_settings().seed}', flush=True)",
    ]  # fmt: skip
    house = project(tmp_path / "house", *cells)
    runs = {
        seed: start(house, "--results", f"results-{seed}", "--set", f"seed={seed}")
        for seed in (11, 12)
    }
    for run in runs.values():
        stopping(run)
        wait_for(run, "at work")
    (house / "go").touch()
    for seed, run in runs.items():
        assert f"seed {seed}" in wait_for(run, "seed ")
        assert run.wait(timeout=60) == 0
    record("two runs", "one working folder, two results folders", "each kept its own settings")


def test_the_lock_is_of_the_process_that_holds_it(tmp_path):
    folder = tmp_path / "a" / "b"
    with only_run(folder):
        refuse_others(folder)  # this very run
        with pytest.raises(FolderInUse, match=f"process {os.getpid()} on "), only_run(folder):
            pass
    assert not (tmp_path / "a").exists()  # nothing was written
    refuse_others(folder)


def test_a_notebook_by_hand_is_refused_while_a_run_is_at_work(tmp_path, monkeypatch):
    with only_run(tmp_path):
        monkeypatch.setenv(lock.RUN_VARIABLE, "1")  # as of another run, or of none
        with pytest.raises(FolderInUse):
            refuse_others(tmp_path)


def test_without_locks_of_the_system_the_file_is_the_lock(tmp_path, monkeypatch, record):
    monkeypatch.setattr(lock, "fcntl", None)
    with only_run(tmp_path), pytest.raises(FolderInUse, match="delete"), only_run(tmp_path):
        pass
    with only_run(tmp_path):  # freed at the end
        pass
    (tmp_path / lock.NAME).touch()  # left behind by a killed run
    with pytest.raises(FolderInUse, match=r"delete .*\.lock"), only_run(tmp_path):
        pass
    record("two runs", "a system without locks", "second refused, told what to delete")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user")
def test_a_read_only_results_folder_is_one_clear_line(tmp_path, record):
    house = project(tmp_path / "house", SAY)
    (house / "results").mkdir(mode=0o555)
    for folder in (*house.parents, house):
        if folder.is_relative_to(tmp_path.parent.parent):
            folder.chmod(0o755)
    code = (
        "import os, sys, covid_project.runner, covid_project.lock\n"  # before rights are given up
        "from covid_project.__main__ import main\n"
        "os.setuid(65534)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    options = ["run", "--profile", str(house / "tiny.yaml"), "--results", str(house / "results/x")]
    done = subprocess.run(
        [sys.executable, "-c", code, *options],
        cwd=house, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "Permission denied" in last
    assert "results" in last
    record("disk", "read-only results folder", "one line that names it, status 1")


FULL = """
import resource, sys
from pathlib import Path
import numpy as np, pandas as pd
from covid_project.storage import append_rows, cached_array, write_csv
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
folder, caught = Path(sys.argv[1]), 0
big = pd.DataFrame({"number": np.arange(20_000)})
for work in (
    lambda: write_csv(folder / "table.csv", big),
    lambda: append_rows(folder / "table.csv", big),
    lambda: cached_array(folder / "array.npy", lambda: np.zeros(100_000)),
):
    try:
        work()
    except OSError as error:
        caught += "too large" in str(error) or "requested" in str(error)
print(caught)
"""


def test_a_full_disk_leaves_what_was_there(tmp_path, record):
    write_csv(tmp_path / "table.csv", pd.DataFrame({"number": [1]}))
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "3", done.stderr
    assert os.listdir(tmp_path) == ["table.csv"]
    assert pd.read_csv(tmp_path / "table.csv")["number"].tolist() == [1]
    record("disk", "full while a file is written", "an error, the old file whole, no rest", count=3)
