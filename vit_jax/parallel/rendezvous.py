"""The rendezvous: the processes of a run wait for each other before they start JAX.

JAX's own wait ends in a C++ abort that says neither who is missing nor why. So until all have
arrived, process 0 listens at the address of JAX's coordination service itself: each other process
sends its index there, and all get the same answer. Then JAX starts the service at that address.
"""

import contextlib
import dataclasses
import json
import os
import re
import selectors
import socket
import sys
import time

from vit_jax.errors import ConfigError, LostError, printable
from vit_jax.parallel.launchers import Membership

# A process that waits prints a hint after HINT_SECONDS, and ends after TIMEOUT_SECONDS.
HINT_SECONDS, TIMEOUT_SECONDS = 30.0, 300.0
_RETRY_SECONDS, _CONNECT_SECONDS = 0.5, 5.0
_LONGEST_LINE = 4096  # Bytes of a message; a longer one comes from another program.
_MOST_NAMED = 8
_BIND_ADDRESS = "JAX_COORDINATOR_BIND_ADDRESS"  # JAX's: where its service listens on process 0.
_MAGIC = "vit_jax rendezvous 1"  # In each message; programs of other versions are refused.


def meet(membership: Membership) -> None:
    """Returns when all processes of the run have arrived.

    Raises:
      LostError: one has not, in TIMEOUT_SECONDS since the start of process 0; the message names it.
        Or process 0 cannot be reached.
      ConfigError: process 0 cannot listen at its address, or JAX_COORDINATOR_BIND_ADDRESS is no
        address; another process has the index of this one; or the processes were started with
        different numbers of processes.
    """
    if membership.index == 0:
        _Host(membership).gather()
    else:
        _arrive(membership)


# ------------------------------------------------------------------------------- process 0


@dataclasses.dataclass
class _Peer:
    """A connection to process 0; `index` is None until the other side has sent its index."""

    connection: socket.socket
    received: bytes = b""
    index: int | None = None
    host: str = ""


class _Host:
    """The side of process 0, which waits for the others and answers them."""

    def __init__(self, membership: Membership):
        self._membership = membership
        self._peers: dict[int, _Peer] = {}  # Those that have arrived, by index.
        self._selector = selectors.DefaultSelector()

    def gather(self) -> None:
        """See `meet`."""
        with self._selector, _listen(self._membership) as listener:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
            try:
                self._wait(listener)
            except LostError as error:
                self._answer({"lost": str(error)})
                raise
            self._answer({"go": True})

    def _wait(self, listener: socket.socket) -> None:
        start = time.monotonic()
        hints = [HINT_SECONDS]
        while len(self._peers) < self._membership.count - 1:
            waited = time.monotonic() - start
            if waited >= TIMEOUT_SECONDS:
                raise LostError(
                    f"{self._missing()} within {TIMEOUT_SECONDS:g} s. {_again(self._membership)}"
                )
            if hints and waited >= hints[0]:
                _hint(self._membership, waited, self._missing(), hints)
            until = min([TIMEOUT_SECONDS, *hints]) - waited
            for key, _ in self._selector.select(max(0.0, until)):
                if key.fileobj is listener:
                    with contextlib.suppress(OSError):  # It may have ended already.
                        connection, _ = listener.accept()
                        connection.setblocking(False)
                        peer = _Peer(connection)
                        self._selector.register(connection, selectors.EVENT_READ, peer)
                else:
                    self._receive(key.data)

    def _receive(self, peer: _Peer) -> None:
        """Reads from a connection; registers the process if its message is complete and valid."""
        try:
            received = peer.connection.recv(_LONGEST_LINE)
        except OSError:
            received = b""
        peer.received += received
        # The other side has ended, or is another program.
        if not received or len(peer.received) > _LONGEST_LINE:
            return self._close(peer)
        if peer.index is not None or not peer.received.endswith(b"\n"):
            return None
        message = _parse(peer.received)
        if message is None or not isinstance(index := message.get("index"), int):
            return self._close(peer)
        peer.host = str(message.get("host"))[:253]
        if reason := self._refusal(index, peer.host, message.get("count")):
            print(printable(f"note: {reason}"), file=sys.stderr, flush=True)
            _send(peer, {"refused": reason})
            return self._close(peer)
        peer.index = index
        self._peers[index] = peer
        return None

    def _refusal(self, index: int, host: str, count: object) -> str:
        """Returns why a process cannot be one of this run; "" if it can."""
        ours = self._membership.count
        if count != ours:
            return (
                f"process {index} on {host} was started as one of {count} processes, and process 0 "
                f"as one of {ours}."
            )
        if index not in range(ours):
            return f"process {index} on {host}: there are processes 0 to {ours - 1}."
        if index in self._peers or index == 0:
            other = socket.gethostname() if index == 0 else self._peers[index].host
            return f"process {index} was started twice, on {other} and on {host}."
        return ""

    def _close(self, peer: _Peer) -> None:
        self._selector.unregister(peer.connection)
        peer.connection.close()
        if peer.index is not None:
            del self._peers[peer.index]

    def _answer(self, answer: dict[str, object]) -> None:
        """Sends the answer to all, and waits until they have closed: so the port is free again."""
        for peer in self._peers.values():
            _send(peer, answer)
        for peer in self._peers.values():
            with contextlib.suppress(OSError), peer.connection:
                peer.connection.settimeout(_CONNECT_SECONDS)
                peer.connection.recv(1)

    def _missing(self) -> str:
        """Returns which processes have not arrived, as the beginning of a sentence."""
        count, address = self._membership.count, self._membership.address
        missing = [i for i in range(1, count) if i not in self._peers]
        hosts = [f"0 on {socket.gethostname()}"]
        hosts += [f"{i} on {peer.host}" for i, peer in sorted(self._peers.items())]
        noun, verb = ("process", "has") if len(missing) == 1 else ("processes", "have")
        return (
            f"{noun} {_listed(list(map(str, missing)))} of {count} {verb} not arrived at {address} "
            f"(there: {_listed(hosts)})"
        )


