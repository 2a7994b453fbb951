r"""Compares what `vit-jax plan` says of a step's memory with the memory that updates take on a CPU.

    python -m benchmarks.planning [--repeats=2]

Each point is a process of its own, which compiles the planner's step for the devices of a CPU,
makes random data, and updates the state: once to warm up, and then twice to measure. Measured is
the increase of the peak of resident memory over what there was before the state and the batch: what
the compiler and JAX's threads keep does not count. It is that of all simulated devices together.
"""

import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
from absl import app, flags
from ml_collections import FrozenConfigDict

from vit_jax.config import base_config, freeze
from vit_jax.parallel.simulated import give_threads_to_simulated_devices

_CLASSES, _HEAD_WIDTH = 10, 64
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Point:
    """A run, in float32 with patches of 16 pixels.

    Attributes:
      mesh: devices along data, fsdp and tensor.
      stochastic_depth: above 0, one device computes a batch at once as an accelerator does, and
        not in parts (vit_jax.training.parts).
    """

    width: int = 256
    depth: int = 16
    image_size: int = 128
    batch: int = 16
    remat: str = "none"
    accum_steps: int = 1
    optimizer: str = "adamw"
    pool: str = "gap"
    scan: bool = True
    mesh: tuple[int, int, int] = (1, 1, 1)
    stochastic_depth: float = 0.1

    @property
    def devices(self) -> int:
        """Number of devices."""
        return int(np.prod(self.mesh))

    def config(self) -> FrozenConfigDict:
        """Returns the config of the run."""
        config = base_config()
        config.batch_size, config.total_steps = self.batch, 100
        config.model.update({
            "variant": "Ti/16", "width": self.width, "depth": self.depth, "mlp_dim": 4 * self.width,
            "num_heads": self.width // _HEAD_WIDTH, "image_size": (self.image_size,),
            "remat": self.remat, "pool": self.pool, "scan": self.scan,
            "stochastic_depth": self.stochastic_depth,
        })  # fmt: skip
        config.optim.name, config.optim.accum_steps = self.optimizer, self.accum_steps
        config.mesh.data, config.mesh.fsdp, config.mesh.tensor = self.mesh
        return freeze(config)


@dataclasses.dataclass(frozen=True)
class Result:
    """Bytes on all devices: by formula, by the compiler, and measured."""

    formula: int
    compiler: int
    measured: int


_ON_EIGHT = [(8, 1, 1), (2, 4, 1), (4, 1, 2), (2, 2, 2)]
_SMALL = {"width": 128, "batch": 64}  # Eight devices have its parameters up to eight times.
_WIDE = {"width": 384, "depth": 13, "batch": 8}
POINTS = (
    Point(),
    Point(batch=32, remat="named"),
    Point(batch=32, remat="dots_no_batch"),
    Point(batch=32, remat="full"),
    Point(**_WIDE),
    Point(**_WIDE, remat="full"),
    Point(**_WIDE, optimizer="adafactor"),
    Point(**_WIDE, optimizer="adafactor", remat="full"),
    Point(image_size=256, batch=8, remat="full"),
    Point(batch=64, accum_steps=4),
    Point(pool="token"),
    Point(pool="map", batch=32),
    Point(depth=6, batch=32),
    Point(depth=6, batch=32, scan=False),
    Point(batch=32, stochastic_depth=0.0),
    *(Point(**_SMALL, mesh=mesh) for mesh in _ON_EIGHT),
    Point(**_SMALL, mesh=(2, 4, 1), remat="named"),
    Point(**_SMALL, mesh=(2, 2, 2), remat="named"),
    Point(mesh=(2, 4, 1), remat="full", batch=128, accum_steps=4),
    Point(mesh=(2, 4, 1), batch=32, optimizer="adafactor"),
    Point(**_SMALL, mesh=(4, 1, 2), pool="map"),
    Point(**_SMALL, mesh=(4, 1, 2), pool="token"),
)


