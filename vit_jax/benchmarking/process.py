"""The command's side of a worker: starts its process, tells it what to do, and ends it."""

import contextlib
import json
import os
import pathlib
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from vit_jax.benchmarking.case import Case
from vit_jax.benchmarking.worker import FAILED, REFUSED

_MODULE = "vit_jax.benchmarking.worker"
_KILLED = -9  # Exit code after SIGKILL, which the kernel sends when memory runs out.
_UNKNOWN_FLAG = "Unknown flag"  # XLA ends the process: "Unknown flag in XLA_FLAGS: --xla_...".
_EXIT_SECONDS = 20  # For a process whose input has ended.


class WorkerError(Exception):
    """What a worker was told to do did not work.

    Attributes:
      kind: out of memory, not installed, refused by this jaxlib, or failed.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class Worker:
    """A process of one contender; use it as a context manager."""

    def __init__(
        self,
        contender: str,
        case: Case,
        folder: pathlib.Path | None,
        *,
        env: Mapping[str, str] | None = None,
        **job: Any,
    ):
        """Starts the process; the first call of `do` waits for it.

        Args:
          contender: vit_jax, flax, transformers, timm, weights or matmul.
          case: what it measures.
          folder: with the files of all contenders of the case; None: there are none.
          env: further environment variables; XLA_FLAGS are added to those that are set.
          **job: further keys of its job.
        """
        self.contender, self.case = contender, case
        self._log = tempfile.TemporaryFile(mode="w+", errors="replace")  # noqa: SIM115
        job = {"contender": contender, "case": case.to_json(), "folder": str(folder or ""), **job}
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(case, env or {}),
        )
        self._unread = b""
        self._is_ready = False

    def do(self, task: str, *, timeout_seconds: float, **arguments: Any) -> Any:
        """Tells the worker to do something, and returns its result.

        Raises:
          WorkerError: it failed, ended, or took too long; it is then of no more use.
        """
        self.tell(task, **arguments)
        return self.hear(timeout_seconds=timeout_seconds)

    def tell(self, task: str, **arguments: Any) -> None:
        """Tells the worker to do something; `hear` returns its result."""
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `hear` reports how the process ended.
            stdin.write(json.dumps({"do": task, "arguments": arguments}).encode() + b"\n")
            stdin.flush()

    def hear(self, *, timeout_seconds: float) -> Any:
        """Waits for the result of what the worker was told; see `do`."""
        deadline = time.monotonic() + timeout_seconds
        if not self._is_ready:
            self._read(deadline)
            self._is_ready = True
        return self._read(deadline)

    def _read(self, deadline: float) -> Any:
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.close(kill=True)
                    raise WorkerError(FAILED, "it took longer than its time limit")
                part = os.read(stdout.fileno(), 2**16)
                if not part:
                    raise self._ended()
                self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["kind"], answer["error"])
        return answer["result"]

    def _ended(self) -> WorkerError:
        """Returns the error of a process that has ended by itself."""
        code = self._process.wait(_EXIT_SECONDS)
        if code == _KILLED:
            return WorkerError(FAILED, "its process was killed by signal 9 (out of memory?)")
        self._log.seek(0)
        text = self._log.read()
        if (start := text.find(_UNKNOWN_FLAG)) >= 0:
            return WorkerError(REFUSED, text[start:].partition("\n")[0][:300])
        lines = text.strip().splitlines() or ["without a message"]
        return WorkerError(FAILED, f"its process ended with code {code}: {lines[-1][:300]}")

    def cpu_seconds(self) -> float:
        """Returns the processor time of the process so far (Linux)."""
        fields = pathlib.Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2]
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def close(self, *, kill: bool = False) -> None:
        """Ends the process."""
        if kill:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _environment(case: Case, env: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of a worker: nothing is taken from a cache of compiled programs."""
    flags = [os.environ.get("XLA_FLAGS", ""), env.get("XLA_FLAGS", "")]
    if case.num_devices > 1:  # Without effect on a machine that has such devices.
        flags.append(f"--xla_force_host_platform_device_count={case.num_devices}")
    return {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # Several processes share a GPU: each takes what it needs, when it needs it.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
        **os.environ,
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        **env,
        "XLA_FLAGS": " ".join(filter(None, flags)),
    }
