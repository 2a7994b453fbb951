"""TFRecord files: scanned once for the offsets of their records, then read at an offset.

A record is its length (uint64, little-endian), the masked CRC-32C of the length, the data, and the
masked CRC-32C of the data. Source: tensorflow/core/lib/io/record_writer.h.
"""

import os
from collections.abc import Sequence

import google_crc32c
import numpy as np
import pyarrow as pa

from vit_jax.data.reading import MAX_BYTES, Span, read_spans
from vit_jax.errors import DataError

_HEADER, _FOOTER = 12, 4  # In bytes.


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return ((rotated + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def scan(path: str) -> pa.Table:
    """Returns the offset and length of the data of each record, without reading the data.

    Raises:
      DataError: the file cannot be read, or is not a whole TFRecord file.
    """
    offsets, lengths = [], []
    try:
        with open(path, "rb", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size
            position = 0
            while position < end:
                header = os.pread(file.fileno(), _HEADER, position)
                length = int.from_bytes(header[:8], "little")
                if len(header) < _HEADER or header[8:] != _masked_crc(header[:8]):
                    raise DataError(
                        f"{path} is not a TFRecord file, or is damaged, at byte {position:,}. Get "
                        "it again."
                    )
                offsets.append(position + _HEADER)
                lengths.append(length)
                position += _HEADER + length + _FOOTER
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if position != end:
        raise DataError(
            f"{path} is truncated: it has {end:,} bytes, and its last record ends at "
            f"{position:,}. Get it again."
        )
    return pa.table({"offset": np.array(offsets, np.int64), "length": np.array(lengths, np.int64)})


def read_records(spans: Sequence[Span]) -> list[bytes]:
    """Returns the data of some records, of which neighbours are read at once.

    Args:
      spans: the data of each record, without its length and checksums.

    Raises:
      DataError: a file cannot be read, or the data are damaged.
      OSError: it cannot be read now (`is_transient`).
    """
    for span in spans:
        if span.length > MAX_BYTES:
            raise DataError(
                f"The record has {span.length:,} bytes; at most {MAX_BYTES:,} are read."
            )
    with_crc = [span._replace(length=span.length + _FOOTER) for span in spans]
    records = []
    for span, data in zip(spans, read_spans(with_crc), strict=True):
        data, crc = data[: span.length], data[span.length :]
        if crc != _masked_crc(data):
            raise DataError(
                f"The record at byte {span.offset:,} of {span.path} is damaged. Get the file again."
            )
        records.append(data)
    return records
