"""Memory of batches, used again when a batch is gone.

The system clears each page of new memory, which takes as long as to scale the images of a batch:
benchmarks/README.md has the times.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8

_ALIGNMENT = 64  # Bytes: of the arrays that XLA's CPU client uses without a copy.


class BatchMemory:
    """Gives out arrays, and takes their memory back when the last reference to one is gone.

    JAX refers to an array until it needs it no more: until a transfer is complete or, on a CPU,
    which uses the array itself, until the `jax.Array` is gone. One thread takes arrays; they may be
    released by any.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}  # By size.

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Num[np.ndarray, "..."]:
        """Returns an array of undefined content that begins at a multiple of 64 bytes."""
        size = math.prod(shape) * dtype.itemsize
        free = self._free.setdefault(size, [])
        memory = free.pop() if free else _aligned(size)
        return np.asarray(_Loan(memory, free)).view(dtype).reshape(shape)


class _Loan:
    """The owner of an array: NumPy refers to it as long as there is a view of the array."""

    def __init__(self, memory: UInt8[np.ndarray, "n"], free: list[UInt8[np.ndarray, "n"]]) -> None:
        self.__array_interface__: dict[str, Any] = memory.__array_interface__
        self._memory, self._free = memory, free

    def __del__(self) -> None:
        self._free.append(self._memory)


def _aligned(size: int) -> UInt8[np.ndarray, "n"]:
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size]
