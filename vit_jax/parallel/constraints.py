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


def check_axes(names: tuple[str, ...]) -> None:
    """Raises ConfigError if a mesh with axes of these names lacks one of ours."""
    if missing := [axis for axis in AXES if axis not in names]:
        raise ConfigError(
            f"The mesh has the axes {', '.join(names)} and lacks {', '.join(missing)}: models are "
            "split over data, fsdp and tensor. Make it with vit_jax.parallel.mesh.make_mesh; an "
            "axis may have size 1."
        )
