"""What `benchmarks.gpu` measures: its stages, the most important first; also at toy size."""

import dataclasses
import pathlib

from benchmarks.gpu_attention import BACKENDS
from vit_jax.benchmarking.case import Case, settled_choices
from vit_jax.benchmarking.run import Effort

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Outputs and training runs of reference implementations: in the checkout, or beside it.
_SHARED = ROOT / "shared" if (ROOT / "shared").is_dir() else ROOT.parent / "shared"
GOLDENS = _SHARED / "goldens"

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
_WHOLE = dataclasses.replace(_BRIEF, with_matmul=True, with_forward=True, rounds=5)


@dataclasses.dataclass(frozen=True)
class Command:
    """A module that is run in a process of its own; its last lines are in the table.

    Attributes:
      arguments: the module and its arguments.
      toy: the same in the dry run.
      needs: a folder without which it is skipped.
      precision: of products in float32: "highest", or "default", which is TF32 on this GPU.
    """

    arguments: tuple[str, ...]
    toy: tuple[str, ...]
    needs: pathlib.Path | None = None
    precision: str = "default"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the plan: cases of a benchmark, or commands.

    Attributes:
      name: in the table.
      seconds: time limit.
      cases: those of one workload are prepared at once and take turns if `together` is set;
        otherwise one is measured after another.
      together: whether the memory of the GPU has room for all cases of a workload, and the peers.
      peers: beside the cases.
      effort: how much is measured.
      xla_flags: of the processes of this stage.
      commands: share what is left of the time equally.
    """

    name: str
    seconds: float
    cases: tuple[Case, ...] = ()
    together: bool = False
    peers: tuple[str, ...] = ()
    effort: Effort = _BRIEF
    xla_flags: str = ""
    commands: tuple[Command, ...] = ()


def plan() -> tuple[Stage, ...]:
    """Returns all stages, the most important first."""
    large = Case("L/16", batch_size=128, dtype="bfloat16")
    base = dataclasses.replace(large, variant="B/16", batch_size=256)
    remats = tuple(dataclasses.replace(large, remat=remat) for remat in settled_choices("remat"))
    backends = tuple(
        dataclasses.replace(base, image_size=size, batch_size=batch, attention=attention)
        for size, batch in ((224, 256), (384, 64), (640, 16))  # 197, 577 and 1,601 tokens.
        for attention in settled_choices("attention")
    )
    batches = tuple(dataclasses.replace(large, batch_size=batch) for batch in (32, 64, 256))
    return (
        Stage("L/16", 200, _scanned_and_unrolled(large), True, ("timm",), _WHOLE),
        Stage("B/16", 120, _scanned_and_unrolled(base), True, ("timm",), _WHOLE),
        Stage("H/14", 80, (_like(large, "H/14", 64),), effort=_WHOLE),
        Stage("S/16", 50, (_like(large, "S/16", 512),), effort=_WHOLE),
        Stage("reference outputs", 60, commands=_reference_outputs()),
        Stage("reference training", 40, commands=(_reference_training(),)),
        Stage("fused kernels verified", 50, (base,),
              xla_flags="--xla_gpu_verify_triton_fusion_numerics=true"),
        Stage("attention alone", 100, commands=tuple(map(_attention_alone, BACKENDS))),
        Stage("latency hiding", 40, (large,),
              xla_flags="--xla_gpu_enable_latency_hiding_scheduler=true"),
        Stage("no command buffers", 40, (large,), xla_flags="--xla_gpu_enable_command_buffer="),
        Stage("attention in training", 120, backends, True),
        Stage("remat", 120, remats),
        Stage("batch sizes", 90, batches),
    )  # fmt: skip


def _like(case: Case, variant: str, batch: int) -> Case:
    return dataclasses.replace(case, variant=variant, batch_size=batch)


def _scanned_and_unrolled(case: Case) -> tuple[Case, ...]:
    return tuple(dataclasses.replace(case, scan=scan) for scan in (True, False))


def _reference_outputs() -> tuple[Command, ...]:
    """Compares checkpoints of three libraries with the outputs of these libraries."""
    toy = ("vit_jax.convert", f"--verify={GOLDENS / 'hf_vit' / 'cls'}")
    return tuple(
        Command(("vit_jax.convert", f"--verify={GOLDENS / folder}"), toy, GOLDENS, "highest")
        for folder in ("vt_npz", "timm_vit", "hf_dinov3_vit")
    )


def _reference_training() -> Command:
    """Repeats ten updates of Google's fine-tuning: losses, norms and parameters."""
    test = "tests/adapt_golden_test.py::test_ten_batches_of_vision_transformer"
    arguments = (
        "pytest", f"{test}[vt_finetune_token_f32acc-sizes0]", "-rs",
        # A GPU's start counts as time of the test, and its libraries may warn.
        "-p", "no:time-limit", "-p", "no:cacheprovider", "-W", "default",
    )  # fmt: skip
    return Command(arguments, arguments, GOLDENS, "highest")


def _attention_alone(backend: str) -> Command:
    arguments = ("benchmarks.gpu_attention", f"--backend={backend}")
    return Command(arguments, (*arguments, "--toy"))


def toy(stage: Stage) -> Stage:
    """Returns a stage at toy size: the same workers, commands, flags and table, for a CPU."""
    cases = []
    for case in stage.cases:
        small = dataclasses.replace(
            case, variant="mu/16", image_size=32, batch_size=4, num_classes=10,
            attention="xla" if case.attention else None,
        )  # fmt: skip
        if small not in cases:
            cases.append(small)
    effort = dataclasses.replace(stage.effort, rounds=2, turn_seconds=0.0, matmul_side=64)
    commands = (dataclasses.replace(command, arguments=command.toy) for command in stage.commands)
    return dataclasses.replace(
        stage, seconds=600, cases=tuple(cases[:2]), effort=effort,
        commands=tuple(dict.fromkeys(commands)),
    )  # fmt: skip
