"""The order of the training data: which examples are in the batch of step t.

Positions count the examples a run has seen: row r of step t's batch is position
`t * batch_size + r`. Epoch e holds positions `e * num_examples` to `(e + 1) * num_examples - 1`
and puts all examples in an order of its own. So batches run across the borders of epochs, every
example comes exactly once an epoch, and any part of any batch is computed from (seed, step) alone,
in memory proportional to that part: nothing about the order has to be saved or communicated.

An epoch's order is a format-preserving permutation: a Feistel network over the smallest power of
two that holds all examples, applied again for as long as its result is not an example ("cycle
walking"; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). It is our own, on
64-bit integers and a key stream that NumPy promises never to change, since a later release must
resume a run in the same order. A change to what this file computes changes every run.
"""

import numpy as np
from jaxtyping import Int64, UInt64

_ROUNDS = 12


def example_ids(
    step: int, *, batch_size: int, num_examples: int, seed: int
) -> Int64[np.ndarray, "{batch_size}"]:
    """The examples in the global batch of one step, row by row.

    Args:
      step: number of batches before it.
      batch_size: examples in the global batch.
      num_examples: examples in the data set, at least 1.
      seed: of the order, not negative.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    return examples_at(positions, num_examples=num_examples, seed=seed)[0]


def epochs(step: int, *, batch_size: int, num_examples: int) -> Int64[np.ndarray, "{batch_size}"]:
    """The epoch that each row of one step's global batch belongs to."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    return positions // num_examples


def examples_at(
    positions: Int64[np.ndarray, "n"], *, num_examples: int, seed: int
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """The example and the epoch at each position of the endless order.

    Args:
      positions: number of examples before each.
      num_examples: examples in the data set, at least 1.
      seed: of the order, not negative.

    Returns:
      Examples in [0, num_examples), and epochs.
    """
    epoch, place = np.divmod(positions, num_examples)
    ids = np.empty_like(positions)
    for e in np.unique(epoch):
        of_epoch = epoch == e
        keys = np.random.SeedSequence((seed, int(e))).generate_state(_ROUNDS, np.uint64)
        ids[of_epoch] = _permute(place[of_epoch], size=num_examples, keys=keys)
    return ids, epoch


def _permute(
    indices: Int64[np.ndarray, "n"], *, size: int, keys: UInt64[np.ndarray, "rounds"]
) -> Int64[np.ndarray, "n"]:
    """Maps indices by a permutation of range(size) that the keys choose."""
    bits = max(2, (size - 1).bit_length())
    x = indices.astype(np.uint64)
    walking = np.arange(len(x))
    while len(walking):
        x[walking] = _feistel(x[walking], low_bits=bits // 2, high_bits=bits - bits // 2, keys=keys)
        walking = walking[x[walking] >= size]
    return x.astype(np.int64)


def _feistel(
    x: UInt64[np.ndarray, "n"], *, low_bits: int, high_bits: int, keys: UInt64[np.ndarray, "rounds"]
) -> UInt64[np.ndarray, "n"]:
    """A keyed bijection of [0, 2**(low_bits + high_bits)): each half is hashed into the other."""
    low_mask, high_mask = np.uint64((1 << low_bits) - 1), np.uint64((1 << high_bits) - 1)
    low, high = x & low_mask, x >> np.uint64(low_bits)
    for r, key in enumerate(keys):
        if r % 2:
            high = high ^ (_hash(low, key) & high_mask)
        else:
            low = low ^ (_hash(high, key) & low_mask)
    return high << np.uint64(low_bits) | low


def _hash(x: UInt64[np.ndarray, "n"], key: np.uint64) -> UInt64[np.ndarray, "n"]:
    """SplitMix64's finaliser (Steele et al., 2014) of x XOR key."""
    x = x ^ key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
