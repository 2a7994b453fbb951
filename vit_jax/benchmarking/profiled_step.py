"""The profile of a train step: time by kind of operation, and the largest arrays."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from vit_jax.benchmarking import hlo, trace
from vit_jax.benchmarking.case import Case
from vit_jax.benchmarking.ours import OurModel
from vit_jax.benchmarking.weights import write

_STEP = "profiled_step"
_LONGEST, _LARGEST = 12, 12  # Rows of the lists of operations and arrays.
_TRACED_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Profile:
    """A profiled train step.

    Attributes:
      step_seconds: of a traced step, the mean.
      untraced_step_seconds: of a step without the profiler, which slows it down.
      seconds_by_kind: of a step, by kind of operation.
      unaccounted_seconds: of a step, in which no operation ran.
      operations: the longest operations: [source, kind, how many instructions, seconds]; those of
        the same module and kind are added up, such as those of all blocks.
      arrays: the largest results of operations: [shape, source, bytes, how many].
      memory: bytes of the compiled program by XLA's account: arguments, temporary, ...
    """

    step_seconds: float
    untraced_step_seconds: float
    seconds_by_kind: dict[str, float]
    unaccounted_seconds: float
    operations: list[tuple[str, str, int, float]]
    arrays: list[tuple[str, str, int, int]]
    memory: dict[str, int]

    def lines(self) -> Iterator[str]:
        """Yields the lines of the report."""
        yield (
            f"step {self.step_seconds * 1e3:,.1f} ms while traced, "
            f"{self.untraced_step_seconds * 1e3:,.1f} ms otherwise"
        )
        parts = sorted(self.seconds_by_kind.items(), key=lambda pair: -pair[1])
        for kind, seconds in [*parts, ("unaccounted: nothing ran", self.unaccounted_seconds)]:
            yield f"  {kind:28} {seconds * 1e3:10,.1f} ms {seconds / self.step_seconds:6.1%}"
        yield "longest operations of a step"
        for source, kind, count, seconds in self.operations:
            yield f"  {seconds * 1e3:10,.1f} ms  {kind:28} {count:4} x {source}"
        yield "memory of the compiled step, MB"
        for name, size in self.memory.items():
            yield f"  {name:28} {size / 1e6:10,.1f}"
        yield "largest results of operations (they share memory where they are not needed at once)"
        for shape, source, size, count in self.arrays:
            yield f"  {size / 1e6:10,.1f} MB x {count:<3} {shape}  {source}"


def profile_here(case: Case, folder: pathlib.Path) -> dict[str, Any]:
    """Profiles in this process; returns the fields of a Profile."""
    write(case, folder, ())
    model = OurModel(case, folder)
    model.prepare()
    model.train(1)
    untraced = model.train(_TRACED_STEPS).seconds / _TRACED_STEPS
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # It would slow the step down.
    with jax.profiler.trace(str(folder / "trace"), profiler_options=options):
        for number in range(_TRACED_STEPS):
            with jax.profiler.StepTraceAnnotation(_STEP, step_num=number):
                jax.block_until_ready(model.step())
    instructions = hlo.parse(model.compiled.as_text())
    steps, operations = trace.read_trace(folder / "trace", step_name=_STEP)
    # The first traced step is left out: it also starts the profiler's threads.
    window = steps[1:] or steps
    start, end, count = window[0].start, window[-1].end, len(window)
    shares, idle = trace.divide_time(operations, instructions, start=start, end=end)
    scale = 1e-9 / count
    kinds = trace.by_kind(shares, instructions)
    memory = model.compiled.memory_analysis()
    return dataclasses.asdict(
        Profile(
            step_seconds=(end - start) * scale,
            untraced_step_seconds=untraced,
            seconds_by_kind={kind: time * scale for kind, time in kinds.items()},
            unaccounted_seconds=idle * scale,
            operations=[
                (*key, count, time * scale)
                for key, count, time in longest_operations(shares, instructions, _LONGEST)
            ],
            arrays=largest_arrays(instructions, _LARGEST),
            memory={
                "arguments": memory.argument_size_in_bytes,
                "results": memory.output_size_in_bytes,
                "of which in place of arguments": memory.alias_size_in_bytes,
                "temporary": memory.temp_size_in_bytes,
            },
        )
    )


def longest_operations(
    shares: Mapping[str, float], instructions: Mapping[str, hlo.Instruction], count: int
) -> list[tuple[tuple[str, str], int, float]]:
    """Returns the sources and kinds that took longest, their number of instructions, their time."""
    numbers: dict[tuple[str, str], list[float]] = {}
    for name, time in shares.items():
        if (known := instructions.get(name)) is not None:
            key = (short_source(known.source) or known.name, known.kind)
            numbers.setdefault(key, []).append(time)
    totals = [(key, len(times), sum(times)) for key, times in numbers.items()]
    return sorted(totals, key=lambda total: -total[2])[:count]


def largest_arrays(
    instructions: Mapping[str, hlo.Instruction], count: int
) -> list[tuple[str, str, int, int]]:
    """Returns the largest results of operations: shape, source, bytes, number of such results."""
    numbers: dict[tuple[str, str, int], int] = {}
    for each in instructions.values():
        if not each.is_control and each.opcode != "constant" and each.size_bytes:
            key = (each.shape, short_source(each.source), each.size_bytes)
            numbers[key] = numbers.get(key, 0) + 1
    ordered = sorted(numbers.items(), key=lambda item: -item[0][2])
    return [(*key, number) for key, number in ordered[:count]]


def short_source(source: str) -> str:
    """Shortens a path of modules: "backward encoder/blocks/mlp/fc1/dot_general"."""
    direction = "backward " if "transpose(" in source else "forward " if "jvp(" in source else ""
    path = re.sub(r"jit\(\w+\)/|transpose\(|jvp\(\w*\)\)?/?|\w+\.classify/", "", source)
    path = re.sub(r"\bblock_\d+/", "blocks/", path)
    path = re.sub(r"while/body/|closed_call/|checkpoint/|rematted_computation/", "", path)
    return f"{direction}{path}"
