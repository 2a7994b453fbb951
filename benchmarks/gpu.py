"""Measures everything that needs a GPU, in one call of less than ten minutes; the table comes last.

    python -m benchmarks.gpu [--minutes=9] [--out=gpu.json]
    python -m benchmarks.gpu --dry_run       # The same stages at toy size, on a CPU.

The stages (`benchmarks.gpu_plan`) are in the order of their importance. Each has a time limit; when
the time of all is up, the rest is "skipped: out of time". What a stage has measured is printed and
written to --out, with the table beside it (gpu.md), as it comes; a stage that fails, hangs or is
killed costs its own rows only. Peers (timm, compiled) are measured if they are installed; reference
outputs and training, if the folder `shared/goldens` is in the checkout or beside it, and pytest is
installed. Sizes are chosen for one H200.

Stages: training and forward passes of ViT-L, B, H and S in bfloat16, L and B beside timm; reference
outputs of published formats and a reference training run; the numerics of fused kernels, verified
by XLA; attention alone, at 197, 577 and 1,601 tokens; flags of XLA; back ends of attention in
training; recomputation (remat) as a curve of memory and speed; batch sizes.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from absl import app, flags

from benchmarks.gpu_plan import ROOT, TARGETS, Command, Stage, plan, toy
from vit_jax.benchmarking.case import Case
from vit_jax.benchmarking.common import Common
from vit_jax.benchmarking.result import Result
from vit_jax.benchmarking.run import benchmark
from vit_jax.benchmarking.table import markdown_table, ratio_lines
from vit_jax.storage import write_bytes

SKIPPED, NOT_MEASURED = "skipped: out of time", "not measured"
_LEAST_SECONDS = 20.0  # A stage with less time left is skipped.
_SHOWN_LINES = 16  # Of the commands of a stage, in the table; the JSON file has all.


@dataclasses.dataclass
class Outcome:
    """What came of a stage.

    Attributes:
      stage: the stage.
      results: of the cases and peers that were measured.
      lines: what the commands printed, and how each ended.
      note: what is missing, such as "skipped: out of time"; "": nothing.
      seconds: how long it took.
    """

    stage: Stage
    results: list[Result] = dataclasses.field(default_factory=list)
    lines: list[str] = dataclasses.field(default_factory=list)
    note: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict:
        """Returns what was measured, every sample."""
        stage = self.stage
        return {
            "stage": stage.name,
            "xla_flags": stage.xla_flags,
            "note": self.note,
            "seconds": self.seconds,
            "results": [result.to_json() for result in self.results],
            "lines": self.lines,
        }


Save = Callable[[], None]


def run(
    stages: Sequence[Stage], *, seconds: float, cpu: bool, out: pathlib.Path | None = None
) -> list[Outcome]:
    """Runs stages until the time is up, and prints what each has measured to standard error.

    Args:
      stages: the most important first.
      seconds: time of all stages.
      cpu: compile quickly, for a CPU.
      out: JSON file, written whenever something has been measured; the table is beside it (.md).
    """
    end = time.monotonic() + seconds
    outcomes = [Outcome(stage, note=SKIPPED) for stage in stages]

    def save() -> None:
        if out is None:
            return
        content = json.dumps([outcome.to_json() for outcome in outcomes], indent=1)
        try:  # Atomically: what was written before survives a full disk.
            write_bytes(out, content.encode())
            write_bytes(out.with_suffix(".md"), table(outcomes).encode())
        except OSError as error:  # The next stages are measured, and printed.
            print(f"not saved: {error}", file=sys.stderr, flush=True)

    with Common() as common:
        for outcome in outcomes:
            start, limit = time.monotonic(), outcome.stage.seconds
            left = min(limit, end - start)
            if left < min(_LEAST_SECONDS, limit):
                continue
            print(f"\n{outcome.stage.name}: at most {left:.0f} s", file=sys.stderr, flush=True)
            outcome.note = "stopped while it ran"  # In the JSON file, if this process is killed.
            save()
            try:
                outcome.note = _run_stage(outcome, common, start + left, cpu=cpu, save=save)
            except Exception as error:  # Whatever it is, the other stages are measured.
                outcome.note = f"failed: {type(error).__name__}: {error}"
            outcome.seconds = time.monotonic() - start
            print("\n".join(section(outcome)), file=sys.stderr, flush=True)
            save()
    return outcomes


def _run_stage(outcome: Outcome, common: Common, deadline: float, *, cpu: bool, save: Save) -> str:
    """Fills in an outcome; returns its note."""
    stage = outcome.stage
    for number, command in enumerate(stage.commands):
        seconds = (deadline - time.monotonic()) / (len(stage.commands) - number)
        outcome.lines += _run_command(command, seconds, cpu=cpu)
        save()
    env = {"XLA_FLAGS": stage.xla_flags}
    if cpu:  # Most stages have the same program then.
        env["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
        env |= {"JAX_ENABLE_COMPILATION_CACHE": "true",
                "JAX_COMPILATION_CACHE_DIR": str(common.folder / "compiled")}  # fmt: skip
    for group in _groups(stage):
        if time.monotonic() >= deadline:
            return "the rest is skipped: out of time"
        # The reference needs several times the memory of bfloat16.
        accum_steps = max(1, group[0].batch_size // 32)
        effort = dataclasses.replace(
            stage.effort, deadline=deadline, reference_accum_steps=accum_steps
        )
        outcome.results += benchmark(
            group, peers=stage.peers, effort=effort, env=env, common=common
        )
        save()
    return ""


def _groups(stage: Stage) -> list[list[Case]]:
    """Returns the cases that take turns with one another."""
    if not stage.together:
        return [[case] for case in stage.cases]
    workloads: dict[Case, list[Case]] = {}
    for case in stage.cases:
        workloads.setdefault(case.workload(), []).append(case)
    return list(workloads.values())


def _run_command(command: Command, seconds: float, *, cpu: bool) -> list[str]:
    """Returns the lines that a command has printed, and at last how it ended."""
    title = " ".join(command.arguments[:2])
    if command.needs is not None and not command.needs.is_dir():
        return [f"{title}: skipped: there is no folder {'/'.join(command.needs.parts[-2:])}"]
    env = {} if cpu else {
        "VIT_JAX_TEST_PLATFORM": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_DEFAULT_MATMUL_PRECISION": command.precision,
    }  # fmt: skip
    code, text = _output([sys.executable, "-m", *command.arguments], seconds, env)
    lines = [line for line in text.splitlines() if line.strip()]
    if code is None:
        return [*lines, f"{title}: stopped: took longer than {seconds:.0f} s"]
    # Only the last line says why a process ended; an earlier one may be of a test that failed.
    if code and lines and "No module named" in lines[-1]:
        return [f"{title}: skipped: {lines[-1].strip()}; see requirements-dev.txt"]
    return [*lines, f"{title}: {'FAILED, ' if code else ''}exit code {code}"]


def _output(
    command: Sequence[str], seconds: float, env: Mapping[str, str]
) -> tuple[int | None, str]:
    """Returns the exit code, None if the time was up, and what was printed until then."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, **env},
        )  # fmt: skip
        code = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(max(1.0, seconds))
        finally:
            if code is None:  # Also after Ctrl-C, which a session of its own does not receive.
                os.killpg(process.pid, signal.SIGKILL)  # With its children, which may use the GPU.
                process.wait()
        log.seek(0)
        return code, log.read()


