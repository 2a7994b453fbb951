"""Tables by row: Arrow files (memory-mapped), Parquet files (by row groups), CSV and TSV files."""

import abc
import collections
import csv
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from vit_jax.errors import DataError
from vit_jax.telemetry.notes import note

EXTENSIONS = (".csv", ".tsv", ".parquet", ".arrow")
# Of decoded row groups that a process keeps. The last one is kept even if it is larger.
_CACHE_BYTES = 128 * 2**20
_LARGE_GROUP_BYTES = 64 * 2**20  # A note says that each image needs reading that much.
_MAX_GROUP_BYTES = 2 * 2**30
_SMALLER_GROUPS = (
    "Write the table again with pyarrow.parquet.write_table(table, file, row_group_size=100)."
)


class Rows(abc.ABC):
    """The rows of some table files with the same columns, one file after the other.

    Reading is thread-safe; a pickled copy opens the files again.

    Attributes:
      files: their paths.
      schema: names and types of the columns.
    """

    def __init__(self, files: Sequence[str]):
        self.files = tuple(files)
        self._open()
        self._first_rows = np.cumsum([0, *self._counts()])

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    def __reduce__(self) -> tuple:
        return type(self), (self.files,)

    @property
    @abc.abstractmethod
    def schema(self) -> pa.Schema: ...

    @abc.abstractmethod
    def column(self, name: str) -> pa.ChunkedArray:
        """Returns a whole column: for small values, not for images."""

    @abc.abstractmethod
    def cell(self, name: str, row: int) -> Any:
        """Returns one value as a Python object."""

    def locate(self, row: int) -> tuple[str, int]:
        """Returns the file of a row, and its number in that file."""
        number = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        return self.files[number], row - int(self._first_rows[number])

    @property
    def row_counts(self) -> list[int]:
        """The number of rows of each file."""
        return np.diff(self._first_rows).tolist()

    @abc.abstractmethod
    def _open(self) -> None: ...

    @abc.abstractmethod
    def _counts(self) -> list[int]: ...


def open_rows(files: Sequence[str]) -> Rows:
    """Opens table files of one kind (`EXTENSIONS`).

    Raises:
      DataError: a file is missing or broken, or their columns differ.
    """
    extension = os.path.splitext(files[0])[1].lower()
    kinds = {".parquet": ParquetRows, ".arrow": ArrowRows}
    return kinds.get(extension, CsvRows)(files)


def _check_schemas(files: Sequence[str], schemas: Sequence[pa.Schema]) -> pa.Schema:
    for file, schema in zip(files, schemas, strict=True):
        if not schema.equals(schemas[0]):
            raise DataError(
                f"{file} has the columns {_described(schema)}; {files[0]} has "
                f"{_described(schemas[0])}. Tables of one data set need the same columns."
            )
    return schemas[0]


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _unreadable(file: str, error: Exception) -> DataError:
    return DataError(f"{file} cannot be read: {str(error).splitlines()[0]}. Get it again.")


class _WholeTables(Rows):
    """Files that are each opened as a whole table."""

    def _open(self) -> None:
        tables = [self._read(file) for file in self.files]
        self._schema = _check_schemas(self.files, [table.schema for table in tables])
        self._num_rows = [table.num_rows for table in tables]
        self._table = pa.concat_tables(tables)

    @abc.abstractmethod
    def _read(self, file: str) -> pa.Table: ...

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def _counts(self) -> list[int]:
        return self._num_rows

    def column(self, name: str) -> pa.ChunkedArray:
        return self._table[name]

    def cell(self, name: str, row: int) -> Any:
        return self._table[name][row].as_py()


class ArrowRows(_WholeTables):
    """Arrow files in the stream format (as Hugging Face's datasets writes) or the file format.

    They are memory-mapped.
    """

    def _read(self, file: str) -> pa.Table:
        try:
            source = pa.memory_map(file)
            is_stream = source.read(6) != b"ARROW1"
            source.seek(0)
            reader = pa.ipc.open_stream(source) if is_stream else pa.ipc.open_file(source)
            table = reader.read_all()
            table.validate()
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(file, error) from error
        return table


