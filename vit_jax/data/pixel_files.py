"""Decoded images in the files of a folder, which several processes read and append to.

Each process that writes has two files of its own, so writers need no lock between processes: the
pixels of its images, one after the other, and an index with a row of fixed size for each image,
appended when all its pixels are written. What a killed process leaves is a torn end of its files,
which no index row names. After a crash of the machine a row may exist whose pixels were never
written to the disk: each row has a checksum of the pixels, compared at every read.
"""

import errno
import os
import secrets
import struct
import threading

import numpy as np
from jaxtyping import UInt8

from vit_jax.data.decode import MAX_PIXELS
from vit_jax.telemetry.notes import note

_PIXELS, _INDEX = ".pixels", ".index"
_KEY_BYTES = 16
# Key, offset in the file of pixels, height, width, channels, checksum.
_ROW = struct.Struct(f"<{_KEY_BYTES}sQIIIQ")
# What a process holds of each row: the number of its file, and the row without the key.
_PLACE = struct.Struct("<IQIIIQ")
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
        self._places: dict[bytes, bytes] = {}
        self._names: list[str] = []  # Of pairs of files; a place has the position in this list.
        self._rows: dict[str, tuple[int, int]] = {}  # Name -> its position, rows that were read.
        self.used_bytes = 0
        self._writer: _Writer | None = None
        self._is_full = False
        self._refresh()

    def __reduce__(self) -> tuple:
        return _open, (self.folder, self.limit_bytes)

    def get(self, key: bytes) -> UInt8[np.ndarray, "h w c"] | None:
        """Returns an image; None: it is not stored, or cannot be read."""
        place = self._places.get(key)
        if place is None and not self._is_full:
            with self._lock:
                self._refresh()
            place = self._places.get(key)
        if place is None:
            return None
        pixels = self._read(place)
        if pixels is None:
            self._places.pop(key, None)  # It may be stored again.
        return pixels

    def put(self, key: bytes, pixels: UInt8[np.ndarray, "h w c"]) -> None:
        """Appends an image, unless the limit is reached or the disk full; a note says so once."""
        padded = np.zeros(-(-pixels.size // _WORD) * _WORD, np.uint8)
        padded[: pixels.size] = pixels.reshape(-1)
        with self._lock:
            if self._is_full or key in self._places:
                return
            if self.used_bytes + padded.size > self.limit_bytes:
                self._stop(
                    f"it has {self.used_bytes / 1e9:,.2f} GB, and its limit is "
                    f"{self.limit_bytes / 1e9:,.2f} GB (data.cache_gb)"
                )
                return
            if self._writer is None:
                self._writer = _Writer(self.folder)
                self._number_of(self._writer.name)
            try:
                row = self._writer.append(key, padded, pixels.shape)
            except OSError as error:
                self._stop(f"a file cannot be written ({error.strerror})")
                return
            self._places[key] = _PLACE.pack(self._number_of(self._writer.name), *row)
            self.used_bytes += padded.size

    def _stop(self, reason: str) -> None:
        self._is_full = True
        note(
            f"{self.folder}, the cache of decoded images, takes no more: {reason}. The others are "
            "decoded each time. If it holds images that are no longer used, delete it."
        )

    def _read(self, place: bytes) -> UInt8[np.ndarray, "h w c"] | None:
        number, offset, height, width, channels, checksum = _PLACE.unpack(place)
        size = height * width * channels
        words = np.empty(-(-size // _WORD), np.uint64)
        try:
            # Not memory-mapped: a file that another program shortens would end this process.
            with open(_path(self.folder, self._names[number], _PIXELS), "rb", buffering=0) as file:
                count = os.preadv(file.fileno(), [words.data], offset)
        except OSError:  # The folder may be deleted at any time.
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
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    name, extension = os.path.splitext(entry.name)
                    if extension == _PIXELS:
                        used += entry.stat().st_size
                    elif extension == _INDEX:
                        status = entry.stat()
                        indexes.append((status.st_mtime_ns, name, status.st_size // _ROW.size))
            self.used_bytes = used
            own = self._writer and self._writer.name
            # The last row of a key counts: an image that was damaged is stored again.
            for _, name, rows in sorted(indexes):
                number = self._number_of(name)
                if name != own and rows > self._rows[name][1]:
                    self._rows[name] = number, self._read_rows(name, rows)
        except OSError:  # As above.
            return

    def _read_rows(self, name: str, rows: int) -> int:
        """Reads the rows of an index that are new; returns how many are read by now."""
        number, first = self._rows[name]
        with open(_path(self.folder, name, _INDEX), "rb", buffering=0) as file:
            data = os.pread(file.fileno(), (rows - first) * _ROW.size, first * _ROW.size)
        count = len(data) // _ROW.size
        for key, offset, *shape, checksum in _ROW.iter_unpack(data[: count * _ROW.size]):
            if shape[0] * shape[1] <= MAX_PIXELS and shape[2] in (1, 3):  # Else it is not ours.
                self._places[key] = _PLACE.pack(number, offset, *shape, checksum)
        return first + count


def _path(folder: str, name: str, extension: str) -> str:
    return os.path.join(folder, name + extension)


def _open(folder: str, limit_bytes: int) -> PixelFiles:
    return PixelFiles(folder, limit_bytes=limit_bytes)


class _Writer:
    """The two files of a process that appends images. Not thread-safe."""

    def __init__(self, folder: str):
        self.name = secrets.token_hex(8)
        self._folder, self._end = folder, 0

    def append(
        self, key: bytes, padded: UInt8[np.ndarray, "n"], shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Writes an image, and then its row; returns the row without the key.

        Raises:
          OSError: the disk is full, or cannot be written.
        """
        row = (self._end, *shape, _checksum(padded.view(np.uint64)))
        for extension, data in ((_PIXELS, padded.data), (_INDEX, _ROW.pack(key, *row))):
            with open(_path(self._folder, self.name, extension), "ab", buffering=0) as file:
                if file.write(data) != len(data):  # A disk that is almost full.
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._end += padded.size
        return row


def _checksum(words: np.ndarray) -> int:
    """Returns the sum of 64-bit words modulo 2^64: pages of zeros and torn writes change it."""
    return int(words.sum(dtype=np.uint64))
