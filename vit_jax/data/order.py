"""The order of the training data: which examples are in the batch of step t.

Positions count the examples that a run has seen: row r of the batch of step t is position
`t * batch_size + r`. Epoch e consists of positions `e * num_examples` to
`(e + 1) * num_examples - 1`, which are a permutation of all examples. So batches may contain the
end of one epoch and the beginning of the next, every example occurs exactly once per epoch, and any
part of any batch is computed only from (seed, step), in memory proportional to that part: no state
of the order has to be saved or communicated.

The order of an epoch is a format-preserving permutation: a Feistel network over the smallest power
of two (at least 4) that is not less than the number of examples, applied repeatedly until the
result is below that number ("cycle walking"; Black and Rogaway, "Ciphers with arbitrary finite
domains", 2002). We implement it on 64-bit integers, with keys from a NumPy stream that is
guaranteed never to change, because a later release must resume a run in the same order. A change of
the results of this file changes every run.

`vit_jax.data.chunked_order` permutes chunks of consecutive examples instead, for storage that reads
long ranges faster than single examples.
"""

import numpy as np
from jaxtyping import Int64

from vit_jax.data import chunked_order
from vit_jax.data.chunked_order import Chunks
from vit_jax.data.permutation import epoch_keys, permute


def example_ids(
    step: int, *, batch_size: int, num_examples: int, seed: int, chunks: Chunks | None = None
) -> Int64[np.ndarray, "{batch_size}"]:
    """Returns the examples in the global batch of one step, row by row.

    Args:
      step: number of earlier batches.
      batch_size: examples in the global batch.
      num_examples: examples in the data set, at least 1.
      seed: of the order, not negative.
      chunks: of the two-level order, for the same batch size; None: one global permutation.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    return examples_at(positions, num_examples=num_examples, seed=seed, chunks=chunks)[0]


def epochs(step: int, *, batch_size: int, num_examples: int) -> Int64[np.ndarray, "{batch_size}"]:
    """Returns the epoch of each row of the global batch of one step."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    return positions // num_examples


def examples_at(
    positions: Int64[np.ndarray, "n"],
    *,
    num_examples: int,
    seed: int,
    chunks: Chunks | None = None,
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """Returns the example and the epoch at each position of the infinite order.

    Args:
      positions: numbers of earlier examples.
      num_examples: examples in the data set, at least 1.
      seed: of the order, not negative.
      chunks: of the two-level order; None: one global permutation.

    Returns:
      Examples in [0, num_examples), and epochs.
    """
    epoch, index = np.divmod(positions, num_examples)
    ids = np.empty_like(positions)
    for e in np.unique(epoch).tolist():
        is_in_epoch = epoch == e
        if chunks is None:
            permuted = permute(index[is_in_epoch], size=num_examples, keys=epoch_keys(seed, e))
        else:
            permuted = chunked_order.permute_epoch(
                positions[is_in_epoch], num_examples=num_examples, seed=seed, epoch=e, chunks=chunks
            )
        ids[is_in_epoch] = permuted
    return ids, epoch
