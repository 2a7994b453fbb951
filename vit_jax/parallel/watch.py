"""Watchdog: ends a process that is stalled, or that fails while others wait for it.

The processes of a run wait for each other in every update. If one is lost, the others stop
waiting:

- A lost process: the collectives of its peers fail (Gloo notices a closed connection at once), or
  JAX's coordination service misses its heartbeats for 100 s and aborts all others, naming it.
- A process that fails exits at once (`Watch.exit_on_error`), before it closes anything that waits
  for the others.
- A process whose main thread stays at one location for `timeout_seconds` prints it and exits.

After exit code 76 or an abort (SIGABRT), the same command continues from the last checkpoint.
"""

import contextlib
import os
import re
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

POLL_SECONDS = 2.0
# Process 0 exits this much later than the others: it runs JAX's coordination service, whose end
# aborts processes before they have printed their errors.
GRACE_SECONDS = 8.0

T = TypeVar("T")


class Watch:
    """Watches this process's main thread. A context manager."""

    def __init__(self, timeout_seconds: int):
        """Makes a watchdog; entering the context starts it.

        Args:
          timeout_seconds: the longest that the main thread may stay at one location.

        Raises:
          ConfigError: there are several processes, but no coordination service, which would notice
            the loss of one.
        """
        processes.coordination_client()
        self._timeout = timeout_seconds
        coordinates = jax.process_count() > 1 and jax.process_index() == 0
        self._grace = GRACE_SECONDS if coordinates else 0.0
        self._location = "start-up"
        # Seconds in which this process was running: suspended time does not count.
        self._now = self._since = 0.0
        self._closed = threading.Event()
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def at(self, location: str) -> None:
        """Sets the main thread's location, for messages, and restarts the time-out."""
        self._location, self._since = location, self._now

    def iterate(self, items: Iterable[T], location: str) -> Iterator[T]:
        """Yields the items; restarts the time-out before each is fetched."""
        self.at(f"{location}, batch 0")
        for i, item in enumerate(items, start=1):
            yield item
            self.at(f"{location}, batch {i}")

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.exit_on_error(kind, error, trace)
        self._closed.set()
        self._thread.join()

    def exit_on_error(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends this process if there is an error and there are other processes; else returns.

        It has the signature of `__exit__`, for `ExitStack.push`.
        """
        if jax.process_count() == 1 or error is None or isinstance(error, SystemExit):
            return
        if peer_is_lost(error):
            self._exit(
                f"{error}\nAnother process has ended or cannot be reached: see what it printed.",
                ExitCode.LOST,
            )
        text = str(error)
        if not isinstance(error, VitJaxError):
            text = "".join(traceback.format_exception(error))
        self._exit(text, exit_code(error))

    def _poll(self) -> None:
        """Body of the thread: ends a stalled process."""
        interval = min(POLL_SECONDS, self._timeout / 4)
        while not self._closed.wait(interval):
            self._now += interval
            if self._now - self._since > self._timeout:
                stack = "".join(traceback.format_stack(sys._current_frames()[self._main]))
                self._exit(
                    f"nothing has happened for {self._now - self._since:.0f} s "
                    f"(timeout_seconds={self._timeout}).\n{stack}",
                    ExitCode.LOST,
                )

    def _exit(self, message: str, code: ExitCode) -> None:
        """Ends this process at once, even if its main thread is blocked."""
        self._closed.set()  # No second message while this one waits.
        location = f"at {self._location}"
        if jax.process_count() > 1:
            location = (
                f"process {jax.process_index()} of {jax.process_count()} "
                f"(on {socket.gethostname()}), {location}"
            )
        if code == ExitCode.LOST:
            message = f"{message}\nThe same command continues from the last checkpoint."
        try:
            with contextlib.suppress(OSError):  # The reader of a pipe may have ended.
                print(printable(f"error: {location}: {message}"), file=sys.stderr, flush=True)
                sys.stdout.flush()
            time.sleep(self._grace)
        finally:
            os._exit(code)


# In the messages of collectives and of the coordination service if another process is gone. Other
# errors of JAX's runtime (no memory, an invalid program) are this process's own.
_LOST_PEER = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|Gloo |NCCL.*remote|[Cc]onnection|[Hh]eartbeat"
)


def peer_is_lost(error: BaseException | None) -> bool:
    """Returns whether the error, or a cause of it, says that another process is gone."""
    while error is not None:
        # A Gloo error is a JaxRuntimeError or a ValueError, depending on where it is noticed.
        runtime = isinstance(error, jax.errors.JaxRuntimeError)
        gloo = type(error) is ValueError and "Gloo " in str(error)
        if gloo or (runtime and _LOST_PEER.search(str(error))):
            return True
        error = error.__cause__ or error.__context__
    return False