def _listen(membership: Membership) -> socket.socket:
    # JAX's service will listen at the same port.
    bound = os.environ.get(_BIND_ADDRESS, membership.address)
    if not re.fullmatch(r".+:\d+", bound):
        raise ConfigError(f"{_BIND_ADDRESS}={bound!r}: write HOST:PORT, such as [::]:1234.")
    port = int(bound.rpartition(":")[2])
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(
            ("", port), family=family, backlog=membership.count, dualstack_ipv6=dual
        )
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"Process 0 cannot listen at {bound} ({error}): does another run use this port? Set "
            "JAX_COORDINATOR_PORT to a free one for all processes, or another "
            "JAX_COORDINATOR_ADDRESS if you have set that."
        ) from error


def _send(peer: _Peer, message: dict[str, object]) -> None:
    with contextlib.suppress(OSError):  # It may have ended.
        peer.connection.settimeout(_CONNECT_SECONDS)
        peer.connection.sendall(_line(message))


# ------------------------------------------------------------------------- the other processes


def _arrive(membership: Membership) -> None:
    """Tells process 0 that this process has arrived; see `meet`."""
    start = time.monotonic()
    hints, reason = [HINT_SECONDS], ""
    while (waited := time.monotonic() - start) < TIMEOUT_SECONDS:
        try:
            answer = _ask(membership)
            reason = "it has ended, or another program listens there"
        except OSError as error:
            answer, reason = None, str(error)
        if answer is not None:
            return _raise_refusal(membership, answer)
        absent = f"process 0 has not been reached at {membership.address} ({reason})"
        if hints and waited >= hints[0]:
            _hint(membership, waited, absent, hints)
        time.sleep(_RETRY_SECONDS)
    raise LostError(
        f"{_name(membership)}: process 0 has not been reached at {membership.address} within "
        f"{TIMEOUT_SECONDS:g} s ({reason}). {_again(membership)}"
    )


def _ask(membership: Membership) -> dict[str, object] | None:
    """Returns the answer of process 0, which comes when all have arrived; None: from elsewhere.

    Raises:
      OSError: process 0 cannot be reached.
    """
    host, port = membership.address.rsplit(":", 1)
    address = (host.strip("[]"), int(port))
    with socket.create_connection(address, timeout=_CONNECT_SECONDS) as connection:
        message = {
            "index": membership.index,
            "count": membership.count,
            "host": socket.gethostname(),
        }
        connection.sendall(_line(message))
        # Process 0 waits at most this long from its start, which was before this connection.
        connection.settimeout(TIMEOUT_SECONDS + 2 * _CONNECT_SECONDS)
        with connection.makefile("rb") as answers:
            return _parse(answers.readline(_LONGEST_LINE))


def _raise_refusal(membership: Membership, answer: dict[str, object]) -> None:
    """Raises the error that process 0 has answered, if it is one; see `meet`."""
    if "lost" in answer:
        raise LostError(f"{_name(membership)}: {answer['lost']}")
    if "refused" in answer:
        raise ConfigError(f"{answer['refused']} Start all with the same command and launcher.")


# ------------------------------------------------------------------------------------- both


def _line(message: dict[str, object]) -> bytes:
    return json.dumps({"magic": _MAGIC, **message}).encode() + b"\n"


def _parse(line: bytes) -> dict[str, object] | None:
    """Returns the message of a line; None if another program has sent it."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_ours = isinstance(message, dict) and message.get("magic") == _MAGIC
    return message if is_ours else None


def _name(membership: Membership) -> str:
    return f"process {membership.index} of {membership.count} (on {socket.gethostname()})"


def _again(membership: Membership) -> str:
    return (
        f"Start all {membership.count} again: the same command begins the run, or continues it "
        "from its last checkpoint."
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _hint(membership: Membership, waited: float, absent: str, hints: list[float]) -> None:
    """Prints what is missing and what to check, once."""
    hints.clear()
    text = (
        f"note: {_name(membership)} has waited {waited:.0f} s, and ends after "
        f"{TIMEOUT_SECONDS:g} s: {absent}. Are all started, with the same address and number of "
        "processes? Can they reach process 0 there?"
    )
    print(printable(text), file=sys.stderr, flush=True)
