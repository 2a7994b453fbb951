"""Sharding constraints on activations, over mesh axes that every mesh has."""

import jax
from jax.sharding import PartitionSpec

from vit_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor")
# The axes over which a batch is split.
BATCH = ("data", "fsdp")


def constrain(x: jax.Array, *spec: str | tuple[str, ...] | None) -> jax.Array:
    """Constrains the sharding of `x` to `spec`, over the mesh of `jax.set_mesh`.

    Without a mesh this is the identity, so the same model runs on one device. (Flax's own
    `with_logical_constraint` is silently the identity under `with mesh:`, too; this is not.)

    Args:
      x: an activation.
      *spec: for each dimension a mesh axis, a tuple of them, or None for not split.

    Raises:
      ConfigError: the current mesh lacks one of our axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    check_axes(mesh.axis_names)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def split_tokens(x: jax.Array) -> jax.Array:
    """Constrains activations [b, n, width] to tokens split over tensor, where they divide.

    Between blocks, where nothing mixes tokens, each device along tensor then holds a part of them,
    and sums over tensor are reduce-scatters (Korthikanti et al. 2022, arXiv 2205.05198).
    """
    mesh = jax.sharding.get_abstract_mesh()
    divide = not mesh.empty and x.shape[1] % mesh.shape.get("tensor", 1) == 0
    return constrain(x, BATCH, "tensor" if divide else None, None)


@jax.custom_vjp
def gather_tokens(x: jax.Array) -> jax.Array:
    """Constrains [b, n, width], made from split tokens, to whole ones, for a layer over tensor.

    The gradient, a sum over tensor, is split again: a reduce-scatter.
    """
    # Without the first constraint XLA gathers what x was made from, a norm's float32.
    return _whole(split_tokens(x))


@jax.custom_vjp
def scatter_tokens(y: jax.Array) -> jax.Array:
    """Constrains [b, n, width], a sum over tensor, to split tokens: a reduce-scatter.

    The gradient is gathered.
    """
    # Without the first constraint XLA scatters each term of a sum by itself.
    return split_tokens(_whole(y))


def _whole(x):
    return constrain(x, BATCH, None, None)


gather_tokens.defvjp(lambda x: (gather_tokens(x), None), lambda _, dx: (split_tokens(_whole(dx)),))
scatter_tokens.defvjp(
    lambda y: (scatter_tokens(y), None), lambda _, dy: (_whole(split_tokens(dy)),)
)


def check_axes(names: tuple[str, ...]) -> None:
    """Raises ConfigError if a mesh with axes of these names lacks one of ours."""
    if missing := [axis for axis in AXES if axis not in names]:
        raise ConfigError(
            f"The mesh has the axes {', '.join(names)} and lacks {', '.join(missing)}: models are "
            "split over data, fsdp and tensor. Make it with vit_jax.parallel.mesh.make_mesh; an "
            "axis may have size 1."
        )
