"""Python programs as processes of their own, without a cold start: forked, not begun again.

Importing JAX, Orbax and vit_jax takes seconds, and a test of a run on three processes would do it
three times. One process, the server, imports them once and initialises no backend; each program is
a fork of it, with its own environment, arguments, folder and files for what it prints. In the fork
the module runs as `__main__` and the interpreter ends as it always does, so exit codes, signals,
`atexit` and tracebacks are those of `python -m MODULE`. XLA reads XLA_FLAGS, and
vit_jax.parallel.processes the addresses of the other processes, when a backend is initialised: in
the fork. What JAX reads when it is imported is the same for the server and all forks.

Tests call `start`. The server of a test process starts with the first call, and ends with it.
"""

import contextlib
import functools
import gc
import itertools
import json
import os
import pathlib
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import IO, Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
XLA_FLAGS = "--xla_backend_optimization_level=0"  # Programs run for a moment.
# What the commands import when they begin.
IMPORTED = (
    "vit_jax.cli",
    "vit_jax.training.run",
    "vit_jax.inference.evaluate",
    "vit_jax.inference.predict",
    "vit_jax.pretrained.exports",
    "vit_jax.pretrained.verification",
    "vit_jax.pretrained.inspection",
    "vit_jax.sweeps.run",
    "vit_jax.scaling.fit",
    "vit_jax.data.digits",
    "vit_jax.data.tfds_source",
    "matplotlib.backends.backend_agg",
)


class Forked:
    """A program that was started, as `subprocess.Popen` has it."""

    def __init__(self, connection: socket.socket, printed: str):
        self._connection, self._printed = connection, printed
        self.pid = int(self._line())
        self.returncode: int | None = None  # Negative: the signal that ended it.

    def _line(self) -> str:
        line = bytearray()
        while not line.endswith(b"\n"):
            received = self._connection.recv(1)
            assert received, "the server of tests/forked.py has ended"
            line += received
        return line.decode()

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit code.

        Raises:
          subprocess.TimeoutExpired: the program still runs after `timeout` seconds.
        """
        if self.returncode is None:
            timeout = None if timeout is None else max(0.0, timeout)
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self.returncode = int(self._line())
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """Returns the exit code; None: the program still runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Sends a signal, if the program still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    @property
    def out(self) -> str:
        """What it has written to standard output."""
        return pathlib.Path(f"{self._printed}.out").read_text(errors="replace")

    @property
    def err(self) -> str:
        """What it has written to standard error."""
        return pathlib.Path(f"{self._printed}.err").read_text(errors="replace")

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()
        self.wait()


def start(
    module: str,
    *arguments: object,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike = ROOT,
    output: IO[bytes] | None = None,
    new_session: bool = False,
) -> Forked:
    """Starts `python -m MODULE ARGUMENTS` with one CPU device; XLA optimises nothing.

    Args:
      module: which the server has not imported, or a command; or "-c", as of `python -c`.
      arguments: of the program; the first after "-c" is its code.
      env: variables beyond those of this process.
      cwd: folder that it runs in.
      output: a file for standard output and standard error; None: see `Forked.out`, `Forked.err`.
      new_session: it gets a process group, as a shell would give it.
    """
    folder = _server()
    request = {
        "module": module,
        "arguments": [*map(str, arguments)],
        "env": {**os.environ, "XLA_FLAGS": XLA_FLAGS, "JAX_PLATFORMS": "cpu", **(env or {})},
        "cwd": os.fspath(cwd),
        "new_session": new_session,
    }
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"{folder}/socket")
    printed = f"{folder}/{next(_started)}"
    with contextlib.ExitStack() as files:
        asked = files.enter_context(tempfile.TemporaryFile())  # Too long for one message.
        asked.write(json.dumps(request).encode())
        asked.flush()
        both = [output or files.enter_context(open(f"{printed}.{x}", "wb")) for x in ("out", "err")]
        socket.send_fds(connection, [b"."], [file.fileno() for file in (asked, *both)])
        return Forked(connection, printed)


def run(module: str, *arguments: object, timeout: float = 280, **how: Any) -> Forked:
    """Starts a program and waits for its end; see `start`."""
    with start(module, *arguments, **how) as process:
        process.wait(timeout)
    return process


def ready() -> None:
    """Starts the server, if it is not there: for fixtures, whose time is no test's."""
    _server()


@functools.cache
def _server() -> str:
    """Starts the server; returns the folder of its socket, and of what the programs print."""
    folder = tempfile.TemporaryDirectory(prefix="forked-")
    path = f"{folder.name}/socket"
    env = {**os.environ, "XLA_FLAGS": XLA_FLAGS, "JAX_PLATFORMS": "cpu"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forked", path], cwd=ROOT, env=env, stdin=pipe, stdout=pipe
    )
    assert process.stdout.readline() == b"ready\n", "the server of tests/forked.py did not start"
    _kept.append((process, folder))  # It ends when its standard input is closed: with this process.
    return folder.name


_started = itertools.count()
_kept: list[tuple[subprocess.Popen, tempfile.TemporaryDirectory]] = []


# ------------------------------------------------------------------------------ in the server


def _serve(path: str) -> dict[str, Any] | None:
    """Forks for each request; returns in the forks, with the request, and at the end with None."""
    waiting = selectors.DefaultSelector()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    waiting.register(listener, selectors.EVENT_READ)
    waiting.register(sys.stdin, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is sys.stdin:
                return None
            if key.fileobj is listener:
                connection, _ = listener.accept()
                _, fds, *_ = socket.recv_fds(connection, 1, 3)
                if (pid := os.fork()) == 0:
                    for other in [key for key in waiting.get_map().values() if key.data]:
                        os.close(other.fd)
                        other.data[1].close()
                    for ours in (listener, connection, waiting):
                        ours.close()
                    return _become(*fds)
                for fd in fds:
                    os.close(fd)
                connection.sendall(f"{pid}\n".encode())
                waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
            else:
                pid, connection = key.data
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                waiting.unregister(key.fileobj)
                os.close(key.fd)
                with contextlib.suppress(BrokenPipeError), connection:  # The test may be over.
                    connection.sendall(f"{code}\n".encode())


def _become(request: int, out: int, err: int) -> dict[str, Any]:
    """Turns this fork into the program that the file with descriptor `request` asks for."""
    with open(request, "rb") as file:
        file.seek(0)
        asked = json.loads(file.read())
    if asked["new_session"]:
        os.setsid()
    # What a shell starts in the background ignores Ctrl-C, and so would all that is forked here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (err, 2)):
        os.dup2(source, target)
        os.close(source)
    import jax

    for name in jax.config.values:  # JAX has read these.
        variable = name.upper()
        if asked["env"].get(variable) != os.environ.get(variable):
            raise ValueError(f"{variable} is another than it was when the server started.")
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.argv = [asked["module"], *asked["arguments"]]
    return asked


if __name__ == "__main__":
    for name in IMPORTED:
        __import__(name)
    gc.freeze()  # Forks share what is imported, as long as nothing writes to it.
    if program := _serve(sys.argv[1]):
        if program["module"] == "-c":
            exec(sys.argv.pop(1), {"__name__": "__main__"})
        else:
            runpy.run_module(program["module"], run_name="__main__", alter_sys=True)
