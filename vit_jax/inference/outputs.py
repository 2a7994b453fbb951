"""Writes predictions and features to files while they are computed, in constant memory.

A file appears under its name when it is complete: the rows go to a temporary file beside it.
"""

import abc
import contextlib
import json
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
from etils import epath

from vit_jax import storage
from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.pretrained.prediction import Prediction

PREDICTIONS = (".csv", ".jsonl", ".parquet")
FEATURES = (".npz", ".parquet")
_ROWS = 1024  # Of a row group in Parquet, and of a record batch in CSV.


def check_output(
    output: epath.Path, *, flag: str, formats: Sequence[str], overwrite: bool = False
) -> None:
    """Raises ConfigError if a file cannot be written, or exists and may not be overwritten.

    Called before the prediction.
    """
    if output.suffix not in formats:
        raise ConfigError(f"--{flag}={output}: " + did_you_mean(output.suffix, formats))
    if storage.is_local(output) and not output.parent.is_dir():
        raise ConfigError(f"--{flag}={output}: there is no folder {output.parent}.")
    if output.is_dir():
        raise ConfigError(f"--{flag}={output} is a folder: name a file.")
    with storage.reported(ConfigError, f"--{flag}={output} cannot be written"):
        exists = storage.exists(output)
    if exists and not overwrite:
        raise ConfigError(f"--{flag}={output} exists: name another file, or add --overwrite.")


class Writer(abc.ABC):
    """Writes predictions to a file; a context manager.

    The file appears when the block ends without an exception; with one, nothing is left.
    """

    def __init__(self, output: epath.PathLike):
        """Opens a temporary file.

        Raises:
          ConfigError: it cannot be written.
        """
        self._output = epath.Path(output)
        local = storage.is_local(output)
        with self._reported():
            # For an object store the temporary file is of this machine.
            descriptor, name = tempfile.mkstemp(
                prefix=f".{self._output.name}.",
                suffix=".tmp",
                dir=os.path.dirname(os.path.abspath(output)) if local else None,
            )
        self._temporary = pathlib.Path(name)
        self._file: IO[bytes] = os.fdopen(descriptor, "wb")

    @abc.abstractmethod
    def add(self, prediction: Prediction) -> None:
        """Writes a prediction, or keeps it for the next rows."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Writes what was kept."""

    @abc.abstractmethod
    def close(self) -> None:
        """Closes what lies between the rows and the file; called after a failure, too."""

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type | None, *exc_info: object) -> None:
        try:
            if kind is None:
                with self._reported():
                    self.finish()
                    self.close()
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    self._file.close()
                    self._publish()
        finally:
            # A full disk fails again.
            with contextlib.suppress(OSError, ValueError, pyarrow.ArrowException):
                self.close()
            with contextlib.suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _publish(self) -> None:
        if not storage.is_local(self._output):
            epath.Path(self._temporary).copy(self._output, overwrite=True)
            return
        storage.apply_umask(self._temporary)
        self._temporary.replace(self._output)

    def _reported(self):
        return storage.reported(ConfigError, f"{self._output} cannot be written")


def predictions_writer(output: epath.PathLike, *, num_shown: int) -> Writer:
    """Returns a writer of the most probable classes.

    A line of .jsonl is {"path", "classes", "probabilities", "error"}; .csv and .parquet have the
    columns path, error, class_1, probability_1, class_2, ...

    Args:
      output: a file that ends in one of `PREDICTIONS`.
      num_shown: the number of classes of each prediction.
    """
    if epath.Path(output).suffix == ".jsonl":
        return _JsonLines(output)
    return _Table(output, _class_columns(num_shown))


def features_writer(output: epath.PathLike, paths: Sequence[str], *, num_features: int) -> Writer:
    """Returns a writer of features.

    .parquet has the columns path, error and features (a list of float32; null for a file that
    cannot be read). .npz has the arrays features float32[n, d] (NaN for such a file), paths and
    errors; NumPy can open it with `mmap_mode` only after unzipping.

    Args:
      output: a file that ends in one of `FEATURES`.
      paths: of all predictions, in their order.
      num_features: d.
    """
    if epath.Path(output).suffix == ".npz":
        return _Npz(output, paths, num_features)
    return _Table(output, _feature_columns(num_features))


