"""Measures everything that needs a GPU, in one call of less than ten minutes; the table comes last.

    python -m benchmarks.gpu [--minutes=9] [--out=gpu.json]
    python -m benchmarks.gpu --dry_run       # The same stages at toy size, on a CPU.

The stages are in the order of their importance. Each has a time limit; when the time of all is up,
the rest is "skipped: out of time". What has been measured is written to --out after each stage.
Peers (timm, compiled) are measured if they are installed. Sizes are chosen for one H200.

Stages: training and forward passes of ViT-L, B, H and S in bfloat16, L and B beside timm; the
numerics of fused kernels, verified by XLA; flags of XLA; reference outputs of published formats and
a reference training run; recomputation (remat) as a curve of memory and speed; back ends of
attention at 197, 577 and 1,601 tokens; batch sizes.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from absl import app, flags

from vit_jax.benchmarking.case import Case, settled_choices
from vit_jax.benchmarking.common import Common
from vit_jax.benchmarking.result import Result
from vit_jax.benchmarking.run import Effort, benchmark
from vit_jax.benchmarking.table import markdown_table, ratio_lines

ROOT = pathlib.Path(__file__).resolve().parent.parent
SKIPPED, NOT_MEASURED = "skipped: out of time", "not measured"
# Images per second of training and of the forward pass that are aimed at on one H200.
TARGETS = {"L/16": "train 1,340 (stretch 1,600), forward 6,000, 1.15 x timm", "B/16": "train 4,700",
           "H/14": "MFU 50%"}  # fmt: skip
_BRIEF = Effort(
    rounds=3,
    turn_seconds=1.0,
    checked_updates=4,
    with_matmul=False,
    with_forward=False,
    at_once=True,
    reference_scan=True,
)
_LEAST_SECONDS = 20.0  # A stage with less time left is skipped.


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the plan.

    Attributes:
      name: in the table.
      seconds: time limit.
      cases: of one workload, which take turns; or of several, one after another.
      peers: beside the cases.
      effort: how much is measured.
      xla_flags: of the processes of this stage.
      command: run instead of a benchmark; its exit code is the result.
    """

    name: str
    seconds: float
    cases: tuple[Case, ...] = ()
    peers: tuple[str, ...] = ()
    effort: Effort = _BRIEF
    xla_flags: str = ""
    command: tuple[str, ...] = ()


@dataclasses.dataclass
class Outcome:
    """What came of a stage: results, or a note such as "skipped: out of time"."""

    stage: Stage
    results: list[Result]
    note: str = ""
    seconds: float = 0.0


def plan() -> tuple[Stage, ...]:
    """Returns all stages, the most important first."""
    large = Case("L/16", batch_size=128, dtype="bfloat16")
    base = dataclasses.replace(large, variant="B/16", batch_size=256)
    whole = dataclasses.replace(_BRIEF, with_matmul=True, with_forward=True, rounds=5)
    remats = tuple(
        dataclasses.replace(large, batch_size=64, remat=remat) for remat in settled_choices("remat")
    )
    backends = tuple(
        dataclasses.replace(base, image_size=size, batch_size=batch, attention=attention)
        for size, batch in ((224, 128), (384, 32), (640, 8))  # 197, 577 and 1,601 tokens.
        for attention in settled_choices("attention")
    )
    batches = tuple(dataclasses.replace(large, batch_size=batch) for batch in (32, 64, 256))
    latency_hiding = "--xla_gpu_enable_latency_hiding_scheduler=true"
    return (
        Stage("L/16", 270, (large,), ("timm",), whole),
        Stage("B/16", 120, (base,), ("timm",), whole),
        Stage("H/14", 80, (_like(large, "H/14", 64),), effort=whole),
        Stage("S/16", 50, (_like(large, "S/16", 512),), effort=whole),
        Stage("fused kernels verified", 60, (_like(base, "B/16", 64),),
              xla_flags="--xla_gpu_verify_triton_fusion_numerics=true"),
        Stage("latency hiding", 40, (large,), xla_flags=latency_hiding),
        Stage("no command buffers", 40, (large,), xla_flags="--xla_gpu_enable_command_buffer="),
        Stage("reference outputs", 60, command=(
            "vit_jax.convert", "--verify=../shared/goldens")),
        Stage("reference training", 60, command=("pytest", "-q", "tests/adapt_golden_test.py")),
        Stage("attention back ends", 150, backends),
        Stage("remat", 120, remats),
        Stage("batch sizes", 90, batches),
    )  # fmt: skip


def _like(case: Case, variant: str, batch: int) -> Case:
    return dataclasses.replace(case, variant=variant, batch_size=batch)


def toy(stage: Stage) -> Stage:
    """Returns a stage at toy size: the same workers, flags and table, in seconds."""
    cases = []
    for case in stage.cases:
        small = dataclasses.replace(
            case, variant="mu/16", image_size=32, batch_size=4, num_classes=10,
            attention="xla" if case.attention else None,
        )  # fmt: skip
        if small not in cases:
            cases.append(small)
    effort = dataclasses.replace(stage.effort, rounds=2, turn_seconds=0.0, matmul_side=64)
    # The fastest command that uses a module as the stage does.
    command = stage.command and ("vit_jax", "--version")
    return dataclasses.replace(
        stage, seconds=600, cases=tuple(cases[:2]), effort=effort, command=command
    )


