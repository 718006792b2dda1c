"""Two runs at once, a folder that cannot be written, a full disk, and Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from covid_lab.runs.lock import FolderInUse, only_run
from covid_lab.runs.settings import course_settings
from covid_project.files import write_csv
from faults.children import ENVIRONMENT
from faults.projects import project, start, wait_for

SAY = "print('at work', flush=True)"
SLEEP = "import time; time.sleep(60)"


def ended(process: subprocess.Popen) -> str:
    """What a process wrote to its error stream, once it has ended."""
    return process.communicate(timeout=60)[1]


def is_gone(process: int) -> bool:
    """Return whether a process has ended, or is a zombie."""
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
    folder = project(tmp_path / "project", SAY, SLEEP)
    first = start(folder)
    stopping(first)
    wait_for(first, "at work")
    second = start(folder)
    said = ended(second)
    assert second.returncode == 1
    assert f"is in use by another run (process {first.pid} on " in said
    assert "since 20" in said
    assert first.poll() is None
    record("two runs", "one results folder", "second refused, told process and since when")

    first.send_signal(signal.SIGINT)
    said = ended(first)
    assert first.returncode == 130
    assert "stopped in baseline.ipynb, cell 3 of 3; results: " in said
    assert "the same command continues" in said
    assert (folder / "made/notebooks/baseline.html").is_file()
    with only_run(folder / "made"):  # the folder is free again
        pass
    record("stopped", "SIGINT in a cell", "status 130, says where and how to go on")


def test_a_killed_run_and_its_kernel_stand_in_nobodys_way(tmp_path, record, stopping):
    folder = project(tmp_path / "project", "import os", "print(f'kernel {os.getpid()}')", SLEEP)
    first = start(folder)
    stopping(first)
    kernel = int(wait_for(first, "kernel ").split()[-1])
    first.kill()
    first.communicate()
    with only_run(folder / "made"):
        pass
    killed = time.monotonic()
    while not is_gone(kernel):
        assert time.monotonic() - killed < 20, "the kernel of a killed run is still at work"
        time.sleep(0.1)
    record("two runs", "lock of a killed run", "free at once; its kernel ends by itself")


def test_two_runs_from_one_working_folder_keep_their_own_settings(
    tmp_path, record, stopping, python
):
    cells = [
        "from covid_project.settings import load_settings; from pathlib import Path; import time",
        "print('at work', flush=True)\n"
        "while not Path('go').exists(): time.sleep(0.1)",
        "settings = load_settings(SETTINGS, data=DATA, results=RESULTS)",
        "print(f'seed {settings.seed} in {Path(settings.results).name}', flush=True)",
    ]  # fmt: skip
    folder = project(tmp_path / "project", *cells)
    runs = {
        seed: start(folder, "--results", f"results-{seed}", "--set", f"seed={seed}", python=python)
        for seed in (11, 12)
    }
    for run in runs.values():
        stopping(run)
        wait_for(run, "at work")
    (folder / "go").touch()
    for seed, run in runs.items():
        assert f"seed {seed} in results-{seed}" in wait_for(run, "seed ")
        assert run.wait(timeout=60) == 0
    record("two runs", "one working folder, two results folders", "each kept its own settings")


def test_the_lock_is_of_the_process_that_holds_it(tmp_path):
    folder = tmp_path / "a" / "b"
    refused = pytest.raises(FolderInUse, match=f"process {os.getpid()} on ")
    with only_run(folder), refused, only_run(folder):
        pass
    with only_run(folder):  # freed at the end
        pass


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user")
def test_a_read_only_results_folder_is_one_clear_line(tmp_path, record):
    folder = project(tmp_path / "project", SAY)
    course_settings(folder / "tiny.yaml")  # draws the images, as this user
    (folder / "results").mkdir(mode=0o555)
    for parent in (*folder.parents, folder):
        if parent.is_relative_to(tmp_path.parent.parent):
            parent.chmod(0o755)
    code = (
        # Imported before rights are given up.
        "import os, sys, covid_lab.runs.lock, covid_lab.runs.runner, covid_project.results\n"
        "from covid_lab.__main__ import main\n"
        "os.setuid(65534)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    options = ["--profile", str(folder / "tiny.yaml"), "--results", str(folder / "results/x")]
    done = subprocess.run(
        [sys.executable, "-c", code, "run", *options],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True,
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
from covid_project.files import append_rows, cached_array, write_csv
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
