"""Work in a process of its own, with a limit on time, and its peak memory measured."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "tests")]),
    "MPLBACKEND": "Agg",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def call(function: str, *arguments, seconds: float = 600, python: str = sys.executable) -> dict:
    """Result (JSON) of ``module:function`` in a new process; a crash or a hang fails."""
    module, _, name = function.partition(":")
    code = (
        f"import json, sys; from {module} import {name}\n"
        f"result = {name}(*json.loads(sys.argv[1]))\n"
        "print('\\nresult: ' + json.dumps(result))"
    )
    command = [python, "-c", code, json.dumps([str(a) for a in arguments])]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"ended with {done.returncode}:\n{done.stderr[-3000:]}"
    return json.loads(done.stdout.rpartition("\nresult: ")[2])


def memory(field: str) -> int:
    """Bytes that this process holds ("VmRSS") or has held at most ("VmHWM"); 0 where unknown."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status).group(1))
