"""Append-only files that detect when another process deletes or replaces them."""

import contextlib
import os

from etils import epath

from vit_jax import storage
from vit_jax.errors import DataError


def open_growing(path: epath.PathLike) -> "_LocalFile | _ObjectFile":
    """Opens a file for appending; creates it if it does not exist.

    Appended bytes survive the end of the process at once on a local disk, and after `flush` in an
    object store. All methods of the file raise DataError if it cannot be written, or if it was
    deleted or replaced: another process may write there, or the folder is gone.
    """
    return _LocalFile(path) if storage.is_local(path) else _ObjectFile(path)


class _LocalFile:
    """A file of a local file system."""

    def __init__(self, path: epath.PathLike):
        self._path = path
        # O_NOFOLLOW: a link must not lead out of the folder.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        with _report_write_errors(path):
            self._file = os.open(path, flags, 0o666)
        self._closed = False

    def append(self, content: bytes) -> None:
        with _report_write_errors(self._path):
            remaining = memoryview(content)
            while remaining:
                remaining = remaining[os.write(self._file, remaining) :]

    def flush(self) -> None:
        with _report_write_errors(self._path):
            os.fsync(self._file)
            status = os.fstat(self._file)
            current = storage.identity(self._path)
        if current != (status.st_dev, status.st_ino):
            raise _replaced(self._path, is_deleted=current is None)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self.flush()
        finally:
            os.close(self._file)


class _ObjectFile:
    """An object of a store, which can only be written as a whole: at every flush."""

    def __init__(self, path: epath.PathLike):
        self._path = path
        with _report_write_errors(path):
            self._identity = storage.identity(path)
            self._content = bytearray(storage.read_bytes(path) if self._identity else b"")
        self._changed = self._identity is None

    def append(self, content: bytes) -> None:
        self._content += content
        self._changed = True

    def flush(self) -> None:
        with _report_write_errors(self._path):
            current = storage.identity(self._path)
            if current != self._identity:
                raise _replaced(self._path, is_deleted=current is None)
            if self._changed:
                storage.write_bytes(self._path, bytes(self._content))
                self._changed = False
                self._identity = storage.identity(self._path)

    def close(self) -> None:
        if self._changed:
            self.flush()


def _report_write_errors(path: epath.PathLike) -> contextlib.AbstractContextManager[None]:
    return storage.reported(
        DataError,
        f"{os.fspath(path)} cannot be written",
        hint="The checkpoints saved before are intact: correct this, then run the same command "
        "again to resume.",
    )


def _replaced(path: epath.PathLike, *, is_deleted: bool) -> DataError:
    what = "was deleted" if is_deleted else "was replaced by another file"
    return DataError(
        f"{os.fspath(path)} {what} while the run was writing to it. If another process runs in "
        "this work directory, let that one finish; else restore the file, or choose another "
        "--workdir, and run the command again: it resumes from the checkpoints there."
    )
