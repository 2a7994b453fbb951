"""Searches mesh, recomputation and microbatches: all by formula, the best by the compiler."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from ml_collections import FrozenConfigDict

from vit_jax.config import thaw
from vit_jax.errors import ConfigError
from vit_jax.models import MixerConfig, VitConfig, read_section
from vit_jax.planning.plan import Plan, make_plan, plan_by_formula
from vit_jax.planning.topology import Topology
from vit_jax.telemetry.chips import GIB
from vit_jax.training.rematerialisation import POLICIES

MAX_FSDP, MAX_TENSOR, MAX_ACCUM = 256, 16, 16
# A formula's estimate of memory may be this much above what is there: the compiler decides.
SLACK = 1.3
SHOWN = 8  # Rows of the table of candidates.
# What is compiled: unlike meshes until so many fit, and other policies on the best of them.
MESHES, POLICIES_TRIED = 3, 2
TRIED = 16  # Programs at most.
UNLIKE = 4  # Meshes whose fsdp or tensor differ by this factor.


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """What the search varies, in the order of the table's columns."""

    batch_size: int
    data: int
    fsdp: int
    tensor: int
    accum_steps: int
    remat: str

    def apply(self, config: FrozenConfigDict) -> FrozenConfigDict:
        """Returns the config with these values."""
        changed = thaw(config)
        changed.batch_size = self.batch_size
        changed.mesh.data, changed.mesh.fsdp, changed.mesh.tensor = self.mesh
        changed.mesh.auto = False
        changed.optim.accum_steps = self.accum_steps
        changed.model.remat = self.remat
        return FrozenConfigDict(changed)

    @property
    def mesh(self) -> tuple[int, int, int]:
        """Sizes of data, fsdp and tensor."""
        return self.data, self.fsdp, self.tensor

    def is_like(self, other: "_Candidate") -> bool:
        """Whether the meshes are nearly the same, for the same batch."""
        factors = self.fsdp / other.fsdp, self.tensor / other.tensor
        near = all(1 / UNLIKE < factor < UNLIKE for factor in factors)
        return near and self.batch_size == other.batch_size

    def flags(self, config: FrozenConfigDict) -> str:
        """Returns the flags that change the config to these values."""
        flags = [
            f"--config.mesh.{axis}={getattr(self, axis)}" for axis in ("data", "fsdp", "tensor")
        ]
        flags += ["--config.mesh.auto=False"] * config.mesh.auto
        flags += [f"--config.model.remat={self.remat}"]
        if self.accum_steps != config.optim.accum_steps:
            flags += [f"--config.optim.accum_steps={self.accum_steps}"]
        if self.batch_size != config.batch_size:
            flags += [f"--config.batch_size={self.batch_size}"]
        return " ".join(flags)


def search(
    config: FrozenConfigDict,
    topology: Topology,
    *,
    num_classes: int,
    num_examples: int,
    batch_sizes: Sequence[int] = (),
    full_effort: bool = False,
    show: Callable[[str], None],
) -> Plan:
    """Returns the plan that fits and has the best estimate of images per second.

    Every split of the devices over data, fsdp (up to 256) and tensor (up to 16), every policy of
    `model.remat` and 1 to 16 microbatches are estimated by formula. For TPUs the best of these are
    compiled, by unlike meshes until three fit, one for each batch size among them, and the config
    as it is; with full effort two other policies on the best mesh, too. What would not fit if its
    memory is as many times the formula's as that of the programs compiled so far, with the same
    policy and tensor axis, is not compiled. A plan at risk does not fit.

    Args:
      config: the config of the run.
      topology: the devices.
      num_classes: the number of classes of the data.
      num_examples: the number of examples in an epoch.
      batch_sizes: the batch sizes to compare; (): that of the config.
      full_effort: see `vit_jax.planning.step.compile_step`.
      show: gets the lines of the table of candidates.

    Raises:
      ConfigError: nothing fits.
    """
    sizes = {"num_classes": num_classes, "num_examples": num_examples}
    batch_sizes = batch_sizes or (config.batch_size,)
    plans: dict[_Candidate, Plan] = {}
    problem = None
    for each in _candidates(config, topology, batch_sizes):
        try:
            plans[each] = plan_by_formula(each.apply(config), topology, **sizes)
        except ConfigError as error:  # The mesh does not divide the model or the slices.
            problem = error
    # The config may have what the candidates vary otherwise, such as three microbatches.
    own, own_plan = _own(config, topology, sizes)
    if own is not None and own_plan is not None and own.batch_size in batch_sizes:
        plans.setdefault(own, own_plan)
    if not plans and problem and any(size % topology.num_devices == 0 for size in batch_sizes):
        raise problem
    if not plans:
        raise ConfigError(
            f"No mesh of {topology.describe()} divides a batch of "
            f"{', '.join(map(str, batch_sizes))} images: use a multiple of {topology.num_devices}."
        )
    limit = SLACK if topology.is_tpu else 1.0
    possible = sorted(
        (each for each, plan in plans.items() if plan.needed <= limit * plan.available),
        key=lambda each: _seconds_per_image(plans[each]),
    )
    if not possible:
        least = min(plan.needed for plan in plans.values())
        raise ConfigError(
            f"Nothing fits on {topology.describe()} by the estimate: the smallest needs "
            f"{least / GIB:.1f} GiB. Take more chips, or a smaller batch_size."
        )
    leaders: dict[int, _Candidate] = {}  # The best of each batch size.
    for each in possible:
        leaders.setdefault(each.batch_size, each)
    possible = list(dict.fromkeys([*leaders.values(), *possible]))
    if absent := [str(size) for size in batch_sizes if size not in leaders]:
        show(f"Left out: batches of {', '.join(absent)}, which no mesh divides or which do not fit")
    show("Searches mesh, model.remat and optim.accum_steps, whatever the config has.")
    show(f"{len(plans):,} candidates by formula, {len(possible):,} of them may fit; the best:")
    show("GiB of a device; the middle of a step's range in ms, differences of 10% mean little")
    show(" batch  data  fsdp tensor accum  remat            GiB      ms  img/s a chip")
    for each in possible[:SHOWN]:
        show(_row(each, plans[each]))
    if topology.is_tpu:
        plans = _compiled(config, topology, sizes, plans, possible, own, full_effort, show)
    best = min(
        (each for each in possible if each in plans),
        key=lambda each: _seconds_per_image(plans[each]),
    )
    show(f"Best: {best.flags(config)}\n")
    return plans[best]


