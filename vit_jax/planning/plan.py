"""Plans a run on devices that are not here: whether it fits, what it sends, how long it takes."""

import dataclasses
import time

import jax
from ml_collections import FrozenConfigDict

from vit_jax.errors import ConfigError
from vit_jax.models import (
    ModelConfig,
    ResnetConfig,
    VitConfig,
    read_section,
    update_flops_per_image,
)
from vit_jax.optim import total_steps
from vit_jax.parallel import mesh as meshes
from vit_jax.planning import formula
from vit_jax.planning import topology as topologies
from vit_jax.planning.collectives import Collective, collectives
from vit_jax.planning.flops import traced_flops
from vit_jax.planning.hlo import Hlo
from vit_jax.planning.kept import Kept, kept_arrays
from vit_jax.planning.roofline import Roofline, roofline
from vit_jax.planning.step import Compiled, Step, check_config, compile_step
from vit_jax.planning.topology import Topology
from vit_jax.planning.traffic import hbm_bytes
from vit_jax.telemetry.chips import memory_bytes
from vit_jax.training import mesh_choice, rematerialisation
from vit_jax.training.memory import Memory, memory_per_device

DAY = 24 * 3600
# The share of a GPU's memory that JAX takes by default (XLA_PYTHON_CLIENT_MEM_FRACTION).
_GPU_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a run before it starts.

    Attributes:
      config: the config of the run.
      model_config: the config of its model, with the `remat` that was chosen.
      remat_reason: how `remat` was chosen; "" if the config has it.
      topology: the chips and how they are connected.
      mesh: the number of devices along data, fsdp and tensor.
      mesh_reason: how these numbers were chosen; "" if the config has them.
      num_steps: the number of updates of the whole run.
      compiled: the compiled step; None: the plan is by formula.
      estimate: the memory of a device, by formula.
      available: the bytes that a program has on a device.
      needed: the bytes that a step needs on a device: arguments and temporaries of the compiled
        program, or the estimate. 0: the compiler refused the program without naming its size.
      kept: the activations that the compiled program keeps for the backward pass.
      model_flops: FLOPs of an update on one device, by `vit_jax.models.flops`.
      step_flops: the same with what is computed again.
      hbm_bytes: the bytes that a step moves between the memory and the processor of a device.
      sends: the collectives of a step.
      roofline: the seconds of a step; None: the compiler refused the program.
      seconds: the seconds that each part of the planning took: trace, lower, compile.
    """

    config: FrozenConfigDict
    model_config: ModelConfig
    remat_reason: str
    topology: Topology
    mesh: dict[str, int]
    mesh_reason: str
    num_steps: int
    compiled: Compiled | None
    estimate: Memory
    available: int
    needed: int
    kept: list[Kept]
    model_flops: float
    step_flops: float
    hbm_bytes: float
    sends: list[Collective]
    roofline: Roofline | None
    seconds: dict[str, float]

    @property
    def fits(self) -> bool:
        """Whether a step fits into the memory of a device."""
        if self.compiled is not None:
            return not self.compiled.refusal
        return self.needed <= self.available

    @property
    def at_risk(self) -> bool:
        """Whether the compiler accepts the step, but arguments and temporaries are too large.

        They count gaps between arrays, and arrays that are not alive at the same time.
        """
        return self.compiled is not None and self.fits and self.needed > self.available

    @property
    def verdict(self) -> str:
        """The answer: "fits", "at risk" or "does not fit"."""
        if not self.fits:
            return "does not fit"
        return "at risk" if self.at_risk else "fits"

    @property
    def images_per_device(self) -> int:
        """Images of a batch on one device."""
        return self.config.batch_size // (self.mesh["data"] * self.mesh["fsdp"])

    @property
    def days(self) -> tuple[float, float] | None:
        """The fewest and the most days of the whole run; None: it does not fit."""
        if self.roofline is None or not self.fits:
            return None
        ends = self.roofline.fastest, self.roofline.slowest
        return ends[0] * self.num_steps / DAY, ends[1] * self.num_steps / DAY

    @property
    def chip_hours(self) -> tuple[float, float] | None:
        """The fewest and the most hours of all chips together; None: it does not fit."""
        if self.days is None:
            return None
        return tuple(days * 24 * self.topology.num_chips for days in self.days)  # pyright: ignore[reportReturnType]


def make_plan(
    config: FrozenConfigDict,
    topology: Topology,
    *,
    num_classes: int,
    num_examples: int,
    full_effort: bool = False,
) -> Plan:
    """Returns the plan of a run: for TPUs compiled, for GPUs by formula.

    Args:
      config: the config of the run.
      topology: the chips and how they are connected.
      num_classes: the number of classes of the training data.
      num_examples: the number of training examples in an epoch.
      full_effort: see `vit_jax.planning.step.compile_step`.

    Raises:
      ConfigError: the config is wrong, or does not fit the devices, or libtpu is missing.
    """
    if not topology.is_tpu:
        return plan_by_formula(config, topology, num_classes=num_classes, num_examples=num_examples)
    check_config(config)
    mesh, mesh_reason = mesh_choice.make_mesh(
        config, num_classes=num_classes, devices=topologies.devices(topology)
    )
    step = Step.of(config, mesh, num_classes=num_classes, num_examples=num_examples)
    start = time.perf_counter()
    traced = step.trace()
    seconds = {"trace": time.perf_counter() - start}
    step_flops = traced_flops(traced.jaxpr) / mesh.size
    compiled = compile_step(step, traced, full_effort=full_effort)
    images = config.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
    kept, sends, moved = [], [], 0.0
    if not compiled.refusal:
        hlo = Hlo.parse(compiled.text)
        kept = kept_arrays(
            hlo,
            step.model_config,
            images=images // config.optim.accum_steps,
            state=_shard_shapes(step),
            tensor=mesh.shape["tensor"],
        )
        sends = collectives(hlo, mesh, slices=topology.slices)
        moved = hbm_bytes(hlo)
    line = None
    if not compiled.refusal:
        line = _roofline(topology, step_flops, moved, sends, step.model_config.dtype)
    return Plan(
        config=config,
        model_config=step.model_config,
        remat_reason=step.remat_reason,
        topology=topology,
        mesh=dict(mesh.shape),
        mesh_reason=mesh_reason,
        num_steps=step.num_steps,
        compiled=compiled,
        estimate=memory_per_device(config, step.model_config, mesh),
        available=_available(topology),
        needed=compiled.needed,
        kept=kept,
        model_flops=_model_flops(config, step.model_config, mesh.size),
        step_flops=step_flops,
        hbm_bytes=moved,
        sends=sends,
        roofline=line,
        seconds=seconds | compiled.seconds,
    )


def plan_by_formula(
    config: FrozenConfigDict, topology: Topology, *, num_classes: int, num_examples: int
) -> Plan:
    """Returns the plan of a run without compiling it; see `make_plan`."""
    check_config(config)
    start = time.perf_counter()
    model_config = read_section(config.model, num_classes=num_classes)
    if isinstance(model_config, VitConfig):  # cuDNN's has the same products, and is not here.
        model_config = dataclasses.replace(model_config, attention="xla")
    available, count = _available(topology), topology.num_devices
    if config.mesh.auto:
        sizes, mesh_reason = mesh_choice.choose(
            config, model_config, count, available, slices=topology.slices
        )
    else:
        sizes, mesh_reason = meshes.mesh_shape(config.mesh, count), ""
    if sizes["data"] % topology.slices:
        raise ConfigError(
            f"mesh.data={sizes['data']} must be a multiple of {topology.slices}, the number of "
            "slices: each holds whole groups of mesh.fsdp x mesh.tensor devices."
        )
    if sizes["tensor"] > 1 and isinstance(model_config, ResnetConfig):
        raise ConfigError("mesh.tensor splits no ResNet: set it to 1.")
    mesh = meshes.abstract_mesh(sizes)
    meshes.check_batch_size(config.batch_size, accum_steps=config.optim.accum_steps, mesh=mesh)
    model_config, reason = rematerialisation.resolve_for(config, model_config, mesh, available)
    estimate = memory_per_device(config, model_config, mesh)
    sends = formula.formula_collectives(config, model_config, mesh, groups=topology.groups)
    model_flops = _model_flops(config, model_config, mesh.size)
    step_flops = model_flops * formula.recomputation(config, model_config)
    moved = formula.formula_hbm_bytes(config, model_config, mesh)
    return Plan(
        config=config,
        model_config=model_config,
        remat_reason=reason,
        topology=topology,
        mesh=sizes,
        mesh_reason=mesh_reason,
        num_steps=total_steps(config, num_examples),
        compiled=None,
        estimate=estimate,
        available=available,
        needed=estimate.total,
        kept=[],
        model_flops=model_flops,
        step_flops=step_flops,
        hbm_bytes=moved,
        sends=sends,
        roofline=_roofline(topology, step_flops, moved, sends, model_config.dtype),
        seconds={"formulas": time.perf_counter() - start},
    )


def _shard_shapes(step: Step) -> set[tuple[int, ...]]:
    """Returns the dimensions of all parameters on one device."""
    params = jax.tree.leaves(step.program.shapes.params)
    return {leaf.sharding.shard_shape(leaf.shape) for leaf in params}


def _available(topology: Topology) -> int:
    available = memory_bytes(topology.chip.kinds[0])
    assert available is not None, topology  # Every chip has its memory.
    return available if topology.is_tpu else int(available * _GPU_SHARE)


def _model_flops(config: FrozenConfigDict, model_config: ModelConfig, num_devices: int) -> float:
    return update_flops_per_image(model_config, config) * config.batch_size / num_devices


def _roofline(
    topology: Topology, step_flops: float, moved: float, sends: list[Collective], dtype: str
) -> Roofline:
    peak = topology.chip.bf16_flops / topology.chip.devices
    if dtype == "float32" and not topology.is_tpu:
        peak /= 2  # TF32; a TPU computes products of float32 arrays in bfloat16 by default.
    return roofline(topology, peak=peak, flops=step_flops, hbm_bytes=moved, collectives=sends)
