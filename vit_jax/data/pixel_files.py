"""Decoded images in the files of a folder, which several processes read and append to.

Each process that writes has two files of its own, so writers need no lock between processes: the
pixels of its images, one after the other, and an index with a row of fixed size for each image,
appended when all its pixels are written. What a killed process leaves is a torn end of its files,
which no index row names. After a crash of the machine a row may exist whose pixels were never
written to the disk: each row has a checksum of the pixels, compared at every read.
"""

import contextlib
import errno
import os
import secrets
import struct
import threading

import numpy as np
from jaxtyping import UInt8

from vit_jax.data.decode import MAX_PIXELS
from vit_jax.telemetry.notes import note

KEY_BYTES = 16
_PIXELS, _INDEX = ".pixels", ".index"
# Key, offset in the file of pixels, height, width, channels, checksum.
_ROW = struct.Struct(f"<{KEY_BYTES}sQIIIQ")
# What a process holds of each row: the number of its file, and the row without the key.
_LOCATION = struct.Struct("<IQIIIQ")
_WORD = 8  # Bytes: an image is padded to whole words, of which the checksum is the sum.


class PixelFiles:
    """A store of images by key. Thread-safe; a pickled copy, in a worker process, opens the folder.

    Each process holds about 170 bytes for each stored image, and opens files only to read or write.

    Attributes:
      in_this_process: other processes have no access to it.
      limit_bytes: bound of all pixels in the folder.
      used_bytes: of all pixels in the folder, when they were last counted.
    """

    in_this_process = False

    def __init__(self, folder: str, *, limit_bytes: int):
        """Reads the indexes in a folder, and creates no file yet.

        Args:
          folder: absolute path.
          limit_bytes: bound of all pixels in the folder; each of several processes that write at
            the same time may exceed it by one image.
        """
        self.folder, self.limit_bytes = folder, limit_bytes
        self._lock = threading.Lock()
        self._locations: dict[bytes, bytes] = {}
        self._names: list[str] = []  # Of pairs of files; a location has the position in this list.
        self._rows: dict[str, tuple[int, int]] = {}  # Name -> its position, rows that were read.
        self.used_bytes = 0
        self._writer: _Writer | None = None
        self._is_full = self._is_copy = False
        self._refresh()

    def __reduce__(self) -> tuple:
        # Loader processes start again for each evaluation, and would each time say that the limit
        # is reached. So the process that starts them says it: when no further image of mean size
        # has room.
        with self._lock:
            self._refresh()
            mean = self.used_bytes // max(1, len(self._locations))
            if not self._is_full and self.used_bytes + mean > self.limit_bytes:
                self._stop()
        return _open_copy, (self.folder, self.limit_bytes, self._is_full)

    def get(self, key: bytes) -> UInt8[np.ndarray, "h w c"] | None:
        """Returns an image; None: it is not stored, or cannot be read."""
        location = self._locations.get(key)
        if location is None and not self._is_full:
            with self._lock:
                self._refresh()
            location = self._locations.get(key)
        if location is None:
            return None
        pixels = self._read(location)
        if pixels is None:
            self._locations.pop(key, None)  # It may be stored again.
        return pixels

    def put(self, key: bytes, pixels: UInt8[np.ndarray, "h w c"]) -> None:
        """Appends an image, unless the limit is reached or a file cannot be written.

        A note says so; in a copy, only that a file cannot be written.
        """
        with self._lock:
            if self._is_full or key in self._locations:
                return
            padded = np.zeros(-(-pixels.size // _WORD) * _WORD, np.uint8)
            if self.used_bytes + padded.size > self.limit_bytes:
                self._stop()
                return
            padded[: pixels.size] = pixels.reshape(-1)
            self._writer = self._writer or _Writer(self.folder)
            try:
                row = self._writer.append(key, padded, pixels.shape)
            except OSError as error:
                self._stop(error)
                return
            self._locations[key] = _LOCATION.pack(self._number_of(self._writer.name), *row)
            self.used_bytes += padded.size

    def _stop(self, error: OSError | None = None) -> None:
        self._is_full = True
        if error or not self._is_copy:
            note_full(
                self.folder, used_bytes=self.used_bytes, limit_bytes=self.limit_bytes, error=error
            )

    def _read(self, location: bytes) -> UInt8[np.ndarray, "h w c"] | None:
        number, offset, height, width, channels, checksum = _LOCATION.unpack(location)
        size = height * width * channels
        words = np.empty(-(-size // _WORD), np.uint64)
        try:
            # Not memory-mapped: a file that another program shortens would end this process.
            with open(_path(self.folder, self._names[number], _PIXELS), "rb", buffering=0) as file:
                count = os.preadv(file.fileno(), [words.data], offset)
        except OSError:  # The file may be deleted at any time.
            return None
        if count != words.nbytes or _checksum(words) != checksum:
            return None
        return words.view(np.uint8)[:size].reshape(height, width, channels)

    def _number_of(self, name: str) -> int:
        if name not in self._rows:
            self._rows[name] = len(self._names), 0
            self._names.append(name)
        return self._rows[name][0]

    def _refresh(self) -> None:
        """Reads what other processes have appended, and the sizes of all files."""
        used, indexes = 0, []
        with contextlib.suppress(OSError):  # The folder may be deleted at any time.
            for file in os.listdir(self.folder):
                name, extension = os.path.splitext(file)
                with contextlib.suppress(OSError):  # This file is gone: others count.
                    status = os.stat(_path(self.folder, name, extension))
                    if extension == _PIXELS:
                        used += status.st_size
                    elif extension == _INDEX:
                        indexes.append((status.st_mtime_ns, name, status.st_size // _ROW.size))
        self.used_bytes = used
        own = self._writer and self._writer.name
        # The last row of a key counts: an image that was damaged is stored again.
        for _, name, rows in sorted(indexes):
            number = self._number_of(name)
            if name != own and rows != self._rows[name][1]:
                with contextlib.suppress(OSError):  # It cannot be read: others can.
                    self._rows[name] = number, self._read_rows(name, rows)

    def _read_rows(self, name: str, rows: int) -> int:
        """Reads the rows of an index that are new; returns how many are read by now."""
        number, first = self._rows[name]
        if rows < first:  # It was deleted, and begun again.
            first = 0
        with open(_path(self.folder, name, _INDEX), "rb", buffering=0) as file:
            data = os.pread(file.fileno(), (rows - first) * _ROW.size, first * _ROW.size)
        count = len(data) // _ROW.size
        for key, offset, *shape, checksum in _ROW.iter_unpack(data[: count * _ROW.size]):
            if shape[0] * shape[1] <= MAX_PIXELS and shape[2] in (1, 3):  # Else it is not ours.
                self._locations[key] = _LOCATION.pack(number, offset, *shape, checksum)
        return first + count


def _path(folder: str, name: str, extension: str) -> str:
    return os.path.join(folder, name + extension)


def _open_copy(folder: str, limit_bytes: int, is_full: bool) -> PixelFiles:
    files = PixelFiles(folder, limit_bytes=limit_bytes)
    files._is_full, files._is_copy = is_full, True
    return files


def note_full(
    cache: str, *, used_bytes: int, limit_bytes: int, error: OSError | None = None
) -> None:
    """Notes that a cache takes no more images.

    Args:
      cache: its name or folder.
      used_bytes: of all pixels in it.
      limit_bytes: bound of these.
      error: raised when a file was written; None: the limit is reached.
    """
    reason = (
        f"a file cannot be written ({error.strerror})"
        if error
        else f"it has {used_bytes / 1e9:,.2f} GB, and its limit is {limit_bytes / 1e9:,.2f} GB "
        "(data.cache_gb)"
    )
    note(f"{cache} takes no more decoded images: {reason}. The others are decoded each time.")


class _Writer:
    """The two files of a process that appends images. Not thread-safe."""

    def __init__(self, folder: str):
        self.name = secrets.token_hex(8)
        self._folder = folder

    def append(
        self, key: bytes, padded: UInt8[np.ndarray, "n"], shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Writes an image, and then its row; returns the row without the key.

        Raises:
          OSError: the disk is full, or cannot be written.
        """
        # The files may have been deleted since the last image: then new ones begin.
        offset = self._append(_PIXELS, padded.data)
        row = (offset, *shape, _checksum(padded.view(np.uint64)))
        self._append(_INDEX, _ROW.pack(key, *row))
        return row

    def _append(self, extension: str, data: bytes | memoryview) -> int:
        """Appends to a file; returns the offset at which it begins."""
        with open(_path(self._folder, self.name, extension), "ab", buffering=0) as file:
            offset = file.tell()
            if file.write(data) != len(data):  # A disk that is almost full.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return offset


def _checksum(words: np.ndarray) -> int:
    """Returns the sum of 64-bit words modulo 2^64: pages of zeros and torn writes change it."""
    return int(words.sum(dtype=np.uint64))
