"""Format-preserving permutations of a range, computed at single indices: see `vit_jax.data.order`.

A change of the results of this file changes every run.
"""

import numpy as np
from jaxtyping import Int64, UInt64

_ROUNDS = 12


def epoch_keys(seed: int, epoch: int, *parts: int) -> UInt64[np.ndarray, "rounds"]:
    """Returns the keys of the permutation of an epoch, or of a part of it.

    Args:
      seed: of the order, not negative.
      epoch: number of the epoch.
      *parts: number of the part, at least 1: SeedSequence pads with zeros, so 0 is the epoch.
    """
    return np.random.SeedSequence((seed, epoch, *parts)).generate_state(_ROUNDS, np.uint64)


def permute(
    indices: Int64[np.ndarray, "n"], *, size: int, keys: UInt64[np.ndarray, "rounds"]
) -> Int64[np.ndarray, "n"]:
    """Maps indices by the permutation of range(size) that the keys define.

    Args:
      indices: in [0, size).
      size: number of elements.
      keys: see `epoch_keys`.
    """
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
    """Feistel network: a keyed bijection of [0, 2**(low_bits + high_bits))."""
    low_mask, high_mask = np.uint64((1 << low_bits) - 1), np.uint64((1 << high_bits) - 1)
    low, high = x & low_mask, x >> np.uint64(low_bits)
    for r, key in enumerate(keys):
        if r % 2:
            high = high ^ (_hash(low, key) & high_mask)
        else:
            low = low ^ (_hash(high, key) & low_mask)
    return high << np.uint64(low_bits) | low


def _hash(x: UInt64[np.ndarray, "n"], key: np.uint64) -> UInt64[np.ndarray, "n"]:
    """Returns SplitMix64's finaliser (Steele et al., 2014) of x XOR key."""
    x = x ^ key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
