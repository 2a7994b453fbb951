"""Digests of arrays, computed on the devices that hold them.

A bit that flips on a disk can decompress to a valid number. So a checkpoint stores a digest of each
array, and the arrays that are read back must have the same digests.

The digest is the sum, modulo 2^32, of a hash of each element's bits and index. A sum of integers
does not depend on the order, so the digest is equal on every mesh, and no process needs to hold a
whole array. A change of one element is always detected; a change of several goes undetected with a
probability of about 2^-32. The digest does not protect against deliberate forgery.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, UInt32

from vit_jax.parallel.rules import named_leaves

# 2^32 divided by the golden ratio: Fibonacci hashing spreads consecutive indices (Knuth, 6.4).
_SPREAD = 2_654_435_769


def digests(tree: PyTree[Array]) -> dict[str, int]:
    """Returns a digest of each array by its path; all processes of a run must call this.

    The arrays are of bool or of 8, 16 or 32 bits, and all on the same devices.
    """
    named = named_leaves(tree)
    if not named:
        return {}
    sharding = next(iter(named.values())).sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    digest = _digest_on(mesh)
    with jax.transfer_guard("allow"):
        # One program for each shape compiles faster than a large one for the whole tree.
        values = jax.device_get([digest(leaf) for leaf in named.values()])
    return dict(zip(named, map(int, values), strict=True))


@functools.cache
def _digest_on(mesh: Mesh | None):
    replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(_digest, out_shardings=replicated)


def _digest(x: Array) -> UInt32[Array, ""]:
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    flat_index = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        stride = math.prod(x.shape[axis + 1 :]) % 2**32
        index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        flat_index = flat_index + index * jnp.uint32(stride)
    return _mix(bits ^ (flat_index * jnp.uint32(_SPREAD))).sum(dtype=jnp.uint32)


def _mix(x: UInt32[Array, "*n"]) -> UInt32[Array, "*n"]:
    """MurmurHash3's finaliser (Appleby): a bijection where each input bit flips half the output."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
