"""The real processes of one run, each with one CPU device."""

import contextlib
import os
import socket
import subprocess
import sys

from tests.conftest import ROOT


@contextlib.contextmanager
def processes(commands, *, environments=None):
    """Starts the processes of one run; none is left behind.

    Args:
      commands: for each process what follows `python -m`.
      environments: by the process's number, what more is set in its environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    for i, command in enumerate(commands):
        env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
        if len(commands) > 1:
            env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(len(commands))}
            env["JAX_PROCESS_ID"] = str(i)
        env |= (environments or {}).get(i, {})
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        line = [sys.executable, "-m", *map(str, command)]
        started.append(subprocess.Popen(line, cwd=ROOT, env=env, **pipes))
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def ends(process, timeout=150):
    """The exit code and stderr of a process that ends by itself."""
    _, err = process.communicate(timeout=timeout)
    return process.returncode, err
