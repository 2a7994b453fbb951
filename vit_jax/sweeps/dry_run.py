"""Checks the runs of a sweep and prints what they would cost, without running them."""

import shlex
from collections.abc import Mapping, Sequence

from vit_jax.errors import ConfigError, VitJaxError, printable
from vit_jax.planning.topology import Topology
from vit_jax.sweeps import record as records
from vit_jax.sweeps.costs import Cost, cost
from vit_jax.sweeps.durations import Estimate, Speeds, estimate, logged_speeds, timed_speeds
from vit_jax.sweeps.plan import PlannedRun
from vit_jax.sweeps.pod import OnPod, model_name, on_pod, table
from vit_jax.sweeps.pod import total as total_on_pod
from vit_jax.telemetry.progress import format_count, format_duration
from vit_jax.training.rematerialisation import AUTO


def dry_run(
    runs: Sequence[PlannedRun],
    *,
    invalid: Mapping[str, str] | None = None,
    time_updates: int = 0,
    topology: Topology | None = None,
    price: float = 0.0,
) -> None:
    """Prints command, cost and duration of each run, and the totals.

    Args:
      runs: the runs.
      invalid: reasons of points that are no runs (`vit_jax.sweeps.plan.plan_runs`), by name.
      time_updates: number of updates to time on this machine for each kind of run; 0: only runs of
        the sweep that have logged their speed give an estimate of durations.
      topology: a pod, for which each run gets memory, hours and chip-hours, in the place of memory
        and duration on a device like this machine's; and each model a row of a table.
      price: the price of one of its chips for one hour, in any currency; 0: unknown.

    Raises:
      ConfigError: runs are invalid, or do not fit on the topology. It is raised after everything
        is printed, and names the invalid runs, with reasons, and the models that do not fit.
    """
    invalid, costs, sizes = dict(invalid or {}), {}, {}
    for run in runs:
        try:
            run_cost = cost(run)
            if topology is None:
                sizes[run.name] = run_cost.bytes_per_device
            costs[run.name] = run_cost
        except VitJaxError as error:
            invalid[run.name] = str(error)
    valid = [run for run in runs if run.name in costs]
    speeds = logged_speeds(valid, costs)
    if time_updates:
        speeds = timed_speeds(valid, costs, updates=time_updates)
    estimates = {run.name: estimate(run, costs[run.name], speeds) for run in valid}
    finished = {
        run.name: records.is_finished(run.workdir, records.read(run.workdir)) for run in valid
    }
    unfinished = [run for run in valid if not finished[run.name]]
    cannot_start = (
        f"{len(invalid)} of {format_count(len(valid) + len(invalid), 'run')} cannot start"
    )
    if invalid and valid:  # First, so that the plan is not taken for the whole sweep.
        print(f"{cannot_start}: the reasons are below. The plan of the others:")
    pods: dict[str, OnPod] = {}
    for run in valid:
        run_cost = costs[run.name]
        if topology:  # Takes seconds for each kind of step: a run is printed before the next one.
            pods[run.name] = on_pod(run_cost, topology)
            needs = pods[run.name].describe()
        else:
            needs = _describe_here(sizes[run.name], estimates[run.name])
        _print_run(run, run_cost, needs, finished=finished[run.name])
    if valid:
        _print_total(valid, costs, finished, sizes)
        if topology:
            print(total_on_pod(unfinished, pods, topology, price=price))
            print(table(unfinished, costs, pods) if unfinished else "All runs are finished.")
        if speeds or not topology:
            left = [estimates[run.name] for run in unfinished]
            print(_describe_time(left, speeds, timed=bool(time_updates)))
    problems = []
    if invalid:
        reasons = _list_choices_once(invalid)
        problems += [f"{cannot_start}:", *(f"  {name}: {why}" for name, why in reasons.items())]
    if topology and (misfits := [run for run in unfinished if not pods[run.name].fits]):
        models = ", ".join(dict.fromkeys(map(model_name, misfits)))
        problems.append(
            f"{len(misfits):,} of {format_count(len(unfinished), 'run')} cannot run on "
            f"{topology.describe()}: those of {models}. Their lines above say what to change."
        )
    if problems:
        raise ConfigError("\n".join(problems))


