"""One process of `vit_jax.train`: started with its share of the machine, and what its end means."""

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

# A run that is killed so often without a new checkpoint is not started again.
MAX_DEATHS = 3
_LONGEST_ERROR = 2000  # Letters.
_START = pathlib.Path(__file__).with_name("start.py")


@dataclasses.dataclass(frozen=True)
class End:
    """How a process ended.

    Attributes:
      status: "finished", "failed", or "stopped": the same command goes on.
      error: what it said last, or what killed it.
    """

    status: str
    error: str = ""


class Attempt:
    """A process of a run, with its output at the end of the run's log.

    The log is locked until the process has ended, and all that it has started: the lock goes with
    the open file. So one knows of it before it has taken the work directory.
    """

    def __init__(
        self,
        command: list[str],
        workdir: pathlib.Path,
        *,
        cores: frozenset[int] = frozenset(),
        environment: Mapping[str, str],
    ):
        """Starts it. It ends with the thread that calls this.

        Args:
          command: of the run.
          workdir: of the run; made if it is not there.
          cores: that it may use; none: all.
          environment: variables that it has beside those of this process.

        Raises:
          ConfigError: its log cannot be written.
        """
        self._path = workdir / records.LOG
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as log:
                now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
                log.write(f"--- {now}: {shlex.join(command)}\n".encode())
                log.flush()
                with contextlib.suppress(OSError):  # No locks here, or one that is ending has it.
                    fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._begin = log.tell()
                with _blocked(signal.SIGUSR2):
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
                        process_group=0,  # Ctrl-C is for the sweep, which tells its runs.
                    )
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be written: {error.strerror}.") from error

    def poll(self) -> End | None:
        """How it ended; None: it runs."""
        code = self._process.poll()
        return None if code is None else self._end(code)

    def wait(self) -> End:
        """How it ended, once it has."""
        return self._end(self._process.wait())

    def stop(self) -> None:
        """Tells it to save and end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it, and the processes that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _end(self, code: int) -> End:
        if code == 0:
            return End("finished")
        if code < 0:
            names = {number.value: number.name for number in signal.Signals}
            return End("stopped", f"killed by {names.get(-code, f'signal {-code}')}")
        said = self._said(code)
        if code in (ExitCode.STOPPED, ExitCode.LOST):
            return End("stopped", said)
        return End("failed", said)

    def _said(self, code: int) -> str:
        """Why it ended: our own message, a traceback's last line, or the last line there is."""
        try:
            with self._path.open("rb") as log:
                log.seek(max(self._begin, log.seek(0, os.SEEK_END) - 2**16))
                text = log.read().decode(errors="replace").strip()
        except OSError as error:  # Somebody has tidied up.
            return f"exit code {code}; its log is not there: {error.strerror}"
        if code == ExitCode.ERROR and (
            messages := re.split(r"^error: ", text, flags=re.MULTILINE)[1:]
        ):
            return messages[-1][:_LONGEST_ERROR]
        lines = text.splitlines() or [f"exit code {code}, and not a word"]
        raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        return (raised or lines)[-1][:_LONGEST_ERROR]


@contextlib.contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    """Inside, a signal waits, also for a process that is started."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Patience:
    """Whether a run that was killed is to be started again: as long as it gets further."""

    def __init__(self) -> None:
        self._tries: dict[pathlib.Path, tuple[int, int]] = {}  # Newest step, how often.

    def conclude(self, workdir: pathlib.Path, end: End) -> End:
        """The same end, or a failure if the run has been killed too often at one place."""
        if end.status != "stopped":
            return end
        step = records.newest_step(workdir)
        before, count = self._tries.get(workdir, (None, 0))
        count = count + 1 if before == step else 1
        self._tries[workdir] = step, count
        if count < MAX_DEATHS:
            return end
        place = f"step {step}" if step >= 0 else "its first checkpoint"
        got = "beyond" if step >= 0 else "to"
        return End(
            "failed", f"It ended {count} times without getting {got} {place}. At last: {end.error}"
        )