def run(
    stages: Sequence[Stage], *, seconds: float, cpu: bool, out: pathlib.Path | None = None
) -> list[Outcome]:
    """Runs stages until the time is up.

    Args:
      stages: the most important first.
      seconds: time of all stages.
      cpu: compile quickly, for a CPU.
      out: JSON file, written after each stage.
    """
    end, outcomes = time.monotonic() + seconds, []
    with Common() as common:
        for stage in stages:
            start = time.monotonic()
            left = min(stage.seconds, end - start)
            outcome = Outcome(stage, [], SKIPPED)
            outcomes.append(outcome)
            if left >= min(_LEAST_SECONDS, stage.seconds):
                print(f"{stage.name}: at most {left:.0f} s", file=sys.stderr, flush=True)
                outcome.note = ""
                _run_stage(outcome, common, deadline=start + left, cpu=cpu)
                outcome.seconds = time.monotonic() - start
            if out is not None:
                out.write_text(json.dumps([_to_json(each) for each in outcomes], indent=1))
    return outcomes


def _run_stage(outcome: Outcome, common: Common, *, deadline: float, cpu: bool) -> None:
    stage = outcome.stage
    if stage.command:
        outcome.note = _run_command(stage.command, deadline - time.monotonic(), cpu=cpu)
        return
    quick = "--xla_backend_optimization_level=0" if cpu else ""
    env = {"XLA_FLAGS": f"{stage.xla_flags} {quick}".strip()}
    if cpu:  # Most stages have the same program then.
        env |= {"JAX_ENABLE_COMPILATION_CACHE": "true",
                "JAX_COMPILATION_CACHE_DIR": str(common.folder / "compiled")}  # fmt: skip
    workloads = {case.workload(): [] for case in stage.cases}
    for case in stage.cases:
        workloads[case.workload()].append(case)
    for workload, cases in workloads.items():
        if time.monotonic() >= deadline:
            outcome.note = SKIPPED if not outcome.results else "the rest is skipped: out of time"
            return
        # The reference needs several times the memory of bfloat16.
        accum_steps = max(1, workload.batch_size // 32)
        effort = dataclasses.replace(
            stage.effort, deadline=deadline, reference_accum_steps=accum_steps
        )
        alone = [cases] if len(workloads) == 1 and stage.peers else [[case] for case in cases]
        for group in alone:
            outcome.results += benchmark(
                group, peers=stage.peers, effort=effort, env=env, common=common
            )


def _run_command(command: Sequence[str], seconds: float, *, cpu: bool) -> str:
    """Returns "ok", or how a command of a module ended."""
    env = dict(os.environ) if cpu else {
        **os.environ, "JAX_DEFAULT_MATMUL_PRECISION": "highest", "VIT_JAX_TEST_PLATFORM": "cuda",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, env=env, capture_output=True, text=True,
            timeout=max(1.0, seconds),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "stopped: out of time"
    last = (done.stdout + done.stderr).strip().splitlines()[-1:] or [""]
    return f"{'ok' if done.returncode == 0 else 'FAILED'}: {last[0][:200]}"


def _to_json(outcome: Outcome) -> dict:
    stage = outcome.stage
    return {
        "stage": stage.name,
        "xla_flags": stage.xla_flags,
        "command": stage.command,
        "note": outcome.note,
        "seconds": outcome.seconds,
        "results": [result.to_json() for result in outcome.results],
    }


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yields the lines of the table of all stages."""
    for outcome in outcomes:
        stage = outcome.stage
        note = f": {outcome.note}" if outcome.note else f" ({outcome.seconds:.0f} s)"
        yield ""
        yield f"{stage.name} {stage.xla_flags}".rstrip() + note
        if stage.name in TARGETS:
            yield f"target: {TARGETS[stage.name]}"
        groups: dict[str, list[Result]] = {}
        for result in outcome.results:
            groups.setdefault(result.case.describe_workload(), []).append(result)
        for title, results in groups.items():
            yield ""
            yield title
            yield markdown_table(results)
            yield from ratio_lines(results)


def has_gpu() -> bool:
    """Whether this machine has a GPU of NVIDIA; JAX would take its memory to find out."""
    return pathlib.Path("/dev/nvidiactl").exists()


def main(argv: Sequence[str]) -> None:
    """Runs the plan and prints its table."""
    del argv
    out = pathlib.Path(_OUT.value) if _OUT.value else None
    if _DRY_RUN.value:
        stages = [toy(stage) for stage in plan()]
        outcomes = run(stages, seconds=60 * _MINUTES.value, cpu=True, out=out)
    elif has_gpu():
        outcomes = run(plan(), seconds=60 * _MINUTES.value, cpu=False, out=out)
    else:
        outcomes = [Outcome(stage, [], NOT_MEASURED) for stage in plan()]
    print("\n".join(table(outcomes)))


if __name__ == "__main__":
    _MINUTES = flags.DEFINE_float("minutes", 9.0, "Time of all stages.")
    _OUT = flags.DEFINE_string("out", "", "JSON file, written after each stage.")
    _DRY_RUN = flags.DEFINE_bool("dry_run", False, "Toy size, on a CPU.")
    app.run(main)
