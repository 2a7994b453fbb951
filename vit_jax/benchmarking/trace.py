"""Divides the time of traced steps among the operations that the devices ran in it."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping

import jax

from vit_jax.benchmarking.hlo import Instruction

_END = "end: "  # XLA:CPU marks the end of an operation that other threads have finished.


@dataclasses.dataclass(frozen=True)
class Interval:
    """Time, in nanoseconds, in which an instruction ran."""

    name: str
    start: float
    end: float


def read_trace(folder: pathlib.Path, *, step_name: str) -> tuple[list[Interval], list[Interval]]:
    """Reads what a profiler wrote.

    Args:
      folder: of `jax.profiler.trace`.
      step_name: of the StepTraceAnnotation around each step.

    Returns:
      The intervals of the steps, and of the instructions of all devices and threads.
    """
    (path,) = folder.rglob("*.xplane.pb")
    steps: list[Interval] = []
    operations: list[Interval] = []
    ends: dict[str, list[float]] = collections.defaultdict(list)
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                end = event.start_ns + event.duration_ns
                if event.name == step_name:
                    steps.append(Interval(event.name, event.start_ns, end))
                elif event.name.startswith(_END):
                    ends[event.name.removeprefix(_END)].append(event.start_ns)
                elif (name := dict(event.stats).get("hlo_op")) is not None:
                    operations.append(Interval(str(name), event.start_ns, end))
    return sorted(steps, key=_start), [
        _until_last(each, ends[each.name]) for each in sorted(operations, key=_start)
    ]


def _start(interval: Interval) -> float:
    return interval.start


def _until_last(interval: Interval, ends: list[float]) -> Interval:
    """Extends an interval to the first mark of its end, which may be on another thread."""
    later = [end for end in ends if end >= interval.start]
    if not later:
        return interval
    ends.remove(min(later))
    return dataclasses.replace(interval, end=max(interval.end, min(later)))


def divide_time(
    operations: Iterable[Interval], instructions: Mapping[str, Instruction], *, start: float,
    end: float,
) -> tuple[dict[str, float], float]:  # fmt: skip
    """Divides the time from start to end among the kinds of the operations that ran.

    While several operations run, on several streams or threads, each gets an equal share, so that
    the sum is the time in which anything ran.

    Returns:
      {name of an instruction: nanoseconds}, and the nanoseconds in which nothing ran.
    """
    marks: list[tuple[float, int, str]] = []
    for each in operations:
        known = instructions.get(each.name)
        if known is not None and known.is_control:
            continue
        first, last = max(each.start, start), min(each.end, end)
        if first < last:
            marks += [(first, 1, each.name), (last, -1, each.name)]
    shares: dict[str, float] = collections.defaultdict(float)
    running: collections.Counter[str] = collections.Counter()
    now, idle = start, 0.0
    for moment, change, name in sorted(marks):
        passed = moment - now
        if (total := running.total()) > 0:
            for other, count in running.items():
                shares[other] += passed * count / total
        else:
            idle += passed
        running[name] += change
        now = moment
    return dict(shares), idle + end - now


def by_kind(
    shares: Mapping[str, float], instructions: Mapping[str, Instruction]
) -> dict[str, float]:
    """Adds up the time of instructions by their kinds; those of other programs are "other"."""
    totals: dict[str, float] = collections.defaultdict(float)
    for name, time in shares.items():
        known = instructions.get(name)
        totals["other programs" if known is None else known.kind] += time
    return dict(totals)
