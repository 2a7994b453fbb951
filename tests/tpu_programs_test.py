"""Programs of TPU pods, compiled without a TPU where libtpu is installed: what moves between chips.

XLA for CPUs has no reduce-scatter and gathers in float32, so its programs prove nothing of this.
"""

import collections
import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from vit_jax.config import base_config, freeze
from vit_jax.models import read_section
from vit_jax.parallel import mesh as meshes
from vit_jax.parallel import processes
from vit_jax.training.experiment import Program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu"),
]
WIDTH, HIDDEN, TOKENS, BATCH = 1024, 4096, 256, 512
_TYPE = r"(f32|bf16)\[([\d,]*)\]"


@pytest.fixture(autouse=True)
def without_a_tpu(monkeypatch):
    """What libtpu asks for where no TPU is."""
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def compiled(topology, **changes):
    """The text of the compiled train step."""
    c = base_config()
    c.batch_size, c.total_steps = BATCH, 10
    c.model.update({
        "variant": "L/14", "depth": 2, "pool": "gap", "dtype": "bfloat16", "remat": "named",
    })  # fmt: skip
    c.model.update({k: v for k, v in changes.items() if k not in c.mesh})
    c.mesh.update({k: v for k, v in changes.items() if k in c.mesh})
    config = freeze(c)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = meshes.make_mesh(config.mesh, devices=devices)
    model = read_section(config.model, num_classes=1000)
    assert model.num_tokens == TOKENS
    split = meshes.batch_sharding(mesh)
    shapes = {"image": ((*model.image_size, 3), jnp.float32), "label": ((), jnp.int32),
              "weight": ((), jnp.float32)}  # fmt: skip
    batch = {
        name: jax.ShapeDtypeStruct((BATCH, *shape), dtype, sharding=split)
        for name, (shape, dtype) in shapes.items()
    }
    with jax.set_mesh(mesh):
        program = Program.of(config, model, mesh, num_examples=1000)
        step = program.train_step.trace(program.shapes, batch, processes.flag_shape(mesh))
        lowered = step.lower(lowering_platforms=("tpu",))
        options = {"exec_time_optimization_effort": -1.0}
        return lowered.compile(compiler_options=options).as_text()


def collectives(text):
    """{(kind, dtype): sizes in elements} of the arrays that collectives return."""
    found, computation = collections.defaultdict(list), ""
    for line in text.splitlines():
        if not line.startswith(" "):
            computation = line
        match = re.match(r"\s+(?:ROOT )?%\S+ = (.*?) (all-gather|all-reduce)(-start)?\(", line)
        if match is None:
            continue
        kind = "reduce-scatter" if "all-reduce-scatter" in computation else match[2]
        for dtype, shape in re.findall(_TYPE, match[1]):
            found[kind, dtype].append(math.prod(int(n) for n in shape.split(",") if n))
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_kernels_are_gathered_in_bfloat16_and_their_gradients_scattered(dtype):
    moved = collectives(compiled("v5e:16x16", data=16, fsdp=16, grad_sum_dtype=dtype))
    kernels = {WIDTH * WIDTH, WIDTH * HIDDEN}
    chosen, other = ("bf16", "f32") if dtype == "bfloat16" else ("f32", "bf16")
    assert kernels <= set(moved["all-gather", "bf16"])
    assert kernels.isdisjoint(moved["all-gather", "f32"])
    assert kernels <= set(moved["reduce-scatter", chosen])
    assert kernels.isdisjoint(moved["reduce-scatter", other])
    # Attention's four projections and the two of the MLP.
    assert sum(size in kernels for size in moved["reduce-scatter", chosen]) == 6
    # Only sums over data of what was scattered, embeddings and vectors.
    assert max(moved["all-reduce", "bf16"] + moved["all-reduce", "f32"]) < WIDTH * WIDTH


@pytest.mark.parametrize("parallel", [False, True])
def test_the_residual_stream_is_split_over_tensor(parallel):
    moved = collectives(compiled("v5e:16x16", data=4, fsdp=8, tensor=8, parallel=parallel))
    stream = BATCH // 32 * TOKENS * WIDTH
    assert max(moved["all-reduce", "bf16"] + moved["all-reduce", "f32"]) < stream
    # The outputs of both branches, or of a parallel block their sum; and as many gradients.
    assert moved["reduce-scatter", "bf16"].count(stream) == (2 if parallel else 4)
    assert stream in moved["all-gather", "bf16"]
    assert max(moved["all-gather", "f32"]) < stream
