"""Helpers for tests of files of tensors: arrays, files with them, and reading damaged files."""

import io
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tests.fuzzing import bounded
from vit_jax.errors import CheckpointError
from vit_jax.pretrained.tensors import open_tensors

torch = pytest.importorskip("torch", reason="needs torch: pip install vit_jax[torch]")
safetensors_numpy = pytest.importorskip("safetensors.numpy", reason="needs safetensors")

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ARRAYS = {
    "scalar": np.array(-3.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "kernel": np.arange(24, dtype=np.float32).reshape(4, 3, 2),
    "half": np.arange(5, dtype=np.float16),
    "double": np.linspace(0, 1, 7),
    "brain": np.arange(6).reshape(3, 2).astype(BFLOAT16),
    "long": np.arange(3) - 1,
    "byte": np.arange(4, dtype=np.uint8),
    "mask": np.array([True, False]),
}


def to_torch(array):
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def write(kind, path):
    tensors = {name: to_torch(array) for name, array in ARRAYS.items()}
    if kind == "safetensors":
        safetensors_numpy.save_file(ARRAYS, path, metadata={"format": "pt"})
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, **ARRAYS)
    elif kind == "npz compressed":
        with path.open("wb") as file:
            np.savez_compressed(file, **ARRAYS)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "pth")
    return path


def zipped(name, content=b"content"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def npy(array=None, *, shape=(3,), descr="<f4", data=b""):
    buffer = io.BytesIO()
    if array is not None:
        np.save(buffer, array, allow_pickle=True)
    else:
        head = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(buffer, head)
        buffer.write(data)
    return buffer.getvalue()


def read_all(path):
    """Reads all tensors of a file, or gets a CheckpointError, in bounded time and memory."""
    with bounded():
        try:
            tensors = open_tensors(path)
            for name in tensors:
                assert tensors.read(name).shape == tensors[name].shape
        except CheckpointError as error:
            assert len(str(error)) < 2000
