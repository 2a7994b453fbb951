"""What each run of a sweep would take on a pod: fit, hours and chip-hours, by formula."""

import dataclasses
from collections.abc import Mapping, Sequence

from vit_jax.errors import VitJaxError
from vit_jax.planning.data_size import data_size
from vit_jax.planning.plan import plan_by_formula
from vit_jax.planning.topology import Topology
from vit_jax.sweeps.costs import Cost
from vit_jax.sweeps.plan import PlannedRun
from vit_jax.telemetry.chips import GIB
from vit_jax.telemetry.progress import format_count


@dataclasses.dataclass(frozen=True)
class OnPod:
    """A run on a pod.

    Attributes:
      text: a line that says whether it fits, and its time.
      chip_hours: the fewest and the most chip-hours of the run's own steps; None: it does not fit,
        or their number is unknown.
    """

    text: str
    chip_hours: tuple[float, float] | None = None


def on_pod(run: PlannedRun, cost: Cost, topology: Topology) -> OnPod:
    """Returns what a run would take.

    Args:
      run: the run.
      cost: the cost of the run.
      topology: the pod's chips and how they are connected; every run has all of them for itself.
    """
    try:
        examples, classes = data_size(run.config, examples=cost.examples or 0)
        plan = plan_by_formula(run.config, topology, num_classes=classes, num_examples=examples)
    except VitJaxError as error:
        return OnPod(f"cannot run on {topology.describe()}: {error}")
    memory = f"{plan.needed / GIB:.2f} of {plan.available / GIB:.2f} GiB of a device"
    if not plan.fits or plan.roofline is None:
        return OnPod(f"does not fit on {topology.describe()}: {memory}")
    if cost.own_steps is not None:  # Of a branch fewer than those of its schedule.
        plan = dataclasses.replace(plan, num_steps=cost.own_steps)
    assert plan.chip_hours is not None  # It fits.
    low, high = plan.chip_hours
    chips = topology.num_chips
    return OnPod(
        f"on {topology.describe()}: {memory}; {low / chips:,.2f} to {high / chips:,.2f} hours, "
        f"{low:,.1f} to {high:,.1f} chip-hours",
        (low, high),
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
    known = [hours for run in runs if (hours := pods[run.name].chip_hours)]
    low, high = (sum(hours[end] for hours in known) for end in (0, 1))
    missing = len(runs) - len(known)
    without = f"; without {format_count(missing, 'run')} that cannot run there" if missing else ""
    cost = f", at a cost of {low * price:,.0f} to {high * price:,.0f}" if price else ""
    return (
        f"Pod:   {low:,.1f} to {high:,.1f} chip-hours for what remains{cost}, "
        f"{low / topology.num_chips:,.1f} to {high / topology.num_chips:,.1f} hours one run after "
        f"the other, on {topology.describe()}; an unfinished run counts as a whole one"
        f"{without}. By formula (docs/planning.md); `vit-jax plan` compiles a run."
    )
