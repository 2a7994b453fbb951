"""The start of several processes: who has arrived, and the end of all if one never does.

JAX waits for all processes, and aborts with a C++ stack (SIGABRT) after its time-out without saying
whose. Its coordination service already keeps messages while it waits, so each process leaves its
name there.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from types import TracebackType

from jax._src import distributed

from vit_jax.errors import ExitCode, printable
from vit_jax.parallel.launchers import Membership

POLL_SECONDS = 0.5
# After these, a process that waits for the others prints a hint; and ends, with all others.
HINT_SECONDS, TIMEOUT_SECONDS = 30.0, 300.0
# JAX itself gives up this much later than we do.
MARGIN_SECONDS = 60.0

_KEYS = "vit_jax/arrivals/"
_MOST_NAMED = 8


class Arrivals:
    """Watches the processes of a run arrive, while JAX waits for all of them. A context manager.

    Inside the context the main thread calls `jax.distributed.initialize`. If it takes longer than
    TIMEOUT_SECONDS, or another process gives up, this process ends with exit code 76 and a sentence
    that names the missing ones.
    """

    def __init__(self, membership: Membership):
        self._membership = membership
        self._hosts: dict[int, str] = {}  # Of those that have arrived.
        self._verdict = ""  # Of the process that has given up first.
        self._done = threading.Event()
        # A call of the service may block, if the network drops its packets; the clock must not.
        self._threads = [
            threading.Thread(target=body, daemon=True) for body in (self._exchange, self._wait)
        ]

    def __enter__(self) -> "Arrivals":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()

    def _exchange(self) -> None:
        """Body of a thread: leaves this process's name at the service and reads the others'."""
        is_told = False
        while not self._done.wait(POLL_SECONDS):
            client = distributed.global_state.client  # None until JAX begins to connect.
            if client is None:
                continue
            # Until process 0 has started the service, there is none.
            with contextlib.suppress(Exception):
                if not is_told:
                    client.key_value_set(f"{_KEYS}{self._membership.index}", socket.gethostname())
                    is_told = True
                if self._verdict:
                    client.key_value_set(f"{_KEYS}verdict", self._verdict)
                entries = dict(client.key_value_dir_get(_KEYS))
                self._verdict = entries.pop(f"{_KEYS}verdict", self._verdict)
                self._hosts = {int(key.rsplit("/", 1)[-1]): host for key, host in entries.items()}

    def _wait(self) -> None:
        """Body of a thread: prints a hint, and at last ends this process."""
        start, hinted = time.monotonic(), False
        while not self._done.wait(POLL_SECONDS):
            waited = time.monotonic() - start
            if self._verdict:
                self._end(self._verdict)
            if waited > TIMEOUT_SECONDS:
                self._verdict = f"{self._missing()} within {TIMEOUT_SECONDS:g} s"
                time.sleep(4 * POLL_SECONDS)  # The others read it, as long as process 0 lives.
                self._end(self._verdict)
            if waited > HINT_SECONDS and not hinted:
                hinted = True
                self._print(
                    f"has waited {waited:.0f} s, and ends after {TIMEOUT_SECONDS:g} s: "
                    f"{self._missing()} yet. Are all started, with the same address and number of "
                    "processes, each with an index of its own? Can they reach process 0 there?"
                )

    def _missing(self) -> str:
        """Returns which processes have not arrived, as the beginning of a sentence."""
        count, address = self._membership.count, self._membership.address
        if not self._hosts:
            return f"process 0 has not been reached at {address}"
        missing = [i for i in range(count) if i not in self._hosts]
        named = ", ".join(map(str, missing[:_MOST_NAMED]))
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        noun, verb = ("process", "has") if len(missing) == 1 else ("processes", "have")
        arrived = list(self._hosts.items())[:_MOST_NAMED]
        here = ", ".join(f"{i} on {host}" for i, host in arrived)
        more_here = ", ..." if len(self._hosts) > _MOST_NAMED else ""
        return f"{noun} {named}{more} ({here}{more_here} arrived) {verb} not arrived at {address}"

    def _print(self, text: str) -> None:
        index, count = self._membership.index, self._membership.count
        text = f"process {index} of {count} (on {socket.gethostname()}) {text}"
        with contextlib.suppress(OSError):  # The reader of a pipe may have ended.
            print(printable(text), file=sys.stderr, flush=True)

    def _end(self, verdict: str) -> None:
        try:
            self._print(
                f"ends: {verdict}. Start all of them again: the same command begins the run, or "
                "continues it from its last checkpoint."
            )
        finally:
            os._exit(ExitCode.LOST)