class _JsonLines(Writer):
    def add(self, prediction: Prediction) -> None:
        row = {
            "path": prediction.path,
            "classes": prediction.classes,
            "probabilities": prediction.probabilities,
            "error": prediction.error,
        }
        with self._reported():
            self._file.write(f"{json.dumps(row, ensure_ascii=False)}\n".encode(errors="replace"))

    def finish(self) -> None:
        """Every line is written already."""

    def close(self) -> None:
        """There is nothing between."""


# Name -> type, and the value of a prediction.
Columns = dict[str, tuple[pyarrow.DataType, Any]]


def _class_columns(num_shown: int) -> Columns:
    columns: Columns = dict(_COMMON)
    for k in range(num_shown):

        def name(p: Prediction, k: int = k) -> str | None:
            return p.classes[k] if k < len(p.classes) else None

        def probability(p: Prediction, k: int = k) -> float | None:
            return p.probabilities[k] if k < len(p.probabilities) else None

        columns[f"class_{k + 1}"] = (pyarrow.string(), name)
        columns[f"probability_{k + 1}"] = (pyarrow.float64(), probability)
    return columns


def _feature_columns(num_features: int) -> Columns:
    kind = pyarrow.list_(pyarrow.float32(), num_features)
    return _COMMON | {"features": (kind, lambda p: p.features)}


_COMMON: Columns = {
    "path": (pyarrow.string(), lambda p: p.path),
    "error": (pyarrow.string(), lambda p: p.error),
}


class _Table(Writer):
    """Writes CSV or Parquet, a few rows at a time."""

    def __init__(self, output: epath.PathLike, columns: Columns):
        super().__init__(output)
        self._columns = columns
        self._schema = pyarrow.schema([(name, kind) for name, (kind, _) in columns.items()])
        kind = pyarrow.csv.CSVWriter if self._output.suffix == ".csv" else _parquet_writer
        self._writer = kind(self._file, self._schema)
        self._kept: list[Prediction] = []

    def add(self, prediction: Prediction) -> None:
        self._kept.append(prediction)
        if len(self._kept) >= _ROWS:
            with self._reported():
                self._write()

    def finish(self) -> None:
        self._write()

    def close(self) -> None:
        self._writer.close()

    def _write(self) -> None:
        arrays = [
            pyarrow.array([value(p) for p in self._kept], kind)
            for kind, value in self._columns.values()
        ]
        self._writer.write_table(pyarrow.table(arrays, schema=self._schema))
        self._kept = []


def _parquet_writer(file: IO[bytes], schema: pyarrow.Schema) -> pyarrow.parquet.ParquetWriter:
    return pyarrow.parquet.ParquetWriter(file, schema)


class _Npz(Writer):
    """Writes the rows of an array into its member of a ZIP file, one after the other."""

    def __init__(self, output: epath.PathLike, paths: Sequence[str], num_features: int):
        super().__init__(output)
        self._paths, self._errors = paths, {}
        self._count, self._num_features = 0, num_features
        self._zip = zipfile.ZipFile(self._file, "w", allowZip64=True)
        self._member = self._open("features", "<f4", (len(paths), num_features))

    def _open(self, name: str, kind: str, shape: tuple[int, ...]) -> Any:
        """Opens a member, and writes the header of its array."""
        member = self._zip.open(f"{name}.npy", "w", force_zip64=True)
        header = {"descr": kind, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        return member

    def add(self, prediction: Prediction) -> None:
        row = prediction.features
        if row is None:
            self._errors[self._count] = prediction.error
            row = np.full(self._num_features, np.nan, np.float32)
        self._count += 1
        with self._reported():
            self._member.write(row.astype("<f4").tobytes())

    def finish(self) -> None:
        self._member.close()
        self._write_texts("paths", self._paths)
        self._write_texts("errors", [self._errors.get(i, "") for i in range(self._count)])

    def close(self) -> None:
        self._member.close()
        self._zip.close()

    def _write_texts(self, name: str, texts: Sequence[str]) -> None:
        """Writes an array of text, a few rows at a time: each has the size of the longest."""
        kind = f"<U{max(1, max(map(len, texts), default=1))}"
        with self._open(name, kind, (len(texts),)) as member:
            for start in range(0, len(texts), _ROWS):
                member.write(np.array(texts[start : start + _ROWS], kind).tobytes())
