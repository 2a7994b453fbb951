"""The commands as a user types them, without an interpreter and its imports for each call.

`Commands` runs each call in a process of its own, forked from one that has imported the commands:
it is `python -m vit_jax.VERB FLAGS` in every part but the import, and may be killed.

`call` runs a command in this process: flags, messages and exit code are those of a user. It takes
milliseconds, and the annotations are checked.
"""

import contextlib
import dataclasses
import faulthandler
import functools
import io
import os
import pathlib
import signal
import subprocess
import sys
import types
from typing import Any
from unittest import mock

from tests import forked

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 120  # A mistake that is not noticed trains on.


@dataclasses.dataclass(frozen=True)
class Result:
    """What a call left: exit code (negative: a signal), standard output, standard error."""

    code: int
    out: str
    err: str


class Running:
    """A call that runs in a process of its own.

    Attributes:
      pid: of the process, which leads its own process group.
    """

    def __init__(self, process: forked.Forked):
        self._process, self.pid = process, process.pid

    def text(self, name: str) -> str:
        """What it has written to "out" or "err" so far."""
        return getattr(self._process, name)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to the process."""
        os.kill(self.pid, number)

    def wait(self) -> Result:
        """Waits until it has ended, at most PATIENCE_SECONDS: then it is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_SECONDS)
        with contextlib.suppress(ProcessLookupError):  # Loader processes, too.
            os.killpg(self.pid, signal.SIGKILL)
        return Result(self._process.wait(10), self._process.out, self._process.err)


class Commands:
    """Runs commands in processes of their own, without the imports: see `tests.forked`."""

    def start(self, verb: str, *words: object, optimize: bool = False) -> Running:
        """Starts `python -m vit_jax.VERB WORDS`.

        Args:
          verb: or a module, such as tests.faulty_train; or a line of code, as of `python -c`.
          words: flags and arguments.
          optimize: whether XLA optimises programs as it does for a user; else it takes less time.
        """
        env = {"XLA_FLAGS": "" if optimize else forked.XLA_FLAGS}
        if " " in verb:
            module, words = "-c", (verb, *words)
        else:
            module = verb if "." in verb else f"vit_jax.{verb}"
        return Running(forked.start(module, *words, env=env, new_session=True))

    def run(self, verb: str, *words: object, **kwargs: Any) -> Result:
        """Runs `python -m vit_jax.VERB WORDS` to its end; takes the arguments of `start`."""
        return self.start(verb, *words, **kwargs).wait()


# -------------------------------------------------------------------------- inside this process


def call(verb: str, *words: object, cwd: object = ROOT) -> Result:
    """Runs `python -m vit_jax.VERB WORDS` in this process, on all its devices."""
    from absl import logging

    from vit_jax import cli

    path = ROOT / "vit_jax" / f"{verb}.py"
    out, err = io.StringIO(), io.StringIO()
    verbosity, code = logging.get_verbosity(), 0
    with (
        contextlib.chdir(cwd),
        mock.patch.object(sys, "argv", [str(path), *map(str, words)]),
        mock.patch.object(sys, "excepthook", sys.excepthook),
        mock.patch.object(cli, "_silence_tracebacks"),  # It changes the process for good.
        mock.patch.object(logging, "use_absl_handler"),
        mock.patch.object(faulthandler, "enable"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            exec(_compiled(path), {"__name__": "__main__"})
        except SystemExit as end:
            code = end.code or 0
    logging.set_verbosity(verbosity)
    return Result(code, out.getvalue(), err.getvalue())


@functools.cache
def _compiled(path: pathlib.Path) -> types.CodeType:
    return compile(path.read_text(), path, "exec")