class CsvRows(_WholeTables):
    """CSV or TSV files, in memory. Every column is text: names such as 007.png keep their zeros.

    The separator is a tab in a .tsv file; else the most frequent one of comma, semicolon and tab in
    the header.
    """

    def _read(self, file: str) -> pa.Table:
        try:
            with open(file, encoding="utf-8-sig", newline="") as text:
                header = text.readline(2**16)
            separators = "\t" if file.lower().endswith(".tsv") else ",;\t"
            separator = max(separators, key=header.count)
            names = next(csv.reader([header], delimiter=separator), [])
            return pyarrow.csv.read_csv(
                file,
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=separator, newlines_in_values=True
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()),
                    strings_can_be_null=True,
                    null_values=[""],
                ),
            )
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not encoded as UTF-8: save it as UTF-8.") from error
        except (OSError, csv.Error, pa.ArrowException) as error:
            raise _unreadable(file, error) from error


class ParquetRows(Rows):
    """Parquet files. To read an image, its whole row group is read; the last groups are kept.

    Hugging Face writes groups of at most 100 images.
    """

    def _open(self) -> None:
        self._metadata, schemas = [], []
        for file in self.files:
            try:
                with pq.ParquetFile(file) as parquet:
                    self._metadata.append(parquet.metadata)
                    schemas.append(parquet.schema_arrow)
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(file, error) from error
        self._schema = _check_schemas(self.files, schemas)
        # (file, group) of each group, and its first row.
        self._groups = [
            (i, group)
            for i, data in enumerate(self._metadata)
            for group in range(data.num_row_groups)
        ]
        sizes = [self._metadata[i].row_group(group).num_rows for i, group in self._groups]
        self._first_of_group = np.cumsum([0, *sizes])
        self._cache: collections.OrderedDict[tuple[str, int], pa.ChunkedArray] = (
            collections.OrderedDict()
        )
        self._lock = threading.Lock()
        self._reading: dict[tuple[str, int], threading.Lock] = {}

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def _counts(self) -> list[int]:
        return [metadata.num_rows for metadata in self._metadata]

    def column(self, name: str) -> pa.ChunkedArray:
        chunks = []
        for i, file in enumerate(self.files):
            try:
                with pq.ParquetFile(file, metadata=self._metadata[i]) as parquet:
                    chunks += parquet.read(columns=[name])[name].chunks
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(file, error) from error
        return pa.chunked_array(chunks, type=self._schema.field(name).type)

    def cell(self, name: str, row: int) -> Any:
        number = int(np.searchsorted(self._first_of_group, row, side="right")) - 1
        values = self._group(name, number)
        return values[row - int(self._first_of_group[number])].as_py()

    def _group(self, name: str, number: int) -> pa.ChunkedArray:
        """Returns a column of a row group, from the cache if it is there."""
        key = (name, number)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            reading = self._reading.setdefault(key, threading.Lock())
        with reading:  # Threads that need the same group wait, and find it in the cache.
            with self._lock:
                if key in self._cache:
                    return self._cache[key]
            values = self._read_group(name, *self._groups[number])
            with self._lock:
                self._cache[key] = values
                self._reading.pop(key, None)
                kept = sum(other.nbytes for other in self._cache.values())
                while kept > _CACHE_BYTES and len(self._cache) > 1:
                    kept -= self._cache.popitem(last=False)[1].nbytes
        return values

    def _read_group(self, name: str, file: int, group: int) -> pa.ChunkedArray:
        size = self._metadata[file].row_group(group).total_byte_size
        if size > _MAX_GROUP_BYTES:
            raise DataError(
                f"{self.files[file]} has a row group of {size / 1e9:.1f} GB, which would be read "
                f"for each image. {_SMALLER_GROUPS}"
            )
        if size > _LARGE_GROUP_BYTES and size * len(self._groups) > _CACHE_BYTES:
            note(
                f"{os.path.dirname(self.files[file])}: row groups of {size / 1e6:,.0f} MB are read "
                f"for each image, which is slow. {_SMALLER_GROUPS}"
            )
        try:
            # A file of its own: a reader is not thread-safe.
            with pq.ParquetFile(self.files[file], metadata=self._metadata[file]) as parquet:
                return parquet.read_row_group(group, columns=[name], use_threads=False)[name]
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(self.files[file], error) from error
