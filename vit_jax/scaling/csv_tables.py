"""Reads CSV files of programs and spreadsheets: separators, decimal commas, thousands, percent.

The separator is the one of comma, semicolon and tab that splits the first rows into equally many
cells; a first line such as "sep=;" (Excel's) names it. Spreadsheets in languages with a decimal
comma write 1.234,5 for 1234.5, others 1,234.5: the file's decimal mark is the one that its numbers
show beyond doubt. A column stays text, and its use an error instead of a result that is off by a
factor of 1,000, if its marks contradict those of the rest of the file, or if nothing shows what
they mean, as in "1,000". Cells with a percent sign are shares: "12.5 %" is 0.125.
"""

import csv
import io
import pathlib
import re
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv as pa_csv

from vit_jax.errors import DataError

# Untyped: pyarrow makes these functions when it is imported.
pc: Any = pyarrow.compute
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_EXCEL = re.compile(rb'(?:\xef\xbb\xbf)?"?sep=([,;\t])"?\r?\n', re.IGNORECASE)  # Its first line.
_ROWS, _BYTES = 50, 1 << 16  # What is read to find the separator.

_SIGN, _END = r"^[-+]?", r"([eE][-+]?\d+)?$"
_GROUPED = r"[1-9]\d{0,2}(%s\d{3})+"  # 1,234,567
_PERCENT = r"[\s\x{a0}\x{202f}]*%$"  # Also after a no-break space. RE2's syntax.
_NUMBER = rf"{_SIGN}[\d.,]*\d[.,]?{_END}"
Marks = tuple[str, str]  # The decimal mark and the mark of thousands.
_POINT, _COMMA = (".", ","), (",", ".")


def read_csv(path: pathlib.Path) -> pa.Table:
    """Reads a CSV file whose first line has the names of the columns.

    Raises:
      DataError: its separator is ambiguous.
      OSError: the file cannot be read.
      pyarrow.ArrowException: the file is not a table.
    """
    data = path.read_bytes()
    if match := _EXCEL.match(data):
        data = data[match.end() :]
    separator = match[1].decode() if match else _separator(data, path)
    table = _read(data, separator)
    if any(map(pa.types.is_binary, table.schema.types)):
        return table  # Not UTF-8, which `table.read_runs` reports.
    if separator != ";" and not any(map(pa.types.is_string, table.schema.types)):
        return table
    texts = _read(data, separator, as_text=table.column_names)
    # By position: names may occur twice, which `table.read_runs` reports.
    candidates = {
        i: pc.utf8_trim_whitespace(texts.column(i))
        for i, kind in enumerate(table.schema.types)
        if pa.types.is_string(kind) or (pa.types.is_floating(kind) and separator == ";")
    }
    numbers = {i: cells for i, cells in candidates.items() if _all_match(_unsigned(cells), _NUMBER)}
    if separator != ";" and any(map(pa.types.is_floating, table.schema.types)):
        marks = _POINT
    else:
        marks = _file_marks([_unsigned(cells) for cells in numbers.values()])
    for i, cells in numbers.items():
        table = table.set_column(i, table.column_names[i], _converted(cells, marks))
    return table


def arrow_file(data: bytes) -> pa.BufferReader:
    """Returns a file of these bytes in memory of Arrow's own.

    Arrow's threads may release a file after the read, while the process exits. If the memory is
    Python's they need the interpreter for that, and the process aborts (apache/arrow#34314).
    """
    stream = pa.BufferOutputStream()
    stream.write(data)
    return pa.BufferReader(stream.getvalue())


