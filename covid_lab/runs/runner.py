"""Run notebooks in order, each in a fresh kernel, with progress line by line."""

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter

from covid_project.experiment import CACHE
from covid_project.settings import HOUSE, NOTEBOOKS, SETTINGS_VARIABLE, RunSettings, as_yaml
from covid_project.storage import fingerprint, write_text

EXECUTED = "notebooks"  # folder of the results: they show pixels of the data set and stay local


class NotebookFailed(RuntimeError):
    """A cell raised an error; the message holds the notebook, the error and where to read on."""


class Stopped(KeyboardInterrupt):
    """The user ended the run; the message says where."""


def run_notebooks(
    settings: RunSettings, names: tuple[str, ...] = NOTEBOOKS, lock: int | None = None
) -> None:
    """Execute notebooks and write them, with their outputs, to ``notebooks/`` of the results.

    ``names`` are paths in the project without their suffix, such as ``studies/pneumonia``. Each is
    written as ``<name>.ipynb`` and, for reading, as ``<name>.html``. The committed notebooks are
    not changed. What a cell prints appears at once, so that the progress of a long training is
    seen; after each cell a line says which it was and how much time is left, judged by the
    profile's expected seconds and the pace so far.

    ``lock`` is the descriptor from ``lock.only_run``: the kernels hold the results folder too, as
    they outlive for a moment a run that is killed.

    Raises
    ------
    NotebookFailed
        A cell raised an error, or its kernel died.
    Stopped
        The process was asked to end (Ctrl-C, or SIGTERM).
    """
    results = Path(settings.results)
    # Not among the results, as it holds this machine's paths; of this run alone, as others may run
    # in the same working folder.
    own = CACHE / f"run-{fingerprint(str(results.absolute()))}"
    profile = own / "run.yaml"
    write_text(profile, as_yaml(settings))
    os.environ[SETTINGS_VARIABLE] = str(profile.absolute())
    expected = {name: settings.expected_seconds.get(name, 60.0) for name in names}
    spent, finished = 0.0, 0.0  # seconds, and expected seconds of the notebooks that took them
    for number, name in enumerate(names, start=1):
        later = sum(expected[other] for other in names[number:])
        pace = spent / finished if finished else 1.0
        title = f"[{number}/{len(names)} {name}]"
        begun = time.perf_counter()
        _execute(name, results, own, lock, title, expected[name] * pace, later * pace)
        spent += time.perf_counter() - begun
        finished += expected[name]
    print(f"finished {len(names)} notebooks in {_duration(spent)}; results: {results}")


def _execute(
    name: str,
    results: Path,
    own: Path,
    lock: int | None,
    title: str,
    expected: float,
    later: float,
) -> None:
    notebook = nbformat.read(HOUSE / f"{name}.ipynb", as_version=4)
    page = results / EXECUTED / f"{Path(name).name}.html"
    log = own / f"{Path(name).name}.log"
    cells = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    begun = time.perf_counter()
    done = []

    def report(cell, cell_index, **_):
        done.append(cell_index)
        spent = time.perf_counter() - begun
        left = max(expected - spent, 0) + later
        print(
            f"{title} cell {cells.index(cell_index) + 1} of {len(cells)} done after "
            f"{_duration(spent)}; about {_duration(left)} left in all",
            flush=True,
        )

    client = _TalkingClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(Path.cwd())}},
        on_cell_executed=lambda cell, cell_index, **more: (
            report(cell, cell_index) if cell.cell_type == "code" else None
        ),
    )
    client.title = title
    try:
        with log.open("w") as stderr:  # TensorFlow's start-up notes, but also a crash's last words
            client.execute(stderr=stderr, pass_fds=() if lock is None else (lock,))
    except (asyncio.CancelledError, CellExecutionError, DeadKernelError) as error:
        if client.stopped:
            where = f"{name}.ipynb, cell {len(done) + 1} of {len(cells)}"
            raise Stopped(f"stopped in {where}; results: {results}") from None
        if isinstance(error, CellExecutionError):
            reason = f"{name}.ipynb: {error.ename}: {error.evalue}"
            raise NotebookFailed(f"{reason}\n(the cell and the traceback are in {page})") from None
        raise NotebookFailed(f"{name}.ipynb: {error} (see {log})") from None
    finally:  # a failed notebook is worth reading too
        write_text(page, HTMLExporter().from_notebook_node(notebook)[0])
        write_text(page.with_suffix(".ipynb"), nbformat.writes(notebook))


class _TalkingClient(NotebookClient):
    """Shows what cells print while they run, and stops cleanly; nbclient alone does neither."""

    title = ""
    stopped = False

    @asynccontextmanager
    async def async_setup_kernel(self, **kwargs):
        task = asyncio.current_task()

        def stop():
            self.stopped = True
            self.shutdown_kernel = "immediate"
            task.cancel()

        async with super().async_setup_kernel(**kwargs):
            try:
                for number in (signal.SIGINT, signal.SIGTERM):
                    asyncio.get_running_loop().add_signal_handler(number, stop)
            except RuntimeError:  # Windows, or a thread: Python's own KeyboardInterrupt is left
                pass
            yield

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream" and msg["content"]["name"] == "stdout":
            for line in msg["content"]["text"].splitlines():
                print(f"{self.title}   {line}", flush=True)
        return super().process_message(msg, cell, cell_index)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
