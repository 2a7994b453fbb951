"""Files that grow while a run goes on, and that notice when they are no longer its own."""

import contextlib
import os

from etils import epath

from vit_jax import storage
from vit_jax.errors import DataError


def open_growing(path: epath.PathLike) -> "_Appended | _Rewritten":
    """Opens a file to append to; makes it if it is not there.

    What is appended outlives the process at once on a local disk, at `flush` in a store. All its
    methods raise DataError: the file cannot be written, or has been deleted or replaced since:
    another process may have taken its place, or the folder is gone.
    """
    return _Appended(path) if storage.is_local(path) else _Rewritten(path)


class _Appended:
    """A local file."""

    def __init__(self, path: epath.PathLike):
        self._path = path
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW  # Not out of the folder.
        with _writing(path):
            self._file = os.open(path, flags, 0o666)
        self._closed = False

    def append(self, content: bytes) -> None:
        with _writing(self._path):
            left = memoryview(content)
            while left:
                left = left[os.write(self._file, left) :]

    def flush(self) -> None:
        with _writing(self._path):
            os.fsync(self._file)
            own = os.fstat(self._file)
            there = storage.identity(self._path)
        if there != (own.st_dev, own.st_ino):
            raise _not_ours(self._path, gone=there is None)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self.flush()
        finally:
            os.close(self._file)


class _Rewritten:
    """An object, which can only be written as a whole: what is appended is kept until then."""

    def __init__(self, path: epath.PathLike):
        self._path = path
        with _writing(path):
            self._identity = storage.identity(path)
            self._content = bytearray(storage.read_bytes(path) if self._identity else b"")
        self._changed = self._identity is None

    def append(self, content: bytes) -> None:
        self._content += content
        self._changed = True

    def flush(self) -> None:
        with _writing(self._path):
            there = storage.identity(self._path)
            if there != self._identity:
                raise _not_ours(self._path, gone=there is None)
            if self._changed:
                storage.write_bytes(self._path, bytes(self._content))
                self._changed = False
                self._identity = storage.identity(self._path)

    def close(self) -> None:
        if self._changed:
            self.flush()


def _writing(path: epath.PathLike) -> contextlib.AbstractContextManager[None]:
    return storage.reported(
        DataError,
        f"{os.fspath(path)} cannot be written",
        hint="What was saved before is kept: correct this, then run the same command again: it "
        "goes on from there.",
    )


def _not_ours(path: epath.PathLike, *, gone: bool) -> DataError:
    what = "was deleted" if gone else "was replaced by another file"
    return DataError(
        f"{os.fspath(path)} {what} while the run was writing to it. If another process runs in "
        "this work directory, leave it to that one; else put back what is missing, or choose "
        "another --workdir, and run the command again: it goes on from the checkpoints that it "
        "finds there."
    )
