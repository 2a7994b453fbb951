"""Sweeps for the tests: of real runs that take seconds, and of scripted ones."""

import dataclasses
import pathlib
import subprocess
import sys

from tests import forked
from vit_jax import cli
from vit_jax.sweeps.plan import PlannedRun, plan_runs

# A config file whose runs are real and small: 12 to 20 steps on digits, two of them of one trunk.
REAL = """
from ml_collections import ConfigDict

from vit_jax.config import base_config, classification_eval, parse_args
from vit_jax.sweeps.grids import durations, grid


def get_config(arg=None):
    args = parse_args(arg, depth=1)
    c = base_config()
    c.batch_size, c.total_steps = 16, 12
    c.model.update({"variant": "mu/4", "depth": args.depth, "image_size": (8,), "channels": 1})
    c.model.pool = "gap"
    decode = {"op": "decode", "channels": 1}
    crop = {"op": "random_crop", "padding": 1}
    c.data.train_transforms = (decode, crop, {"op": "value_range"})
    c.data.eval_transforms = (decode, {"op": "resize"}, {"op": "value_range"})
    c.optim.lr = 3e-3
    c.optim.schedule.name, c.optim.schedule.warmup_steps = "constant", 2
    c.evals = ConfigDict({"test": classification_eval(split="test[:50]", every_steps=6)})
    c.checkpoint.every_steps = 4
    c.log.every_steps, c.log.tensorboard = 2, False
    return c


def sweep(arg=None):
    points = grid({":depth": (1,), "data.examples": (100,)})
    points += durations({"seed": 7}, (20, 12), cooldown=0.25)
    return [*points, {"name": "fails", "data.shots": 10_000}]
"""
NAMES = ("depth=1,examples=100", "seed=7,steps=20", "seed=7,steps=12", "fails")


def plan(points, folder: pathlib.Path, file: pathlib.Path, **overrides) -> list[PlannedRun]:
    """The runs of some points, as the command makes them."""
    return plan_runs(
        points,
        file=str(file),
        argument="",
        overrides=overrides,
        folder=folder,
        configure=cli.config_of,
    )


def sweep_command(file: pathlib.Path, folder: pathlib.Path, *flags: str) -> list[str]:
    """The command of a sweep."""
    command = [sys.executable, "-m", "vit_jax.sweep", f"--config={file}", f"--workdir={folder}"]
    return [*command, *flags]


def run_sweep(*command, **kwargs) -> subprocess.CompletedProcess:
    """Runs it to its end."""
    return subprocess.run(command, capture_output=True, text=True, timeout=280, **kwargs)


def start_sweep(file: pathlib.Path, folder: pathlib.Path, *flags: str) -> forked.Forked:
    """Starts the command without a cold interpreter; that of its runs it starts as ever."""
    return forked.start("vit_jax.sweep", f"--config={file}", f"--workdir={folder}", *flags)


def ended_sweep(file: pathlib.Path, folder: pathlib.Path, *flags: str, env=None) -> forked.Forked:
    """Runs it to its end."""
    flags = (f"--config={file}", f"--workdir={folder}", *flags)
    return forked.run("vit_jax.sweep", *flags, env=env)


# What vit_jax.train would leave behind, and how it would end.
_ACT = """
import json, os, pathlib, signal, sys, time
workdir = pathlib.Path(sys.argv[1])
def reach(step, total=10):
    (workdir / "run.json").write_text(json.dumps({"total_steps": total, "batch_size": 1}))
    folder = workdir / "checkpoints" / str(step)
    folder.mkdir(parents=True)
    (folder / "_CHECKPOINT_METADATA").touch()
def reached():
    return max((int(path.name) for path in (workdir / "checkpoints").glob("*")), default=-1)
def note(text):
    with (workdir / "notes").open("a") as file:
        file.write(text + "\\n")
note("begin")
"""


@dataclasses.dataclass(frozen=True)
class Actor(PlannedRun):
    """A run whose process executes a few lines of Python instead of `vit_jax.train`."""

    act: str = ""

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-I", "-S", "-c", _ACT + self.act, str(self.workdir)]

    @property
    def notes(self) -> list[str]:
        """What its processes noted down."""
        path = self.workdir / "notes"
        return path.read_text().split() if path.exists() else []


def actors(folder: pathlib.Path, acts: dict[str, str], branches: dict | None = None) -> list[Actor]:
    """Runs by name, with what each does; `branches`: name -> (trunk, step)."""
    return [
        Actor(name, {"act": act}, (), None, folder / name, (branches or {}).get(name), act)
        for name, act in acts.items()
    ]
