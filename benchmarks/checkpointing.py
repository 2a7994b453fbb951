"""Measures the time of start-up, saves, restores and shutdown of a run.

    python -m benchmarks.checkpointing --out=DIR [--sizes=small,ViT-S] [--repeats=5]

Two models on the bundled digits: the quickstart's, and one with the blocks of a ViT-S on few
tokens, whose state (parameters and Adam's moments, 256 MB) is about as large as a ViT-S/16's. The
size "toy" only tests this program. For each:

  start-up   from the command to the end of its first step: with an empty compilation cache, with a
             filled one, and from a checkpoint (with a filled one)
  save       time that the train loop waits, time until the checkpoint is on the disk, and the time
             of steps while it is written, alternating with steps without a save
  restore    onto the device, from files in the page cache
  shutdown   from SIGTERM to the end of the process, including the save; from the last step to the
             end of a finished run (one example evaluated, last save, curves drawn)

Prints a table of medians with minimum and maximum, and writes it to DIR/checkpointing.md. Run
nothing else on the machine meanwhile.
"""

import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh

from configs import quickstart
from vit_jax.checkpoints.store import ARRAYS, Store
from vit_jax.config import freeze
from vit_jax.models import build, param_shapes, read_section
from vit_jax.optim import make_optimizer, make_schedule
from vit_jax.parallel import mesh as meshes
from vit_jax.parallel import processes
from vit_jax.training.state import make_init, state_layout
from vit_jax.training.update import make_train_step

SIZES = {
    "small": {"batch_size": 128},
    "ViT-S": {
        "batch_size": 16,
        "model.width": 384,
        "model.depth": 12,
        "model.mlp_dim": 1536,
        "model.num_heads": 6,
        "model.scan": True,
    },
    "toy": {"batch_size": 16, "model.width": 16, "model.depth": 1, "model.mlp_dim": 16},
}
Seconds = dict[str, list[float]]  # Measurements by name.

# ------------------------------------------------------------------------------------- commands


class Command:
    """A training command whose output is read line by line."""

    def __init__(self, size: str, workdir: pathlib.Path, cache: pathlib.Path, *, total: int):
        changes = SIZES[size] | {
            "total_steps": total,
            "evals.test.split": "test[:1]",
            "evals.test.every_steps": 0,
            "checkpoint.every_steps": 10**9,
            "log.every_steps": 1,
            "log.tensorboard": False,
            "log.compilation_cache": cache,
        }
        self._began = time.perf_counter()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vit_jax.train", "--config=quickstart"),
                *(f"--config.{key}={value}" for key, value in changes.items()),
                f"--workdir={workdir}",
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        )

    def until(self, text: str) -> float:
        """Returns the seconds from the start to the line that begins with `text`."""
        for line in self._process.stdout:
            if line.startswith(text):
                return time.perf_counter() - self._began
        raise RuntimeError(f'The command ended without a line "{text}".')

    def until_exit(self, *, code: int) -> float:
        """Returns the seconds until the process exits, which must have the exit code `code`."""
        began = time.perf_counter()
        self._process.communicate()  # Reads the output and closes the pipe.
        if (actual := self._process.returncode) != code:
            raise RuntimeError(f"The exit code is {actual} instead of {code}.")
        return time.perf_counter() - began

    def stop(self) -> float:
        """Sends SIGTERM and returns the seconds until the process exits."""
        self._process.send_signal(signal.SIGTERM)
        return self.until_exit(code=75)


def commands(size: str, out: pathlib.Path, repeats: int) -> Seconds:
    """Measures start-up and shutdown of real processes."""
    seconds: Seconds = defaultdict(list)
    workdir, cache = out / "run", out / "cache"
    for _ in range(repeats):
        shutil.rmtree(cache, ignore_errors=True)
        for name in ("start-up, nothing compiled", "start-up, compiled before"):
            shutil.rmtree(workdir, ignore_errors=True)
            command = Command(size, workdir, cache, total=10**6)
            seconds[name].append(command.until("step 1/"))
            seconds["shutdown, from SIGTERM"].append(command.stop())
        done = int(max((workdir / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name)).name)
        command = Command(size, workdir, cache, total=10**6)
        seconds["start-up, from a checkpoint"].append(command.until(f"step {done + 1:,}/"))
        seconds["shutdown, from SIGTERM"].append(command.stop())
        shutil.rmtree(workdir)
        command = Command(size, workdir, cache, total=3)
        command.until("step 3/3")
        seconds["shutdown, from the last step"].append(command.until_exit(code=0))
    return seconds


# ------------------------------------------------------------------------------ saves, restores


