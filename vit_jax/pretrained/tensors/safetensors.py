"""Safetensors: the length of a JSON header, the header, and the bytes of all tensors.

Source of the format: https://github.com/huggingface/safetensors, "Format" in its README.
"""

import json
import math
import os
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.pretrained.tensors.base import Tensor, Tensors, bounds, count, damaged, reading

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
LARGEST_HEADER = 100 * 2**20  # Bytes: the limit of the safetensors library.


class Safetensors(Tensors):
    """One .safetensors file; `metadata` is its header's `__metadata__`, {str: str}."""

    def __init__(self, path: pathlib.Path):
        """Reads the header.

        Raises:
          CheckpointError: the file is damaged, or has a tensor of an unsupported dtype.
        """
        with reading(path), open(path, "rb") as file:
            self._identity = _identity(file.fileno())
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(size - 8, LARGEST_HEADER):
                raise damaged(path, f"its header claims {length:,} bytes")
            header = _parse(path, file.read(length))
        metadata = header.pop("__metadata__", {})
        tensors, spans = {}, {}
        for name, entry in header.items():
            tensors[name], spans[name] = _entry(path, name, entry)
        _check_spans(path, spans, size - 8 - length)
        self._starts = {name: 8 + length + begin for name, (begin, _) in spans.items()}
        super().__init__(path, tensors, metadata if isinstance(metadata, dict) else {})

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        shape, dtype = self[name]
        first, last = bounds(shape, rows)
        row = math.prod(shape[1:]) * dtype.itemsize
        out = np.empty((last - first) * row, np.uint8)
        with reading(self.path, name), open(self.path, "rb", buffering=0) as file:
            if _identity(file.fileno()) != self._identity:
                raise CheckpointError(
                    f"{self.path} has changed since it was opened: run the command again."
                )
            _fill(file.fileno(), out.data, self._starts[name] + first * row)
        return out.view(dtype).reshape((last - first, *shape[1:]) if shape else ())


def _identity(file: int) -> tuple[int, ...]:
    """Returns a value that changes when the file is replaced or written to."""
    status = os.fstat(file)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _parse(path: pathlib.Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(content := dict(pairs)) < len(pairs):
            raise ValueError("a name occurs twice")
        return content

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is not a JSON object")
    return header


def _entry(path: pathlib.Path, name: str, entry: Any) -> tuple[Tensor, tuple[int, int]]:
    """Returns a tensor, and the (start, end) of its bytes, counted from the header's end."""
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        size = count(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"{name[:200]}: {error}") from error
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise CheckpointError(
            f"{path}: {name[:200]} has the dtype {str(kind)[:50]}, which is not supported. "
            f"Supported: {', '.join(_DTYPES)}. Use a checkpoint that is not quantised."
        )
    if not (type(begin) is int and type(end) is int and 0 <= begin <= end):
        raise damaged(path, f"{name[:200]}: its data_offsets are invalid")
    if end - begin != size * _DTYPES[kind].itemsize:
        raise damaged(path, f"{name[:200]}: it has {end - begin:,} bytes, too many or too few")
    return Tensor(shape, _DTYPES[kind]), (begin, end)


def _check_spans(path: pathlib.Path, spans: dict[str, tuple[int, int]], size: int) -> None:
    """Raises CheckpointError unless the tensors cover all bytes, without gaps or overlaps."""
    end = 0
    for name, span in sorted(spans.items(), key=lambda item: item[1]):
        if span[0] != end:
            raise damaged(path, f"{name[:200]}: its bytes overlap others, or leave a gap")
        end = span[1]
    if end != size:
        raise damaged(path, f"its tensors have {end:,} bytes, and the file has {size:,} for them")


def _fill(file: int, out: memoryview, offset: int) -> None:
    """Fills a buffer from an offset of a file."""
    while out:
        count = os.preadv(file, [out], offset)  # Reads at most 2 GiB.
        if not count:
            raise EOFError("the file ends too early")
        out, offset = out[count:], offset + count
