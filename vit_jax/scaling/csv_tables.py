"""Reads CSV files separated by commas, semicolons or tabs.

Spreadsheets in languages with a decimal comma separate cells by semicolons. In a file with
semicolons a comma is therefore read as the decimal mark, unless a number in the file has a decimal
point. Ambiguous columns ("1,000" and "3,000", with three digits after each comma) stay text: then
the fit fails with an error instead of being off by a factor of 1,000.
"""

import io
import pathlib
import re

import pyarrow as pa
import pyarrow.csv

_SEPARATORS = ",;\t"
_EXCEL = re.compile(rb"(?:\xef\xbb\xbf)?sep=([,;\t])\r?\n")  # Excel's first line.
_DECIMAL_COMMA = r"^\s*[-+]?\d*,\d+([eE][-+]?\d+)?\s*$"
_THOUSANDS = r"^\s*[-+]?[1-9]\d{0,2},\d{3}\s*$"


def read_csv(path: pathlib.Path) -> pa.Table:
    """Reads a CSV file whose first line has the names of the columns.

    Raises:
      OSError: the file cannot be read.
      pyarrow.ArrowException: the file is not a table.
    """
    data = path.read_bytes()
    if match := _EXCEL.match(data):
        data = data[match.end() :]
    separator = match[1].decode() if match else _separator(data)
    table = _read(data, separator, decimal_mark=".")
    if separator != ";":
        return table
    with_commas = _read(data, separator, decimal_mark=",")
    kinds = list(zip(table.schema.types, with_commas.schema.types, strict=True))
    if any(pa.types.is_floating(a) and not pa.types.is_floating(b) for a, b in kinds):
        return table  # The file has decimal points.
    for i, field in enumerate(table.schema):
        if pa.types.is_string(field.type) and _has_decimal_commas(table.column(i)):
            table = table.set_column(i, field.name, with_commas.column(i))
    return table


def _separator(data: bytes) -> str:
    """Returns the most frequent separator of the header; a comma if there is only one name."""
    # A quoted name may contain line breaks.
    header = re.match(rb'(?:"[^"]*"|[^"\r\n])*', data)[0]
    unquoted = re.sub(rb'"[^"]*"', b"", header).decode(errors="replace")
    return max(_SEPARATORS, key=unquoted.count)


def _read(data: bytes, separator: str, *, decimal_mark: str) -> pa.Table:
    return pa.csv.read_csv(
        io.BytesIO(data),
        # One block, so that a column's type is inferred from all of its rows.
        read_options=pa.csv.ReadOptions(block_size=max(len(data), 1)),
        parse_options=pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(decimal_point=decimal_mark),
    )


def _has_decimal_commas(texts: pa.ChunkedArray) -> bool:
    commas = [text for text in texts.drop_null().to_pylist() if re.match(_DECIMAL_COMMA, text)]
    return bool(commas) and not all(re.match(_THOUSANDS, text) for text in commas)
