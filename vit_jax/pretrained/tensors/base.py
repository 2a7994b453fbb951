"""The interface of files of named tensors, and checks that their formats share."""

import contextlib
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from vit_jax.errors import CheckpointError

_MAX_AXES = 32
_MAX_ELEMENTS = 2**48


class Tensor(NamedTuple):
    """Shape and dtype of a tensor, known before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Tensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name; `read` returns the values of one.

    Attributes:
      path: the file, or the folder of several files; for errors.
      metadata: other contents of the file; each subclass documents its keys.
    """

    def __init__(self, path: pathlib.Path, tensors: dict[str, Tensor], metadata: dict[str, Any]):
        self.path = path
        self.metadata = metadata
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Reads a tensor, in its stored dtype.

        Args:
          name: the tensor's name.
          rows: slice of the leading axis, without a step; None: all.

        Returns:
          A new array in row-major order.

        Raises:
          CheckpointError: the file is damaged.
          KeyError: the tensor does not exist.
        """
        raise NotImplementedError


def bounds(shape: tuple[int, ...], rows: slice | None) -> tuple[int, int]:
    """Returns (start, stop) of a slice of the leading axis; (0, 1) for a whole scalar.

    Raises:
      ValueError: the slice has a step, or there is no leading axis.
    """
    if rows is None:
        return 0, shape[0] if shape else 1
    if not shape or rows.step not in (None, 1):
        raise ValueError(f"{rows} of a tensor of shape {shape}: not consecutive rows")
    start, stop, _ = rows.indices(shape[0])
    return start, max(start, stop)


def count(shape: tuple[Any, ...]) -> int:
    """Returns the number of elements.

    Raises:
      ValueError: the shape is invalid: sides that are negative or not integers, or a size that no
        file can hold.
    """
    if not all(type(n) is int and 0 <= n <= _MAX_ELEMENTS for n in shape):
        raise ValueError(f"its shape is {str(list(shape))[:200]}")
    # Zeros count as ones here, because NumPy bounds the other axes of an empty array, too.
    if len(shape) > _MAX_AXES or math.prod(max(n, 1) for n in shape) > _MAX_ELEMENTS:
        raise ValueError(f"its shape is {str(list(shape))[:200]}")
    return math.prod(shape)


def damaged(path: pathlib.Path, reason: str) -> CheckpointError:
    """Returns the error for a file that violates its format."""
    return CheckpointError(
        f"{path} cannot be read: {reason}. The file is damaged or its download is incomplete: "
        "download it again."
    )


@contextlib.contextmanager
def reading(path: pathlib.Path, what: str = "") -> Iterator[None]:
    """Turns every exception of reading a file, except MemoryError, into a CheckpointError.

    Args:
      path: the file.
      what: the part of it that is read, such as a tensor's name.
    """
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # Zip, zlib, NumPy's and PyTorch's readers raise nearly every type.
        where = f"{what[:200]}: " if what else ""
        reason = str(error)[:300] or type(error).__name__  # Bounded: some quote the file.
        raise damaged(path, f"{where}{reason}") from error
