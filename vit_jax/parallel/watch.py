"""Watchdog: ends a process that stands still, or that fails while others wait for it.

The processes of a run wait for each other in every update. What ends such a wait, if one is lost:

- Its peers' collectives fail (Gloo notices a closed connection at once), or JAX's coordination
  service misses its heartbeats for 100 s and aborts all others, naming it.
- One that fails ends here at once, before anything is closed that would wait for the others.
- One whose main thread stays at one location for `timeout_seconds` says where, and ends.

After exit code 76 and an abort (SIGABRT) alike, the same command goes on from the last checkpoint.
"""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

import jax

from vit_jax.errors import ExitCode, VitJaxError, exit_code, printable
from vit_jax.parallel import processes

TICK = 2.0  # Seconds.
# Process 0 ends this many seconds after the others: JAX's coordination service lives in it, and
# aborts those that have not yet said what happened to them.
GRACE = 8.0

T = TypeVar("T")


class Watch:
    """Watches this process's main thread. A context manager."""

    def __init__(self, timeout_seconds: int):
        """Starts nothing yet.

        Args:
          timeout_seconds: the longest that the main thread may stay at one location.

        Raises:
          ConfigError: there are several processes, and nothing that notices the loss of one.
        """
        processes.coordination_client()
        self._timeout = timeout_seconds
        self._grace = GRACE if jax.process_count() > 1 and jax.process_index() == 0 else 0.0
        self._location = "start-up"
        # Seconds in which this process was running: time in which it is suspended does not count.
        self._now = self._since = 0.0
        self._closed = threading.Event()
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._guard, daemon=True)

    def at(self, location: str) -> None:
        """Says what the main thread does now; `timeout_seconds` count again from here."""
        self._location, self._since = location, self._now

    def over(self, items: Iterable[T], location: str) -> Iterator[T]:
        """Yields the items, each of which is a location."""
        for i, item in enumerate(items):
            self.at(f"{location}, batch {i}")
            yield item

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave_on_error(kind, error, trace)
        self._closed.set()
        self._thread.join()

    def leave_on_error(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends this process if there is an error and there are other processes; else returns.

        It has the signature of `__exit__`, for `ExitStack.push`.
        """
        if jax.process_count() == 1 or error is None or isinstance(error, SystemExit):
            return
        if _peer_is_lost(error):
            self._leave(
                f"{error}\nAnother process has ended or cannot be reached: see what it printed.",
                ExitCode.LOST,
            )
        text = str(error)
        if not isinstance(error, VitJaxError):
            text = "".join(traceback.format_exception(error))
        self._leave(text, exit_code(error))

    def _guard(self) -> None:
        """Ends a process that stays where it is."""
        tick = min(TICK, self._timeout / 4)
        while not self._closed.wait(tick):
            self._now += tick
            if self._now - self._since > self._timeout + self._grace:
                stack = "".join(traceback.format_stack(sys._current_frames()[self._main]))
                self._leave(
                    f"nothing has happened for {self._now - self._since:.0f} s "
                    f"(timeout_seconds={self._timeout}).\n{stack}",
                    ExitCode.LOST,
                )

    def _leave(self, message: str, code: ExitCode) -> None:
        """Ends this process at once, whatever its main thread waits for."""
        where = f"at {self._location}"
        if jax.process_count() > 1:
            where = (
                f"process {jax.process_index()} of {jax.process_count()} "
                f"(on {socket.gethostname()}), {where}"
            )
        if code == ExitCode.LOST:
            message = f"{message}\nThe same command goes on from the last checkpoint."
        try:
            with contextlib.suppress(OSError):  # Nobody may be left that reads it.
                print(printable(f"error: {where}: {message}"), file=sys.stderr, flush=True)
                sys.stdout.flush()
            time.sleep(self._grace)
        finally:
            os._exit(code)


def _peer_is_lost(error: BaseException | None) -> bool:
    """Whether JAX's runtime raised the error or a cause of it, other than for want of memory."""
    while error is not None:
        # Gloo's errors are a JaxRuntimeError or a ValueError, by where they are noticed.
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
            return "RESOURCE_EXHAUSTED" not in str(error)
        error = error.__cause__ or error.__context__
    return False
