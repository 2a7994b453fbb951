"""The same run on other meshes, moved between them, and on several processes."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from tests import recorded_train
from tests.many_processes import ends, processes
from tests.small_run import small_config
from vit_jax.errors import ExitCode
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.training.run import train

STEPS = 50
TOLERANCE = 1e-5  # Relative, of each step's loss.

# (data, fsdp, tensor), and microbatches: those change the dropout, so each has its own reference.
MESHES = (
    ((8, 1, 1), 1),
    ((1, 8, 1), 1),
    ((2, 2, 2), 1),
    ((4, 1, 2), 1),
    ((1, 2, 4), 1),
    ((2, 4, 1), 1),
    ((2, 2, 2), 4),
    ((1, 8, 1), 4),
)
# One run's way: 8 devices, 2, 1, 4 (fsdp), 8 (tensor), each for about ten steps.
MOVES = ((8, 1, 1), (2, 1, 1), (1, 1, 1), (1, 4, 1), (1, 1, 8))
# And one run's way over real processes with one device each, and their loader processes.
PROCESSES = ((1, 0), (2, 1), (4, 0), (1, 2))
PROCESS_STEPS = 24


def stochastic(
    *, accum_steps: int = 1, mesh: tuple[int, int, int] = (1, 1, 1), steps: int = STEPS
) -> FrozenConfigDict:
    """A run in which everything is random that can be, and in which the loss falls."""
    return small_config(
        batch_size=64,
        total_steps=steps,
        model__num_heads=8,  # So that tensor=8 splits them.
        model__dropout=0.1,
        model__attention_dropout=0.1,
        model__stochastic_depth=0.1,
        mix__mixup_alpha=0.2,
        mix__cutmix_alpha=1.0,
        optim__accum_steps=accum_steps,
        optim__lr=5e-3,
        optim__ema_decay=0.9,
        log__every_steps=1,
        checkpoint__every_steps=steps,
        mesh__data=mesh[0],
        mesh__fsdp=mesh[1],
        mesh__tensor=mesh[2],
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run gave, whatever it ran on."""

    losses: np.ndarray  # f64[steps]
    tests: list[dict[str, float]]  # Of each evaluation.
    inside: list[dict[str, float]]  # Of each evaluation of the type analysis.
    rows: recorded_train.Rows

    def compared(self, other: "Outcome") -> dict[str, float | bool]:
        """How far this run is from another one."""
        relative = np.abs(self.losses - other.losses) / other.losses
        return {
            "loss": float(relative.max()),
            "loss at the end": float(relative[-1]),
            "evaluation": max(
                abs(a["test/loss"] - b["test/loss"]) / b["test/loss"]
                for a, b in zip(self.tests, other.tests, strict=True)
            ),
            "same accuracies": [t["test/top1"] for t in self.tests]
            == [t["test/top1"] for t in other.tests],
            "same batches": self.rows == other.rows,
        }


def of_evaluation(name: str, line: dict[str, float]) -> dict[str, float]:
    """The values of an evaluation in a line of metrics; {} if it was not due."""
    return {key: value for key, value in line.items() if key.startswith(f"{name}/")}


