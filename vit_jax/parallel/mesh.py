"""The mesh of devices, and how arrays lie on it."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from vit_jax.errors import ConfigError
from vit_jax.parallel.constraints import AXES, BATCH


def mesh_shape(mesh: ConfigDict, num_devices: int) -> dict[str, int]:
    """Devices along each axis, with -1 replaced by what is left.

    Args:
      mesh: `config.mesh`: sizes of data, fsdp and tensor, at most one of them -1.
      num_devices: that the sizes must multiply to.

    Raises:
      ConfigError: they do not.
    """
    sizes = {axis: mesh[axis] for axis in AXES}
    shown = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ConfigError(f"{shown}: sizes are positive, and one of them may be -1, the rest.")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if num_devices % fixed or (not free and fixed != num_devices):
        raise ConfigError(
            f"{shown} does not fit the {num_devices} devices there are: the sizes must multiply "
            f"to {num_devices}, and one may be -1, the rest."
        )
    if free:
        sizes[free[0]] = num_devices // fixed
    return sizes


def make_mesh(mesh: ConfigDict, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes data, fsdp and tensor over the devices of all processes.

    Args:
      mesh: `config.mesh`.
      devices: instead of all devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_shape(mesh, len(devices))
    # Axes of type Auto: XLA propagates layouts from the constraints that we state.
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=np.asarray(devices),
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, *, accum_steps: int, mesh: Mesh) -> None:
    """Raises ConfigError if a batch cannot be split evenly over microbatches and devices."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (parts * accum_steps):
        step = parts * accum_steps
        below, above = batch_size // step * step, (batch_size // step + 1) * step
        raise ConfigError(
            f"batch_size {batch_size} does not split into optim.accum_steps={accum_steps} "
            f"microbatches over {parts} devices (mesh.data x mesh.fsdp): it must be a multiple of "
            f"{step}, such as {below or above} or {above}."
        )
