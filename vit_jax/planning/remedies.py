"""What would make a step fit: of each setting the least change that does, by the estimate."""

from collections.abc import Iterator

from ml_collections import FrozenConfigDict

from vit_jax.config import thaw
from vit_jax.models import with_remat
from vit_jax.parallel import mesh as meshes
from vit_jax.parallel.rules import UndividedError
from vit_jax.planning.plan import Plan
from vit_jax.telemetry.chips import GIB
from vit_jax.training import mesh_choice
from vit_jax.training.memory import bytes_per_device
from vit_jax.training.rematerialisation import AUTO, POLICIES, estimates

_MOST = 1.3  # A compiled program takes up to so many times the estimate.
ROOM = 0.9  # Share of the memory that the step may take: the batches loaded ahead are beside it.


def remedies(plan: Plan) -> list[str]:
    """Returns flags with the memory that a device would need: each alone makes the step fit.

    The estimate of `vit_jax.training.memory` is scaled by what the compiled program needs of it, or
    by 1.3 or more if the compiler refused it.
    What the config leaves to the devices (`model.remat`, `mesh.auto`) is chosen anew.
    """
    ratio = 1.0
    if plan.compiled is not None:
        ratio = plan.needed / plan.estimate.total
        if plan.compiled.refusal:  # Its size, if it names one, is what recomputation has left.
            ratio = max(ratio, _MOST)
    found = {}
    for setting, flags, changed in _changes(plan):
        if setting in found:
            continue
        try:
            needed = ratio * _estimate(plan, changed)
        except UndividedError:
            continue
        if needed <= ROOM * plan.available:
            found[setting] = f"{flags} ({needed / GIB:.1f} GiB)"
    return list(found.values())


def _changes(plan: Plan) -> Iterator[tuple[str, str, FrozenConfigDict]]:
    """Yields setting, flags and config of each change, the least change of a setting first."""
    config, mesh = plan.config, plan.mesh
    used = getattr(plan.model_config, "remat", "")
    used = "none" if used == "dots" else used  # It keeps as much.

    def changed(**keys: object) -> FrozenConfigDict:
        new = thaw(config)
        new.update_from_flattened_dict({key.replace("__", "."): keys[key] for key in keys})
        return FrozenConfigDict(new)

    for policy in POLICIES[POLICIES.index(used) + 1 :] if used in POLICIES else ():
        yield "remat", f"--config.model.remat={policy}", changed(model__remat=policy)
    steps = 2 * config.optim.accum_steps
    while plan.images_per_device % steps == 0:
        flags = f"--config.optim.accum_steps={steps}"
        yield "accum", flags, changed(optim__accum_steps=steps)
        steps *= 2
    data, fsdp = mesh["data"], mesh["fsdp"]
    while data % 2 == 0 and (data // 2) % plan.topology.slices == 0:
        data, fsdp = data // 2, fsdp * 2
        flags = f"--config.mesh.data={data} --config.mesh.fsdp={fsdp}"
        flags += " --config.mesh.auto=False" if config.mesh.auto else ""
        yield "fsdp", flags, changed(mesh__data=data, mesh__fsdp=fsdp, mesh__auto=False)
    size, least = config.batch_size, mesh["data"] * mesh["fsdp"] * config.optim.accum_steps
    while size % (2 * least) == 0:
        size //= 2
        yield "batch", f"--config.batch_size={size}", changed(batch_size=size)


def _estimate(plan: Plan, config: FrozenConfigDict) -> int:
    """Returns the bytes that a device needs with a changed config, mesh and policy as a run's."""
    topology, available = plan.topology, plan.available
    model_config = with_remat(plan.model_config, config.model.remat)
    if config.mesh.auto:
        sizes, _ = mesh_choice.choose(
            config, model_config, topology.num_devices, available, slices=topology.slices
        )
    else:
        sizes = meshes.mesh_shape(config.mesh, topology.num_devices)
    mesh = meshes.abstract_mesh(sizes)
    if getattr(model_config, "remat", "") == AUTO:
        *_, size = estimates(config, model_config, mesh, available).values()
        return size
    return bytes_per_device(config, model_config, mesh)
