"""Searches mesh and remat: by formula all, by the compiler the best of them."""

import dataclasses
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.errors import ConfigError
from vit_jax.models import MixerConfig, VitConfig, read_section
from vit_jax.planning.plan import Plan, make_plan, plan_by_formula
from vit_jax.planning.topology import Topology
from vit_jax.telemetry.chips import GIB
from vit_jax.training.rematerialisation import POLICIES

MAX_FSDP, MAX_TENSOR = 64, 16
# A formula's estimate of memory may be this much above what is there: the compiler decides.
SLACK = 1.3
FITTING, TRIED = 3, 8  # Candidates that are compiled: until so many fit, at most so many.


@dataclasses.dataclass(frozen=True)
class _Candidate:
    mesh: tuple[int, int, int]
    remat: str
    plan: Plan  # By formula.

    @property
    def seconds(self) -> float:
        """Of a step, in the middle of the range."""
        assert self.plan.roofline is not None
        return (self.plan.roofline.fastest + self.plan.roofline.slowest) / 2


def search(
    config: FrozenConfigDict,
    topology: Topology,
    *,
    num_classes: int,
    num_examples: int,
    full_effort: bool,
    show: Callable[[str], None],
) -> Plan:
    """Returns the plan with the best estimate of time that fits.

    Every split of the devices over data, fsdp (up to 64) and tensor (up to 16) and every policy of
    `model.remat` is estimated by formula; the best are compiled (for TPUs), until three fit.

    Args:
      config: of the run; `batch_size` and `optim.accum_steps` stay.
      topology: of its devices.
      num_classes: of its data.
      num_examples: of an epoch of its data.
      full_effort: see `vit_jax.planning.step.compile_step`.
      show: gets the lines of the table of candidates.

    Raises:
      ConfigError: nothing fits.
    """
    sizes = {"num_classes": num_classes, "num_examples": num_examples}
    candidates = sorted(_candidates(config, topology, sizes), key=lambda each: each.seconds)
    limit = SLACK if topology.is_tpu else 1.0
    possible = [c for c in candidates if c.plan.needed <= limit * c.plan.available]
    if not possible:
        least = min(candidates, key=lambda each: each.plan.needed, default=None)
        known = f" The smallest needs {least.plan.needed / GIB:.1f} GiB." if least else ""
        raise ConfigError(
            f"No mesh of {topology.describe()} fits by the estimate.{known} Lower batch_size, "
            "raise optim.accum_steps, or take more chips."
        )
    show(f"{len(candidates)} candidates by formula, {len(possible)} of them may fit; the best:")
    show("  data  fsdp tensor  remat            GiB      ms")
    for each in possible[:8]:
        show(_row(each.mesh, each.remat, each.plan))
    if not topology.is_tpu:
        return possible[0].plan
    show("Compiled:")
    fitting: list[Plan] = []
    for each in possible[:TRIED]:
        try:
            plan = make_plan(
                _config_of(config, each.mesh, each.remat),
                topology,
                full_effort=full_effort,
                **sizes,
            )
        except ConfigError as error:
            show(f"{_row(each.mesh, each.remat, each.plan)}  {error}")
            continue
        show(_row(each.mesh, each.remat, plan) + ("" if plan.fits else "  does not fit"))
        fitting += [plan] if plan.fits else []
        if len(fitting) == FITTING:
            break
    if not fitting:
        raise ConfigError(
            f"The compiler refused the {min(TRIED, len(possible))} best: lower batch_size, or take "
            "more chips."
        )
    best = min(fitting, key=_seconds)
    flags = " ".join(f"--config.mesh.{axis}={size}" for axis, size in best.mesh.items())
    show(f"Best: {flags} --config.model.remat={best.config.model.remat}\n")
    return best


def _seconds(plan: Plan) -> float:
    assert plan.roofline is not None
    return (plan.roofline.fastest + plan.roofline.slowest) / 2


def _row(mesh: tuple[int, int, int], remat: str, plan: Plan) -> str:
    time = f"{_seconds(plan) * 1e3:8.1f}" if plan.roofline else " " * 8
    data, fsdp, tensor = mesh
    return f"{data:6}{fsdp:6}{tensor:7}  {remat:14}{plan.needed / GIB:6.1f}{time}"


def _candidates(
    config: FrozenConfigDict, topology: Topology, sizes: dict[str, int]
) -> Iterator[_Candidate]:
    model_config = read_section(config.model, num_classes=sizes["num_classes"])
    recomputes = isinstance(model_config, VitConfig | MixerConfig)
    policies = POLICIES if recomputes else (config.model.remat,)
    tensors = _powers(MAX_TENSOR) if isinstance(model_config, VitConfig) else [1]
    for fsdp in _powers(MAX_FSDP):
        for tensor in tensors:
            data, rest = divmod(topology.num_devices, fsdp * tensor)
            # With fsdp over all chips XLA sums gradients whole: see mesh_choice.
            if rest or not data or (topology.is_tpu and fsdp > 1 and data == 1):
                continue
            for remat in policies:
                mesh = (data, fsdp, tensor)
                try:
                    plan = plan_by_formula(_config_of(config, mesh, remat), topology, **sizes)
                except ConfigError:  # The mesh does not divide the batch or the model.
                    break
                yield _Candidate(mesh, remat, plan)


def _powers(largest: int) -> list[int]:
    return [2**k for k in range(largest.bit_length())]


def _config_of(
    config: FrozenConfigDict, mesh: tuple[int, int, int], remat: str
) -> FrozenConfigDict:
    changed = ConfigDict(config)
    changed.mesh.data, changed.mesh.fsdp, changed.mesh.tensor = mesh
    changed.mesh.auto = False
    changed.model.remat = remat
    return FrozenConfigDict(changed)
