"""Chooses over how many devices parameters are split, by their memory: `config.mesh.auto`.

Each doubling of fsdp halves the state of a device and adds gathers and scatters of the parameters;
so the choice is the smallest fsdp whose estimate (`vit_jax.training.memory`) leaves the margin of
`vit_jax.training.rematerialisation`. The batch is split over data and fsdp alike: activations do
not depend on the choice. Over all devices (data = 1) XLA for TPUs replaces gathers and scatters by
all-reduces, which move twice as much; so data is at least 2 wherever that fits.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh
from ml_collections import FrozenConfigDict

from vit_jax.errors import ConfigError
from vit_jax.models import ModelConfig, read_section, with_remat
from vit_jax.parallel import mesh as meshes
from vit_jax.parallel.rules import UndividedError
from vit_jax.telemetry.chips import GIB
from vit_jax.training.memory import bytes_per_device
from vit_jax.training.rematerialisation import AUTO, POLICIES, SHARE, available_bytes


def make_mesh(
    config: FrozenConfigDict, *, num_classes: int, devices: Sequence[Any] | None = None
) -> tuple[Mesh, str]:
    """Returns the mesh of a run, and how it was chosen; "" if the config has its sizes.

    Args:
      config: the config of the run.
      num_classes: the number of classes of the training data, for a config that leaves it to them.
      devices: those of all processes, here or not; None: JAX's.

    Raises:
      ConfigError: no sizes fit the devices and the batch, or those of the config do not.
    """
    if not config.mesh.auto:
        return meshes.make_mesh(config.mesh, devices=devices), ""
    devices = jax.devices() if devices is None else devices
    model_config = read_section(config.model, num_classes=num_classes)
    mine = [device for device in devices if device.process_index == jax.process_index()]
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    available = available_bytes((mine or devices)[0])
    sizes, reason = choose(config, model_config, len(devices), available, slices=slices)
    return meshes.make_mesh(FrozenConfigDict(sizes), devices=devices), reason


def choose(
    config: FrozenConfigDict,
    model_config: ModelConfig,
    num_devices: int,
    available: int | None,
    *,
    slices: int = 1,
) -> tuple[dict[str, int], str]:
    """Returns the sizes of a mesh, and how they were chosen.

    The first choice that fits, of: data of at least 2 and the cheaper half of the policies of
    recomputation; all of these; data of 1. If none fits, the one that takes least.

    Args:
      config: the config of the run; its mesh.tensor is kept, data and fsdp are chosen.
      model_config: the config of the run's model.
      num_devices: the product of the sizes.
      available: memory of one device in bytes; None: unknown, and parameters are not split.
      slices: number of TPU slices, which must divide data.

    Raises:
      ConfigError: mesh.tensor does not divide the devices, or the devices the batch; no mesh
        divides the parameters; or the config is wrong.
    """
    candidates = list(_meshes(config, num_devices, slices))
    several = [mesh for mesh in candidates if mesh.shape["data"] > 1]
    if available is None:
        return dict(candidates[0].shape), "auto: the memory of a device is unknown"
    remat = getattr(model_config, "remat", "")
    policies = POLICIES if remat == AUTO else (remat,)
    budget = SHARE * available
    attempts = (
        *itertools.product(several, policies[: (len(policies) + 1) // 2]),
        *itertools.product(several, policies),
        *itertools.product(candidates, policies),
    )
    smallest = None
    for mesh, policy in attempts:
        if (size := _bytes(config, model_config, mesh, policy)) is None:
            continue
        if smallest is None or size < smallest[0]:
            smallest = size, mesh
        if size <= budget:
            break
    if smallest is None:
        raise ConfigError(
            f"mesh.auto: no mesh.fsdp splits the parameters over {num_devices} devices with "
            f"mesh.tensor={config.mesh.tensor}: set mesh.auto=False, mesh.data and mesh.fsdp."
        )
    size, mesh = smallest
    return dict(mesh.shape), (
        f"auto: fsdp {mesh.shape['fsdp']} takes {size / GIB:.1f} of {budget / GIB:.1f} GiB, "
        f"{SHARE:.0%} of a device's memory"
    )


def _meshes(config: FrozenConfigDict, num_devices: int, slices: int) -> Iterator[AbstractMesh]:
    """Yields the meshes with a size of tensor, from the smallest fsdp."""
    tensor = config.mesh.tensor
    if tensor < 1 or num_devices % (tensor * slices):
        raise ConfigError(
            f"mesh.auto chooses data and fsdp, but mesh.tensor={tensor} does not divide "
            f"{num_devices // slices} devices: set a divisor, such as 1."
        )
    meshes.check_batch_size(
        config.batch_size,
        accum_steps=config.optim.accum_steps,
        mesh=AbstractMesh((num_devices // tensor, 1, tensor), meshes.AXES),
    )
    inside = num_devices // slices // tensor
    for fsdp in range(1, inside + 1):
        if inside % fsdp == 0:
            yield AbstractMesh((num_devices // (fsdp * tensor), fsdp, tensor), meshes.AXES)


def _bytes(
    config: FrozenConfigDict, model_config: ModelConfig, mesh: AbstractMesh, policy: str
) -> int | None:
    """Returns the estimate for a device; None if the mesh does not divide a large parameter."""
    try:
        return bytes_per_device(config, with_remat(model_config, policy), mesh)
    except UndividedError:
        return None
