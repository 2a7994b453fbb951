"""Files of named tensors, read one tensor at a time: safetensors, .npz, .pth.

Nothing of a file is executed: no pickle of Python objects is loaded, from any of them. Names,
shapes and dtypes are known without reading a tensor; a tensor is mapped from the disk, not copied,
where the file allows it (safetensors, and .pth of the newer zip form).
"""

import json
import mmap
import os
import pathlib
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from vit_jax import storage
from vit_jax.errors import CheckpointError

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_LARGEST_HEADER = 100 * 2**20  # Bytes: as the safetensors library has it.
_LARGEST_INDEX = 2**26


class Tensor(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Tensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name; `read` gives one."""

    def __init__(self, path: pathlib.Path, tensors: dict[str, Tensor], metadata: dict):
        self.path = path
        self.metadata = metadata
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the dtype that it is stored in; read-only where it is mapped.

        Raises:
          CheckpointError: the file is damaged there.
        """
        raise NotImplementedError


class Safetensors(Tensors):
    """One .safetensors file: the length of a JSON header, the header, the bytes of all tensors."""

    def __init__(self, path: pathlib.Path):
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
                raise _damaged(path, f"its header would have {length:,} bytes")
            try:
                header = json.loads(file.read(length))
            except (ValueError, RecursionError) as error:
                raise _damaged(path, "its header is not JSON") from error
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if not isinstance(header, dict):
            raise _damaged(path, "its header is not a table of tensors")
        metadata = header.pop("__metadata__", {})
        tensors, self._spans = {}, {}
        first = 8 + length
        for name, entry in header.items():
            try:
                dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
                begin, end = entry["data_offsets"]
                count = int(np.prod(shape, dtype=object)) if shape else 1
                if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
                    raise ValueError("a shape or place that is no number")
                if end - begin != count * dtype.itemsize or first + end > size:
                    raise ValueError("its bytes are not all there")
            except (KeyError, TypeError, ValueError) as error:
                raise _damaged(path, f"{name[:200]}: {error}") from error
            tensors[name] = Tensor(shape, dtype)
            self._spans[name] = first + begin
        super().__init__(path, tensors, metadata if isinstance(metadata, dict) else {})

    def read(self, name: str) -> np.ndarray:
        shape, dtype = self._tensors[name]
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._map, dtype, count, self._spans[name]).reshape(shape)


class Npz(Tensors):
    """A NumPy archive. Members that are stored, not compressed, could be mapped; all are read."""

    def __init__(self, path: pathlib.Path):
        try:
            self._zip = zipfile.ZipFile(path)
            tensors = {}
            for entry in self._zip.infolist():
                if not entry.filename.endswith(".npy"):
                    raise _damaged(path, f"{entry.filename[:200]} is no array")
                with self._zip.open(entry) as member:
                    tensors[entry.filename.removesuffix(".npy")] = _npy_header(member)
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise _damaged(path, str(error)) from error
        super().__init__(path, tensors, {})

    def read(self, name: str) -> np.ndarray:
        try:
            with self._zip.open(f"{name}.npy") as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise _damaged(self.path, f"{name}: {error}") from error
        return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def _npy_header(member) -> Tensor:
    version = np.lib.format.read_magic(member)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"an array of the unknown version {version}")
    shape, _, dtype = read(member)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read: they would be code")
    return Tensor(shape, np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype)


class Joined(Tensors):
    """Several files as one: the shards of a Hugging Face folder."""

    def __init__(self, path: pathlib.Path, parts: Mapping[str, Tensors]):
        """Joins them.

        Args:
          path: of the whole, for messages.
          parts: for each tensor's name the file that it is in.
        """
        self._parts = parts
        metadata = next(iter(parts.values())).metadata if parts else {}
        super().__init__(path, {name: part[name] for name, part in parts.items()}, metadata)

    def read(self, name: str) -> np.ndarray:
        return self._parts[name].read(name)


def read_shards(index: pathlib.Path) -> Joined:
    """The tensors of `model.safetensors.index.json`'s shards.

    Raises:
      CheckpointError: a shard, or a tensor of one, is missing; a name leads out of the folder.
    """
    try:
        weights = json.loads(storage.read_bytes(index, limit=_LARGEST_INDEX))["weight_map"]
        names = sorted(set(weights.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(index, f"{type(error).__name__}: {error}") from error
    shards = {}
    for name in names:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise _damaged(index, f"{name[:200]!r} is no file beside it")
        if not (index.parent / name).is_file():
            raise CheckpointError(
                f"{index.parent / name} is missing: the checkpoint has {len(names)} parts, "
                f"{', '.join(names[:9])}. Download all of them into one folder."
            )
        shards[name] = Safetensors(index.parent / name)
    for tensor, name in weights.items():
        if tensor not in shards[name]:
            raise _damaged(index, f"{tensor[:200]} is not in {name}")
    return Joined(index.parent, {tensor: shards[name] for tensor, name in weights.items()})


def _damaged(path: pathlib.Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read: {why}. It is damaged, or not wholly downloaded: download it again."
    )
