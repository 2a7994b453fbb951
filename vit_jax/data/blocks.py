"""Loads examples in blocks: the part of the pipeline that runs in threads and worker processes."""

import dataclasses
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from vit_jax.data.base import Example, Source
from vit_jax.data.chunk_cache import ChunkCache
from vit_jax.data.reading import is_transient
from vit_jax.errors import DataError, VitJaxError

Transform = Callable[[Example, np.random.Generator], Example]
Ids = Int64[np.ndarray, "n"]
# (number of a batch, some of its rows) -> example ids (or PADDING) and epochs of these rows.
Assignment = Callable[[int, Ids], tuple[Ids, Ids]]
# {"image": [R,H,W,C], "label": i32[R] or f32[R,K], "weight": f32[R], "bad": [BadRow]}
RowBlock = dict[str, Any]

# Large enough to outweigh Grain's cost per element, small enough to split a batch over all threads.
BLOCK_ROWS = 32
PADDING = -1  # Instead of an example's id: a row of zeros.


class BadRow(NamedTuple):
    """A row of zeros with weight 0, in place of an example that cannot be loaded."""

    row: int  # Of the global batch.
    example: int
    message: str  # Begins with the example's location.


@dataclasses.dataclass(frozen=True)
class ExampleLoader:
    """Reads, checks and transforms one example.

    Attributes:
      source: the examples.
      transform: applied to each.
      seed: of its randomness.
      cache: reads the examples of the two-level order; None: another order.
    """

    source: Source
    transform: Transform
    seed: int
    cache: ChunkCache | None = None

    def read(self, ids: Sequence[int]) -> list[Example | None]:
        """Reads some examples, where that is faster at once; None: to be read by `__call__`.

        Raises:
          MemoryError, OSError: they cannot be read now (`vit_jax.data.reading.is_transient`).
        """
        if self.cache is None and not self.source.reads_groups:
            return [None] * len(ids)
        try:
            return list((self.cache or self.source).read(ids))
        except Exception as error:  # One of them is bad: `__call__` will name it.
            if is_transient(error):
                raise
            return [None] * len(ids)

    def __call__(
        self, i: int, *, epoch: int, example: Example | None = None
    ) -> dict[str, np.ndarray]:
        """Loads example `i`, with random numbers seeded by (seed, epoch, i).

        Args:
          i: the example.
          epoch: in which it is used.
          example: as read by `read`; None: it is read.

        Returns:
          {"image": [H,W,C], "label": i32[] or f32[K]}.

        Raises:
          DataError: the example is bad; the message begins with its location.
          MemoryError, OSError: it cannot be read now (`vit_jax.data.reading.is_transient`).
        """
        try:
            if example is None:
                example = self.source[i]
            self._check_label(example["label"])
            example = self.transform(example, np.random.default_rng((self.seed, epoch, i)))
            image = np.asarray(example["image"])
            if image.dtype.kind == "f" and not np.isfinite(image).all():
                raise DataError("its pixels are not all finite after the transforms.")
            dtype = np.float32 if np.ndim(example["label"]) else np.int32
            return {"image": image, "label": np.asarray(example["label"], dtype)}
        except VitJaxError as error:
            raise DataError(f"{self.source.describe(i)}: {error}") from error
        except Exception as error:  # An error in a transform or a library: add its line.
            if is_transient(error):
                raise
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise DataError(
                f"{self.source.describe(i)}: {type(error).__name__}: {error} "
                f"({frame.filename}, line {frame.lineno})"
            ) from error

    def _check_label(self, label: Any) -> None:
        classes = self.source.num_classes
        if not self.source.multi_label:
            if not 0 <= label < classes:
                raise DataError(f"its label is {label}, but labels go from 0 to {classes - 1}.")
            return
        hot = np.asarray(label)
        if hot.shape != (classes,) or not ((hot >= 0) & (hot <= 1)).all():
            raise DataError(
                f"its label should be {classes} numbers from 0 to 1, one for each class; it is "
                f"{str(hot)[:80]}."
            )


def row_specs(template: dict[str, np.ndarray]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns shape and dtype of a row of each array of a batch, given an example."""
    specs = {key: (array.shape, array.dtype) for key, array in template.items()}
    return specs | {"weight": ((), np.dtype(np.float32))}


class Blocks:
    """The blocks of all batches, by number: a random access data source for Grain.

    The rows of a batch that this process loads are divided into blocks of `BLOCK_ROWS`.
    """

    def __init__(
        self,
        load: ExampleLoader,
        assign: Assignment,
        *,
        rows: Int64[np.ndarray, "rows"],
        num_batches: int | None,
        template: dict[str, np.ndarray],
    ):
        """Describes the blocks; loads nothing.

        Args:
          load: loads an example.
          assign: maps rows to examples.
          rows: rows of the global batch that this process loads.
          num_batches: None: infinitely many.
          template: an example; all others must have its shapes and dtypes.
        """
        self.rows = rows
        self._load, self._assign = load, assign
        self._specs = row_specs(template)
        self.per_batch = math.ceil(len(rows) / BLOCK_ROWS)
        self._num_batches = sys.maxsize // self.per_batch if num_batches is None else num_batches

    def __len__(self) -> int:
        return self._num_batches * self.per_batch

    @property
    def pixels(self) -> int:
        """Number of pixels of an image after the transforms; 0 if there is no good example."""
        return math.prod(self._specs["image"][0][:2]) if "image" in self._specs else 0

    def __getitem__(self, index: int) -> RowBlock:
        batch, part = divmod(index, self.per_batch)
        rows = self.rows[part * BLOCK_ROWS : (part + 1) * BLOCK_ROWS]
        ids, epochs = self._assign(batch, rows)
        block: RowBlock = {
            key: np.zeros((len(rows), *shape), dtype) for key, (shape, dtype) in self._specs.items()
        }
        block["bad"] = []
        examples = iter(self._load.read(ids[ids != PADDING].tolist()))
        for row, (i, epoch) in enumerate(zip(ids.tolist(), epochs.tolist(), strict=True)):
            if i == PADDING:
                continue
            try:
                self._fill(block, row, i, self._load(i, epoch=epoch, example=next(examples)))
            except DataError as error:
                # Not an exception: Grain would add its own traceback to the message.
                block["bad"].append(BadRow(int(rows[row]), i, str(error)))
        return block

    def _fill(self, block: RowBlock, row: int, i: int, example: dict[str, np.ndarray]) -> None:
        example = example | {"weight": np.ones((), np.float32)}
        for key, (shape, dtype) in self._specs.items():
            array = example[key]
            if (array.shape, array.dtype) != (shape, dtype):
                raise DataError(
                    f"{self._load.source.describe(i)}: {key} has shape {array.shape} and dtype "
                    f"{array.dtype} after the transforms, other examples {shape} and {dtype}. Add "
                    "a resize or a crop."
                )
        for key in self._specs:
            block[key][row] = example[key]