def _compiled(
    config: FrozenConfigDict,
    topology: Topology,
    sizes: dict[str, int],
    plans: dict[_Candidate, Plan],
    possible: list[_Candidate],
    own: _Candidate | None,
    full_effort: bool,
    show: Callable[[str], None],
) -> dict[_Candidate, Plan]:
    """Returns the compiled plans that fit, of some of the candidates."""
    effort = "" if full_effort else " with the least effort (times are too long: see --full)"
    show(f"Compiled{effort}:")
    fitting: dict[_Candidate, Plan] = {}
    # Policy, tensor -> the least memory of a program as a multiple of the formula's.
    ratios: dict[tuple[str, int], float] = {}
    tried: set[_Candidate] = set()

    def compile_until(candidates: Iterable[_Candidate], count: int) -> None:
        for each in candidates:
            if len(fitting) == count or len(tried) == TRIED:
                return
            estimate, kind = plans[each].needed, (each.remat, each.tensor)
            if each in tried or estimate * ratios.get(kind, 0.0) > plans[each].available:
                continue
            tried.add(each)
            plan = make_plan(each.apply(config), topology, full_effort=full_effort, **sizes)
            fits = plan.fits and not plan.at_risk
            show(_row(each, plan) + ("" if fits else f"  {plan.verdict}"))
            if fits:
                fitting[each] = plan
            # A refusal may name no size: then the estimate was too large by itself.
            ratio = (plan.needed or plan.available) / estimate
            ratios[kind] = min(ratio, ratios.get(kind, math.inf))

    unlike = (each for each in possible if not any(map(each.is_like, fitting)))
    compile_until(unlike, max(MESHES, len({each.batch_size for each in possible})))
    compile_until([own] if own in possible else [], len(fitting) + 1)
    if not fitting:
        raise ConfigError(
            f"None of the {len(tried)} that were compiled fits: take more chips, or a smaller "
            "batch_size."
        )
    if full_effort:  # With the least effort, what is kept is moved too often: see docs/planning.md.
        best = min(fitting, key=lambda each: _seconds_per_image(fitting[each]))
        others = [each for each in possible if dataclasses.replace(each, remat=best.remat) == best]
        compile_until(others, len(fitting) + POLICIES_TRIED)
    return fitting


def _seconds_per_image(plan: Plan) -> float:
    """In the middle of the range."""
    assert plan.roofline is not None
    return (plan.roofline.fastest + plan.roofline.slowest) / 2 / plan.config.batch_size


def _row(each: _Candidate, plan: Plan) -> str:
    row = (
        f"{each.batch_size:6}{each.data:6}{each.fsdp:6}{each.tensor:7}{each.accum_steps:6}  "
        f"{each.remat:14}{plan.needed / GIB:6.1f}"
    )
    if plan.roofline is None:
        return row
    seconds = _seconds_per_image(plan)
    rate = 1 / seconds / plan.topology.num_chips
    return f"{row}{seconds * each.batch_size * 1e3:8.1f}{rate:14.1f}"


def _own(
    config: FrozenConfigDict, topology: Topology, sizes: dict[str, int]
) -> tuple[_Candidate, Plan] | tuple[None, None]:
    """Returns the candidate that the config is as it stands; None: it cannot run there."""
    try:
        plan = plan_by_formula(config, topology, **sizes)
    except ConfigError:
        return None, None
    remat = getattr(plan.model_config, "remat", config.model.remat)
    accum_steps = config.optim.accum_steps
    return _Candidate(config.batch_size, **plan.mesh, accum_steps=accum_steps, remat=remat), plan


def _candidates(
    config: FrozenConfigDict, topology: Topology, batch_sizes: Sequence[int]
) -> Iterator[_Candidate]:
    model_config = read_section(config.model, num_classes=1)
    recomputes = isinstance(model_config, VitConfig | MixerConfig)
    tensors = _powers(MAX_TENSOR) if isinstance(model_config, VitConfig) else [1]
    policies = POLICIES if recomputes else (config.model.remat,)
    for fsdp, tensor in itertools.product(_powers(MAX_FSDP), tensors):
        data, rest = divmod(topology.num_devices, fsdp * tensor)
        # With fsdp over all chips XLA sums gradients whole: see mesh_choice.
        if rest or (topology.is_tpu and fsdp > 1 and data == 1):
            continue
        for batch_size, accum_steps in itertools.product(batch_sizes, _powers(MAX_ACCUM)):
            if data and batch_size % (data * fsdp * accum_steps) == 0:
                for remat in policies:
                    yield _Candidate(batch_size, data, fsdp, tensor, accum_steps, remat)


def _powers(largest: int) -> list[int]:
    return [2**k for k in range(largest.bit_length())]
