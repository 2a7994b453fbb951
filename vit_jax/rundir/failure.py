"""The error that ended a run which had begun, in its work directory until the run continues."""

import contextlib
from types import TracebackType

import jax
from etils import epath

from vit_jax import storage
from vit_jax.errors import ConfigError, ExitCode, exit_code
from vit_jax.parallel.watch import peer_is_lost
from vit_jax.rundir.workdir import FAILURE, read_json, write_json

_LONGEST = 300  # Characters of the message.
_LARGEST = 2**16  # Bytes.


def on_exit(
    workdir: epath.PathLike,
    kind: type | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    """Records the error that ends a run, in its first process; for `ExitStack.push`.

    An error after which the same command resumes the run (a lost process, Ctrl-C) is no failure.
    """
    if not isinstance(error, Exception) or jax.process_index() != 0:
        return
    is_lost = jax.process_count() > 1 and peer_is_lost(error)
    if exit_code(error) != ExitCode.LOST and not is_lost:
        write(workdir, error)


def write(workdir: epath.PathLike, error: BaseException) -> None:
    """Writes the type of an error and the first line of its message, atomically.

    Returns silently if that fails: this error must not replace the one that ended the run.
    """
    lines = str(error).strip().splitlines() or [""]
    failure = {"type": type(error).__name__, "message": lines[0][:_LONGEST]}
    with contextlib.suppress(Exception):
        write_json(epath.Path(workdir) / FAILURE, failure)


def read(workdir: epath.PathLike) -> str:
    """Returns "TYPE: MESSAGE" of the error that ended the run; "" if none did or it is unknown."""
    try:
        failure = read_json(epath.Path(workdir) / FAILURE, limit=_LARGEST)
    except (OSError, ValueError):
        return ""
    kind, message = failure.get("type", ""), failure.get("message", "")
    return f"{kind}: {message}" if message else f"{kind}"


def forget(workdir: epath.PathLike) -> None:
    """Deletes the record of a failure, if there is one.

    Raises:
      ConfigError: it cannot be deleted.
    """
    path = epath.Path(workdir) / FAILURE
    with storage.reported(ConfigError, f"{path} cannot be deleted"):
        if storage.exists(path):
            storage.delete(path)
