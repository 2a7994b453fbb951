"""Reads a file of a data set, with bounds on its type, size and location."""

import concurrent.futures
import errno
import functools
import json
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from vit_jax.errors import DataError

# About the size of the largest image that is decoded, as RGB (vit_jax.data.decode.MAX_PIXELS).
MAX_BYTES = 256 * 2**20

# Threads that read; as many as 16 loader threads with a block of 32 examples each can use.
READERS = 512
# Spans of a file with less between them are read at once. Headers and labels in tar files are less.
_GAP_BYTES = 2**13

# Faults of the machine or of a network file system, not of the file.
_TRANSIENT = {
    errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN,
    errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH,
}  # fmt: skip

T = TypeVar("T")
R = TypeVar("R")


def is_transient(error: BaseException) -> bool:
    """Whether a later attempt may succeed, so the example does not count as bad."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in _TRANSIENT


def read_file(path: str | os.PathLike[str], *, within: str = "") -> bytes:
    """Returns all bytes of a file.

    Args:
      path: of the file; links are followed.
      within: the folder that must contain the file, absolute and without links in its own path;
        "": any folder.

    Raises:
      DataError: the file cannot be read, is not a regular file (reading a pipe would wait for
        ever), is larger than `MAX_BYTES`, or is outside the folder.
      OSError: it cannot be read now (`is_transient`).
    """
    try:
        if within and (target := link_target_outside(path, folder=within)):
            raise DataError(f"It is a link that leads out of {within}, to {target}.")
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise DataError(f"It is {kind}.")
        if status.st_size <= MAX_BYTES:
            with open(path, "rb", buffering=0) as file:  # Half as many system calls.
                return file.readall()
    except OSError as error:
        if is_transient(error):
            raise
        raise DataError(f"The file cannot be read: {error.strerror}.") from error
    raise DataError(
        f"The file is too large: it has {status.st_size:,} bytes, and at most {MAX_BYTES:,} are "
        "read (vit_jax.data.reading.MAX_BYTES). Scale the image down beforehand."
    )


@functools.cache
def _readers() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(READERS, thread_name_prefix="read")


# A forked process has none of the threads.
os.register_at_fork(after_in_child=_readers.cache_clear)


def in_parallel(read: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Returns `read(item)` for each item; all wait for the storage at the same time.

    The threads, at most `READERS` in this process, are kept: starting new ones for each call costs
    more than reading a record from a local file does.
    """
    if len(items) < 2:
        return [read(item) for item in items]
    return list(_readers().map(read, items))


class Span(NamedTuple):
    """Some bytes of a file."""

    path: str
    offset: int
    length: int


def read_spans(spans: Sequence[Span]) -> list[bytes]:
    """Returns the bytes of each span; spans of a file that almost touch are read at once.

    Raises:
      DataError: a file cannot be read, or ends before.
      OSError: it cannot be read now (`is_transient`).
    """

    def read(group: list[int]) -> dict[int, bytes]:
        first, last = spans[group[0]], spans[group[-1]]
        data = _read_at(first.path, first.offset, last.offset + last.length - first.offset)
        starts = [spans[i].offset - first.offset for i in group]
        return {
            i: data[start : start + spans[i].length] for i, start in zip(group, starts, strict=True)
        }

    contents: dict[int, bytes] = {}
    for part in in_parallel(read, _neighbours(spans)):
        contents |= part
    return [contents[i] for i in range(len(spans))]


def _neighbours(spans: Sequence[Span]) -> list[list[int]]:
    """Divides the indices of spans into groups that are each read at once, in ascending order."""
    groups: list[list[int]] = []
    end = -1
    for i in sorted(range(len(spans)), key=lambda i: spans[i]):
        path, offset, length = spans[i]
        if groups and end <= offset <= end + _GAP_BYTES:
            first = spans[groups[-1][0]]
            if first.path == path and offset + length - first.offset <= MAX_BYTES:
                groups[-1].append(i)
                end = offset + length
                continue
        groups.append([i])
        end = offset + length
    return groups


def _read_at(path: str, offset: int, length: int) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), length, offset)
    except OSError as error:
        if is_transient(error):
            raise
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) != length:
        raise DataError(f"{path} ends before byte {offset + length:,}. Get it again.")
    return data


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the object in a JSON file that describes a data set.

    Raises:
      DataError: the file cannot be read, or is not a JSON object.
      OSError: it cannot be read now (`is_transient`).
    """
    try:
        value = json.loads(read_file(path))
        if not isinstance(value, dict):
            raise ValueError(f"it holds {type(value).__name__} where an object should be")
    except (DataError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return value


def link_target_outside(path: str | os.PathLike[str], *, folder: str) -> str:
    """Returns the target of a path if links lead it out of a folder, or else "".

    Args:
      path: of a file or folder.
      folder: absolute, without links in its own path.
    """
    target = os.path.realpath(path)
    return "" if os.path.commonpath([folder, target]) == folder else target