def run(point: Point) -> Result:
    """Measures a point in this process."""
    import jax

    from vit_jax.benchmarking.memory import peak_resident_bytes, reset_peak
    from vit_jax.parallel import mesh as meshes
    from vit_jax.parallel import processes
    from vit_jax.planning.step import Step, compile_step
    from vit_jax.training.memory import memory_per_device

    config = point.config()
    mesh = meshes.make_mesh(config.mesh, devices=jax.devices()[: point.devices])
    step = Step.of(config, mesh, num_classes=_CLASSES, num_examples=10_000)
    traced = step.trace()
    needed = compile_step(step, traced, full_effort=True).needed
    memory = memory_per_device(config, step.model_config, mesh)
    ahead = memory.batches * config.data.prefetch // (1 + config.data.prefetch)

    def updates(count: int) -> None:
        """Makes a state and a batch, and updates the state; all of it is deleted at the end."""
        rng = np.random.default_rng(0)
        arrays = {
            "image": rng.standard_normal(step.batch["image"].shape, np.float32),
            "label": rng.integers(_CLASSES, size=point.batch, dtype=np.int32),
            "weight": np.ones(point.batch, np.float32),
        }
        batch = jax.device_put(arrays, meshes.batch_sharding(mesh))
        del arrays
        state = jax.block_until_ready(init(jax.random.key(0)))
        reset_peak()
        for _ in range(count):
            state, metrics = jax.block_until_ready(update(state, batch, stop))
        assert np.isfinite(metrics["train/loss"])

    with jax.set_mesh(mesh):
        init = jax.jit(step.program.init, out_shardings=step.program.layout)
        update = traced.lower().compile()
        stop = processes.flag_array(False, mesh)
        updates(1)
        gc.collect()
        reset_peak()
        before = peak_resident_bytes()
        updates(2)
    return Result(
        (memory.total - ahead) * point.devices,
        needed * point.devices,
        peak_resident_bytes() - before,
    )


def measure(point: Point, cache: str) -> Result:
    """Measures a point in a new process, with a folder for compiled programs."""
    variables = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={point.devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
    }
    fields = json.dumps(dataclasses.asdict(point))
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks.planning", f"--point={fields}"],
        env=os.environ | variables,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return Result(**json.loads(out.splitlines()[-1]))


def table(results: dict[Point, list[Result]]) -> Iterator[str]:
    """Yields a table in Markdown, in MiB, and the errors in two lines."""
    yield (
        "| width x depth | pixels | batch | remat | accum | mesh | | formula | compiler "
        "| measured | formula / measured | compiler / measured |"
    )
    yield "|---" * 12 + "|"
    ratios = {"formula": [], "compiler": []}
    for point, runs in results.items():
        measured = statistics.mean(each.measured for each in runs)
        cells = [
            f"{point.width} x {point.depth}",
            point.image_size,
            point.batch,
            point.remat,
            point.accum_steps,
            "x".join(map(str, point.mesh)),
            _others(point),
            *(f"{each / _MIB:,.0f}" for each in (runs[0].formula, runs[0].compiler)),
            ", ".join(f"{each.measured / _MIB:,.0f}" for each in runs),
        ]
        for name, found in ratios.items():
            found.append(getattr(runs[0], name) / measured)
            cells.append(f"{found[-1]:.2f}")
        yield f"| {' | '.join(map(str, cells))} |"
    for name, found in ratios.items():
        errors = sorted(abs(ratio - 1) for ratio in found)
        yield (
            f"{name}: {min(found):.2f} to {max(found):.2f} of measured, "
            f"median error {statistics.median(errors):.0%}, worst {errors[-1]:.0%}"
        )


def _others(point: Point) -> str:
    """Returns settings that differ from those of the first point and have no column."""
    notes = []
    if point.optimizer != POINTS[0].optimizer:
        notes.append(point.optimizer)
    if point.pool != POINTS[0].pool:
        notes.append(f"pool {point.pool}")
    if not point.scan:
        notes.append("scan off")
    if not point.stochastic_depth:
        notes.append("in parts")
    return ", ".join(notes)


def main(argv: Sequence[str]) -> None:
    """Measures all points, or one in the child process."""
    del argv
    if _POINT.value:
        give_threads_to_simulated_devices()
        fields = json.loads(_POINT.value)
        print(
            json.dumps(dataclasses.asdict(run(Point(**fields | {"mesh": tuple(fields["mesh"])}))))
        )
        return
    results = {}
    with tempfile.TemporaryDirectory() as cache:
        for point in POINTS:
            results[point] = [measure(point, cache) for _ in range(_REPEATS.value)]
            print(*list(table({point: results[point]}))[2:3], flush=True)
    print("\n".join(table(results)))


if __name__ == "__main__":
    _REPEATS = flags.DEFINE_integer("repeats", 2, "Processes for each point.", 1)
    _POINT = flags.DEFINE_string("point", "", "Measure this, and print the bytes.")
    app.run(main)
