r"""Measures memory and time to load large published checkpoints.

    python -m benchmarks.loading --out=DIR

Writes safetensors files of random numbers with the shapes of published models (a ViT-L/16 with
timm's names, 1.2 GB; one of 5 GB with transformers' names, in two parts) and loads each in its own
process: the first on one device, the second sharded over eight simulated devices (fsdp). Prints the
increase of the peak resident memory after JAX has started, as a multiple of the file's size, and
the median, minimum and maximum of the seconds. The file is in the page cache, so the times exclude
the disk.
"""

import dataclasses
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import app, flags

_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """A checkpoint that is written and loaded.

    Attributes:
      name: name in the table.
      kind: library of the tensor names: "timm" or "hf".
      devices: number of simulated devices that it is sharded over.
      width: width of the encoder.
      mlp: hidden units of its MLPs.
      depth: number of its blocks.
    """

    name: str
    kind: str
    devices: int
    width: int
    mlp: int
    depth: int


SIZES = {
    "full": (
        Case("ViT-L/16 (timm)", "timm", 1, 1024, 4096, 24),
        Case("25 blocks of width 2,048 (transformers, 2 parts)", "hf", 8, 2048, 8448, 25),
    ),
    "toy": (  # Only tests this program.
        Case("ViT-Ti/16 (timm)", "timm", 1, 192, 768, 12),
        Case("2 blocks of width 64 (transformers)", "hf", 8, 64, 128, 2),
    ),
}


def write(case: Case, folder: pathlib.Path) -> int:
    """Writes a checkpoint of random numbers; returns its size in bytes."""
    from vit_jax.pretrained.exports.huggingface import write_shards

    rng = np.random.default_rng(0)
    width, mlp, depth = case.width, case.mlp, case.depth

    def tensor(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    def timm():
        yield "cls_token", tensor(1, 1, width)
        yield "pos_embed", tensor(1, 197, width)
        yield "patch_embed.proj.weight", tensor(width, 3, 16, 16)
        for name in ("patch_embed.proj", "norm"):
            yield f"{name}.bias", tensor(width)
        yield "norm.weight", tensor(width)
        yield "head.weight", tensor(1000, width)
        yield "head.bias", tensor(1000)
        shapes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width),
                  "mlp.fc1": (mlp, width), "mlp.fc2": (width, mlp)}  # fmt: skip
        yield from blocks("blocks.{}", shapes, ("norm1", "norm2"))

    def transformers():
        yield "embeddings.cls_token", tensor(1, 1, width)
        yield "embeddings.position_embeddings", tensor(1, 197, width)
        yield "embeddings.patch_embeddings.projection.weight", tensor(width, 3, 16, 16)
        yield "embeddings.patch_embeddings.projection.bias", tensor(width)
        yield "layernorm.weight", tensor(width)
        yield "layernorm.bias", tensor(width)
        shapes = {
            f"attention.attention.{name}": (width, width) for name in ("query", "key", "value")
        }
        shapes |= {"attention.output.dense": (width, width), "intermediate.dense": (mlp, width),
                   "output.dense": (width, mlp)}  # fmt: skip
        yield from blocks("encoder.layer.{}", shapes, ("layernorm_before", "layernorm_after"))

    def blocks(name, shapes, norms):
        for i in range(depth):
            for part, shape in shapes.items():
                yield f"{name.format(i)}.{part}.weight", tensor(*shape)
                yield f"{name.format(i)}.{part}.bias", tensor(shape[0])
            for norm in norms:
                yield f"{name.format(i)}.{norm}.weight", tensor(width)
                yield f"{name.format(i)}.{norm}.bias", tensor(width)

    folder.mkdir(parents=True, exist_ok=True)
    if case.kind == "hf":
        config = {"model_type": "vit", "num_attention_heads": 16}
        (folder / "config.json").write_text(json.dumps(config))
        write_shards(transformers(), folder, largest=3 * 10**9)
    else:
        write_shards(timm(), folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def load(folder: str, devices: int) -> dict[str, float]:
    """Loads a checkpoint in this process; returns the increase of the peak memory, and seconds."""
    import jax
    from ml_collections import ConfigDict

    from vit_jax.parallel.mesh import make_mesh
    from vit_jax.pretrained.load import load_pretrained

    mesh = make_mesh(ConfigDict({"data": 1, "fsdp": devices, "tensor": 1}))
    jax.block_until_ready(jax.numpy.zeros(1) + 1)
    before = peak_memory()
    start = time.perf_counter()
    params = load_pretrained(folder, mesh=mesh).params
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    return {"bytes": peak_memory() - before, "seconds": seconds}


def peak_memory() -> int:
    """Returns the peak resident memory of this process in bytes (Linux)."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024


def measure(folder: pathlib.Path, devices: int) -> dict[str, float]:
    """Loads a checkpoint in a new process."""
    xla_flags = f"--xla_force_host_platform_device_count={devices}"
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.loading", f"--load={folder}", f"--devices={devices}"],
        env={**os.environ, "XLA_FLAGS": xla_flags, "JAX_PLATFORMS": "cpu"},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(result.stdout.splitlines()[-1])


def main(argv: Sequence[str]) -> None:
    """Measures all cases, or loads one in the child process."""
    del argv
    if _LOAD.value:
        print(json.dumps(load(_LOAD.value, _DEVICES.value)))
        return
    print("| checkpoint | GB | devices | peak memory / file | seconds (least to most) |")
    print("|---|---|---|---|---|")
    for case in SIZES[_SIZE.value]:
        folder = pathlib.Path(_OUT.value) / case.kind
        size = write(case, folder)
        runs = [measure(folder, case.devices) for _ in range(_REPEATS)]
        ratio = max(run["bytes"] for run in runs) / size
        seconds = sorted(run["seconds"] for run in runs)
        print(
            f"| {case.name} | {size / 1e9:.2f} | {case.devices} | {ratio:.2f} | "
            f"{statistics.median(seconds):.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f}) |",
            flush=True,
        )


if __name__ == "__main__":
    _OUT = flags.DEFINE_string("out", "", "Folder for the files, 6.3 GB.")
    _SIZE = flags.DEFINE_enum("size", "full", list(SIZES), "Size of the checkpoints.")
    _LOAD = flags.DEFINE_string("load", "", "Load this, and print memory and time.")
    _DEVICES = flags.DEFINE_integer("devices", 1, "Simulated devices.")
    app.run(main)