def _separator(data: bytes, path: pathlib.Path) -> str:
    """Returns the separator that splits the first rows into equally many cells.

    Raises:
      DataError: several do.
    """
    start = data[:_BYTES].decode("utf-8-sig", errors="replace")
    widths = {}
    for separator in _SEPARATORS:
        try:
            rows = list(csv.reader(io.StringIO(start, newline=""), delimiter=separator))
        except csv.Error:
            continue
        rows = [row for row in rows[: -1 if len(data) > _BYTES else None] if row][:_ROWS]
        widths[separator] = [len(row) for row in rows] or [1]
    splitting = [mark for mark, counts in widths.items() if min(counts) == max(counts) > 1]
    if len(splitting) > 1:
        first, second = (repr(mark).strip("'") for mark in splitting[:2])
        raise DataError(
            f"{path} may be separated by {' or '.join(_SEPARATORS[mark] for mark in splitting)}: "
            f"every row has both. Write a first line sep={first} or sep={second}, without quotes, "
            "or put quotes around the cells that contain the other."
        )
    # Rows of different lengths are an error of the parser; it names the first.
    return (splitting or [max(widths, key=lambda mark: widths[mark][0], default=",")])[0]


def _read(data: bytes, separator: str, *, as_text: list[str] | None = None) -> pa.Table:
    return pa_csv.read_csv(
        arrow_file(data),
        # One block, so that a column's type is inferred from all of its rows.
        read_options=pa_csv.ReadOptions(block_size=max(len(data), 1)),
        parse_options=pa_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(as_text or [], pa.string()), strings_can_be_null=True
        ),
    )


def _all_match(cells: pa.ChunkedArray, pattern: str) -> bool:
    """Returns whether all cells that are not missing match, and there are such cells."""
    found = pc.match_substring_regex(cells, pattern)
    return cells.null_count < len(cells) and bool(pc.all(found).as_py())


def _any_match(cells: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(cells, pattern)).as_py())


def _unsigned(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the cells without percent signs."""
    return pc.replace_substring_regex(cells, _PERCENT, "")


def _file_marks(columns: list[pa.ChunkedArray]) -> Marks | None:
    """Returns the file's decimal mark and mark of thousands; None if nothing shows them.

    Columns that show a decimal comma do not count if others show a decimal point.
    """
    shown = [_column_marks(cells) for cells in columns]
    return _POINT if _POINT in shown else _COMMA if _COMMA in shown else None


def _column_marks(cells: pa.ChunkedArray) -> Marks | None:
    for decimal, thousands in (_POINT, _COMMA):
        d, t = re.escape(decimal), re.escape(thousands)
        if not _all_match(cells, _pattern(decimal, thousands)):
            continue
        # A decimal mark that cannot be one of thousands, or two marks of thousands.
        is_grouped = rf"{_SIGN}{_GROUPED % d}$"
        fractions = pc.match_substring_regex(cells, rf"{_SIGN}[\d{t}]*{d}\d*{_END}")
        ambiguous = pc.match_substring_regex(cells, is_grouped)
        shows = pc.any(pc.and_not(fractions, ambiguous)).as_py()
        if shows or _any_match(cells, rf"{_SIGN}[1-9]\d{{0,2}}({t}\d{{3}}){{2,}}$"):
            return decimal, thousands
    return None


def _pattern(decimal: str, thousands: str) -> str:
    """Returns the pattern of numbers with these marks, among cells that match _NUMBER."""
    d, t = re.escape(decimal), re.escape(thousands)
    return rf"{_SIGN}(\d*|{_GROUPED % t})({d}\d*)?{_END}"


def _converted(cells: pa.ChunkedArray, marks: Marks | None) -> pa.ChunkedArray:
    """Returns numbers, or the cells as they are if it is not clear which numbers they are."""
    bare = _unsigned(cells)
    with_percent = pc.match_substring_regex(cells, "%$")
    is_percent = bool(pc.any(with_percent).as_py())
    if is_percent and not pc.all(with_percent).as_py():
        return cells  # Some are shares, or the sign is missing.
    if marks is None:
        if _any_match(bare, "[.,]"):
            return cells
        marks = _POINT
    decimal, thousands = marks
    if not _all_match(bare, _pattern(decimal, thousands)):
        return cells
    plain = pc.replace_substring(pc.replace_substring(bare, thousands, ""), decimal, ".")
    numbers = pc.cast(plain, pa.float64())
    return pc.divide(numbers, 100.0) if is_percent else numbers
