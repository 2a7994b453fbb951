"""Reads a table of runs as arrays by column."""

import math
import os
import pathlib
import re
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vit_jax.errors import ConfigError, DataError, did_you_mean
from vit_jax.scaling.csv_tables import arrow_file, read_csv


def read_runs(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the columns of a table as arrays of one length.

    Whole numbers are int64, or float64 with NaN if some are missing; other numbers are float64.
    Columns of only true and false are bool. Everything else is text, "" where it is missing.

    Args:
      path: a .parquet file, or a .csv file with the names of the columns in its first line. See
        `csv_tables` for separators other than commas, decimal commas and percent signs. Of a
        folder, such as a sweep's, its runs.parquet or else its runs.csv is read.

    Raises:
      DataError: there is no such file, or it is not a valid table.
    """
    path = _table_file(pathlib.Path(path).expanduser())
    if not path.exists():
        raise DataError(f"{path} does not exist.")
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            # Read at once: another process may replace the file meanwhile.
            table = pq.read_table(arrow_file(path.read_bytes()))
        elif kind == ".csv":
            table = read_csv(path)
        else:
            raise DataError(f"{path}: a table of runs must be a .parquet or a .csv file.")
        names = table.column_names
        if kind == ".csv" and any(pa.types.is_binary(field.type) for field in table.schema):
            raise DataError(f"{path} {_NOT_UTF8}")
        if duplicates := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(
                f"{path} has several columns of one name: {', '.join(duplicates)}. Rename them."
            )
        return {name: _array(table.column(name)) for name in names}
    except UnicodeDecodeError as error:  # The names of the columns.
        raise DataError(f"{path} {_NOT_UTF8}") from error
    except (OSError, pa.ArrowException) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise DataError(f"{path} cannot be read as a table of runs: {reason[:300]}.") from error


_NOT_UTF8 = 'is not UTF-8 text. Save it as UTF-8 ("CSV UTF-8" in Excel), or as Parquet.'


def study_runs() -> pathlib.Path:
    """Returns the table of our own study, 210 runs on Fashion-MNIST: see docs/scaling.md.

    It is in the installed package, or in docs/study in a clone.
    """
    package = pathlib.Path(__file__).parent.parent
    installed = package / "study"
    return (installed if installed.is_dir() else package.parent / "docs" / "study") / "runs.csv"


def _table_file(path: pathlib.Path) -> pathlib.Path:
    """Returns a path, or if it is a folder, the table of runs that `vit-jax sweep` writes to it."""
    if not path.is_dir():
        return path
    tables = [path / name for name in ("runs.parquet", "runs.csv") if (path / name).is_file()]
    if tables:
        return tables[0]
    others = sorted(file.name for file in path.iterdir() if file.suffix in (".parquet", ".csv"))
    advice = f"Name a table in it: {', '.join(others[:10])}." if others else "It has no table."
    raise DataError(f"{path} is a folder without runs.parquet or runs.csv. {advice}")


def column(runs: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Returns a column of a table.

    Raises:
      ConfigError: there is no column of that name; the message suggests the nearest.
    """
    if name not in runs:
        raise ConfigError(f'The table has no column "{name}". {did_you_mean(name, runs)}')
    return runs[name]


def numeric_column(runs: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Returns a column of numbers as float64; NaN where one is missing.

    Raises:
      ConfigError: there is no such column, or it has text; the message shows the first such cell.
    """
    values = column(runs, name)
    if values.dtype.kind in "if":
        return values.astype(np.float64)
    texts = values.tolist()
    row = next((i for i, value in enumerate(texts) if not _is_number(value)), 0)
    text = str(texts[row])
    if text.endswith("%"):
        advice = "Other cells have no percent sign: write all with it, or none."
    elif re.fullmatch(r"[-+]?\d+[.,]\d[\d.,]*", text):
        advice = (
            "The file does not show which mark is the decimal one. Write decimal points and no "
            "marks of thousands: 1.5 or 1500."
        )
    else:
        advice = (
            "Write plain numbers, such as 0.25 or 1e15, not as text, and leave missing cells empty."
        )
    raise ConfigError(
        f'The column "{name}" is not numeric: it has {texts[row]!r} in row {row + 1:,}. {advice}'
    )


def _is_number(value: str | bool) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except ValueError:
        return not value  # An empty cell is a missing number.


def _array(values: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_timestamp(values.type):  # Python's datetime has no nanoseconds.
        values = values.cast(pa.string())
    kind = values.type
    missing = values.null_count > 0
    if pa.types.is_boolean(kind) and not missing:
        return values.to_numpy()
    if pa.types.is_null(kind):
        return np.full(len(values), np.nan)
    if pa.types.is_integer(kind) and not missing:
        return values.cast(pa.int64()).to_numpy()
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = values.cast(pa.float64(), safe=False)
        return np.array([np.nan if x is None else x for x in numbers.to_pylist()], np.float64)
    return np.array(["" if value is None else str(value) for value in values.to_pylist()])
