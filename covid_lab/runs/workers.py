"""The same work in this process or on many workers, from a laptop to a cluster.

"loky" (joblib's own) starts processes on this machine; "ray" and "dask" use the cluster that
`RAY_ADDRESS` or `DASK_SCHEDULER_ADDRESS` names, or else this machine. When a worker dies, only the
work that it had not finished is repeated.

``partial(each, workers=2)`` in place of ``covid_project.tuning.run_points`` spreads the trials of
the course's searches over workers.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial

import joblib
from joblib.externals.loky.process_executor import BrokenProcessPool

from covid_lab.runs.settings import BACKENDS

LOST_IN_A_ROW = 3  # deaths of workers without a result in between, until the work is given up


class WorkersLost(RuntimeError):
    """Workers die repeatedly, most likely because they have too little memory."""


def each[Item, Result](
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int = 1,
    backend: str = "loky",
) -> Iterator[tuple[int, Result]]:
    """Yield the number of each item and its result as soon as it is finished, in any order.

    Parameters
    ----------
    function : callable
        With one worker it is called here. Otherwise it is sent to the workers with everything that
        it refers to, such as arrays and settings.
    items : sequence
        The function's argument, one per call.
    workers : int, from 1
        Processes at once; this machine's cores are divided among them.
    backend : {"loky", "ray", "dask"}
        Used with more than one worker.

    Yields
    ------
    number : int
        Index of the item.
    result : object
        What the function returned.

    Raises
    ------
    ValueError
        Unknown backend.
    WorkersLost
        Workers died `LOST_IN_A_ROW` times without finishing anything.
    """
    if workers == 1:
        yield from ((number, function(item)) for number, item in enumerate(items))
        return
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; allowed: {', '.join(BACKENDS)}")
    threads = max(1, (os.cpu_count() or 1) // workers)
    send = _through_ray if backend == "ray" else partial(_through_joblib, backend)
    call = partial(_call, function, threads, os.getpid())
    waiting, lost = dict(enumerate(items)), 0
    while waiting:
        try:
            for number, result in send(call, dict(waiting), workers):
                del waiting[number]
                lost = 0
                yield number, result
        except BrokenProcessPool as error:
            lost += 1
            if lost == LOST_IN_A_ROW:
                raise WorkersLost(
                    f"workers died {lost} times before any finished something: use fewer of them "
                    "(setting workers), so that each has more memory"
                ) from error
            print(f"a worker died; {len(waiting)} of {len(items)} items start again", flush=True)


def _through_joblib(backend: str, call: Callable, items: dict, workers: int) -> Iterator:
    client = _dask_client() if backend == "dask" else nullcontext()
    with client, _environment(call.args[1]), joblib.parallel_config(backend=backend):
        pool = joblib.Parallel(
            n_jobs=workers, batch_size=1, pre_dispatch="all", return_as="generator_unordered"
        )
        yield from pool(joblib.delayed(call)(*item) for item in items.items())


def _dask_client():
    """Return a context with the process' Dask client, or else with a new one."""
    from distributed import Client, get_client

    try:
        return nullcontext(get_client())
    except ValueError:
        return Client()


def _through_ray(call: Callable, items: dict, workers: int) -> Iterator:
    """Use Ray's own tasks: its joblib backend returns nothing before everything is done."""
    import ray

    send = ray.remote(max_retries=LOST_IN_A_ROW)(lambda call, item: call(*item))
    call, left, running = ray.put(call), list(items.items()), []
    while left or running:
        while left and len(running) < workers:
            running.append(send.remote(call, left.pop(0)))
        finished, running = ray.wait(running)
        yield from ray.get(finished)


def _call(
    function: Callable, threads: int, parent: int, number: int, item: object
) -> tuple[int, object]:
    if os.getpid() != parent:  # joblib may reuse processes that were started before
        os.environ.update(_thread_settings(threads))
    if "tensorflow" in sys.modules:  # on a cluster, which others started
        with suppress(RuntimeError):  # too late: TensorFlow has started its threads
            sys.modules["tensorflow"].config.threading.set_intra_op_parallelism_threads(threads)
    return number, function(item)


def _thread_settings(threads: int) -> dict[str, str]:
    names = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Limit the threads of processes started here; TensorFlow and BLAS read these variables."""
    settings = _thread_settings(threads)
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