def training(size: str, mesh: Mesh) -> tuple[Any, Any, Any]:
    """Returns a state on the mesh, its layout, and a compiled step (state) -> (state, metrics)."""
    c = quickstart.get_config()
    for key, value in SIZES[size].items():
        section, _, leaf = key.rpartition(".")
        (c[section] if section else c)[leaf] = value
    config = freeze(c)
    model_config = read_section(config.model, num_classes=10)
    schedule = make_schedule(
        config.optim.schedule, total_steps=1000, batch_size=config.batch_size, num_examples=1442
    )
    tx = make_optimizer(config.optim, param_shapes(model_config), schedule=schedule)
    init = make_init(config, build(model_config), tx)
    layout = state_layout(jax.eval_shape(init, jax.random.key(0)), mesh)
    state = jax.jit(init, out_shardings=layout)(jax.random.key(0))
    rng = np.random.default_rng(0)
    batch = jax.device_put(
        {
            "image": rng.normal(size=(config.batch_size, 8, 8, 1)).astype(np.float32),
            "label": rng.integers(0, 10, config.batch_size, np.int32),
            "weight": np.ones(config.batch_size, np.float32),
        },
        meshes.batch_sharding(mesh),
    )
    stop = processes.flag_array(False, mesh)
    step = jax.jit(
        make_train_step(config, build(model_config), tx, schedule),
        donate_argnums=0,
        out_shardings=(layout, meshes.replicated(mesh)),
    )
    compiled = step.lower(state, batch, stop).compile()
    return state, layout, lambda state: compiled(state, batch, stop)


def saves(size: str, out: pathlib.Path, repeats: int) -> tuple[Seconds, float]:
    """Measures saves and restores; also returns the size of the state in megabytes."""
    measured: Seconds = defaultdict(list)
    mesh = meshes.make_mesh(quickstart.get_config().mesh)
    with jax.set_mesh(mesh):
        state, layout, train_step = training(size, mesh)
        targets = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(lambda: state),
            layout,
        )
        number = 0

        def steps(state: Any, seconds: float) -> tuple[Any, float]:
            """Trains for at least `seconds`; returns the mean time of a step."""
            began, count = time.perf_counter(), 0
            while count < 3 or time.perf_counter() - began < seconds:
                state, metrics = train_step(state)
                jax.block_until_ready(metrics)
                count += 1
            return state, (time.perf_counter() - began) / count

        state, _ = steps(state, 1.0)
        with Store(out / "checkpoints", keep_last=1) as store:
            began = time.perf_counter()
            store.save(number, _items(state), {"step": number}, metrics={})
            measured["first save of a process, the loop waits"].append(time.perf_counter() - began)
            store.finish()
            for _ in range(repeats):
                # A save without concurrent steps, until it is on the disk.
                number += 1
                began = time.perf_counter()
                store.save(number, _items(state), {"step": number}, metrics={})
                measured["save, the loop waits"].append(time.perf_counter() - began)
                store.finish()
                on_disk = time.perf_counter() - began
                measured["save, until on the disk"].append(on_disk)

                # Steps alone, then steps while a checkpoint is written, each for `on_disk` seconds.
                state, alone = steps(state, on_disk)
                number += 1
                store.save(number, _items(state), {"step": number}, metrics={})
                state, during_save = steps(state, on_disk)
                store.finish()
                measured["step"].append(alone)
                measured["step while a save is written"].append(during_save)
        for _ in range(repeats):
            with Store(out / "checkpoints", read_only=True) as store:
                began = time.perf_counter()
                arrays, _ = store.restore(number, _items(targets))
                jax.block_until_ready(arrays)
                measured["restore"].append(time.perf_counter() - began)
    megabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(_items(state))) / 1e6
    return measured, megabytes


def _items(state: Any) -> dict[str, Any]:
    return {item: getattr(state, item) for item in ARRAYS}


# ----------------------------------------------------------------------------------------- table


def table(measured: dict[str, Seconds]) -> str:
    """Returns a Markdown table of the measurements, with a column for each size."""
    rows = list(dict.fromkeys(name for seconds in measured.values() for name in seconds))
    lines = ["| seconds: median (smallest to largest) | " + " | ".join(measured) + " |"]
    lines += ["|---" * (len(measured) + 1) + "|"]
    for row in rows:
        cells = (_format_cell(seconds.get(row, [])) for seconds in measured.values())
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _format_cell(values: Sequence[float]) -> str:
    if not values:
        return "not measured"
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


if __name__ == "__main__":
    _OUT = flags.DEFINE_string("out", None, "Folder for all files; emptied first.", required=True)
    _SIZES = flags.DEFINE_list("sizes", ["small", "ViT-S"], "Models: " + ", ".join(SIZES) + ".")
    _REPEATS = flags.DEFINE_integer("repeats", 5, "Repeats of each measurement.", lower_bound=1)

    def main(argv: Sequence[str]) -> None:
        del argv
        logging.set_verbosity(logging.ERROR)
        out = pathlib.Path(_OUT.value).absolute()
        shutil.rmtree(out, ignore_errors=True)
        measured = {}
        for size in _SIZES.value:
            (out / size).mkdir(parents=True)
            # Commands first, before `saves` allocates memory and starts threads here.
            seconds = commands(size, out / size, _REPEATS.value)
            save_seconds, megabytes = saves(size, out / size, _REPEATS.value)
            measured[f"{size} ({megabytes:,.1f} MB)"] = {**seconds, **save_seconds}
        device = jax.devices()[0].device_kind
        text = f"{os.cpu_count()} CPUs, {jax.device_count()} x {device}\n\n{table(measured)}\n"
        (out / "checkpointing.md").write_text(text)
        print(text)

    app.run(main)