def outcome(workdir: pathlib.Path, *records: pathlib.Path) -> Outcome:
    """Reads a finished run: its metrics, and what its processes were given."""
    lines = read_jsonl(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    tests, inside = (
        [values for line in lines if (values := of_evaluation(name, line))]
        for name in ("test", "inside")
    )
    losses = np.array([line["train/loss"] for line in lines])
    return Outcome(losses, tests, inside, recorded_train.read(*records))


def on_mesh(
    folder: pathlib.Path,
    mesh: tuple[int, int, int],
    *,
    accum_steps: int = 1,
    stop_at: int = -1,
    steps: int = STEPS,
) -> int:
    """Trains in folder/run on as many simulated devices as the mesh has, or goes on there."""
    config = stochastic(accum_steps=accum_steps, mesh=mesh, steps=steps)
    devices = jax.devices()[: int(np.prod(mesh))]
    with recorded_train.recording(folder / "rows", stop_at=stop_at):
        return train(config, folder / "run", devices=devices, allow_config_change=True)


def whole(
    folder: pathlib.Path,
    mesh: tuple[int, int, int],
    *,
    accum_steps: int = 1,
    steps: int = STEPS,
) -> Outcome:
    """A run that stays on one mesh."""
    folder.mkdir(parents=True)
    assert on_mesh(folder, mesh, accum_steps=accum_steps, steps=steps) == 0
    return outcome(folder / "run", folder / "rows")


def moved(
    folder: pathlib.Path, meshes: Sequence[tuple[int, int, int]], *, steps: int = STEPS
) -> Outcome:
    """A run that is stopped and resumed on each of the meshes in turn."""
    folder.mkdir(parents=True)
    for i, mesh in enumerate(meshes):
        last = i == len(meshes) - 1
        stop_at = -1 if last else steps * (i + 1) // len(meshes) - 2
        code = on_mesh(folder, mesh, stop_at=stop_at, steps=steps)
        assert code == (0 if last else ExitCode.STOPPED)
    return outcome(folder / "run", folder / "rows")


# ------------------------------------------------------------------------------------- processes

# Every measure that an evaluation can take, also while two processes share the model.
PROCESS_CONFIG = """
from configs import quickstart
from vit_jax.analysis.measures.registry import OVER_TRAINING
from vit_jax.config import analysis_eval

def get_config():
    config = quickstart.get_config()
    config.evals.inside = analysis_eval(
        split="test[:64]", measures=OVER_TRAINING, every_steps=2
    )
    return config
"""
PROCESS_FLAGS = (
    "--config.batch_size=64",
    "--config.model.depth=1",
    "--config.model.dropout=0.1",
    "--config.model.stochastic_depth=0.1",
    "--config.mix.mixup_alpha=0.2",
    "--config.optim.ema_decay=0.9",
    "--config.optim.lr=1e-2",
    "--config.evals.test.every_steps=12",
    "--config.log.every_steps=1",
    "--config.log.tensorboard=False",
    "--allow_config_change",
)


def on_processes(
    folder: pathlib.Path, count: int, *, workers: int, stop_at: int, steps: int
) -> list[pathlib.Path]:
    """Starts `count` real processes that train in folder/run; gives what they were fed.

    Parameters are split over two processes (fsdp), if there are as many.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.py").write_text(PROCESS_CONFIG)
    first = len(list(folder.glob("rows*")))
    records = [folder / f"rows{first + i}" for i in range(count)]
    commands = [
        [
            "tests.recorded_train",
            record,
            # The last one gets SIGTERM, and the others learn it from that one.
            stop_at if i == count - 1 else -1,
            f"--config={folder / 'config.py'}",
            *PROCESS_FLAGS,
            f"--config.total_steps={steps}",
            f"--config.mesh.fsdp={min(count, 2)}",
            f"--config.data.workers={workers}",
            f"--workdir={folder / 'run'}",
        ]
        for i, record in enumerate(records)
    ]
    with processes(commands) as started:
        for process in started:
            code, err = ends(process, timeout=240)
            assert code == (0 if stop_at < 0 else ExitCode.STOPPED), f"{code}: {err[-3000:]}"
    return records


def moved_between_processes(
    folder: pathlib.Path, stages: Sequence[tuple[int, int]], *, steps: int = PROCESS_STEPS
) -> Outcome:
    """A run that is stopped and resumed with other numbers of processes and workers."""
    records = []
    for i, (count, workers) in enumerate(stages):
        last = i == len(stages) - 1
        stop_at = -1 if last else steps * (i + 1) // len(stages) - 2
        records += on_processes(folder, count, workers=workers, stop_at=stop_at, steps=steps)
    return outcome(folder / "run", *records)
