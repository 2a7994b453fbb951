"""Digests of arrays, computed where the arrays lie.

A bit that flips on a disk can decompress to a number like any other. So a checkpoint keeps a
digest of each of its arrays, and what is read back must have the same. The digest is the sum over
all elements of a hash of their bits and their place, modulo 2^32: a sum of integers is the same in
any order, so an array has one digest on every mesh, and no process needs to hold it whole. An
element that changes, changes it; of more changes than one about 2^-32 go unseen. It is no
protection against a forger.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, UInt32

from vit_jax.parallel.rules import named_leaves

# The golden ratio times 2^32: consecutive places get numbers that look unrelated (Knuth, 6.4).
_SPREAD = 2_654_435_769


def digests(tree: PyTree[Array]) -> dict[str, int]:
    """A digest of each array by its path; the same whatever the mesh.

    Args:
      tree: of arrays of 8, 16 or 32 bits or bool, on the same devices. In a run of several
        processes all must call this.
    """
    named = named_leaves(tree)
    if not named:
        return {}
    sharding = next(iter(named.values())).sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    digest = _digest_on(mesh)
    with jax.transfer_guard("allow"):
        # An array at a time: one program for each shape, not a large one for each tree.
        values = jax.device_get([digest(leaf) for leaf in named.values()])
    return dict(zip(named, map(int, values), strict=True))


@functools.cache
def _digest_on(mesh: Mesh | None):
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(_digest, out_shardings=everywhere)


def _digest(x: Array) -> UInt32[Array, ""]:
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        stride = math.prod(x.shape[axis + 1 :]) % 2**32
        index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        place = place + index * jnp.uint32(stride)
    return _mix(bits ^ (place * jnp.uint32(_SPREAD))).sum(dtype=jnp.uint32)


def _mix(x: UInt32[Array, "*n"]) -> UInt32[Array, "*n"]:
    """MurmurHash3's finaliser (Appleby), one to one: every bit changes half of the result's."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
