"""One run at a time in an object store, which has no locks: an object that only one can create."""

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
    """Holds an object for this process, for as long as the context lasts.

    The store creates an object only where there is none, so of two processes one is refused. A
    killed process leaves the object behind, and so does one whose store was away at its end. A
    later process on the same machine sees that its owner has ended, and replaces it; on another
    machine nothing is known of the owner, and the error says how to remove the object.

    Raises:
      ConfigError: another process holds it, or it cannot be read or written.
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
        with contextlib.suppress(OSError):  # It is left behind, as by a process that was killed.
            storage.delete(path)


def _read(path: epath.Path) -> dict[str, Any] | None:
    """What the object says; None if there is none, {} if it is not a claim of ours."""
    try:
        claim = json.loads(storage.read_bytes(path, limit=10_000))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return claim if isinstance(claim, dict) else {}


def _machine() -> list[str]:
    """Where process numbers mean the same: this machine since its start, this name space."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return [file.read().strip(), os.readlink("/proc/self/ns/pid")]
    return []


def _has_ended(claim: dict[str, Any]) -> bool:
    """Whether nothing holds the object: the owner was a process of this machine that has ended."""
    if "machine" not in claim:  # The lock of a local run that was copied here.
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
