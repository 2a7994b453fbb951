"""What each run of a sweep would take on a pod: fit, hours and chip-hours, by formula."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

from ml_collections import FrozenConfigDict

from vit_jax.errors import VitJaxError
from vit_jax.planning.plan import Plan, plan_by_formula
from vit_jax.planning.remedies import remedies
from vit_jax.planning.topology import Topology
from vit_jax.sweeps.costs import Cost
from vit_jax.sweeps.plan import PlannedRun
from vit_jax.telemetry.chips import GIB
from vit_jax.telemetry.progress import format_count


@dataclasses.dataclass(frozen=True)
class OnPod:
    """A run on a pod.

    Attributes:
      topology: the pod's chips and how they are connected.
      needed: the bytes that its step needs on a device; 0: the step cannot be split over the
        devices, or trains a head on cached features, which has no plan.
      available: the bytes that a program has on a device; 0: likewise.
      problem: why it cannot run there, and what to change; "" if it fits.
      chip_hours: the fewest and the most chip-hours of the run's own steps; None: it does not fit,
        has no plan, or their number is unknown.
    """

    topology: Topology
    needed: int = 0
    available: int = 0
    problem: str = ""
    chip_hours: tuple[float, float] | None = None

    @property
    def fits(self) -> bool:
        """Whether it can run there."""
        return not self.problem

    @property
    def memory(self) -> str:
        """The GiB that it needs of what a device has, such as "4.82 of 15.75"; "-": see needed."""
        return f"{self.needed / GIB:.2f} of {self.available / GIB:.2f}" if self.needed else "-"

    @property
    def hours(self) -> str:
        """The fewest and the most hours of the run; "-": see `chip_hours`."""
        chips = self.topology.num_chips
        return _between([end / chips for end in self.chip_hours], 2) if self.chip_hours else "-"

    def describe(self) -> str:
        """Returns memory and time in a line, or the problem."""
        memory = f"{self.memory} GiB of a device"
        if self.problem and self.needed:
            return f"does not fit: {memory}; {self.problem}"
        if self.problem:
            return f"cannot run there: {self.problem}"
        if not self.needed:
            return "a head on cached features: no plan"
        if self.chip_hours is None:
            return memory
        return f"{memory}, {self.hours} hours, {_between(self.chip_hours, 1)} chip-hours"


def on_pod(cost: Cost, topology: Topology) -> OnPod:
    """Returns what a run would take.

    Args:
      cost: the cost of the run.
      topology: the pod's chips and how they are connected; every run has all of them for itself.
    """
    step, classes = cost.step, cost.model_config.num_classes
    if step.cache_features:
        return OnPod(topology)
    try:
        plan = _plan_of_step(step, topology, classes)
    except VitJaxError as error:
        return OnPod(topology, problem=str(error))
    if not plan.fits:
        return OnPod(topology, plan.needed, plan.available, _remedy(step, topology, classes))
    hours = None
    if cost.own_steps is not None:  # Of a branch fewer than those of its schedule.
        hours = dataclasses.replace(plan, num_steps=cost.own_steps).chip_hours
    return OnPod(topology, plan.needed, plan.available, chip_hours=hours)


@functools.cache
def _plan_of_step(step: FrozenConfigDict, topology: Topology, num_classes: int) -> Plan:
    return plan_by_formula(step, topology, num_classes=num_classes, num_examples=1)


@functools.cache
def _remedy(step: FrozenConfigDict, topology: Topology, num_classes: int) -> str:
    """Returns what to change for a step that does not fit."""
    if found := remedies(_plan_of_step(step, topology, num_classes)):
        return f"{' or '.join(found)} is enough"
    slices = f" --slices={topology.slices}" if topology.slices > 1 else ""
    return (
        f"`vit-jax plan --topology={topology.name}{slices} --search` with the run's flags looks "
        "for a remedy"
    )


def total(
    runs: Sequence[PlannedRun],
    pods: Mapping[str, OnPod],
    topology: Topology,
    *,
    price: float = 0.0,
) -> str:
    """Returns a line with the sum over runs, those that are not finished.

    Args:
      runs: the runs.
      pods: the result of `on_pod` for each of them, by name.
      topology: the pod's chips and how they are connected.
      price: the price of one chip for one hour, in any currency; 0: unknown.
    """
    low, high = _sum(pods[run.name] for run in runs)
    missing = sum(not pods[run.name].fits for run in runs)
    unknown = sum(pods[run.name].fits and not pods[run.name].chip_hours for run in runs)
    without = f"; without {format_count(missing, 'run')} that cannot run there" if missing else ""
    without += f"; without {format_count(unknown, 'run')} of unknown duration" if unknown else ""
    cost = f", at a cost of {_between((low * price, high * price), 2)}" if price else ""
    return (
        f"Pod:   {low:,.1f} to {high:,.1f} chip-hours for what remains{cost}, "
        f"{low / topology.num_chips:,.1f} to {high / topology.num_chips:,.1f} hours one run after "
        f"the other, on {topology.describe()}; an unfinished run counts as a whole one"
        f"{without}. By formula (docs/planning.md); `vit-jax plan` compiles a run."
    )


def table(runs: Sequence[PlannedRun], costs: Mapping[str, Cost], pods: Mapping[str, OnPod]) -> str:
    """Returns a table with a row for each model; see `total`."""
    models: dict[tuple[str, int], list[OnPod]] = {}
    for run in runs:
        models.setdefault((model_name(run), costs[run.name].params), []).append(pods[run.name])
    rows = [
        (
            "model",
            "parameters",
            "runs",
            "GiB of a device",
            "hours, longest run",
            "chip-hours",
            "fits",
        )
    ]
    for (name, params), group in models.items():
        fit = sum(pod.fits for pod in group)
        longest = max(group, key=lambda pod: pod.chip_hours or (0.0, 0.0))
        rows.append(
            (
                name,
                f"{params:,}",
                f"{len(group):,}",
                max(group, key=lambda pod: pod.needed).memory,
                longest.hours,
                _between(_sum(group), 1) if longest.chip_hours else "-",
                {0: "no", len(group): "yes"}.get(fit, f"{fit:,}"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    )


def model_name(run: PlannedRun) -> str:
    """Returns the name of a run's model: the config file's argument, or the variant."""
    return str(run.values.get(":model") or run.config.model.variant)


def _sum(pods: Iterable[OnPod]) -> tuple[float, float]:
    """Returns the fewest and the most chip-hours of all runs whose hours are known."""
    known = [pod.chip_hours for pod in pods if pod.chip_hours]
    return sum(low for low, _ in known), sum(high for _, high in known)


def _between(ends: Iterable[float], digits: int) -> str:
    low, high = ends
    return f"{low:,.{digits}f} to {high:,.{digits}f}"
