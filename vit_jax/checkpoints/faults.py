"""What can be wrong with a checkpoint that is read, and which of it will pass."""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vit_jax import storage
from vit_jax.errors import CheckpointError


class MismatchError(CheckpointError):
    """A checkpoint whose arrays have other names or shapes than the model's."""


class BrokenError(CheckpointError):
    """A checkpoint whose files are missing, or are not what was written."""


FAULTS = {kind.__name__: kind for kind in (CheckpointError, MismatchError, BrokenError)}

# What a file system says that will not or cannot now; the files may be whole.
_PASSING_ERRNO = {
    errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE,
    errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH,
}  # fmt: skip
_PASSING_STATUS = re.compile(
    "RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|"
    "retry attempts failed|^Forbidden|"  # TensorStore's and gcsfs's words for an object store.
    + "|".join(re.escape(os.strerror(number)) for number in sorted(_PASSING_ERRNO))
)

# Libraries between us and an object store: what they raise is not of the checkpoint.
_NETWORK = ("aiohttp", "gcsfs", "google", "requests")


@contextmanager
def reading(folder: Any) -> Iterator[None]:
    """Makes whatever goes wrong when a checkpoint is read a BrokenError, or says: not now."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # Orbax raises what its many layers raise.
        if _is_passing(error) or not _answers(folder):
            raise CheckpointError(
                f"The checkpoint {folder} cannot be read now: {brief(error)}\nNothing was changed. "
                "Mend that and start the same command again; or, if the checkpoint is beyond "
                "repair, move it away, and the run goes on from the one before."
            ) from error
        raise BrokenError(f"The checkpoint {folder} cannot be read: {brief(error)}") from error


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__module__.split(".")[0] in _NETWORK:
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING_ERRNO
    return bool(_PASSING_STATUS.search(str(error)))


def _answers(folder: Any) -> bool:
    """Whether an object store can be reached; a disk can.

    The libraries in between take one that does not answer for one that does not have a folder.
    """
    try:
        return storage.is_local(folder) or storage.exists(folder) in (True, False)
    except OSError:
        return False


def brief(error: BaseException) -> str:
    """The first line of what a library says, which may be pages: its beginning and its end.

    TensorStore begins with what it wanted to do, and ends with what the system said.
    """
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first if len(first) <= 500 else f"{first[:250]} ... {first[-250:]}"


def differences(
    checkpoint: Mapping[str, Any], model: Mapping[str, Any], *, prefix: str = ""
) -> list[str]:
    """A line for each array that the two do not have alike, of at most 20; prefix: of the names."""
    lines = [
        f"  {prefix}{name}: checkpoint {_shape(checkpoint.get(name))}, "
        f"model {_shape(model.get(name))}"
        for name in sorted(checkpoint.keys() | model.keys())
        if _shape(checkpoint.get(name)) != _shape(model.get(name))
    ]
    return lines[:20] + ([f"  ... and {len(lines) - 20} more"] if len(lines) > 20 else [])


def _shape(leaf: Any) -> str:
    return "lacks it" if leaf is None else str(tuple(leaf.shape))
