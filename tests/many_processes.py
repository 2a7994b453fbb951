"""The real processes of one run, each with one CPU device."""

import contextlib
import socket

from tests import forked


@contextlib.contextmanager
def processes(commands, *, environments=None):
    """Starts the processes of one run, and ends all of them on exit.

    Args:
      commands: for each process the arguments of `python -m`.
      environments: by process index, additional environment variables.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with contextlib.ExitStack() as started:
        run = []
        for i, command in enumerate(commands):
            env = {}
            if len(commands) > 1:
                env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(len(commands))}
                env["JAX_PROCESS_ID"] = str(i)
            env |= (environments or {}).get(i, {})
            run.append(started.enter_context(forked.start(*command, env=env)))
        yield run


def ends(process, timeout=150):
    """Waits for a process; returns its exit code and stderr."""
    return process.wait(timeout), process.err
