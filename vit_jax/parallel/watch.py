"""Watchdog: ends a stalled run and names the process that stalled it.

Processes of one run wait for each other in every update. If one is killed, stopped, hung, or ends
with an error that only it has, the others would wait for ever, or fail with the message of a
network library. So each process says every `TICK` seconds, in the key-value store of JAX's
coordination service, where its main thread is; process 0 reads what all say and, when one is lost,
tells all to end. A process ends from this watch's thread, whatever its main thread waits for:
nothing is lost by that but the updates since the last checkpoint.

The service itself lives in process 0. If that one dies, JAX ends the others and says so.
"""

import contextlib
import itertools
import json
import os
import pathlib
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import jax

from vit_jax.errors import ExitCode, VitJaxError, exit_code
from vit_jax.parallel import processes

TICK = 2.0  # Seconds.
SILENCE = 60.0  # Seconds without a word after which a process counts as lost,
SILENCE_AFTER_ERROR = 8.0  # or this many if there was an error that its loss would explain.

_PACKAGE = str(pathlib.Path(__file__).parent.parent) + os.sep
_runs = itertools.count()
T = TypeVar("T")


class Watch:
    """Watches this process's main thread, and the run's other processes. A context manager.

    An error that leaves the context is told to the other processes, which then end as well.
    """

    def __init__(self, timeout_seconds: int):
        """Starts nothing yet.

        Args:
          timeout_seconds: the longest that the main thread may stay at one place.
        """
        self._timeout = timeout_seconds
        # Before the others' patience is over: that one is lost says more than that they wait.
        self._silence = max(4 * TICK, min(SILENCE, timeout_seconds / 2))
        self._client = processes.coordination_client()
        self._prefix = f"vit_jax/watch/{next(_runs)}/"
        self._host = socket.gethostname()
        # Seconds in which this process was running: one that is suspended (by Ctrl-Z, or with its
        # machine) keeps nobody waiting that is not suspended as well, or waits for what is.
        self._now, self._looked = 0.0, time.monotonic()
        self._place, self._count, self._since = "start-up", 0, self._now
        self._error, self._done = "", False
        # What the others said last, and when that was news.
        self._heard: dict[int, tuple[dict[str, Any], float]] = {}
        self._answered = self._now
        self._closed, self._leaving = threading.Event(), threading.Lock()
        self._main = threading.get_ident()
        bodies = [self._guard] + ([self._talk] if self._client else [])
        self._threads = [threading.Thread(target=body, daemon=True) for body in bodies]

    # --- For the main thread

    def at(self, place: str) -> None:
        """Says what the main thread does now; `timeout_seconds` count again from here."""
        self._place, self._count, self._since = place, self._count + 1, self._now

    def over(self, items: Iterable[T], place: str) -> Iterator[T]:
        """The items, each of which is a place."""
        for i, item in enumerate(items):
            self.at(f"{place}, batch {i}")
            yield item

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.tell(kind, error, trace)
        self._closed.set()
        for thread in self._threads:
            thread.join()
        if self._client is not None:
            self._done = True
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # Process 0 has ended before.
                self._say()

    def tell(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tells the other processes of an error, if there is one, and ends this process.

        With one process, returns. It has the signature of `__exit__`, for `ExitStack.push`: it must
        come before anything is closed that would wait for the others.
        """
        if self._client is None or error is None or isinstance(error, SystemExit):
            return
        explained = isinstance(error, VitJaxError)
        if not explained or _from_jax(error):
            # It may be what the loss of another process looks like from here.
            self._wait_for_news()
        if not explained:
            traceback.print_exception(kind, error, trace)
        self._error = str(error) or kind.__name__
        self._leave(f"error: {self._error}", exit_code(error))

    # --- The threads

    def _guard(self) -> None:
        """Ends a process that stays where it is. Makes no call that could itself wait."""
        # Process 0 comes first, so that it can say who keeps all waiting.
        patience = self._timeout + (4 * TICK if jax.process_index() else 0)
        while not self._closed.wait(min(TICK, self._timeout / 4)):
            looked = time.monotonic()
            self._now += min(looked - self._looked, 2 * TICK)
            self._looked = looked
            if self._now - self._since > patience:
                self._leave(self._stuck(), ExitCode.LOST)

    def _talk(self) -> None:
        """Says where this process is, and listens to the others."""
        while not self._closed.wait(TICK):
            try:
                self._say()
                if jax.process_index() == 0:
                    self._listen()
                    end = self._lost(self._silence)
                else:
                    end = self._verdict()
            except jax.errors.JaxRuntimeError:
                continue  # No answer: the guard waits for one no longer than for anything else.
            if end:
                self._leave(end, ExitCode.LOST)

    def _say(self) -> None:
        word = {
            "host": self._host,
            "place": self._place,
            "count": self._count,
            "error": self._error,
            "done": self._done,
            "time": time.monotonic(),  # Makes it news.
        }
        self._client.key_value_set(
            f"{self._prefix}at/{jax.process_index()}", json.dumps(word), allow_overwrite=True
        )

    def _listen(self) -> None:
        now = self._now
        for key, text in self._client.key_value_dir_get(f"{self._prefix}at/"):
            process, word = int(key.rsplit("/", 1)[-1]), json.loads(text)
            if process not in self._heard or self._heard[process][0] != word:
                self._heard[process] = (word, now)
        self._answered = now

    def _verdict(self) -> str:
        """What process 0 has to say, if it ends the run."""
        found = dict(self._client.key_value_dir_get(f"{self._prefix}verdict/"))
        self._answered = self._now
        return next(iter(found.values()), "")

    # --- Who it was

    def _lost(self, silence: float) -> str:
        """Which other processes failed or are silent, as a message; "" if none."""
        now = self._now
        causes = []
        for other, (word, heard) in sorted(self._heard.items()):
            if other == jax.process_index() or word["done"]:
                continue
            name = self._name(other, word["host"])
            if word["error"]:
                causes.append(f"{name} failed: {word['error']}")
            elif now - heard > silence:
                causes.append(
                    f"{name} is lost: killed, or hung. It was last heard of {now - heard:.0f} s "
                    f"ago, at {word['place']}"
                )
        return _end(causes) if causes else ""

    def _stuck(self) -> str:
        """Who keeps this process waiting, as a message."""
        now = self._now
        waited = f"{now - self._since:.0f} s (timeout_seconds={self._timeout})"
        here = f"at {self._place} for {waited}, in {self._line()}"
        if self._client is None:
            return _end([f"the run has got nowhere: it has been {here}"])
        others = {i: word for i, (word, _) in self._heard.items() if i != jax.process_index()}
        behind = [
            i for i, word in others.items() if word["count"] < self._count and not word["done"]
        ]
        causes = [f"process {jax.process_index()} has been {here}"]
        for i in sorted(behind):
            causes.append(
                f"it waits for {self._name(i, others[i]['host'])}, which is at "
                + others[i]["place"]
            )
        if now - self._answered > self._silence:
            causes.append(f"process 0 has not answered for {now - self._answered:.0f} s")
        return _end(causes)

    def _line(self) -> str:
        """Where in our code the main thread is."""
        frames = traceback.extract_stack(sys._current_frames()[self._main])
        ours = [frame for frame in frames if frame.filename.startswith(_PACKAGE)] or frames
        return f"{os.path.basename(ours[-1].filename)}:{ours[-1].lineno} ({ours[-1].name})"

    # --- Ends

    def _wait_for_news(self) -> None:
        """Waits until it is clear whether another process is lost; if so, does not return."""
        deadline = time.monotonic() + SILENCE_AFTER_ERROR + 4 * TICK
        while time.monotonic() < deadline:
            time.sleep(TICK / 2)
            self._listen()
            if lost := self._lost(SILENCE_AFTER_ERROR):
                self._leave(lost, ExitCode.LOST)

    def _leave(self, message: str, code: int) -> None:
        """Ends this process at once, whatever its main thread waits for."""
        if not self._leaving.acquire(blocking=False):
            time.sleep(60)  # Another thread is at it.
        try:
            with contextlib.suppress(OSError):  # Nobody may be left that reads it.
                print(message, file=sys.stderr, flush=True)
            if self._client is not None and jax.process_index() == 0:
                if self._error:
                    message = _end([f"{self._name(0, self._host)} failed: {self._error}"])
                self._client.key_value_set(f"{self._prefix}verdict/0", message)
                # The service ends with this process, and with it all that did not listen yet.
                time.sleep(3 * TICK)
            elif self._error:
                self._say()
            with contextlib.suppress(OSError):
                sys.stdout.flush()
        finally:
            os._exit(code)

    def _name(self, process: int, host: str) -> str:
        return f"process {process} of {jax.process_count()} (on {host})"


def _end(causes: Iterable[str]) -> str:
    return (
        f"error: {'; '.join(causes)}.\nThe last checkpoint is kept. Start all processes again with "
        "the same command: the run goes on from there."
    )


def _from_jax(error: BaseException | None) -> bool:
    """Whether JAX's runtime raised the error or a cause of it: a failed collective is one."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__ or error.__context__
    return False
