"""Estimates how long the runs of a sweep take, from runs that were timed.

A speed comes from a run of the sweep that has logged its throughput, or from a few updates that are
timed on this machine. A run whose updates are the same (model, batch size, optimizer, loss) takes
its number of images divided by that speed. For another one the speed is scaled by the FLOPs of an
update from the run that is nearest in them, which is rough: small models use a device less well.
"""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from vit_jax.errors import VitJaxError
from vit_jax.parallel import mesh as meshes
from vit_jax.parallel import processes, xla_options
from vit_jax.rundir import workdir as workdirs
from vit_jax.sweeps import record as records
from vit_jax.sweeps.costs import Cost
from vit_jax.sweeps.plan import PlannedRun
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.training.experiment import Program
from vit_jax.training.mesh_choice import make_mesh
from vit_jax.training.rematerialisation import resolve


@dataclasses.dataclass(frozen=True)
class Speed:
    """A measured speed of training.

    Attributes:
      images_per_second: of updates alone.
      extra_seconds: of a run in everything else: start, compilation, evaluations, saves.
      flops_per_image: of an update, see `vit_jax.models.update_flops_per_image`.
      device: number and kind of the devices.
    """

    images_per_second: float
    extra_seconds: float
    flops_per_image: int
    device: str


_UNKNOWN_EXAMPLES = 10**6  # For the length of a schedule, which does not change the speed.

Speeds = Mapping[str, Speed]  # By `program_key`.


def program_key(config: FrozenConfigDict) -> str:
    """Returns a text that is equal for configs whose updates compute the same operations."""
    plain = workdirs.config_to_json(config)
    optim = {key: value for key, value in plain["optim"].items() if key not in ("lr", "schedule")}
    parts = (plain["model"], plain["batch_size"], optim, plain["mix"], plain["loss"]["name"])
    return json.dumps(parts, sort_keys=True)


def logged_speeds(runs: Sequence[PlannedRun], costs: Mapping[str, Cost]) -> Speeds:
    """Returns the speeds of the runs that have logged one; of equal updates the median.

    Args:
      runs: the runs of a sweep.
      costs: their costs by name.
    """
    found: dict[str, list[Speed]] = {}
    for run in runs:
        path = run.workdir / "timing.jsonl"
        try:
            lines = read_jsonl(path) if path.exists() else []
        except VitJaxError:  # The run itself will report it.
            continue
        rates = [line["speed/img_per_s"] for line in lines if line.get("speed/img_per_s")]
        if not rates or run.name not in costs:
            continue
        rate = statistics.median(rates)
        images = lines[-1]["step"] * run.config.batch_size
        summary = records.read_summary(run.workdir)
        speed = Speed(
            images_per_second=rate,
            extra_seconds=max(0.0, lines[-1].get("time/wall_s", 0.0) - images / rate),
            flops_per_image=costs[run.name].update_flops_per_image,
            device=f"{summary.get('num_devices')} x {summary.get('device')}",
        )
        found.setdefault(program_key(run.config), []).append(speed)
    return {key: _median(speeds) for key, speeds in found.items()}


def _median(speeds: Sequence[Speed]) -> Speed:
    fields = ("images_per_second", "extra_seconds")
    medians = {name: statistics.median(getattr(speed, name) for speed in speeds) for name in fields}
    return dataclasses.replace(speeds[0], **medians)


def timed_speeds(
    runs: Sequence[PlannedRun],
    costs: Mapping[str, Cost],
    *,
    updates: int,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]  # Untyped in JAX.
) -> Speeds:
    """Times the updates of each kind among the runs, on constant images, on this machine.

    Compilation is the only extra time that is measured.

    Args:
      runs: the runs of a sweep.
      costs: their costs by name.
      updates: number of updates that are timed, after one that is not.
      devices: the devices to use; None: all.

    Raises:
      ConfigError: a mesh or a batch size does not fit the devices.
    """
    speeds: dict[str, Speed] = {}
    for run in runs:
        if (key := program_key(run.config)) not in speeds:
            speeds[key] = _time(run.config, costs[run.name], updates, devices)
    return speeds


def _time(
    config: FrozenConfigDict,
    run_cost: Cost,
    updates: int,
    devices: Sequence[jax.Device] | None,  # pyright: ignore[reportInvalidTypeForm]  # Untyped in JAX.
) -> Speed:
    num_classes = run_cost.model_config.num_classes
    mesh, _ = make_mesh(config, num_classes=num_classes, devices=devices)
    meshes.check_batch_size(config.batch_size, accum_steps=config.optim.accum_steps, mesh=mesh)
    model_config, _ = resolve(config, run_cost.model_config, mesh)
    shape = (config.batch_size, *model_config.image_size, model_config.channels)
    host = {
        "image": np.zeros(shape, np.float32),
        "label": np.zeros(config.batch_size, np.int32),
        "weight": np.ones(config.batch_size, np.float32),
    }
    with jax.set_mesh(mesh):
        before = time.monotonic()
        examples = run_cost.examples or _UNKNOWN_EXAMPLES
        program = Program.of(config, model_config, mesh, num_examples=examples)
        state = jax.jit(program.init, out_shardings=program.layout)(jax.random.key(config.seed))
        batch = jax.device_put(host, meshes.batch_sharding(mesh))
        stop = processes.flag_array(False, mesh)
        platform = mesh.devices.flat[0].platform
        options = xla_options.compiler_options(config.compiler.options, platform)
        with xla_options.reported():
            update = program.train_step.lower(state, batch, stop).compile(compiler_options=options)
        state, metrics = jax.block_until_ready(update(state, batch, stop))
        start = time.monotonic()
        for _ in range(updates):
            state, metrics = update(state, batch, stop)
        jax.block_until_ready(metrics)
        seconds = (time.monotonic() - start) / updates
    return Speed(
        images_per_second=config.batch_size / seconds,
        extra_seconds=start - before,
        flops_per_image=run_cost.update_flops_per_image,
        device=f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
    )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimated duration of a run.

    Attributes:
      seconds: from its start to its end.
      is_scaled: whether the speed is that of other updates, scaled by FLOPs.
    """

    seconds: float
    is_scaled: bool


def estimate(run: PlannedRun, run_cost: Cost, speeds: Speeds) -> Estimate | None:
    """Estimates how long a run takes that has not begun.

    Args:
      run: the run.
      run_cost: its cost.
      speeds: from `logged_speeds` or `timed_speeds`.

    Returns:
      None if there is no speed, or the number of steps is unknown.
    """
    if not speeds or run_cost.own_steps is None:
        return None
    flops = run_cost.update_flops_per_image
    same = speeds.get(program_key(run.config))
    nearest = same or min(
        speeds.values(), key=lambda speed: abs(math.log(speed.flops_per_image / flops))
    )
    rate = nearest.images_per_second
    rate *= 1.0 if same else nearest.flops_per_image / flops
    seconds = run_cost.own_steps * run.config.batch_size / rate + nearest.extra_seconds
    return Estimate(seconds, is_scaled=same is None)
