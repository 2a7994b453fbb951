"""The mesh of devices, and the shardings of batches and replicated arrays."""

import collections
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from vit_jax.errors import ConfigError
from vit_jax.parallel.constraints import AXES, BATCH

# Refusals list sizes up to this one: more devices along tensor have been of no use to any ViT.
_LARGEST_TENSOR = 16


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


def abstract_mesh(sizes: dict[str, int]) -> AbstractMesh:
    """Returns a mesh without devices, for shapes alone; `sizes` is the result of `mesh_shape`."""
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def make_mesh(
    mesh: ConfigDict,
    *,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Returns a mesh with the axes data, fsdp and tensor.

    Args:
      mesh: `config.mesh`.
      devices: also those of a topology that is not here (`jax.experimental.topologies`);
        None: those of all processes.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices, or the links between these
        devices do not allow them.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_shape(mesh, len(devices))
    # Axes of type Auto: XLA propagates shardings from the constraints in the models.
    return Mesh(arrange(devices, sizes), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def arrange(devices: Sequence[Any], sizes: dict[str, int]) -> np.ndarray:
    """Returns the devices as an array [data, fsdp, tensor], neighbours close to each other.

    Of a TPU slice, tensor gets neighbours in the torus, then fsdp, then data, in the order of their
    traffic; an axis of the torus may be split. Of several slices (multi-slice), whose network is
    slower, each holds whole groups of fsdp and tensor: only data crosses it. Other devices keep
    their order, so that tensor and fsdp have devices of one host.

    Args:
      devices: of all processes.
      sizes: the result of `mesh_shape`.

    Raises:
      ConfigError: there is no such array; the message lists sizes that there are.
    """
    try:
        return _array(devices, sizes)
    except _NoLayout as error:
        raise ConfigError(_refusal(devices, sizes, error)) from error


class _NoLayout(Exception):
    """Devices cannot be arranged as a mesh."""


def _array(devices, sizes):
    shape = tuple(sizes.values())
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    by_slice = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    slices = len(by_slice)
    if len(set(by_slice.values())) > 1:
        counts = ", ".join(map(str, by_slice.values()))
        raise _NoLayout(f"the slices have different numbers of devices ({counts})")
    if sizes["data"] % slices:
        raise _NoLayout(
            f"there are {slices} slices, and a slice must hold whole groups of fsdp x tensor "
            f"devices: mesh.data must be a multiple of {slices}"
        )
    inside = (sizes["data"] // slices, *shape[1:])
    try:
        if slices == 1:
            return mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
        return mesh_utils.create_hybrid_device_mesh(
            inside, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    except (AssertionError, IndexError, TypeError, ValueError) as error:
        # JAX's text is about itself, and may list all devices.
        raise _NoLayout("JAX finds no place for these sizes in their torus") from error


def _refusal(devices, sizes, error):
    """Returns what is wrong and which sizes could be taken instead."""
    count, kind = len(devices), devices[0].device_kind
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    fitting = collections.defaultdict(list)
    for tensor, fsdp in itertools.product(divisors, divisors):
        if tensor > _LARGEST_TENSOR or count % (fsdp * tensor):
            continue
        try:
            _array(devices, {"data": count // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor})
            fitting[tensor].append(str(fsdp))
        except _NoLayout:
            pass
    if not fitting:
        return (
            f"{count} devices ({kind}) cannot be arranged as a mesh of any sizes: {error}. Take "
            "all devices of whole slices."
        )
    settings = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    listed = "; ".join(
        f"mesh.tensor={tensor} with mesh.fsdp={' or '.join(row)}" for tensor, row in fitting.items()
    )
    return (
        f"{settings} does not fit {count} devices ({kind}): {error}. With mesh.data=-1 there fit "
        f"{listed}."
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
        below = batch_size // divisor * divisor
        choices = [str(size) for size in (below, below + divisor) if size]
        raise ConfigError(
            f"batch_size {batch_size} does not split into optim.accum_steps={accum_steps} "
            f"microbatches over {num_shards} devices (mesh.data x mesh.fsdp): it must be a "
            f"multiple of {divisor}, such as {' or '.join(choices)}."
        )