def _list_choices_once(reasons: Mapping[str, str]) -> dict[str, str]:
    """Removes from each reason a list of accepted names that an earlier reason has at its end."""
    shortened, seen = {}, set()
    for name, reason in reasons.items():
        message, separator, choices = reason.rpartition("Accepted: ")
        shortened[name] = message.rstrip() if separator and choices in seen else reason
        seen.add(choices)
    return shortened


def _print_run(run: PlannedRun, run_cost: Cost, needs: str, *, finished: bool) -> None:
    status = "finished" if finished else records.read(run.workdir).status
    print(f"{run.name} ({status})")
    print(f"  {shlex.join(['vit-jax', 'train', *run.command[3:]])}")
    length = "unknown number of steps"
    if run_cost.own_steps is not None:
        steps = format_count(run_cost.own_steps, "step")
        length = f"{steps}, {run_cost.total_train_flops:.3g} FLOPs"
    print(
        f"  {run_cost.params:,} parameters ({run_cost.params_non_embedding:,} non-embedding), "
        f"{length}, {needs}",
        flush=True,
    )
    if run_cost.unknown:
        print(printable(f"  Unknown: {run_cost.unknown}"))


def _describe_here(size: int, duration: Estimate | None) -> str:
    """Returns memory and duration on devices like those of this machine."""
    return (
        f"about {_size(size)} per device"
        + (f", about {format_duration(duration.seconds)}" if duration else "")
        + (" (scaled by FLOPs)" if duration and duration.is_scaled else "")
    )


def _print_total(
    runs: Sequence[PlannedRun],
    costs: Mapping[str, Cost],
    finished: Mapping[str, bool],
    sizes: Mapping[str, int],
) -> None:
    flops = {name: run_cost.total_train_flops for name, run_cost in costs.items()}
    total = sum(value or 0 for value in flops.values())
    left = sum(value or 0 for name, value in flops.items() if not finished[name])
    unknown = sum(value is None for value in flops.values())
    largest = (
        f"; the largest run needs about {_size(max(sizes.values()))} per device" if sizes else ""
    )
    print(
        f"Total: {format_count(len(runs), 'run')}, {total:.3g} FLOPs, of which {left:.3g} remain"
        + (f" (without {format_count(unknown, 'run')} of unknown length)" if unknown else "")
        + f"{largest}."
    )
    if sizes and any(-1 in run.config.mesh.values() for run in runs):
        print(
            "       The memory is that on one device; on several (a mesh axis of -1 takes all) "
            "they share the images."
        )
    if sizes and any(getattr(each.model_config, "remat", None) == AUTO for each in costs.values()):
        print(
            "       It is the memory without recomputation; with model.remat=auto a run recomputes "
            "more where its devices have less."
        )


def _describe_time(unfinished: Sequence[Estimate | None], speeds: Speeds, *, timed: bool) -> str:
    """Returns the total time of the unfinished runs, and what the estimate assumes."""
    known = [duration for duration in unfinished if duration]
    if not speeds:
        return (
            "Time:  unknown: no run of the sweep has logged its speed. --time_updates=20 times "
            "updates on this machine."
        )
    total = sum(duration.seconds for duration in known)
    unknown = len(unfinished) - len(known)
    scaled = sum(duration.is_scaled for duration in known)
    devices = ", ".join(sorted({speed.device for speed in speeds.values()}))
    source = "runs of the sweep that have logged their speed, with what else they took"
    if timed:
        source = "updates timed now and their compilation; data, evaluations and saves not counted"
    rough = f"; {format_count(scaled, 'run')} scaled by FLOPs, which is rough" if scaled else ""
    without = f"; without {format_count(unknown, 'run')} of unknown length" if unknown else ""
    return (
        f"Time:  about {format_duration(total)} for what remains, one run after the other on "
        f"{devices}; an unfinished run counts as a whole one. "
        f"From {format_count(len(speeds), 'speed')}: {source}{rough}{without}."
    )


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
