"""What all files of named tensors have in common."""

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
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Tensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name; `read` gives one.

    Attributes:
      path: of the file (or folder, of several files), for messages.
      metadata: what the file says beside its tensors; each format says what that is.
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
        """One tensor, in the dtype that it is stored in.

        Args:
          name: of the tensor.
          rows: of the leading axis, without a step; None: all.

        Returns:
          An array of its own, in row-major order.

        Raises:
          CheckpointError: the file is damaged there.
          KeyError: there is no such tensor.
        """
        raise NotImplementedError


def bounds(shape: tuple[int, ...], rows: slice | None) -> tuple[int, int]:
    """First row and the one after the last, of a slice of the leading axis.

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
    """Number of elements.

    Raises:
      ValueError: no tensor has this shape: negative, not whole, or too large to be real.
    """
    if not all(type(n) is int and 0 <= n <= _MAX_ELEMENTS for n in shape):
        raise ValueError(f"its shape would be {str(list(shape))[:200]}")
    # An empty tensor may not be long in its other axes either: NumPy has none such.
    if len(shape) > _MAX_AXES or math.prod(max(n, 1) for n in shape) > _MAX_ELEMENTS:
        raise ValueError(f"its shape would be {str(list(shape))[:200]}")
    return math.prod(shape)


def damaged(path: pathlib.Path, why: str) -> CheckpointError:
    """The error for a file that is not as its format has it."""
    return CheckpointError(
        f"{path} cannot be read: {why}. It is damaged, or not wholly downloaded: download it again."
    )


@contextlib.contextmanager
def reading(path: pathlib.Path, what: str = "") -> Iterator[None]:
    """Everything that goes wrong with a broken file becomes a CheckpointError.

    Args:
      path: of the file.
      what: in it is read, such as a tensor's name.
    """
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # Zip, zlib, NumPy's and PyTorch's readers raise nearly every type.
        where = f"{what[:200]}: " if what else ""
        why = str(error)[:300] or type(error).__name__  # Some quote what they have read.
        raise damaged(path, f"{where}{why}") from error
