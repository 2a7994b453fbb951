"""One process of `vit_jax.train`: starts it, and interprets its exit code."""

import contextlib
import dataclasses
import datetime
import fcntl
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping

from vit_jax.errors import ConfigError, ExitCode
from vit_jax.sweeps import record as records

# A run that ends this many times without a new checkpoint is not started again.
MAX_DEATHS = 3
_LONGEST_ERROR = 2000  # Characters.
_START = pathlib.Path(__file__).with_name("start.py")


@dataclasses.dataclass(frozen=True)
class End:
    """How a process ended.

    Attributes:
      status: "finished", "failed", or "stopped": the same command resumes the run.
      error: its last error message, or the signal that killed it.
    """

    status: str
    error: str = ""


class Attempt:
    """A process of a run; its output is appended to the run's log.

    The log stays locked until the process and its children have ended, because the lock belongs to
    the open file. So the process can be detected before it locks the work directory.
    """

    def __init__(
        self,
        command: list[str],
        workdir: pathlib.Path,
        *,
        cores: frozenset[int] = frozenset(),
        environment: Mapping[str, str],
    ):
        """Starts the process. It is stopped when the calling thread ends.

        Args:
          command: the command of the run.
          workdir: the work directory of the run; created if it does not exist.
          cores: the CPU cores that the process may use; empty: all.
          environment: added to the environment of this process.

        Raises:
          ConfigError: the log cannot be written.
        """
        self._log_path = workdir / records.LOG
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            with self._log_path.open("ab") as log:
                now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
                log.write(f"--- {now}: {shlex.join(command)}\n".encode())
                log.flush()
                # The file system may lack locks, or an ending process may still hold this one.
                with contextlib.suppress(OSError):
                    fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._log_start = log.tell()
                with _block_signal(signal.SIGUSR2):
                    self._process = subprocess.Popen(
                        [
                            *(sys.executable, "-I", "-S", str(_START), str(os.getpid())),
                            ",".join(map(str, sorted(cores))),
                            *command,
                        ],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, **environment},
                        process_group=0,  # Only the sweep gets Ctrl-C; it stops its runs.
                    )
        except OSError as error:
            raise ConfigError(f"{self._log_path} cannot be written: {error.strerror}.") from error

    def poll(self) -> End | None:
        """Returns how the process ended; None while it runs."""
        code = self._process.poll()
        return None if code is None else self._end(code)

    def wait(self) -> End:
        """Waits for the process and returns how it ended."""
        return self._end(self._process.wait())

    def stop(self) -> None:
        """Tells the process to save and end (SIGTERM)."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _end(self, code: int) -> End:
        if code == 0:
            return End("finished")
        if code < 0:
            names = {number.value: number.name for number in signal.Signals}
            return End("stopped", f"killed by {names.get(-code, f'signal {-code}')}")
        error = self._error_message(code)
        if code in (ExitCode.STOPPED, ExitCode.LOST):
            return End("stopped", error)
        return End("failed", error)

    def _error_message(self, code: int) -> str:
        """Returns our error message, the last line of a traceback, or the last line of the log."""
        try:
            with self._log_path.open("rb") as log:
                log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - 2**16))
                text = log.read().decode(errors="replace").strip()
        except OSError as error:  # The log may have been deleted.
            return f"exit code {code}; its log cannot be read: {error.strerror}"
        if code == ExitCode.ERROR and (
            messages := re.split(r"^error: ", text, flags=re.MULTILINE)[1:]
        ):
            return messages[-1][:_LONGEST_ERROR]
        lines = text.splitlines() or [f"exit code {code}, no output"]
        exceptions = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        return (exceptions or lines)[-1][:_LONGEST_ERROR]


@contextlib.contextmanager
def _block_signal(number: signal.Signals) -> Iterator[None]:
    """Blocks a signal in this thread and in processes that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class RetryLimit:
    """Limits the restarts of a run that makes no progress."""

    def __init__(self) -> None:
        # Newest step, and how many times the run has ended at it.
        self._ends_at_step: dict[pathlib.Path, tuple[int, int]] = {}

    def apply(self, workdir: pathlib.Path, end: End) -> End:
        """Returns `end`, or a failure if the run has ended MAX_DEATHS times at the same step."""
        if end.status != "stopped":
            return end
        step = records.newest_step(workdir)
        last_step, count = self._ends_at_step.get(workdir, (None, 0))
        count = count + 1 if last_step == step else 1
        self._ends_at_step[workdir] = step, count
        if count < MAX_DEATHS:
            return end
        progress = f"getting beyond step {step}" if step >= 0 else "saving its first checkpoint"
        return End("failed", f"It ended {count} times without {progress}. Last error: {end.error}")
