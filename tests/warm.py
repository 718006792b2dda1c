"""A Python that starts in no time: each process is forked from one that has imported TensorFlow.

`warm_python` starts that parent and writes a script that is called like Python, with ``-m`` or
``-c``. A process that is started this way starts others, such as Jupyter kernels, in the same way.
Elsewhere than on Linux the script is Python itself.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def warm_python(folder: Path) -> Iterator[str]:
    """Yield the path of the script; its socket is in the folder."""
    if not hasattr(os, "pidfd_open"):
        yield sys.executable
        return
    address, script = folder / "socket", folder / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{__file__}" "{address}" "$@"\n')
    script.chmod(0o755)
    command = [sys.executable, __file__, str(address), "serve", str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        parent.stdout.readline()
        yield str(script)
        parent.terminate()


def serve(address: str, script: str) -> list[str]:
    """Fork a process for each connection; in such a process, return its arguments."""
    import h5py  # noqa: F401
    import ipykernel.zmqshell  # noqa: F401
    import nbclient  # noqa: F401
    import nbconvert  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.model_selection  # noqa: F401
    import tensorflow  # noqa: F401

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        gc.freeze()  # else the first collection in each process copies all memory
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watchers
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection:
        streams = socket.recv_fds(connection, 1, 3)[1]
        request = json.loads(connection.makefile().readline())
        child = os.fork()
        if child:
            _watch(child, connection)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        setattr(sys, name, os.fdopen(number, "w", buffering=1, encoding="utf-8"))
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.executable = script
    if "ipykernel_launcher" in request["arguments"]:  # as a kernel does before Matplotlib is there
        os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    if "MPLBACKEND" in os.environ:
        import matplotlib

        matplotlib.rcParams["backend"] = os.environ["MPLBACKEND"]  # loaded when it is needed
    return request["arguments"]


def _watch(child: int, connection: socket.socket) -> None:
    """Report the status of a process, which is killed if nobody listens any more."""
    connection.sendall(f"{child}\n".encode())
    if connection in select.select([connection, os.pidfd_open(child)], [], [])[0]:
        os.kill(child, signal.SIGKILL)
        os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(f"{status}\n".encode())
    os._exit(0)


def ask(address: str, arguments: list[str]) -> int:
    """Have a process forked, pass signals on to it, and return its exit status."""
    environment = {k: v for k, v in os.environ.items() if k != "JPY_PARENT_PID"}
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": environment}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"\n"], [0, 1, 2])
        connection.sendall(json.dumps(request).encode() + b"\n")
        answers = connection.makefile()
        child = int(answers.readline())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(child, number))
        status = int(answers.readline() or 1)
    if status < 0:
        os.kill(os.getpid(), -status)
    return status


def run(arguments: list[str]) -> None:
    """Run a module (``-m``) or code (``-c``) as Python does."""
    option, what, *rest = (text for text in arguments if not text.startswith("-X"))
    sys.argv = [option, *rest]
    if option == "-c":
        sys.path[0] = ""
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path[0] = os.getcwd()
        runpy.run_module(what, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[2] == "serve":
        run(serve(sys.argv[1], sys.argv[3]))
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
