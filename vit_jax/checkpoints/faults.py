"""Faults of reading a checkpoint: broken files, other shapes, or transient failures."""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vit_jax import storage
from vit_jax.errors import CheckpointError


class MismatchError(CheckpointError):
    """A checkpoint whose arrays have names or shapes different from the model's."""


class BrokenError(CheckpointError):
    """A checkpoint whose files are missing or corrupt."""


FAULTS = {kind.__name__: kind for kind in (CheckpointError, MismatchError, BrokenError)}

# Transient errors of a file system; the files may be whole.
_TRANSIENT_ERRNO = {
    errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE,
    errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH,
}  # fmt: skip
_TRANSIENT_MESSAGE = re.compile(
    "RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|"
    "retry attempts failed|^Forbidden|"  # From TensorStore and gcsfs, about an object store.
    + "|".join(re.escape(os.strerror(number)) for number in sorted(_TRANSIENT_ERRNO))
)

# Libraries that access an object store; their own errors do not mean a broken checkpoint.
_NETWORK_LIBRARIES = ("aiohttp", "gcsfs", "google", "requests")


@contextmanager
def reading(folder: Any) -> Iterator[None]:
    """Turns any exception into BrokenError, or into CheckpointError if the fault is transient."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # Orbax passes on the exceptions of its many layers.
        if _is_transient(error) or not _is_reachable(folder):
            raise CheckpointError(
                f"The checkpoint {folder} cannot be read now: {brief(error)}\nNothing was changed. "
                "Fix the cause and start the same command again; or, if the checkpoint is beyond "
                "repair, move it away, and the run continues from the previous one."
            ) from error
        raise BrokenError(f"The checkpoint {folder} cannot be read: {brief(error)}") from error


def _is_transient(error: BaseException) -> bool:
    library = type(error).__module__.split(".")[0]
    if isinstance(error, MemoryError) or library in _NETWORK_LIBRARIES:
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _TRANSIENT_ERRNO
    return bool(_TRANSIENT_MESSAGE.search(str(error)))


def _is_reachable(folder: Any) -> bool:
    """Returns whether the object store of a folder answers; True for a local folder.

    Without this check a store that does not answer looks like one without the folder.
    """
    try:
        return storage.is_local(folder) or storage.exists(folder) in (True, False)
    except OSError:
        return False


def brief(error: BaseException) -> str:
    """Returns the first line of an error message, without its middle if it is long.

    TensorStore's messages begin with the operation and end with the system's error.
    """
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 500 else f"{line[:250]} ... {line[-250:]}"


def differences(
    checkpoint: Mapping[str, Any],
    model: Mapping[str, Any],
    *,
    prefix: str = "",
    source: str = "checkpoint",
) -> list[str]:
    """Returns at most 20 lines, one for each array whose name or shape differs.

    Args:
      checkpoint: arrays by name.
      model: the model's arrays or their shapes, by name.
      prefix: precedes every name.
      source: what `checkpoint` is, for the lines.
    """
    lines = [
        f"  {prefix}{name}: {source} {_shape(checkpoint.get(name))}, "
        f"model {_shape(model.get(name))}"
        for name in sorted(checkpoint.keys() | model.keys())
        if _shape(checkpoint.get(name)) != _shape(model.get(name))
    ]
    return lines[:20] + ([f"  ... and {len(lines) - 20} more"] if len(lines) > 20 else [])


def _shape(leaf: Any) -> str:
    return "lacks it" if leaf is None else str(tuple(leaf.shape))
