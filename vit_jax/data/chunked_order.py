"""A two-level order: chunks of consecutive examples are permuted, and examples within windows.

It shuffles less than the permutation of all examples, and reads long ranges of a file instead of
single examples, which is faster where every read waits: network disks, object stores, row groups of
Parquet. Like that permutation (`vit_jax.data.order`) it is a function of (seed, position) without
state, with every example exactly once per epoch.

The order is the composition of three bijections of the n positions of an epoch:

1. Lanes. The rows of a batch are divided into lanes of equally many consecutive rows. Positions are
   sorted by lane, then by time. So a process, whose rows are whole lanes, walks through a part of
   the epoch of its own for each lane, and no other process reads that part.
2. Windows. The result is divided into windows of whole chunks, and permuted within each. A lane
   needs one window at a time.
3. Chunks are permuted. The last chunk, if shorter, is a window of its own, before a random one, so
   that the others begin at multiples of their size.

Lanes depend on the batch size but not on the number of processes. Without them the examples of each
chunk would be spread over all processes: each of p would read p times what it uses, or single
examples again (benchmarks/README.md). There are as many lanes as the window has chunks and the
batch size allows, because they cost no shuffling: a batch is drawn from all chunks of all lanes.
"""

import dataclasses

import numpy as np
from jaxtyping import Int64
from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.data.permutation import epoch_keys, permute


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Sizes of the two-level order.

    Attributes:
      size: examples in a chunk, at least 1.
      window: examples from which a batch is drawn, over all processes; at least `size`.
      batch_size: rows of the global batch.
    """

    size: int
    window: int
    batch_size: int

    @classmethod
    def from_config(cls, config: ConfigDict | FrozenConfigDict) -> "Chunks | None":
        """Returns the sizes that a config sets; None: `data.chunk` is 0."""
        data = config.data
        return cls(data.chunk, data.window, config.batch_size) if data.chunk else None

    @property
    def lanes(self) -> int:
        """The largest power of two that divides the batch and leaves each lane a chunk."""
        power = self.batch_size & -self.batch_size
        while power * self.size > self.window:
            power //= 2
        return power

    @property
    def lane_window(self) -> int:
        """Examples in the window of a lane: a multiple of `size`."""
        return self.window // (self.lanes * self.size) * self.size


def permute_epoch(
    positions: Int64[np.ndarray, "n"],
    *,
    num_examples: int,
    seed: int,
    epoch: int,
    chunks: Chunks,
) -> Int64[np.ndarray, "n"]:
    """Returns the example at each position of one epoch.

    Args:
      positions: numbers of earlier examples, all of this epoch.
      num_examples: examples in the data set.
      seed: of the order, not negative.
      epoch: number of the epoch.
      chunks: sizes of the order.
    """
    index = _by_lane(positions, num_examples=num_examples, epoch=epoch, chunks=chunks)
    whole, tail = divmod(num_examples, chunks.size)
    size, window = whole * chunks.size, chunks.lane_window
    keys = epoch_keys(seed, epoch)
    num_windows = -(-size // window)
    # The tail is the window `tail_window`, and begins where the window of that number would.
    tail_window = int(keys[0] % np.uint64(num_windows + 1))
    tail_start = min(tail_window * window, size)
    in_tail = (tail_start <= index) & (index < tail_start + tail)
    index[~in_tail & (index >= tail_start + tail)] -= tail
    ids = np.empty_like(index)
    ids[in_tail] = size + permute(
        index[in_tail] - tail_start, size=tail, keys=epoch_keys(seed, epoch, num_windows + 1)
    )
    windows = index // window
    for w in np.unique(windows[~in_tail]).tolist():
        members = ~in_tail & (windows == w)
        start = w * window
        ids[members] = start + permute(
            index[members] - start,
            size=min(window, size - start),
            keys=epoch_keys(seed, epoch, w + 1),
        )
    chunk, offset = np.divmod(ids[~in_tail], chunks.size)
    ids[~in_tail] = permute(chunk, size=whole, keys=keys) * chunks.size + offset
    return ids


def _by_lane(
    positions: Int64[np.ndarray, "n"], *, num_examples: int, epoch: int, chunks: Chunks
) -> Int64[np.ndarray, "n"]:
    """Returns each position's rank in the epoch, sorted by lane, then by time."""
    batch_size = chunks.batch_size
    lane_rows = batch_size // chunks.lanes

    def earlier(position, rows):
        """Counts the positions before one, in the first `rows` rows of their batches."""
        step, row = np.divmod(position, batch_size)
        return step * rows + np.minimum(row, rows)

    first_row = positions % batch_size // lane_rows * lane_rows
    start, end = epoch * num_examples, (epoch + 1) * num_examples
    earlier_lanes = earlier(end, first_row) - earlier(start, first_row)
    last_row = first_row + lane_rows
    before = earlier(positions, last_row) - earlier(positions, first_row)
    before_epoch = earlier(start, last_row) - earlier(start, first_row)
    return earlier_lanes + before - before_epoch
