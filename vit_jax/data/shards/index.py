"""Where the examples are in files without an index of their own; made once and kept.

The index of a set of files is a table with a row for each example, in an Arrow file beside the
files, or in the user's cache if their folder cannot be written. It is memory-mapped, so that it
takes no memory in each loader process, and is made again if a file's size or time has changed.
"""

import concurrent.futures
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from rich.progress import track

from vit_jax import storage
from vit_jax.data.base import digest
from vit_jax.errors import DataError
from vit_jax.telemetry.notes import note
from vit_jax.telemetry.progress import format_duration, terminal

_VERSION = 1
_THREADS = 8  # They wait for the disk most of the time.
_LARGE_BYTES = 2**30  # A note says that larger files are being indexed.
_METADATA = b"vit_jax"


class Index:
    """The table of an index, and the files that its column `file` numbers."""

    def __init__(self, table: pa.Table, files: Sequence[str], *, path: str = ""):
        """Holds a table; `path` is the file from which it is mapped, if any."""
        self.files, self._path = tuple(files), path
        self._table = table
        self._arrays = {
            name: _to_numpy(table[name])
            for name in table.column_names
            if pa.types.is_integer(table[name].type)
        }

    def __len__(self) -> int:
        return self._table.num_rows

    def __reduce__(self) -> tuple:
        if not self._path:
            return Index, (self._table, self.files)
        return _reopen, (self._path, self._table.schema.metadata[_METADATA], self.files)

    def array(self, column: str) -> np.ndarray:
        """Returns a column of numbers, without a copy of what is memory-mapped."""
        return self._arrays[column]

    def texts(self, column: str) -> pa.ChunkedArray:
        """Returns a column of texts."""
        return self._table[column]

    def text(self, column: str, row: int) -> str:
        """Returns one text."""
        return self._table[column][row].as_py()


def _to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    if column.num_chunks == 1:
        return column.chunk(0).to_numpy(zero_copy_only=True)
    return column.to_numpy()


def open_index(
    files: Sequence[str], *, root: str, kind: str, scan: Callable[[str], pa.Table]
) -> Index:
    """Returns the index of some files; makes it if there is none or a file has changed.

    Args:
      files: paths, in the order of the examples.
      root: the folder that contains them all; the index is kept there.
      kind: distinguishes indexes of the same files: what `scan` depends on.
      scan: returns the table of one file; raises DataError for a broken one.

    Raises:
      DataError: a file cannot be read, or is broken.
    """
    header = json.dumps([_VERSION, kind, [_state(file, root) for file in files]]).encode()
    name = f".vit_jax_index-{digest(kind, *(os.path.relpath(f, root) for f in files))[:16]}.arrow"
    home = storage.user_cache() / "indexes" / digest(os.path.realpath(root))[:16]
    candidates = [pathlib.Path(root) / name, home / name]
    for path in candidates:
        if index := _read(path, header, files):
            return index
    table = _scan_all(files, scan, root=root).replace_schema_metadata({_METADATA: header})
    for path in candidates:
        try:
            storage.make_folder(path.parent)
            storage.write_bytes(path, _to_bytes(table))
        except OSError:  # The folder cannot be written.
            continue
        if index := _read(path, header, files):
            return index
    note(f"The index of {root} cannot be kept, and is made again at the next start.")
    return Index(table.combine_chunks(), files)


def _state(file: str, root: str) -> list:
    with storage.reported(DataError, f"{file} cannot be read"):
        status = os.stat(file)
    return [os.path.relpath(file, root), status.st_size, status.st_mtime_ns]


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def _read(path: pathlib.Path, header: bytes, files: Sequence[str]) -> Index | None:
    """Returns the index in a file; None if it is missing, broken, or that of other files."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate()
    except (OSError, pa.ArrowException):
        return None
    if (table.schema.metadata or {}).get(_METADATA) != header:
        return None
    return Index(table, files, path=str(path))


def _reopen(path: str, header: bytes, files: Sequence[str]) -> Index:
    index = _read(pathlib.Path(path), header, files)
    if index is None:
        raise DataError(f"{path} was changed while it was in use. Start the same command again.")
    return index


def _scan_all(files: Sequence[str], scan: Callable[[str], pa.Table], *, root: str) -> pa.Table:
    size = sum(os.path.getsize(file) for file in files)
    is_large = size > _LARGE_BYTES
    if is_large:
        note(f"Indexing {len(files):,} files ({size / 1e9:,.1f} GB) of {root}, once.")
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        scanned = pool.map(scan, files)
        tables = [
            table.append_column("file", pa.array(np.full(table.num_rows, i, np.int32)))
            for i, table in enumerate(_with_bar(scanned, len(files)) if is_large else scanned)
        ]
    if is_large:
        note(f"Indexed in {format_duration(time.monotonic() - start)}.")
    return pa.concat_tables(tables)


def _with_bar(tables: Iterable[pa.Table], count: int) -> Iterator[pa.Table]:
    console = terminal(sys.stderr)
    if console is None:
        yield from tables
    else:
        yield from track(tables, "Indexing", total=count, console=console, transient=True)
