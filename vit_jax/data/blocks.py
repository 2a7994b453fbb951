"""Load examples in blocks: the part of the pipeline that runs in threads and worker processes."""

import dataclasses
import math
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int64

from vit_jax.data.base import Example, Source
from vit_jax.errors import DataError, VitJaxError

Transform = Callable[[Example, np.random.Generator], Example]
Ids = Int64[np.ndarray, "n"]
# From a batch's number and some of its rows to the rows' example ids (or PADDING) and epochs.
Plan = Callable[[int, Ids], tuple[Ids, Ids]]
# {"image": [R,H,W,C], "label": i32[R] or f32[R,K], "weight": f32[R], "failures": [(id, message)]}
Block = dict[str, Any]

BLOCK_ROWS = (
    32  # Many, to outweigh Grain's cost per element; few, to busy all threads with a batch.
)
PADDING = -1  # In place of an example's id: a row of zeros.


@dataclasses.dataclass(frozen=True)
class ExampleLoader:
    """Reads, checks and transforms one example."""

    source: Source
    transform: Transform
    seed: int

    def __call__(self, i: int, *, epoch: int) -> dict[str, np.ndarray]:
        """Loads example `i` with the randomness of (seed, epoch, i).

        Returns:
          {"image": [H,W,C], "label": i32[] or f32[K]}.

        Raises:
          DataError: whatever went wrong; the message begins with the example's place.
        """
        try:
            example = self.source[i]
            label, classes = example["label"], self.source.num_classes
            if not self.source.multi_label and not 0 <= label < classes:
                raise DataError(f"its label is {label}, but labels go from 0 to {classes - 1}.")
            example = self.transform(example, np.random.default_rng((self.seed, epoch, i)))
        except VitJaxError as error:
            raise DataError(f"{self.source.describe(i)}: {error}") from error
        except Exception as error:  # A fault of a transform or of a library: say in which line.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise DataError(
                f"{self.source.describe(i)}: {type(error).__name__}: {error} "
                f"({frame.filename}, line {frame.lineno})"
            ) from error
        dtype = np.float32 if np.ndim(example["label"]) else np.int32
        return {
            "image": np.asarray(example["image"]),
            "label": np.asarray(example["label"], dtype),
        }


class Blocks:
    """All blocks of a pass over the data by number: what Grain reads.

    The rows of a batch that this process loads are cut into blocks of `BLOCK_ROWS`.
    """

    def __init__(
        self,
        load: ExampleLoader,
        plan: Plan,
        *,
        rows: Int64[np.ndarray, "rows"],
        num_batches: int | None,
        like: dict[str, np.ndarray],
    ):
        """Describes the blocks; loads nothing.

        Args:
          load: loads an example.
          plan: says which example a row is.
          rows: of the global batch, that this process loads.
          num_batches: None: no end.
          like: an example; all others must have its shapes.
        """
        self.rows = rows
        self._load, self._plan = load, plan
        self._like = {key: (array.shape, array.dtype) for key, array in like.items()}
        self.per_batch = math.ceil(len(rows) / BLOCK_ROWS)
        self._length = (
            sys.maxsize // self.per_batch if num_batches is None else num_batches
        ) * self.per_batch

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Block:
        batch, part = divmod(index, self.per_batch)
        rows = self.rows[part * BLOCK_ROWS : (part + 1) * BLOCK_ROWS]
        ids, epochs = self._plan(batch, rows)
        block: Block = {
            key: np.zeros((len(rows), *shape), dtype) for key, (shape, dtype) in self._like.items()
        }
        block["weight"] = np.zeros(len(rows), np.float32)
        block["failures"] = []
        for row, (i, epoch) in enumerate(zip(ids.tolist(), epochs.tolist(), strict=True)):
            if i == PADDING:
                continue
            try:
                self._fill(block, row, i, epoch)
            except DataError as error:
                # A value, not an exception: Grain would add its own traceback to the message.
                block["failures"].append((i, str(error)))
        return block

    def _fill(self, block: Block, row: int, i: int, epoch: int) -> None:
        example = self._load(i, epoch=epoch)
        for key, (shape, _) in self._like.items():
            if example[key].shape != shape:
                raise DataError(
                    f"{self._load.source.describe(i)}: {key} of shape {example[key].shape} after "
                    f"the transforms, where others have {shape}. Add a resize or a crop."
                )
        for key in self._like:
            block[key][row] = example[key]
        block["weight"][row] = 1
