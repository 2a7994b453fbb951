"""NumPy archives: a zip of .npy files, one for each tensor.

Source of the format: numpy.lib.format. bfloat16, which NumPy lacks, is stored as two-byte void, as
np.savez stores arrays of ml_dtypes.
"""

import io
import pathlib
import warnings
import zipfile
from typing import IO

import ml_dtypes
import numpy as np

from vit_jax.pretrained.tensors.base import Tensor, Tensors, bounds, count, reading

_STORED_BFLOAT16 = np.dtype("V2")
_DEFLATE_RATIO = 1032  # The largest compression ratio of deflate.


class Npz(Tensors):
    """One .npz file; `metadata` is empty. Members may be compressed."""

    def __init__(self, path: pathlib.Path):
        """Reads the headers of all members.

        Raises:
          CheckpointError: the file is damaged, or has members that are not arrays of numbers.
        """
        with reading(path):
            self._zip = zipfile.ZipFile(path)
        tensors: dict[str, Tensor] = {}
        for entry in self._zip.infolist():
            with reading(path, entry.filename):
                name = entry.filename.removesuffix(".npy")
                if name == entry.filename or name in tensors:
                    raise ValueError("it is not an array (.npy), or occurs twice")
                tensors[name] = self._header(entry)
        super().__init__(path, tensors, {})

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        shape, dtype = self[name]
        first, last = bounds(shape, rows)
        with reading(self.path, name), self._zip.open(f"{name}.npy") as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
            if array.shape != shape:
                raise ValueError("it has changed since the file was opened")
        if array.dtype == _STORED_BFLOAT16:
            array = np.ascontiguousarray(array).view(dtype).reshape(shape)
        array = array[first:last] if rows is not None else array
        return array.astype(dtype, order="C", copy=False)

    def _header(self, entry: zipfile.ZipInfo) -> Tensor:
        """Reads a member's header; checks its size against the member's, without decompressing."""
        if entry.flag_bits & 1:
            raise ValueError("it is encrypted")
        ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DEFLATE_RATIO}.get(
            entry.compress_type
        )
        if ratio is None:
            raise ValueError("its compression is not one that NumPy writes")
        with self._zip.open(entry) as member:
            shape, dtype = _npy_header(member)
            size = member.tell() + count(shape) * dtype.itemsize
        # NumPy allocates the array before it reads the bytes, so a forged size must not get there.
        if size != entry.file_size or entry.file_size > ratio * entry.compress_size:
            raise ValueError(
                f"it should have {size:,} bytes, and has {entry.compress_size:,} in the archive"
            )
        return Tensor(shape, dtype)


def _npy_header(member: io.BufferedIOBase | IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(member)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"it has the unknown .npy version {version}")
    with warnings.catch_warnings(action="ignore"):  # NumPy warns of files written by Python 2.
        shape, _, dtype = read(member)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded: they could execute code")
    if dtype == _STORED_BFLOAT16:
        return shape, np.dtype(ml_dtypes.bfloat16)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ValueError(f"it has the dtype {str(dtype)[:50]}, which is not supported")
    return shape, dtype.newbyteorder("=")
