"""Run notebooks in order, each in a fresh kernel, and print their progress line by line."""

import asyncio
import json
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter

from covid_lab.progress import duration
from covid_project.files import write_text
from covid_project.settings import PROJECT

EXECUTED = "notebooks"  # folder of the results: they show images of the data set and stay local
LOGS = Path("cache", "logs")  # folder of the results: what the kernels write to stderr
CHATTER = "WARNING:tensorflow:"  # starts the lines that TensorFlow writes to stdout
TAG = "parameters"  # of the cell that names data, results and settings


class NotebookFailed(RuntimeError):
    """A cell raised an error; the message names the notebook, the error and where to read more."""


class Stopped(KeyboardInterrupt):
    """The user ended the run; the message says where."""


def run_notebooks(
    names: Sequence[str],
    values: Mapping[str, str | None],
    results: Path,
    *,
    expected: Mapping[str, float] | None = None,
    workers: int = 1,
    backend: str = "loky",
) -> None:
    """Execute notebooks and write them, with their outputs, to ``notebooks/`` of the results.

    Each is written as ``<name>.ipynb`` and, for reading, as ``<name>.html``. The committed
    notebooks are not changed. What a cell prints appears at once. After each cell, a line says
    which cell it was and how much time is left.

    Parameters
    ----------
    names : sequence of str
        Paths in the project without suffix, such as ``studies/pneumonia``.
    values : mapping of str to str or None
        What the cell with the tag ``parameters`` assigns for this run, such as absolute paths under
        DATA, RESULTS and SETTINGS. In the written notebook the cell is as it was committed.
    results : Path
        Folder of the results.
    expected : mapping of str to float, optional
        Seconds that each notebook is expected to take. The time left is shown only where all are
        known.
    workers : int, from 1
        Processes at once; with more than one, the trials of a search are spread over them.
    backend : {"loky", "ray", "dask"}
        See `covid_lab.runs.workers.each`.

    Raises
    ------
    NotebookFailed
        A cell raised an error, or its kernel died.
    Stopped
        The process was asked to end (Ctrl-C, or SIGTERM).
    """
    expected = dict(expected or {})
    is_known = all(name in expected for name in names)
    parameters = _parameters(values, workers, backend)
    spent, finished = 0.0, 0.0  # seconds, and expected seconds of the notebooks that took them
    for number, name in enumerate(names, start=1):
        pace = spent / finished if finished else 1.0
        left = [expected[other] * pace for other in names[number - 1 :]] if is_known else None
        title = f"[{number}/{len(names)} {name}]"
        begun = time.perf_counter()
        notebook = nbformat.read(PROJECT / f"{name}.ipynb", as_version=4)
        cells = [cell for cell in notebook.cells if TAG in cell.metadata.get("tags", ())]
        committed = [cell.source for cell in cells]
        for cell in cells:
            cell.source = parameters
        try:
            _execute(notebook, name, Path(results), title, left)
        finally:  # a failed notebook is written, too
            for cell, source in zip(cells, committed, strict=True):
                cell.source = source
            _write(notebook, _page(results, name), values)
        spent += time.perf_counter() - begun
        finished += expected.get(name, 0.0)
    print(f"finished {len(names)} notebooks in {duration(spent)}; results: {results}")


def _parameters(values: Mapping[str, str | None], workers: int, backend: str) -> str:
    lines = [f"{name} = {value!r}" for name, value in values.items()]
    if workers > 1:
        lines += [
            "import functools",
            "import sys",
            f"sys.path.insert(0, {str(PROJECT)!r})",
            "import covid_lab.runs.workers",
            "import covid_project.tuning",
            "covid_project.tuning.run_points = functools.partial("
            f"covid_lab.runs.workers.each, workers={workers}, backend={backend!r})",
        ]
    return "\n".join(lines)


def _page(results: Path, name: str) -> Path:
    return Path(results) / EXECUTED / f"{Path(name).name}.html"


def _write(notebook: nbformat.NotebookNode, page: Path, values: Mapping[str, str | None]) -> None:
    """Write an executed notebook and its page, with names in place of this machine's paths."""
    text = nbformat.writes(notebook)
    for value in sorted(filter(None, values.values()), key=len, reverse=True):
        text = text.replace(json.dumps(value)[1:-1], Path(value).name)
    write_text(page.with_suffix(".ipynb"), text)
    write_text(page, HTMLExporter().from_notebook_node(nbformat.reads(text, as_version=4))[0])


def _execute(
    notebook: nbformat.NotebookNode,
    name: str,
    results: Path,
    title: str,
    expected: Sequence[float] | None,
) -> None:
    """Run the cells; ``expected`` are the seconds of this notebook and of each later one."""
    log = results / LOGS / f"{Path(name).name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    cells = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    begun = time.perf_counter()
    done = []

    def report(cell, cell_index, **_):
        if cell.cell_type != "code":
            return
        done.append(cell_index)
        spent = time.perf_counter() - begun
        line = f"{title} cell {cells.index(cell_index) + 1} of {len(cells)} done after "
        line += duration(spent)
        if expected and spent <= expected[0]:
            line += f"; about {duration(sum(expected) - spent)} left in all"
        elif expected:
            line += f"; longer than the {duration(expected[0])} expected"
        print(line, flush=True)

    client = _TalkingClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str((PROJECT / name).parent)}},
        on_cell_executed=report,
    )
    client.title = title
    try:
        # TensorFlow's start-up notes, but also a crash's last words.
        with log.open("w", encoding="utf-8") as client.kernel_log:
            client.execute(stderr=client.kernel_log)
    except (asyncio.CancelledError, CellExecutionError, DeadKernelError) as error:
        if client.stopped:
            where = f"{name}.ipynb, cell {len(done) + 1} of {len(cells)}"
            raise Stopped(f"stopped in {where}; results: {results}") from None
        if isinstance(error, CellExecutionError):
            reason = f"{name}.ipynb: {error.ename}: {error.evalue}"
            raise NotebookFailed(
                f"{reason}\n(the cell and the traceback are in {_page(results, name)})"
            ) from None
        raise NotebookFailed(f"{name}.ipynb: {error} (see {log})") from None


class _OwnKernel(KernelSpecManager):
    """Starts this Python; a kernel python3 of the user's Jupyter may be another one."""

    def get_kernel_spec(self, kernel_name):
        return KernelSpec(**get_kernel_dict())


class _TalkingClient(NotebookClient):
    """Shows what cells print while they run, and stops cleanly; nbclient does neither."""

    title, stopped, kernel_log = "", False, None

    def create_kernel_manager(self):
        manager = super().create_kernel_manager()
        manager.kernel_spec_manager = _OwnKernel(parent=manager)
        return manager

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
            except (NotImplementedError, RuntimeError):
                pass  # on Windows and in threads, Python's KeyboardInterrupt remains
            yield

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream":
            text = msg["content"]["text"]
            if msg["content"]["name"] == "stderr" or text.startswith(CHATTER):
                self.kernel_log.write(text)
                return None
            for line in text.splitlines():
                print(f"{self.title}   {line}", flush=True)
        return super().process_message(msg, cell, cell_index)