def section(outcome: Outcome) -> Iterator[str]:
    """Yields the lines of the table for a stage."""
    stage = outcome.stage
    note = f": {outcome.note}" if outcome.note else f" ({outcome.seconds:.0f} s)"
    yield ""
    yield f"{stage.name} {stage.xla_flags}".rstrip() + note
    if stage.name in TARGETS:
        yield f"target: {TARGETS[stage.name]}"
    yield from _shown(outcome.lines)
    groups: dict[str, list[Result]] = {}
    for result in outcome.results:
        groups.setdefault(result.case.describe_workload(), []).append(result)
    for title, results in groups.items():
        yield ""
        yield title
        yield markdown_table(results)
        yield from ratio_lines(results)


def _shown(lines: Sequence[str]) -> Sequence[str]:
    """Returns the last lines, and those before them that report an error."""
    earlier = lines[:-_SHOWN_LINES]
    problems = [line for line in earlier if "WRONG" in line or "FAILED" in line]
    return [*problems[:_SHOWN_LINES], *lines[-_SHOWN_LINES:]]


def table(outcomes: Sequence[Outcome]) -> str:
    """Returns the table of all stages."""
    return "\n".join(line for outcome in outcomes for line in section(outcome))


def gpu_in_words() -> str:
    """Returns the GPU of JAX and the software, or "" without a GPU.

    Another process asks JAX, which would keep memory of the GPU here.
    """
    code = (
        "import jax, platform; print(jax.default_backend(), jax.devices()[0].device_kind, "
        "'jax', jax.__version__, 'Python', platform.python_version(), sep='|')"
    )
    exit_code, text = _output([sys.executable, "-c", code], 120.0, {})
    platform, _, words = (text.strip().splitlines() or [""])[-1].partition("|")
    if exit_code != 0:
        print(f"JAX does not start:\n{text}", file=sys.stderr)
    return words.replace("|", " ") if platform == "gpu" else ""


def main(argv: Sequence[str]) -> None:
    """Runs the plan and prints its table."""
    del argv
    out = pathlib.Path(_OUT.value) if _OUT.value else None
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)  # A mistake in the path shows before the run.
    if _DRY_RUN.value:
        os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        title, stages = "Dry run on a CPU", [toy(stage) for stage in plan()]
        outcomes = run(stages, seconds=3600.0, cpu=True, out=out)
    elif title := gpu_in_words():
        outcomes = run(plan(), seconds=60 * _MINUTES.value, cpu=False, out=out)
    else:
        title = "JAX sees no GPU here"
        outcomes = [Outcome(stage, note=NOT_MEASURED) for stage in plan()]
    print(f"{title}\n{table(outcomes)}")


if __name__ == "__main__":
    _MINUTES = flags.DEFINE_float("minutes", 9.0, "Time of all stages on a GPU.")
    _OUT = flags.DEFINE_string("out", "", "JSON file; the table is beside it (.md).")
    _DRY_RUN = flags.DEFINE_bool("dry_run", False, "Toy size, on a CPU.")
    app.run(main)
