"""One run at a time in an object store.

A store has no locks, but it can create an object only if none exists.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

from etils import epath

from vit_jax import storage
from vit_jax.errors import ConfigError

_held: set[str] = set()  # Claims of this process.


@contextlib.contextmanager
def lease(path: epath.PathLike) -> Iterator[None]:
    """Holds an object for this process while the context lasts.

    Of two processes that create the object, the store refuses one. The object stays behind if the
    process is killed, or if the store cannot be reached when the context ends. A later process on
    the same machine sees that the owner has ended, and replaces the object. On another machine it
    cannot know, and the error says how to remove the object.

    Raises:
      ConfigError: another process holds the object, or it cannot be read or written.
    """
    path, address = epath.Path(path), os.fspath(path)
    content = json.dumps(
        {
            "owner": f"process {os.getpid()} on {socket.gethostname()}",
            "pid": os.getpid(),
            "machine": _machine(),
        }
    )
    try:
        claim = _read(path)
        if claim is not None and address not in _held and _has_ended(claim):
            storage.delete(path)
        storage.create(path, content.encode() + b"\n")
    except FileExistsError as error:
        owner = (_read(path) or {}).get("owner", "another process")
        raise ConfigError(
            f"--workdir={path.parent} is in use by {str(owner)[:200]}: two runs cannot write to "
            "one work directory. Wait until it is done, stop it (SIGTERM lets it save), or choose "
            f"another --workdir. If it was killed: gcloud storage rm {address}"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"--workdir={path.parent} cannot be written: {storage.explain(error)}."
        ) from error
    _held.add(address)
    try:
        yield
    finally:
        _held.remove(address)
        with contextlib.suppress(OSError):
            storage.delete(path)


def _read(path: epath.Path) -> dict[str, Any] | None:
    """Returns the claim in the object; None if there is no object, {} if it holds no claim."""
    try:
        claim = json.loads(storage.read_bytes(path, limit=10_000))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return claim if isinstance(claim, dict) else {}


def _machine() -> list[str]:
    """Returns the boot id and PID namespace, within which a process id is unambiguous."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return [file.read().strip(), os.readlink("/proc/self/ns/pid")]
    return []


def _has_ended(claim: dict[str, Any]) -> bool:
    """Returns whether the owner is known to have ended: it was a process of this machine."""
    if "machine" not in claim:  # The lock file of a local run that was copied to the store.
        return True
    pid, machine = claim.get("pid"), _machine()
    if not machine or claim["machine"] != machine or type(pid) is not int or pid < 1:
        return False
    if pid == os.getpid():  # Of an earlier call in this notebook, which could not delete it.
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False
