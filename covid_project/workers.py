"""The same work here or on many workers: one flag from a laptop to a cluster.

joblib hands the work out: "loky" starts processes on this machine, "ray" and "dask" go to the
cluster that the program is connected to (see README). A worker that dies takes nothing along but
what it was doing, which begins again.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import joblib
from joblib.externals.loky.process_executor import BrokenProcessPool

BACKENDS = ("loky", "ray", "dask")
LOST_IN_A_ROW = 3  # times that workers may die before any of them finishes something


class WorkersLost(RuntimeError):
    """Workers die again and again: most likely they have too little memory."""


def each[Item, Result](
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int = 1,
    backend: str = "loky",
) -> Iterator[tuple[int, Result]]:
    """Yield (number of the item, result) as soon as each is there, in any order.

    Parameters
    ----------
    function
        With one worker it is called here. Else it is sent to the workers with all that it refers
        to, so that it may hold arrays and settings, but no models.
    workers
        Processes at once; each has its share of this machine's cores.
    backend
        One of `BACKENDS`, with more than one worker.

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
    _connect(backend)
    threads = max(1, (os.cpu_count() or 1) // workers)
    waiting, lost = dict(enumerate(items)), 0
    while waiting:
        calls = [joblib.delayed(_call)(function, *each, threads) for each in waiting.items()]
        try:
            with _environment(threads):
                pool = joblib.Parallel(
                    n_jobs=workers,
                    backend=backend,
                    batch_size=1,
                    return_as="generator_unordered",
                )
                for number, result in pool(calls):
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
            print(f"a worker died; {len(waiting)} of {len(items)} begin again", flush=True)


def _call(function: Callable, number: int, item: object, threads: int) -> tuple[int, object]:
    if "tensorflow" in sys.modules:  # on a cluster, whose workers were started by others
        with suppress(RuntimeError):  # it has begun to work, with the number that it had
            sys.modules["tensorflow"].config.threading.set_intra_op_parallelism_threads(threads)
    return number, function(item)


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """What processes started now are told about threads; TensorFlow and BLAS read it."""
    names = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _connect(backend: str) -> None:
    """Make a cluster's backend known to joblib."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; allowed: {', '.join(BACKENDS)}")
    if backend == "ray":
        from ray.util.joblib import register_ray

        register_ray()
