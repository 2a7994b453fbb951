"""Reading a file of a data set: a regular one, inside of its folder, and not more than fits."""

import errno
import os
import pathlib
import stat

from vit_jax.errors import DataError

# What the largest image that is decoded takes as RGB (vit_jax.data.decode.MAX_PIXELS).
MAX_BYTES = 256 * 2**20

# What the machine lacks, or a file system that is away, is no fault of the file.
_PASSING = {
    errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN,
    errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH,
}  # fmt: skip


def is_passing(error: BaseException) -> bool:
    """Whether the same example might be read another time: it is not to be called bad."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in _PASSING


def read_file(path: str | os.PathLike[str], *, within: str = "") -> bytes:
    """Returns all bytes of a file.

    Args:
      path: of the file; links are followed.
      within: the folder, without links in its own path, that the file must lie in; "": anywhere.

    Raises:
      DataError: it cannot be read, is no regular file (reading a pipe would wait for ever), is
        larger than `MAX_BYTES`, or lies outside of the folder.
      OSError: it cannot be read now (`is_passing`).
    """
    try:
        if within and (target := leads_out(path, of=within)):
            raise DataError(f"It is a link that leads out of {within}, to {target}.")
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DataError("It is no regular file.")
        if status.st_size <= MAX_BYTES:
            return pathlib.Path(path).read_bytes()
    except OSError as error:
        if is_passing(error):
            raise
        raise DataError(f"The file cannot be read: {error.strerror}.") from error
    raise DataError(
        f"The file is too large: of its {status.st_size:,} bytes at most {MAX_BYTES:,} would be "
        "read (vit_jax.data.reading.MAX_BYTES). Scale the image down beforehand."
    )


def leads_out(path: str | os.PathLike[str], *, of: str) -> str:
    """Where a path leads to if that is, by a link, outside of a folder; "" if it is inside.

    Args:
      path: of a file or folder.
      of: the folder, absolute and without links in its own path.
    """
    target = os.path.realpath(path)
    return "" if os.path.commonpath([of, target]) == of else target
