"""The mesh of devices, and the shardings of batches and replicated arrays."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from vit_jax.errors import ConfigError
from vit_jax.parallel.constraints import AXES, BATCH


def mesh_shape(mesh: ConfigDict, num_devices: int) -> dict[str, int]:
    """Returns the number of devices along each axis, with -1 replaced.

    Args:
      mesh: `config.mesh`: sizes of data, fsdp and tensor, at most one of them -1.
      num_devices: the product of the sizes.

    Raises:
      ConfigError: the sizes do not multiply to `num_devices`.
    """
    sizes: dict[str, int] = {axis: getattr(mesh, axis) for axis in AXES}
    settings = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ConfigError(
            f"{settings}: sizes must be positive; one may be -1, for all remaining devices."
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if num_devices % fixed or (not free and fixed != num_devices):
        raise ConfigError(
            f"{settings} does not fit {num_devices} devices: the sizes must multiply to "
            f"{num_devices}; one may be -1, for all remaining devices."
        )
    if free:
        sizes[free[0]] = num_devices // fixed
    return sizes


def make_mesh(
    mesh: ConfigDict,
    *,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]  # Untyped in JAX.
) -> Mesh:
    """Returns a mesh with the axes data, fsdp and tensor.

    Args:
      mesh: `config.mesh`.
      devices: None: those of all processes.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_shape(mesh, len(devices))
    # Axes of type Auto: XLA propagates shardings from the constraints in the models.
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=devices,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: examples are split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, *, accum_steps: int, mesh: Mesh | AbstractMesh) -> None:
    """Raises ConfigError if a batch cannot be split evenly over microbatches and devices."""
    num_shards = mesh.shape["data"] * mesh.shape["fsdp"]
    divisor = num_shards * accum_steps
    if batch_size % divisor:
        below, above = batch_size // divisor * divisor, (batch_size // divisor + 1) * divisor
        raise ConfigError(
            f"batch_size {batch_size} does not split into optim.accum_steps={accum_steps} "
            f"microbatches over {num_shards} devices (mesh.data x mesh.fsdp): it must be a "
            f"multiple of {divisor}, such as {below or above} or {above}."
        )
