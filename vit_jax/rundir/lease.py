"""One run at a time in an object store, which has no locks: a sign of life every few seconds."""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from absl import logging
from etils import epath

from vit_jax import storage
from vit_jax.errors import ConfigError

BEAT = 5  # Seconds from one sign of life to the next.
PATIENCE = 15  # Seconds without any, after which a process is taken for dead.
SETTLED = 1  # Seconds in which two that begin at once have both written.


@contextlib.contextmanager
def lease(path: epath.PathLike) -> Iterator[None]:
    """Holds an object for this process, for as long as the context lasts.

    A killed process leaves the object behind without signs of life. Clocks are not compared:
    whoever comes next looks whether the object changes. If two hold it in spite of this (the store
    was away for longer than the patience), the first that finds the other's lines in place of its
    own ends (`vit_jax.telemetry.growing`).

    Raises:
      ConfigError: another process holds it, or it cannot be read or written.
    """
    path = epath.Path(path)
    try:
        mine = _take(path)
    except OSError as error:
        raise ConfigError(
            f"--workdir={path.parent} cannot be written: {storage.explain(error)}."
        ) from error
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, mine, over), daemon=True)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
        with contextlib.suppress(OSError):  # It is left behind, and found without a sign of life.
            if (_read(path) or {}).get("token") == mine["token"]:
                storage.delete(path)


def _take(path: epath.Path) -> dict[str, Any]:
    """Makes the object ours, unless it shows signs of life; gives what it says then."""
    before = _read(path)
    # The lock of a local run that was copied here has no token.
    if before is not None and "token" in before and not _is_over(before):
        logging.warning("%s is held by %s: is it alive?", path, _owner(before))
        waited_until = time.monotonic() + PATIENCE
        while time.monotonic() < waited_until:
            time.sleep(PATIENCE / 15)
            if (now := _read(path)) is None:
                break
            if now != before:
                raise _in_use(path, now)
    mine = {
        "token": secrets.token_hex(8),
        "owner": f"process {os.getpid()} on {socket.gethostname()}",
        "place": _place(),
        "pid": os.getpid(),
    }
    _write(path, {**mine, "beat": 0})
    time.sleep(SETTLED)
    if (now := _read(path)) is None or now.get("token") != mine["token"]:
        raise _in_use(path, now or {})
    return mine


def _beat(path: epath.Path, mine: dict[str, Any], over: threading.Event) -> None:
    beat = 0
    while not over.wait(BEAT):
        beat += 1
        with contextlib.suppress(OSError):  # Perhaps it answers the next time.
            if (_read(path) or mine).get("token") != mine["token"]:
                return
            _write(path, {**mine, "beat": beat})


def _read(path: epath.Path) -> dict[str, Any] | None:
    """What the object says; {} if it is not ours to understand."""
    try:
        said = json.loads(storage.read_bytes(path, limit=10_000))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _write(path: epath.Path, said: dict[str, Any]) -> None:
    storage.write_bytes(path, json.dumps(said).encode() + b"\n")


def _place() -> list[str]:
    """Where process numbers mean the same: this machine since its start, this name space."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return [file.read().strip(), os.readlink("/proc/self/ns/pid")]
    return []


def _is_over(said: dict[str, Any]) -> bool:
    """Whether the process was one of this machine's, and is not there any more."""
    pid, place = said.get("pid"), _place()
    if not place or said.get("place") != place or type(pid) is not int or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return pid == os.getpid()  # We are not the one that wrote it.


def _owner(said: dict[str, Any]) -> str:
    return str(said.get("owner", "another process"))[:200]


def _in_use(path: epath.Path, said: dict[str, Any]) -> ConfigError:
    return ConfigError(
        f"--workdir={path.parent} is in use by {_owner(said)}: two runs cannot write to one work "
        "directory. Wait until it is done, stop it (SIGTERM lets it save), or choose another "
        "--workdir."
    )
